"""Heatmaps, conditions and their dropping."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from handdata.trainer.conditioning import (
    Task,
    drop_conditions,
    inside_image,
    null_conditions,
    reference_condition,
    render_heatmaps,
    target_condition,
    to_latent_pixels,
)
from handdata.trainer.presets import DropoutConfig

NOTHING = DropoutConfig(reference=0, target_keypoints=0, reference_mask=0, both=0)


def random_keypoints(count: int, width: int, height: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 42, 2, generator=generator) * torch.tensor([width, height])


def conditions(count: int) -> tuple[Tensor, Tensor, Tensor]:
    keypoints, valid = random_keypoints(count, 8, 8), torch.ones(count, 42, dtype=torch.bool)
    target = target_condition(keypoints, valid, (8, 8))
    reference = reference_condition(torch.randn(count, 4, 8, 8), keypoints, valid, torch.ones(count, 1, 16, 16))
    return target, reference, torch.full((count,), Task.VIEW_CHANGE)


def test_heatmap_is_a_normal_density_of_variance_one_latent_pixel() -> None:
    keypoints = random_keypoints(2, width=12, height=9)
    heatmaps = render_heatmaps(keypoints, torch.ones(2, 42), (9, 12))
    for n, joint, y, x in [(0, 0, 0, 0), (1, 41, 8, 11), (0, 17, 4, 7), (1, 20, 8, 3)]:
        squared = (x - keypoints[n, joint, 0]) ** 2 + (y - keypoints[n, joint, 1]) ** 2
        assert heatmaps[n, joint, y, x] == pytest.approx(float(torch.exp(-squared / 2)) / (2 * math.pi), rel=1e-5)


def test_heatmap_peaks_at_its_keypoint_with_one_over_two_pi() -> None:
    keypoints = torch.zeros(1, 42, 2)
    keypoints[0, 5] = torch.tensor([6.0, 2.0])  # x, y
    heatmap = render_heatmaps(keypoints, torch.ones(1, 42), (8, 10))[0, 5]
    assert heatmap.argmax() == 2 * 10 + 6
    assert float(heatmap.max()) == pytest.approx(1 / (2 * math.pi))


def test_heatmap_of_an_invalid_keypoint_is_zero_even_where_it_is_nan() -> None:
    keypoints = random_keypoints(1, 8, 8)
    keypoints[0, 3] = float("nan")
    valid = torch.ones(1, 42, dtype=torch.bool)
    valid[0, 3] = False
    heatmaps = render_heatmaps(keypoints, valid, (8, 8))
    assert heatmaps[0, 3].abs().max() == 0
    assert heatmaps.isfinite().all()
    assert heatmaps[0, 4].max() > 0


@given(seed=st.integers(0, 1000), width=st.integers(4, 40), height=st.integers(4, 40))
def test_heatmaps_of_mirrored_keypoints_are_the_mirrored_heatmaps(seed: int, width: int, height: int) -> None:
    keypoints, valid = random_keypoints(1, width, height, seed), torch.ones(1, 42)
    mirrored = torch.stack([width - 1 - keypoints[..., 0], keypoints[..., 1]], dim=-1)
    expected = render_heatmaps(keypoints, valid, (height, width)).flip(-1)
    torch.testing.assert_close(render_heatmaps(mirrored, valid, (height, width)), expected, atol=1e-6, rtol=0)


def test_image_pixels_are_scaled_to_latent_pixels_as_published() -> None:
    scaled = to_latent_pixels(torch.tensor([[256.0, 0.0], [128.0, 8.0]]), (256, 256), (32, 32))
    assert scaled.tolist() == [[32.0, 0.0], [16.0, 1.0]]


def test_keypoints_on_the_border_are_outside() -> None:
    corners = torch.tensor([[0.0, 5.0], [5.0, 0.0], [20.0, 5.0], [5.0, 10.0], [19.9, 9.9], [0.1, 0.1]])
    assert inside_image(corners, (10, 20)).tolist() == [False, False, False, False, True, True]


def test_conditions_hold_latent_heatmaps_and_mask_in_this_order() -> None:
    keypoints, valid = random_keypoints(2, 8, 8), torch.ones(2, 42)
    latent = torch.randn(2, 4, 8, 8)
    mask = torch.zeros(2, 1, 64, 64)
    mask[:, :, :32] = 1
    heatmaps = render_heatmaps(keypoints, valid, (8, 8))

    target = target_condition(keypoints, valid, (8, 8))
    reference = reference_condition(latent, keypoints, valid, mask)

    assert target.shape == (2, 43, 8, 8)
    assert target[:, 42].abs().max() == 0
    torch.testing.assert_close(target[:, :42], heatmaps)
    torch.testing.assert_close(reference[:, :4], latent)
    torch.testing.assert_close(reference[:, 4:46], heatmaps)
    assert reference[:, 46, :4].min() == 1
    assert reference[:, 46, 4:].max() == 0


def test_mask_is_resized_by_taking_the_pixel_at_the_top_left_of_each_cell() -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[0, 0, ::8, ::8] = 1  # what OpenCV's INTER_NEAREST, used in the published code, picks at this factor
    reference = reference_condition(torch.zeros(1, 4, 8, 8), random_keypoints(1, 8, 8), torch.ones(1, 42), mask)
    assert reference[0, -1].min() == 1


@pytest.mark.parametrize(
    ("dropped", "target_left", "reference_left", "mask_left", "task"),
    [
        ("reference", True, False, False, Task.VIEW_CHANGE),
        ("target_keypoints", False, True, True, Task.VIEW_CHANGE),
        ("reference_mask", True, True, False, Task.VIEW_CHANGE),
        ("both", False, False, False, Task.NULL),
    ],
)
def test_each_condition_is_dropped_by_its_own_probability(
    dropped: str, target_left: bool, reference_left: bool, mask_left: bool, task: Task
) -> None:
    target, reference, tasks = drop_conditions(*conditions(3), NOTHING.model_copy(update={dropped: 1.0}))
    assert bool(target.any()) == target_left
    assert bool(reference[:, :-1].any()) == reference_left
    assert bool(reference[:, -1].any()) == mask_left
    assert tasks.tolist() == [task] * 3


def test_a_still_that_loses_its_target_is_a_null_condition() -> None:
    target, reference, task = conditions(4)
    reference[:2] = 0  # two stills
    target[3] = 0  # a frame without joints
    _, _, tasks = drop_conditions(target, reference, task, NOTHING.model_copy(update={"target_keypoints": 1.0}))
    assert tasks.tolist() == [Task.NULL, Task.NULL, Task.VIEW_CHANGE, Task.VIEW_CHANGE]
    _, _, tasks = drop_conditions(target, reference, task, NOTHING.model_copy(update={"reference": 1.0}))
    assert tasks.tolist() == [Task.VIEW_CHANGE] * 3 + [Task.NULL]


def test_nothing_is_dropped_at_probability_zero_and_the_inputs_stay_untouched() -> None:
    given_conditions = conditions(3)
    copies = [tensor.clone() for tensor in given_conditions]
    kept = drop_conditions(*given_conditions, NOTHING)
    drop_conditions(*given_conditions, DropoutConfig(both=1))
    for given_tensor, copy, tensor in zip(given_conditions, copies, kept, strict=True):
        assert torch.equal(given_tensor, copy)
        assert torch.equal(tensor, copy)


def test_dropping_follows_its_probabilities_and_its_generator() -> None:
    probabilities = DropoutConfig(reference=0.3, target_keypoints=0.1, reference_mask=0, both=0.2)
    many = conditions(4000)
    target, reference, tasks = drop_conditions(*many, probabilities, torch.Generator().manual_seed(1))
    again = drop_conditions(*many, probabilities, torch.Generator().manual_seed(1))

    no_target, no_reference = ~target.flatten(1).any(1), ~reference.flatten(1).any(1)
    assert float(no_reference.float().mean()) == pytest.approx(1 - 0.7 * 0.8, abs=0.03)
    assert float(no_target.float().mean()) == pytest.approx(1 - 0.9 * 0.8, abs=0.03)
    assert torch.equal(tasks == Task.NULL, no_target & no_reference)
    assert torch.equal(again[1], reference)


def test_null_condition_is_all_zero_with_the_null_task() -> None:
    target, reference, task = null_conditions(*conditions(2))
    assert not target.any()
    assert not reference.any()
    assert task.tolist() == [2, 2]
