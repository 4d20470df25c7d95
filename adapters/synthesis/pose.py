"""Poses of a hand: the canonical ones, joint limits, forward kinematics, and fingers that collide.

A pose is 23 angles in degrees. Four for each finger (flexion and abduction at its base, then the two outer joints; the
thumb's are CMC flexion, palmar abduction, MCP and IP), then the thumb's roll, wrist flexion and wrist deviation.
Functions take batches ``(N, 23)``: all frames of a sequence at once.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.synthesis.geometry import Bools, Floats, axis_rotation, normalize
from handdata.adapters.synthesis.skeleton import (
    BONE_COUNT,
    FINGER_COUNT,
    FOREARM_BONE,
    SEGMENTS_PER_FINGER,
    THUMB,
    TIP_INSET_MM,
    WRIST_MM,
    HandShape,
    phalanx_bone,
)
from handdata.schemas.joints import FINGERS, KEYPOINTS_PER_HAND, WRIST

FLEXION, ABDUCTION, MIDDLE, DISTAL = range(4)
"""Offsets of a finger's four angles."""
THUMB_ROLL: Final = 20
WRIST_FLEXION: Final = 21
WRIST_DEVIATION: Final = 22
ANGLE_COUNT: Final = 23

POSE_LIMITS_DEG: Final = np.array(
    [
        *[[-18, 66], [-20, 42], [-8, 60], [-12, 80]],
        *[[-15, 88], [-12, 14], [0, 105], [0, 75]] * 4,
        *[[-58, 30], [-50, 50], [-18, 25]],
    ],
    dtype=np.float64,
)
"""(23, 2): least and greatest angle of each joint."""

_NOISE_DEG = np.array([*[5, 5, 6, 8], *[8, 3.5, 9, 6] * 4, *[5, 14, 7]], dtype=np.float64)
_THUMB_ABDUCTION_AXIS = normalize(np.array([0.62, -0.66, 0.1]))
_PENETRATION_MM = 2.0
_RESOLVING_STEPS = 24
_PALM_DEPTH_MM = 12.0

_Finger = tuple[float, float, float, float]


def _straight(abduction: float = 0.0) -> _Finger:
    return 2, abduction, 4, 2.5


def _curled(abduction: float = 0.0) -> _Finger:
    return 72, abduction, 92, 55


def _bent(flexion: float, middle: float) -> _Finger:
    """Return a finger whose outermost joint follows the middle one, as tendons make it."""
    return flexion, 0, middle, 0.62 * middle


def _pose(
    thumb: _Finger, index: _Finger, middle: _Finger, ring: _Finger, little: _Finger, thumb_roll: float = 0.0
) -> NDArray[np.float64]:
    return np.array([*thumb, *index, *middle, *ring, *little, thumb_roll, 0, 0], dtype=np.float64)


CANONICAL_POSES: Final[dict[str, NDArray[np.float64]]] = {
    "open": _pose((0, 0, 5, 5), _straight(), _straight(), _straight(), _straight()),
    "spread": _pose((-8, -4, 0, 0), _straight(5), _straight(), _straight(-4), _straight(-8)),
    "flat": _pose((18, -4, 8, 8), _straight(-6), _straight(), _straight(5), _straight(9)),
    "relaxed": _pose((16, 8, 10, 12), _bent(18, 25), _bent(22, 30), _bent(26, 32), _bent(28, 30), -5),
    "cup": _pose((36, 14, 10, 14), _bent(40, 45), _bent(45, 48), _bent(45, 48), _bent(42, 45), -8),
    "fist": _pose((62, 0, 20, 30), _curled(), _curled(), _curled(), _curled(), -50),
    "point": _pose((62, -4, 18, 22), _straight(), _curled(), _curled(), _curled(), -50),
    "victory": _pose((62, -2, 34, 16), _straight(5), _straight(-4), _curled(), _curled(), -50),
    "thumb_up": _pose((-14, -4, 0, -5), _curled(), _curled(), _curled(), _curled()),
    "pinch": _pose((60, -4, 8, 6), (56, 0, 50, 30), _bent(24, 28), _bent(16, 20), _bent(10, 12), -6),
    "three": _pose((60, 4, 48, 12), _straight(3), _straight(), _straight(-3), _curled(), -48),
    "four": _pose((50, -6, 50, 55), _straight(), _straight(), _straight(), _straight(), -40),
    "gun": _pose((-8, -5, 0, 0), _straight(), _curled(), _curled(), _curled()),
    "shaka": _pose((-8, -5, 0, 0), _curled(), _curled(), _curled(), _straight(-4)),
    "claw": _pose((20, 12, 20, 20), _bent(5, 70), _bent(5, 75), _bent(5, 75), _bent(5, 70), -5),
}
_OFTEN = {"open": 2.0, "flat": 2.0, "relaxed": 3.0, "cup": 2.0}


