"""COCO-WholeBody, MMPose's hand sets and labels of one's own: joints in our order, hands on their sides."""

import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from handdata.adapters.base import AdapterOptions, warnings_of
from handdata.adapters.coco import CocoAdapter
from handdata.adapters.reading import coco_json
from handdata.adapters.roots import find_root
from handdata.pipeline.annotation.frames import open_frames
from handdata.pipeline.records.ingest import ingest as ingest_source
from handdata.pipeline.storage import Storage
from handdata.schemas import HandRecord, RecordError, Rejection, RejectReason, Side, StorageError, hand_rows
from tests.fixtures.coco import (
    FINGERS,
    HEIGHT,
    LEFT,
    RIGHT,
    RIGHT_OUTLINE,
    SMALL,
    WIDTH,
    Joints,
    hand_at,
    hand_category,
    hand_entry,
    listed,
    person_category,
    person_entry,
    write_coco,
    write_freihand,
    write_labels,
    write_onehand10k,
    write_own,
    write_wholebody,
)
from tests.fixtures.photographs import encoded, photograph

OURS = ("wrist", *(f"{finger}{joint}" for finger in FINGERS for joint in (1, 2, 3, 4)))


def ingest(root: Path) -> list[HandRecord | Rejection]:
    adapter = CocoAdapter()
    root = find_root(CocoAdapter, root)
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def read(root: Path, entries: list[dict[str, Any]], categories: list[dict[str, Any]], **members: Any) -> Any:
    """Return the row of one image with these annotations."""
    write_labels(root / "annotations/mine_train.json", {"a.png": entries}, categories, folder=root, **members)
    (row,) = ingest(root)
    return row


def reason(row: Any) -> RejectReason | None:
    return row.reason if isinstance(row, Rejection) else None


def assert_hand_is(record: HandRecord, side: Side, joints: Joints, missing: tuple[str, ...] = ()) -> None:
    rows = hand_rows(side)
    for name, point, valid in zip(OURS, record.keypoints_2d[rows], record.keypoints_valid[rows], strict=True):
        assert valid == (name not in missing), name
        assert tuple(point) == pytest.approx((0, 0) if name in missing else joints[name], abs=1e-3), name


def no_hand(record: HandRecord, side: Side) -> bool:
    return not record.keypoints_valid[hand_rows(side)].any()


# ---------------------------------------------------------------------------------------------------- the sets


def test_the_joints_of_every_set_stand_in_our_order_on_the_side_that_the_set_names(tmp_path: Path) -> None:
    write_coco(tmp_path)
    rows = {row.record_id.split("/")[2]: row for row in ingest(tmp_path)}
    known: dict[str, tuple[Joints | None, Joints | None]] = {
        "coco_wholebody_train_v1.0__000000000009": (RIGHT, LEFT),
        "coco_wholebody_train_v1.0__000000000025": (RIGHT, None),
        "coco_wholebody_val_v1.0__000000000139": (None, LEFT),
        "onehand10k_train__Train__source__9": (RIGHT, None),
        "onehand10k_train__Train__source__33": (LEFT, None),
        "freihand_val__training__rgb__00032567": (RIGHT, None),
        "panoptic_test__hand_labels__manual_test__000648952_02_l": (None, LEFT),
        "rhd_test__evaluation__color__00007": (None, LEFT),
        "halpe_train_v1__HICO_train2015_00000001": (RIGHT, LEFT),
        "mine_val__a": (RIGHT, LEFT),
        "mine_val__b": (RIGHT, None),
    }
    missing = {
        "onehand10k_train__Train__source__33": ("wrist", "ring4"),
        "halpe_train_v1__HICO_train2015_00000001": ("thumb4",),
    }
    assert {name for name, row in rows.items() if isinstance(row, HandRecord)} == known.keys()
    for name, hands in known.items():
        record = rows[name]
        assert isinstance(record, HandRecord)
        for side, joints in zip(("right", "left"), hands, strict=True):
            if joints is None:
                assert no_hand(record, side)
            else:
                assert_hand_is(record, side, joints, missing.get(name, ()) if side == "right" else ())
        assert record.hand_state == tuple("unknown" if joints is None else "labelled" for joints in hands)
    unsided = {name for name, row in rows.items() if isinstance(row, HandRecord) and row.is_side_unknown}
    assert unsided == {name for name in known if name.startswith(("onehand10k", "freihand"))}
    assert reason(rows["coco_wholebody_train_v1.0__000000000030"]) is RejectReason.LABEL_MISSING
    assert reason(rows["mine_val__c"]) is RejectReason.IMAGE_MISSING


