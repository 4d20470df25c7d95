"""HOI4D: hands of both archives, masks by class of object, cameras, MANO, splits, malformed and hostile pickles."""

import codecs
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handdata.adapters.base import AdapterOptions
from handdata.adapters.hoi4d import Hoi4dAdapter
from handdata.adapters.reading.mano import MANOPTH_TIPS
from handdata.adapters.roots import find_root
from handdata.schemas import HandRecord, LayoutError, RecordError, Rejection, RejectReason, Side, UsageError
from tests.fixtures.hoi4d import (
    CHAIR,
    FRAMES,
    HELD_OUT,
    LAMP,
    MUG,
    SIZE,
    K,
    camera_points,
    hand_content,
    hand_path,
    mask_region,
    pixels_of,
    project,
    trajectory_text,
    world_t_camera,
    write_camera,
    write_hoi4d,
    write_mask,
    write_pickle,
    write_sequence,
)
from tests.fixtures.mano import exponential, reference_joints, write_mano


def ingest(root: Path, options: AdapterOptions = AdapterOptions()) -> list[HandRecord | Rejection]:
    adapter = Hoi4dAdapter(options)
    found = find_root(Hoi4dAdapter, root)
    return [row for partition in adapter.partitions(found) for row in adapter.records(found, partition)]


def records_by_id(rows: Sequence[HandRecord | Rejection]) -> dict[str, HandRecord]:
    return {row.record_id: row for row in rows if isinstance(row, HandRecord)}


def rejected(rows: Sequence[HandRecord | Rejection]) -> dict[str, RejectReason]:
    return {row.record_id: row.reason for row in rows if isinstance(row, Rejection)}


def record_of(rows: Sequence[HandRecord | Rejection], clip: str, frame: int) -> HandRecord:
    found = (row for row in records_by_id(rows).values() if (row.sequence_id, row.frame_index) == (clip, frame))
    return next(found)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hoi4d")
    write_hoi4d(folder)
    return folder


@pytest.fixture(scope="module")
def rows(root: Path) -> list[HandRecord | Rejection]:
    return ingest(root)


def test_keypoints_are_the_projected_joints_of_the_labelled_hands(rows: list[HandRecord | Rejection]) -> None:
    labelled = {(MUG, 0): "right", (MUG, 1): "both", (CHAIR, 0): "both", (CHAIR, 2): "left", (LAMP, 1): "right"}
    for (clip, frame), hands in labelled.items():
        record = record_of(rows, clip, frame)
        for first, side in ((0, "right"), (21, "left")):
            valid = record.keypoints_valid[first : first + 21]
            assert valid.all() == valid.any() == (hands in (side, "both"))
            if valid.any():
                expected = [project(point) for point in camera_points(clip, frame, side)]
                assert record.keypoints_2d[first : first + 21] == pytest.approx(np.array(expected), abs=0.5)


def test_a_hand_without_a_pickle_is_unknown(rows: list[HandRecord | Rejection]) -> None:
    states = [record_of(rows, MUG, frame).hand_state for frame in range(FRAMES)]
    assert states == [("labelled", "unknown"), ("labelled", "labelled"), ("unknown", "unknown")]


def test_every_frame_of_a_video_is_a_record_named_by_its_place(root: Path, rows: list[HandRecord | Rejection]) -> None:
    record = record_of(rows, MUG, 2)
    assert record.image_uri == str(root.resolve() / "HOI4D_release" / MUG / "align_rgb/image.mp4")
    assert (record.video_frame, record.camera_id, record.subject_id) == (2, "ZY20210800001", "H1")
    assert (record.width, record.height, record.viewpoint) == (*SIZE, "ego")
    assert record.timestamp_s == pytest.approx(2 / 15)
    assert len(records_by_id(rows)) == 12


def test_a_pickle_past_the_end_of_the_video_is_rejected(rows: list[HandRecord | Rejection]) -> None:
    assert rejected(rows) == {
        f"hoi4d/train/{MUG}/000007-ZY20210800001": RejectReason.FRAME_MISSING,
        f"hoi4d/train/{LAMP}/3Dseg/output.log": RejectReason.LABEL_MISSING,
    }


