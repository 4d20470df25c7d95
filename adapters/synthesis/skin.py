"""The look of a person's skin: colour by region at the mesh's vertices, and creases, nails and grain at every pixel.

Everything is a function of the rest pose (mm), so it stays on the skin while the hand moves. Colours are linear RGB
unless a name says ``encoded``. The tones are ten steps from very light to very dark, as in the Monk Skin Tone scale.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from handdata.adapters.synthesis.geometry import Floats, Integers, normalize
from handdata.adapters.synthesis.skeleton import (
    FINGER_COUNT,
    SEGMENTS_PER_FINGER,
    THUMB,
    HandShape,
    phalanx_bone,
)
from handdata.adapters.synthesis.surface import HandMesh

GAMMA: Final = 2.2
NO_FINGER: Final = -1

_TONES_ENCODED = (
    np.array(
        [
            [250, 214, 196],
            [243, 200, 176],
            [236, 188, 160],
            [226, 172, 140],
            [210, 150, 116],
            [188, 126, 92],
            [158, 102, 74],
            [124, 78, 56],
            [92, 58, 44],
            [66, 42, 34],
        ]
    )
    / 255
)
_GRAIN_SIZE = 64
_GRAIN_VOXEL_MM = 0.65
_SKIN_GLOSS, _NAIL_GLOSS, _SLEEVE_GLOSS = 0.05, 0.28, 0.01


@dataclass(frozen=True, eq=False)
class Skin:
    """One person's skin, nails and sleeve."""

    darkness: float
    """0 for the lightest tone, 1 for the darkest."""
    back_colour: NDArray[np.float64]
    nail_colour: NDArray[np.float64]
    has_nail_polish: bool
    sleeve_colour: NDArray[np.float64]
    sleeve_edge_mm: float
    """The sleeve covers the forearm below this y; minus infinity where there is none."""
    crease_depth: float
    grain: NDArray[np.float32]
    """(64, 64, 64): periodic noise with mean 0, one voxel each 0.65 mm."""
    vertex_colour: NDArray[np.float32]
    """(V, 3): skin colour without fine detail."""
    vertex_palmarity: NDArray[np.float32]
    """(V,): 1 on the palm's side, 0 on the back and the forearm."""
    face_finger: NDArray[np.int64]
    """(T,): the finger that a face belongs to, or -1."""


def sample_skin(rng: np.random.Generator, shape: HandShape, mesh: HandMesh) -> Skin:
    """Draw a person's skin: tone, blotches, crease depth, nail polish (12%), a sleeve (50%)."""
    step = rng.uniform(0.2, 8.5)
    darkness = step / (len(_TONES_ENCODED) - 1)
    encoded = _tone(step) * (1 + 0.02 * rng.normal(size=3))
    back = 0.95 * np.clip(encoded, 0, 1) ** GAMMA
    light_palm = _TONES_ENCODED[max(int(0.55 * step), 1)] ** GAMMA * [0.96, 0.84, 0.80]
    palm_share = 0.55 * darkness
    palm = (back * (1 - palm_share) + light_palm * palm_share) * [1.02, 0.93, 0.90]

    polished = bool(rng.random() < 0.12)
    polish = rng.random(3) ** (1.5 * GAMMA)
    bare_nail = np.clip(back * [0.85, 0.80, 0.80] + [0.16, 0.10, 0.09], 0, 1)
    has_sleeve = bool(rng.random() < 0.5)
    sleeve_edge = -rng.uniform(20, 110)
    sleeve_colour = rng.random(3) ** (1.8 * GAMMA)
    crease_depth, blotchiness = rng.uniform(0.6, 1.1), rng.uniform(0.5, 1.2)

    finger = _vertex_finger(mesh)
    palmarity = _palmarity(shape, mesh)
    redness = np.clip(_redness(shape, mesh.vertices_mm, palmarity, finger), 0, 1) * (0.75 - 0.5 * darkness)
    colour = back + (palm - back) * palmarity[:, None]
    colour = colour * (1 + blotchiness * _blotches(rng, mesh.vertices_mm))[:, None]
    colour = colour * (1 - redness[:, None] * [0.02, 0.22, 0.20])
    return Skin(
        darkness=darkness,
        back_colour=back,
        nail_colour=polish if polished else bare_nail,
        has_nail_polish=polished,
        sleeve_colour=sleeve_colour,
        sleeve_edge_mm=sleeve_edge if has_sleeve else -np.inf,
        crease_depth=crease_depth,
        grain=(blotchiness * _grain(rng)).astype(np.float32),
        vertex_colour=colour.astype(np.float32),
        vertex_palmarity=palmarity.astype(np.float32),
        face_finger=finger[mesh.faces[:, 0]],
    )


