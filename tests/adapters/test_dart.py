"""DART: pixels of the cut-out become keypoints of the composed image; the alpha channel becomes the mask."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from handdata.adapters.dart import DartAdapter
from handdata.adapters.roots import find_root
from handdata.schemas import JOINT_NAMES, HandRecord, RecordError, Rejection, RejectReason
from tests.fixtures.dart import COMPOSED, Hand, alpha, write_dart, write_part

BONE = {"mcp": 1, "pip": 2, "dip": 3, "tip": "tip"}
THUMB_BONE = {"cmc": 1, "mcp": 2, "ip": 3, "tip": "tip"}


def ingest(root: Path) -> list[HandRecord | Rejection]:
    adapter = DartAdapter()
    root = find_root(DartAdapter, root)
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def only(root: Path) -> Any:
    (row,) = ingest(root)
    return row


def dataset_name(joint: str) -> str:
    """Return the fixture's name of one of our joints."""
    if joint == "wrist":
        return joint
    finger, place = joint.split("_")
    return f"{finger}_{(THUMB_BONE if finger == 'thumb' else BONE)[place]}"


def test_parts_become_records_whose_ids_tell_repeated_names_apart(tmp_path: Path) -> None:
    write_dart(tmp_path)
    rows = ingest(tmp_path)
    assert [row.record_id for row in rows] == [
        "dart/test/0-000000/000000-0",
        "dart/train/10-000000/000000-0",
        "dart/train/10-000001/000000-0",
        "dart/train/2-000000/000000-0",
        "dart/train/2-000001/000000-0",
    ]
    assert [row.reason for row in rows if isinstance(row, Rejection)] == [RejectReason.IMAGE_MISSING]


@pytest.mark.parametrize("one_array", [False, True])
def test_keypoints_are_the_named_joints_in_the_composed_image(tmp_path: Path, one_array: bool) -> None:
    write_part(tmp_path, "train", "0", ["a.png"], first_seed=9, one_array=one_array)
    record, hand = only(tmp_path), Hand(9)
    assert (record.width, record.height) == (COMPOSED, COMPOSED)
    assert record.hand_state == ("labelled", "absent")
    for row, name in enumerate(JOINT_NAMES):
        assert record.keypoints_2d[row] == pytest.approx(hand.pixel(dataset_name(name), COMPOSED), abs=0.001)
    assert record.keypoints_valid.tolist() == [True] * 21 + [False] * 21
    assert (record.camera_model, record.camera_k, record.keypoints_3d) == ("orthographic", None, None)


def test_the_mask_is_the_alpha_channel_resized_as_the_official_loader_does(tmp_path: Path) -> None:
    write_part(tmp_path, "train", "0", ["a.png"], first_seed=3)
    record = only(tmp_path)
    assert (record.has_mask, record.mask_extent) == (True, "hand_accessory")
    pixels = np.repeat(alpha(3)[..., None], 4, axis=2)
    expected = cv2.resize(pixels, dsize=(384, 384))[:, :, 3] >= 128
    assert np.array_equal(DartAdapter().open_mask(record), expected)
    assert expected[105:195, 143:232].all() and not expected[:74].any()


def test_without_cutouts_records_have_no_mask(tmp_path: Path) -> None:
    write_part(tmp_path, "test", "0", ["a.png"], with_cutouts=False)
    record = only(tmp_path)
    assert not record.has_mask
    with pytest.raises(RecordError, match="mask_unreadable"):
        DartAdapter().open_mask(record)


def test_a_cutout_that_vanished_is_an_unreadable_mask(tmp_path: Path) -> None:
    write_part(tmp_path, "test", "0", ["a.png"])
    record = only(tmp_path)
    (tmp_path / "test/0/a.png").unlink()
    with pytest.raises(RecordError, match=r"mask_unreadable.*a\.png"):
        DartAdapter().open_mask(record)


def test_parts_with_a_folder_around_them_are_found(tmp_path: Path) -> None:
    write_part(tmp_path, "train", "7", ["a.png"], nested=True)
    record = only(tmp_path)
    assert record.record_id == "dart/train/7-a/000000-0"
    assert record.has_mask


@pytest.mark.parametrize(
    ("replace", "reason", "detail"),
    [
        ({"img": ["../../b.png"]}, RejectReason.PATH_ESCAPES_ROOT, "../../b.png"),
        ({"img": [7]}, RejectReason.LABEL_CORRUPT, "img 0 should be a name, is 7"),
        ({"joint2d": [np.ones((20, 2))]}, RejectReason.LABEL_CORRUPT, "joint2d 0 should be numbers"),
        ({"joint2d": [[[1, 2], [3]]]}, RejectReason.LABEL_CORRUPT, "parts of several lengths"),
        ({"joint2d": [np.full((21, 2), np.nan)]}, RejectReason.LABEL_NOT_FINITE, "joint2d"),
        ({"joint2d": []}, RejectReason.LABEL_CORRUPT, "1 file names but 0 joint2d"),
        ({"joint2d": 5}, RejectReason.LABEL_CORRUPT, "should hold a list joint2d"),
    ],
)
def test_a_damaged_label_is_one_rejection(
    tmp_path: Path, replace: dict[str, Any], reason: RejectReason, detail: str
) -> None:
    write_part(tmp_path, "train", "0", ["a.png"], replace=replace)
    row = only(tmp_path)
    assert isinstance(row, Rejection) and row.reason == reason
    assert detail in row.detail


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({"img": _Evil()}), RejectReason.LABEL_UNSAFE),
        (b"junk", RejectReason.LABEL_CORRUPT),
        (pickle.dumps([1]), RejectReason.LABEL_CORRUPT),
    ],
)
def test_an_unusable_part_is_one_rejection_and_the_others_go_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: RejectReason
) -> None:
    monkeypatch.chdir(tmp_path)
    write_part(tmp_path, "train", "0", ["a.png"]).write_bytes(content)
    write_part(tmp_path, "train", "1", ["a.png"])
    row, record = ingest(tmp_path)
    assert isinstance(row, Rejection) and isinstance(record, HandRecord)
    assert (row.reason, row.record_id) == (reason, "dart/train/train/part_0.pkl")
    assert not (tmp_path / "pwned").exists()