def test_a_trajectory_that_ends_early_masks_with_gaps_and_files_of_no_frame_are_rejected(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_hoi4d(root)
    masks = root / "HOI4D_annotations" / MUG / "2Dseg/mask"
    for name in ("00005.png", "00001 copy.png"):
        shutil.copy(masks / "00000.png", masks / name)
    hands = root / "handpose/refinehandpose_right" / MUG
    (hands / "0.pickle").rename(hands / "0.PICKLE")
    found = rejected(ingest(root))
    del found[f"hoi4d/train/{MUG}/000007-ZY20210800001"]
    assert found == {
        f"hoi4d/train/{MUG}/2Dseg": RejectReason.LABEL_MISSING,
        f"hoi4d/train/{MUG}/mask/00001 copy.png": RejectReason.LABEL_CORRUPT,
        f"hoi4d/train/{MUG}/T1/0.PICKLE": RejectReason.LABEL_CORRUPT,
        f"hoi4d/train/{LAMP}/3Dseg/output.log": RejectReason.LABEL_MISSING,
    }


def test_the_trajectory_is_inverted(rows: list[HandRecord | Rejection]) -> None:
    for frame in range(FRAMES):
        record = record_of(rows, MUG, frame)
        assert record.camera_t_world is not None and record.camera_k is not None
        assert record.camera_t_world @ world_t_camera(frame) == pytest.approx(np.eye(4), abs=1e-6)
        assert record.camera_k == pytest.approx(K)


def test_poses_that_may_belong_to_other_frames_are_not_used(tmp_path: Path) -> None:
    folders = {True: tmp_path / "video", False: tmp_path / "images"}
    for is_video, folder in folders.items():
        write_sequence(folder, MUG, frames=6, with_video=is_video, decoded=() if is_video else (0, 2, 5))

    def poses(numbers: Sequence[int], names: Sequence[int] | None = None, with_video: bool = True) -> list[int]:
        """Return which frames get a pose, always the right one, where the file holds those of ``numbers``."""
        root = folders[with_video]
        blocks = trajectory_text(9).splitlines()
        lines = []
        for number, name in zip(numbers, numbers if names is None else names, strict=True):
            lines += [f"{name} {name} {name + 1}", *blocks[5 * number + 1 : 5 * number + 5]]
        (root / "HOI4D_annotations" / MUG / "3Dseg/output.log").write_text("\n".join(lines))
        found = ingest(root)
        posed = []
        for record in records_by_id(found).values():
            if record.camera_t_world is not None:
                expected = np.linalg.inv(world_t_camera(record.frame_index))
                assert record.camera_t_world == pytest.approx(expected, abs=1e-6)
                posed.append(record.frame_index)
        said = f"hoi4d/train/{MUG}/3Dseg/output.log" in rejected(found)
        assert said == (sorted(numbers) != list(range(6)) or list(numbers) != sorted(numbers))
        return posed

    whole = list(range(6))
    assert poses(whole) == poses(whole, [0] * 6) == poses(whole, [1, 2, 3, 4, 5, 6]) == whole
    assert poses([0, 1, 3, 4, 5]) == poses([0, 1, 3, 2, 4, 5]) == [0, 1]
    assert poses([0, 1, 3, 4, 5], [0] * 5) == poses([0, 1, 3, 4, 5], [0, 1, 2, 3, 4]) == []
    assert poses([1, 2, 3, 4, 5]) == poses([0, 1, 2, 3]) == poses(list(range(8))) == poses([]) == []
    assert poses([0, 1, 2, 2, 3, 4, 5]) == [0, 1, 2]
    assert poses(whole, with_video=False) == [0, 2, 5]
    assert poses([0, 1, 2, 4, 5], with_video=False) == [0, 2]
    assert poses([0, 1, 2, 4, 5], [0] * 5, with_video=False) == []


def test_the_clips_of_the_test_list_are_test(rows: list[HandRecord | Rejection]) -> None:
    splits = {record.sequence_id: record.split for record in records_by_id(rows).values()}
    assert splits == {MUG: "train", CHAIR: "train", LAMP: "train", HELD_OUT: "test"}


def test_masks_hold_the_hands_that_the_object_s_class_labels(rows: list[HandRecord | Rejection]) -> None:
    for clip, frame, labels in ((MUG, 0, (2,)), (CHAIR, 0, (2, 3)), (LAMP, 2, (2, 6))):
        record = record_of(rows, clip, frame)
        assert (record.has_mask, record.mask_extent) == (True, "hand_forearm")
        expected = np.zeros((SIZE[1], SIZE[0]), dtype=np.bool_)
        for label in labels:
            expected[mask_region(label)] = True
        assert np.array_equal(Hoi4dAdapter().open_mask(record), expected)


def test_a_labelled_left_hand_that_the_mask_leaves_out_makes_it_no_mask(rows: list[HandRecord | Rejection]) -> None:
    record = record_of(rows, MUG, 1)
    assert (record.has_mask, record.mask_extent, record.extra) == (False, None, None)


def test_a_mask_may_have_an_alpha_channel_and_shift_mask_is_preferred(tmp_path: Path) -> None:
    write_sequence(tmp_path, MUG, masks={0: (1,)})
    write_mask(tmp_path / "HOI4D_annotations" / MUG / "2Dseg/shift_mask/00000.png", (2,), mode="RGBA")
    assert Hoi4dAdapter().open_mask(record_of(ingest(tmp_path), MUG, 0)).sum() == 60 * 90


def test_a_mask_without_a_hand_or_of_another_size_is_unreadable(tmp_path: Path) -> None:
    write_sequence(tmp_path, MUG, masks={0: (1, 3, 6)})
    record = record_of(ingest(tmp_path), MUG, 0)
    with pytest.raises(RecordError, match="colours no hand"):
        Hoi4dAdapter().open_mask(record)
    with pytest.raises(RecordError, match="expected 960 x 540"):
        Hoi4dAdapter().open_mask(record.model_copy(update={"width": 960, "height": 540}))


@pytest.mark.parametrize("newer", [False, True])
def test_both_archives_of_hand_poses_are_read(tmp_path: Path, newer: bool) -> None:
    write_sequence(tmp_path, MUG, newer=newer)
    assert [record.hand_state[0] for record in records_by_id(ingest(tmp_path)).values()] == ["labelled"] * FRAMES


def test_archives_in_a_folder_each_are_found(tmp_path: Path) -> None:
    write_sequence(tmp_path, MUG, masks={0: (2,)})
    write_camera(tmp_path, ["ZY20210800001"])
    for inner, outer in (
        ("HOI4D_release", "HOI4D_color"),
        ("HOI4D_annotations", "HOI4D_annotations_archive"),
        ("handpose", "HOI4D_Handpose"),
        ("camera_params", "HOI4D_cameras"),
    ):
        (tmp_path / outer).mkdir()
        (tmp_path / inner).rename(tmp_path / outer / inner)
    record = record_of(ingest(tmp_path), MUG, 0)
    assert record.hand_state[0] == "labelled" and record.has_mask and record.camera_k is not None


def test_decoded_frames_serve_where_the_video_is_gone(tmp_path: Path) -> None:
    write_sequence(tmp_path, MUG, with_video=False, decoded=(0, 2))
    rows = ingest(tmp_path)
    record = record_of(rows, MUG, 2)
    assert (Path(record.image_uri).name, record.video_frame) == ("00002.jpg", None)
    assert rejected(rows) == {f"hoi4d/train/{MUG}/000001-ZY20210800001": RejectReason.IMAGE_MISSING}


def test_labelled_frames_of_a_clip_without_video_are_rejected(tmp_path: Path) -> None:
    write_sequence(tmp_path, MUG, with_video=False)
    write_sequence(tmp_path, LAMP, with_video=False, hands={"right": ()})
    for folder in ("align_rgb", "."):
        (tmp_path / "HOI4D_release" / MUG / folder).rmdir()
    reasons = rejected(ingest(tmp_path))
    assert list(reasons.values()) == [RejectReason.IMAGE_MISSING] * 4
    assert f"hoi4d/train/{LAMP}" in reasons


def test_a_broken_video_is_rejected(tmp_path: Path) -> None:
    write_sequence(tmp_path, MUG)
    (tmp_path / "HOI4D_release" / MUG / "align_rgb/image.mp4").write_bytes(b"no video")
    assert list(rejected(ingest(tmp_path)).values()) == [RejectReason.FRAME_MISSING] * FRAMES


@pytest.mark.parametrize(
    "changes",
    [
        {"poseCoeff": np.array([0.5192359], dtype=np.float32)},
        {"kps2D": np.zeros((16, 2))},
        {"trans": np.zeros(2)},
    ],
)
def test_a_malformed_hand_is_dropped_and_the_frame_kept(tmp_path: Path, changes: dict[str, Any]) -> None:
    def content(clip: str, frame: int, side: str) -> dict[str, Any]:
        return hand_content(pixels_of(clip, frame, side), **(changes if side == "right" else {}))

    write_sequence(tmp_path, MUG, hands={"right": (0,), "left": (0,)}, content=content)
    assert record_of(ingest(tmp_path), MUG, 0).hand_state == ("unknown", "labelled")


@pytest.mark.parametrize(
    "changes",
    [
        {"kps2D": np.array("text")},
        {"kps2D": [[1.0, 2.0]] * 20 + [[1.0]]},
        {"kps2D": [["1", "2"]] * 21},
        {"kps2D": np.ones((21, 2), dtype=np.bool_)},
        {"beta": None},
        {"trans": "text"},
    ],
)
def test_a_hand_that_holds_no_numbers_rejects_its_frame(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_sequence(tmp_path, MUG, content=lambda *frame: hand_content(pixels_of(*frame), **changes))
    assert set(rejected(ingest(tmp_path)).values()) == {RejectReason.LABEL_CORRUPT}


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + HELD_OUT.encode(),
        HELD_OUT.encode() + b"\r\n\r\n",
        b"\n" + HELD_OUT.encode() + b"  \n",
        codecs.BOM_UTF16_LE + f"{HELD_OUT}\r\n".encode("utf-16-le"),
        f"{HELD_OUT}/\n".encode(),
    ],
)
def test_a_test_list_holds_whatever_an_editor_made_of_it(tmp_path: Path, content: bytes) -> None:
    write_sequence(tmp_path, HELD_OUT)
    write_sequence(tmp_path, MUG)
    (tmp_path / "testset.txt").write_bytes(content)
    splits = {record.sequence_id: record.split for record in records_by_id(ingest(tmp_path)).values()}
    assert splits == {HELD_OUT: "test", MUG: "train"}


