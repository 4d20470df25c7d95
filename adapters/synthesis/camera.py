"""Cameras: projection, and rigs of several calibrated cameras that all see the whole motion.

World and camera frames are metres, x right, y down, z forward; the world is aligned with the first camera of a rig up
to a small roll. Pixel (0, 0) is the centre of the top-left pixel.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.synthesis.geometry import Floats, axis_rotation

FIELD_OF_VIEW_DEG: Final = (30.0, 62.0)
LARGEST_AZIMUTH_DEG: Final = 32.0
LARGEST_ELEVATION_DEG: Final = 20.0
_BORDER_SHARE = 0.05
_FRAMING_STEPS = 8


@dataclass(frozen=True, eq=False)
class Camera:
    """A calibrated pinhole camera with square pixels and a square image."""

    k: NDArray[np.float64]
    """(3, 3): intrinsics in pixels."""
    t_world: NDArray[np.float64]
    """(4, 4): world to camera, metres."""
    size: int
    """Width and height in pixels."""

    def to_camera(self, points_world: Floats) -> NDArray[np.float64]:
        """Move world points ``(..., 3)`` into the camera's frame, metres."""
        return np.asarray(points_world @ self.t_world[:3, :3].T + self.t_world[:3, 3], dtype=np.float64)

    def to_pixels(self, points_camera: Floats) -> NDArray[np.float64]:
        """Project points ``(..., 3)`` of the camera's frame to pixels ``(..., 2)``."""
        focal, centre = np.diagonal(self.k)[:2], self.k[:2, 2]
        return np.asarray(points_camera[..., :2] / points_camera[..., 2:] * focal + centre, dtype=np.float64)

    def project(self, points_world: Floats) -> NDArray[np.float64]:
        """Project world points ``(..., 3)`` to pixels ``(..., 2)``."""
        return self.to_pixels(self.to_camera(points_world))


def sample_rig(
    rng: np.random.Generator,
    count: int,
    size: int,
    points_world: Floats,
    filled_share: tuple[float, float],
    smallest_extent_m: float,
) -> list[Camera]:
    """Place ``count`` cameras around the points ``(N, 3)`` so that each frames all of them.

    The first looks along world z, the others from up to 32 degrees aside and 20 degrees above or below. The distance
    of each is such that the longer side of the points' box, or ``smallest_extent_m`` where that is more, fills a share
    of the image's side that is drawn between the two numbers of ``filled_share``.
    """
    cameras = []
    for index in range(count):
        azimuth, elevation = (
            (0.0, 0.0)
            if index == 0
            else np.deg2rad(rng.uniform(-1, 1, 2) * [LARGEST_AZIMUTH_DEG, LARGEST_ELEVATION_DEG])
        )
        rotation = (
            axis_rotation(np.array([0, 0, 1.0]), 0.05 * rng.normal())
            @ axis_rotation(np.array([1.0, 0, 0]), elevation)
            @ axis_rotation(np.array([0, 1.0, 0]), azimuth)
        )
        half_view = np.deg2rad(rng.uniform(*FIELD_OF_VIEW_DEG)) / 2
        focal = size / 2 / np.tan(half_view)
        centre = (size - 1) / 2 + size * 0.008 * rng.normal(size=2)
        k = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
        cameras.append(
            _frame_points(rng, k, rotation, size, points_world, rng.uniform(*filled_share) * size, smallest_extent_m)
        )
    return cameras


def _frame_points(
    rng: np.random.Generator,
    k: NDArray[np.float64],
    rotation: NDArray[np.float64],
    size: int,
    points_world: Floats,
    wanted_px: float,
    smallest_extent_m: float,
) -> Camera:
    """Translate a camera of fixed orientation until the points fill the wanted part of its image."""
    rotated = points_world @ rotation.T
    focal = k[0, 0]
    t_world = np.eye(4)
    t_world[:3, :3] = rotation
    t_world[:3, 3] = -rotated.mean(axis=0) + [0, 0, 0.6]
    camera = Camera(k, t_world, size)
    for _ in range(_FRAMING_STEPS):
        depth = float((rotated[:, 2] + t_world[2, 3]).mean())
        pixels = camera.to_pixels(rotated + t_world[:3, 3])
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        box_px = max(float((high - low).max()), smallest_extent_m * focal / depth)
        t_world[2, 3] += depth * (box_px / wanted_px - 1)
        t_world[:2, 3] += ((size - 1) / 2 - (low + high) / 2) * depth / focal
    # Off centre by up to half of the free border.
    free_px = np.maximum((size - wanted_px) / 2 - _BORDER_SHARE * size, 0)
    t_world[:2, 3] += rng.uniform(-0.5, 0.5, 2) * free_px * depth / focal
    return camera
