"""The reference carried to the target's pose, bone by bone, with its old hand painted out.

A pixel near a bone of the target takes the reference's pixel at the same place along and across that bone. What limits
it, and what was tried and left out (the order in depth, palms as planes), is in ``docs/results/geometry.md``.
"""

from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from handdata.trainer.geometry.limbs import LIMBS_OF_HAND, PALM, bone_distances, limb_distances, nearest_bones
from handdata.trainer.geometry.poses import HAND_BONES, HANDS, Bones, Pose, bones_of

_EDGE: Final = 3.0
"""How sharply the carried hand ends: the slope of its coverage, a radius."""
_REACH, _REACH_IN_MASK = 1.0, 1.3
"""Where the hand ends, in radii from its bones; with a mask of the reference's hand, which knows better, farther."""
_STRETCHES, _SMEARS = 1.2, 2.0
"""A finger's bone that is so many times longer than in the reference begins to show, or shows, the palm's colour."""
_MARGIN: Final = 1 / 32
"""By how much hands are taken to be larger when they are painted out, as a share of the image's side."""
_SHORTEST_PX: Final = 0.5
_SEEN: Final = 0.05
"""Smallest share of a level's pixel that must be seen to be believed."""


class Carried(NamedTuple):
    """A reference in the pose of its target."""

    target_limbs: Tensor
    """(N, 12, H, W) as ``limb_distances`` gives them."""
    reference_limbs: Tensor
    picture: Tensor
    """(N, C, H, W) the reference's hands in the target's pose; what lies off the hands means nothing."""
    coverage: Tensor
    """(N, 1, H, W) how far ``picture`` shows a hand, 0 to 1; 0 where the hand is missing in either frame."""
    background: Tensor
    """(N, C, H, W) the reference with its hands painted out and its forearms carried, where the target has any joint;
    else as it is."""

    @property
    def base(self) -> Tensor:
        """The hands before the background (N, C, H, W)."""
        return torch.lerp(self.background, self.picture, self.coverage)


def carry(picture: Tensor, mask: Tensor, target: Pose, reference: Pose) -> Carried:
    """Carry a reference's hands to the target's pose.

    Args:
        picture: The reference (N, C, H, W).
        mask: Its hands (N, 1, H, W), zeros and ones; all zeros: not known, the limbs stand in.
        target: Pose to carry to.
        reference: Pose of the reference.

    """
    size = (picture.shape[-2], picture.shape[-1])
    bones, bones_there = bones_of(target), bones_of(reference)
    to, of = bone_distances(bones, size), bone_distances(bones_there, size)
    to_limbs, of_limbs = limb_distances(to), limb_distances(of)
    numbers = _numbers(bones, bones_there)
    masked = mask.amax((1, 2, 3), keepdim=True) > 0
    on_reference = torch.where(masked, mask, (of_limbs.amin(1, keepdim=True) < 1).to(mask))
    of_right = of_limbs[:, :LIMBS_OF_HAND].amin(1, keepdim=True) < of_limbs[:, LIMBS_OF_HAND:].amin(1, keepdim=True)

    squared, limb = to_limbs.min(1, keepdim=True)  # N, 1, H, W
    distance, hand = squared.sqrt(), limb // LIMBS_OF_HAND
    place = _places(numbers, nearest_bones(to, limb), size)
    found = _sample(torch.cat([picture, mask, of_right.to(mask)], dim=1), place.grid)
    shown, on_mask, of_right_hand = found[:, :-2], found[:, -2:-1], found[:, -1:]
    inside = torch.sigmoid((torch.where(masked, _REACH_IN_MASK, _REACH) - distance) * _EDGE)
    inside = inside * torch.where(masked, on_mask, 1)
    inside = inside * torch.where(hand == 0, of_right_hand, 1 - of_right_hand)  # one hand shows nothing of the other
    # A bone that points at the camera in the reference shows nothing of its length: the palm's colour stands in.
    smears = ((place.stretch - _STRETCHES) / (_SMEARS - _STRETCHES)).clamp(0, 1) * (limb % LIMBS_OF_HAND != PALM)
    inside = torch.lerp(inside, torch.sigmoid((_REACH - distance) * _EDGE), smears)
    hands = torch.lerp(shown, _palm_colour(picture, on_reference, of_limbs, hand), smears)
    background = _background(picture, on_reference, to[:, HAND_BONES:], of[:, HAND_BONES:], numbers)
    background = torch.where(target.there.any(1).view(-1, 1, 1, 1), background, picture)
    return Carried(to_limbs, of_limbs, hands, inside * place.known, background)


def _background(picture: Tensor, on_hands: Tensor, to: Tensor, of: Tensor, numbers: Tensor) -> Tensor:
    """Return the picture without hands, and with forearms where they are now.

    Args:
        picture: The reference (N, C, H, W).
        on_hands: Its hands (N, 1, H, W), 0 or 1.
        to: Squared distances from the target's forearms (N, 2, H, W).
        of: The same from the reference's.
        numbers: What ``_places`` needs.

    """
    size = (picture.shape[-2], picture.shape[-1])
    margin = max(1, round(_MARGIN * size[1]))
    hidden = F.max_pool2d(on_hands, 2 * margin + 1, stride=1, padding=margin)
    hidden = torch.maximum(hidden, (of.amin(1, keepdim=True) < 1).to(hidden))
    squared, arm = to.min(1, keepdim=True)
    place = _places(numbers, HAND_BONES + arm, size)
    in_picture = (place.grid.abs().amax(-1) <= 1).unsqueeze(1)
    arms = torch.sigmoid((_REACH - squared.sqrt()) * _EDGE) * place.known * in_picture
    return torch.lerp(paint_out(picture, hidden), _sample(picture, place.grid), arms)


