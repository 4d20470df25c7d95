"""Ego4D: key frames of clips with hints, HInt's joints on the right rows, one record a frame."""

import json
from pathlib import Path
from typing import Any

import pytest

from handdata.adapters import ego4d
from handdata.adapters.ego4d import Ego4dAdapter
from handdata.adapters.roots import find_root
from handdata.pipeline.annotation.frames import open_frames
from handdata.schemas import HandRecord, RecordError, Rejection, RejectReason
from tests.fixtures.ego4d import (
    ACTION,
    CLIP_A,
    CLIP_B,
    CLIP_C,
    FRAMES,
    HEIGHT,
    OTHER_ACTION,
    WIDTH,
    action,
    hands_clip,
    hint_points,
    key_frame,
    scod_frame,
    video_of,
    write_clip,
    write_ego4d,
    write_hands,
    write_hint,
    write_metadata,
    write_scod,
)


def ingest(root: Path) -> list[HandRecord | Rejection]:
    adapter = Ego4dAdapter()
    root = find_root(Ego4dAdapter, root)
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def records_of(root: Path) -> dict[str, HandRecord]:
    return {row.record_id: row for row in ingest(root) if isinstance(row, HandRecord)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ego4d")
    write_ego4d(root)
    return root


def assert_hand_is(record: HandRecord, side: str, seed: int, first_joint: int = 0) -> None:
    first = {"right": 0, "left": 21}[side]
    for joint in range(first_joint, 21):
        expected = (10.25 + 3 * joint + seed, 8.5 + 2 * joint)
        assert record.keypoints_2d[first + joint] == pytest.approx(expected, abs=0.001)
        assert record.keypoints_valid[first + joint]


def test_each_key_frame_is_a_record_of_its_clip_in_the_file_s_split(dataset: Path) -> None:
    rows = ingest(dataset)
    assert [row.record_id for row in rows] == [
        f"ego4d/test/{CLIP_C}/000001-0",
        f"ego4d/test/{CLIP_C}/000004-0",
        *(f"ego4d/train/{CLIP_A}/{index:06d}-0" for index in (2, 5, 8, 11, FRAMES + 3)),
        f"ego4d/val/{CLIP_B}/000003-0",
        f"ego4d/val/{CLIP_B}/000006-0",
    ]
    (beyond,) = (row for row in rows if isinstance(row, Rejection))
    assert (beyond.reason, beyond.record_id[-8:]) == (RejectReason.FRAME_MISSING, f"{FRAMES + 3:06d}-0")


def test_the_pixels_are_those_of_the_clip_s_frame_counted_from_0(dataset: Path) -> None:
    records = [record for record in records_of(dataset).values() if record.sequence_id == CLIP_A]
    greys = [float(image.mean()) for _, image in open_frames(records) if not isinstance(image, RecordError)]
    assert greys == pytest.approx([20, 50, 80, 110], abs=4)


def test_both_hands_of_a_frame_from_two_files_are_one_record(dataset: Path) -> None:
    record = records_of(dataset)[f"ego4d/train/{CLIP_A}/000002-0"]
    assert record.hand_state == ("labelled", "labelled")
    assert_hand_is(record, "right", 0)
    assert_hand_is(record, "left", 5)


def test_the_other_hand_is_unknown_and_a_joint_at_0_0_is_not_annotated(dataset: Path) -> None:
    record = records_of(dataset)[f"ego4d/val/{CLIP_B}/000003-0"]
    assert record.hand_state == ("unknown", "labelled")
    assert (record.keypoints_valid[:22].any(), record.keypoints_valid[22:].all()) == (False, True)
    assert_hand_is(record, "left", 1, first_joint=1)


def test_hint_s_own_image_is_used_where_it_is_there_else_the_clip(dataset: Path) -> None:
    records = records_of(dataset)
    image, clip = (records[f"ego4d/val/{CLIP_B}/{index:06d}-0"] for index in (3, 6))
    assert (Path(image.image_uri).suffix, image.video_frame) == (".jpg", None)
    assert (Path(clip.image_uri).name, clip.video_frame) == (f"{CLIP_B}.mp4", 6)
    assert {(record.width, record.height) for record in (image, clip)} == {(WIDTH, HEIGHT)}


def test_centres_and_boxes_are_hints_and_never_joints(dataset: Path) -> None:
    records = records_of(dataset)
    record, later = (records[f"ego4d/train/{CLIP_A}/{index:06d}-0"] for index in (2, 5))
    assert record.extra == {
        "centres_xy_px": [[20.5, 30], [70, 40]],
        "centre_sides": ["left", "right"],
        "boxes_xyxy_px": [[10, 20, 30, 30]],  # labelled on an image of twice the size
        "box_sides": ["left"],
    }
    assert later.extra == {"centres_xy_px": [[60, 41]], "centre_sides": ["right"]}  # two actions share the frame
    assert later.hand_state == ("unknown", "unknown") and not later.keypoints_valid.any()


def test_a_record_says_who_and_when(dataset: Path) -> None:
    records = records_of(dataset)
    labelled, hint, test = (
        records[name]
        for name in (
            f"ego4d/train/{CLIP_A}/000008-0",
            f"ego4d/val/{CLIP_B}/000003-0",
            f"ego4d/test/{CLIP_C}/000004-0",
        )
    )
    assert [record.subject_id for record in (labelled, hint, test)] == ["12", "13", None]
    assert [record.timestamp_s for record in (labelled, hint, test)] == pytest.approx([8 / 30, 3 / 30, 4 / 30])
    assert (labelled.viewpoint, labelled.camera_k, labelled.has_mask, labelled.extra) == ("ego", None, False, None)
    with pytest.raises(RecordError, match="ego4d has no masks"):
        Ego4dAdapter().open_mask(labelled)


def test_a_still_outranks_a_sequence_about_the_same_hand(tmp_path: Path) -> None:
    write_hint(tmp_path / "TEST_ego4d_seq", CLIP_A, 2, "r", hint_points(9), ACTION, with_image=True)
    write_hint(tmp_path / "TEST_ego4d_img", CLIP_A, 2, "r", hint_points(0), OTHER_ACTION, with_image=True)
    (record,) = records_of(tmp_path).values()
    assert_hand_is(record, "right", 0)
    assert Path(record.image_uri).parent.name == "TEST_ego4d_img"


def test_hint_decides_the_split_of_a_clip_and_a_frame_is_never_in_two(tmp_path: Path) -> None:
    write_hands(tmp_path / "v1", "train", [hands_clip(CLIP_A, [action(pre_45=key_frame(1), pre_30=key_frame(2))])])
    write_scod(tmp_path / "v2", "test_unannotated", [(CLIP_A, {"pre_frame": scod_frame(2, [])})])
    write_hint(tmp_path / "HInt_annotation_partial/VAL_ego4d_img", CLIP_A, 2, "r", hint_points(0))
    write_clip(tmp_path / "v1", CLIP_A)
    assert [row.record_id for row in ingest(tmp_path)] == [f"ego4d/val/{CLIP_A}/{index:06d}-0" for index in (1, 2)]


def test_version_2_of_a_file_replaces_version_1_and_clips_come_from_either(tmp_path: Path) -> None:
    write_hands(tmp_path / "v1", "val", [hands_clip(CLIP_A, [action(pre_45=key_frame(1))])])
    write_hands(tmp_path / "v2", "val", [hands_clip(CLIP_B, [action(pre_45=key_frame(2))])])
    write_clip(tmp_path / "v2", CLIP_B)
    assert list(records_of(tmp_path)) == [f"ego4d/val/{CLIP_B}/000002-0"]


@pytest.mark.parametrize("pointed_at", ["", "v1", "HInt_annotation"])
def test_the_download_a_version_of_it_and_hint_alone_are_roots(dataset: Path, pointed_at: str) -> None:
    assert len(ingest(dataset / pointed_at)) == {"": 9, "v1": 7, "HInt_annotation": 3}[pointed_at]


def test_missing_clips_are_rejected_frame_by_frame(tmp_path: Path) -> None:
    write_hint(tmp_path / "HInt_annotation_partial/TRAIN_ego4d_img", CLIP_A, 2, "r", hint_points(0))
    (row,) = ingest(tmp_path)
    assert isinstance(row, Rejection)
    assert (row.reason, Path(row.image_uri).name) == (RejectReason.IMAGE_MISSING, f"{CLIP_A}.mp4")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", RejectReason.LABEL_CORRUPT),
        ([], RejectReason.LABEL_CORRUPT),
        ([{"keypoints": hint_points(0)[:20]}], RejectReason.LABEL_CORRUPT),
        ([{"keypoints": [[12, 25, y] for _, y in hint_points(0)]}], RejectReason.LABEL_CORRUPT),  # 12,25 for 12.25
        ([{"keypoints": [[*point, 1, 1] for point in hint_points(0)]}], RejectReason.LABEL_CORRUPT),
        ([{"keypoints": [[x] for x, _ in hint_points(0)]}], RejectReason.LABEL_CORRUPT),
        ([{"keypoints": [["a", "b"]] * 21}], RejectReason.LABEL_CORRUPT),
        ([{"keypoints": [[float("nan"), 1]] * 21}], RejectReason.LABEL_NOT_FINITE),
    ],
)
def test_a_malformed_hint_file_rejects_its_frame_alone(tmp_path: Path, content: Any, reason: RejectReason) -> None:
    write_hint(tmp_path / "VAL_ego4d_img", CLIP_A, 1, "l", hint_points(0), with_image=True)
    bad = write_hint(tmp_path / "VAL_ego4d_img", CLIP_A, 2, "l", hint_points(0), with_image=True)
    bad.write_text(content if isinstance(content, str) else json.dumps(content))
    record, row = ingest(tmp_path)
    assert isinstance(record, HandRecord) and isinstance(row, Rejection)
    assert row.reason == reason and str(bad.name) in row.detail


