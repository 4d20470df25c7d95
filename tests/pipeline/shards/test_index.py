"""Readers of all kinds open an annotated dataset, and its index finds every row."""

from pathlib import Path

import datasets
import duckdb
import polars as pl
import pyarrow.parquet as pq

from handdata.pipeline.shards import list_shards, read_index, read_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import SAMPLE_SCHEMA


def test_every_reader_opens_the_dataset(annotated_synthetic: Path, tmp_path: Path) -> None:
    folder = annotated_synthetic / "dataset" / "data"
    table = pq.read_table(folder)
    assert set(SAMPLE_SCHEMA.names) == set(table.schema.names)
    assert all(table.schema.field(field.name).type == field.type for field in SAMPLE_SCHEMA)
    assert pl.scan_parquet(folder / "**/*.parquet", hive_partitioning=False).collect().height == 48
    count = duckdb.sql(f"select count(*) from read_parquet('{folder}/**/*.parquet', hive_partitioning=false)")
    assert count.fetchall() == [(48,)]
    files = sorted(map(str, folder.rglob("*.parquet")))
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert loaded[0]["image"].size == (64, 64)
    assert loaded[0]["hand_mask"].mode == "L"


def test_the_index_finds_every_row_without_reading_images(annotated_synthetic: Path) -> None:
    storage = Storage(annotated_synthetic)
    shards = list_shards(Dataset(storage), splits=["train"])
    index = read_index(storage, shards, ["sample_id", "sequence_id", "frame_index"])
    assert index.height == read_manifest(Dataset(storage)).sources["synthetic"]["train"].samples
    assert index["shard"].max() == len(shards) - 1
