"""AssemblyHands: joint order, both kinds of view, their flags, video time, held-out labels, damaged files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handdata.adapters.assemblyhands import AssemblyHandsAdapter
from handdata.adapters.reading.video import VideoReader
from handdata.adapters.roots import find_root
from handdata.schemas import HandRecord, LayoutError, RecordError, Rejection, RejectReason
from tests.fixtures.assemblyhands import (
    EGO_CAMERAS,
    EGO_SIZE,
    EXO_CAMERAS,
    EXO_SIZE,
    TRAIN,
    TRAIN_2,
    VAL,
    ego_file_name,
    extrinsics_mm,
    intrinsics,
    label_path,
    project,
    world_points_mm,
    write_assemblyhands,
    write_split,
)

EGO_IDS = [f"{camera}_mono10bit" for camera in EGO_CAMERAS]
DATASET_FINGERS = {"thumb": 3, "index": 7, "middle": 11, "ring": 15, "little": 19}
"""Row of each finger's joint next to the palm; the ones before it lead to the tip."""
DATASET_ROW = [20, *(palm - step for palm in DATASET_FINGERS.values() for step in range(4))]
BOTH_HANDS = [*DATASET_ROW, *(row + 21 for row in DATASET_ROW)]


def ingest(root: Path, split: str | None = None) -> list[HandRecord | Rejection]:
    adapter = AssemblyHandsAdapter()
    found = find_root(AssemblyHandsAdapter, root)
    partitions = [part for part in adapter.partitions(found) if split in (None, part.split)]
    return [row for partition in partitions for row in adapter.records(found, partition)]


def records_by_id(rows: Sequence[HandRecord | Rejection]) -> dict[str, HandRecord]:
    return {row.record_id: row for row in rows if isinstance(row, HandRecord)}


