"""Limbs: which of the fingers, palms and forearms of a pose each pixel of an image is nearest to, and how near."""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from handdata.trainer.geometry.poses import BONES_A_FINGER, FINGER_COUNT, HAND_BONES, HANDS, Bones

LIMBS: Final = HANDS * (FINGER_COUNT + 1)
"""Thumb to little finger (three bones each), then the palm (the first bone of each); right hand, then left."""

FINGER_RADIUS, PALM_RADIUS, FOREARM_RADIUS = 0.08, 0.12, 0.18
"""How far from its bones a limb reaches, as a share of the hand's length. Too wide costs less than too narrow: on 96
pairs 0.06 for all gave carried references 0.8 dB and 0.14 of PCK@0.2 less."""
_FAR: Final = 1e4
_SMALLEST: Final = 1e-4


class LimbField(NamedTuple):
    """The limbs of N poses on a grid of pixels: 12 limbs of hands, then the right and the left forearm."""

    distance: Tensor
    """(N, 14, H, W) from each limb's bones, in radii of the limb; very large where none of its bones is there."""
    bone: Tensor
    """(N, 14, H, W) int64: the limb's bone that is nearest, as ``Bones`` counts them."""

    @property
    def of_hands(self) -> Tensor:
        """Distances from the 12 limbs of hands (N, 12, H, W)."""
        return self.distance[:, :LIMBS]


def limb_field(bones: Bones, size: tuple[int, int]) -> LimbField:
    """Measure each pixel's distance from each limb, on a grid of ``size`` (H, W)."""
    height, width = size
    x = torch.arange(width, device=bones.start.device, dtype=torch.float32)
    y = torch.arange(height, device=bones.start.device, dtype=torch.float32)
    along = bones.along
    # The place along a bone, 0 at its start and 1 at its end, is a sum of a column's part and a row's part.
    share = along / along.square().sum(-1, keepdim=True).clamp(min=_SMALLEST)
    right = x - bones.start[..., :1]  # N, bones, W
    down = y - bones.start[..., 1:]  # N, bones, H
    place = (down * share[..., 1:]).unsqueeze(-1) + (right * share[..., :1]).unsqueeze(-2)  # N, bones, H, W
    place.clamp_(0, 1)
    squared = (right.unsqueeze(-2) - place * along[..., 0, None, None]).square_()
    squared += (down.unsqueeze(-1) - place.mul_(along[..., 1, None, None])).square_()
    squared.masked_fill_(~bones.there[..., None, None], _FAR**2)

    of_finger = squared[:, :HAND_BONES].view(-1, HANDS, FINGER_COUNT, BONES_A_FINGER, height, width)
    fingers, outer = of_finger[:, :, :, 1:].min(3)  # N, 2, 5, H, W
    palms, finger = of_finger[:, :, :, 0].min(2)  # N, 2, H, W
    hands = torch.cat([fingers, palms.unsqueeze(2)], dim=2).flatten(1, 2)  # N, 12, H, W
    nearest = torch.cat([outer + 1, finger.unsqueeze(2) * BONES_A_FINGER], dim=2).flatten(1, 2)
    nearest += _first_bones(nearest.device)[:, None, None]
    forearms = torch.arange(HAND_BONES, HAND_BONES + HANDS, device=nearest.device)
    radius = _radii(bones.hand_length[:, HAND_BONES:])
    return LimbField(
        torch.cat([hands, squared[:, HAND_BONES:]], dim=1).sqrt_() / radius[..., None, None],
        torch.cat([nearest, forearms[:, None, None].expand(len(nearest), -1, height, width)], dim=1),
    )


def limb_maps(field: LimbField) -> Tensor:
    """Return a map of each limb of the hands (N, 12, H, W): 1 on its bones, then falling off like a Gaussian."""
    return torch.exp(-(field.of_hands**2))


def _radii(hand_length: Tensor) -> Tensor:
    """Return the radius (N, 14) of each limb, pixels, of hands of some lengths (N, 2)."""
    shares = hand_length.new_tensor([FINGER_RADIUS] * FINGER_COUNT + [PALM_RADIUS])
    hands = (hand_length.unsqueeze(-1) * shares).flatten(1)
    return torch.cat([hands, hand_length * FOREARM_RADIUS], dim=1).clamp(min=_SMALLEST)


def _first_bones(device: torch.device) -> Tensor:
    """Return for each limb of the hands the bone that its numbers count from."""
    fingers = torch.arange(FINGER_COUNT + 1, device=device) * BONES_A_FINGER
    fingers[-1] = 0
    return torch.cat([fingers + hand * FINGER_COUNT * BONES_A_FINGER for hand in range(HANDS)])
