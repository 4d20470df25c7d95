"""Poses of two hands: their joints read back from heatmaps, their bones, and how large each hand is."""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from handdata.schemas.joints import FINGERS, KEYPOINTS_PER_HAND, SIDES, SKELETON_EDGES, WRIST

HANDS: Final = len(SIDES)
FINGER_COUNT: Final = len(FINGERS)
BONES_A_FINGER: Final = 4
"""From wrist to tip; the first one lies in the palm."""
HAND_BONES: Final = len(SKELETON_EDGES)
BONES: Final = HAND_BONES + HANDS
"""The bones of ``SKELETON_EDGES``, then the right and the left forearm."""

_STARTS = torch.tensor([start for start, _ in SKELETON_EDGES])
_ENDS = torch.tensor([end for _, end in SKELETON_EDGES])
_WRISTS = torch.tensor([WRIST + hand * KEYPOINTS_PER_HAND for hand in range(HANDS)])
_FAINTEST_PEAK = 1e-6


class Pose(NamedTuple):
    """The joints of N frames."""

    joints: Tensor
    """(N, 42, 2) pixels; anything where a joint is not there."""
    there: Tensor
    """(N, 42) bool."""


class Bones(NamedTuple):
    """The bones of N frames."""

    start: Tensor
    """(N, 42, 2) pixels: the end nearer to the palm."""
    along: Tensor
    """(N, 42, 2) from start to end."""
    there: Tensor
    """(N, 42) bool: both joints are; of a forearm, the hand's palm is."""
    hand_length: Tensor
    """(N, 42) pixels: length of the bone's hand, the longest way from its wrist to a fingertip along bones; 0 without
    one."""


def read_pose(heatmaps: Tensor) -> Pose:
    """Read the joints back from the heatmaps (N, 42, H, W) of ``handdata.trainer.conditioning``; all zeros: not there.

    The logarithm of a Gaussian of variance 1 changes from the pixel before the peak to the one after it by twice the
    joint's distance from the peak's centre: exact up to rounding, also where a joint lies at the edge. H and W are at
    least 3.
    """
    maps = heatmaps.float()
    columns, rows = maps.sum(-2), maps.sum(-1)  # a Gaussian's sums over an axis are Gaussians too
    joints = torch.stack([_peak(columns), _peak(rows)], dim=-1)
    return Pose(joints, columns.amax(-1) > _FAINTEST_PEAK)


def _peak(profiles: Tensor) -> Tensor:
    """Return where the Gaussians (N, 42, L) have their peaks (N, 42)."""
    nearest = profiles.argmax(-1, keepdim=True).clamp(1, profiles.shape[-1] - 2)
    before, after = (profiles.gather(-1, nearest + step).clamp(min=1e-30).log() for step in (-1, 1))
    return (nearest + 0.5 * (after - before)).squeeze(-1)


def bones_of(pose: Pose) -> Bones:
    """Return the bones of poses.

    Nothing is known of the forearm but where it begins: it is taken to go on from the palm, from the wrist away from
    the fingers, for a hand's length.
    """
    starts, ends, wrists = (index.to(pose.joints.device) for index in (_STARTS, _ENDS, _WRISTS))
    joints = pose.joints.float().masked_fill(~pose.there.unsqueeze(-1), 0)
    there = pose.there[:, starts] & pose.there[:, ends]
    along = (joints[:, ends] - joints[:, starts]) * there.unsqueeze(-1)

    of_finger = (-1, HANDS, FINGER_COUNT, BONES_A_FINGER)
    lengths = torch.linalg.vector_norm(along, dim=-1).view(of_finger).sum(-1).amax(-1)  # N, 2
    palm = along.view(*of_finger, 2)[:, :, 1:, 0].sum(2)  # N, 2, 2: the thumb's bone leads aside
    forearm = -torch.nn.functional.normalize(palm, dim=-1) * lengths.unsqueeze(-1)
    return Bones(
        start=torch.cat([joints[:, starts], joints[:, wrists]], dim=1),
        along=torch.cat([along, forearm], dim=1),
        there=torch.cat([there, there.view(of_finger)[:, :, 1:, 0].any(-1)], dim=1),
        hand_length=torch.cat([lengths.repeat_interleave(FINGER_COUNT * BONES_A_FINGER, dim=1), lengths], dim=1),
    )
