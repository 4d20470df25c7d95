"""Records as columns: the same rows, tables and rejections as one by one."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from handdata.adapters import AdapterOptions, BatchAdapter, Layout, Partition, RecordBatch
from handdata.adapters.hagrid import HagridAdapter
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.storage import Storage
from handdata.schemas import HandRecord, Rejection, RejectReason, SourceCard, hand_states, records_to_table
from handdata.schemas import record_batch as batches
from handdata.schemas.arrays import BoolArray
from handdata.schemas.record_batch import hand_states_of_rows
from tests.fixtures.hagrid import LEFT_OF_PICTURE, entry_v1, points_in, write_annotations, write_images

ROWS = 6
SHARED = {"source": "hagrid", "split": "train", "viewpoint": "exo"}


def rigid_transforms(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    transforms = np.tile(np.eye(4), (count, 1, 1))
    for transform in transforms:
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        transform[:3, :3] = rotation * np.linalg.det(rotation)  # -1 or 1: no mirror image
        transform[:3, 3] = rng.normal(size=3)
    return transforms


def columns(**changed: Any) -> dict[str, Any]:
    """Return the columns of six frames; the third has no hand."""
    rng = np.random.default_rng(3)
    valid = rng.random((ROWS, 42)) < 0.7
    valid[2] = False
    return {
        "sequence_id": [f"s{row}" for row in range(ROWS)],
        "frame_index": [3 * row for row in range(ROWS)],
        "camera_id": ["a", "b", "a", "b", "a", "b"],
        "timestamp_s": [0.1, None, 0.3, 0.4, 0.5, 0.6],
        "subject_id": ["p1", None, "", "p2", "p2", "p2"],
        "image_uri": [f"/data/{row}.jpg" for row in range(ROWS)],
        "width": [640] * ROWS,
        "height": [480] * ROWS,
        "keypoints_valid": valid,
        "keypoints_2d": np.where(valid[..., None], rng.uniform(-50, 700, (ROWS, 42, 2)), np.nan),
        "hand_state": hand_states_of_rows(valid, "unknown"),
        "keypoints_3d": rng.normal(size=(ROWS, 42, 3)),
        "camera_k": np.triu(rng.uniform(1, 900, (ROWS, 3, 3))) * [[1], [1], [0]] + np.diag([0, 0, 1]),
        "camera_t_world": rigid_transforms(rng, ROWS),
        "extra": [{"b": [1, 2.5], "a": row} for row in range(ROWS)],
        **changed,
    }


def batch_of(shared: dict[str, Any] = SHARED, rejected: tuple[int, ...] = (), **changed: Any) -> RecordBatch:
    rejections = [
        (row, Rejection(record_id=f"r{number}", image_uri="", reason=RejectReason.IMAGE_MISSING, detail="gone"))
        for number, row in enumerate(rejected)
    ]
    return RecordBatch(shared, columns(**changed), [f"labels.json: {row}" for row in range(ROWS)], rejections)


def put(name: str, row: int, value: Any) -> dict[str, Any]:
    column = columns()[name]
    column = column.copy() if isinstance(column, np.ndarray) else list(column)
    column[row] = value
    return {name: column}


def same_as_one_by_one(batch: RecordBatch) -> list[str]:
    """Assert that both ways agree, and return the ids of the rejections."""
    table, rejected = batch.read()
    one_by_one = list(batch.rows())
    records = [row for row in one_by_one if isinstance(row, HandRecord)]
    table.validate(full=True)
    assert table.combine_chunks().equals(records_to_table(records).combine_chunks())
    before = np.cumsum([isinstance(row, HandRecord) for row in one_by_one]).tolist()
    expected = [(count, row) for count, row in zip(before, one_by_one, strict=True) if isinstance(row, Rejection)]
    assert rejected == expected
    return [rejection.record_id for _, rejection in rejected]


GESTURE = {"gesture": "call", "gesture_left": "call"}


@pytest.mark.parametrize("shared", [{}, {"attributes": GESTURE}])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"attributes": [GESTURE, None, {}, {"gloss": "a\U0001f44d"}, GESTURE, GESTURE]},
        {"attributes": [GESTURE] * ROWS, "extra": [None, {}, {"a": 1}, None, None, None]},
        {"attributes": [GESTURE, {"gesture": 1}, {"gesture": None}, {"gesture": "\ud83d"}, {1: "x"}, ["gesture"]]},
        {"extra": [{"attributes": {"gesture": "call"}}] * ROWS},
    ],
)
def test_attributes_are_stored_alike_both_ways(shared: dict[str, Any], changed: dict[str, Any]) -> None:
    batch = RecordBatch({**SHARED, **shared}, columns(**changed), [f"labels.json: {row}" for row in range(ROWS)])
    same_as_one_by_one(batch)


def test_good_rows_pass_without_a_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    assert same_as_one_by_one(batch_of()) == []
    asked = []
    one = RecordBatch._row
    monkeypatch.setattr(RecordBatch, "_row", lambda batch, row: asked.append(row) or one(batch, row))
    batch_of().read()
    assert asked == [0]  # it says what the rows share


@pytest.mark.parametrize("row", [0, 3, 5])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_id", ""),
        ("sequence_id", 7),
        ("sequence_id", "\ud800"),
        ("frame_index", -1),
        ("frame_index", 2**31),
        ("frame_index", 10**30),
        ("frame_index", None),
        ("frame_index", 1.5),
        ("camera_id", ""),
        ("camera_id", None),
        ("timestamp_s", "soon"),
        ("image_uri", ""),
        ("width", 0),
        ("height", -5),
        ("keypoints_2d", np.full((42, 2), np.inf)),
        ("keypoints_2d", np.full((42, 2), 1e39)),
        ("keypoints_2d", np.full((42, 2), -1.1e6)),
        ("keypoints_3d", np.full((42, 3), 640.0)),
        ("keypoints_3d", np.full((42, 3), np.nan)),
        ("camera_k", np.full((3, 3), np.nan)),
        ("camera_t_world", np.full((4, 4), -np.inf)),
        ("hand_state", ("absent", "absent")),
        ("hand_state", ("labelled", "hidden")),
        ("keypoints_valid", np.zeros(42, bool)),
        ("extra", ["no", "object"]),
        ("extra", {1: "no text"}),
    ],
)
def test_a_row_that_no_record_can_hold_is_the_same_rejection(name: str, value: Any, row: int) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        rejected = same_as_one_by_one(batch_of(rejected=(0, 3, 3, 6), **put(name, row, value)))
    assert len(rejected) == 5


def test_whole_numbers_with_a_point_are_a_record_either_way() -> None:
    assert same_as_one_by_one(batch_of(**put("width", 4, 640.0))) == []


@pytest.mark.parametrize("name", ["frame_index", "width", "timestamp_s"])
@pytest.mark.parametrize("value", ["12", True, "", 10**400, b"1", [1]])
def test_what_is_no_number_is_rejected_either_way(name: str, value: Any) -> None:
    assert len(same_as_one_by_one(batch_of(**put(name, 1, value)))) == 1
    rejected = [row for row in batch_of(**put(name, 1, value)).rows() if isinstance(row, Rejection)]
    assert [row.reason for row in rejected] == ["label_corrupt"]
    all_wrong = batch_of(**{name: [value] * ROWS})
    assert len(same_as_one_by_one(all_wrong)) == ROWS


def mirrored(transform: NDArray[np.float64]) -> NDArray[np.float64]:
    return transform * np.array([[-1.0], [1], [1], [1]])


@pytest.mark.parametrize(
    "change",
    [
        mirrored,
        lambda t: t * np.array([[1.01], [1.01], [1.01], [1]]),
        lambda t: t + np.array([[0, 0, 0, 0]] * 3 + [[0, 0, 1, 0]]),
        lambda t: np.zeros((4, 4)),
        lambda t: np.full((4, 4), 1e30),
        lambda t: t @ np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
    ],
)
def test_a_camera_that_mirrors_scales_or_shears_is_rejected_either_way(
    change: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> None:
    good = columns()["camera_t_world"]
    changed = good.copy()
    changed[3] = change(good[3])
    assert len(same_as_one_by_one(batch_of(camera_t_world=changed))) == 1
    rounded = np.round(good, 3)
    rounded[:, 3] = (0, 0, 0, 1)
    assert same_as_one_by_one(batch_of(camera_t_world=rounded)) == [], "calibrations are printed with few digits"


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 1)])
@pytest.mark.parametrize("focal", [0.0, -500.0])
def test_focal_lengths_are_positive_either_way(row: int, column: int, focal: float) -> None:
    k = columns()["camera_k"]
    k[2, row, column] = focal
    assert len(same_as_one_by_one(batch_of(camera_k=k))) == 1


@pytest.mark.parametrize("change", [np.transpose, lambda k: 2 * k, lambda k: k[::-1], lambda k: np.linalg.inv(k).T])
def test_intrinsics_in_another_order_or_scale_are_rejected_either_way(
    change: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> None:
    k = columns()["camera_k"]
    k[2] = change(k[2].copy())
    assert len(same_as_one_by_one(batch_of(camera_k=k))) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequence_id", "s\ud800"),
        ("subject_id", "\udfff"),
        ("image_uri", "/a\udcff.jpg"),
        ("extra", {"gestures": ["\ud83d"]}),
        ("extra", {"\ud83d": 1}),
    ],
)
def test_half_a_character_is_rejected_either_way(name: str, value: Any) -> None:
    assert len(same_as_one_by_one(batch_of(**put(name, 1, value)))) == 1


def test_whole_characters_beyond_the_first_plane_are_texts() -> None:
    extra = put("extra", 2, {"gestures": ["\U0001f44d", "\\ud83d"]})
    assert same_as_one_by_one(batch_of(**put("subject_id", 1, "\U0001f44d"), **extra)) == []


def test_validity_is_boolean_either_way() -> None:
    valid = columns()["keypoints_valid"]
    assert same_as_one_by_one(batch_of(keypoints_valid=valid.astype(np.int8))) == []
    for wrong in (valid * 2, valid.astype(str), np.where(valid, 0.5, 0)):
        assert len(same_as_one_by_one(batch_of(keypoints_valid=wrong))) >= ROWS - 1


def test_numbers_of_arrays_are_neither_texts_nor_booleans() -> None:
    k = columns()["camera_k"]
    for wrong in (k.astype(str), k > 1):
        assert len(same_as_one_by_one(batch_of(camera_k=wrong))) == ROWS


def test_a_column_of_the_wrong_shape_is_rejected_row_by_row() -> None:
    assert len(same_as_one_by_one(batch_of(keypoints_3d=np.zeros((ROWS, 21, 3))))) == ROWS
    assert len(same_as_one_by_one(batch_of(shared={**SHARED, "viewpoint": "above"}))) == ROWS


def test_a_mask_needs_its_extent_and_may_be_shared() -> None:
    assert len(same_as_one_by_one(batch_of(shared={**SHARED, "has_mask": True}))) == ROWS
    shared = {**SHARED, "has_mask": True, "mask_extent": "hand", "camera_model": "fisheye", "camera_dist": (0.5, 0.25)}
    assert same_as_one_by_one(batch_of(shared=shared)) == []


def test_the_order_of_numbers_in_memory_does_not_matter() -> None:
    points = np.asfortranarray(columns()["keypoints_3d"])
    assert same_as_one_by_one(batch_of(keypoints_3d=points)) == []
    assert same_as_one_by_one(batch_of(keypoints_3d=points.reshape(ROWS, 126))) == []


def test_rejections_alone_are_a_batch() -> None:
    rejection = Rejection(record_id="r", image_uri="", reason=RejectReason.LABEL_CORRUPT, detail="not JSON")
    batch = RecordBatch({}, {}, (), [(0, rejection)])
    assert list(batch.rows()) == [rejection]
    assert batch.read()[1] == [(0, rejection)]


def test_columns_of_different_lengths_or_unknown_names_are_a_mistake_of_the_adapter() -> None:
    with pytest.raises(ValueError, match="expected 6 rows in each column"):
        batch_of(width=[1])
    with pytest.raises(ValueError, match=r"not columns of a batch.*camera_model"):
        batch_of(camera_model=["pinhole"] * ROWS)


def test_states_of_rows_are_those_of_each_row() -> None:
    valid = np.asarray(columns()["keypoints_valid"])
    assert [tuple(states) for states in hand_states_of_rows(valid, "absent").tolist()] == [
        hand_states(row, "absent") for row in valid
    ]


class RowByRow:
    """HaGRID's adapter as a package would write it that knows no batches."""

    card: ClassVar[SourceCard] = HagridAdapter.card
    layouts: ClassVar[tuple[Layout, ...]] = HagridAdapter.layouts

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self._adapter = HagridAdapter(options)

    def partitions(self, root: Path) -> Iterator[Partition]:
        return self._adapter.partitions(root)

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        return self._adapter.records(root, partition)

    def open_mask(self, record: HandRecord) -> BoolArray:
        return self._adapter.open_mask(record)


