"""ARCTIC: joint order, frame offsets, crops, the head camera's lens, both protocols, damaged and hostile files."""

import json
import os
import pickle
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handdata.adapters.arctic import PARTITIONS_PER_SPLIT, ArcticAdapter
from handdata.adapters.roots import find_root
from handdata.schemas import HandRecord, RecordError, Rejection, RejectReason
from tests.fixtures.arctic import (
    DATA,
    EGO_DISTORTION,
    FRAMES,
    OFFSETS,
    box_of,
    camera_t_world,
    image_name,
    labels_of,
    project,
    size_of_view,
    world_points,
    write_arctic,
    write_image,
    write_misc,
    write_sequences,
    write_split_file,
)

BOX = "s01/box_grab_01"
RETAKE = "s02/scissors_use_01_retake"
FINGERS_IN_MANO = {"thumb": (13, 14, 15, 16), "index": (1, 2, 3, 17), "middle": (4, 5, 6, 18)} | {
    "ring": (10, 11, 12, 19),
    "little": (7, 8, 9, 20),
}
MANO_ROW = [0, *(row for finger in ("thumb", "index", "middle", "ring", "little") for row in FINGERS_IN_MANO[finger])]


def ingest(root: Path, split: str | None = None) -> list[HandRecord | Rejection]:
    adapter = ArcticAdapter()
    found = find_root(ArcticAdapter, root)
    partitions = [part for part in adapter.partitions(found) if split in (None, part.split)]
    return [row for partition in partitions for row in adapter.records(found, partition)]


