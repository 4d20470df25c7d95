"""InterHand2.6M: world points in millimetres become pixels and metres of each camera, on the right rows."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handdata.adapters import interhand26m
from handdata.adapters.interhand26m import InterHand26MAdapter
from handdata.adapters.reading import json_stream
from handdata.adapters.reading.recording_rate import recorded_hz
from handdata.adapters.roots import find_root
from handdata.schemas import HandRecord, LayoutError, Rejection, RejectReason
from handdata.schemas import record_batch as batches
from tests.fixtures.interhand26m import (
    CAMERAS,
    TEST,
    TRAIN,
    Shot,
    annotation_entry,
    file_name,
    image_entry,
    label_path,
    project,
    skeleton_name,
    write_images,
    write_interhand26m,
    write_labels,
    write_split,
)

SHOTS = [Shot(2, "0266_dh_pray", 44669 + 18 * step) for step in range(3)]


def ingest(root: Path) -> list[HandRecord | Rejection]:
    adapter = InterHand26MAdapter()
    root = find_root(InterHand26MAdapter, root)
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def ingest_records(root: Path) -> list[HandRecord]:
    return [row for row in ingest(root) if isinstance(row, HandRecord)]


def change_data(root: Path, change: Callable[[dict[str, Any]], None], kind: str = "data") -> None:
    """Rewrite a label file of the split train."""
    path = label_path(root, "train", kind)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def reason_of(row: HandRecord | Rejection) -> RejectReason:
    assert isinstance(row, Rejection), row
    return row.reason


def test_joints_project_to_the_pixels_of_their_names(tmp_path: Path) -> None:
    write_interhand26m(tmp_path)
    shots = {(shot.capture, shot.frame): shot for shot in (*TRAIN, *TEST)}
    checked = 0
    for record in ingest_records(tmp_path):
        shot = shots.get((int(record.sequence_id.partition("/")[0].removeprefix("Capture")), record.frame_index))
        if shot is None:
            continue
        for row in range(42):
            name = skeleton_name(row)
            assert record.keypoints_valid[row] == shot.labels(name)
            if shot.labels(name):
                u, v, depth = project(record.camera_id, shot.point_mm(name))
                assert record.keypoints_2d[row] == pytest.approx((u, v), abs=0.01)
                assert record.keypoints_3d is not None
                assert record.keypoints_3d[row, 2] == pytest.approx(depth, abs=1e-5)
                checked += 1
    assert checked == 41 * 5 + 21 * 6 + 20 * 3


def test_splits_are_kept_apart_though_their_captures_share_numbers(tmp_path: Path) -> None:
    write_interhand26m(tmp_path)
    rows = ingest(tmp_path)
    assert [row.record_id for row in rows[:3]] == [
        f"interhand26m/test/Capture1/0007_thumbup_normal/002017-{camera}" for camera in CAMERAS
    ]
    assert {row.split for row in rows if isinstance(row, HandRecord)} == {"train", "val", "test"}
    rejected = [row for row in rows if isinstance(row, Rejection)]
    assert [(row.record_id, row.reason) for row in rejected] == [
        ("interhand26m/train/Capture0/0266_dh_pray/044669-400012", RejectReason.IMAGE_MISSING)
    ]


def test_a_hand_without_valid_joints_is_unknown_whatever_hand_type_says(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [Shot(0, "a", 18, "right"), Shot(0, "b", 36)], cameras=CAMERAS[:1])
    change_data(tmp_path, lambda data: data["annotations"][1].update(joint_valid=[[0]] * 42))
    right, neither = ingest_records(tmp_path)
    assert right.hand_state == ("labelled", "unknown")
    assert neither.hand_state == ("unknown", "unknown") and not neither.keypoints_valid.any()


def test_a_joint_is_valid_where_frame_and_image_agree(tmp_path: Path) -> None:
    write_split(tmp_path, "train", SHOTS[:1], invalid_here=["r_index4", "l_wrist"])
    invalid = {skeleton_name(row) for row in np.flatnonzero(~ingest_records(tmp_path)[0].keypoints_valid)}
    assert invalid == {"r_index4", "l_wrist", "l_ring3"}


def test_a_record_carries_subject_camera_and_time(tmp_path: Path) -> None:
    write_split(tmp_path, "train", SHOTS)
    records = ingest_records(tmp_path)
    assert {(record.subject_id, record.viewpoint, record.has_mask) for record in records} == {("7", "exo", False)}
    assert [(record.width, record.height) for record in records[:3]] == [(334, 512), (334, 512), (512, 334)]
    times = [record.timestamp_s for record in records if record.camera_id == CAMERAS[0]]
    assert np.diff(np.array(times, dtype=np.float64)) == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize(
    ("frames", "hz"),
    [
        ([1000, 1018, 1036, 1090], 90),
        ([2000, 2006, 2012], 30),
        ([7, 10, 13, 40], 90),
        ([7, 8, 9, 11], 30),
        ([0, 5, 10], None),
        ([3], None),
        ([], None),
    ],
)
def test_the_step_between_frames_tells_the_rate_of_the_recording(frames: list[int], hz: int | None) -> None:
    assert recorded_hz(frames) == hz


def test_images_may_lie_a_folder_deeper(tmp_path: Path) -> None:
    write_split(tmp_path, "train", SHOTS)
    (tmp_path / "InterHand2.6M_5fps_batch1").mkdir()
    (tmp_path / "images").rename(tmp_path / "InterHand2.6M_5fps_batch1/images")
    assert len(ingest_records(tmp_path)) == 9


def test_labels_without_images_are_an_error_with_what_is_missing(tmp_path: Path) -> None:
    write_labels(tmp_path, "train", "data", {})
    with pytest.raises(LayoutError, match=r"images/\*/Capture"):
        find_root(InterHand26MAdapter, tmp_path)


# ---------------------------------------------------------------------------------------------------- partitions


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("part_bytes", [300, 5_000, 1 << 20])
def test_partitions_of_any_size_give_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, part_bytes: int
) -> None:
    images = write_split(tmp_path, "train", SHOTS, indent=indent)
    monkeypatch.setattr(interhand26m, "PARTITION_BYTES", part_bytes)
    monkeypatch.setattr(interhand26m, "_SEARCH_BYTES", 300)
    rows = ingest(tmp_path)
    root = tmp_path.resolve() / "images/train"
    assert [row.image_uri for row in rows] == [f"{root}/{entry['file_name']}" for entry in images]
    assert all(isinstance(row, HandRecord) for row in rows)


@pytest.mark.parametrize("parts_bytes", [1000, 1 << 20])
def test_lists_in_different_order_are_joined_by_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts_bytes: int
) -> None:
    monkeypatch.setattr(interhand26m, "PARTITION_BYTES", parts_bytes)
    write_split(tmp_path, "train", [SHOTS[0], Shot(2, "x", 5, "right"), SHOTS[1]])
    before = [(row.record_id, row.hand_state) for row in ingest_records(tmp_path)]
    change_data(tmp_path, lambda data: data["annotations"].reverse())
    assert [(row.record_id, row.hand_state) for row in ingest_records(tmp_path)] == before


def test_annotations_may_come_before_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interhand26m, "PARTITION_BYTES", 1000)
    write_split(tmp_path, "train", SHOTS)
    content = json.loads(label_path(tmp_path, "train", "data").read_text())
    write_labels(
        tmp_path, "train", "data", {"annotations": content["annotations"], "info": 1, "images": content["images"]}
    )
    assert len(ingest_records(tmp_path)) == 9


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "BLOCK_BYTES", 2**14)
    monkeypatch.setattr(batches, "BATCH_ROWS", 16)
    write_split(tmp_path, "train", SHOTS)
    entries = [(1000 + number, SHOTS[0]) for number in range(1500)]
    write_labels(
        tmp_path,
        "train",
        "data",
        {
            "images": [image_entry(number, shot, CAMERAS[0]) for number, shot in entries],
            "annotations": [annotation_entry(number, shot) for number, shot in entries],
        },
    )
    monkeypatch.setattr(interhand26m, "_SEARCH_BYTES", 2**14)
    (partition,) = InterHand26MAdapter().partitions(tmp_path)
    next(InterHand26MAdapter().records(tmp_path, partition))  # what is made once, such as compiled patterns
    tracemalloc.start()
    count = sum(1 for _ in InterHand26MAdapter().records(tmp_path, partition))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 1500
    assert peak < label_path(tmp_path, "train", "data").stat().st_size / 3


# ---------------------------------------------------------------------------------------------------- bad input


def drop_annotation(data: dict[str, Any]) -> None:
    del data["annotations"][1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data["images"].__setitem__(1, None), RejectReason.LABEL_CORRUPT),
        (lambda data: data["images"][1].pop("seq_name"), RejectReason.LABEL_CORRUPT),
        (lambda data: data["images"][1].update(frame_idx="7"), RejectReason.LABEL_CORRUPT),
        (lambda data: data["images"][1].update(frame_idx=-1), RejectReason.LABEL_CORRUPT),
        (lambda data: data["images"][1].update(file_name=["x"]), RejectReason.LABEL_CORRUPT),
        (lambda data: data["images"][1].update(file_name="../../../x.jpg"), RejectReason.PATH_ESCAPES_ROOT),
        (lambda data: data["images"][1].update(file_name="/etc/passwd"), RejectReason.PATH_ESCAPES_ROOT),
        (lambda data: data["images"][1].update(file_name="nul\0.jpg"), RejectReason.PATH_ESCAPES_ROOT),
        (lambda data: data["images"][1].update(width=512, height=334), RejectReason.IMAGE_SIZE_MISMATCH),
        (lambda data: data["images"][1].update(camera="400999"), RejectReason.LABEL_MISSING),
        (lambda data: data["images"][1].update(capture=99), RejectReason.LABEL_CORRUPT),
        (lambda data: data["images"][1].update(frame_idx=1), RejectReason.LABEL_MISSING),
        (lambda data: data["images"][1].update(id="x"), RejectReason.LABEL_MISSING),
        (lambda data: data["annotations"][1].pop("joint_valid"), RejectReason.LABEL_CORRUPT),
        (lambda data: data["annotations"][1].update(joint_valid=[1] * 41), RejectReason.LABEL_CORRUPT),
        (lambda data: data["annotations"][1].update(joint_valid=[10**400] * 42), RejectReason.LABEL_CORRUPT),
        (drop_annotation, RejectReason.LABEL_MISSING),
    ],
)
def test_a_malformed_entry_is_rejected_alone(tmp_path: Path, change: Callable[[Any], None], reason: Any) -> None:
    write_split(tmp_path, "train", SHOTS[:1])
    change_data(tmp_path, change)
    before, row, after = ingest(tmp_path)
    assert isinstance(before, HandRecord) and isinstance(after, HandRecord)
    assert reason_of(row) == reason


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (None, RejectReason.LABEL_CORRUPT),
        ({}, RejectReason.LABEL_CORRUPT),
        ({"world_coord": [[0, 0]] * 42, "joint_valid": [True] * 42}, RejectReason.LABEL_CORRUPT),
        ({"world_coord": [[float("nan"), 0, 0]] * 42, "joint_valid": [True] * 42}, RejectReason.LABEL_NOT_FINITE),
        ({"world_coord": [[1e300, 0, 0]] * 42, "joint_valid": [True] * 42}, RejectReason.LABEL_NOT_FINITE),
    ],
)
def test_a_malformed_pose_rejects_the_views_of_its_moment(tmp_path: Path, label: Any, reason: RejectReason) -> None:
    write_split(tmp_path, "train", SHOTS[:2])
    change_data(tmp_path, lambda captures: captures["2"].update({"44669": label}), kind="joint_3d")
    rows = ingest(tmp_path)
    assert [reason_of(row) for row in rows[:3]] == [reason] * 3
    assert all(isinstance(row, HandRecord) for row in rows[3:])


def test_numbers_of_joints_that_are_not_valid_do_not_matter(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [Shot(2, "a", 18, "right")])
    change_data(
        tmp_path,
        lambda captures: captures["2"]["18"]["world_coord"].__setitem__(30, [float("inf"), float("nan"), 0]),
        kind="joint_3d",
    )
    assert all(isinstance(row, HandRecord) for row in ingest(tmp_path))


def test_a_joint_behind_the_camera_is_not_valid(tmp_path: Path) -> None:
    write_split(tmp_path, "train", SHOTS[:1], cameras=CAMERAS[:1])
    change_data(
        tmp_path, lambda captures: captures["2"]["44669"]["world_coord"].__setitem__(20, [0, 0, -5000]), kind="joint_3d"
    )
    (record,) = ingest_records(tmp_path)
    assert not record.keypoints_valid[0] and record.keypoints_valid[1]


@pytest.mark.parametrize("name", ["campos", "camrot", "focal", "princpt"])
@pytest.mark.parametrize(
    ("value", "reason"), [([1.0], RejectReason.LABEL_CORRUPT), ("NaN", RejectReason.LABEL_NOT_FINITE)]
)
def test_a_malformed_camera_rejects_its_images_alone(
    tmp_path: Path, name: str, value: Any, reason: RejectReason
) -> None:
    write_split(tmp_path, "train", SHOTS[:1])

    def spoil(cameras: dict[str, Any]) -> None:
        broken = value
        if value == "NaN":
            broken = np.full(np.shape(cameras["2"][name][CAMERAS[1]]), np.nan).tolist()
        cameras["2"][name][CAMERAS[1]] = broken

    change_data(tmp_path, spoil, kind="camera")
    before, row, after = ingest(tmp_path)
    assert isinstance(before, HandRecord) and isinstance(after, HandRecord)
    assert reason_of(row) == reason


@pytest.mark.parametrize("kind", ["camera", "joint_3d"])
def test_a_missing_label_file_gives_rejections_that_name_it(tmp_path: Path, kind: str) -> None:
    write_split(tmp_path, "train", SHOTS)
    label_path(tmp_path, "train", kind).unlink()
    rows = ingest(tmp_path)
    assert {reason_of(row) for row in rows} == {RejectReason.LABEL_MISSING}
    assert all(isinstance(row, Rejection) and f"InterHand2.6M_train_{kind}.json" in row.detail for row in rows)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_file_gives_its_readable_records_and_a_rejection_that_names_it(
    tmp_path: Path, share: float
) -> None:
    write_split(tmp_path, "train", SHOTS)
    path = label_path(tmp_path, "train", "data")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    *records, last = ingest(tmp_path)
    assert all(isinstance(row, HandRecord) for row in records)
    assert reason_of(last) == RejectReason.LABEL_CORRUPT
    assert isinstance(last, Rejection) and last.image_uri == str(path.resolve())


def test_moments_before_a_fault_of_joint_3d_are_used(tmp_path: Path) -> None:
    write_split(tmp_path, "train", SHOTS)
    path = label_path(tmp_path, "train", "joint_3d")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.75)])
    rows = ingest(tmp_path)
    assert [isinstance(row, HandRecord) for row in rows] == [True] * 6 + [False] * 3
    assert {reason_of(row) for row in rows[6:]} == {RejectReason.LABEL_CORRUPT}


def test_an_image_stored_turned_is_rejected(tmp_path: Path) -> None:
    images = write_split(tmp_path, "train", SHOTS[:1])
    Image.new("RGB", (512, 334)).save(tmp_path / "images/train" / images[0]["file_name"])
    row, *others = ingest(tmp_path)
    assert reason_of(row) == RejectReason.IMAGE_SIZE_MISMATCH
    assert all(isinstance(other, HandRecord) for other in others)


def test_a_partition_of_nothing_is_empty(tmp_path: Path) -> None:
    write_labels(tmp_path, "train", "data", {"images": [], "annotations": []})
    write_labels(tmp_path, "train", "camera", {})
    write_labels(tmp_path, "train", "joint_3d", {})
    write_images(tmp_path, "train", [image_entry(0, SHOTS[0], CAMERAS[0])])
    assert file_name(SHOTS[0], CAMERAS[0]).startswith("Capture2/")
    assert ingest(tmp_path) == []