@pytest.mark.parametrize("line", ["# clips", HELD_OUT.partition("/")[2], f"{HELD_OUT} {MUG}", f'"{HELD_OUT}"', "ZY1"])
def test_a_line_of_the_test_list_that_names_no_clip_is_an_error(tmp_path: Path, line: str) -> None:
    write_sequence(tmp_path, HELD_OUT)
    (tmp_path / "testset.txt").write_text(f"{line}\n")
    with pytest.raises(RecordError, match="is no name of a clip"):
        ingest(tmp_path)


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64, np.int32])
def test_keypoints_of_any_kind_of_number_and_nesting_are_read(tmp_path: Path, dtype: type[Any]) -> None:
    write_sequence(tmp_path, MUG, content=lambda *frame: hand_content(pixels_of(*frame).astype(dtype)[None]))
    assert record_of(ingest(tmp_path), MUG, 0).keypoints_2d[:21] == pytest.approx(pixels_of(MUG, 0, "right"))


class _Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (_Harmful(), RejectReason.LABEL_UNSAFE),
        (hand_content(np.zeros((21, 2))) | {"extra": _Harmful()}, RejectReason.LABEL_UNSAFE),
        ([1, 2], RejectReason.LABEL_CORRUPT),
        (b"", RejectReason.LABEL_CORRUPT),
        (hand_content(np.full((21, 2), np.nan)), RejectReason.LABEL_NOT_FINITE),
    ],
)
def test_a_hostile_or_damaged_pickle_rejects_its_frame_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, reason: RejectReason
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sequence(tmp_path, MUG)
    path = hand_path(tmp_path, MUG, 1, "right")
    if content == b"":
        path.write_bytes(b"\x80\x02}q\x00")
    else:
        write_pickle(path, content)
    rows = ingest(tmp_path)
    assert rejected(rows) == {f"hoi4d/train/{MUG}/000001-ZY20210800001": reason}
    assert len(records_by_id(rows)) == FRAMES - 1
    assert not (tmp_path / "harmed").exists()


