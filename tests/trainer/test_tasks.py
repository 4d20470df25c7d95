import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
import torch

from handdata.pictures.png import encode_png
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import UsageError
from handdata.trainer.autoencoders import PixelAutoencoder
from handdata.trainer.conditioning import Task
from handdata.trainer.data.augment import Frame, resize
from handdata.trainer.data.pairs import PairDataset
from handdata.trainer.figures import draw_skeleton, figure, grid
from handdata.trainer.model import DiT
from handdata.trainer.poses import pose_frame, read_poses
from handdata.trainer.presets import PRESETS, GeometryConfig, ModelConfig, SamplingOptions
from handdata.trainer.tasks import Sampler, gesture_transfer, repair, unconditional, video
from tests.fixtures.samples import sample, write_dataset

PRESET = PRESETS["tiny"].model_copy(
    update={"model": ModelConfig(input_size=32, patch_size=8, latent_channels=3, hidden_size=32, depth=1, num_heads=2)}
)


@pytest.fixture
def dataset(tmp_path: Path) -> PairDataset:
    write_dataset(Storage(tmp_path), [sample("wave", frame) for frame in range(3)])
    return PairDataset(Dataset(Storage(tmp_path)), image_size=32, split="train")


@pytest.fixture
def network() -> DiT:
    torch.manual_seed(0)
    model = DiT(**PRESET.model.model_dump())
    torch.nn.init.normal_(model.final_layer.linear.weight, std=0.1)
    return model.eval()


def sampler(network: DiT) -> Sampler:
    return Sampler(network, PixelAutoencoder(), PRESET)


def test_gesture_transfer_draws_an_image_for_each_pair(dataset: PairDataset, network: DiT) -> None:
    references, targets = [dataset.frame(0), dataset.frame(1)], [dataset.frame(1), dataset.frame(2)]

    def draw(seed: int) -> np.ndarray:
        return gesture_transfer(sampler(network), references, targets, SamplingOptions(2, seed=seed))

    images = draw(0)
    assert (images.shape, images.dtype) == ((2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(images, draw(0))
    assert (images != draw(1)).any()


def test_gesture_transfer_takes_a_pose_without_an_image(dataset: PairDataset, network: DiT) -> None:
    target = dataset.frame(1)
    pose = pose_frame(target.keypoints, target.valid, 32)

    def draw(frame: object) -> np.ndarray:
        return gesture_transfer(sampler(network), [dataset.frame(0)], [frame], SamplingOptions(2))  # type: ignore[list-item]

    np.testing.assert_array_equal(draw(target), draw(pose))


def test_the_task_reaches_the_network(dataset: PairDataset, network: DiT) -> None:
    torch.nn.init.normal_(network.task_embedding.weight)
    torch.nn.init.normal_(network.final_layer.modulation.weight, std=0.1)

    def draw(task: Task) -> np.ndarray:
        frames = [dataset.frame(0)], [dataset.frame(1)]
        return gesture_transfer(sampler(network), *frames, SamplingOptions(2), task=task)

    assert (draw(Task.POSE_CHANGE) != draw(Task.VIEW_CHANGE)).any()


def test_unconditional_images_are_those_of_the_null_condition(network: DiT) -> None:
    asked: list[tuple[torch.Tensor, ...]] = []
    network.register_forward_pre_hook(lambda _, inputs: asked.append(inputs))
    images = unconditional(sampler(network), 3, SamplingOptions(2))
    assert images.shape == (3, 32, 32, 3)
    assert len(asked) == 2
    for _, _, target_cond, ref_cond, task in asked:
        assert not target_cond.any()
        assert not ref_cond.any()
        assert (task == Task.NULL).all()
    assert grid(list(images), tile_px=32).shape == (2 * 36, 2 * 36, 3)


def test_frames_of_a_video_start_from_one_noise_and_are_shown_the_frame_before(
    dataset: PairDataset, network: DiT
) -> None:
    shown: list[tuple[torch.Tensor, ...]] = []
    network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs))
    reference, targets = dataset.frame(0), [dataset.frame(row) for row in (1, 2, 1)]
    frames = video(sampler(network), [reference], targets, SamplingOptions(steps=20, guidance_scale=1.0))
    assert frames.shape == (3, 32, 32, 3)
    starts = [inputs[0] for inputs in shown[::20]]
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2])
    references = [inputs[3] for inputs in shown]
    assert all(torch.equal(each, references[0]) for each in references[:20])
    for number in (1, 2):
        made = [each for each in references[20 * number : 20 * (number + 1)] if not torch.equal(each, references[0])]
        assert 3 < len(made) < 17
        assert all(torch.equal(each, made[0]) for each in made)
        latent = torch.from_numpy(frames[number - 1]).permute(2, 0, 1) / 127.5 - 1
        assert (made[0][0, :3].clamp(-1, 1) - latent).abs().max() < 1 / 127
        assert not made[0][:, -1].any()  # no mask
        assert made[0][:, 3:-1].any()  # the pose that it was asked for


def test_several_recent_frames_of_a_video_are_references_in_turn(dataset: PairDataset, network: DiT) -> None:
    shown: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[3]))
    drawn: list[tuple[int, np.ndarray]] = []
    frames = video(
        sampler(network),
        [dataset.frame(0), dataset.frame(1)],
        [dataset.frame(row) for row in (2, 0, 1, 2)],
        SamplingOptions(steps=20, guidance_scale=1.0),
        recent=2,
        on_image=lambda number, image: drawn.append((number, image)),
    )
    of_frame = [{each.numpy().tobytes() for each in shown[20 * number : 20 * (number + 1)]} for number in range(4)]
    given = of_frame[0]
    assert [len(each) for each in of_frame] == [2, 3, 4, 4]
    assert all(given < each for each in of_frame[1:])
    first, second = of_frame[1] - given, of_frame[2] - of_frame[1]
    assert of_frame[3].isdisjoint(first) and second < of_frame[3]
    assert [number for number, _ in drawn] == [0, 1, 2, 3]
    np.testing.assert_array_equal(np.stack([image for _, image in drawn]), frames)