def test_one_set_gives_the_same_rows_as_a_folder_of_sets(tmp_path: Path) -> None:
    write_freihand(tmp_path / "sets/freihand")
    alone, among = ingest(tmp_path / "sets/freihand"), ingest(tmp_path / "sets")
    assert [row.record_id for row in alone] == [row.record_id for row in among]
    assert [row.image_uri for row in alone] == [row.image_uri for row in among]


def test_the_same_physical_frame_has_one_origin(tmp_path: Path) -> None:
    images = {f"{number:08d}.jpg": [hand_entry(RIGHT)] for number in (7, 32_567, 97_687, 8)}
    write_labels(tmp_path / "annotations/freihand_train.json", images, [hand_category()], folder=tmp_path)
    write_wholebody(tmp_path)
    origins = [row.origin_id for row in ingest(tmp_path) if isinstance(row, HandRecord)]
    assert origins[:3] == ["coco/000000000009", "coco/000000000025", "coco/000000000139"]
    assert origins[3:] == ["freihand/00000007"] * 3 + ["freihand/00000008"]


def test_names_with_the_backslashes_of_windows_are_the_same_rows(tmp_path: Path) -> None:
    write_freihand(tmp_path)
    labels = tmp_path / "annotations/freihand_val.json"
    before = ingest(tmp_path)
    text = labels.read_text()
    renamed = text.replace("training/rgb/", r"training\\rgb\\")
    assert renamed != text
    labels.write_text(renamed)
    assert [(row.record_id, row.image_uri) for row in ingest(tmp_path)] == [
        (row.record_id, row.image_uri) for row in before
    ]
    assert [getattr(row, "origin_id", None) for row in ingest(tmp_path)] == [
        getattr(row, "origin_id", None) for row in before
    ]


def test_coco_s_labels_of_other_things_are_not_read(tmp_path: Path) -> None:
    write_wholebody(tmp_path)
    before = [row.record_id for row in ingest(tmp_path)]
    for name in ("instances_train2017", "captions_val2017", "person_keypoints_val2017", "panoptic_val2017"):
        (tmp_path / f"annotations/{name}.json").write_text("{}")
    (tmp_path / "annotations/COCO_val2017_detections_AP_H_56_person.json").write_text("[]")
    assert [row.record_id for row in ingest(tmp_path)] == before


def test_labels_lie_where_exporters_put_them(tmp_path: Path) -> None:
    for place, folder in (("roboflow/valid/_annotations.coco.json", "roboflow/valid"), ("fo/labels.json", "fo/data")):
        images = {"a.png": [hand_entry(RIGHT)]}
        write_labels(tmp_path / place, images, [hand_category("hand-right")], folder=tmp_path / folder)
        (row,) = ingest(tmp_path / place.partition("/")[0])
        assert isinstance(row, HandRecord)
        assert row.split == ("val" if "valid" in place else "train")
    adapter = CocoAdapter()
    assert list(warnings_of(adapter, tmp_path / "roboflow")) == []
    (warning,) = warnings_of(adapter, tmp_path / "fo")
    assert "says train, val or test: labels.json" in warning


def test_the_licence_of_labels_of_one_s_own_is_that_of_the_option(tmp_path: Path) -> None:
    write_freihand(tmp_path / "d")
    options = AdapterOptions(licence="CC-BY-4.0")
    summary = ingest_source(CocoAdapter, tmp_path / "d", Storage(tmp_path / "w"), options=options, limit=9)
    assert (summary.license, summary.records) == ("CC-BY-4.0", 1)


# ---------------------------------------------------------------------------------------------------- joints


