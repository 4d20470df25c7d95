"""FoundHand-10M: its packed layout becomes records, and each kind of damage one rejection with its own reason."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handdata.adapters.foundhand10m import SEQUENCES_PER_PARTITION, FoundHand10MAdapter
from handdata.adapters.roots import find_root
from handdata.schemas import HandRecord, LayoutError, RecordError, Rejection, RejectReason
from tests.fixtures.foundhand10m import LEFT_HAND, STILL, make_pose, write_foundhand10m, write_frame

SEQUENCE = "InterHand/processed/test/0032_pinkytip"


def ingest(root: Path) -> list[HandRecord | Rejection]:
    adapter = FoundHand10MAdapter()
    root = find_root(FoundHand10MAdapter, root)
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def only_record(root: Path) -> HandRecord:
    (record,) = ingest(root)
    assert isinstance(record, HandRecord), record
    return record


def only_rejection(root: Path) -> Rejection:
    (row,) = [row for row in ingest(root) if isinstance(row, Rejection)]
    return row


def test_a_pack_becomes_one_record_for_each_image(tmp_path: Path) -> None:
    write_foundhand10m(tmp_path)
    rows = ingest(tmp_path)
    assert [row.record_id for row in rows] == [
        "foundhand10m/test/Arctic__processed__s01-box_grab_01/000010-0",
        "foundhand10m/train/Arctic__processed__s01-box_grab_01/000010-0",
        "foundhand10m/train/Arctic__processed__s01-box_grab_01/000010-6",
        "foundhand10m/train/Arctic__processed__s01-box_grab_01/000011-0",
        "foundhand10m/train/Arctic__processed__s01-box_grab_01/000011-6",
        "foundhand10m/train/AssemblyHands__processed_seq__nusar-2021_action_both/000520-C10095_rgb",
        "foundhand10m/train/AssemblyHands__processed_seq__nusar-2021_action_both/000520-HMC_21176623_mono10bit",
        "foundhand10m/val/AssemblyHands__processed_seq__nusar-2021_action_both/000525-C10095_rgb",
        f"foundhand10m/train/HAGRID__processed__call__{STILL}/000000-0",
        "foundhand10m/test/InterHand__processed__0032_pinkytip/000007-400002",
        "foundhand10m/test/InterHand__processed__0032_pinkytip/000011-400002",
    ]
    assert [row.record_id for row in rows if isinstance(row, Rejection)] == [rows[-1].record_id]


def test_a_frame_that_the_pack_holds_twice_has_one_origin(tmp_path: Path) -> None:
    for folder in ("processed/train", "processed_seq/train", "processed/test"):
        write_frame(tmp_path / "InterHand" / folder / "capture0-pose", "11929-400002")
    origins = [row.origin_id for row in ingest(tmp_path) if isinstance(row, HandRecord)]
    assert origins == ["interhand26m/capture0-pose/11929-400002"] * 3


def test_the_folder_that_holds_the_pack_is_accepted_too(tmp_path: Path) -> None:
    write_foundhand10m(tmp_path / "FoundHand10M")
    assert find_root(FoundHand10MAdapter, tmp_path) == (tmp_path / "FoundHand10M").resolve()


def test_another_folder_is_an_error_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(LayoutError, match=r"looked for .*processed.*found photos/"):
        find_root(FoundHand10MAdapter, tmp_path)


def test_processed_and_processed_seq_of_one_sequence_name_stay_apart(tmp_path: Path) -> None:
    for processed in ("processed", "processed_seq"):
        write_frame(tmp_path / "Dart" / processed / "train" / "a", "1-0")
    assert len({row.record_id for row in ingest(tmp_path)}) == 2


def test_sequences_are_grouped_into_partitions_that_sort(tmp_path: Path) -> None:
    count = SEQUENCES_PER_PARTITION + 3
    for index in range(count):
        (tmp_path / f"WLASL/processed/train/{index:04d}").mkdir(parents=True)
    partitions = list(FoundHand10MAdapter().partitions(tmp_path))
    assert [partition.name for partition in partitions] == [
        "WLASL/processed/train/00000",
        "WLASL/processed/train/00001",
    ]
    assert [len(partition.paths) for partition in partitions] == [SEQUENCES_PER_PARTITION, 3]


def test_keypoints_3d_and_camera_reproject_to_the_labelled_pixels(tmp_path: Path) -> None:
    pose = make_pose(seed=4)
    write_frame(tmp_path / SEQUENCE, "7-400002", pose, absent=LEFT_HAND, with_camera=True, with_joint_valid=True)
    record = only_record(tmp_path)
    assert record.camera_k is not None and record.keypoints_3d is not None and record.camera_t_world is not None
    world_m = np.c_[pose.world_mm / 1000, np.ones(42)]
    for joint in range(21):
        u, v, depth = pose.project(joint)
        x, y, z = record.keypoints_3d[joint]
        assert record.keypoints_2d[joint] == pytest.approx((u, v), abs=0.001)
        assert z == pytest.approx(depth, abs=1e-5)
        assert record.camera_k @ (x / z, y / z, 1) == pytest.approx((u, v, 1), abs=0.01)
        assert record.camera_t_world @ world_m[joint] == pytest.approx((x, y, z, 1), abs=1e-4)
    assert not record.keypoints_3d[21:].any()


def test_an_image_larger_than_its_mask_scales_keypoints_and_camera_per_axis(tmp_path: Path) -> None:
    pose = make_pose()
    write_frame(tmp_path / SEQUENCE, "7-400002", pose, size=256, mask_size=128, with_camera=True, with_joint_valid=True)
    Image.new("RGB", (256, 384)).save(tmp_path / SEQUENCE / "7-400002.jpg")
    record = only_record(tmp_path)
    u, v, _ = pose.project(5)
    assert record.keypoints_2d[5] == pytest.approx((2 * u, 3 * v), abs=0.01)
    assert record.camera_k is not None
    assert record.camera_k[0, 0] == pytest.approx(2 * pose.focal[0])
    assert record.camera_k[1, 2] == pytest.approx(3 * pose.principal[1])
    assert FoundHand10MAdapter().open_mask(record).shape == (384, 256)


def test_a_hand_of_zeros_is_absent_only_where_the_label_says_which_joints_are_valid(tmp_path: Path) -> None:
    write_frame(tmp_path / "a/processed/train/s", "1-0", absent=LEFT_HAND)
    write_frame(tmp_path / "b/processed/train/s", "1-0", absent=LEFT_HAND, with_joint_valid=True)
    states = [row.hand_state for row in ingest(tmp_path) if isinstance(row, HandRecord)]
    assert states == [("labelled", "unknown"), ("labelled", "absent")]


def test_joints_outside_the_crop_stay_valid_and_zeros_do_not(tmp_path: Path) -> None:
    keypoints = np.full((42, 2), 30, dtype=np.float32)
    keypoints[4] = (-17.5, 300)
    keypoints[5] = (0, 12)
    keypoints[6] = (-0.0, 0)
    write_frame(tmp_path / SEQUENCE, "7-0", replace={"kpts": keypoints})
    record = only_record(tmp_path)
    assert record.keypoints_valid[[4, 5, 6]].tolist() == [True, True, False]
    assert record.keypoints_2d[4].tolist() == [-17.5, 300]


@pytest.mark.parametrize(
    ("source", "camera", "viewpoint"),
    [
        ("Arctic", "0", "ego"),
        ("ARCTIC", "3", "exo"),
        ("AssemblyHands", "HMC_84346135_mono10bit", "ego"),
        ("AssemblyHands", "C10119_rgb", "exo"),
        ("Ego4D", "0", "ego"),
        ("EpicKitchensVisor", "0", "ego"),
        ("HOI4D", "0", "ego"),
        ("DexYCB", "836212060125", "exo"),
    ],
)
def test_head_cameras_are_ego(tmp_path: Path, source: str, camera: str, viewpoint: str) -> None:
    write_frame(tmp_path / source / "processed/train/s", f"00001-{camera}")
    assert only_record(tmp_path).viewpoint == viewpoint


def test_the_mask_is_the_hands_alone_and_of_unknown_extent(tmp_path: Path) -> None:
    write_frame(tmp_path / SEQUENCE, "7-400002", with_camera=True)
    record = only_record(tmp_path)
    mask = FoundHand10MAdapter().open_mask(record)
    assert (record.has_mask, record.mask_extent, mask.dtype, mask.shape) == (True, "unknown", np.bool_, (128, 128))
    assert mask[32:64, :16].all() and mask.sum() == 32 * 16


def test_a_label_without_mask_gives_a_record_without_mask(tmp_path: Path) -> None:
    write_frame(tmp_path / SEQUENCE, "7-400002", with_mask=False)
    record = only_record(tmp_path)
    assert not record.has_mask
    with pytest.raises(RecordError, match=r"mask_unreadable.*hand_mask"):
        FoundHand10MAdapter().open_mask(record)


def _truncate(path: Path, keep: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def _with_nan() -> np.ndarray:
    keypoints = make_pose().keypoints()
    keypoints[2, 1] = np.nan
    return keypoints


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        import os

        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "9-0.jpg").unlink(), RejectReason.IMAGE_MISSING),
        (lambda f: (f / "9-0.jpg").write_bytes(b""), RejectReason.IMAGE_EMPTY),
        (lambda f: _truncate(f / "9-0.jpg", 0.02), RejectReason.IMAGE_CORRUPT),
        (lambda f: Image.new("RGB", (8, 8)).save(f / "9-0.jpg", format="GIF"), RejectReason.IMAGE_CORRUPT),
        (lambda f: (f / "9-0.npz").unlink(), RejectReason.LABEL_MISSING),
        (lambda f: (f / "9-0.npz").write_bytes(b""), RejectReason.LABEL_CORRUPT),
        (lambda f: (f / "9-0.npz").write_bytes(b"not a zip file"), RejectReason.LABEL_CORRUPT),
        (lambda f: _truncate(f / "9-0.npz"), RejectReason.LABEL_CORRUPT),
        (lambda f: (f / "9-0.npz").write_bytes(pickle.dumps(_Evil())), RejectReason.LABEL_UNSAFE),
        (lambda f: write_frame(f, "9-0", replace={"kpts": np.array([_Evil()])}), RejectReason.LABEL_UNSAFE),
        (lambda f: write_frame(f, "9-0", replace={"extra": np.array([{}])}), RejectReason.LABEL_UNSAFE),
        (lambda f: write_frame(f, "9-0", replace={"kpts": _with_nan()}), RejectReason.LABEL_NOT_FINITE),
        (lambda f: write_frame(f, "9-0", replace={"kpts": np.full((42, 2), 1e300)}), RejectReason.LABEL_NOT_FINITE),
        (lambda f: write_frame(f, "9-0", replace={"kpts": np.ones((21, 2))}), RejectReason.LABEL_CORRUPT),
        (lambda f: write_frame(f, "9-0", replace={"kpts": np.full((42, 2), "x")}), RejectReason.LABEL_CORRUPT),
        (lambda f: write_frame(f, "9-0", replace={"hand_mask": np.ones(9)}), RejectReason.LABEL_CORRUPT),
        (
            lambda f: write_frame(f, "9-0", with_camera=True, replace={"campos": np.full(3, np.inf)}),
            RejectReason.LABEL_NOT_FINITE,
        ),
        (
            lambda f: write_frame(f, "9-0", with_camera=True, replace={"focal": np.ones(1)}),
            RejectReason.LABEL_CORRUPT,
        ),
    ],
)
def test_each_damage_is_one_rejection_that_names_the_file_and_the_others_go_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], object], reason: RejectReason
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / SEQUENCE
    for stem in ("8-0", "9-0", "10-0"):
        write_frame(folder, stem)
    damage(folder)
    rows = ingest(tmp_path)
    assert [isinstance(row, Rejection) for row in rows] == [False, True, False]
    row = only_rejection(tmp_path)
    assert (row.reason, row.record_id) == (reason, "foundhand10m/test/InterHand__processed__0032_pinkytip/000009-0")
    assert "9-0" in row.detail
    assert row.image_uri == str(folder.resolve() / "9-0.jpg")
    assert not (tmp_path / "pwned").exists()


def test_a_sequence_folder_that_vanished_is_one_rejection(tmp_path: Path) -> None:
    write_frame(tmp_path / SEQUENCE, "7-0")
    (partition,) = FoundHand10MAdapter().partitions(tmp_path)
    (tmp_path / SEQUENCE).rename(tmp_path / "elsewhere")
    (row,) = FoundHand10MAdapter().records(tmp_path, partition)
    assert isinstance(row, Rejection) and row.reason == RejectReason.LABEL_MISSING


def test_the_published_samples_reproject_within_a_hundredth_of_a_pixel(shared_dir: Path) -> None:
    rows = ingest(shared_dir / "data" / "FoundHand10M")
    assert len(rows) == 13
    for record in rows:
        assert isinstance(record, HandRecord)
        assert record.keypoints_3d is not None and record.camera_k is not None
        valid = record.keypoints_valid
        projected = record.keypoints_3d[valid] @ record.camera_k.T
        with np.load(Path(record.image_uri).with_suffix(".npz")) as label:
            assert np.abs(projected[:, :2] / projected[:, 2:] - label["kpts"][valid]).max() < 0.01
            assert (FoundHand10MAdapter().open_mask(record) == label["hand_mask"]).all()
        assert record.hand_state == ("labelled", "absent")


@pytest.mark.parametrize("copied", ["{} (1)", "{} - Copy", "Copy of {}", "{} copy 2"])
def test_a_copy_of_a_frame_is_no_frame_of_another_camera(tmp_path: Path, copied: str) -> None:
    write_foundhand10m(tmp_path)
    before = ingest(tmp_path)
    for suffix in (".jpg", ".npz"):
        path = tmp_path / f"InterHand/processed/test/0032_pinkytip/7-400002{suffix}"
        shutil.copy(path, path.with_name(copied.format(path.stem) + suffix))
    after = ingest(tmp_path)
    new = [row for row in after if row.record_id not in {row.record_id for row in before}]
    assert [row.reason for row in new if isinstance(row, Rejection)] == [RejectReason.LABEL_CORRUPT]
    assert len(after) == len(before) + 1
