"""Limbs: how near each pixel of an image is to the fingers, palms and forearms of a pose."""

from typing import Final

import torch
from torch import Tensor

from handdata.trainer.geometry.poses import BONES_A_FINGER, FINGER_COUNT, HAND_BONES, HANDS, Bones

LIMBS: Final = HANDS * (FINGER_COUNT + 1)
"""Thumb to little finger (three bones each), then the palm (the first bone of each); right hand, then left."""
LIMBS_OF_HAND: Final = FINGER_COUNT + 1
PALM: Final = FINGER_COUNT
"""Number of the palm among a hand's limbs."""

FINGER_RADIUS, PALM_RADIUS, FOREARM_RADIUS = 0.08, 0.12, 0.18
"""How far from its bones a limb reaches, as a share of the hand's length. Too wide costs less than too narrow: on 96
pairs 0.06 for all gave carried references 0.8 dB and 0.14 of PCK@0.2 less."""
_FAR: Final = 1e6
_SMALLEST: Final = 1e-3
_THINNER: Final = 4.0
"""How much thinner than limbs bones are drawn, squared."""
_COLOURS: Final = [
    *((1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 1.0, 1.0), (0.0, 0.0, 1.0)),
    *((1.0, 0.5, 0.5), (1.0, 1.0, 0.5), (0.5, 1.0, 0.5), (0.5, 1.0, 1.0), (0.5, 0.5, 1.0)),
]
"""Of the fingers, thumb to little finger: right hand, then left."""
_SEEN: Final = 20.0
"""Limb maps end where a Gaussian's exponent is this: behind it numbers are so small that processors slow down."""


def bone_distances(bones: Bones, size: tuple[int, int]) -> Tensor:
    """Return each pixel's squared distance from each bone (N, 42, H, W), in radii of the bone's limb.

    ``_FAR`` where a bone is not there. ``size`` is (H, W).
    """
    height, width = size
    radius = (_radii(bones.hand_length.device) * bones.hand_length).clamp(min=_SMALLEST).unsqueeze(-1)  # N, 42, 1
    x = torch.arange(width, device=bones.start.device, dtype=torch.float32)
    y = torch.arange(height, device=bones.start.device, dtype=torch.float32)
    right = (x - bones.start[..., :1]) / radius  # N, 42, W
    down = (y - bones.start[..., 1:]) / radius  # N, 42, H
    along = bones.along / radius
    length2 = along.square().sum(-1, keepdim=True)
    share = along / length2.clamp(min=_SMALLEST)
    missing = _FAR * ~bones.there.unsqueeze(-1)
    # From a pixel's place along the bone, 0 at its start and 1 at its end, and that place moved onto the bone: the
    # squared distance is that from the start plus length^2 moved (moved - 2 place). Place and the first term are sums
    # of a row and a column.
    place = (down * share[..., 1:]).unsqueeze(-1) + (right * share[..., :1]).unsqueeze(-2)  # N, 42, H, W
    squared = (down.square() + missing).unsqueeze(-1) + right.square().unsqueeze(-2)
    moved = place.clamp(0, 1)
    place.mul_(-2).add_(moved).mul_(moved).mul_(length2.unsqueeze(-1))
    return squared.add_(place).clamp_(min=0)


def limb_distances(of_bones: Tensor) -> Tensor:
    """Return the least of each limb's bones' distances (N, 42, H, W), as (N, 12, H, W)."""
    of_finger = of_bones[:, :HAND_BONES].view(-1, HANDS, FINGER_COUNT, BONES_A_FINGER, *of_bones.shape[2:])
    fingers, palms = of_finger[:, :, :, 1:].amin(3), of_finger[:, :, :, 0].amin(2, keepdim=True)
    return torch.cat([fingers, palms], dim=2).flatten(1, 2)


def nearest_bones(of_bones: Tensor, limb: Tensor) -> Tensor:
    """Return which bone of each pixel's ``limb`` (N, 1, H, W) is the nearest (N, 1, H, W), of (N, 42, H, W)."""
    candidates = _bones_of_limbs(limb.device)[limb.squeeze(1)].permute(0, 3, 1, 2)  # N, 5, H, W
    chosen = of_bones.gather(1, candidates).min(1, keepdim=True).indices  # argmin takes ten times as long
    return candidates.gather(1, chosen)


def limb_maps(of_limbs: Tensor) -> Tensor:
    """Return a map of each limb (N, 12, H, W) of distances: 1 on its bones, then falling off like a Gaussian."""
    return torch.exp(-of_limbs.clamp(max=_SEEN)) * (of_limbs < _SEEN)


def draw_bones(bones: Bones, size: tuple[int, int]) -> Tensor:
    """Draw bones as soft lines in the colours of their fingers, left hands paler: RGB (N, 3, H, W), 0 to 1.

    As networks for people are shown skeletons (OpenPose's pictures). ``size`` is (H, W).
    """
    lines = bone_distances(bones, size)[:, :HAND_BONES] * _THINNER
    shades = torch.exp(-lines.clamp(max=_SEEN)) * (lines < _SEEN)  # N, 40, H, W
    colours = torch.tensor(_COLOURS, device=shades.device).repeat_interleave(BONES_A_FINGER, dim=0)  # 40, 3
    return torch.stack([(shades * colour.view(-1, 1, 1)).amax(1) for colour in colours.unbind(1)], dim=1)


def _radii(device: torch.device) -> Tensor:
    """Return the radius of each bone's limb (42,), as a share of the hand's length."""
    finger = [PALM_RADIUS] + [FINGER_RADIUS] * (BONES_A_FINGER - 1)
    return torch.tensor(finger * FINGER_COUNT * HANDS + [FOREARM_RADIUS] * HANDS, device=device)


def _bones_of_limbs(device: torch.device) -> Tensor:
    """Return the numbers of each limb's bones (12, 5); fingers, which have three, name their last one again."""
    first = torch.arange(HANDS * FINGER_COUNT, device=device).view(HANDS, FINGER_COUNT) * BONES_A_FINGER
    fingers = first.unsqueeze(-1) + torch.tensor([1, 2, 3, 3, 3], device=device)  # 2, 5, 5
    return torch.cat([fingers, first.unsqueeze(1)], dim=1).flatten(0, 1)