def test_joints_are_found_by_the_names_of_their_category_in_any_order(tmp_path: Path) -> None:
    medical = {"1": "mcp", "2": "pip", "3": "dip", "4": "tip"}
    thumb = {"1": "cmc", "2": "mcp", "3": "ip", "4": "tip"}
    named = {
        name: "RIGHT_WRIST"
        if name == "wrist"
        else f"RIGHT_{name[:-1].upper()}_FINGER_{(thumb if name.startswith('thumb') else medical)[name[-1]].upper()}"
        for name in OURS
    }
    order = random.Random(4).sample(OURS, len(OURS))
    category = hand_category("hand") | {"keypoints": [named[name] for name in order]}
    record = read(tmp_path, [hand_entry(RIGHT, keypoints=listed(RIGHT, order))], [category])
    assert_hand_is(record, "right", RIGHT)
    assert not record.is_side_unknown


def test_two_hands_in_one_list_are_found_by_their_names(tmp_path: Path) -> None:
    names = ["nose", "left_wrist", *(f"left_{name}" for name in OURS[1:]), *(f"right_{name}" for name in OURS)]
    keypoints = [5, 5, 2, *listed(LEFT), *listed(RIGHT)]
    person = person_category() | {"keypoints": names}
    record = read(tmp_path, [hand_entry(RIGHT, keypoints=keypoints)], [person])
    assert_hand_is(record, "right", RIGHT)
    assert_hand_is(record, "left", LEFT)


@pytest.mark.parametrize(
    "names",
    [
        [*hand_category()["keypoints"][:-1], "surprise"],
        [*hand_category()["keypoints"][:-1], "thumb1"],
        [f"point {number}" for number in range(21)],
        hand_category()["keypoints"][:-1],
    ],
)
def test_names_that_do_not_tell_the_joints_are_label_corrupt(tmp_path: Path, names: list[str]) -> None:
    row = read(tmp_path, [hand_entry(RIGHT)], [hand_category() | {"keypoints": names}])
    assert reason(row) is RejectReason.LABEL_CORRUPT


@pytest.mark.parametrize("names", [[], [str(number) for number in range(21)]])
def test_without_names_the_common_order_is_taken(tmp_path: Path, names: list[str]) -> None:
    assert_hand_is(read(tmp_path, [hand_entry(RIGHT)], [hand_category() | {"keypoints": names}]), "right", RIGHT)


def test_joints_named_by_their_numbers_stand_where_the_numbers_say(tmp_path: Path) -> None:
    backwards = [*range(21)][::-1]
    entry = hand_entry(RIGHT, keypoints=listed(RIGHT, [OURS[number] for number in backwards]))
    for first in (0, 1):
        category = hand_category() | {"keypoints": [str(first + number) for number in backwards]}
        assert_hand_is(read(tmp_path, [entry], [category]), "right", RIGHT)
    for wrong in ([*backwards[:-1], 1], [number + 2 for number in backwards]):
        category = hand_category() | {"keypoints": [str(number) for number in wrong]}
        assert reason(read(tmp_path, [entry], [category])) is RejectReason.LABEL_CORRUPT


@pytest.mark.parametrize("fields", [{"name": "left"}, {"name": "hands"}, {"name": "1", "supercategory": "hand"}])
def test_points_without_names_are_a_hand_s_where_their_category_says_so(tmp_path: Path, fields: dict[str, str]) -> None:
    category = {"id": 1, "supercategory": "", "keypoints": []}
    assert isinstance(read(tmp_path, [hand_entry(RIGHT)], [category | fields]), HandRecord)
    row = read(tmp_path, [hand_entry(RIGHT)], [category | {"name": "cat pose"}])
    assert reason(row) is RejectReason.LABEL_CORRUPT and "nothing says that it is one" in row.detail