def rejected(rows: Sequence[HandRecord | Rejection]) -> dict[str, RejectReason]:
    return {row.record_id: row.reason for row in rows if isinstance(row, Rejection)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assemblyhands") / "data"
    write_assemblyhands(folder)
    return folder


@pytest.fixture(scope="module")
def rows(root: Path) -> list[HandRecord | Rejection]:
    return ingest(root)


def test_keypoints_are_the_projected_joints_in_every_view(rows: list[HandRecord | Rejection]) -> None:
    seen = set()
    for record in records_by_id(rows).values():
        camera = record.camera_id.removesuffix("_mono10bit")
        world = world_points_mm(record.sequence_id, record.frame_index)[BOTH_HANDS]
        expected = np.array([project(camera, record.frame_index, point) for point in world])
        valid = record.keypoints_valid
        assert record.keypoints_2d[valid] == pytest.approx(expected[valid, :2], abs=0.001)
        assert record.keypoints_3d is not None
        assert record.keypoints_3d[valid, 2] * 1000 == pytest.approx(expected[valid, 2], abs=0.001)
        seen.add(record.camera_id)
    assert seen == {*EGO_IDS, *EXO_CAMERAS}


def test_cameras_are_given_in_metres(rows: list[HandRecord | Rejection]) -> None:
    for record in records_by_id(rows).values():
        camera = record.camera_id.removesuffix("_mono10bit")
        matrix = extrinsics_mm(camera, record.frame_index)
        assert record.camera_t_world is not None and record.camera_k is not None
        assert record.camera_t_world[:3] == pytest.approx(np.c_[matrix[:, :3], matrix[:, 3] / 1000], abs=1e-6)
        assert record.camera_k == pytest.approx(intrinsics(camera))


def test_a_moment_is_one_frame_index_in_all_its_views(rows: list[HandRecord | Rejection]) -> None:
    views = [row.record_id.rpartition("-")[2] for row in rows if f"{TRAIN}/000520" in row.record_id]
    assert views == [*EXO_CAMERAS, *EGO_IDS]
    times = {record.frame_index: record.timestamp_s for record in records_by_id(rows).values()}
    assert times == {frame: pytest.approx(frame / 60) for frame in (520, 522, 524)}


def test_exo_frames_are_those_of_the_video_from_the_first_annotated_one_on(
    root: Path, rows: list[HandRecord | Rejection]
) -> None:
    for frame, index in ((520, 0), (522, 1), (524, 2)):
        record = records_by_id(rows)[f"assemblyhands/val/{VAL}/{frame:06d}-{EXO_CAMERAS[1]}"]
        assert record.video_frame == index
        assert (record.width, record.height, record.viewpoint) == (*EXO_SIZE, "exo")
        path = Path(record.image_uri)
        assert path == root.resolve() / "videos/exo_videos_rectified" / VAL / "C10379_rgb.mp4"
        with VideoReader(path) as reader:
            (_, image) = next(reader.frames([index]))
        assert abs(int(image.mean()) - (20 + 40 * index)) < 5


def test_ego_images_are_stills_with_boxes_and_subject(root: Path, rows: list[HandRecord | Rejection]) -> None:
    record = records_by_id(rows)[f"assemblyhands/train/{TRAIN_2}/000520-{EGO_IDS[0]}"]
    assert record.image_uri == str(
        root.resolve() / "images/ego_images_rectified/train" / TRAIN_2 / EGO_IDS[0] / "000520.jpg"
    )
    assert (record.width, record.height, record.viewpoint, record.video_frame) == (*EGO_SIZE, "ego", None)
    assert record.subject_id == "9034"
    assert record.extra == {
        "boxes_xyxy_px": [[100.0, 90.5, 300.25, 260.0], [310.0, 80.0, 480.0, 240.0]],
        "box_sides": ["right", "left"],
    }


def test_a_joint_of_an_ego_image_needs_both_flags_an_exo_joint_the_3d_one(rows: list[HandRecord | Rejection]) -> None:
    records = records_by_id(rows)
    unseen = records[f"assemblyhands/train/{TRAIN}/000520-{EGO_IDS[1]}"]
    assert unseen.hand_state == ("labelled", "unknown")
    assert records[f"assemblyhands/train/{TRAIN}/000520-{EXO_CAMERAS[0]}"].hand_state == ("labelled", "labelled")
    middle_tip = 12
    for camera in (EGO_IDS[0], EXO_CAMERAS[0]):
        record = records[f"assemblyhands/train/{TRAIN}/000524-{camera}"]
        assert np.flatnonzero(~record.keypoints_valid).tolist() == [middle_tip]


def test_a_missing_image_is_rejected_alone(rows: list[HandRecord | Rejection]) -> None:
    assert rejected(rows) == {f"assemblyhands/train/{TRAIN}/000522-{EGO_IDS[0]}": RejectReason.IMAGE_MISSING}
    assert len(rows) == 33


@pytest.mark.parametrize("kept", ["images", "videos"])
def test_images_alone_and_videos_alone_are_accepted(tmp_path: Path, kept: str) -> None:
    for split, name in (("train", TRAIN), ("val", VAL)):
        write_split(tmp_path, split, [name], with_images=kept == "images", with_videos=kept == "videos")
    rows = ingest(tmp_path)
    assert len(records_by_id(rows)) == len(rows) == {"images": 10, "videos": 12}[kept]
    assert {row.record_id.split("/")[2]: row.record_id.split("/")[1] for row in rows} == {TRAIN: "train", VAL: "val"}


def test_annotations_without_images_are_no_dataset(tmp_path: Path) -> None:
    write_split(tmp_path, "val", [VAL], with_images=False, with_videos=False)
    with pytest.raises(LayoutError, match=r"ego images.*exo videos"):
        find_root(AssemblyHandsAdapter, tmp_path)


def test_each_listed_image_of_a_sequence_that_was_not_downloaded_is_rejected(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [TRAIN, TRAIN_2], with_videos=False)
    for path in sorted((tmp_path / "images/ego_images_rectified/train" / TRAIN_2).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "images/ego_images_rectified/train" / TRAIN_2).rmdir()
    rows = ingest(tmp_path)
    assert len(records_by_id(rows)) == 5
    assert list(rejected(rows).values()) == [RejectReason.IMAGE_MISSING] * 5


@pytest.mark.parametrize("options", [{"held_out": True}, {"with_joints": False}])
def test_held_out_labels_give_ego_records_without_joints(tmp_path: Path, options: dict[str, bool]) -> None:
    write_split(tmp_path, "test", [VAL], with_videos=False, **options)  # type: ignore[arg-type]
    rows = ingest(tmp_path)
    assert {record.hand_state for record in records_by_id(rows).values()} == {("unknown", "unknown")}
    assert len(records_by_id(rows)) == len(rows) == 5


def test_frames_past_the_end_of_a_video_are_rejected(tmp_path: Path) -> None:
    write_split(tmp_path, "val", [VAL], with_images=False, video_frames=2)
    reasons = rejected(ingest(tmp_path))
    assert reasons == {f"assemblyhands/val/{VAL}/000524-{camera}": RejectReason.FRAME_MISSING for camera in EXO_CAMERAS}


def drop_frames(root: Path, kinds: Sequence[str], frames: Sequence[int]) -> None:
    """Remove frames from label files of the validation split."""
    names = [f"{frame:06d}" for frame in frames]
    for kind in kinds:
        path = label_path(root, "val", kind)
        document = json.loads(path.read_text())
        if kind == "ego_data":
            document["images"] = [entry for entry in document["images"] if entry["frame_idx"] not in frames]
        else:
            labels = document["annotations" if kind == "joint_3d" else "calibration"][VAL]
            for name in names:
                (labels if kind == "joint_3d" else labels["extrinsics"]).pop(name)
        path.write_text(json.dumps(document))


@pytest.mark.parametrize("with_images", [True, False])
@pytest.mark.parametrize("kinds", [["joint_3d"], ["joint_3d", "ego_data"], ["joint_3d", "ego_calib"]])
def test_video_frames_do_not_shift_where_a_label_file_lacks_the_first_frame(
    tmp_path: Path, kinds: list[str], with_images: bool
) -> None:
    write_split(tmp_path, "val", [VAL], with_images=with_images)
    drop_frames(tmp_path, kinds, [520])
    records = records_by_id(ingest(tmp_path))
    for frame, index in ((522, 1), (524, 2)):
        for camera in EXO_CAMERAS:
            assert records[f"assemblyhands/val/{VAL}/{frame:06d}-{camera}"].video_frame == index


def test_videos_are_rejected_where_nothing_tells_which_frame_they_begin_with(tmp_path: Path) -> None:
    write_split(tmp_path, "val", [VAL], with_images=False)
    drop_frames(tmp_path, ["joint_3d", "ego_data", "ego_calib"], [520])
    label_path(tmp_path, "val", "ego_data").unlink()
    label_path(tmp_path, "val", "ego_calib").unlink()
    rows = ingest(tmp_path)
    assert set(rejected(rows).values()) == {RejectReason.FRAME_MISSING} and not records_by_id(rows)
    assert isinstance(rows[0], Rejection) and "nothing tells which frame" in rows[0].detail


def test_the_length_of_a_video_confirms_its_beginning_where_one_label_file_is_there_alone(tmp_path: Path) -> None:
    write_split(tmp_path, "val", [VAL], with_images=False)
    label_path(tmp_path, "val", "ego_data").unlink()
    label_path(tmp_path, "val", "ego_calib").unlink()
    assert len(records_by_id(ingest(tmp_path))) == 6


def test_a_frame_that_ego_data_names_and_joint_3d_lacks_is_label_missing_in_every_view(tmp_path: Path) -> None:
    write_split(tmp_path, "val", [VAL])
    drop_frames(tmp_path, ["joint_3d"], [522])
    views = [*EXO_CAMERAS, *EGO_IDS]
    expected = {f"assemblyhands/val/{VAL}/000522-{view}": RejectReason.LABEL_MISSING for view in views}
    assert rejected(ingest(tmp_path)) == expected


def test_an_image_without_annotation_is_label_missing(tmp_path: Path) -> None:
    write_split(tmp_path, "val", [VAL], with_videos=False)
    path = label_path(tmp_path, "val", "ego_data")
    document = json.loads(path.read_text())
    document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] != 7]
    path.write_text(json.dumps(document))
    rows = ingest(tmp_path)
    assert rejected(rows) == {f"assemblyhands/val/{VAL}/000520-{EGO_IDS[0]}": RejectReason.LABEL_MISSING}


