"""Light on skin: a lamp with a shadow map, ambient light with occlusion, subsurface-like colour bleeding and gloss.

Directions and positions are in the world frame, metres; colours are linear RGB.
"""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from handdata.adapters.synthesis.geometry import Floats, Integers, normalize
from handdata.adapters.synthesis.raster import rasterize

_SHADOW_MAP_SIZE: Final = 192
_SHADOW_BORDER_PX = 2
_SHADOW_BIAS_M = 0.006
_SHADOW_SOFTNESS_M = 0.006
_SHADOW_TAPS_PX = (-1.5, 0.0, 1.5)
_SHADOW_STRENGTH = 0.8

_WRAP = np.array([0.45, 0.22, 0.16], dtype=np.float32)
"""Light wraps around skin, red the farthest: a cheap stand-in for scattering below the surface."""
_OCCLUSION_TINT = np.array([0.75, 1.05, 1.1], dtype=np.float32)
_SHADOW_TINT = np.array([0.8, 1.0, 1.05], dtype=np.float32)
_DEPTH_OCCLUSION = ((0.006, 0.35), (0.016, 0.45))
"""Radius in metres and strength of each scale of the occlusion that the depth image gives."""


@dataclass(frozen=True, eq=False)
class Light:
    """A distant lamp and ambient light from above."""

    direction: NDArray[np.float64]
    """(3,): unit, from the scene towards the lamp, world frame."""
    colour: NDArray[np.float64]
    ambient: NDArray[np.float64]
    gloss: float
    exposure: float


@dataclass(frozen=True, eq=False)
class ShadowMap:
    """Distance of the first surface from the lamp, on a grid across the hands."""

    world_to_lamp: NDArray[np.float64]
    """(3, 3): rows are the map's x, its y and the direction of the light's travel."""
    origin_m: NDArray[np.float64]
    """(2,): position of pixel (0, 0) on the map's plane."""
    pixel_m: float
    depth_m: NDArray[np.float32]
    """(192, 192), infinite where nothing is hit."""
    depth_offset_m: float


def sample_light(rng: np.random.Generator) -> Light:
    """Draw a lamp behind the first camera, mostly above it, from bluish to warm."""
    direction = rng.normal(size=3)
    direction[2] = -abs(direction[2]) - 0.9
    direction[1] -= 0.5
    colour = np.array([1, 0.96, 0.9]) ** rng.uniform(-0.8, 1.5) * rng.uniform(0.75, 1.1)
    ambient = rng.uniform(0.20, 0.42) * (np.array([1, 1, 1.04]) + 0.03 * rng.normal(size=3))
    return Light(
        normalize(direction).astype(np.float64), colour, ambient, rng.uniform(0.5, 1.5), rng.uniform(0.9, 1.15)
    )


def cast_shadows(light: Light, vertices: Floats, faces: Integers, covered: NDArray[np.bool_]) -> ShadowMap:
    """Render the scene as the lamp sees it; the map spans the vertices that ``covered`` (V,) picks."""
    forward = -light.direction
    right = normalize(np.cross(np.array([0.1, 1.0, 0.0]), forward))
    world_to_lamp = np.stack([right, np.cross(forward, right), forward])
    lamp = vertices @ world_to_lamp.T
    span = lamp[covered, :2]
    low, high = span.min(axis=0), span.max(axis=0)
    pixel = float((high - low).max()) / (_SHADOW_MAP_SIZE - 1 - 2 * _SHADOW_BORDER_PX)
    origin = low - _SHADOW_BORDER_PX * pixel
    offset = 1.0 - float(lamp[:, 2].min())
    seen = rasterize((lamp[:, :2] - origin) / pixel, lamp[:, 2] + offset, faces, _SHADOW_MAP_SIZE, _SHADOW_MAP_SIZE)
    depth = np.full(_SHADOW_MAP_SIZE**2, np.inf, dtype=np.float32)
    depth[seen.pixel] = seen.depth
    return ShadowMap(world_to_lamp, origin, pixel, depth.reshape(_SHADOW_MAP_SIZE, _SHADOW_MAP_SIZE), offset)