@pytest.mark.parametrize("strange", ["thumb_proximal", "pinky_base", "middle_finger_knuckle"])
def test_a_finger_s_joint_of_an_unknown_name_is_not_left_out_in_silence(tmp_path: Path, strange: str) -> None:
    """Of 21 names any other is an error; of more, those of bodies are not, a toe and a pinky among them."""
    body = ["nose", "left_pinky", "right_index", "left_thumb", "left_big_toe", "left_small_toe", "middle_of_spine"]
    joints = hand_category()["keypoints"]
    keypoints = [5.0, 5.0, 2.0] * len(body) + listed(RIGHT)
    category = hand_category() | {"keypoints": body + joints}
    assert_hand_is(read(tmp_path, [hand_entry(RIGHT, keypoints=keypoints)], [category]), "right", RIGHT)
    category = hand_category() | {"keypoints": body + [strange if name == "thumb2" else name for name in joints]}
    assert reason(read(tmp_path, [hand_entry(RIGHT, keypoints=keypoints)], [category])) is RejectReason.LABEL_CORRUPT


def test_shares_of_the_image_are_no_pixels(tmp_path: Path) -> None:
    shares = [value / 200 if place % 3 < 2 else value for place, value in enumerate(listed(RIGHT))]
    outline = [value / 200 for value in RIGHT_OUTLINE]
    beyond = [1.02, *shares[1:]]  # a joint outside the image
    for labels in ({"keypoints": shares}, {"keypoints": beyond}, {"segmentation": [outline]}):
        row = read(tmp_path, [hand_entry(RIGHT, **labels)], [hand_category()])
        assert reason(row) is RejectReason.LABEL_CORRUPT and "shares of the image" in row.detail


@pytest.mark.parametrize(("visibility", "valid"), [(0, False), (0.04, True), (1, True), (2.0, True)])
def test_a_joint_is_labelled_where_its_visibility_is_above_zero(tmp_path: Path, visibility: float, valid: bool) -> None:
    keypoints = listed(RIGHT)
    keypoints[5] = visibility
    record = read(tmp_path, [hand_entry(RIGHT, keypoints=keypoints)], [hand_category()])
    assert_hand_is(record, "right", RIGHT, () if valid else ("thumb1",))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda keypoints: keypoints.__setitem__(5, 3), RejectReason.LABEL_CORRUPT),
        (lambda keypoints: keypoints.__setitem__(5, -1), RejectReason.LABEL_CORRUPT),
        (lambda keypoints: keypoints.__setitem__(4, float("nan")), RejectReason.LABEL_NOT_FINITE),
        (lambda keypoints: keypoints.__setitem__(4, "7"), RejectReason.LABEL_CORRUPT),
        (lambda keypoints: keypoints.pop(), RejectReason.LABEL_CORRUPT),
    ],
)
def test_what_is_no_joint_rejects_its_image(
    tmp_path: Path, change: Callable[[list[Any]], object], expected: RejectReason
) -> None:
    keypoints: list[Any] = listed(RIGHT)
    change(keypoints)
    entries = [hand_entry(RIGHT, keypoints=keypoints), hand_entry(LEFT)]
    assert reason(read(tmp_path, entries, [hand_category()])) is expected


def test_the_corner_of_the_image_is_no_joint(tmp_path: Path) -> None:
    keypoints = [0.0, 0.0, 2.0, *listed(RIGHT)[3:]]
    record = read(tmp_path, [hand_entry(RIGHT, keypoints=keypoints)], [hand_category()])
    assert_hand_is(record, "right", RIGHT, ("wrist",))


# ---------------------------------------------------------------------------------------------------- sides


@pytest.mark.parametrize(
    ("fields", "name", "side"),
    [
        ({"hand_type": "left"}, "hand", "left"),
        ({"handedness": "Right"}, "hand", "right"),
        ({"attributes": {"side": "LEFT", "occluded": False}}, "hand", "left"),
        ({"is_left": 1}, "hand", "left"),
        ({"is_left": False}, "hand", "right"),
        ({}, "left_hand", "left"),
        ({}, "Lefthand", "left"),
        ({}, "hand (R)", "right"),
        ({"side": "left"}, "left hand", "left"),
        ({}, "hand", None),
        ({"side": "unknown"}, "hand", None),
        ({"side": None}, "bright hand", None),
    ],
)
def test_a_side_is_that_of_a_field_or_of_the_category(
    tmp_path: Path, fields: dict[str, Any], name: str, side: Side | None
) -> None:
    record = read(tmp_path, [hand_entry(RIGHT, **fields)], [hand_category(name)])
    assert_hand_is(record, side or "right", RIGHT)
    assert record.is_side_unknown == (side is None)