def test_an_annotation_that_is_no_object_is_a_rejection(tmp_path: Path) -> None:
    write_split(tmp_path, "val", [VAL], with_videos=False)
    path = label_path(tmp_path, "val", "ego_data")
    document = json.loads(path.read_text())
    document["annotations"].append("text")
    path.write_text(json.dumps(document))
    rows = ingest(tmp_path)
    assert list(rejected(rows).values()) == [RejectReason.LABEL_CORRUPT] and len(records_by_id(rows)) == 5


def test_the_unrectified_videos_of_the_parent_dataset_are_rejected(tmp_path: Path) -> None:
    write_split(tmp_path, "val", [VAL], with_images=False, video_frames=6, video_rate=60)
    rows = ingest(tmp_path)
    assert set(rejected(rows).values()) == {RejectReason.FRAME_MISSING} and not records_by_id(rows)
    assert isinstance(rows[0], Rejection) and "60.00 frames a second" in rows[0].detail


def test_a_broken_video_is_rejected_and_leaves_the_others(tmp_path: Path) -> None:
    write_split(tmp_path, "val", [VAL], with_images=False)
    (tmp_path / "videos/exo_videos_rectified" / VAL / "C10095_rgb.mp4").write_bytes(b"no video")
    rows = ingest(tmp_path)
    assert set(rejected(rows).values()) == {RejectReason.FRAME_MISSING}
    assert len(records_by_id(rows)) == 3


