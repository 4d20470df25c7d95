"""What every registered adapter keeps, whatever its source looks like."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from handdata.adapters.base import Adapter, BatchAdapter, warnings_of
from handdata.adapters.registry import registered_adapters
from handdata.adapters.roots import find_root
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.storage import Storage
from handdata.schemas import (
    RECORD_SCHEMA,
    REJECTION_SCHEMA,
    SOURCE_CARDS,
    HandRecord,
    LayoutError,
    Rejection,
    records_from_table,
    records_to_table,
    rejections_to_table,
)
from tests.fixtures.sources import ADAPTER_FIXTURES, AdapterFixture


class Dataset:
    """A fixture on disk with its adapter."""

    def __init__(self, fixture: AdapterFixture, folder: Path) -> None:
        fixture.write(folder)
        self.fixture = fixture
        self.adapter: Adapter = registered_adapters()[fixture.source]()
        self.root = find_root(type(self.adapter), folder)
        self.rows = self.read()

    def read(self) -> list[HandRecord | Rejection]:
        partitions = self.adapter.partitions(self.root)
        return [row for partition in partitions for row in self.adapter.records(self.root, partition)]

    @property
    def records(self) -> list[HandRecord]:
        return [row for row in self.rows if isinstance(row, HandRecord)]

    @property
    def rejections(self) -> list[Rejection]:
        return [row for row in self.rows if isinstance(row, Rejection)]


@pytest.fixture(scope="module", params=ADAPTER_FIXTURES, ids=lambda fixture: fixture.name)
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(request.param, tmp_path_factory.mktemp(request.param.name) / "dataset")


@pytest.mark.parametrize("source", registered_adapters())
def test_every_registered_adapter_has_a_fixture_here(source: str) -> None:
    covered = {fixture.source for fixture in ADAPTER_FIXTURES}
    assert source in covered, f"add a fixture for {source!r} to ADAPTER_FIXTURES in tests/adapter_fixtures.py"


@pytest.mark.parametrize(("source", "adapter"), registered_adapters().items())
def test_the_card_is_that_of_the_registered_name(source: str, adapter: type[Adapter]) -> None:
    assert adapter.card.name == source
    assert SOURCE_CARDS[source] == adapter.card
    assert adapter.layouts and all(layout.patterns for layout in adapter.layouts)


@pytest.mark.parametrize(("source", "adapter"), registered_adapters().items())
def test_a_folder_of_something_else_is_not_taken_for_the_source(
    tmp_path: Path, source: str, adapter: type[Adapter]
) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(LayoutError, match=rf"does not look like {source}.*holiday\.jpg"):
        find_root(adapter, tmp_path)


def test_the_folder_that_holds_the_dataset_is_a_root_too(dataset: Dataset) -> None:
    assert find_root(type(dataset.adapter), dataset.root.parent) == dataset.root


def test_every_frame_is_one_row(dataset: Dataset) -> None:
    assert (len(dataset.records), len(dataset.rejections)) == (dataset.fixture.records, dataset.fixture.rejections)


def test_ids_are_unique_over_records_and_rejections(dataset: Dataset) -> None:
    ids = [row.record_id for row in dataset.rows]
    assert len(set(ids)) == len(ids)


def test_records_belong_to_the_source_and_to_their_partition_s_split(dataset: Dataset) -> None:
    for partition in dataset.adapter.partitions(dataset.root):
        for row in dataset.adapter.records(dataset.root, partition):
            assert row.record_id.startswith(f"{dataset.fixture.source}/{partition.split}/")


def test_partitions_have_unique_sorted_names_and_add_up_to_the_whole(dataset: Dataset) -> None:
    partitions = list(dataset.adapter.partitions(dataset.root))
    names = [partition.name for partition in partitions]
    assert names == sorted(set(names))
    backwards = [
        [row.record_id for row in dataset.adapter.records(dataset.root, partition)]
        for partition in reversed(partitions)
    ]
    assert [record_id for ids in reversed(backwards) for record_id in ids] == [row.record_id for row in dataset.rows]


def test_partition_paths_are_relative_and_exist(dataset: Dataset) -> None:
    for partition in dataset.adapter.partitions(dataset.root):
        for path in partition.paths:
            assert not Path(path).is_absolute()
            assert (dataset.root / path).exists()


def test_two_runs_give_equal_rows_in_the_same_order(dataset: Dataset) -> None:
    again = dataset.read()
    assert [row.record_id for row in again] == [row.record_id for row in dataset.rows]
    assert records_to_table([row for row in again if isinstance(row, HandRecord)]).equals(
        records_to_table(dataset.records)
    )


def test_records_survive_the_table(dataset: Dataset) -> None:
    table = records_to_table(dataset.records)
    assert table.schema.equals(RECORD_SCHEMA)
    table.validate(full=True)
    back = list(records_from_table(table))
    assert [record.record_id for record in back] == [record.record_id for record in dataset.records]
    assert records_to_table(back).equals(table)


def test_rejections_fit_their_table_and_say_why(dataset: Dataset) -> None:
    rejections_to_table(dataset.rejections).cast(REJECTION_SCHEMA).validate(full=True)
    assert all(rejection.detail for rejection in dataset.rejections)


def test_images_lie_below_the_root_and_have_the_size_that_the_record_says(dataset: Dataset) -> None:
    for record in dataset.records:
        path = Path(record.image_uri)
        assert path.resolve().is_relative_to(dataset.root)
        if record.video_frame is None:
            with Image.open(path) as image:
                assert image.size == (record.width, record.height)


def test_adapter_partitions_and_records_travel_to_workers(dataset: Dataset) -> None:
    adapter, partitions = pickle.loads(pickle.dumps((dataset.adapter, list(dataset.adapter.partitions(dataset.root)))))
    rows = [row for partition in partitions for row in adapter.records(dataset.root, partition)]
    assert [row.record_id for row in rows] == [row.record_id for row in dataset.rows]
    travelled = pickle.loads(pickle.dumps(dataset.records))
    assert records_to_table(travelled).equals(records_to_table(dataset.records))


def test_masks_open_at_the_size_of_the_image(dataset: Dataset) -> None:
    for record in dataset.records:
        if record.has_mask:
            mask = dataset.adapter.open_mask(record)
            assert (mask.dtype, mask.shape) == (np.bool_, (record.height, record.width))


def test_masks_open_for_records_that_come_back_from_the_table(dataset: Dataset) -> None:
    for record in records_from_table(records_to_table(dataset.records)):
        if record.has_mask:
            dataset.adapter.open_mask(record)


def test_where_3d_and_camera_exist_they_project_to_the_pixels(dataset: Dataset) -> None:
    for record in dataset.records:
        if record.keypoints_3d is not None and record.camera_k is not None and record.camera_model == "pinhole":
            projected = record.keypoints_3d[record.keypoints_valid] @ record.camera_k.T
            pixels = projected[:, :2] / projected[:, 2:]
            assert pixels == pytest.approx(record.keypoints_2d[record.keypoints_valid], abs=0.5)
            assert (projected[:, 2] > 0).all()


def test_warnings_are_lines_of_text(dataset: Dataset) -> None:
    for warning in warnings_of(dataset.adapter, dataset.root):
        assert warning and "\n" not in warning


def test_limit_and_stride_keep_the_first_of_the_frames_that_divide(dataset: Dataset, tmp_path: Path) -> None:
    kept = [record.record_id for record in dataset.records if record.frame_index % 2 == 0][:2]
    if not kept:
        pytest.skip(f"the fixture of {dataset.fixture.name} has odd frame numbers only")
    summary = ingest(type(dataset.adapter), dataset.root, Storage(tmp_path), limit=2, stride=2)
    table = pq.read_table(tmp_path / "records" / f"source={dataset.fixture.source}")
    assert table["record_id"].to_pylist() == kept
    assert summary.records == len(kept)


def test_batches_give_the_same_rows_as_one_by_one(dataset: Dataset) -> None:
    if isinstance(dataset.adapter, BatchAdapter):
        read = [
            batch.read()
            for partition in dataset.adapter.partitions(dataset.root)
            for batch in dataset.adapter.record_batches(dataset.root, partition)
        ]
        table = pa.concat_tables([table for table, _ in read])
        assert table.combine_chunks().equals(records_to_table(dataset.records).combine_chunks())
        assert [rejection for _, rejected in read for _, rejection in rejected] == dataset.rejections


def test_ingest_in_parallel_stores_every_row_once(dataset: Dataset, tmp_path: Path) -> None:
    summary = ingest(type(dataset.adapter), dataset.root, Storage(tmp_path))
    assert summary.records == dataset.fixture.records
    assert not [warning for warning in summary.warnings if "was read" in warning]  # by any of the processes
    assert sum(summary.rejected.values()) == dataset.fixture.rejections