@pytest.mark.parametrize("fields", [{"side": "right"}, {"side": 7}, {"is_left": 2}, {"is_left": 0}])
def test_a_side_that_contradicts_the_category_or_is_none_is_label_corrupt(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    row = read(tmp_path, [hand_entry(LEFT, **fields)], [hand_category("left_hand")])
    assert reason(row) is RejectReason.LABEL_CORRUPT


def test_two_hands_of_unknown_sides_are_kept_for_the_detector_and_more_are_rejected(tmp_path: Path) -> None:
    two = read(tmp_path, [hand_entry(LEFT), hand_entry(RIGHT), hand_entry(LEFT)], [hand_category()])
    assert two.is_side_unknown
    assert_hand_is(two, "right", LEFT)
    assert_hand_is(two, "left", RIGHT)
    assert len(two.extra["boxes_xyxy_px"]) == 2
    row = read(tmp_path, [hand_entry(LEFT), hand_entry(RIGHT), hand_entry(SMALL)], [hand_category()])
    assert reason(row) is RejectReason.SIDE_UNKNOWN


def test_a_name_in_two_folders_is_an_image_only_where_both_hold_the_same(tmp_path: Path) -> None:
    copy = tmp_path / "images/a.png"
    record = read(tmp_path, [hand_entry(RIGHT)], [hand_category()])
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "a.png").read_bytes())
    (same,) = ingest(tmp_path)
    assert_hand_is(record, "right", RIGHT)
    assert_hand_is(same, "right", RIGHT)
    copy.write_bytes(encoded(photograph(), "PNG"))
    (row,) = ingest(tmp_path)
    assert reason(row) is RejectReason.LABEL_CORRUPT
    assert str(copy) in row.detail and str(tmp_path / "a.png") in row.detail


# ---------------------------------------------------------------------------------------------------- people


def test_of_several_people_the_one_with_the_largest_hands_is_kept_and_the_others_are_marked(tmp_path: Path) -> None:
    far = hand_at(130, 60, 10)
    people = [person_entry(right=SMALL, left=far), person_entry(left=LEFT)]
    record = read(tmp_path, people, [person_category()])
    assert_hand_is(record, "left", LEFT)
    assert no_hand(record, "right")
    others = sorted(record.extra["other_hands_xyxy_px"])
    assert others == [pytest.approx([16, 32, 24, 40]), pytest.approx([125, 50, 135, 60])]


@pytest.mark.parametrize(("other", "together"), [(hand_at(110, 100, 26), True), (hand_at(110, 100, 8), False)])
def test_single_hands_are_one_person_s_where_their_sizes_fit(tmp_path: Path, other: Joints, together: bool) -> None:
    entries = [hand_entry(other, category_id=2), hand_entry(RIGHT)]
    record = read(tmp_path, entries, [hand_category("right", 1), hand_category("left", 2)])
    assert_hand_is(record, "right", RIGHT)
    assert no_hand(record, "left") == (not together)
    assert ("other_hands_xyxy_px" in record.extra) == (not together)


def test_of_single_hands_the_nearest_wrist_is_that_of_the_other_hand(tmp_path: Path) -> None:
    near, far = hand_at(75, 90), hand_at(130, 60)
    entries = [hand_entry(far, category_id=2), hand_entry(near, category_id=2), hand_entry(hand_at(40, 90, 25))]
    record = read(tmp_path, entries, [hand_category("right_hand", 1), hand_category("left_hand", 2)])
    assert_hand_is(record, "left", near)
    assert len(record.extra["other_hands_xyxy_px"]) == 1


def test_a_crowd_labels_no_hand(tmp_path: Path) -> None:
    crowd = hand_entry(LEFT, iscrowd=1, segmentation={"counts": [5], "size": [1, 1]})
    assert_hand_is(read(tmp_path, [crowd, hand_entry(RIGHT)], [hand_category()]), "right", RIGHT)
    assert reason(read(tmp_path, [crowd], [hand_category()])) is RejectReason.LABEL_MISSING


