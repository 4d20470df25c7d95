"""The reference carried to the target's pose, bone by bone, with its old hand painted out.

A pixel near a bone of the target takes the reference's pixel at the same place along and across that bone.
"""

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from handdata.trainer.geometry.limbs import LimbField, limb_field
from handdata.trainer.geometry.poses import Pose, bones_of

_EDGE: Final = 3.0
"""How sharply the carried hand ends: the slope of its coverage, a finger radius."""
_HAND_WITHIN: Final = 1.3
"""Without a mask, pixels within so many finger radii of a limb are the hand's."""
_MARGIN: Final = 1 / 32
"""By how much hands are taken to be larger when they are painted out, as a share of the image's side."""
_SHORTEST_PX: Final = 0.5
_SEEN: Final = 0.05
"""Smallest share of a level's pixel that must be seen to be believed."""


class Carried(NamedTuple):
    """A reference in the pose of its target."""

    target_limbs: LimbField
    reference_limbs: LimbField
    picture: Tensor
    """(N, C, H, W) the reference's hand in the target's pose; what lies off the hand means nothing."""
    coverage: Tensor
    """(N, 1, H, W) how far ``picture`` shows the hand, 0 to 1; 0 where a hand is missing in either frame."""
    background: Tensor
    """(N, C, H, W) the reference with its hands painted out, where the target has any joint; else as it is."""

    @property
    def base(self) -> Tensor:
        """The picture before the background (N, C, H, W)."""
        return torch.lerp(self.background, self.picture, self.coverage)


def carry(picture: Tensor, mask: Tensor, target: Pose, reference: Pose) -> Carried:
    """Carry a reference's hands to the target's pose.

    A hand that either frame lacks is not carried. Without any, the picture is the reference where there is one.

    Args:
        picture: The reference (N, C, H, W).
        mask: Its hands (N, 1, H, W), zeros and ones; all zeros: not known, the limbs stand in.
        target: Pose to carry to.
        reference: Pose of the reference.

    """
    size = (picture.shape[-2], picture.shape[-1])
    target_bones, reference_bones = bones_of(target), bones_of(reference)
    to, of = limb_field(target_bones, size), limb_field(reference_bones, size)
    distance, limb = to.distance.min(1)  # N, H, W
    bone = to.bone.gather(1, limb.unsqueeze(1)).flatten(1)  # N, H W

    lengths, lengths_there = (
        torch.linalg.vector_norm(bones.along, dim=-1, keepdim=True).clamp(min=_SHORTEST_PX)
        for bones in (target_bones, reference_bones)
    )
    both = (target_bones.there & reference_bones.there).unsqueeze(-1)
    of_bone = [target_bones.start, target_bones.along / lengths, lengths]
    of_bone += [reference_bones.start, reference_bones.along / lengths_there, lengths_there, both.float()]
    numbers = torch.cat(of_bone, dim=-1)  # N, 40, 11
    x0, y0, ux, uy, length, rx0, ry0, rux, ruy, length_there, known = numbers.gather(
        1, bone.unsqueeze(-1).expand(-1, -1, numbers.shape[-1])
    ).unbind(-1)  # each N, H W

    y, x = torch.meshgrid(
        torch.arange(size[0], device=picture.device, dtype=torch.float32),
        torch.arange(size[1], device=picture.device, dtype=torch.float32),
        indexing="ij",
    )
    right, down = x.flatten() - x0, y.flatten() - y0
    along, across = right * ux + down * uy, down * ux - right * uy
    on_bone = torch.minimum(along.clamp(min=0), length)
    along = on_bone * (length_there / length) + (along - on_bone)  # beyond the ends pixels stay pixels
    from_x = rx0 + along * rux - across * ruy
    from_y = ry0 + along * ruy + across * rux
    carried = _sample(picture, from_x.view_as(distance), from_y.view_as(distance))
    coverage = torch.sigmoid((1 - distance) * _EDGE) * known.view_as(distance)
    return Carried(to, of, carried, coverage.unsqueeze(1), _background(picture, mask, target, of))


def _sample(picture: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the picture (N, C, H, W) at places (N, H, W), pixels; the nearest pixel outside it."""
    height, width = picture.shape[-2:]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(picture, grid, padding_mode="border", align_corners=False)


def _background(picture: Tensor, mask: Tensor, target: Pose, reference_limbs: LimbField) -> Tensor:
    """Return the picture without its hands, where the target has any joint."""
    limbs = (reference_limbs.distance.amin(1, keepdim=True) < _HAND_WITHIN).to(mask)
    hands = torch.where(mask.amax((1, 2, 3), keepdim=True) > 0, mask, limbs)
    margin = max(1, round(_MARGIN * picture.shape[-1]))
    hidden = F.max_pool2d(hands, 2 * margin + 1, stride=1, padding=margin)
    moves = target.there.any(1).view(-1, 1, 1, 1)
    return torch.where(moves, paint_out(picture, hidden), picture)


def paint_out(picture: Tensor, hidden: Tensor) -> Tensor:
    """Fill the hidden pixels (N, 1, H, W), 0 or 1, of a picture (N, C, H, W) from around them.

    Push and pull: each level of a pyramid holds the mean of the pixels that are seen, and lends it to the finer level
    where that sees nothing (Gortler et al. 1996, The Lumigraph, section 3.4). Zeros where nothing is seen at all.
    """
    seen = 1 - hidden
    levels = [(picture * seen, seen)]
    while max(levels[-1][1].shape[-2:]) > 1:
        levels.append(tuple(F.avg_pool2d(part, 2, ceil_mode=True) for part in levels[-1]))  # type: ignore[arg-type]
    filled = torch.zeros_like(levels[-1][0])
    for total, share in reversed(levels):
        filled = F.interpolate(filled, total.shape[-2:], mode="bilinear", align_corners=False)
        filled = torch.where(share > _SEEN, total / share.clamp(min=_SEEN), filled)
    return filled