def lit_share(shadows: ShadowMap, points: Floats) -> NDArray[np.float32]:
    """Return how much of the lamp each point ``(P, 3)`` sees, 0.2 (full shadow) to 1."""
    lamp = points @ shadows.world_to_lamp.T.astype(np.float32)
    pixels = (lamp[:, :2] - shadows.origin_m.astype(np.float32)) * np.float32(1 / shadows.pixel_m)
    reached = lamp[:, 2] + np.float32(shadows.depth_offset_m - _SHADOW_BIAS_M)
    columns, rows = (
        [np.clip((pixels[:, i] + (tap + 0.5)).astype(np.int32), 0, _SHADOW_MAP_SIZE - 1) for tap in _SHADOW_TAPS_PX]
        for i in (0, 1)
    )
    lit = np.zeros(len(points), dtype=np.float32)
    for row in rows:
        for column in columns:
            behind = reached - shadows.depth_m[row, column]
            lit += np.clip(1 - behind * np.float32(1 / _SHADOW_SOFTNESS_M), 0, 1)
    lit /= len(rows) * len(columns)
    inside = ((pixels >= 1) & (pixels < _SHADOW_MAP_SIZE - 2)).all(axis=1)
    return np.where(inside, 1 - np.float32(_SHADOW_STRENGTH) * (1 - lit), np.float32(1))


def depth_exposure(depth: NDArray[np.float32], covered: Integers, focal_px: float) -> NDArray[np.float32]:
    """Return how open the surroundings of each covered pixel are (P,), from the depth image ``(H, W)`` in metres.

    A surface that lies behind its blurred neighbourhood is in a hollow ("unsharp masking the depth buffer", Luft,
    Colditz and Deussen 2006). ``depth`` holds a far value where there is no surface.
    """
    depth_here = depth.ravel()[covered]
    typical = float(depth_here.mean())
    exposure = np.ones(len(covered), dtype=np.float32)
    for radius_m, strength in _DEPTH_OCCLUSION:
        blur_px = max(radius_m * focal_px / typical, 1.0)
        around = cv2.GaussianBlur(depth, (0, 0), blur_px).ravel()[covered]
        exposure -= np.float32(strength) * np.clip((depth_here - around) * np.float32(1 / (1.3 * radius_m)), 0, 1)
    return np.maximum(exposure, np.float32(0.3))


def shade(
    light: Light, albedo: Floats, gloss: Floats, normals: Floats, to_camera: Floats, exposure: Floats, lit: Floats
) -> Floats:
    """Return the reflected light ``(P, 3)``, softly compressed towards 1.

    ``normals`` and ``to_camera`` (P, 3) are unit vectors of the world frame, ``exposure`` and ``lit`` (P,) the shares
    of the ambient light and of the lamp that arrive.
    """
    lamp = light.direction.astype(np.float32)
    facing = normals @ lamp
    diffuse = np.maximum((facing[:, None] + _WRAP) / (1 + _WRAP), 0) ** np.float32(1.2)
    diffuse *= lit[:, None] ** _SHADOW_TINT
    open_share = exposure[:, None] ** _OCCLUSION_TINT
    ambient = light.ambient.astype(np.float32) * (0.95 - 0.25 * normals[:, 1:2])  # world y points down

    halfway = normalize(to_camera + lamp)
    mirrored = np.clip(np.einsum("pi,pi->p", normals, halfway), 0, 1)
    sheen = lit * (facing > 0) * light.gloss * (1.6 * gloss * mirrored**28 + 0.04 * mirrored**8)
    rim = 0.05 * (1 - np.clip(np.einsum("pi,pi->p", normals, to_camera), 0, 1)) ** 4 * exposure
    lamp_light = diffuse * light.colour.astype(np.float32) * (0.45 + 0.55 * open_share)
    reflected = albedo * (ambient * open_share + lamp_light) + (sheen + rim)[:, None]
    return _compress_highlights(reflected * light.exposure)


def _compress_highlights(linear: Floats, knee: float = 0.6) -> Floats:
    rest = 1 - knee
    return np.where(linear < knee, linear, knee + rest * (1 - np.exp(-(np.maximum(linear, knee) - knee) / rest)))