def test_a_hand_that_is_not_valid_is_unknown_and_its_box_is_a_hint(tmp_path: Path) -> None:
    person = person_entry(right=RIGHT, left=LEFT, lefthand_valid=False)
    record = read(tmp_path, [person], [person_category()])
    assert record.hand_state == ("labelled", "unknown")
    assert record.extra == {"boxes_xyxy_px": [pytest.approx([96, 72, 124, 100])], "box_sides": ["left"]}


@pytest.mark.parametrize("field", ["lefthand_kpts", "righthand_valid"])
def test_a_person_with_half_of_a_hand_s_fields_is_label_corrupt(tmp_path: Path, field: str) -> None:
    person = person_entry(right=RIGHT, left=LEFT)
    del person[field]
    assert reason(read(tmp_path, [person], [person_category()])) is RejectReason.LABEL_CORRUPT


# ---------------------------------------------------------------------------------------------------- masks


def test_polygons_and_run_lengths_of_hands_are_masks(tmp_path: Path) -> None:
    write_own(tmp_path)
    record = ingest(tmp_path)[0]
    assert isinstance(record, HandRecord)
    assert (record.has_mask, record.mask_extent) == (True, "hand")
    mask = CocoAdapter().open_mask(record)
    runs = np.zeros((HEIGHT, WIDTH), dtype=bool)
    runs[70:100, 110:112] = True
    assert (mask[:, 100:] == runs[:, 100:]).all()
    xs, ys = RIGHT_OUTLINE[::2], RIGHT_OUTLINE[1::2]
    area = abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(3))) / 2
    assert mask[:, :100].sum() == pytest.approx(area, rel=0.1)
    assert mask[70, 40] and not mask[90, 30]


def test_compressed_run_lengths_are_masks(tmp_path: Path) -> None:
    # Runs 0 and WIDTH * HEIGHT = 19200 = 18 * 1024 + 24 * 32, in characters of five bits, lowest first.
    text = "0" + chr(48 + 32) + chr(48 + 32 + 24) + chr(48 + 32 + 18) + "0"
    segmentation = {"counts": text, "size": [HEIGHT, WIDTH]}
    record = read(tmp_path, [hand_entry(RIGHT, segmentation=segmentation)], [hand_category()])
    assert CocoAdapter().open_mask(record).all()


def test_a_box_and_a_person_s_outline_are_no_masks_of_hands(tmp_path: Path) -> None:
    write_onehand10k(tmp_path / "one/set")
    write_wholebody(tmp_path / "two/set")
    for folder in ("one", "two"):
        assert not any(row.has_mask for row in ingest(tmp_path / folder) if isinstance(row, HandRecord))


def test_a_mask_of_one_of_two_hands_is_none(tmp_path: Path) -> None:
    entries = [hand_entry(RIGHT, segmentation=[RIGHT_OUTLINE]), hand_entry(LEFT, category_id=2)]
    record = read(tmp_path, entries, [hand_category("right_hand", 1), hand_category("left_hand", 2)])
    assert not record.has_mask


@pytest.mark.parametrize("segmentation", [[[]], [[1, 2, 3, 4]], [[], [5, 6]], [[0] * 8], [[5, 1, 5, 2, 5, 3]]])
def test_polygons_without_an_area_are_no_mask_and_cost_no_keypoints(tmp_path: Path, segmentation: Any) -> None:
    record = read(tmp_path, [hand_entry(RIGHT, segmentation=segmentation)], [hand_category()])
    assert_hand_is(record, "right", RIGHT)
    assert not record.has_mask