def test_static_cameras_come_from_the_annotations_where_calib_txt_is_missing(tmp_path: Path) -> None:
    write_split(tmp_path, "val", [VAL], with_images=False, with_calib_txt=False, with_exo_calib=True)
    record = records_by_id(ingest(tmp_path))[f"assemblyhands/val/{VAL}/000520-{EXO_CAMERAS[0]}"]
    expected = project(EXO_CAMERAS[0], 520, world_points_mm(VAL, 520)[20])
    assert record.keypoints_2d[0] == pytest.approx(expected[:2], abs=0.001)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, RejectReason.LABEL_MISSING),
        ("", RejectReason.LABEL_MISSING),
        ("C10095_rgb\n1 2 3\n", RejectReason.LABEL_CORRUPT),
        ("C10095_rgb\n" + "1 0 x\n" * 7, RejectReason.LABEL_CORRUPT),
        ("C10095_rgb\n" + "1 0 nan\n" * 3 + "0\n" + "1 2 3 4\n" * 3, RejectReason.LABEL_NOT_FINITE),
    ],
)
def test_a_damaged_calib_txt_rejects_the_exo_frames(tmp_path: Path, content: str | None, reason: RejectReason) -> None:
    write_split(tmp_path, "val", [VAL], with_images=False, with_calib_txt=False)
    if content is not None:
        (tmp_path / "videos/exo_videos_rectified" / VAL / "calib.txt").write_text(content)
    assert list(rejected(ingest(tmp_path)).values()) == [reason] * 6