class _Places(NamedTuple):
    """Where in the reference each pixel of the target is found."""

    grid: Tensor
    """(N, H, W, 2) as ``grid_sample`` takes them."""
    known: Tensor
    """(N, 1, H, W) 1 where both frames have the bone."""
    stretch: Tensor
    """(N, 1, H, W) how many times longer the bone is than in the reference."""


def _numbers(target: Bones, reference: Bones) -> Tensor:
    """Return what ``_places`` needs of each bone (N, 42, 12)."""
    lengths, lengths_there = (
        torch.linalg.vector_norm(bones.along, dim=-1, keepdim=True).clamp(min=_SHORTEST_PX)
        for bones in (target, reference)
    )
    known = target.there & reference.there
    # How much larger a hand is in the reference: the median of its bones', since poses shorten them at random.
    ratios = (lengths_there / lengths).masked_fill(~known.unsqueeze(-1), torch.nan)[:, :HAND_BONES]
    scale = ratios.view(-1, HANDS, HAND_BONES // HANDS).nanmedian(-1).values.nan_to_num(1)
    scale = torch.cat([scale.repeat_interleave(HAND_BONES // HANDS, dim=1), scale], dim=1).unsqueeze(-1)
    parts = [target.start, target.along / lengths, lengths]
    parts += [reference.start, reference.along / lengths_there, lengths_there, scale, known.unsqueeze(-1).float()]
    return torch.cat(parts, dim=-1)


def _places(numbers: Tensor, bone: Tensor, size: tuple[int, int]) -> _Places:
    """Find for each pixel the reference's pixel at the same place along and across its bone (N, 1, H, W)."""
    height, width = size
    first = torch.arange(len(bone), device=bone.device).view(-1, 1) * numbers.shape[1]
    of_pixel = F.embedding(bone.flatten(1) + first, numbers.flatten(0, 1))  # N, H W, 12
    x0, y0, ux, uy, length, x0_there, y0_there, ux_there, uy_there, length_there, scale, known = of_pixel.unbind(-1)
    y, x = torch.meshgrid(
        torch.arange(height, device=bone.device, dtype=torch.float32),
        torch.arange(width, device=bone.device, dtype=torch.float32),
        indexing="ij",
    )
    right, down = x.flatten() - x0, y.flatten() - y0  # N, H W
    along, across = right * ux + down * uy, (down * ux - right * uy) * scale
    on_bone = torch.minimum(along.clamp(min=0), length)
    along = on_bone * (length_there / length) + (along - on_bone) * scale  # beyond its ends a bone does not stretch
    x_there = x0_there + along * ux_there - across * uy_there
    y_there = y0_there + along * uy_there + across * ux_there
    return _Places(
        torch.stack([(2 * x_there + 1) / width - 1, (2 * y_there + 1) / height - 1], dim=-1).view(-1, height, width, 2),
        known.view(-1, 1, height, width),
        (length * scale / length_there).view(-1, 1, height, width),
    )


def _sample(picture: Tensor, grid: Tensor) -> Tensor:
    """Return the picture (N, C, H, W) at the places of a grid; the nearest pixel outside it."""
    return F.grid_sample(picture, grid, padding_mode="border", align_corners=False)


def _palm_colour(picture: Tensor, on_hands: Tensor, of_limbs: Tensor, hand: Tensor) -> Tensor:
    """Return the mean colour of the reference's palm (N, C, H, W) of each pixel's ``hand`` (N, 1, H, W)."""
    palms = (of_limbs[:, PALM::LIMBS_OF_HAND] < 1) * on_hands  # N, 2, H, W
    shares = palms / palms.sum((-2, -1), keepdim=True).clamp(min=1)
    colours = torch.einsum("nchw,nkhw->nck", picture, shares)
    of_pixel = colours.gather(2, hand.flatten(1).unsqueeze(1).expand(-1, picture.shape[1], -1))
    return of_pixel.view_as(picture)


def paint_out(picture: Tensor, hidden: Tensor) -> Tensor:
    """Fill the hidden pixels (N, 1, H, W), 0 or 1, of a picture (N, C, H, W) from around them.

    Push and pull: each level of a pyramid holds the mean of the pixels that are seen, and lends it to the finer level
    where that sees nothing (Gortler et al. 1996, The Lumigraph, section 3.4). Zeros where nothing is seen at all.
    """
    seen = 1 - hidden
    levels = [(picture * seen, seen)]
    while max(levels[-1][1].shape[-2:]) > 1:
        total, share = levels[-1]
        levels.append((F.avg_pool2d(total, 2, ceil_mode=True), F.avg_pool2d(share, 2, ceil_mode=True)))
    filled = torch.zeros_like(levels[-1][0])
    for total, share in reversed(levels):
        filled = F.interpolate(filled, total.shape[-2:], mode="bilinear", align_corners=False)
        filled = torch.where(share > _SEEN, total / share.clamp(min=_SEEN), filled)
    return filled
