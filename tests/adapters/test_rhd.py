"""RHD: left-first, tip-first labels become right-first, palm-first keypoints; hidden joints are not valid."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handdata.adapters.rhd import RhdAdapter
from handdata.adapters.roots import find_root
from handdata.schemas import KEYPOINT_NAMES, HandRecord, RecordError, Rejection, RejectReason
from tests.fixtures.rhd import LEFT_HIDDEN, SIZE, make_person, part_labels, write_rhd, write_split

OUR_JOINT = (
    {"cmc": "base", "mcp": "middle", "ip": "distal", "tip": "tip"},
    {
        "mcp": "base",
        "pip": "middle",
        "dip": "distal",
        "tip": "tip",
    },
)


def ingest(root: Path) -> list[HandRecord | Rejection]:
    adapter = RhdAdapter()
    root = find_root(RhdAdapter, root)
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def only(root: Path) -> Any:
    (row,) = ingest(root)
    return row


def dataset_name(keypoint: str) -> tuple[str, str]:
    """Return the fixture's side and joint of one of our keypoints: ``right_thumb_ip`` is right, thumb_distal."""
    side, joint = keypoint.split("_", 1)
    if joint == "wrist":
        return side, joint
    finger, place = joint.split("_")
    return side, f"{finger}_{OUR_JOINT[finger != 'thumb'][place]}"


def test_both_splits_become_records_whose_ids_say_which(tmp_path: Path) -> None:
    write_rhd(tmp_path)
    rows = ingest(tmp_path)
    assert [row.record_id for row in rows] == [
        "rhd/test/00000/000000-0",
        "rhd/test/00001/000000-0",
        "rhd/train/00000/000000-0",
        "rhd/train/00001/000000-0",
        "rhd/train/00002/000000-0",
        "rhd/train/00003/000000-0",
    ]
    assert isinstance(rows[-1], Rejection) and rows[-1].reason == RejectReason.IMAGE_MISSING
    assert {row.viewpoint for row in rows[:-1] if isinstance(row, HandRecord)} == {"exo"}


@pytest.mark.parametrize("protocol", [2, 4])
def test_keypoints_are_the_projections_of_the_named_joints(tmp_path: Path, protocol: int) -> None:
    person = make_person(seed=7)
    write_split(tmp_path, "training", {12: person.annotation()}, protocol=protocol)
    record = only(tmp_path)
    assert record.hand_state == ("labelled", "labelled")
    for row, name in enumerate(KEYPOINT_NAMES):
        key = dataset_name(name)
        assert record.keypoints_2d[row] == pytest.approx(person.pixel(*key), abs=0.001)
        assert record.keypoints_3d[row] == pytest.approx(person.points_m[key], abs=1e-6)
    assert record.camera_k[0, 0] == pytest.approx(person.focal)
    assert record.camera_t_world is None and record.timestamp_s is None


def test_hidden_joints_are_not_valid_and_outside_ones_stay(tmp_path: Path) -> None:
    annotation = make_person(hidden=frozenset({("right", "ring_tip")})).annotation()
    annotation["uv_vis"][0, :2] = (-12.5, 400)
    annotation["xyz"][21 + 13] = np.nan  # numbers of a hidden joint do not matter
    write_split(tmp_path, "training", {0: annotation})
    record = only(tmp_path)
    assert [name for name, valid in zip(KEYPOINT_NAMES, record.keypoints_valid, strict=True) if not valid] == [
        "right_ring_tip"
    ]
    assert record.keypoints_2d[21].tolist() == [-12.5, 400]
    assert record.keypoints_2d[16].tolist() == [0, 0]


def test_a_hand_without_any_visible_joint_is_absent(tmp_path: Path) -> None:
    write_split(tmp_path, "training", {0: make_person(hidden=LEFT_HIDDEN).annotation()})
    assert only(tmp_path).hand_state == ("labelled", "absent")


def test_an_image_without_any_visible_joint_stays_a_record(tmp_path: Path) -> None:
    annotation = make_person().annotation()
    annotation["uv_vis"][:, 2] = 0
    write_split(tmp_path, "evaluation", {0: annotation})
    record = only(tmp_path)
    assert record.hand_state == ("absent", "absent") and not record.keypoints_valid.any()


def test_the_mask_is_fingers_and_palms_of_both_hands_without_forearms(tmp_path: Path) -> None:
    write_split(tmp_path, "training", {0: make_person().annotation()})
    record = only(tmp_path)
    expected = np.isin(part_labels(), list(range(2, 34)))
    assert (record.has_mask, record.mask_extent) == (True, "hand")
    assert np.array_equal(RhdAdapter().open_mask(record), expected)


def test_without_the_mask_folder_records_have_no_mask(tmp_path: Path) -> None:
    write_split(tmp_path, "training", {0: make_person().annotation()}, with_masks=False)
    record = only(tmp_path)
    assert not record.has_mask
    with pytest.raises(RecordError, match=r"mask_unreadable.*00000\.png"):
        RhdAdapter().open_mask(record)


def _with(name: str, values: Any) -> dict[str, Any]:
    return make_person().annotation() | {name: values}


@pytest.mark.parametrize(
    ("annotation", "reason", "detail"),
    [
        (_with("uv_vis", np.ones((21, 3))), RejectReason.LABEL_CORRUPT, "uv_vis should hold numbers"),
        (_with("uv_vis", np.full((42, 3), "x")), RejectReason.LABEL_CORRUPT, "uv_vis should hold numbers"),
        (_with("xyz", None), RejectReason.LABEL_CORRUPT, "no array xyz"),
        ([1, 2], RejectReason.LABEL_CORRUPT, "no array uv_vis"),
        (_with("xyz", np.full((42, 3), np.nan)), RejectReason.LABEL_NOT_FINITE, "xyz"),
        (_with("K", np.full((3, 3), np.inf)), RejectReason.LABEL_NOT_FINITE, "K"),
    ],
)
def test_a_damaged_label_is_one_rejection_and_the_others_go_through(
    tmp_path: Path, annotation: Any, reason: RejectReason, detail: str
) -> None:
    good = make_person().annotation()
    write_split(tmp_path, "training", {0: good, 1: annotation, 2: good})
    first, row, last = ingest(tmp_path)
    assert isinstance(first, HandRecord) and isinstance(last, HandRecord) and isinstance(row, Rejection)
    assert (row.reason, row.record_id) == (reason, "rhd/train/00001/000000-0")
    assert "00001" in row.detail and detail in row.detail


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({0: _Evil()}), RejectReason.LABEL_UNSAFE),
        (b"", RejectReason.LABEL_CORRUPT),
        (pickle.dumps([1]), RejectReason.LABEL_CORRUPT),
        (pickle.dumps({"../../x": {}}), RejectReason.LABEL_CORRUPT),
    ],
)
def test_an_unusable_label_file_is_one_rejection_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: RejectReason
) -> None:
    monkeypatch.chdir(tmp_path)
    write_split(tmp_path, "training", {}).write_bytes(content)
    row = only(tmp_path)
    assert (row.reason, row.record_id) == (reason, "rhd/train/training/anno_training.pickle")
    assert not (tmp_path / "pwned").exists()


def test_a_mask_of_another_size_is_unreadable(tmp_path: Path) -> None:
    write_split(tmp_path, "training", {0: make_person().annotation()})
    Image.new("L", (64, 48)).save(tmp_path / "training/mask/00000.png")
    record = only(tmp_path)
    with pytest.raises(RecordError, match=f"expected {SIZE} x {SIZE}"):
        RhdAdapter().open_mask(record)