def test_a_pickle_of_numpy_1_is_read(tmp_path: Path) -> None:
    write_sequence(tmp_path, MUG)
    path = hand_path(tmp_path, MUG, 0, "right")
    path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))
    assert b"numpy.core" in path.read_bytes()
    assert record_of(ingest(tmp_path), MUG, 0).keypoints_2d[:21] == pytest.approx(pixels_of(MUG, 0, "right"))


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("camera_params/ZY20210800001/intrin.npy", b"\x93NUMPY", RejectReason.LABEL_CORRUPT),
        (f"HOI4D_annotations/{MUG}/3Dseg/output.log", b"0 0 1\n1 0 0 0\n", RejectReason.LABEL_CORRUPT),
        (f"HOI4D_annotations/{MUG}/3Dseg/output.log", b"no trajectory", RejectReason.LABEL_CORRUPT),
        (f"HOI4D_annotations/{MUG}/3Dseg/output.log", b"\xff\xfe", RejectReason.LABEL_CORRUPT),
    ],
)
def test_a_damaged_camera_file_is_one_rejection_of_the_clip(
    tmp_path: Path, file: str, content: bytes, reason: RejectReason
) -> None:
    write_camera(tmp_path, ["ZY20210800001"])
    write_sequence(tmp_path, MUG)
    (tmp_path / file).write_bytes(content)
    (row,) = ingest(tmp_path)
    assert isinstance(row, Rejection) and (row.reason, file.rpartition("/")[2] in row.detail) == (reason, True)


