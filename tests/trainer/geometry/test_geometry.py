"""Joints read back from heatmaps, limb maps, and the reference carried to another pose."""

import math

import pytest
import torch
from torch import Tensor

from handdata.schemas import SIDES, hand_rows
from handdata.trainer.conditioning import render_heatmaps
from handdata.trainer.geometry.carrying import carry, paint_out
from handdata.trainer.geometry.limbs import bone_distances, limb_distances, limb_maps
from handdata.trainer.geometry.poses import Pose, bones_of, read_pose

SIZE = 64
ALL_THERE = torch.ones(1, 42, dtype=torch.bool)


def hand(wrist: tuple[float, float], length: float, angle: float = 0.0, curl: float = 1.0) -> Tensor:
    """Return the joints (21, 2) of an open hand whose middle finger points up, turned by an angle (radians)."""
    joints = [(0.0, 0.0)]
    for finger in range(5):
        spread = 0.28 * (finger - 2)
        reach = (0.35, 0.55, 0.75, 0.9) if finger == 0 else (0.5, 0.5 + 0.2 * curl, 0.5 + 0.35 * curl, 0.5 + 0.5 * curl)
        joints += [(share * math.sin(spread), -share * math.cos(spread)) for share in reach]
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return torch.tensor(joints) @ turn * length + torch.tensor(wrist)


def pose(right: Tensor | None = None, left: Tensor | None = None) -> Pose:
    joints, there = torch.zeros(1, 42, 2), torch.zeros(1, 42, dtype=torch.bool)
    for side, given in zip(SIDES, (right, left), strict=True):
        if given is not None:
            joints[0, hand_rows(side)], there[0, hand_rows(side)] = given, True
    return Pose(joints, there)


def smooth_picture(size: int = SIZE, seed: int = 0) -> Tensor:
    """Return a picture (1, 3, size, size) without detail that resampling would lose."""
    coarse = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=False)


def distances(of: Pose) -> Tensor:
    """Return each pixel's distance from each limb (1, 12, SIZE, SIZE), in radii."""
    return limb_distances(bone_distances(bones_of(of), (SIZE, SIZE))).sqrt()