def test_keypoints_may_carry_a_third_number(tmp_path: Path) -> None:
    points = [[*point, 2] for point in hint_points(3)]
    write_hint(tmp_path / "VAL_ego4d_img", CLIP_A, 1, "l", points, with_image=True)
    (record,) = records_of(tmp_path).values()
    assert_hand_is(record, "left", 3)


def test_a_file_that_is_not_named_as_hint_s_are_is_rejected_alone(tmp_path: Path) -> None:
    write_hint(tmp_path / "VAL_ego4d_img", CLIP_A, 1, "l", hint_points(0), with_image=True)
    (tmp_path / "VAL_ego4d_img/notes.json").write_text("[]")
    row, record = ingest(tmp_path)
    assert isinstance(row, Rejection) and isinstance(record, HandRecord)
    assert (row.reason, row.record_id) == (RejectReason.LABEL_CORRUPT, "ego4d/val/VAL_ego4d_img/notes")


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (key_frame("x"), RejectReason.LABEL_CORRUPT),
        (key_frame(-1), RejectReason.LABEL_CORRUPT),
        (key_frame(2, 7), RejectReason.LABEL_CORRUPT),
        (key_frame(2, ["left_hand"]), RejectReason.LABEL_CORRUPT),
        (key_frame(2, [{"left_foot": [1, 2]}]), RejectReason.LABEL_CORRUPT),
        (key_frame(2, [{"left_hand": [1, 2, 3, 4]}]), RejectReason.LABEL_CORRUPT),
        (key_frame(2, [{"left_hand": [1, float("inf")]}]), RejectReason.LABEL_NOT_FINITE),
    ],
)
def test_a_malformed_key_frame_is_rejected_alone(tmp_path: Path, frame: Any, reason: RejectReason) -> None:
    write_hands(tmp_path, "train", [hands_clip(CLIP_A, [action(pre_45=frame, pre_30=key_frame(5, []))])])
    write_clip(tmp_path, CLIP_A)
    (row,) = (row for row in ingest(tmp_path) if isinstance(row, Rejection))
    assert row.reason == reason
    assert list(records_of(tmp_path)) == [f"ego4d/train/{CLIP_A}/000005-0"]