def test_a_pose_that_is_no_rotation_rejects_its_frame_alone(tmp_path: Path) -> None:
    write_sequence(tmp_path, MUG)
    lines = trajectory_text(FRAMES).splitlines()
    lines[6] = "2 0 0 0"
    lines[11] = "nan 0 0 0"
    (tmp_path / "HOI4D_annotations" / MUG / "3Dseg/output.log").write_text("\n".join(lines))
    reasons = rejected(ingest(tmp_path))
    assert list(reasons.values()) == [RejectReason.LABEL_CORRUPT, RejectReason.LABEL_NOT_FINITE]


def test_another_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "HOI4D_annotations").mkdir()
    with pytest.raises(LayoutError, match=r"does not look like hoi4d: looked for HOI4D_release/ZY\*"):
        find_root(Hoi4dAdapter, tmp_path)


class Posed:
    """Hands whose pixels are the projection of MANO joints."""

    def __init__(self, folder: Path) -> None:
        self.models = write_mano(folder)
        self.options = AdapterOptions(mano_dir=folder)
        rng = np.random.default_rng(3)
        self.pose, self.betas = rng.normal(scale=0.3, size=48), rng.normal(size=10)
        self.translation = np.array([0.05, -0.02, 0.6])

    def joints(self, model: Side) -> np.ndarray:
        rotation = exponential(self.pose[:3])
        return reference_joints(
            self.models[model], rotation, self.pose[3:], self.betas, self.translation, MANOPTH_TIPS[model]
        )

    def content(self, model: Side) -> dict[str, Any]:
        pixels = np.array([project(joint) for joint in self.joints(model)]).astype(np.int64)
        return hand_content(pixels, poseCoeff=self.pose, beta=self.betas, trans=self.translation)


@pytest.mark.parametrize(("side", "model"), [("right", "right"), ("left", "left"), ("left", "right")])
def test_with_mano_the_joints_are_metres_in_the_camera_frame(tmp_path: Path, side: str, model: Side) -> None:
    posed = Posed(tmp_path / "mano")
    write_camera(tmp_path / "data", ["ZY20210800001"])
    write_sequence(tmp_path / "data", MUG, hands={side: (0,)}, content=lambda *_: posed.content(model))
    record = record_of(ingest(tmp_path / "data", posed.options), MUG, 0)
    assert record.keypoints_3d is not None
    rows = slice(0, 21) if side == "right" else slice(21, 42)
    assert record.keypoints_3d[rows] == pytest.approx(posed.joints(model), abs=1e-5)
    assert record_of(ingest(tmp_path / "data"), MUG, 0).keypoints_3d is None


def test_joints_that_do_not_project_to_the_label_are_left_out(tmp_path: Path) -> None:
    posed = Posed(tmp_path / "mano")
    write_camera(tmp_path / "data", ["ZY20210800001"])
    shifted = posed.content("right")
    shifted["kps2D"] = shifted["kps2D"] + 40
    write_sequence(tmp_path / "data", MUG, hands={"right": (0,)}, content=lambda *_: shifted)
    record = record_of(ingest(tmp_path / "data", posed.options), MUG, 0)
    assert record.keypoints_3d is None and record.hand_state[0] == "labelled"


def test_missing_mano_files_are_told_before_any_frame_is_read(tmp_path: Path) -> None:
    write_sequence(tmp_path, MUG)
    with pytest.raises(UsageError, match=r"MANO_RIGHT\.pkl"):
        next(Hoi4dAdapter(AdapterOptions(mano_dir=tmp_path)).partitions(tmp_path))
