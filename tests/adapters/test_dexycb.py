"""DexYCB: labels, cameras and the computed split become records with the labelled hand on its own rows."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handdata.adapters.dexycb import DexYCBAdapter, published_sequences
from handdata.adapters.roots import find_root
from handdata.schemas import HandRecord, LayoutError, RecordError, Rejection, RejectReason
from tests.fixtures.dexycb import (
    EXTRINSICS_IDS,
    SERIALS,
    SUBJECTS,
    camera_t_world,
    hand_pixels,
    intrinsics,
    project,
    sequence_name,
    world_points,
    write_calibration,
    write_dexycb,
    write_sequence,
)

SUBJECT = SUBJECTS[0]


def ingest(root: Path) -> list[HandRecord | Rejection]:
    root = find_root(DexYCBAdapter, root)
    adapter = DexYCBAdapter()
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def ingest_records(root: Path) -> list[HandRecord]:
    return [row for row in ingest(root) if isinstance(row, HandRecord)]


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    """A dataset of one right-hand sequence: two frames, two cameras."""
    write_calibration(tmp_path)
    return write_sequence(tmp_path, SUBJECT, 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[HandRecord | Rejection]:
    root = tmp_path_factory.mktemp("dexycb")
    write_dexycb(root)
    return ingest(root)


def test_both_hands_project_to_the_labelled_pixels_on_their_own_rows(whole: list[HandRecord | Rejection]) -> None:
    sides = set()
    for record in whole:
        if not isinstance(record, HandRecord) or not record.keypoints_valid.any():
            continue
        subject, _, name = record.sequence_id.partition("/")
        number = int(name[-4:])
        first = 0 if number % 2 == 0 else 21
        sides.add(first)
        assert record.hand_state == (("labelled", "unknown") if first == 0 else ("unknown", "labelled"))
        for joint, point in enumerate(world_points(number, record.frame_index)):
            if number == 2 and joint == 7:
                continue
            u, v, depth = project(subject, record.camera_id, point)
            assert record.keypoints_2d[first + joint] == pytest.approx((u, v), abs=0.01)
            assert record.keypoints_3d is not None
            assert record.keypoints_3d[first + joint, 2] == pytest.approx(depth, abs=1e-5)
    assert sides == {0, 21}


def test_camera_matrices_take_world_points_to_the_labelled_pixels(whole: list[HandRecord | Rejection]) -> None:
    for record in whole:
        if isinstance(record, HandRecord):
            subject = record.sequence_id.partition("/")[0]
            fx, fy, cx, cy = intrinsics(record.camera_id)
            assert record.camera_k is not None and record.camera_t_world is not None
            assert record.camera_k == pytest.approx(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
            assert record.camera_t_world[:3] == pytest.approx(camera_t_world(subject, record.camera_id), abs=1e-6)


def test_the_split_is_that_of_setup_s0(tmp_path: Path) -> None:
    write_calibration(tmp_path)
    for subject in SUBJECTS:
        for number in range(10):
            write_sequence(tmp_path, subject, number, frames=1, serials=SERIALS[:1])
    splits = {record.sequence_id: record.split for record in ingest_records(tmp_path)}
    for number in range(10):
        held_out = number in (4, 9)
        assert splits[f"{SUBJECTS[0]}/{sequence_name(number)}"] == ("val" if held_out else "train")
        assert splits[f"{SUBJECTS[1]}/{sequence_name(number)}"] == ("test" if held_out else "train")


def write_folders(root: Path, subject: str, names: Iterable[str]) -> None:
    """Write a subject whose sequences hold nothing but their names."""
    for name in names:
        (root / subject / name).mkdir(parents=True)


def splits_of(root: Path) -> dict[str, str]:
    return {path: partition.split for partition in DexYCBAdapter().partitions(root) for path in partition.paths}


PUBLISHED = published_sequences()
HELD_OUT_BY_OTHERS = (
    "20200709-subject-01/20200709_142123",
    "20200709-subject-01/20200709_151632",
    "20200813-subject-02/20200813_145612",
    "20200820-subject-03/20200820_135508",
    "20200903-subject-04/20200903_103828",
    "20200908-subject-05/20200908_151328",
    "20200918-subject-06/20200918_113137",
    "20200928-subject-07/20200928_154943",
    "20201002-subject-08/20201002_104827",
    "20201015-subject-09/20201015_142844",
    "20201022-subject-10/20201022_113909",
)
"""Of the validation and test images that another reader of the dataset names."""


def test_the_list_holds_the_thousand_sequences_of_the_authors() -> None:
    assert [len(names) for names in PUBLISHED.values()] == [100] * 10
    assert all(names == sorted(set(names)) for names in PUBLISHED.values())
    assert PUBLISHED["20200709-subject-01"][:3] == ["20200709_141754", "20200709_141841", "20200709_141931"]
    assert PUBLISHED["20201022-subject-10"][-2:] == ["20201022_114847", "20201022_114909"]
    for held_out in HELD_OUT_BY_OTHERS:
        subject, _, name = held_out.partition("/")
        assert PUBLISHED[subject].index(name) % 5 == 4


@pytest.mark.parametrize("kept", [range(0, 100, 3), range(50, 100), range(4, 5)])
def test_a_subject_that_is_unpacked_in_part_has_the_splits_of_the_papers(tmp_path: Path, kept: range) -> None:
    write_folders(tmp_path, SUBJECT, [PUBLISHED[SUBJECT][position] for position in kept])
    splits = splits_of(tmp_path)
    for position in kept:
        assert splits[f"{SUBJECT}/{PUBLISHED[SUBJECT][position]}"] == ("val" if position % 5 == 4 else "train")
    (warning,) = DexYCBAdapter().warnings(tmp_path)
    assert f"{SUBJECT} has {len(kept)} of its 100 sequences" in warning


def test_a_whole_subject_is_no_warning(tmp_path: Path) -> None:
    write_folders(tmp_path, SUBJECT, PUBLISHED[SUBJECT])
    assert list(DexYCBAdapter().warnings(tmp_path)) == []
    assert list(splits_of(tmp_path).values()).count("val") == 20


def test_one_sequence_that_is_not_listed_makes_the_positions_on_the_disk_decide(tmp_path: Path) -> None:
    write_folders(tmp_path, SUBJECT, ["20200709_000000", *PUBLISHED[SUBJECT][:9]])
    splits = splits_of(tmp_path)
    assert splits[f"{SUBJECT}/{PUBLISHED[SUBJECT][3]}"] == splits[f"{SUBJECT}/{PUBLISHED[SUBJECT][8]}"] == "val"
    (warning,) = DexYCBAdapter().warnings(tmp_path)
    assert f"{SUBJECT} has 10 sequences, not 100" in warning


STRAY = (".snapshot", ".ipynb_checkpoints", "@eaDir", "__MACOSX", "000_notes", "20200709_14175", "20200709_141754 (1)")


@pytest.mark.parametrize("stray", STRAY)
def test_stray_folders_move_no_sequence_to_another_split(tmp_path: Path, stray: str) -> None:
    names = [sequence_name(number) for number in range(10)]
    write_folders(tmp_path, SUBJECT, names)
    before = splits_of(tmp_path)
    (tmp_path / SUBJECT / stray).mkdir()
    (tmp_path / SUBJECT / "20200709_000001").write_bytes(b"a file")
    assert splits_of(tmp_path) == before
    assert len(before) == 10


def test_other_folders_of_a_subject_are_named_in_a_warning(tmp_path: Path) -> None:
    write_folders(tmp_path, SUBJECT, [*PUBLISHED[SUBJECT], "20200709_141754 (1)"])
    (warning,) = DexYCBAdapter().warnings(tmp_path)
    assert "20200709_141754 (1)" in warning


@pytest.mark.parametrize(
    "copy", [f"{SUBJECT} (1)", f"{SUBJECT}-copy", f"Copy of {SUBJECT}", f"{SUBJECT}.bak", "20200710-subject-01"]
)
def test_a_subject_that_is_there_twice_is_an_error_that_names_both(tmp_path: Path, copy: str) -> None:
    for folder in (SUBJECT, copy):
        write_folders(tmp_path, folder, PUBLISHED[SUBJECT][:2])
    with pytest.raises(LayoutError, match="subject 01 more than once") as caught:
        list(DexYCBAdapter().partitions(tmp_path))
    assert SUBJECT in caught.value.message and copy in caught.value.message


def test_a_copy_alone_is_an_error_for_its_name_decides_its_split(tmp_path: Path) -> None:
    write_folders(tmp_path, f"{SUBJECT} (1)", PUBLISHED[SUBJECT][:2])
    with pytest.raises(LayoutError, match="not named as a subject is"):
        list(DexYCBAdapter().partitions(tmp_path))


def test_a_subject_that_was_unpacked_into_its_own_folder_is_an_error(tmp_path: Path) -> None:
    write_folders(tmp_path, SUBJECTS[1], [sequence_name(0)])
    write_folders(tmp_path, f"{SUBJECT}/{SUBJECT}", PUBLISHED[SUBJECT][:2])
    with pytest.raises(LayoutError, match="subjects lie side by side"):
        list(DexYCBAdapter().partitions(tmp_path))


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar", ".zip", ".tar.gz.part"])
def test_an_archive_beside_its_folder_changes_nothing(sequence: Path, suffix: str) -> None:
    root = sequence.parents[1]
    (root / f"{SUBJECT}{suffix}").write_bytes(b"archive")
    (root / f"20200918-subject-06{suffix}").write_bytes(b"archive")
    assert len(ingest_records(root)) == 4


def test_records_of_one_frame_are_synchronised_views_and_of_one_camera_a_video(sequence: Path) -> None:
    rows = ingest_records(sequence.parents[1])
    assert [row.record_id for row in rows] == [
        f"dexycb/train/{SUBJECT}/{sequence.name}/{frame:06d}-{serial}" for frame in (0, 1) for serial in SERIALS[:2]
    ]
    assert {(row.subject_id, row.viewpoint, row.width, row.height, row.timestamp_s) for row in rows} == {
        (SUBJECT, "exo", 640, 480, None)
    }


def test_frames_without_annotation_are_kept_without_joints(whole: list[HandRecord | Rejection]) -> None:
    records = [row for row in whole if isinstance(row, HandRecord) and row.sequence_id.endswith("0001")]
    assert [record.hand_state for record in records if record.frame_index == 1] == [("unknown", "unknown")] * 4
    assert all(record.has_mask for record in records)


def test_a_joint_of_minus_one_is_not_valid_and_one_outside_the_image_is(whole: list[HandRecord | Rejection]) -> None:
    records = [row for row in whole if isinstance(row, HandRecord) and row.sequence_id.endswith("0002")]
    assert len(records) == 8
    for record in records:
        assert np.flatnonzero(~record.keypoints_valid[:21]).tolist() == [7]
    assert min(float(record.keypoints_2d[20, 0]) for record in records) < -1


def test_the_mask_is_where_the_segmentation_says_hand(sequence: Path) -> None:
    record = ingest_records(sequence.parents[1])[0]
    assert record.has_mask and record.mask_extent == "hand"
    assert np.array_equal(DexYCBAdapter().open_mask(record), hand_pixels())


def test_a_label_without_segmentation_is_a_record_without_mask(tmp_path: Path) -> None:
    write_calibration(tmp_path)
    write_sequence(tmp_path, SUBJECT, 0, with_seg=False)
    record = ingest_records(tmp_path)[0]
    assert (record.has_mask, record.mask_extent) == (False, None)
    with pytest.raises(RecordError, match=r"labels_000000\.npz lacks the array 'seg'"):
        DexYCBAdapter().open_mask(record)


def test_a_missing_image_is_rejected_alone(whole: list[HandRecord | Rejection]) -> None:
    (rejected,) = [row for row in whole if isinstance(row, Rejection)]
    assert rejected.reason == RejectReason.IMAGE_MISSING
    assert rejected.record_id == f"dexycb/train/{SUBJECT}/{sequence_name(0)}/000001-{SERIALS[1]}"


def change_label(sequence: Path, **arrays: object) -> None:
    """Replace arrays of the label of frame 0, camera 0."""
    path = sequence / SERIALS[0] / "labels_000000.npz"
    with np.load(path) as label:
        np.savez(path, **{**label, **arrays})  # type: ignore[arg-type]


NOT_A_NUMBER = np.full((1, 21, 2), np.nan, dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"joint_2d": np.zeros((2, 21, 2))}, RejectReason.LABEL_CORRUPT),
        ({"joint_3d": np.zeros((21, 3))}, RejectReason.LABEL_CORRUPT),
        ({"joint_2d": NOT_A_NUMBER}, RejectReason.LABEL_NOT_FINITE),
        ({"joint_2d": np.array([{"a": 1}], dtype=object)}, RejectReason.LABEL_UNSAFE),
        ({"seg": np.zeros((240, 320), dtype=np.uint8)}, RejectReason.IMAGE_SIZE_MISMATCH),
    ],
)
def test_a_malformed_label_is_rejected_alone(sequence: Path, arrays: dict[str, object], reason: RejectReason) -> None:
    change_label(sequence, **arrays)
    row, *others = ingest(sequence.parents[1])
    assert isinstance(row, Rejection)
    assert row.reason == reason
    assert len(others) == 3 and all(isinstance(other, HandRecord) for other in others)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 torn", b"\x80\x04\x95"])
def test_a_label_file_that_cannot_be_read_is_rejected_alone(sequence: Path, content: bytes | None) -> None:
    path = sequence / SERIALS[0] / "labels_000000.npz"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    row, *others = ingest(sequence.parents[1])
    assert isinstance(row, Rejection)
    assert row.reason in (RejectReason.LABEL_MISSING, RejectReason.LABEL_CORRUPT, RejectReason.LABEL_UNSAFE)
    assert all(isinstance(other, HandRecord) for other in others)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", RejectReason.LABEL_CORRUPT),
        ("- a list", RejectReason.LABEL_CORRUPT),
        ("", RejectReason.LABEL_CORRUPT),
        ("num_frames: many\nserials: []\nmano_sides: [right]\nextrinsics: x", RejectReason.LABEL_CORRUPT),
        ("num_frames: 2\nserials: ['1']\nmano_sides: [right, left]\nextrinsics: x", RejectReason.LABEL_CORRUPT),
        ("num_frames: 2\nserials: ['1']\nmano_sides: [both]\nextrinsics: x", RejectReason.LABEL_CORRUPT),
        ("num_frames: 99999999999\nserials: ['1']\nmano_sides: [right]\nextrinsics: x", RejectReason.LABEL_CORRUPT),
        ("num_frames: 2\nserials: ['1']\nmano_sides: [right]\nextrinsics: x", RejectReason.LABEL_MISSING),
        ("num_frames: 2\nserials: [../x]\nmano_sides: [right]\nextrinsics: x", RejectReason.PATH_ESCAPES_ROOT),
        ("num_frames: 2\nserials: ['1']\nmano_sides: [right]\nextrinsics: /../../x", RejectReason.PATH_ESCAPES_ROOT),
        ("[" * 5000, RejectReason.LABEL_CORRUPT),
    ],
)
def test_a_malformed_meta_file_rejects_its_sequence_alone(sequence: Path, text: str, reason: RejectReason) -> None:
    root = sequence.parents[1]
    write_sequence(root, SUBJECT, 1)
    (sequence / "meta.yml").write_text(text)
    row, *others = ingest(root)
    assert isinstance(row, Rejection)
    assert (row.reason, row.record_id) == (reason, f"dexycb/train/{SUBJECT}/{sequence.name}")
    assert len(others) == 4 and all(isinstance(other, HandRecord) for other in others)


def test_yaml_tags_build_no_objects(sequence: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"
    meta = sequence / "meta.yml"
    meta.write_text(meta.read_text() + f"attack: !!python/object/apply:os.system ['touch {marker}']\n")
    assert len(ingest_records(tmp_path)) == 4
    assert not marker.exists() and os.system("true") == 0


def test_an_unquoted_extrinsics_id_is_not_taken_for_an_integer(sequence: Path) -> None:
    meta = sequence / "meta.yml"
    meta.write_text(meta.read_text().replace("'", ""))
    assert len(ingest_records(sequence.parents[1])) == 4


def test_a_camera_that_is_no_rotation_rejects_the_sequence(sequence: Path) -> None:
    root = sequence.parents[1]
    path = root / f"calibration/extrinsics_{EXTRINSICS_IDS[SUBJECT]}/extrinsics.yml"
    path.write_text(f"extrinsics:\n  '{SERIALS[0]}': {list(range(12))}\n")
    (row,) = ingest(root)
    assert isinstance(row, Rejection)
    assert row.reason == RejectReason.LABEL_CORRUPT and "not a rigid transform" in row.detail


def test_subjects_without_the_calibration_archive_are_an_error_with_what_is_missing(tmp_path: Path) -> None:
    write_sequence(tmp_path, SUBJECT, 0)
    with pytest.raises(LayoutError, match="calibration/intrinsics"):
        find_root(DexYCBAdapter, tmp_path)


def test_images_of_another_size_than_the_segmentation_are_rejected(sequence: Path) -> None:
    Image.new("RGB", (320, 240)).save(sequence / SERIALS[0] / "color_000000.jpg")
    row = ingest(sequence.parents[1])[0]
    assert isinstance(row, Rejection) and row.reason == RejectReason.IMAGE_SIZE_MISMATCH
