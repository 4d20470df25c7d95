from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from trainer_fixtures import SIZE, sample, write_dataset

from handdata.pipeline.shards import list_shards, read_index
from handdata.pipeline.storage import Storage
from handdata.schemas import UsageError
from handdata.trainer.autoencoders import PixelAutoencoder
from handdata.trainer.conditioning import Task
from handdata.trainer.pairs import (
    INDEX_COLUMNS,
    STILL,
    VIDEO,
    VIEW,
    PairDataset,
    PositionSampler,
    pair_conditions,
    shuffled_order,
)
from handdata.trainer.presets import AugmentationConfig, PairConfig


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Two videos by two cameras at 10 frames a second, one without time stamps, and three stills."""
    samples = [sample("wave", frame, camera, timestamp_s=frame / 10) for frame in range(20) for camera in "ab"]
    samples += [sample("untimed", frame, camera) for frame in range(0, 40, 2) for camera in "ab"]
    samples += [sample(f"still{number}", 0) for number in range(3)]
    samples += [sample("hidden", 0, flags=["unlabelled_hand"])]
    storage = Storage(tmp_path_factory.mktemp("workspace"))
    write_dataset(storage, samples)
    return storage


def dataset(storage: Storage, seed: int = 0, **weights: float) -> PairDataset:
    return PairDataset(storage, image_size=32, split="train", pairs=PairConfig.model_validate(weights), seed=seed)


def rows_of(storage: Storage) -> list[dict[str, object]]:
    index = read_index(storage, list_shards(storage), INDEX_COLUMNS)
    return [row for row in index.to_dicts() if not row["flags"]]


def test_each_row_is_a_target_once_an_epoch(storage: Storage) -> None:
    pairs = dataset(storage)
    for epoch in range(2):
        targets = [pairs.rows_at(epoch * len(pairs) + index)[0] for index in range(len(pairs))]
        assert sorted(targets) == list(range(83))


def test_epochs_and_seeds_have_their_own_order_and_equal_ones_agree(storage: Storage) -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int | None, int]]:
        pairs = dataset(storage, seed)
        return [pairs.rows_at(epoch * len(pairs) + index) for index in range(len(pairs))]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_references_are_another_moment_another_view_or_none(storage: Storage) -> None:
    pairs = dataset(storage, max_gap_s=0.5, max_gap_frames=6)
    rows = rows_of(storage)
    gaps: dict[str, set[int]] = {"wave": set(), "untimed": set()}
    for position in range(20 * len(pairs)):
        target, reference, kind = pairs.rows_at(position)
        if reference is None:
            assert kind == STILL
            continue
        one, other = rows[target], rows[reference]
        assert reference != target
        assert one["sequence_id"] == other["sequence_id"]
        gap = abs(one["frame_index"] - other["frame_index"])  # type: ignore[operator]
        if kind == VIDEO:
            assert one["camera_id"] == other["camera_id"]
            gaps[str(one["sequence_id"])].add(gap)
        else:
            assert kind == VIEW
            assert (gap, one["camera_id"] != other["camera_id"]) == (0, True)
    assert gaps["wave"] == {1, 2, 3, 4, 5}  # up to 0.5 s at 10 frames a second
    assert gaps["untimed"] == {2, 4, 6}  # up to 6 frames


def test_kinds_of_pairs_are_mixed_by_weight_where_a_row_has_them(storage: Storage) -> None:
    pairs = dataset(storage, video=0.5, view=0.25, still=0.25)
    rows = rows_of(storage)
    kinds: Counter[int] = Counter()
    for position in range(30 * len(pairs)):
        target, _, kind = pairs.rows_at(position)
        if str(rows[target]["sequence_id"]).startswith("still"):
            assert kind == STILL
        else:
            kinds[kind] += 1
    assert kinds[VIDEO] / kinds.total() == pytest.approx(0.5, abs=0.04)
    assert kinds[VIEW] / kinds.total() == pytest.approx(0.25, abs=0.04)


def test_rows_without_a_wanted_kind_of_pair_are_left_out(storage: Storage) -> None:
    assert len(dataset(storage, still=0.0)) == 80


def test_loader_workers_share_the_positions_without_overlap(storage: Storage) -> None:
    pairs = dataset(storage)

    def batches(workers: int) -> list[torch.Tensor]:
        loader = DataLoader(
            pairs,
            batch_size=8,
            sampler=PositionSampler(5, 53),
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
        return [batch.target_image for batch in loader]

    alone, shared = batches(0), batches(2)
    assert torch.equal(torch.cat(alone), torch.cat(shared))
    assert sum(map(len, alone)) == 48


def test_a_still_has_an_empty_reference_condition(storage: Storage) -> None:
    pairs = dataset(storage, video=0, view=0, still=1)
    pair = pairs[0]
    assert bool(pair.reference_dropped)
    assert int(pair.task) == Task.POSE_CHANGE
    batch = type(pair)(*(field[None] for field in pair))
    target_cond, ref_cond, _ = pair_conditions(batch, PixelAutoencoder())
    assert target_cond[:, :21].abs().sum(dim=(2, 3)).min() > 0
    assert not ref_cond.any()


def test_keypoints_are_resized_with_their_picture(storage: Storage) -> None:
    pairs = dataset(storage)
    row = pairs.find("synthetic/train/wave/000003-a")
    frame, stored = pairs.frame(row), sample("wave", 3, "a", timestamp_s=0.3)
    np.testing.assert_allclose(frame.keypoints[:21], (stored.keypoints_2d[:21] + 0.5) * (32 / SIZE) - 0.5, atol=1e-5)


def test_an_unknown_sample_is_named(storage: Storage) -> None:
    with pytest.raises(UsageError, match="no sample nobody"):
        dataset(storage).find("nobody")


def test_padding_outside_the_picture_has_no_weight(tmp_path: Path) -> None:
    write_dataset(Storage(tmp_path), [sample("edge", 0, pad_ltrb=(6.0, 0.0, 0.0, 11.2))])
    pairs = PairDataset(Storage(tmp_path), image_size=SIZE, split="train")
    weight = pairs[0].target_weight[0]
    assert not weight[:, :6].any()
    assert not weight[-12:].any()
    assert (weight[:-12, 6:] == 255).all()


def test_augmented_pairs_are_the_same_for_the_same_position(storage: Storage) -> None:
    def made() -> PairDataset:
        return PairDataset(storage, image_size=32, split="train", augmentation=AugmentationConfig(), seed=3)

    first, again = made()[17], made()[17]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first.target_image, made()[18].target_image)


def test_rows_are_shuffled_within_a_few_row_groups() -> None:
    groups = np.stack([np.zeros(6400, int), np.arange(6400) // 100], axis=1)
    order = shuffled_order(groups, np.random.default_rng(0))
    assert sorted(order) == list(range(6400))
    assert all(len(set(groups[order[start : start + 1600], 1])) == 16 for start in range(0, 6400, 1600))
    assert len(set(groups[order[:50], 1])) > 8


def test_a_split_without_usable_rows_is_refused(tmp_path: Path) -> None:
    write_dataset(Storage(tmp_path), [sample("hidden", 0, flags=["unlabelled_hand"])])
    with pytest.raises(UsageError, match="no usable pairs"):
        PairDataset(Storage(tmp_path), image_size=32, split="train")
