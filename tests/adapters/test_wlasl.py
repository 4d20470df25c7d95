"""WLASL: every frame of every clip that is there becomes a record, and nothing is cut a second time."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from handdata.adapters import wlasl
from handdata.adapters.roots import find_root
from handdata.adapters.wlasl import WlaslAdapter
from handdata.pipeline.annotation.frames import open_frames
from handdata.schemas import HandRecord, LayoutError, RecordError, Rejection, RejectReason
from tests.fixtures.wlasl import BOX, HEIGHT, WIDTH, instance, write_clip, write_labels, write_wlasl, youtube


def ingest(root: Path) -> list[HandRecord | Rejection]:
    adapter = WlaslAdapter()
    root = find_root(WlaslAdapter, root)
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def ingest_clip(root: Path, entry: dict[str, Any], **clip: Any) -> list[HandRecord]:
    write_labels(root, {"book": [entry]})
    write_clip(root / "videos" / f"{entry['video_id']}.mp4", **clip)
    rows = ingest(root)
    assert all(isinstance(row, HandRecord) for row in rows), rows
    return [row for row in rows if isinstance(row, HandRecord)]


def ingest_labels(root: Path, instances: Sequence[Any]) -> list[HandRecord | Rejection]:
    write_labels(root, {"book": instances})
    write_clip(root / "videos/00335.mp4")
    return ingest(root)


def test_every_frame_of_a_clip_is_a_record_in_the_label_s_split(tmp_path: Path) -> None:
    write_wlasl(tmp_path)
    records = [row for row in ingest(tmp_path) if isinstance(row, HandRecord)]
    assert [record.record_id for record in records] == [
        f"wlasl/{split}/{clip}/{frame:06d}-0"
        for split, clip in (("test", "01011"), ("train", "00335"), ("train", "00336"), ("val", "00337"))
        for frame in range(3)
    ]
    assert {(record.width, record.height, record.viewpoint) for record in records} == {(WIDTH, HEIGHT, "exo")}
    assert all(record.video_frame == record.frame_index for record in records)
    assert {record.subject_id for record in records} == {"118", "7"}


def test_the_pixels_are_those_of_the_frame_s_number(tmp_path: Path) -> None:
    records = ingest_clip(tmp_path, instance("00335", "train"))
    greys = [float(image.mean()) for _, image in open_frames(records) if not isinstance(image, RecordError)]
    assert greys == pytest.approx([20, 60, 100], abs=4)


def test_both_hands_are_unknown_without_joints_camera_or_mask(tmp_path: Path) -> None:
    record = ingest_clip(tmp_path, instance("00335", "train"))[0]
    assert record.hand_state == ("unknown", "unknown")
    assert not record.keypoints_valid.any() and not record.keypoints_2d.any()
    assert (record.keypoints_3d, record.camera_k, record.has_mask) == (None, None, False)
    with pytest.raises(RecordError, match="wlasl has no masks"):
        WlaslAdapter().open_mask(record)


@pytest.mark.parametrize(("frame_start", "frame_end"), [(5710, 5800), (2, 3)])
def test_a_clip_that_was_cut_is_not_cut_again(tmp_path: Path, frame_start: int, frame_end: int) -> None:
    assert len(ingest_clip(tmp_path, youtube("00335", "train", frame_start, frame_end), frames=6)) == 6


def test_a_copied_clip_has_the_times_of_its_own_rate(tmp_path: Path) -> None:
    records = ingest_clip(tmp_path, instance("00335", "train"), rate=Fraction(30000, 1001))
    assert [record.timestamp_s for record in records] == pytest.approx([0, 1001 / 30000, 2002 / 30000], abs=1e-4)


@pytest.mark.parametrize(
    ("entry", "rate", "known"),
    [
        (youtube("00335", "train", 10, 12), 25, False),
        (youtube("00335", "train", 10, 12), 30, True),  # not written by the start kit
        (youtube("00335", "train", 1, -1), 25, True),  # copied whole
        (instance("00335", "train", frame_end=60), 25, True),
        (instance("00335", "train", url=-5), 30, False),  # nothing says how it was made
        (youtube("00335", "train", 10, 12) | {"frame_end": "12"}, 25, False),
    ],
)
def test_a_clip_that_the_start_kit_wrote_at_its_own_rate_has_no_times(
    tmp_path: Path, entry: dict[str, Any], rate: int, known: bool
) -> None:
    records = ingest_clip(tmp_path, entry, rate=Fraction(rate))
    assert [record.timestamp_s is not None for record in records] == [known] * 3


@pytest.mark.parametrize(
    ("box", "size", "kept"),
    [
        (BOX, (WIDTH, HEIGHT), True),
        ([300, 40, 500, 480], (WIDTH, HEIGHT), False),  # of the source's resolution
        (BOX, (256, 256), False),  # the authors' own clips
        (None, (WIDTH, HEIGHT), False),
    ],
)
def test_the_person_s_box_is_kept_where_it_can_belong_to_the_clip(
    tmp_path: Path, box: Any, size: tuple[int, int], kept: bool
) -> None:
    record = ingest_clip(tmp_path, instance("00335", "train", bbox=box), size=size, frames=1)[0]
    assert record.extra == ({"person_box_xyxy_px": BOX} if kept else None)


@pytest.mark.parametrize("box", [["a", 0, 1, 2], [1, 2, 3], "box", 7, {}, [1, 2, 3, "4"], [True, 0, 1, 2]])
def test_a_box_that_is_none_rejects_its_clip(tmp_path: Path, box: Any) -> None:
    write_clip(tmp_path / "videos/00335.mp4", frames=1)
    (row,) = ingest_labels(tmp_path, [instance("00335", "train", bbox=box)])
    assert isinstance(row, Rejection) and row.reason is RejectReason.LABEL_CORRUPT


@pytest.mark.parametrize("signer", [-1, None, "x"])
def test_an_unnamed_signer_is_nobody(tmp_path: Path, signer: Any) -> None:
    assert ingest_clip(tmp_path, instance("00335", "train", signer_id=signer), frames=1)[0].subject_id is None


def test_vanished_and_empty_clips_are_one_rejection_each(tmp_path: Path) -> None:
    write_wlasl(tmp_path)
    rejected = {row.record_id: row.reason for row in ingest(tmp_path) if isinstance(row, Rejection)}
    assert rejected == {
        "wlasl/train/00338/000000-0": RejectReason.IMAGE_MISSING,
        "wlasl/train/01012/000000-0": RejectReason.FRAME_MISSING,
    }


@pytest.mark.parametrize("video_id", ["../../outside", "/etc/passwd", "a\0b", "\ud800"])
def test_a_clip_name_that_leaves_the_root_is_rejected_alone(tmp_path: Path, video_id: str) -> None:
    rows = ingest_labels(tmp_path, [instance(video_id, "val"), instance("00335", "train")])
    (bad,) = (row for row in rows if isinstance(row, Rejection))
    assert bad.reason == RejectReason.PATH_ESCAPES_ROOT
    assert len(rows) == 4


@pytest.mark.parametrize("bad", ["text", {}, {"video_id": 335, "split": "train"}, {"video_id": "1", "split": "dev"}])
def test_a_malformed_instance_is_rejected_once(tmp_path: Path, bad: Any) -> None:
    rows = ingest_labels(tmp_path, [bad, instance("00335", "train")])
    (row,) = (row for row in rows if isinstance(row, Rejection))
    assert (row.reason, row.record_id) == (RejectReason.LABEL_CORRUPT, "wlasl/train/entry 0, instance 0")


def test_a_truncated_label_file_is_reported_once(tmp_path: Path) -> None:
    path = write_labels(tmp_path, {"book": [instance("00335", "train")], "drink": [instance("00336", "val")]})
    write_clip(tmp_path / "videos/00335.mp4")
    path.write_text(path.read_text()[:-30])
    rows = ingest(tmp_path)
    assert [row.sequence_id for row in rows if isinstance(row, HandRecord)] == ["00335"] * 3
    (bad,) = (row for row in rows if isinstance(row, Rejection))
    assert (bad.reason, bad.image_uri) == (RejectReason.LABEL_CORRUPT, str(path.resolve()))


def test_blocks_share_the_clips_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wlasl, "CLIPS_PER_PARTITION", 2)
    write_labels(tmp_path, {"book": [instance(f"{number:05d}", "train") for number in range(5)]})
    for number in range(5):
        write_clip(tmp_path / f"videos/{number:05d}.mp4", frames=1)
    assert len(list(WlaslAdapter().partitions(tmp_path))) == 9
    assert sorted(row.record_id for row in ingest(tmp_path)) == [f"wlasl/train/{n:05d}/000000-0" for n in range(5)]


def test_labels_without_clips_are_not_the_layout(tmp_path: Path) -> None:
    write_labels(tmp_path, {"book": []})
    with pytest.raises(LayoutError, match=r"looked for WLASL_v0\.3\.json"):
        find_root(WlaslAdapter, tmp_path)