def test_a_polygon_alone_is_a_list_of_one(tmp_path: Path) -> None:
    points = np.reshape(RIGHT_OUTLINE, (-1, 2)).tolist()
    masks = [
        CocoAdapter().open_mask(read(tmp_path, [hand_entry(RIGHT, segmentation=segmentation)], [hand_category()]))
        for segmentation in (RIGHT_OUTLINE, [RIGHT_OUTLINE], [RIGHT_OUTLINE, [], [1, 2]], points)
    ]
    assert masks[0].any() and all(np.array_equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3]],
        "text",
        [["a", "b"]],
        {"counts": [1], "size": [HEIGHT, WIDTH + 1]},
        {"counts": 7, "size": [HEIGHT, WIDTH]},
    ],
)
def test_what_is_neither_polygons_nor_run_lengths_is_label_corrupt(tmp_path: Path, segmentation: Any) -> None:
    row = read(tmp_path, [hand_entry(RIGHT, segmentation=segmentation)], [hand_category()])
    assert reason(row) is RejectReason.LABEL_CORRUPT


def test_run_lengths_that_do_not_fill_the_image_are_mask_unreadable(tmp_path: Path) -> None:
    segmentation = {"counts": [5, 5], "size": [HEIGHT, WIDTH]}
    record = read(tmp_path, [hand_entry(RIGHT, segmentation=segmentation)], [hand_category()])
    with pytest.raises(RecordError, match="mask_unreadable"):
        CocoAdapter().open_mask(record)


# ---------------------------------------------------------------------------------------------------- the file


def test_the_order_of_the_lists_and_of_their_entries_decides_nothing(tmp_path: Path) -> None:
    write_wholebody(tmp_path)
    before = ingest(tmp_path)
    for path in (tmp_path / "annotations").iterdir():
        document = json.loads(path.read_text())
        document["annotations"].reverse()
        path.write_text(json.dumps(dict(reversed(document.items()))))
    after = ingest(tmp_path)
    assert [row.record_id for row in after] == [row.record_id for row in before]
    for one, other in zip(before, after, strict=True):
        assert not isinstance(one, HandRecord) or np.array_equal(one.keypoints_2d, other.keypoints_2d)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("label", "images"),
    [
        ("annotations/person_keypoints_default.json", "images/default"),
        ("annotations/person_keypoints_Train.json", "images/Train"),
        ("annotations/hands_val.json", "Images/Val"),
        ("annotations/hands_val.json", "VAL"),
        ("result.json", "images"),
    ],
)
def test_images_lie_where_labelling_tools_put_them(tmp_path: Path, label: str, images: str) -> None:
    write_labels(tmp_path / label, {"a.png": [hand_entry(RIGHT)]}, [hand_category()], folder=tmp_path / images)
    (record,) = ingest(tmp_path)
    assert isinstance(record, HandRecord), record
    assert record.image_uri == str(tmp_path / images / "a.png")


def test_a_path_in_full_below_the_set_is_taken_and_any_other_is_not(tmp_path: Path) -> None:
    images = {f"{tmp_path}/a.png": [hand_entry(RIGHT)], "/etc/hostname": [hand_entry(RIGHT)]}
    write_labels(tmp_path / "annotations/mine_train.json", images, [hand_category()], without_image=tuple(images))
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    taken, refused = ingest(tmp_path)
    assert isinstance(taken, HandRecord) and reason(refused) is RejectReason.PATH_ESCAPES_ROOT


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_for_the_upright_photograph_turn_it(tmp_path: Path, orientation: int) -> None:
    write_labels(tmp_path / "annotations/mine_train.json", {"a.jpg": [hand_entry(RIGHT)]}, [hand_category()])
    (tmp_path / "a.jpg").write_bytes(encoded(photograph(size=(WIDTH, HEIGHT)), "JPEG", orientation))
    (record,) = ingest(tmp_path)
    assert isinstance(record, HandRecord)
    assert (record.width, record.height) == (WIDTH, HEIGHT)
    ((_, pixels),) = open_frames([record])
    assert isinstance(pixels, np.ndarray) and pixels.shape == (HEIGHT, WIDTH, 3)
    assert pixels[10, 10].argmax() == 0 and pixels[10, -10].argmax() == 1
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "a.jpg")  # on its side without a word of EXIF
    assert reason(ingest(tmp_path)[0]) is RejectReason.IMAGE_SIZE_MISMATCH


