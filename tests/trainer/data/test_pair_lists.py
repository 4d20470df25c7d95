"""What pair lists promise: chosen by labels, the same every time, and bound to the crops that they were made of."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import AnnotatedSample, EncodedImage, UsageError
from handdata.trainer.data.pair_lists import (
    CLIP_FRAMES,
    ListedFrames,
    PairList,
    choose_pairs,
    kinds_of,
    read_pair_list,
)
from handdata.trainer.data.pairs import PairDataset
from handdata.trainer.data.reading import EncodedFrame
from handdata.trainer.evaluation import LEAST_MOTION
from handdata.trainer.presets import PairTask
from tests.fixtures.samples import sample, write_dataset

SPLIT = "val"


def a_dataset(folder: Path, samples: list[AnnotatedSample]) -> Dataset:
    write_dataset(Storage(folder), samples)
    return Dataset(Storage(folder))


def videos(frames: int = 4, cameras: str = "0", count: int = 3) -> list[AnnotatedSample]:
    return [
        sample(f"video{video}", at, camera, split=SPLIT, timestamp_s=at / 10)
        for video in range(count)
        for at in range(frames)
        for camera in cameras
    ]


def chosen(
    dataset: Dataset,
    count: int,
    least_motion: float | None = None,
    *,
    task: PairTask = "pose",
    seed: int = 0,
    on_note: Callable[[str], None] | None = None,
) -> PairList:
    pairs = PairDataset(dataset, image_size=32, split=SPLIT, pairs=kinds_of(task), seed=seed)
    return choose_pairs(pairs, task, count, split=SPLIT, least_motion=least_motion, on_note=on_note)


def test_only_pairs_that_move_are_chosen_and_none_twice(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path, videos())
    every = chosen(dataset, 100, 0).pairs
    assert len({(pair.target, pair.reference) for pair in every}) == len(every) == 3 * 4 * 3  # ordered, of four frames
    assert len({pair.id for pair in every}) == len(every)
    motions = sorted(pair.motion for pair in every)
    least = motions[10] - 1e-4
    assert sorted(pair.motion for pair in chosen(dataset, 100, least).pairs) == motions[10:]
    assert len(chosen(dataset, 5, 0).pairs) == 5
    with pytest.raises(UsageError, match="moves 99 hand lengths"):
        chosen(dataset, 10, 99)


def test_slow_videos_give_the_half_of_their_pairs_that_moves_most(tmp_path: Path) -> None:
    still = sample("slow", 0, split=SPLIT).keypoints_2d
    samples = [
        sample("slow", at, split=SPLIT, timestamp_s=at / 10, keypoints_2d=still + np.float32(0.1 * at))
        for at in range(4)
    ]
    dataset = a_dataset(tmp_path, samples)
    every = sorted(pair.motion for pair in chosen(dataset, 12, 0).pairs)
    assert every[-1] < LEAST_MOTION
    faster = chosen(dataset, 12)
    assert sorted(pair.motion for pair in faster.pairs) == [motion for motion in every if motion >= np.median(every)]
    assert "the half whose joints move at least" in faster.rule
    with pytest.raises(UsageError, match=r"moves 0\.3 hand lengths"):
        chosen(dataset, 12, 0.3)


def test_frames_without_joints_are_left_out(tmp_path: Path) -> None:
    nothing = np.zeros((42, 2), np.float32), np.zeros(42, bool)
    hidden = dict(zip(("keypoints_2d", "keypoints_valid"), nothing, strict=True))
    samples = [sample("wave", at, split=SPLIT, timestamp_s=at / 10, **(hidden if at % 2 else {})) for at in range(6)]
    dataset = a_dataset(tmp_path, samples)
    pairs = chosen(dataset, 12, 0)
    assert len(pairs.pairs) == 3 * 2
    frames = ListedFrames(dataset, pairs)
    assert all(frames.frame(pair.target).valid.any() for pair in pairs.pairs)


def test_an_image_that_cannot_be_decoded_is_passed_over_and_said_to_be(tmp_path: Path) -> None:
    samples = videos(count=1)
    samples[1] = samples[1].model_copy(update={"image": EncodedImage(bytes=b"no image")})
    notes: list[str] = []
    pairs = chosen(a_dataset(tmp_path, samples), 12, 0, on_note=notes.append)
    assert len(pairs.pairs) == 3 * 2
    assert [note.split(":")[0].rpartition("/")[2].partition(", ")[2] for note in notes] == ["row 1"]


def test_views_are_of_one_moment_and_clips_are_runs_of_one_camera(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path, videos(frames=CLIP_FRAMES + 5, cameras="ab", count=2))
    for pair in chosen(dataset, 30, task="view").pairs:
        of_target, of_reference = (name.rpartition("-") for name in (pair.target, pair.reference))
        assert of_target[0] == of_reference[0]
        assert of_target[2] != of_reference[2]
    pairs = chosen(dataset, 40, task="video")
    assert len(pairs.pairs) <= 40
    named = [name for clip in pairs.clips() for name in (pairs.pairs[clip[0]].reference,
             *(pairs.pairs[number].target for number in clip))]  # fmt: skip
    assert len(set(named)) == len(named)
    for clip in pairs.clips():
        assert len({pairs.pairs[number].reference for number in clip}) == 1
        assert 1 <= len(clip) <= CLIP_FRAMES
        names = [pairs.pairs[clip[0]].reference, *(pairs.pairs[number].target for number in clip)]
        at = [int(name.rpartition("/")[2].partition("-")[0]) for name in names]
        assert at == list(range(at[0], at[0] + len(at)))
        assert len({name.rpartition("-")[2] for name in names}) == 1
    with pytest.raises(UsageError, match="--min-motion"):
        chosen(dataset, 10, 0.1, task="video")


def test_a_list_is_the_same_every_time_and_another_with_another_seed(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path / "a", videos())
    first = chosen(dataset, 9, 0)
    assert chosen(dataset, 9, 0).encode() == first.encode()
    assert chosen(a_dataset(tmp_path / "elsewhere", videos()), 9, 0).encode() == first.encode()
    assert str(tmp_path) not in first.encode().decode()
    other = chosen(dataset, 9, 0, seed=1)
    assert other.sha256 != first.sha256
    assert {pair.id for pair in other.pairs}.isdisjoint(pair.id for pair in first.pairs)


def test_the_choice_decodes_the_chosen_frames_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 0
    decode = EncodedFrame.decode

    def counted(frame: EncodedFrame, *arguments: object) -> object:
        nonlocal decoded
        decoded += 1
        return decode(frame, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(EncodedFrame, "decode", counted)
    dataset = a_dataset(tmp_path, videos(frames=40))
    pairs = chosen(dataset, 5)
    assert decoded == len({name for pair in pairs.pairs for name in (pair.target, pair.reference)}) <= 10


@dataclass
class Change:
    """How a dataset differs from the one that a list was made of."""

    of: Callable[[AnnotatedSample], dict[str, object]]
    said: str


@pytest.mark.parametrize(
    "change",
    [
        Change(lambda row: {"image": EncodedImage(bytes=row.image.bytes + b"\0")}, "another crop"),
        Change(lambda row: {"hand_mask": None}, "another crop"),
        Change(lambda row: {"keypoints_2d": row.keypoints_2d + np.float32(0.25)}, "another crop"),
        Change(lambda row: {"sample_id": f"{row.sample_id}x", "record_id": f"{row.record_id}x"}, "does not hold"),
    ],
    ids=["image", "mask", "keypoints", "name"],
)
def test_a_dataset_with_another_crop_is_refused(tmp_path: Path, change: Change) -> None:
    pairs = chosen(a_dataset(tmp_path / "a", videos()), 36, 0)
    ListedFrames(a_dataset(tmp_path / "copy", videos()), pairs)
    samples = videos()
    samples[5] = samples[5].model_copy(update=change.of(samples[5]))
    with pytest.raises(UsageError, match=f"{change.said}.* 1 of the pair list's samples: .*video1"):
        ListedFrames(a_dataset(tmp_path / "b", samples), pairs)


def test_frames_are_read_at_the_lists_size(tmp_path: Path) -> None:
    dataset = a_dataset(tmp_path, videos())
    pairs = chosen(dataset, 4, 0)
    frame = ListedFrames(dataset, pairs).frame(pairs.pairs[0].target)
    assert frame.image.shape == (32, 32, 3)
    assert frame.mask.shape == (32, 32)


def test_a_list_that_was_changed_or_is_none_is_refused(tmp_path: Path) -> None:
    pairs = chosen(a_dataset(tmp_path / "a", videos()), 6, 0)
    file = tmp_path / "pairs.json"
    file.write_bytes(pairs.encode())
    assert read_pair_list(file) == pairs
    changed = json.loads(file.read_text())
    changed["pairs"] = changed["pairs"][:3]
    file.write_text(json.dumps(changed))
    with pytest.raises(UsageError, match=r"pairs\.json was changed"):
        read_pair_list(file)
    for text in ("[]", "{", "", json.dumps({**changed, "format": "handdata pair list 9"}), "\x00"):
        file.write_text(text)
        with pytest.raises(UsageError, match=r"pairs\.json is no pair list"):
            read_pair_list(file)
    with pytest.raises(UsageError, match=r"cannot read .*nowhere\.json"):
        read_pair_list(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("of_pair", "of_list", "words"),
    [
        ({"id": "twice"}, {}, "one id"),
        ({"reference_sha256": "0" * 64}, {}, "two hashes"),
        ({"motion": float("inf")}, {}, "motion"),
        ({}, {"size": 10**9}, "size"),
    ],
)
def test_a_list_that_another_program_made_wrongly_is_refused(
    tmp_path: Path, of_pair: dict[str, object], of_list: dict[str, object], words: str
) -> None:
    made = chosen(a_dataset(tmp_path, videos()), 36, 0)
    pairs = tuple(pair.model_copy(update=of_pair if number < 2 else {}) for number, pair in enumerate(made.pairs))
    wrong = made.model_copy(update={"pairs": pairs, **of_list})
    wrong = wrong.model_copy(update={"sha256": wrong.hash()})
    (tmp_path / "pairs.json").write_text(json.dumps(wrong.model_dump(mode="json")))
    with pytest.raises(UsageError, match=words):
        read_pair_list(tmp_path / "pairs.json")


@pytest.mark.parametrize("task", ["pose", "video"])
def test_a_small_dataset_is_given_up_once_it_has_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: PairTask
) -> None:
    dataset = a_dataset(tmp_path, videos())
    expected = chosen(dataset, 100, 0 if task == "pose" else None, task=task).pairs
    asked: list[int] = []
    rows_at = PairDataset.rows_at

    def counted(pairs: PairDataset, position: int) -> tuple[int, int | None, object]:
        asked.append(position)
        return rows_at(pairs, position)

    monkeypatch.setattr(PairDataset, "rows_at", counted)
    assert chosen(dataset, 10**9, 0 if task == "pose" else None, task=task).pairs == expected
    assert len(asked) < 20_000