NO_MASK = torch.zeros(1, 1, SIZE, SIZE)
ON_HAND = 0.9
"""Coverage of pixels that show nothing but the hand."""


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (64, 64), (48, 80)])
def test_joints_come_back_from_their_heatmaps_wherever_they_lie_in_the_image(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    joints = torch.rand(16, 42, 2, generator=generator) * (torch.tensor([size[1], size[0]]) - 0.02) + 0.01
    there = torch.rand(16, 42, generator=generator) > 0.3
    read = read_pose(render_heatmaps(joints, there, size))
    assert torch.equal(read.there, there)
    assert float((read.joints - joints)[there].abs().max()) < 1e-5 * max(size[0] / 64, 1)


def test_a_limb_map_is_one_on_its_bones_and_nothing_where_the_hand_is_absent() -> None:
    open_hand = hand((32.0, 60.0), 50)
    maps = limb_maps(distances(pose(left=open_hand)) ** 2)
    assert maps.shape == (1, 12, SIZE, SIZE)
    assert maps[:, :6].abs().max() == 0
    for finger in range(5):
        middle = open_hand[4 * finger + 2].round().long()
        assert maps[0, 6 + finger, middle[1], middle[0]] > 0.9
        assert maps[0, 6 + finger, middle[1], middle[0]] == maps[0, 6:11, middle[1], middle[0]].max()
    assert maps[0, 11, 50, 32] > 0.9  # the palm


def test_without_heatmaps_there_are_no_limbs_and_nothing_is_carried() -> None:
    nothing = read_pose(torch.zeros(1, 42, SIZE, SIZE))
    picture, there = smooth_picture(), pose(right=hand((32.0, 60.0), 50))
    assert limb_maps(distances(nothing)).abs().max() == 0
    for target, reference in [(nothing, there), (there, nothing), (nothing, nothing)]:
        assert carry(picture, NO_MASK, target, reference).coverage.abs().max() == 0
    assert torch.equal(carry(picture, NO_MASK, nothing, there).base, picture)
    empty = torch.zeros_like(picture)
    assert carry(empty, NO_MASK, there, nothing).base.abs().max() == 0


def test_a_hand_that_does_not_move_is_carried_onto_itself() -> None:
    both = pose(right=hand((20.0, 60.0), 40, 0.2), left=hand((46.0, 58.0), 36, -0.3))
    picture = smooth_picture()
    carried = carry(picture, NO_MASK, both, both)
    covered = carried.coverage > ON_HAND
    assert covered.float().mean() > 0.05
    torch.testing.assert_close(carried.picture * covered, picture * covered, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("turn", "shift", "scale"), [(0.0, (7, -5), 1.0), (0.6, (0, 0), 1.0), (-0.4, (3, 2), 1.0), (0.3, (-4, 6), 0.75)]
)
def test_a_hand_that_moves_as_a_whole_takes_its_pixels_along(turn: float, shift: tuple[int, int], scale: float) -> None:
    turned = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    before = hand((30.0, 48.0), 34)
    centre = torch.tensor([32.0, 32.0])

    def moved(points: Tensor) -> Tensor:
        return (points - centre) @ turned * scale + centre + torch.tensor(shift)

    picture = smooth_picture()
    carried = carry(picture, NO_MASK, pose(right=moved(before)), pose(right=before))
    y, x = torch.meshgrid(torch.arange(SIZE).float(), torch.arange(SIZE).float(), indexing="ij")
    places = (torch.stack([x, y], -1) - centre - torch.tensor(shift)) / scale @ turned.T + centre
    expected = torch.nn.functional.grid_sample(
        picture, ((2 * places + 1) / SIZE - 1)[None], padding_mode="border", align_corners=False
    )
    covered = carried.coverage > ON_HAND
    assert covered.float().mean() > 0.02
    torch.testing.assert_close(carried.picture * covered, expected * covered, atol=0.05, rtol=0)


def test_each_hand_takes_its_own_pixels() -> None:
    red_and_blue = torch.zeros(1, 3, SIZE, SIZE)
    red_and_blue[:, 0, :, :32], red_and_blue[:, 2, :, 32:] = 1, 1
    right, left = hand((14.0, 50.0), 30), hand((48.0, 50.0), 30)
    apart, crossed = pose(right, left), pose(right + torch.tensor([20.0, 0]), left - torch.tensor([22.0, 0]))
    carried = carry(red_and_blue, NO_MASK, crossed, apart)
    distance = carried.target_limbs.sqrt()
    for side, colour in ((0, 0), (1, 2)):
        own, other = distance[:, 6 * side :][:, :6].amin(1), distance[:, 6 * (1 - side) :][:, :6].amin(1)
        on_hand = (own < 0.5) & (other > 2)
        assert on_hand.any()
        assert carried.picture[0, colour][on_hand[0]].min() > 0.99


def test_one_hand_alone_is_carried_where_the_other_is_missing_in_a_frame() -> None:
    right, left = hand((16.0, 50.0), 30), hand((48.0, 50.0), 30)
    carried = carry(smooth_picture(), NO_MASK, pose(right, left), pose(right=right))
    distance = carried.target_limbs.sqrt()
    shown, missing = distance[:, :6].amin(1, keepdim=True), distance[:, 6:12].amin(1, keepdim=True)
    assert carried.coverage[shown < 0.3].min() > 0.8
    assert carried.coverage[(missing < 0.3) & (shown > 1.5)].max() == 0


def test_painting_out_continues_what_is_around() -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 48), torch.linspace(-1, 1, 48), indexing="ij")
    picture = torch.stack([x, y, x * 0 + 0.3])[None]
    hidden = torch.zeros(1, 1, 48, 48)
    hidden[..., 16:30, 18:34] = 1
    filled = paint_out(torch.where(hidden > 0, 5.0, picture), hidden)
    outside = (hidden == 0).expand_as(picture)
    assert torch.equal(filled[outside], picture[outside])
    assert float((filled - picture).abs().max()) < 0.35
    assert paint_out(picture, torch.ones_like(hidden)).abs().max() == 0