def test_one_step_shows_each_frame_of_a_video_the_reference_of_the_nearest_pose(
    dataset: PairDataset, network: DiT
) -> None:
    def moved(by: float, size: int = 32) -> Frame:
        frame = resize(dataset.frame(0), size)
        keypoints = frame.keypoints + frame.valid[:, None] * np.float32(by * size / 32)
        return replace(frame, keypoints=keypoints, image=np.full_like(frame.image, 10 * by))

    shown: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: shown.append(round(float(inputs[3][0, 0].mean() + 1) * 12.75)))
    unknown = replace(moved(3), valid=np.zeros(42, bool))
    references = [unknown, moved(2), moved(9, size=64), moved(5)]
    video(sampler(network), references, [moved(4), moved(1), moved(10)], SamplingOptions(steps=1, guidance_scale=1.0))
    assert shown == [5, 2, 9]


@pytest.mark.parametrize("residual", ["reference", "carried"])
def test_a_network_that_changes_its_reference_is_not_asked_to_draw_without(
    dataset: PairDataset, network: DiT, residual: Literal["reference", "carried"]
) -> None:
    model = PRESET.model.model_copy(update={"geometry": GeometryConfig(residual=residual)})
    draws = Sampler(network, PixelAutoencoder(), PRESET.model_copy(update={"model": model}))
    with pytest.raises(UsageError, match="needs a reference"):
        unconditional(draws, 1)
    with pytest.raises(UsageError, match="needs a reference"):
        repair(draws, dataset.frame(0), np.ones((32, 32), bool))


def test_repair_draws_the_region_and_keeps_the_rest(dataset: PairDataset, network: DiT) -> None:
    frame = dataset.frame(0)
    region = np.zeros((32, 32), bool)
    region[8:24, 8:20] = True

    def draw(seed: int) -> np.ndarray:
        return repair(sampler(network), frame, region, SamplingOptions(12, seed=seed), resamples=2)

    drawn = draw(0)
    np.testing.assert_array_equal(drawn[~region], frame.image[~region])
    assert (drawn[region] != frame.image[region]).mean() > 0.5
    np.testing.assert_array_equal(drawn, draw(0))
    assert (drawn != draw(1)).any()


def test_the_figure_has_a_row_a_pair_and_grey_where_the_truth_is_unknown(dataset: PairDataset) -> None:
    target = dataset.frame(1)
    pose = pose_frame(target.keypoints, target.valid, 32)
    picture = figure([dataset.frame(0)] * 2, [target, pose], [target.image, target.image], tile_px=64)
    assert picture.shape == (2 * 68, 4 * 68, 3)
    assert (picture[68 + 2 : 68 + 66, 2 * 68 + 2 : 2 * 68 + 66] == 128).all()
    decoded = cv2.imdecode(np.frombuffer(encode_png(picture), np.uint8), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(decoded, picture)


def test_the_skeleton_passes_through_its_joints() -> None:
    keypoints = np.zeros((42, 2), np.float32)
    keypoints[[0, 5]] = [[10, 20], [50, 40]]
    valid = np.isin(np.arange(42), [0, 5])
    drawn = draw_skeleton(64, keypoints, valid)
    assert drawn[20, 10].any()
    assert drawn[30, 30].any()
    assert drawn[40, 50].any()
    assert not draw_skeleton(64, keypoints, np.zeros(42, bool)).any()


def test_keypoints_are_read_from_numpy_and_json(tmp_path: Path) -> None:
    keypoints = np.zeros((42, 2), np.float32)
    keypoints[:21] = np.arange(42).reshape(21, 2) + 1
    np.save(tmp_path / "pose.npy", keypoints)
    rows = [[float(x), float(y)] if x else None for x, y in keypoints]
    (tmp_path / "pose.json").write_text(json.dumps(rows))
    for name in ("pose.npy", "pose.json"):
        (found,) = read_poses(tmp_path / name)
        np.testing.assert_array_equal(found.keypoints, keypoints)
        np.testing.assert_array_equal(found.valid, np.arange(42) < 21)
        assert found.size is None


@pytest.mark.parametrize(
    "text", ["", "{}", "[[1, 2]]", '{"a": 1}', "3", json.dumps([None] * 42), json.dumps([["a", "b"]] * 42)]
)
def test_a_file_that_holds_no_keypoints_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "pose.json").write_text(text)
    with pytest.raises(UsageError, match="expected 42 rows"):
        read_poses(tmp_path / "pose.json")


def test_whatever_a_keypoint_file_holds_is_an_error_of_one_kind(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", np.full((42, 2), 5.0))
    whole = (tmp_path / "whole.npy").read_bytes()
    contents = {
        "empty.npy": b"",
        "cut.npy": whole[:-30],
        "head.npy": whole[:40],
        "huge.npy": whole.replace(b"(42, 2)", b"(4200000000000, 2)"),
        "text.npy": b"[[1, 2]]",
        "deep.json": b"[" * 100_000,
        "latin.json": '["\xe9"]'.encode("latin-1"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="expected 42 rows"):
            read_poses(tmp_path / name)
