"""What the adapter of the synthetic source promises, on a tiny rendered dataset and on damaged copies of it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from handdata.adapters.roots import find_root
from handdata.adapters.synthesis.dataset import write_dataset
from handdata.adapters.synthesis.layout import LABEL_FILE
from handdata.adapters.synthetic import SyntheticAdapter
from handdata.schemas import HandRecord, LayoutError, RecordError, Rejection, RejectReason, hand_rows

FRAMES, CAMERAS, SIZE = 2, 2, 48


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three identities, so one sequence a split; the three show the right hand, the left and both, in some order."""
    out = tmp_path_factory.mktemp("sources") / "synthetic"
    write_dataset(out, identities=3, sequences=3, frames=FRAMES, cameras=CAMERAS, size=SIZE, seed=3, processes=1)
    return out


@pytest.fixture
def root(rendered: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(rendered, tmp_path / "synthetic")


def read_all(root: Path) -> list[HandRecord | Rejection]:
    adapter = SyntheticAdapter()
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def records_of(root: Path) -> list[HandRecord]:
    return [row for row in read_all(root) if isinstance(row, HandRecord)]


def rejections_of(root: Path) -> list[Rejection]:
    return [row for row in read_all(root) if isinstance(row, Rejection)]


def sequence_folder(root: Path, split: str = "train") -> Path:
    return next((root / split).iterdir())


def change_labels(folder: Path, **changes: Callable[[NDArray[np.generic]], object]) -> None:
    with np.load(folder / LABEL_FILE) as stored:
        labels = dict(stored)
    for name, change in changes.items():
        labels[name] = np.asarray(change(labels[name]))
    np.savez(folder / LABEL_FILE, **labels)


def with_nan(*index: int) -> Callable[[NDArray[np.generic]], NDArray[np.generic]]:
    def change(values: NDArray[np.generic]) -> NDArray[np.generic]:
        values[index] = np.nan
        return values

    return change


def test_every_image_becomes_one_record_with_exact_labels(rendered: Path) -> None:
    records = records_of(rendered)
    assert len(records) == len(read_all(rendered)) == 3 * FRAMES * CAMERAS
    assert len({record.record_id for record in records}) == len(records)
    assert {record.split for record in records} == {"train", "val", "test"}
    assert {record.subject_id for record in records} == {"0", "1", "2"}
    for record in records:
        assert (record.width, record.height) == (SIZE, SIZE)
        assert Path(record.image_uri).is_file()
        assert record.viewpoint == "exo"
        assert record.timestamp_s == record.frame_index / 30
        assert record.keypoints_3d is not None
        assert record.camera_k is not None
        valid = record.keypoints_valid
        projected = record.keypoints_3d[valid] @ record.camera_k.T
        np.testing.assert_allclose(projected[:, :2] / projected[:, 2:], record.keypoints_2d[valid], atol=1e-3)


def test_the_renderer_knows_which_hands_are_there(rendered: Path) -> None:
    states = {record.hand_state for record in records_of(rendered)}
    assert states == {("labelled", "absent"), ("absent", "labelled"), ("labelled", "labelled")}


def test_views_of_one_moment_share_sequence_and_frame_and_agree_in_3d(rendered: Path) -> None:
    first, second = records_of(rendered)[:2]
    assert (first.sequence_id, first.frame_index) == (second.sequence_id, second.frame_index)
    assert first.camera_id != second.camera_id
    world = []
    for record in (first, second):
        assert record.keypoints_3d is not None
        assert record.camera_t_world is not None
        rotation, translation = record.camera_t_world[:3, :3], record.camera_t_world[:3, 3]
        world.append((record.keypoints_3d[record.keypoints_valid] - translation) @ rotation)
    np.testing.assert_allclose(world[0], world[1], atol=1e-4)


def test_the_mask_opens_lazily_and_covers_the_hands(rendered: Path) -> None:
    for record in records_of(rendered):
        assert record.has_mask
        assert record.mask_extent == "hand"
        mask = SyntheticAdapter().open_mask(record)
        assert mask.shape == (SIZE, SIZE)
        palm = record.keypoints_2d[[hand_rows("right").start + 9, hand_rows("left").start + 9]]
        x, y = np.rint(palm[record.keypoints_valid[[9, 30]]]).astype(int).T
        assert mask[y, x].all()


def test_a_missing_or_damaged_mask_is_said_so(root: Path) -> None:
    folder = sequence_folder(root)
    (folder / "cam0" / "000000.mask.png").unlink()
    (folder / "cam0" / "000001.mask.png").write_bytes(b"not an image")
    missing, _, damaged, intact = [r for r in records_of(root) if r.split == "train"]
    assert (missing.has_mask, missing.mask_extent) == (False, None)
    assert intact.has_mask
    with pytest.raises(RecordError, match=r"mask_unreadable.*000001\.mask\.png"):
        SyntheticAdapter().open_mask(damaged)


def test_users_may_point_at_the_dataset_or_at_the_folder_that_holds_it(rendered: Path, tmp_path: Path) -> None:
    assert find_root(SyntheticAdapter, rendered) == find_root(SyntheticAdapter, rendered.parent) == rendered.resolve()
    with pytest.raises(LayoutError, match=r"synthetic\.json"):
        find_root(SyntheticAdapter, tmp_path)


def test_partitions_hold_sequences_of_one_split_and_are_listed_without_reading_labels(root: Path) -> None:
    for label_file in root.glob("*/*/labels.npz"):
        label_file.write_bytes(b"")
    partitions = list(SyntheticAdapter().partitions(root))
    assert [(p.name, p.split, len(p.paths)) for p in partitions] == [
        ("test/00000", "test", 1),
        ("train/00000", "train", 1),
        ("val/00000", "val", 1),
    ]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def _as_gif(path: Path) -> None:
    Image.open(path).save(path, format="GIF")


def _resize(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((10, 10, 3), np.uint8))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (Path.unlink, RejectReason.IMAGE_MISSING),
        (lambda path: path.write_bytes(b""), RejectReason.IMAGE_EMPTY),
        (_truncate, RejectReason.IMAGE_CORRUPT),
        (_as_gif, RejectReason.IMAGE_CORRUPT),
        (_resize, RejectReason.LABEL_CORRUPT),
    ],
    ids=["missing", "empty", "truncated", "gif named jpg", "other size"],
)
def test_a_damaged_image_is_rejected_and_the_others_go_through(
    root: Path, damage: Callable[[Path], object], reason: RejectReason
) -> None:
    image = sequence_folder(root) / "cam1" / "000001.jpg"
    damage(image)
    (rejected,) = rejections_of(root)
    assert rejected.reason == reason
    assert rejected.image_uri == str(image)
    assert rejected.record_id == f"synthetic/train/{image.parents[1].name}/000001-cam1"
    assert len(records_of(root)) == 3 * FRAMES * CAMERAS - 1


