"""HaGRID v1, v2 and v2-1M: annotations become records with the right hand on the right rows."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from handdata.adapters.hagrid import HagridAdapter
from handdata.adapters.reading import json_stream
from handdata.adapters.roots import find_root
from handdata.schemas import HandRecord, LayoutError, RecordError, Rejection, RejectReason
from handdata.schemas import record_batch as batches
from tests.fixtures.hagrid import (
    HEIGHT,
    LEFT_OF_PICTURE,
    RIGHT_OF_PICTURE,
    WIDTH,
    Box,
    entry_v1,
    entry_v2,
    points_in,
    write_annotations,
    write_hagrid_v1,
    write_hagrid_v2,
    write_images,
)


def ingest(root: Path) -> list[HandRecord | Rejection]:
    adapter = HagridAdapter()
    root = find_root(HagridAdapter, root)
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def ingest_call(root: Path, entries: dict[str, Any], version: str = "v1") -> list[HandRecord | Rejection]:
    annotations, images = {
        "v1": ("ann_train_val", "train_val_call"),
        "v2": ("hagrid_annotations/train", "hagrid_dataset/call"),
    }[version]
    write_annotations(root / annotations / "call.json", entries)
    write_images(root / images, [uuid for uuid in entries if "/" not in uuid and len(uuid) < 100])
    return ingest(root)


def only_record(root: Path, entry: dict[str, Any], version: str = "v1") -> HandRecord:
    (record,) = ingest_call(root, {"a": entry}, version)
    assert isinstance(record, HandRecord), record
    return record


def assert_hand_is(record: HandRecord, side: str, box: Box) -> None:
    first = {"right": 0, "left": 21}[side]
    for joint, (x, y) in enumerate(points_in(box)):
        assert record.keypoints_2d[first + joint] == pytest.approx((x * WIDTH, y * HEIGHT), abs=0.001)
    assert record.keypoints_valid[first : first + 21].all()


def test_v1_takes_the_split_from_the_annotation_folder_and_leaves_the_subsample_out(tmp_path: Path) -> None:
    write_hagrid_v1(tmp_path)
    rows = ingest(tmp_path)
    assert [row.record_id for row in rows] == [
        "hagrid/test/test-a/000000-0",
        "hagrid/train/call-b/000000-0",
        "hagrid/train/call-a/000000-0",
        "hagrid/train/call-missing/000000-0",
        "hagrid/train/fist-a/000000-0",
    ]
    folders = [Path(row.image_uri).parent.relative_to(tmp_path.resolve()).as_posix() for row in rows]
    assert folders == ["test/call", "train_val_call", "train_val_call", "train_val_call", "fist"]


@pytest.mark.parametrize("with_landmarks", [True, False])
def test_v2_finds_three_splits_in_one_image_folder(tmp_path: Path, with_landmarks: bool) -> None:
    write_hagrid_v2(tmp_path, with_landmarks=with_landmarks)
    rows = ingest(tmp_path)
    assert [(row.split, row.sequence_id) for row in rows if isinstance(row, HandRecord)] == [
        (split, f"{split}-{hands}") for split in ("test", "train", "val") for hands in ("one", "two")
    ]
    assert all(row.keypoints_valid.any() == with_landmarks for row in rows if isinstance(row, HandRecord))


def test_the_test_archive_alone_is_accepted(tmp_path: Path) -> None:
    write_annotations(tmp_path / "ann_test/call.json", {"a": entry_v1([LEFT_OF_PICTURE], ["call"], "right")})
    write_images(tmp_path / "test/call", ["a"])
    assert [row.split for row in ingest(tmp_path) if isinstance(row, HandRecord)] == ["test"]


V2_LABELS = ("annotations", "hagrid_annotations")
V2_IMAGES = ("HaGRIDv2_dataset_512", "hagrid_dataset", "hagrid_dataset_512", "hagridv2_512/HaGRIDv2_dataset_512", "")


@pytest.mark.parametrize("images", V2_IMAGES)
@pytest.mark.parametrize("labels", V2_LABELS)
def test_v2_is_read_under_every_mix_of_the_names_that_its_archives_unpack_to(
    tmp_path: Path, labels: str, images: str
) -> None:
    for split in ("train", "val", "test"):
        for gesture in ("like", "xsign"):
            uuid = f"{split}-{gesture}"
            write_annotations(
                tmp_path / labels / split / f"{gesture}.json", {uuid: entry_v2([LEFT_OF_PICTURE], [gesture])}
            )
            write_images(tmp_path / images / gesture, [uuid])
    rows = ingest(tmp_path)
    assert sorted((row.split, row.sequence_id) for row in rows if isinstance(row, HandRecord)) == [
        (split, f"{split}-{gesture}") for split in ("test", "train", "val") for gesture in ("like", "xsign")
    ]
    assert len(rows) == 6


def test_a_folder_around_the_labels_of_v2_is_found(tmp_path: Path) -> None:
    path = tmp_path / "annotations/annotations/val/like.json"
    write_annotations(path, {"a": entry_v2([LEFT_OF_PICTURE], ["like"])})
    write_images(tmp_path / "HaGRIDv2_dataset_512/like", ["a"])
    assert [row.split for row in ingest(tmp_path) if isinstance(row, HandRecord)] == ["val"]


def test_light_and_full_size_images_complete_one_another(tmp_path: Path) -> None:
    entries = {uuid: entry_v2([LEFT_OF_PICTURE], ["like"]) for uuid in ("a", "b")}
    write_annotations(tmp_path / "annotations/train/like.json", entries)
    write_images(tmp_path / "HaGRIDv2_dataset_512/like", ["a"])
    write_images(tmp_path / "hagrid_dataset/like", ["b"], (2 * WIDTH, 2 * HEIGHT))
    rows = ingest(tmp_path)
    assert [row.width for row in rows if isinstance(row, HandRecord)] == [WIDTH, 2 * WIDTH]


@pytest.mark.parametrize("images", ["hagrid_30k/train_val_like", "train_val_like", "hagrid_30k/like"])
def test_the_small_sample_of_v1_is_read(tmp_path: Path, images: str) -> None:
    write_annotations(tmp_path / "ann_train_val/like.json", {"a": entry_v1([LEFT_OF_PICTURE], ["like"], "left")})
    write_images(tmp_path / images, ["a"])
    (record,) = ingest(tmp_path)
    assert isinstance(record, HandRecord)
    assert (record.split, record.hand_state) == ("train", ("unknown", "labelled"))


@pytest.mark.parametrize("train_images", ["train/train_val_call", "train/call"])
@pytest.mark.parametrize("test_images", ["test/test/call", "test/call"])
def test_both_halves_of_v1_are_read_as_its_own_download_script_leaves_them(
    tmp_path: Path, train_images: str, test_images: str
) -> None:
    for half, labels, images in (("train", "ann_train_val", train_images), ("test", "ann_test", test_images)):
        write_annotations(
            tmp_path / half / labels / "call.json", {f"{half}-a": entry_v1([LEFT_OF_PICTURE], ["call"], "right")}
        )
        write_images(tmp_path / images, [f"{half}-a"])
        (tmp_path / half / f"{labels}.zip").write_bytes(b"PK")
    rows = ingest(tmp_path)
    assert sorted((row.split, row.sequence_id) for row in rows if isinstance(row, HandRecord)) == [
        ("test", "test-a"),
        ("train", "train-a"),
    ]


def test_images_without_labels_are_a_warning_that_names_their_folders(tmp_path: Path) -> None:
    write_hagrid_v1(tmp_path)
    assert list(HagridAdapter().warnings(tmp_path)) == []
    write_images(tmp_path / "train_val_ok", ["a"])
    (warning,) = HagridAdapter().warnings(tmp_path)
    assert warning.endswith("images: train_val_ok")


def test_another_folder_is_an_error_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"ann_train_val/\*\.json \(v1\).*hagrid_annotations.*found nothing"):
        find_root(HagridAdapter, tmp_path)


@pytest.mark.parametrize("leading_hand", ["right", "left"])
def test_v1_gives_the_gesture_hand_the_leading_side_wherever_it_is(tmp_path: Path, leading_hand: str) -> None:
    entry = entry_v1([LEFT_OF_PICTURE, RIGHT_OF_PICTURE], ["no_gesture", "call"], leading_hand)
    record = only_record(tmp_path, entry)
    assert_hand_is(record, leading_hand, RIGHT_OF_PICTURE)
    assert_hand_is(record, "left" if leading_hand == "right" else "right", LEFT_OF_PICTURE)
    assert record.extra is not None and record.extra["side"] == "leading_hand"


@pytest.mark.parametrize(("spelled", "side"), [("Right", "right"), ("LEFT", "left"), (" left\n", "left")])
def test_a_side_is_read_however_it_is_spelled(tmp_path: Path, spelled: str, side: str) -> None:
    record = only_record(tmp_path, entry_v1([LEFT_OF_PICTURE], ["call"], spelled))
    assert_hand_is(record, side, LEFT_OF_PICTURE)
    assert record.extra is not None and record.extra["side"] == "leading_hand"


def test_v1_with_two_gestures_uses_the_position_rule(tmp_path: Path) -> None:
    record = only_record(tmp_path, entry_v1([RIGHT_OF_PICTURE, LEFT_OF_PICTURE], ["call", "call"], "right"))
    assert_hand_is(record, "right", LEFT_OF_PICTURE)
    assert_hand_is(record, "left", RIGHT_OF_PICTURE)


@pytest.mark.parametrize("boxes", [[LEFT_OF_PICTURE, RIGHT_OF_PICTURE], [RIGHT_OF_PICTURE, LEFT_OF_PICTURE]])
def test_v2_gives_the_person_s_right_hand_to_the_smaller_x(tmp_path: Path, boxes: list[Box]) -> None:
    record = only_record(tmp_path, entry_v2(boxes, ["like", "no_gesture"]), "v2")
    assert_hand_is(record, "right", LEFT_OF_PICTURE)
    assert_hand_is(record, "left", RIGHT_OF_PICTURE)
    assert record.extra is not None and record.extra["side"] == "position"


@pytest.mark.parametrize(("box", "side"), [(LEFT_OF_PICTURE, "right"), (RIGHT_OF_PICTURE, "left")])
def test_v2_says_that_the_side_of_a_single_hand_is_guessed(tmp_path: Path, box: Box, side: str) -> None:
    record = only_record(tmp_path, entry_v2([box], ["like"]), "v2")
    assert_hand_is(record, side, box)
    assert record.extra is not None and record.extra["side"] == "guessed"
    assert record.hand_state == (("labelled", "unknown") if side == "right" else ("unknown", "labelled"))


@pytest.mark.parametrize(
    "landmarks", [[], [[], []], [points_in(LEFT_OF_PICTURE)[:20], []], [points_in(LEFT_OF_PICTURE)]]
)
def test_hands_that_mediapipe_missed_are_unknown_and_keep_their_boxes(tmp_path: Path, landmarks: list[Any]) -> None:
    entry = entry_v1([LEFT_OF_PICTURE, RIGHT_OF_PICTURE], ["call", "no_gesture"], "right", landmarks)
    record = only_record(tmp_path, entry)
    assert record.hand_state == ("unknown", "unknown")
    assert record.extra is not None
    assert record.extra["boxes_xyxy_px"] == [[4.5, 48.0, 27.0, 80.0], [58.5, 56.0, 81.0, 88.0]]
    assert record.extra["box_sides"] == ["right", "left"]
    assert record.extra["gestures"] == ["call", "no_gesture"]


def test_one_missed_hand_leaves_the_other_labelled(tmp_path: Path) -> None:
    entry = entry_v2([LEFT_OF_PICTURE, RIGHT_OF_PICTURE], ["like", "no_gesture"], [[], points_in(RIGHT_OF_PICTURE)])
    assert only_record(tmp_path, entry, "v2").hand_state == ("unknown", "labelled")


def test_more_than_two_hands_get_no_side(tmp_path: Path) -> None:
    boxes = [LEFT_OF_PICTURE, RIGHT_OF_PICTURE, (0.4, 0.1, 0.2, 0.2)]
    record = only_record(tmp_path, entry_v2(boxes, ["like"] * 3), "v2")
    assert record.hand_state == ("unknown", "unknown")
    assert record.extra is not None and record.extra["box_sides"] == [None, None, None]


def test_a_record_carries_subject_size_and_no_camera(tmp_path: Path) -> None:
    record = only_record(tmp_path, entry_v1([LEFT_OF_PICTURE], ["call"], "right", user_id="abc"))
    assert (record.subject_id, record.width, record.height, record.viewpoint) == ("abc", WIDTH, HEIGHT, "exo")
    assert (record.keypoints_3d, record.camera_k, record.has_mask) == (None, None, False)
    with pytest.raises(RecordError, match="hagrid has no masks"):
        HagridAdapter().open_mask(record)


def test_the_two_spellings_of_the_heart_gesture_meet(tmp_path: Path) -> None:
    path = tmp_path / "hagrid_annotations/train/hand_heart2.json"
    write_annotations(path, {"a": entry_v2([LEFT_OF_PICTURE], ["hand_heart2"])})
    write_images(tmp_path / "hagrid_dataset/hands_heart2", ["a"])
    assert isinstance(ingest(tmp_path)[0], HandRecord)


def test_a_phone_jpeg_with_a_preview_behind_it_is_a_jpeg(tmp_path: Path) -> None:
    write_annotations(tmp_path / "ann_test/call.json", {"a": entry_v1([LEFT_OF_PICTURE], ["call"], "right")})
    (tmp_path / "test/call").mkdir(parents=True)
    photograph = Image.new("RGB", (WIDTH, HEIGHT))
    photograph.save(tmp_path / "test/call/a.jpg", format="MPO", save_all=True, append_images=[photograph])
    assert isinstance(ingest(tmp_path)[0], HandRecord)


GOOD = entry_v1([LEFT_OF_PICTURE], ["call"], "right")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("text", RejectReason.LABEL_CORRUPT),
        (None, RejectReason.LABEL_CORRUPT),
        ({}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"bboxes": [[0.1, 0.2, 0.3]]}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"bboxes": [["a", "b", "c", "d"]]}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"labels": []}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"landmarks": [[[0.1, 0.2], [0.3]]]}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"landmarks": 7}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"landmarks": [[[512.0, 230.5]] * 21]}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"bboxes": [[104.0, 200.0, 40.0, 60.0]]}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"bboxes": [[0.5, 0.5, -0.1, 0.1]]}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"landmarks": [[[10**400, 0.2]] * 21]}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"landmarks": [[[float("nan"), 0.2]] * 21]}, RejectReason.LABEL_NOT_FINITE),
        (GOOD | {"landmarks": [[[1e300, 0.2]] * 21]}, RejectReason.LABEL_NOT_FINITE),
        (GOOD | {"bboxes": [[float("inf"), 0, 0, 0]]}, RejectReason.LABEL_NOT_FINITE),
        (GOOD | {"bboxes": [["0.1", "0.2", "0.3", "0.4"]]}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"bboxes": [[True, 0.2, 0.3, 0.4]]}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"labels": [7]}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"labels": [None]}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"landmarks": False}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"landmarks": ""}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"landmarks": ["points"]}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"landmarks": [[[None, 0.2]] * 21]}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"leading_hand": "both"}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"leading_hand": "r"}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"leading_hand": ""}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"leading_hand": None}, RejectReason.LABEL_CORRUPT),
        (GOOD | {"leading_hand": ["right"]}, RejectReason.LABEL_CORRUPT),
    ],
)
def test_a_malformed_entry_is_rejected_alone(tmp_path: Path, entry: Any, reason: RejectReason) -> None:
    before, row, after = ingest_call(tmp_path, {"a": GOOD, "bad": entry, "z": GOOD})
    assert isinstance(before, HandRecord) and isinstance(after, HandRecord)
    assert isinstance(row, Rejection)
    assert (row.reason, row.record_id) == (reason, "hagrid/train/bad/000000-0")
    assert "call.json: bad" in row.detail


@pytest.mark.parametrize(
    ("uuid", "reason"),
    [
        ("../outside", RejectReason.PATH_ESCAPES_ROOT),
        ("/etc/passwd", RejectReason.PATH_ESCAPES_ROOT),
        ("..\\outside", RejectReason.PATH_ESCAPES_ROOT),
        ("\\etc\\passwd", RejectReason.PATH_ESCAPES_ROOT),
        ("nul\0byte", RejectReason.PATH_ESCAPES_ROOT),
        ("\ud800", RejectReason.PATH_ESCAPES_ROOT),
        ("not-there", RejectReason.IMAGE_MISSING),
        ("x" * 300, RejectReason.IMAGE_MISSING),
    ],
)
def test_names_that_leave_the_root_or_lead_nowhere_are_rejected_alone(
    tmp_path: Path, uuid: str, reason: RejectReason
) -> None:
    write_annotations(tmp_path / "ann_train_val/call.json", {uuid: GOOD, "z": GOOD})
    write_images(tmp_path / "train_val_call", ["z"])
    write_images(tmp_path, ["outside"])
    row, after = ingest(tmp_path)
    assert isinstance(row, Rejection) and isinstance(after, HandRecord)
    assert row.reason == reason
    row.record_id.encode()


def test_a_truncated_file_gives_its_readable_entries_and_one_rejection_that_names_it(tmp_path: Path) -> None:
    entries = {f"u{index}": GOOD for index in range(10)}
    ingest_call(tmp_path, entries)
    path = tmp_path / "ann_train_val/call.json"
    text = path.read_text()
    path.write_text(text[: int(len(text) * 0.75)])
    *records, last = ingest(tmp_path)
    assert [row.sequence_id for row in records if isinstance(row, HandRecord)] == list(entries)[:7]
    assert isinstance(last, Rejection)
    assert (last.reason, last.image_uri) == (RejectReason.LABEL_CORRUPT, str(path.resolve()))


def test_memory_does_not_grow_with_the_number_of_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "BLOCK_BYTES", 2**14)
    monkeypatch.setattr(batches, "BATCH_ROWS", 16)
    path = tmp_path / "ann_test/call.json"
    path.parent.mkdir()
    path.write_text("{" + ", ".join(f'"u{index}": {json.dumps(GOOD)}' for index in range(1500)) + "}")
    (partition,) = HagridAdapter().partitions(tmp_path)
    tracemalloc.start()
    count = sum(1 for _ in HagridAdapter().records(tmp_path, partition))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 1500
    assert peak < path.stat().st_size / 4