@pytest.mark.parametrize("change", [{"bbox": 7}, {"bbox": [7]}, {"width": 0}, {"height": "tall"}])
def test_a_malformed_box_rejects_its_frame_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    frame = scod_frame(2, [("left_hand", (1, 2, 3, 4))]) | change
    write_scod(tmp_path, "train", [(CLIP_A, {"pre_frame": frame, "pnr_frame": scod_frame(3, [])})])
    write_clip(tmp_path, CLIP_A)
    row, record = ingest(tmp_path)
    assert isinstance(row, Rejection) and isinstance(record, HandRecord)
    assert row.reason == RejectReason.LABEL_CORRUPT


@pytest.mark.parametrize(("uid", "reason"), [("../outside", RejectReason.PATH_ESCAPES_ROOT), (7, None), ("", None)])
def test_a_clip_without_a_usable_name_is_rejected_alone(tmp_path: Path, uid: Any, reason: RejectReason | None) -> None:
    good = hands_clip(CLIP_A, [action(pre_45=key_frame(1))])
    write_hands(tmp_path, "train", [good | {"clip_uid": uid}, good])
    write_clip(tmp_path, CLIP_A)
    row, record = ingest(tmp_path)
    assert isinstance(row, Rejection) and isinstance(record, HandRecord)
    assert row.reason == (reason or RejectReason.LABEL_CORRUPT)


def test_a_truncated_label_file_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ego4d, "LABEL_BYTES_PER_PARTITION", 200)
    clips = [hands_clip(clip, [action(pre_45=key_frame(1))]) for clip in (CLIP_A, CLIP_B)]
    path = write_hands(tmp_path, "train", clips)
    path.write_text(path.read_text()[:-60])
    write_clip(tmp_path, CLIP_A)
    (row,) = (row for row in ingest(tmp_path) if isinstance(row, Rejection))
    assert (row.reason, row.image_uri) == (RejectReason.LABEL_CORRUPT, str(path.resolve()))
    assert list(records_of(tmp_path)) == [f"ego4d/train/{CLIP_A}/000001-0"]


def test_blocks_share_the_clips_without_loss(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ingest(dataset)
    monkeypatch.setattr(ego4d, "HINT_FILES_PER_PARTITION", 1)
    assert len(list(Ego4dAdapter().partitions(dataset))) == 12
    assert sorted(row.record_id for row in ingest(dataset)) == sorted(row.record_id for row in whole)


def test_a_damaged_metadata_file_costs_the_names_alone(tmp_path: Path) -> None:
    write_hands(tmp_path, "train", [hands_clip(CLIP_A, [action(pre_45=key_frame(1))])])
    write_clip(tmp_path, CLIP_A)
    path = write_metadata(tmp_path, {CLIP_A: 5})
    assert [record.subject_id for record in records_of(tmp_path).values()] == ["5"]
    path.write_text(path.read_text()[: path.read_text().index(video_of(CLIP_A))])
    assert [record.subject_id for record in records_of(tmp_path).values()] == [None]