def paint(
    skin: Skin, shape: HandShape, rest_mm: Floats, colour: Floats, palmarity: Floats, finger: Integers
) -> tuple[Floats, Floats]:
    """Add the fine detail to the skin at pixels: return albedo ``(P, 3)`` and gloss ``(P,)``.

    ``rest_mm`` (P, 3), ``colour`` (P, 3) and ``palmarity`` (P,) are interpolated from the vertices, ``finger`` (P,) is
    taken from the face.
    """
    cell = (rest_mm * np.float32(1 / _GRAIN_VOXEL_MM)).astype(np.int32) & (_GRAIN_SIZE - 1)
    grain = skin.grain[cell[:, 0], cell[:, 1], cell[:, 2]]
    albedo = colour * (1 + grain)[:, None]
    gloss = np.full(len(rest_mm), _SKIN_GLOSS, dtype=np.float32)
    darkening = _wrist_creases(rest_mm, palmarity)

    on_palm = np.flatnonzero((finger == NO_FINGER) & (palmarity > 0.05))
    darkening[on_palm] += palmarity[on_palm] * _palm_lines(shape, rest_mm[on_palm])

    on_finger = np.flatnonzero(finger != NO_FINGER)
    local = _finger_coordinates(shape, rest_mm[on_finger], finger[on_finger])
    darkening[on_finger] += _finger_creases(shape, local, palmarity[on_finger], finger[on_finger])
    _paint_nails(skin, shape, local, finger[on_finger], on_finger, albedo, gloss, darkening)

    albedo *= 1 - np.clip(skin.crease_depth * darkening, 0, 0.6)[:, None] * np.array([0.75, 1.0, 1.05], np.float32)
    covered = rest_mm[:, 1] < skin.sleeve_edge_mm
    albedo[covered] = skin.sleeve_colour * (1 + 2.5 * grain[covered, None])
    gloss[covered] = _SLEEVE_GLOSS
    return np.clip(albedo, 0.002, 1), gloss


def _tone(step: float) -> Floats:
    below = int(step)
    share = step - below
    return np.asarray(_TONES_ENCODED[below] * (1 - share) + _TONES_ENCODED[below + 1] * share)


def _grain(rng: np.random.Generator) -> Floats:
    """Return noise of about 3 mm and 1 mm, each scaled to its own strength."""
    total = np.zeros((_GRAIN_SIZE,) * 3)
    for blur_voxels, strength in ((1.8, 0.022), (0.7, 0.016)):
        noise = gaussian_filter(rng.random((_GRAIN_SIZE,) * 3) - 0.5, blur_voxels, mode="wrap")
        total += strength * noise / noise.std()
    return total


def _blotches(rng: np.random.Generator, vertices_mm: Floats) -> Floats:
    """Return noise of about 14 mm at the vertices."""
    lattice = rng.random((32, 32, 32)) - 0.5
    return np.asarray(0.16 * map_coordinates(lattice, vertices_mm.T / 14, order=1, mode="grid-wrap"))


def _vertex_finger(mesh: HandMesh) -> NDArray[np.int64]:
    weights = mesh.weights.toarray()
    weights[:, phalanx_bone(THUMB, 0)] = 0  # the thumb's metacarpal is skin of the palm
    shares = weights[:, phalanx_bone(0, 0) :].reshape(-1, FINGER_COUNT, SEGMENTS_PER_FINGER).sum(axis=2)
    return np.where(shares.max(axis=1) > 0.5, shares.argmax(axis=1), NO_FINGER)


def _palmarity(shape: HandShape, mesh: HandMesh) -> Floats:
    bone_palmar = np.tile(np.array([0.0, 0, 1]), (mesh.weights.shape[1], 1))
    for finger in range(FINGER_COUNT):
        for segment in range(SEGMENTS_PER_FINGER):
            if (finger, segment) != (THUMB, 0):
                bone_palmar[phalanx_bone(finger, segment)] = shape.finger_axes[finger, :, 2]
    palmar = normalize(mesh.weights @ bone_palmar)
    facing = np.einsum("ij,ij->i", mesh.normals, palmar)
    y = mesh.vertices_mm[:, 1]
    on_hand = 1 - 1 / (1 + np.exp(np.clip((y + 8) / 8, -30, 30)))
    return np.asarray(on_hand / (1 + np.exp(-6 * (facing + 0.05))))


def _redness(shape: HandShape, vertices_mm: Floats, palmarity: Floats, finger: Integers) -> Floats:
    """Return the blood near the surface: fingertips, the backs of the joints, knuckles and the palm."""
    redness = 0.25 * palmarity
    on_finger = np.flatnonzero(finger != NO_FINGER)
    along = _finger_coordinates(shape, vertices_mm[on_finger], finger[on_finger])[:, 1]
    joints = np.cumsum(shape.segment_mm, axis=1)[finger[on_finger]]
    redness[on_finger] += 0.55 * np.exp(-(((along - joints[:, 2]) / 9) ** 2))
    for joint in (0, 1):
        redness[on_finger] += 0.35 * (1 - palmarity[on_finger]) * np.exp(-(((along - joints[:, joint]) / 6) ** 2))
    for knuckle in shape.base_mm[1:]:
        distance = ((vertices_mm[:, :2] - knuckle[:2]) ** 2).sum(axis=1)
        redness += 0.4 * (1 - palmarity) * np.exp(-distance / 64)
    return redness


