"""A sequence: one person's hand or hands in smooth motion before several calibrated cameras.

Key poses, orientations and positions are drawn every 0.4 s and joined by splines (scipy): angles by PCHIP, which stays
between its key values and so inside the joint limits, orientations by a rotation spline, positions by a cubic.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.ndimage import convolve1d
from scipy.spatial.transform import Rotation, RotationSpline

from handdata.adapters.synthesis.background import sample_background
from handdata.adapters.synthesis.camera import Camera, sample_rig
from handdata.adapters.synthesis.geometry import axis_rotation, normalize
from handdata.adapters.synthesis.pose import (
    PosedSkeleton,
    forward_kinematics,
    resolve_collisions,
    sample_poses,
)
from handdata.adapters.synthesis.scene import PALM_CENTRE_MM, Identity, PosedHand, Rendering, Scene, assemble, pose_hand
from handdata.adapters.synthesis.scene import render as render_scene
from handdata.adapters.synthesis.sensor import Sensor, sample_sensor
from handdata.adapters.synthesis.shading import Light, sample_light
from handdata.schemas.joints import Side

FRAMES_PER_SECOND: Final = 30
KEY_INTERVAL_FRAMES: Final = 12

_PALM_TO_CAMERA = np.diag([1.0, -1.0, -1.0])
"""Fingers up, palm towards the first camera."""
_PALM_SHARE = 0.62
_TURN_DEG = 14.0
_SWAY_M = np.array([0.012, 0.012, 0.02])
_SMOOTHING = np.array([1, 4, 6, 4, 1]) / 16
_FILLED_SHARE = {1: (0.56, 0.76), 2: (0.74, 0.88)}
"""Share of the image's side that the motion of one or of two hands takes."""
_SMALLEST_EXTENT_M = {1: 0.16, 2: 0.27}
"""A fist is shown as small as an open hand is: the box that fills the image is never taken to be smaller."""
_CLEARANCE_M = (0.03, 0.06)
_SEPARATION_STEP_M = 0.01
_FOREARM_PROBES_MM = np.array([[0.0, -40, 0], [0, -80, 0]])


@dataclass(frozen=True, eq=False)
class HandMotion:
    """One hand's motion: its pose and place in each of F frames."""

    side: Side
    poses_deg: NDArray[np.float64]
    """(F, 23)."""
    skeleton: PosedSkeleton
    rotations: NDArray[np.float64]
    """(F, 3, 3): palm's frame to world."""
    palm_centres: NDArray[np.float64]
    """(F, 3) metres."""

    def every(self, step: int) -> "HandMotion":
        """Return the motion at every ``step``-th frame."""
        kept = slice(None, None, step)
        skeleton = PosedSkeleton(*(getattr(self.skeleton, field.name)[kept] for field in fields(PosedSkeleton)))
        return HandMotion(self.side, self.poses_deg[kept], skeleton, self.rotations[kept], self.palm_centres[kept])


@dataclass(frozen=True, eq=False)
class View:
    """A camera and what it sees besides the hands."""

    camera: Camera
    background: NDArray[np.float32]
    sensor: Sensor


@dataclass(frozen=True, eq=False)
class HandSequence:
    """A motion, its light and its views."""

    identity: Identity
    motions: tuple[HandMotion, ...]
    light: Light
    views: tuple[View, ...]

    def scene(self, frame: int) -> Scene:
        """Return the posed hands of a frame as one lit scene."""
        return assemble([self.hand(motion, frame) for motion in self.motions], self.light)

    def hand(self, motion: HandMotion, frame: int) -> PosedHand:
        """Return one hand of a frame."""
        return pose_hand(
            self.identity,
            motion.side,
            motion.skeleton,
            frame,
            motion.rotations[frame],
            motion.palm_centres[frame],
        )

    def joints(self, motion: HandMotion) -> NDArray[np.float64]:
        """Return a hand's joints in the world ``(F, 21, 3)``, metres."""
        return _to_world(self.identity, motion, motion.skeleton.joints_mm)

    def render(self, scene: Scene, view: int, rng: np.random.Generator) -> Rendering:
        """Draw a scene of this sequence as one of its views; ``rng`` draws the sensor's noise."""
        chosen = self.views[view]
        return render_scene(scene, chosen.camera, chosen.background, chosen.sensor, rng)


def sample_sequence(
    rng: np.random.Generator,
    identity: Identity,
    sides: Sequence[Side],
    frames: int,
    cameras: int,
    size: int,
    step: int = 1,
) -> HandSequence:
    """Draw the motion of one or two hands, a light and a rig whose every camera frames all joints of all frames.

    The motion is that of ``FRAMES_PER_SECOND``, of which every ``step``-th frame is kept.
    """
    motions = _sample_motions(rng, identity, sides, (frames - 1) * step + 1)
    light = sample_light(rng)
    joints = np.concatenate([_to_world(identity, m, m.skeleton.joints_mm) for m in motions])
    extent = _SMALLEST_EXTENT_M[len(motions)] * identity.shape.size
    rig = sample_rig(rng, cameras, size, joints.reshape(-1, 3), _FILLED_SHARE[len(motions)], extent)
    views = tuple(View(camera, sample_background(rng, size), sample_sensor(rng)) for camera in rig)
    return HandSequence(identity, tuple(motion.every(step) for motion in motions), light, views)


