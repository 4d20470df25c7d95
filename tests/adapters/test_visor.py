"""VISOR: hand polygons become the authors' masks, on frames in folders or in archives that were never unpacked."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from handdata.adapters.roots import find_root
from handdata.adapters.visor import VisorAdapter
from handdata.pipeline.annotation.frames import open_frames
from handdata.schemas import HandRecord, RecordError, Rejection, RejectReason, records_from_table, records_to_table
from handdata.schemas.arrays import BoolArray
from tests.fixtures.visor import (
    LEFT_HAND,
    RIGHT_HAND,
    SIZE,
    Packaging,
    element,
    entity,
    hands,
    rectangle,
    write_annotations,
    write_images,
    write_visor,
)


def ingest(root: Path) -> list[HandRecord | Rejection]:
    adapter = VisorAdapter()
    root = find_root(VisorAdapter, root)
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def ingest_elements(root: Path, *elements: Any, size: tuple[int, int] = SIZE) -> list[HandRecord | Rejection]:
    write_annotations(root, "train", "P01_01", elements)
    write_images(root, "train", "P01_01", [61, 121], size=size)
    return ingest(root)


def only_record(root: Path, annotations: Any, size: tuple[int, int] = SIZE) -> HandRecord:
    (record,) = ingest_elements(root, element("P01_01", 61, annotations), size=size)
    assert isinstance(record, HandRecord), record
    return record


def painted(*boxes: tuple[int, int, int, int], holes: tuple[tuple[int, int, int, int], ...] = ()) -> BoolArray:
    """Return a mask of boxes with their outlines, and of holes without theirs."""
    mask = np.zeros(SIZE[::-1], dtype=np.bool_)
    for x0, y0, x1, y1 in boxes:
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    for x0, y0, x1, y1 in holes:
        mask[y0 + 1 : y1, x0 + 1 : x1] = False
    return mask


@pytest.mark.parametrize("packaging", get_args(Packaging))
def test_every_packaging_gives_the_same_records_and_pixels(tmp_path: Path, packaging: Packaging) -> None:
    write_visor(tmp_path, packaging)
    rows = ingest(tmp_path)
    assert [(type(row).__name__, row.record_id) for row in rows] == [
        ("HandRecord", "visor/test/P03_05/000007-0"),
        ("HandRecord", "visor/test/P03_05/000008-0"),
        ("HandRecord", "visor/train/P01_01/000121-0"),
        ("HandRecord", "visor/train/P01_01/000061-0"),
        ("HandRecord", "visor/train/P01_01/000031-0"),
        ("Rejection", "visor/train/P01_01/000181-0"),
        ("HandRecord", "visor/val/P02_101/000051-0"),
    ]
    assert [row.reason for row in rows if isinstance(row, Rejection)] == [RejectReason.IMAGE_MISSING]
    records = [row for row in rows if isinstance(row, HandRecord)]
    assert all((record.width, record.height) == SIZE for record in records)
    for _, image in open_frames(records[:2]):
        assert not isinstance(image, RecordError)
        assert image.shape == (1080, 1920, 3)


def test_archives_are_read_without_unpacking(tmp_path: Path) -> None:
    write_visor(tmp_path, "zip")
    archive = tmp_path.resolve() / "GroundTruth-SparseAnnotations/rgb_frames/val/P02/P02_101.zip"
    assert ingest(tmp_path)[-1].image_uri == f"zip://P02_101_frame_0000000051.jpg::{archive}"


def test_a_frame_that_was_lost_in_unpacking_comes_from_the_archive(tmp_path: Path) -> None:
    write_annotations(tmp_path, "train", "P01_01", [element("P01_01", frame, hands()) for frame in (61, 121)])
    write_images(tmp_path, "train", "P01_01", [61, 121], "zip")
    write_images(tmp_path, "train", "P01_01", [61])
    assert [row.image_uri[:6] == "zip://" for row in ingest(tmp_path)] == [False, True]


def test_a_record_says_who_and_when_but_not_which_hands_are_there(tmp_path: Path) -> None:
    write_visor(tmp_path)
    by_id = {row.record_id: row for row in ingest(tmp_path)}
    record, later = by_id["visor/train/P01_01/000061-0"], by_id["visor/val/P02_101/000051-0"]
    assert isinstance(record, HandRecord) and isinstance(later, HandRecord)
    assert (record.timestamp_s, later.timestamp_s) == (1.0, 1.0)
    assert (record.subject_id, record.viewpoint, record.hand_state) == ("P01", "ego", ("unknown", "unknown"))
    assert not record.keypoints_valid.any()


def test_the_mask_has_holes_and_both_hands(tmp_path: Path) -> None:
    record = only_record(tmp_path, hands())
    expected = painted((300, 400, 700, 800), (1000, 500, 1200, 900), holes=((400, 500, 500, 600),))
    assert (record.has_mask, record.mask_extent) == (True, "hand_forearm")
    np.testing.assert_array_equal(VisorAdapter().open_mask(record), expected)
    (travelled,) = records_from_table(records_to_table([record]))
    np.testing.assert_array_equal(VisorAdapter().open_mask(travelled), expected)


def test_hands_that_overlap_do_not_cancel(tmp_path: Path) -> None:
    record = only_record(tmp_path, [entity("left hand", RIGHT_HAND), entity("right hand", RIGHT_HAND)])
    np.testing.assert_array_equal(VisorAdapter().open_mask(record), painted((1000, 500, 1200, 900)))


def test_boxes_name_the_side_of_each_hand(tmp_path: Path) -> None:
    record = only_record(tmp_path, hands())
    assert record.extra is not None
    assert record.extra["box_sides"] == ["right", "left"]
    assert record.extra["boxes_xyxy_px"] == [[1000, 500, 1200, 900], [300, 400, 700, 800]]


GLOVE = [rectangle(100, 100, 200, 200)]


@pytest.mark.parametrize(
    ("glove", "sides"),
    [
        (entity("left glove", GLOVE, on_which_hand=["left hand"]), ["left"]),
        (entity("rubber glove", GLOVE, on_which_hand="right hand"), ["right"]),
        (entity("gloves", GLOVE, on_which_hand=["left hand", "rigth hand"]), [None]),
        (entity("oven glove", GLOVE, on_which_hand=None), []),
        (entity("oven glove", GLOVE), []),
        (entity("hand blender", GLOVE, on_which_hand=["left hand"]), []),
        (entity("hand", GLOVE), []),
        (entity("left hand", [[]]), []),
        (entity("left hand", [[[5.0, 5.0], [9.0, 9.0]]]), []),
    ],
)
def test_gloves_count_while_they_are_worn_and_names_must_match(
    tmp_path: Path, glove: dict[str, Any], sides: list[str | None]
) -> None:
    record = only_record(tmp_path, [glove])
    assert record.has_mask == bool(sides)
    if sides:
        assert record.extra is not None and record.extra["box_sides"] == sides
        np.testing.assert_array_equal(VisorAdapter().open_mask(record), painted((100, 100, 200, 200)))
    else:
        with pytest.raises(RecordError, match="no hand is annotated"):
            VisorAdapter().open_mask(record)


def test_a_hand_and_its_glove_share_a_box(tmp_path: Path) -> None:
    glove = entity("left glove", GLOVE, on_which_hand=["left hand"])
    record = only_record(tmp_path, [entity("left hand", LEFT_HAND), glove])
    assert record.extra is not None
    assert (record.extra["boxes_xyxy_px"], record.extra["box_sides"]) == ([[100, 100, 700, 800]], ["left"])


def test_a_frame_of_another_size_scales_boxes_and_mask(tmp_path: Path) -> None:
    record = only_record(tmp_path, hands(), size=(960, 540))
    assert record.extra is not None
    assert record.extra["boxes_xyxy_px"] == [[500, 250, 600, 450], [150, 200, 350, 400]]
    whole = painted((300, 400, 700, 800), (1000, 500, 1200, 900), holes=((400, 500, 500, 600),))
    np.testing.assert_array_equal(VisorAdapter().open_mask(record), whole[::2, ::2])


def test_two_elements_of_one_frame_become_one_record(tmp_path: Path) -> None:
    left, right = ([hand] for hand in hands())
    rows = ingest_elements(
        tmp_path,
        element("P01_01", 61, left),
        element("P01_01", 121, []),
        element("P01_01", 61, right, subsequence=2),
    )
    assert [row.record_id for row in rows] == [
        "visor/train/P01_01/000121-0",
        "visor/train/P01_01/000061-0",
    ]
    merged = rows[1]
    assert isinstance(merged, HandRecord) and merged.extra is not None
    assert merged.extra["box_sides"] == ["right", "left"]


GOOD = element("P01_01", 121, hands())


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("text", RejectReason.LABEL_CORRUPT),
        ({}, RejectReason.LABEL_CORRUPT),
        ({"image": {"name": 7}, "annotations": []}, RejectReason.LABEL_CORRUPT),
        ({"image": {"name": "noun.jpg"}, "annotations": []}, RejectReason.LABEL_CORRUPT),
        ({"image": {"name": "P01_01_frame_9000000000.jpg"}, "annotations": []}, RejectReason.LABEL_CORRUPT),
        ({"image": {"name": "../../outside.jpg"}, "annotations": []}, RejectReason.PATH_ESCAPES_ROOT),
        (element("P01_01", 61, None), RejectReason.LABEL_CORRUPT),
        (element("P01_01", 61, ["left hand"]), RejectReason.LABEL_CORRUPT),
        (element("P01_01", 61, [entity("left hand", None)]), RejectReason.LABEL_CORRUPT),
        (element("P01_01", 61, [entity("left hand", [[[1, 2], [3]]])]), RejectReason.LABEL_CORRUPT),
        (element("P01_01", 61, [entity("left hand", [[1, 2, 3, 4]])]), RejectReason.LABEL_CORRUPT),
        (
            element("P01_01", 61, [entity("left hand", [rectangle(0, 0, float("nan"), 9)])]),
            RejectReason.LABEL_NOT_FINITE,
        ),
        (element("P01_01", 61, [entity("left hand", [rectangle(0, 0, 1e9, 9)])]), RejectReason.LABEL_IMPLAUSIBLE),
    ],
)
def test_a_malformed_element_is_rejected_alone(tmp_path: Path, bad: Any, reason: RejectReason) -> None:
    row, after = ingest_elements(tmp_path, bad, GOOD)
    assert isinstance(row, Rejection) and isinstance(after, HandRecord)
    assert row.reason == reason and "P01_01.json" in row.detail


def test_a_truncated_file_gives_its_readable_elements_and_one_rejection_that_names_it(tmp_path: Path) -> None:
    path = write_annotations(tmp_path, "train", "P01_01", [element("P01_01", 61, hands()), GOOD])
    write_images(tmp_path, "train", "P01_01", [61])
    path.write_text(path.read_text()[:-200])
    record, row = ingest(tmp_path)
    assert isinstance(record, HandRecord) and isinstance(row, Rejection)
    assert (row.reason, row.image_uri) == (RejectReason.LABEL_CORRUPT, str(path.resolve()))


def test_a_damaged_archive_rejects_its_frames_alone(tmp_path: Path) -> None:
    write_visor(tmp_path, "zip")
    (tmp_path / "GroundTruth-SparseAnnotations/rgb_frames/val/P02/P02_101.zip").write_bytes(b"PK\x03\x04 cut")
    reasons = [row.reason for row in ingest(tmp_path) if isinstance(row, Rejection)]
    assert reasons == [RejectReason.IMAGE_MISSING, RejectReason.IMAGE_CORRUPT]


@pytest.mark.parametrize("pointed_at", [".", "release", "release/GroundTruth-SparseAnnotations"])
def test_the_download_its_parent_and_the_sparse_folder_are_roots(tmp_path: Path, pointed_at: str) -> None:
    write_visor(tmp_path / "release")
    assert len(ingest(tmp_path / pointed_at)) == 7