@dataclass(frozen=True, eq=False)
class PosedSkeleton:
    """Positions of joints and bones in the palm's frame (mm at average size), for each pose of a batch."""

    joints_mm: NDArray[np.float64]
    """(N, 21, 3) in MediaPipe's order."""
    chain_mm: NDArray[np.float64]
    """(N, 5, 4, 3): each finger's joints and the end of its flesh."""
    rotations: NDArray[np.float64]
    """(N, 17, 3, 3): rest to posed, per bone."""
    translations_mm: NDArray[np.float64]
    """(N, 17, 3)."""


def sample_poses(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Draw poses ``(count, 23)``: a canonical pose leaning towards another, with noise, inside the joint limits.

    Two poses in a row never come from the same canonical pose, so a motion through them always moves.
    """
    names = list(CANONICAL_POSES)
    share = np.array([_OFTEN.get(name, 1.0) for name in names])
    poses = np.empty((count, ANGLE_COUNT))
    previous = -1
    for row in poses:
        allowed = np.where(np.arange(len(names)) == previous, 0.0, share)
        previous = main = int(rng.choice(len(names), p=allowed / allowed.sum()))
        other = int(rng.choice(len(names), p=share / share.sum()))
        lean = 0.6 * rng.random() ** 2
        row[:] = CANONICAL_POSES[names[main]] * (1 - lean) + CANONICAL_POSES[names[other]] * lean
        row += rng.normal(size=ANGLE_COUNT) * _NOISE_DEG
        for finger in range(1, FINGER_COUNT):
            # A bent finger cannot be spread: its collateral ligaments are taut.
            row[4 * finger + ABDUCTION] *= np.clip(1 - row[4 * finger + FLEXION] / 90, 0.15, 1)
    return clip_to_limits(poses)


def clip_to_limits(poses_deg: Floats) -> NDArray[np.float64]:
    """Return the poses with every angle inside its limits."""
    return np.clip(np.asarray(poses_deg, dtype=np.float64), POSE_LIMITS_DEG[:, 0], POSE_LIMITS_DEG[:, 1])


def forward_kinematics(shape: HandShape, poses_deg: Floats) -> PosedSkeleton:
    """Place joints and bones for poses ``(N, 23)``."""
    angles = np.deg2rad(np.asarray(poses_deg, dtype=np.float64))
    count = len(angles)
    joints = np.empty((count, KEYPOINTS_PER_HAND, 3))
    chain = np.empty((count, FINGER_COUNT, SEGMENTS_PER_FINGER + 1, 3))
    rotations = np.broadcast_to(np.eye(3), (count, BONE_COUNT, 3, 3)).copy()
    translations = np.zeros((count, BONE_COUNT, 3))
    rest = shape.chain_mm

    joints[:, WRIST] = WRIST_MM
    rotations[:, FOREARM_BONE] = axis_rotation(np.array([1.0, 0, 0]), -angles[:, WRIST_FLEXION]) @ axis_rotation(
        np.array([0, 0, 1.0]), angles[:, WRIST_DEVIATION]
    )
    for finger, rows in enumerate(FINGERS.values()):
        lateral, along, palmar = shape.finger_axes[finger].T
        flexion, abduction, middle, distal = angles[:, 4 * finger : 4 * finger + 4].T
        if finger == THUMB:
            # The saddle joint: abduction turns the thumb inwards as it lifts off the palm.
            roll = angles[:, THUMB_ROLL] + 0.5 * np.maximum(abduction, 0)
            rotation = (
                axis_rotation(lateral, 0.8 * flexion)
                @ axis_rotation(_THUMB_ABDUCTION_AXIS, abduction)
                @ axis_rotation(along, roll)
            )
        else:
            rotation = axis_rotation(palmar, -abduction) @ axis_rotation(lateral, flexion)
        position = np.broadcast_to(rest[finger, 0], (count, 3))
        for segment in range(SEGMENTS_PER_FINGER):
            chain[:, finger, segment] = position
            bone = phalanx_bone(finger, segment)
            rotations[:, bone] = rotation
            translations[:, bone] = position - rotation @ rest[finger, segment]
            position = position + rotation @ along * shape.segment_mm[finger, segment]
            if segment < SEGMENTS_PER_FINGER - 1:
                rotation = rotation @ axis_rotation(lateral, (middle, distal)[segment])
        chain[:, finger, -1] = position
        joints[:, rows[:3]] = chain[:, finger, :3]
        joints[:, rows[3]] = position - rotation @ along * (TIP_INSET_MM[finger] * shape.thickness)
    return PosedSkeleton(joints, chain, rotations, translations)


def resolve_collisions(shape: HandShape, poses_deg: Floats) -> NDArray[np.float64]:
    """Move the fingers that pass through each other or the palm, and only those, until none does by over 2 mm."""
    poses = clip_to_limits(poses_deg)
    for step in range(_RESOLVING_STEPS):
        between, into_palm = penetration_mm(shape, forward_kinematics(shape, poses))
        colliding = (between.max(axis=(1, 2)) > _PENETRATION_MM) | (into_palm.max(axis=1) > _PENETRATION_MM)
        if not colliding.any():
            break
        moved = _part_fingers(
            poses[colliding],
            between[colliding] > _PENETRATION_MM,
            into_palm[colliding] > _PENETRATION_MM,
            insist=step > 10,
        )
        poses[colliding] = clip_to_limits(moved)
    return poses


def penetration_mm(shape: HandShape, skeleton: PosedSkeleton) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how deep fingers stick in each other ``(N, 5, 5)`` and in the palm ``(N, 5)``; negative or 0 is free."""
    points, radii = _flesh_samples(shape, skeleton)
    count = len(skeleton.chain_mm)
    between = np.zeros((count, FINGER_COUNT, FINGER_COUNT))
    into_palm = np.zeros((count, FINGER_COUNT))
    knuckle_y = shape.base_mm[2, 1]
    for a in range(FINGER_COUNT):
        x, y, z = np.moveaxis(points[a], -1, 0)
        over_palm = (y > 15) & (y < knuckle_y - 2) & (np.abs(x) < 38)
        into_palm[:, a] = np.where(over_palm, _PALM_DEPTH_MM + 0.9 * radii[a] - z, 0).max(axis=1)
        for b in range(a + 1, FINGER_COUNT):
            apart = np.linalg.norm(points[a][:, :, None] - points[b][:, None], axis=-1)
            depth = 0.93 * (radii[a][:, None] + radii[b]) - apart
            between[:, a, b] = between[:, b, a] = np.maximum(depth.max(axis=(1, 2)), 0)
    return between, into_palm


def _flesh_samples(
    shape: HandShape, skeleton: PosedSkeleton
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Return, per finger, points (N, S, 3) along its free part and the flesh radius (S,) there."""
    points, radii = [], []
    for finger in range(FINGER_COUNT):
        chain, radius = skeleton.chain_mm[:, finger], shape.radius_mm[finger]
        # The metacarpal of the thumb and the root of each finger lie in the palm and cannot collide.
        shares = {0: () if finger == THUMB else (0.6, 0.8), 1: (0.15, 0.4, 0.65, 0.9), 2: (0.15, 0.4, 0.65, 0.9)}
        along = [(segment, share) for segment, segment_shares in shares.items() for share in segment_shares]
        points.append(np.stack([chain[:, s] * (1 - t) + chain[:, s + 1] * t for s, t in along], axis=1))
        radii.append(np.array([radius[s] * (1 - t) + radius[s + 1] * t for s, t in along]))
    return points, radii


def _part_fingers(poses: NDArray[np.float64], between: Bools, into_palm: Bools, insist: bool) -> NDArray[np.float64]:
    angles = poses[:, :THUMB_ROLL].reshape(-1, FINGER_COUNT, 4).copy()
    # A finger that is rolled up points back at the wrist: turning its base to one side moves its tip to the other.
    outwards = np.sign(np.cos(np.deg2rad(angles[:, :, FLEXION] + 0.5 * angles[:, :, MIDDLE])))
    angles[into_palm] *= 0.94
    angles[:, THUMB, ABDUCTION] += 3.0 * into_palm[:, THUMB]
    for finger in range(1, FINGER_COUNT):
        # The thumb gives way to a finger: it lifts off the palm.
        hit = between[:, THUMB, finger]
        angles[hit, THUMB] = angles[hit, THUMB] * [1, 1, 0.98, 0.98] + [-0.8, 2.0, 0, 0]
        if insist:
            angles[hit, finger] *= 0.97
        for other in range(finger + 1, FINGER_COUNT):
            # Neighbours bend alike and spread a little.
            hit = between[:, finger, other]
            difference = 0.2 * (angles[hit, other] - angles[hit, finger])
            difference[:, ABDUCTION] = 0.8 * outwards[hit, finger]
            angles[hit, finger] += difference
            difference[:, ABDUCTION] = 0.8 * outwards[hit, other]
            angles[hit, other] -= difference
    parted = poses.copy()
    parted[:, :THUMB_ROLL] = angles.reshape(-1, THUMB_ROLL)
    return parted