def test_an_image_of_another_size_than_its_labels_say_is_rejected(tmp_path: Path) -> None:
    write_freihand(tmp_path)
    (image,) = tmp_path.rglob("*.jpg")
    Image.new("RGB", (WIDTH // 2, HEIGHT // 2)).save(image)
    (row,) = ingest(tmp_path)
    assert reason(row) is RejectReason.IMAGE_SIZE_MISMATCH


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda data: data["annotations"].append(hand_entry(LEFT, image_id=5)), [RejectReason.LABEL_MISSING]),
        (lambda data: data["annotations"].append(hand_entry(LEFT, image_id=None)), [RejectReason.LABEL_CORRUPT]),
        (lambda data: data["annotations"].append(7), [RejectReason.LABEL_CORRUPT]),
        (lambda data: data["images"].append({"id": 99}), [RejectReason.LABEL_CORRUPT]),
        (lambda data: data["images"].append({"file_name": "b.png", "id": [1]}), [RejectReason.LABEL_CORRUPT]),
        (lambda data: data["images"].append({"file_name": "../b.png", "id": 9}), [RejectReason.PATH_ESCAPES_ROOT]),
    ],
)
def test_what_belongs_to_nothing_is_a_row_of_its_own(
    tmp_path: Path, change: Callable[[Any], object], reasons: list[RejectReason]
) -> None:
    path = write_labels(
        tmp_path / "annotations/a_train.json", {"a.png": [hand_entry(RIGHT)]}, [hand_category()], folder=tmp_path
    )
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    rows = ingest(tmp_path)
    assert isinstance(rows[0], HandRecord)
    assert [reason(row) for row in rows[1:]] == reasons


@pytest.mark.parametrize("same", ["id", "file_name"])
def test_images_that_share_an_id_or_a_name_are_rejected(tmp_path: Path, same: str) -> None:
    images = {name: [hand_entry(RIGHT)] for name in ("a.png", "b.png", "c.png")}
    path = write_labels(tmp_path / "annotations/a_train.json", images, [hand_category()], folder=tmp_path)
    document = json.loads(path.read_text())
    document["images"][1][same] = document["images"][0][same]
    path.write_text(json.dumps(document))
    rows = ingest(tmp_path)
    assert [reason(row) for row in rows[:3]] == [RejectReason.LABEL_CORRUPT, RejectReason.LABEL_CORRUPT, None]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("images"),
        lambda data: data.pop("categories"),
        lambda data: data["categories"].append(data["categories"][0] | {"name": "again"}),
        lambda data: data["categories"].append({"name": "no id"}),
    ],
)
def test_a_file_whose_labels_cannot_be_told_is_one_rejection(tmp_path: Path, change: Callable[[Any], object]) -> None:
    write_freihand(tmp_path)
    path = tmp_path / "annotations/freihand_val.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    assert [reason(row) for row in ingest(tmp_path)] == [RejectReason.LABEL_CORRUPT]


def test_half_a_file_gives_no_records_since_hands_may_be_missing(tmp_path: Path) -> None:
    write_freihand(tmp_path)
    path = tmp_path / "annotations/freihand_val.json"
    path.write_bytes(path.read_bytes()[:-300])
    assert [reason(row) for row in ingest(tmp_path)] == [RejectReason.LABEL_CORRUPT]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak_of(count: int) -> int:
        images = {f"{number}.png": [hand_entry(RIGHT)] for number in range(count)}
        folder = tmp_path / f"set{count}"
        write_labels(folder / "labels.json", images, [hand_category()], without_image=list(images))
        adapter = CocoAdapter()
        (partition,) = adapter.partitions(folder)
        tracemalloc.start()
        assert sum(1 for _ in adapter.records(folder, partition)) == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_of(10)  # loads what is loaded once
    assert peak_of(400) < 1.3 * peak_of(100)


def test_a_full_folder_of_temporary_files_ends_the_ingest_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_freihand(tmp_path)
    monkeypatch.setattr(coco_json, "_TABLES", f"PRAGMA max_page_count = 5; {coco_json._TABLES}")
    with pytest.raises(StorageError, match="do not fit into the folder of temporary files"):
        ingest(tmp_path)
