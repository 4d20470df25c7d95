"""Limbs: which of the fingers and palms of a pose each pixel of an image is nearest to, and how near."""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from handdata.trainer.geometry.poses import BONES_A_FINGER, FINGERS, HANDS, Bones, hand_lengths

LIMBS: Final = HANDS * (FINGERS + 1)
"""Thumb to little finger (three bones each), then the palm (the first bone of each); right hand, then left."""

FINGER_RADIUS: Final = 0.06
"""Half of a finger's width, as a share of the hand's length."""
_FAR = 1e4
_SHORTEST_PX2 = 1e-4


class LimbField(NamedTuple):
    """The limbs of N poses on a grid of pixels."""

    distance: Tensor
    """(N, 12, H, W) from each limb's bones, in finger radii; very large where none of a limb's bones is there."""
    bone: Tensor
    """(N, 12, H, W) int64: the limb's bone that is nearest, 0 to 39."""


def limb_field(bones: Bones, size: tuple[int, int]) -> LimbField:
    """Measure each pixel's distance from each limb, on a grid of ``size`` (H, W)."""
    height, width = size
    x = torch.arange(width, device=bones.start.device, dtype=torch.float32)
    y = torch.arange(height, device=bones.start.device, dtype=torch.float32)
    along = bones.along
    # The place along a bone, 0 at its start and 1 at its end, is a sum of a column's part and a row's part.
    share = along / along.square().sum(-1, keepdim=True).clamp(min=_SHORTEST_PX2)
    right = x - bones.start[..., :1]  # N, 40, W
    down = y - bones.start[..., 1:]  # N, 40, H
    place = (down * share[..., 1:]).unsqueeze(-1) + (right * share[..., :1]).unsqueeze(-2)  # N, 40, H, W
    place.clamp_(0, 1)
    squared = (right.unsqueeze(-2) - place * along[..., 0, None, None]).square_()
    squared += (down.unsqueeze(-1) - place.mul_(along[..., 1, None, None])).square_()
    squared.masked_fill_(~bones.there[..., None, None], _FAR**2)

    of_finger = squared.view(-1, HANDS, FINGERS, BONES_A_FINGER, height, width)
    fingers, outer = of_finger[:, :, :, 1:].min(3)  # N, 2, 5, H, W
    palms, finger = of_finger[:, :, :, 0].min(2)  # N, 2, H, W
    distance = torch.cat([fingers, palms.unsqueeze(2)], dim=2).view(-1, LIMBS, height, width).sqrt_()
    nearest = torch.cat([outer + 1, finger.unsqueeze(2) * BONES_A_FINGER], dim=2).view(-1, LIMBS, height, width)
    radius = (FINGER_RADIUS * hand_lengths(bones)).clamp(min=_SHORTEST_PX2).repeat_interleave(FINGERS + 1, dim=1)
    first = _first_bones(distance.device)
    return LimbField(distance / radius[..., None, None], nearest + first[:, None, None])


def limb_maps(field: LimbField) -> Tensor:
    """Return a map of each limb (N, 12, H, W): 1 on its bones, falling off with the distance like a Gaussian."""
    return torch.exp(-0.5 * field.distance**2)


def _first_bones(device: torch.device) -> Tensor:
    """Return for each limb the bone that its numbers count from."""
    fingers = torch.arange(FINGERS + 1, device=device) * BONES_A_FINGER
    fingers[-1] = 0
    return torch.cat([fingers + hand * FINGERS * BONES_A_FINGER for hand in range(HANDS)])