def _finger_coordinates(shape: HandShape, rest_mm: Floats, finger: Integers) -> Floats:
    """Return lateral, along and palmar millimetres ``(P, 3)`` from each pixel's finger base."""
    axes, base = shape.finger_axes.astype(np.float32), shape.base_mm.astype(np.float32)
    return np.asarray(np.einsum("pi,pij->pj", rest_mm - base[finger], axes[finger]))


def _ridge(distance_mm: Floats, width_mm: float) -> Floats:
    return np.asarray(np.exp(-np.square(distance_mm * np.float32(1 / width_mm))))


def _finger_creases(shape: HandShape, local: Floats, palmarity: Floats, finger: Integers) -> Floats:
    lateral, along = local[:, 0], local[:, 1]
    joints = np.cumsum(shape.segment_mm, axis=1).astype(np.float32)[finger]
    radius = shape.radius_mm.astype(np.float32)[finger, 1]
    wobble = 0.8 * np.sin(0.5 * lateral + finger).astype(np.float32)
    bend = 0.25 * lateral * lateral / radius
    on_back = 0.14 * (1 - palmarity) * np.exp(-np.square(lateral / radius))
    darkening = np.zeros(len(local), dtype=np.float32)
    for joint, width in ((0, 1.1), (1, 0.88)):
        from_joint = along - joints[:, joint]
        darkening += palmarity * (
            0.38 * _ridge(from_joint - wobble, width) + 0.22 * _ridge(from_joint - wobble - 3, 1.0)
        )
        for offset in (-4.0, -1.5, 1.2, 4.0):
            darkening += on_back * _ridge(from_joint - offset - np.sign(offset) * bend, 0.8)
    root = np.where(finger == THUMB, np.inf, 0.49 * joints[:, 0]).astype(np.float32)
    return darkening + 0.34 * palmarity * _ridge(along - root, 1.2)


def _paint_nails(
    skin: Skin,
    shape: HandShape,
    local: Floats,
    finger: Integers,
    pixels: Integers,
    albedo: Floats,
    gloss: Floats,
    darkening: Floats,
) -> None:
    """Lay a superellipse on the back of each distal phalanx; changes the last three arrays at ``pixels``."""
    lateral, along, palmar = local.T
    tip_radius, tip_length = shape.radius_mm[finger, 3], shape.segment_mm[finger, 2]
    half_length, half_width = 0.36 * tip_length, 0.80 * tip_radius + 0.6
    from_centre = along - (shape.segment_mm.sum(axis=1)[finger] - 0.82 * half_length)
    ellipse = np.abs(from_centre / half_length) ** 3 + np.abs(lateral / half_width) ** 3

    darkening[pixels[(ellipse > 0.78) & (ellipse < 1.35) & (palmar < 0)]] += 0.16
    is_nail = (ellipse < 1) & (palmar < -0.1 * tip_radius)
    albedo[pixels[is_nail]] = skin.nail_colour
    gloss[pixels[is_nail]] = _NAIL_GLOSS
    if not skin.has_nail_polish:
        free_edge = pixels[is_nail & (from_centre > 0.72 * half_length)]
        albedo[free_edge] = 0.5 * albedo[free_edge] + 0.38 * (0.4 + 0.6 * skin.back_colour.mean())


def _wrist_creases(rest_mm: Floats, palmarity: Floats) -> Floats:
    across = np.abs(rest_mm[:, 0]) < 34
    y = rest_mm[:, 1]
    return np.asarray(0.16 * palmarity * across * (_ridge(y - 1, 1.2) + _ridge(y + 5, 1.2)), dtype=np.float32)


def _palm_lines(shape: HandShape, rest_mm: Floats) -> Floats:
    """Darken the heart, head and life lines; curves in the palm's plane that scale with its length."""
    stretch = shape.base_mm[1, 1] / 88
    curves = (
        ([(-42, 62), (-25, 66), (-5, 72), (12, 84)], 1.1, 0.30),
        ([(30, 70), (14, 63), (-6, 53), (-26, 42)], 1.1, 0.28),
        ([(31, 69), (18, 60), (7, 45), (2, 28), (4, 12)], 1.3, 0.32),
    )
    darkening = np.zeros(len(rest_mm), dtype=np.float32)
    for points, width, strength in curves:
        line = np.array(points, dtype=np.float32) * np.array([1, stretch], dtype=np.float32)
        nearest = np.full(len(rest_mm), np.inf, dtype=np.float32)
        for start, end in pairwise(line):
            axis = end - start
            x, y = rest_mm[:, 0] - start[0], rest_mm[:, 1] - start[1]
            share = np.clip((x * axis[0] + y * axis[1]) / (axis @ axis), 0, 1)
            nearest = np.minimum(nearest, np.hypot(x - share * axis[0], y - share * axis[1]))
        darkening += strength * _ridge(nearest, width)
    return darkening