def _sample_motions(
    rng: np.random.Generator, identity: Identity, sides: Sequence[Side], frames: int
) -> list[HandMotion]:
    key_count = max(-(-(frames - 1) // KEY_INTERVAL_FRAMES), 1) + 1
    key_times = np.arange(key_count) * KEY_INTERVAL_FRAMES
    times = np.arange(frames)
    both = len(sides) == 2
    right_hand_x = -1 if rng.random() < 0.6 else 1
    motions = []
    for side in sides:
        keys = resolve_collisions(identity.shape, sample_poses(rng, key_count))
        between = resolve_collisions(identity.shape, PchipInterpolator(key_times, keys)(times))
        # The five-tap filter irons out the small steps that resolving leaves from frame to frame.
        poses = convolve1d(between, _SMOOTHING, axis=0, mode="nearest")

        position_x = (right_hand_x if side == "right" else -right_hand_x) if both else 0
        turns = Rotation.from_rotvec(
            normalize(rng.normal(size=(key_count, 3))) * np.deg2rad(_TURN_DEG * rng.normal(size=(key_count, 1)))
        )
        orientation = turns * Rotation.from_matrix(_sample_orientation(rng, position_x))
        sway = CubicSpline(key_times, rng.normal(size=(key_count, 3)) * _SWAY_M, bc_type="natural")(times)
        motions.append(
            HandMotion(
                side=side,
                poses_deg=poses,
                skeleton=forward_kinematics(identity.shape, poses),
                rotations=RotationSpline(key_times, orientation)(times).as_matrix(),
                palm_centres=sway,
            )
        )
    if both:
        _set_apart(rng, identity, motions, right_hand_x)
    return motions


def _sample_orientation(rng: np.random.Generator, position_x: int) -> NDArray[np.float64]:
    """Draw palm's frame to world: palm (62%) or back towards the first camera, fingers mostly up.

    One of two hands, at ``position_x`` -1 or 1, turns its fingers towards the other and its forearm away from it.
    """
    yaw = 0.0 if rng.random() < _PALM_SHARE else 180.0
    yaw += float(np.clip(22 * rng.normal(), -60, 60))
    pitch = float(np.clip(15 * rng.normal(), -45, 45))
    if position_x:
        roll = -position_x * rng.uniform(-10, 60)
    else:
        roll = 45 * rng.normal() if rng.random() < 0.8 else rng.uniform(-180, 180)
    yaw, pitch, roll = np.deg2rad([yaw, pitch, roll])
    return np.asarray(
        axis_rotation(np.array([0, 0, 1.0]), roll)
        @ axis_rotation(np.array([1.0, 0, 0]), pitch)
        @ _PALM_TO_CAMERA
        @ axis_rotation(np.array([0, 1.0, 0]), yaw)
    )


def _set_apart(rng: np.random.Generator, identity: Identity, motions: list[HandMotion], right_hand_x: int) -> None:
    """Move two hands apart along x until, as the first camera sees them, they stay clear in every frame."""
    clearance = rng.uniform(*_CLEARANCE_M)
    outlines = []
    for motion in motions:
        forearm = motion.skeleton.rotations[:, 1] @ _FOREARM_PROBES_MM.T
        points = np.concatenate([motion.skeleton.joints_mm, np.swapaxes(forearm, 1, 2)], axis=1)
        outlines.append(_to_world(identity, motion, points)[:, :, :2])
    first, second = outlines
    first_x = right_hand_x if motions[0].side == "right" else -right_hand_x
    towards_first = np.array([first_x, 0.0])
    separation = 0.0
    while _closest(first + separation * towards_first, second) < clearance or _crossed(
        first + separation * towards_first, second, first_x
    ):
        separation += _SEPARATION_STEP_M
    for motion, direction in zip(motions, (0.5, -0.5), strict=True):
        motion.palm_centres[:, 0] += direction * separation * first_x


def _closest(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(first[:, :, None] - second[:, None], axis=-1).min())


def _crossed(first: NDArray[np.float64], second: NDArray[np.float64], first_x: int) -> bool:
    """Return whether the hands' centres are on the wrong sides of each other in some frame."""
    return bool((first_x * (first.mean(axis=1) - second.mean(axis=1))[:, 0]).min() < 0.05)


def _to_world(identity: Identity, motion: HandMotion, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move points ``(F, P, 3)`` of the palm's frame into the world, metres."""
    mirror = np.array([-1.0 if motion.side == "left" else 1.0, 1, 1])
    local = (points_mm - PALM_CENTRE_MM) * mirror * (identity.shape.size * 0.001)
    return np.asarray(np.einsum("fpj,fij->fpi", local, motion.rotations) + motion.palm_centres[:, None])