def write_hostile_hagrid(root: Path) -> None:
    """Write 40 photographs of two gestures; every fifth label is a trap."""
    good = entry_v1([LEFT_OF_PICTURE], ["call"], "right")
    far = [[[1e37, 0.5]] * 21]
    for gesture in ("call", "fist"):
        entries = {f"{gesture}-{number:02d}": good for number in range(20)}
        entries[f"{gesture}-03"] = entry_v1([LEFT_OF_PICTURE], ["call"], "right", [[[float("nan"), 0.5]] * 21])
        entries[f"{gesture}-08"] = entry_v1([LEFT_OF_PICTURE], ["call"], "right", far)
        entries[f"../{gesture}-13"] = good
        entries[f"{gesture}-18"] = entry_v1([LEFT_OF_PICTURE], ["call"], "right", [points_in(LEFT_OF_PICTURE)[:7]])
        images = [f"{gesture}-{number:02d}" for number in range(20) if number != 5]
        write_annotations(root / f"ann_train_val/{gesture}.json", entries)
        write_images(root / f"train_val_{gesture}", images)


@pytest.mark.parametrize("rows_at_once", [4, 1024])
@pytest.mark.parametrize(("limit", "stride"), [(None, 1), (7, 1), (3, 1), (21, 1), (None, 2)])
def test_ingest_writes_the_same_tables_either_way(
    limit: int | None, stride: int, rows_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "BATCH_ROWS", rows_at_once)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # in this process, where the batches are small
    write_hostile_hagrid(tmp_path / "hagrid")
    found = {}
    for adapter in (HagridAdapter, RowByRow):
        workspace = tmp_path / adapter.__name__
        summary = ingest(adapter, tmp_path / "hagrid", Storage(workspace), limit=limit, stride=stride)
        tables = [pq.read_table(folder) for folder in (workspace / "records/source=hagrid",)]
        if summary.rejected:
            tables.append(pq.read_table(workspace / "rejected/ingest/source=hagrid"))
        # The names of the files are new with each ingest.
        found[adapter] = replace(summary, files=(), rejected_files=()), [table.combine_chunks() for table in tables]
    assert found[HagridAdapter] == found[RowByRow]
    assert isinstance(HagridAdapter(), BatchAdapter)
    assert not isinstance(RowByRow(), BatchAdapter)
    assert found[RowByRow][0].records == (34 if limit is None else limit)
