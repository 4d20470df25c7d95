"""Poses of two hands: their joints read back from heatmaps, their bones, and how large each hand is."""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from handdata.schemas.joints import SKELETON_EDGES

BONES: Final = len(SKELETON_EDGES)
HANDS: Final = 2
FINGERS: Final = 5
BONES_A_FINGER: Final = 4
"""From wrist to tip; the first one lies in the palm."""

_STARTS = torch.tensor([start for start, _ in SKELETON_EDGES])
_ENDS = torch.tensor([end for _, end in SKELETON_EDGES])
_FAINTEST_PEAK = 1e-6


class Pose(NamedTuple):
    """The joints of N frames."""

    joints: Tensor
    """(N, 42, 2) pixels; anything where a joint is not there."""
    there: Tensor
    """(N, 42) bool."""


class Bones(NamedTuple):
    """The bones of N frames, in the order of ``SKELETON_EDGES``."""

    start: Tensor
    """(N, 40, 2) pixels: the end nearer to the wrist; 0 where a bone is not there."""
    along: Tensor
    """(N, 40, 2) from start to end."""
    there: Tensor
    """(N, 40) bool: both joints are."""


def read_pose(heatmaps: Tensor) -> Pose:
    """Read the joints back from the heatmaps (N, 42, H, W) of ``handdata.trainer.conditioning``; all zeros: not there.

    The logarithm of a Gaussian of variance 1 changes from the pixel before the peak to the one after it by twice the
    joint's distance from the peak's centre: exact up to rounding, also where a joint lies at the edge. H and W are at
    least 3.
    """
    maps = heatmaps.float()
    columns, rows = maps.sum(-2), maps.sum(-1)  # a Gaussian's sums over an axis are Gaussians too
    joints = torch.stack([_peak(columns), _peak(rows)], dim=-1)
    return Pose(joints, maps.amax((-2, -1)) > _FAINTEST_PEAK)


def _peak(profiles: Tensor) -> Tensor:
    """Return where the Gaussians (N, 42, L) have their peaks (N, 42)."""
    nearest = profiles.argmax(-1, keepdim=True).clamp(1, profiles.shape[-1] - 2)
    before, after = (profiles.gather(-1, nearest + step).clamp(min=1e-30).log() for step in (-1, 1))
    return (nearest + 0.5 * (after - before)).squeeze(-1)


def bones_of(pose: Pose) -> Bones:
    """Return the bones of poses."""
    starts, ends = _STARTS.to(pose.joints.device), _ENDS.to(pose.joints.device)
    there = pose.there[:, starts] & pose.there[:, ends]
    joints = pose.joints.float().masked_fill(~pose.there.unsqueeze(-1), 0)
    return Bones(joints[:, starts], joints[:, ends] - joints[:, starts], there)


def hand_lengths(bones: Bones) -> Tensor:
    """Return the longest way from the wrist to a fingertip along the bones that are there (N, 2), pixels."""
    lengths: Tensor = torch.linalg.vector_norm(bones.along, dim=-1) * bones.there
    return lengths.view(-1, HANDS, FINGERS, BONES_A_FINGER).sum(-1).amax(-1)