def test_the_old_hand_is_painted_out_by_its_mask_or_by_its_limbs() -> None:
    before, after = pose(right=hand((18.0, 50.0), 30)), pose(right=hand((46.0, 50.0), 30))
    picture = torch.full((1, 3, SIZE, SIZE), -0.5)
    on_hand = distances(before).amin(1, keepdim=True) < 1
    picture = torch.where(on_hand, 0.8, picture)
    for mask in (on_hand.float(), NO_MASK):
        base = carry(picture, mask, after, before).base
        new = distances(after).amin(1)[0]
        assert float(base[0, 0][on_hand[0, 0] & (new > 3)].max()) < 0
        assert float(base[0, 0][new < 0.5].min()) > 0.5


def test_a_bone_knows_its_hand_and_the_forearm_goes_on_from_the_palm() -> None:
    bones = bones_of(pose(right=hand((32.0, 40.0), 30)))
    torch.testing.assert_close(bones.hand_length[0, [0, 19, 20, 39, 40, 41]], torch.tensor([30.0, 30, 0, 0, 30, 0]))
    assert bones.there[0].tolist() == [True] * 20 + [False] * 20 + [True, False]
    forearm = bones.along[0, 40]
    assert forearm[1] == pytest.approx(30, abs=2)  # down: the fingers point up
    assert bones.start[0, 40].tolist() == [32, 40]


def test_no_hand_shows_pixels_of_the_other_one_beside_it() -> None:
    right, left = hand((22.0, 56.0), 36), hand((42.0, 56.0), 36)
    before = pose(right, left)
    near = distances(before)
    nearer_right = near[:, :6].amin(1, keepdim=True) < near[:, 6:].amin(1, keepdim=True)
    picture = torch.where(nearer_right, 1.0, -1.0).expand(1, 3, SIZE, SIZE)
    mask = (near.amin(1, keepdim=True) < 1.2).float()
    apart = pose(right - torch.tensor([8.0, 0]), left + torch.tensor([8.0, 0]))
    carried = carry(picture, mask, apart, before)
    distance = carried.target_limbs.sqrt()
    for side, colour in ((0, 1.0), (1, -1.0)):
        own, other = (distance[:, 6 * hand : 6 * hand + 6].amin(1, keepdim=True) for hand in (side, 1 - side))
        shown = (carried.coverage > 0.3) & (own < other)
        assert shown.any()
        assert float((carried.picture[:, :1] * colour)[shown].min()) > 0


def test_a_finger_that_uncurls_shows_the_palms_colour() -> None:
    picture = torch.full((1, 3, SIZE, SIZE), -1.0)
    before = pose(right=hand((32.0, 58.0), 44, curl=0.1))
    palm = distances(before)[:, 5:6] < 1
    picture = torch.where(palm, 0.7, picture)
    carried = carry(picture, NO_MASK, pose(right=hand((32.0, 58.0), 44)), before)
    tip = hand((32.0, 58.0), 44)[12].round().long()
    assert carried.picture[0, 0, tip[1], tip[0]] > 0.5
    assert carried.coverage[0, 0, tip[1], tip[0]] > 0.8


def test_the_wrist_stays_with_its_forearm() -> None:
    before, after = hand((24.0, 34.0), 28), hand((38.0, 38.0), 28)
    fields = [bone_distances(bones_of(pose(right=joints)), (SIZE, SIZE)).sqrt() for joints in (before, after)]
    (old, new), hands = (field[:, 40:41] for field in fields), fields[1][:, :20].amin(1, keepdim=True)
    picture = torch.where(old < 0.8, 1.0, -1.0).expand(1, 3, SIZE, SIZE)
    base = carry(picture, NO_MASK, pose(right=after), pose(right=before)).base[:, :1]
    assert base[(new < 0.6) & (hands > 1.5)].min() > 0.5
    assert base[(old < 0.6) & (new > 1.5) & (hands > 1.5)].max() < 0