def records_by_id(rows: Sequence[HandRecord | Rejection]) -> dict[str, HandRecord]:
    return {row.record_id: row for row in rows if isinstance(row, HandRecord)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arctic")
    write_arctic(folder)
    return folder


@pytest.fixture(scope="module")
def rows(root: Path) -> list[HandRecord | Rejection]:
    return ingest(root)


def expected_keypoints(record: HandRecord) -> np.ndarray:
    """Return the (42, 2) pixels of the record's own image from the world points, joint by joint."""
    view, sequence = int(record.camera_id), record.sequence_id
    row = record.frame_index - OFFSETS[sequence[:3]]
    expected = []
    for side in ("right", "left"):
        world = world_points(sequence, row, side)
        for mano_row in MANO_ROW:
            u, v, _ = project(sequence, row, view, world[mano_row], distorted=view == 0)
            if "cropped_images" in record.image_uri and view == 0:
                u, v = u * 840 / 2800, v * 600 / 2000
            elif "cropped_images" in record.image_uri:
                cx, cy, scale = box_of(sequence, row, view)
                side_px = 1.5 * 200 * scale
                u, v = (u - (cx - side_px / 2)) * 1000 / side_px, (v - (cy - side_px / 2)) * 1000 / side_px
            expected.append((u, v))
    return np.array(expected)


def test_keypoints_are_the_projected_joints_in_every_view_and_in_both_image_folders(
    rows: list[HandRecord | Rejection],
) -> None:
    seen = set()
    for record in records_by_id(rows).values():
        if record.split != "test":
            expected = expected_keypoints(record)
            valid = record.keypoints_valid
            assert record.keypoints_2d[valid] == pytest.approx(expected[valid], abs=0.01)
            seen.add((record.camera_id, "cropped_images" in record.image_uri))
    assert seen == {("0", True), ("0", False), ("1", True), ("2", True), ("2", False)}


def test_keypoints_3d_are_metres_in_the_undistorted_camera_frame(rows: list[HandRecord | Rejection]) -> None:
    for record in records_by_id(rows).values():
        if record.split == "test":
            continue
        row = record.frame_index - OFFSETS[record.sequence_id[:3]]
        matrix = camera_t_world(record.sequence_id, row, int(record.camera_id))
        both = [world_points(record.sequence_id, row, side)[MANO_ROW] for side in ("right", "left")]
        expected = np.concatenate(both) @ matrix[:3, :3].T + matrix[:3, 3]
        assert record.keypoints_3d is not None and record.camera_t_world is not None
        assert record.keypoints_3d[record.keypoints_valid] == pytest.approx(expected[record.keypoints_valid], abs=1e-5)
        assert record.camera_t_world == pytest.approx(matrix, abs=1e-6)


def test_only_the_head_camera_is_ego_and_bent(rows: list[HandRecord | Rejection]) -> None:
    for record in records_by_id(rows).values():
        if record.camera_id == "0":
            assert (record.viewpoint, record.camera_model) == ("ego", "opencv_rational")
            assert record.camera_dist == pytest.approx(EGO_DISTORTION, abs=1e-6)
        else:
            assert (record.viewpoint, record.camera_model, record.camera_dist) == ("exo", "pinhole", None)


def test_the_two_protocols_make_one_set_of_synchronised_views(rows: list[HandRecord | Rejection]) -> None:
    assert [row.record_id for row in rows if "/train/" in row.record_id and "000003" in row.record_id] == [
        f"arctic/train/{RETAKE}/000003-{view}" for view in range(3)
    ]
    assert len({row.record_id for row in rows}) == len(rows) == 24


def test_a_hand_whose_flag_is_zero_is_unknown(rows: list[HandRecord | Rejection]) -> None:
    records = records_by_id(rows)
    right_only = records[f"arctic/train/{BOX}/000005-1"]
    assert right_only.hand_state == ("labelled", "unknown")
    assert right_only.keypoints_valid.tolist() == [True] * 21 + [False] * 21
    assert records[f"arctic/train/{BOX}/000004-0"].hand_state == ("unknown", "labelled")


def test_the_test_split_has_images_and_no_hands(rows: list[HandRecord | Rejection]) -> None:
    test = [record for record in records_by_id(rows).values() if record.split == "test"]
    assert len(test) == 6
    assert {record.hand_state for record in test} == {("unknown", "unknown")}
    assert all(record.keypoints_3d is None and record.camera_k is not None for record in test)


def test_an_image_in_neither_folder_is_rejected(rows: list[HandRecord | Rejection]) -> None:
    (row,) = (row for row in rows if isinstance(row, Rejection))
    assert (row.record_id, row.reason) == (f"arctic/train/{BOX}/000005-2", RejectReason.IMAGE_MISSING)


def test_records_carry_subject_and_the_size_of_the_file(root: Path, rows: list[HandRecord | Rejection]) -> None:
    record = records_by_id(rows)[f"arctic/train/{RETAKE}/000003-2"]
    assert (record.subject_id, record.width, record.height) == ("s02", *size_of_view(2))
    assert record.image_uri == str(root.resolve() / DATA / "images" / RETAKE / "2/00003.jpg")
    assert record.timestamp_s is None


@pytest.mark.parametrize("inner", ["", "arctic_data", "arctic_data/data"])
def test_each_level_of_the_folder_is_a_root(root: Path, inner: str) -> None:
    assert len(ingest(root / inner, "val")) == 6


def test_there_are_no_masks(rows: list[HandRecord | Rejection]) -> None:
    record = next(iter(records_by_id(rows).values()))
    assert not record.has_mask
    with pytest.raises(RecordError, match="arctic has no masks"):
        ArcticAdapter().open_mask(record)


def test_joints_beyond_the_lens_s_fold_are_not_valid(tmp_path: Path) -> None:
    labels = labels_of(BOX)
    labels["cam_coord"]["joints.right"][1, 0, 16] = (-9.0, 0.1, 0.2)
    labels["cam_coord"]["joints.right"][1, 0, 20, 2] = -0.1
    labels["params"]["dist"][:] = (-0.3, 0, 0, 0, 0, 0, 0, 0)
    write_misc(tmp_path)
    write_sequences(tmp_path, "train", {BOX: labels})
    record = records_by_id(ingest(tmp_path))[f"arctic/train/{BOX}/000004-0"]
    assert np.flatnonzero(~record.keypoints_valid).tolist() == [4, 20]


def test_one_row_for_the_sequence_serves_all_frames(tmp_path: Path) -> None:
    write_misc(tmp_path)
    once = {"params/dist": np.array(EGO_DISTORTION), "params/K_ego": labels_of(BOX)["params"]["K_ego"][0]}
    write_sequences(tmp_path, "train", {BOX: labels_of(BOX, replace=once)})
    record = records_by_id(ingest(tmp_path))[f"arctic/train/{BOX}/000004-0"]
    assert record.keypoints_2d == pytest.approx(expected_keypoints(record), abs=0.01)


@pytest.mark.parametrize(
    ("replace", "reason"),
    [
        ({"cam_coord/joints.right": np.zeros((FRAMES, 9, 21, 3))}, RejectReason.LABEL_CORRUPT),
        ({"2d/joints.left": np.zeros((FRAMES, 10, 16, 2))}, RejectReason.LABEL_CORRUPT),
        ({"2d/joints.left": np.zeros((FRAMES - 1, 10, 21, 2))}, RejectReason.LABEL_CORRUPT),
        ({"2d/joints.right": "text"}, RejectReason.LABEL_CORRUPT),
        ({"2d": None}, RejectReason.LABEL_CORRUPT),
        ({"params": {}}, RejectReason.LABEL_CORRUPT),
        ({"bbox": np.zeros((FRAMES, 9))}, RejectReason.LABEL_CORRUPT),
        ({"bbox": np.zeros((0, 9, 3))}, RejectReason.LABEL_CORRUPT),
        ({"cam_coord/joints.right": np.full((FRAMES, 10, 21, 3), np.nan)}, RejectReason.LABEL_NOT_FINITE),
        ({"2d/joints.left": np.full((FRAMES, 10, 21, 2), np.inf)}, RejectReason.LABEL_NOT_FINITE),
        ({"params/K_ego": np.full((FRAMES, 3, 3), np.nan)}, RejectReason.LABEL_NOT_FINITE),
    ],
)
def test_damaged_labels_reject_the_sequence_alone(
    tmp_path: Path, replace: dict[str, Any], reason: RejectReason
) -> None:
    write_misc(tmp_path)
    write_sequences(
        tmp_path, "train", {BOX: labels_of(BOX, replace=replace), RETAKE: labels_of(RETAKE)}, static_views=()
    )
    damaged = [row for row in ingest(tmp_path) if BOX in row.record_id]
    assert [(type(row), getattr(row, "reason", None)) for row in damaged] == [(Rejection, reason)] * 2
    assert len(records_by_id(ingest(tmp_path))) == 2


def test_images_of_another_size_than_the_labels_are_rejected(tmp_path: Path) -> None:
    write_misc(tmp_path)
    write_sequences(tmp_path, "train", {BOX: labels_of(BOX)})
    write_image(tmp_path, (BOX, 1, 4), size=(1000, 900))
    write_image(tmp_path, (BOX, 0, 4), size=(840, 840))
    write_image(tmp_path, (BOX, 2, 4), full=True, size=(1000, 1400))
    rejected = [row for row in ingest(tmp_path) if isinstance(row, Rejection)]
    assert [row.reason for row in rejected] == [RejectReason.IMAGE_SIZE_MISMATCH] * 3
    assert "1000 x 1400, expected 2000 x 2800" in rejected[2].detail


def test_frames_without_a_row_subject_or_sequence_are_rejected_alone(tmp_path: Path) -> None:
    write_misc(tmp_path, ["s01"])
    frames = {BOX: labels_of(BOX), "s09/box_use_01": labels_of(BOX)}
    names = [image_name(name, 1, 4) for name in (BOX, "s09/box_use_01", "s01/notebook_use_01")]
    write_split_file(tmp_path, "p1", "train", frames, [*names, image_name(BOX, 1, 2), image_name(BOX, 1, 3 + FRAMES)])
    write_image(tmp_path, (BOX, 1, 4))
    reasons = {row.record_id: getattr(row, "reason", None) for row in ingest(tmp_path)}
    assert reasons == {
        f"arctic/train/{BOX}/000002-1": RejectReason.LABEL_MISSING,
        f"arctic/train/{BOX}/000004-1": None,
        f"arctic/train/{BOX}/000009-1": RejectReason.LABEL_MISSING,
        "arctic/train/s01/notebook_use_01/000004-1": RejectReason.LABEL_MISSING,
        "arctic/train/s09/box_use_01/000004-1": RejectReason.LABEL_MISSING,
    }


def test_names_that_are_no_images_are_told_once_and_leave_nothing_else_out(tmp_path: Path) -> None:
    write_misc(tmp_path)
    hostile = ["../../../etc/0/00001.jpg", "nonsense", 7, "/s01/box_grab_01/12/00004.jpg", image_name(BOX, 1, 4)]
    write_split_file(tmp_path, "p1", "train", {BOX: labels_of(BOX)}, hostile)
    write_image(tmp_path, (BOX, 1, 4))
    rows = ingest(tmp_path)
    reasons = sorted(row.reason for row in rows if isinstance(row, Rejection))
    assert reasons == [RejectReason.LABEL_CORRUPT] * 3 + [RejectReason.PATH_ESCAPES_ROOT]
    assert list(records_by_id(rows)) == [f"arctic/train/{BOX}/000004-1"]


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


def test_a_split_file_that_runs_code_is_one_rejected_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_misc(tmp_path)
    write_sequences(tmp_path, "train", {BOX: labels_of(BOX)})
    write_split_file(tmp_path, "p1", "train", {BOX: _Harmful()}, [])
    rows = ingest(tmp_path)
    (rejected,) = (row for row in rows if isinstance(row, Rejection))
    assert (rejected.reason, rejected.record_id) == (RejectReason.LABEL_UNSAFE, "arctic/train/p1_train.npy")
    assert [record.camera_id for record in records_by_id(rows).values()] == ["0", "0"]
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", ["[]", "{", json.dumps({"s01": {"ioi_offset": "x"}}), json.dumps({"s01": 3})])
def test_a_damaged_misc_file_rejects_the_frames(tmp_path: Path, content: str) -> None:
    write_misc(tmp_path).write_text(content)
    write_sequences(tmp_path, "train", {BOX: labels_of(BOX)}, static_views=())
    rows = ingest(tmp_path)
    assert [getattr(row, "reason", None) for row in rows] == [RejectReason.LABEL_CORRUPT] * 2


@pytest.mark.parametrize("document", [[1, 2], {"data_dict": 3, "imgnames": []}, {"data_dict": {}}])
def test_a_split_file_of_another_content_is_one_rejected_file(tmp_path: Path, document: Any) -> None:
    write_misc(tmp_path)
    path = write_split_file(tmp_path, "p2", "val", {}, [])
    np.save(path, np.array(document, dtype=object) if isinstance(document, list) else document)
    (row,) = ingest(tmp_path)
    assert isinstance(row, Rejection) and row.reason == RejectReason.LABEL_CORRUPT


class _SparseFile:
    """A file whose blocks of zeros take no space, so that a split file of gigabytes is written in seconds."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")

    def write(self, data: bytes) -> int:
        if len(data) > 100_000:
            return self._stream.seek(len(data), os.SEEK_CUR)
        return self._stream.write(data)

    def close(self) -> None:
        self._stream.truncate()
        self._stream.close()


def anonymous_bytes() -> int:
    """Return this process's memory less mapped pages."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a Linux process")
@pytest.mark.parametrize(
    ("sequences", "views"), [(100, 1), *(pytest.param(400, views, marks=pytest.mark.soak) for views in (1, 8))]
)
def test_memory_stays_bounded_on_a_split_file_of_gigabytes(tmp_path: Path, sequences: int, views: int) -> None:
    frames = 700

    def zeros(**shapes: tuple[int, ...]) -> dict[str, Any]:
        return {name.replace("__", "."): np.zeros((frames, *shape), np.float32) for name, shape in shapes.items()}

    def labels() -> dict[str, Any]:
        return {
            "2d": zeros(joints__right=(10, 21, 2), joints__left=(10, 21, 2)),
            "cam_coord": zeros(
                joints__right=(10, 21, 3),
                joints__left=(10, 21, 3),
                joints__smplx=(10, 127, 3),
                right_valid=(9,),
                left_valid=(9,),
            ),
            "params": zeros(K_ego=(3, 3), dist=(8,), world2ego=(4, 4)),
            **zeros(bbox=(9, 3)),
        }

    names = [f"s01/box_grab_{index:03d}" for index in range(sequences)]
    splits = tmp_path / DATA / "splits"
    splits.mkdir(parents=True)
    sparse = _SparseFile(splits / "p1_train.npy")
    np.lib.format.write_array_header_1_0(sparse, {"descr": "|O", "fortran_order": False, "shape": ()})  # type: ignore[arg-type]
    listed = [
        image_name(name, view, frame)
        for name in names
        for view in range(1, views + 1)
        for frame in range(10, frames - 10)
    ]

    document = {"data_dict": {name: labels() for name in names}, "imgnames": listed}
    pickle.dump(np.array(document, dtype=object), sparse, protocol=4)  # type: ignore[arg-type]
    sparse.close()
    del document, listed
    write_misc(tmp_path, ["s01"])
    assert (splits / "p1_train.npy").stat().st_size > sequences * 15e6

    before, peak, done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    adapter, found = ArcticAdapter(), find_root(ArcticAdapter, tmp_path)
    partition = next(iter(adapter.partitions(found)))
    rows = sum(1 for _ in adapter.records(found, partition))
    done.set()
    watcher.join()
    assert rows == -(-sequences // PARTITIONS_PER_SPLIT) * views * (frames - 20)
    assert peak[0] - before < 2**30
