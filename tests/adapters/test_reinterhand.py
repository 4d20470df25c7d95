"""Re:InterHand: tracked joints in millimetres become pixels of studio and head cameras, on the right rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handdata.adapters.reinterhand import ReInterHandAdapter
from handdata.adapters.roots import find_root
from handdata.schemas import HandRecord, LayoutError, RecordError, Rejection, RejectReason
from tests.fixtures.reinterhand import (
    CAMERAS,
    CAPTURES,
    FRAMES,
    HEAD_SIZE,
    SLOW_FRAMES,
    STORED,
    STUDIO_SIZE,
    camera,
    hand_pixels,
    joints_path,
    point_mm,
    project,
    stored_name,
    write_capture,
    write_json,
    write_reinterhand,
)

TRAIN, TEST = CAPTURES
SEGMENT = "envmap_per_segment"


def ingest(root: Path) -> list[HandRecord | Rejection]:
    adapter = ReInterHandAdapter()
    root = find_root(ReInterHandAdapter, root)
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def ingest_records(root: Path) -> list[HandRecord]:
    return [row for row in ingest(root) if isinstance(row, HandRecord)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[HandRecord | Rejection]:
    root = tmp_path_factory.mktemp("reinterhand")
    write_reinterhand(root)
    return ingest(root)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """One capture with one light, no masks and no head camera: eight studio images."""
    return write_capture(tmp_path, TRAIN, lights=[SEGMENT], with_masks=False, with_head=False)


@pytest.mark.parametrize(("viewpoint", "model"), [("exo", "pinhole"), ("ego", "fisheye")])
def test_joints_project_to_the_pixels_of_their_names(
    whole: list[HandRecord | Rejection], viewpoint: str, model: str
) -> None:
    records = [row for row in whole if isinstance(row, HandRecord) and row.viewpoint == viewpoint]
    assert records
    for record in records:
        assert record.camera_model == model and record.hand_state == ("labelled", "labelled")
        assert record.keypoints_3d is not None
        for row in range(42):
            point = point_mm(record.frame_index, "right" if row < 21 else "left", stored_name(row % 21))
            u, v, depth = project(record.camera_id, point, record.frame_index)
            assert record.keypoints_2d[row] == pytest.approx((u, v), abs=0.001)
            assert record.keypoints_3d[row, 2] == pytest.approx(depth, abs=1e-5)


def test_the_camera_is_world_to_camera_in_metres(whole: list[HandRecord | Rejection]) -> None:
    for record in whole:
        if isinstance(record, HandRecord):
            truth = camera(record.camera_id, record.frame_index)
            assert record.camera_t_world is not None and record.camera_k is not None
            expected = np.c_[truth["R"], np.array(truth["t"]) / 1000]
            assert record.camera_t_world[:3] == pytest.approx(expected, abs=1e-6)
            assert record.camera_k[[0, 1], [0, 1]] == pytest.approx(truth["focal"])
            assert record.camera_dist == (None if "D" not in truth else pytest.approx(tuple(truth["D"])))


def test_captures_are_split_as_the_official_reader_splits_them(whole: list[HandRecord | Rejection]) -> None:
    found = {(row.split, row.subject_id) for row in whole if isinstance(row, HandRecord)}
    assert found == {("train", "HIR112"), ("test", "RNS217")}


def test_each_light_is_its_own_sequence_of_synchronised_cameras(whole: list[HandRecord | Rejection]) -> None:
    views: dict[tuple[str, int], list[str]] = {}
    for row in whole:
        if isinstance(row, HandRecord) and row.split == "train":
            views.setdefault((row.sequence_id, row.frame_index), []).append(row.camera_id)
    assert {key: sorted(cameras) for key, cameras in views.items()} == {
        **{(f"{TRAIN}/envmap_per_segment", frame): [*CAMERAS, "Ego"] for frame in FRAMES},
        **{(f"{TRAIN}/envmap_per_frame", frame): ["Ego"] for frame in FRAMES},
        **{(f"{TRAIN}/envmap_per_frame", frame): [*CAMERAS, "Ego"] for frame in SLOW_FRAMES},
    }


@pytest.mark.parametrize("light", ["envmap_per_frame", SEGMENT])
def test_time_runs_at_the_clock_of_the_frame_numbers(whole: list[HandRecord | Rejection], light: str) -> None:
    times = [
        row.timestamp_s
        for row in whole
        if isinstance(row, HandRecord)
        and (row.sequence_id, row.camera_id, row.split) == (f"{TRAIN}/{light}", CAMERAS[0], "train")
    ]
    frames = SLOW_FRAMES if light == "envmap_per_frame" else FRAMES
    assert np.diff(np.array(times, dtype=np.float64)) == pytest.approx(np.diff(frames) / 90)


def test_masks_open_where_they_lie_beside_the_images(tmp_path: Path) -> None:
    write_capture(tmp_path, TRAIN, lights=[SEGMENT])
    for record in ingest_records(tmp_path):
        assert record.has_mask and record.mask_extent == "hand_forearm"
        size = HEAD_SIZE if record.viewpoint == "ego" else STUDIO_SIZE
        assert np.array_equal(ReInterHandAdapter().open_mask(record), hand_pixels(size))


def test_captures_without_masks_have_records_without_masks(capture: Path) -> None:
    record = ingest_records(capture.parent)[0]
    assert (record.has_mask, record.mask_extent, record.extra) == (False, None, None)
    with pytest.raises(RecordError, match="has no mask"):
        ReInterHandAdapter().open_mask(record)


def test_a_hand_without_a_file_is_unknown(tmp_path: Path) -> None:
    write_capture(tmp_path, TRAIN, lights=[SEGMENT], unlabelled=[("left", FRAMES[1])], with_head=False)
    states = {record.frame_index: record.hand_state for record in ingest_records(tmp_path)}
    assert states[FRAMES[0]] == ("labelled", "labelled")
    assert states[FRAMES[1]] == ("labelled", "unknown")


def test_a_frame_without_any_joints_is_rejected(tmp_path: Path) -> None:
    missing = [("left", FRAMES[1]), ("right", FRAMES[1])]
    write_capture(tmp_path, TRAIN, lights=[SEGMENT], unlabelled=missing, with_head=False)
    rejected = [row for row in ingest(tmp_path) if isinstance(row, Rejection)]
    assert [row.reason for row in rejected] == [RejectReason.LABEL_MISSING] * 2
    assert rejected[0].record_id == f"reinterhand/train/{TRAIN}/{SEGMENT}/{FRAMES[1]:06d}-{CAMERAS[0]}"


def test_images_that_the_frame_list_names_but_are_not_there_are_rejected(whole: list[HandRecord | Rejection]) -> None:
    (rejected,) = [row for row in whole if isinstance(row, Rejection)]
    assert rejected.reason == RejectReason.IMAGE_MISSING
    assert rejected.record_id == f"reinterhand/test/{TEST}/{SEGMENT}/{FRAMES[1]:06d}-Ego"


def test_without_a_frame_list_the_image_files_are_the_frames(capture: Path) -> None:
    (capture / "frame_list.txt").unlink()
    assert len(ingest(capture.parent)) == 8


@pytest.mark.parametrize("text", ["EXP_pray", "EXP_pray x", b"\xff\xfe 1", f"EXP_pray {'9' * 5000}"])
def test_a_malformed_frame_list_rejects_its_cameras(capture: Path, text: str | bytes) -> None:
    (capture / "frame_list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    rows = ingest(capture.parent)
    assert len(rows) == 2
    assert all(isinstance(row, Rejection) and row.reason == RejectReason.LABEL_CORRUPT for row in rows)


def spoiled(index: int, value: Any) -> list[Any]:
    """Return the joints of a hand with another value in one place."""
    points: list[Any] = [[0.0, 0.0, 0.0] for _ in STORED]
    points[index] = value
    return points


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({}, RejectReason.LABEL_CORRUPT),
        ([], RejectReason.LABEL_CORRUPT),
        ([[0, 0, 0]] * 21, RejectReason.LABEL_CORRUPT),
        (spoiled(3, [1, 2]), RejectReason.LABEL_CORRUPT),
        (spoiled(3, ["a", "b", "c"]), RejectReason.LABEL_CORRUPT),
        (spoiled(3, [10**400, 0, 0]), RejectReason.LABEL_CORRUPT),
        (spoiled(3, [float("nan"), 0, 0]), RejectReason.LABEL_NOT_FINITE),
        (spoiled(3, [1e300, 0, 0]), RejectReason.LABEL_NOT_FINITE),
    ],
)
def test_malformed_joints_reject_the_views_of_their_frame(capture: Path, content: Any, reason: RejectReason) -> None:
    write_json(joints_path(capture.parent, TRAIN, "left", FRAMES[1]), content)
    rows = ingest(capture.parent)
    rejected = [row for row in rows if isinstance(row, Rejection)]
    assert len(rows) == 8
    assert [row.reason for row in rejected] == [reason] * 2
    assert all(f"{FRAMES[1]:06d}" in row.record_id for row in rejected)


def test_the_end_of_the_forearm_does_not_matter(capture: Path) -> None:
    for frame in FRAMES:
        write_json(joints_path(capture.parent, TRAIN, "left", frame), spoiled(23, [float("nan")] * 3))
    assert len(ingest_records(capture.parent)) == 8


def test_a_joint_behind_the_camera_is_not_valid(capture: Path) -> None:
    for frame in FRAMES:
        write_json(joints_path(capture.parent, TRAIN, "left", frame), spoiled(0, [0, 0, -5000]))
    record = ingest_records(capture.parent)[0]
    assert not record.keypoints_valid[21] and record.keypoints_valid[22:].all()


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({}, RejectReason.LABEL_MISSING),
        ({CAMERAS[0]: None}, RejectReason.LABEL_CORRUPT),
        ({CAMERAS[0]: camera(CAMERAS[0]) | {"R": [1, 2]}}, RejectReason.LABEL_CORRUPT),
        ({CAMERAS[0]: camera(CAMERAS[0]) | {"t": [float("inf"), 0, 0]}}, RejectReason.LABEL_NOT_FINITE),
    ],
)
def test_a_malformed_camera_rejects_its_own_images_alone(
    capture: Path, parameters: dict[str, Any], reason: RejectReason
) -> None:
    write_json(capture / "Mugsy_cameras/cam_params.json", {CAMERAS[1]: camera(CAMERAS[1])} | parameters)
    rows = ingest(capture.parent)
    assert [row.reason for row in rows[:4] if isinstance(row, Rejection)] == [reason] * 4
    assert all(isinstance(row, HandRecord) for row in rows[4:])


def test_a_head_camera_without_parameters_rejects_its_frame_alone(tmp_path: Path) -> None:
    folder = write_capture(tmp_path, TRAIN, lights=[SEGMENT])
    (folder / f"Ego_cameras/{SEGMENT}/cam_params/{FRAMES[2]:06d}.json").unlink()
    rejected = [row for row in ingest(tmp_path) if isinstance(row, Rejection)]
    assert [(row.reason, row.record_id[-10:]) for row in rejected] == [(RejectReason.LABEL_MISSING, "095973-Ego")]


def test_captures_without_tracked_joints_are_an_error_with_what_is_missing(capture: Path) -> None:
    (capture / "orig_fits").rename(capture / "orig_fits_elsewhere")
    with pytest.raises(LayoutError, match=r"orig_fits/\*/Keypoints"):
        find_root(ReInterHandAdapter, capture.parent)