@pytest.mark.parametrize(
    ("replace", "reason"),
    [
        ({"replace_joint": {"world_coord": [[1, 2, 3]] * 21}}, RejectReason.LABEL_CORRUPT),
        ({"replace_joint": {"world_coord": None}}, RejectReason.LABEL_CORRUPT),
        ({"replace_joint": {"joint_valid": [1] * 21}}, RejectReason.LABEL_CORRUPT),
        ({"replace_joint": {"world_coord": [[float("nan")] * 3] * 42}}, RejectReason.LABEL_NOT_FINITE),
        ({"replace_joint": {"joint_valid": [2] * 42}}, RejectReason.LABEL_CORRUPT),
        ({"replace_joint": {"joint_valid": ["1"] * 42}}, RejectReason.LABEL_CORRUPT),
        ({"replace_joint": {"joint_valid": None}}, RejectReason.LABEL_CORRUPT),
        ({"replace_joint": {"world_coord": [["1", "2", "3"]] * 42}}, RejectReason.LABEL_CORRUPT),
        ({"replace_annotation": {"joint_valid": "x"}}, RejectReason.LABEL_CORRUPT),
        ({"replace_annotation": {"joint_valid": [0.5] * 42}}, RejectReason.LABEL_CORRUPT),
        ({"replace_annotation": {"joint_valid": [-1] * 42}}, RejectReason.LABEL_CORRUPT),
        ({"replace_annotation": {"bbox": [1, 2, 3, 4]}}, RejectReason.LABEL_CORRUPT),
        ({"replace_annotation": {"bbox": {"right": ["1", "2", "3", "4"]}}}, RejectReason.LABEL_CORRUPT),
        ({"replace_image": {"frame_idx": True}}, RejectReason.LABEL_CORRUPT),
        ({"replace_annotation": {"bbox": {"right": [1, 2]}}}, RejectReason.LABEL_CORRUPT),
        ({"replace_image": {"file_name": "../../../etc/passwd"}}, RejectReason.PATH_ESCAPES_ROOT),
        ({"replace_image": {"file_name": "/etc/passwd"}}, RejectReason.PATH_ESCAPES_ROOT),
        ({"replace_image": {"width": 480, "height": 636}}, RejectReason.IMAGE_SIZE_MISMATCH),
        ({"replace_image": {"frame_idx": "x"}}, RejectReason.LABEL_CORRUPT),
        ({"replace_image": {"camera": "HMC_1"}}, RejectReason.LABEL_MISSING),
        ({"replace_image": {"frame_idx": 526}}, RejectReason.LABEL_MISSING),
    ],
)
def test_a_damaged_entry_is_rejected_alone(tmp_path: Path, replace: dict[str, Any], reason: RejectReason) -> None:
    write_split(tmp_path, "val", [VAL], with_videos=False, **replace)
    rows = ingest(tmp_path)
    reasons = list(rejected(rows).values())
    of_the_whole_frame = "replace_joint" in replace
    assert reasons == [reason] * (2 if of_the_whole_frame else 1)
    assert len(records_by_id(rows)) == 5 - len(reasons)


def test_an_image_of_another_size_than_its_label_is_rejected(tmp_path: Path) -> None:
    write_split(tmp_path, "val", [VAL], with_videos=False)
    Image.new("L", (640, 480)).save(tmp_path / "images" / ego_file_name("val", VAL, (520, EGO_CAMERAS[0])))
    assert list(rejected(ingest(tmp_path)).values()) == [RejectReason.IMAGE_SIZE_MISMATCH]


@pytest.mark.parametrize("kind", ["ego_data", "ego_calib", "joint_3d"])
def test_a_truncated_file_is_one_rejection_that_names_it(tmp_path: Path, kind: str) -> None:
    write_split(tmp_path, "val", [VAL])
    path = label_path(tmp_path, "val", kind)
    text = path.read_text()
    path.write_text(text[: int(len(text) * 0.6)])
    rows = ingest(tmp_path)
    named = [row for row in rows if isinstance(row, Rejection) and row.image_uri == str(path.resolve())]
    assert {row.reason for row in named} == {RejectReason.LABEL_CORRUPT}
    assert len({row.record_id for row in rows}) == len(rows)


def test_joints_behind_a_camera_are_not_valid(tmp_path: Path) -> None:
    world = world_points_mm(VAL, 520)
    world[0, 2] = -5000.0
    write_split(tmp_path, "val", [VAL], with_videos=False, replace_joint={"world_coord": world.tolist()})
    record = records_by_id(ingest(tmp_path))[f"assemblyhands/val/{VAL}/000520-{EGO_IDS[0]}"]
    assert np.flatnonzero(~record.keypoints_valid).tolist() == [4]


def test_there_are_no_masks(rows: list[HandRecord | Rejection]) -> None:
    record = next(iter(records_by_id(rows).values()))
    assert not record.has_mask
    with pytest.raises(RecordError, match="assemblyhands has no masks"):
        AssemblyHandsAdapter().open_mask(record)