@pytest.mark.parametrize(
    ("changes", "rejected_images"),
    [
        ({"keypoints_2d": with_nan(1, 0)}, {"000001-cam0"}),
        ({"keypoints_3d_world": with_nan(1)}, {"000001-cam0", "000001-cam1"}),
        ({"camera_k": with_nan(1, 0, 0)}, {"000000-cam1", "000001-cam1"}),
        ({"camera_t_world": with_nan(0, 0, 3)}, {"000000-cam0", "000001-cam0"}),
    ],
    ids=["2d", "3d", "intrinsics", "pose"],
)
def test_a_nan_rejects_the_images_that_it_touches(
    root: Path, changes: dict[str, Callable[[NDArray[np.generic]], object]], rejected_images: set[str]
) -> None:
    change_labels(sequence_folder(root), **changes)
    rejected = rejections_of(root)
    assert {row.record_id.rsplit("/", 1)[1] for row in rejected} == rejected_images
    assert {row.reason for row in rejected} == {RejectReason.LABEL_NOT_FINITE}
    assert len(records_of(root)) == 3 * FRAMES * CAMERAS - len(rejected_images)


def _delete(path: Path) -> None:
    path.unlink()


def _pickle(path: Path) -> None:
    change_labels(path.parent, camera_k=lambda values: np.array([{"a": 1}], dtype=object))


def _wrong_shape(path: Path) -> None:
    change_labels(path.parent, keypoints_2d=lambda values: values[..., :20, :])


def _drop_array(path: Path) -> None:
    with np.load(path) as stored:
        labels = {name: stored[name] for name in stored if name != "identity"}
    np.savez(path, **labels)


def _camera_numbers(path: Path) -> None:
    change_labels(path.parent, camera_id=lambda values: np.arange(len(values)))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_delete, RejectReason.LABEL_MISSING),
        (_truncate, RejectReason.LABEL_CORRUPT),
        (_pickle, RejectReason.LABEL_UNSAFE),
        (_wrong_shape, RejectReason.LABEL_CORRUPT),
        (_drop_array, RejectReason.LABEL_CORRUPT),
        (_camera_numbers, RejectReason.LABEL_CORRUPT),
    ],
    ids=["missing", "truncated", "pickled", "wrong shape", "array missing", "camera names"],
)
def test_an_unusable_label_file_rejects_each_image_of_its_sequence(
    root: Path, damage: Callable[[Path], object], reason: RejectReason
) -> None:
    label_file = sequence_folder(root) / LABEL_FILE
    damage(label_file)
    rejected = rejections_of(root)
    assert [row.record_id.rsplit("/", 1)[1] for row in rejected] == [
        "000000-cam0",
        "000000-cam1",
        "000001-cam0",
        "000001-cam1",
    ]
    assert {row.reason for row in rejected} == {reason}
    assert all(str(label_file) in row.detail for row in rejected)
    assert len(records_of(root)) == 2 * FRAMES * CAMERAS


def test_a_camera_name_that_leaves_the_dataset_is_rejected(root: Path) -> None:
    change_labels(sequence_folder(root), camera_id=lambda values: np.array(["../../secret", "cam1"]))
    rejected = rejections_of(root)
    assert [row.reason for row in rejected] == [RejectReason.PATH_ESCAPES_ROOT] * FRAMES


def test_a_negative_frame_number_is_a_corrupt_label(root: Path) -> None:
    folder = sequence_folder(root)
    for camera in ("cam0", "cam1"):
        (folder / camera / "000000.jpg").rename(folder / camera / "-00001.jpg")
    change_labels(folder, frame_index=lambda values: np.array([-1, 1]))
    assert {row.reason for row in rejections_of(root)} == {RejectReason.LABEL_CORRUPT}
