"""Planned records that the last ingest of their source gives otherwise, or no more: their samples are of what was."""

from collections.abc import Iterable
from typing import Final

import polars as pl
import pyarrow as pa

from handdata.pipeline.records.stored import read_ingest_summary
from handdata.pipeline.shards.plan import PlannedUnit, is_of_last_ingest
from handdata.pipeline.storage import Dataset, Storage

_LABELS: Final = ["width", "height", "keypoints_2d", "keypoints_valid", "hand_state", "keypoints_3d", "video_frame"]
"""Columns that are the same as long as nobody changes an image or its labels."""


def outdated_records(dataset: Dataset, source: str, units: Iterable[PlannedUnit]) -> tuple[str, ...]:
    """Return in sentences what the samples of a source do not follow: images and labels that were replaced or removed.

    A record is found again by its id. Nothing is compared as long as all planned records are of the last ingest, and of
    an ingest of one split, or of a limited one, nothing is missed.

    Args:
        dataset: The dataset.
        source: An ingested source.
        units: All planned units of the source.

    """
    if is_of_last_ingest(dataset, source):
        return ()
    ingest = read_ingest_summary(dataset.storage, source)
    now = _contents(dataset.storage, ingest.files)
    planned = _contents(dataset.storage, sorted({unit.plan_file for unit in units}))
    again = f"--overwrite annotates {source} again"
    both = planned.join(now, on="key", suffix="_now")
    changed = both.filter(
        (pl.col("labels") != pl.col("labels_now")) | (pl.col("file_bytes") != pl.col("file_bytes_now"))
    )
    found = []
    if len(changed):
        found.append(
            f"the images or labels of {len(changed):,} records of {source} were replaced since they were planned, and "
            f"their samples are of the earlier ones, such as {_first_id(changed)}: {again}"
        )
    if ingest.split is None and ingest.limit is None:
        gone = planned.join(now, on="key", how="anti")
        if len(gone):
            found.append(
                f"the last ingest of {source} has {len(gone):,} of the planned records no more, and their samples "
                f"stay, such as {_first_id(gone)}: {again}"
            )
    return tuple(found)


def _contents(storage: Storage, files: Iterable[str]) -> pl.DataFrame:
    """Return hashes of id and labels of the records in some files, the sizes of their images, and their ids."""
    tables = [_contents_of(storage.read_parquet(name, ["record_id", "extra", *_LABELS])) for name in files]
    empty = {"key": pl.UInt64, "labels": pl.UInt64, "file_bytes": pl.Int64, "record_id": pl.String}
    return pl.concat([pl.DataFrame(schema=empty), *tables]).unique("key")


def _contents_of(table: pa.Table) -> pl.DataFrame:
    rows = pl.DataFrame(table)
    return rows.select(
        key=pl.col("record_id").hash(),
        labels=rows.select(_LABELS).hash_rows(),
        file_bytes=pl.col("extra").str.extract(r'"file_bytes": ?(\d+)').cast(pl.Int64, strict=False),
        record_id=pl.col("record_id"),
    )


def _first_id(rows: pl.DataFrame) -> str:
    return str(rows["record_id"].min())
