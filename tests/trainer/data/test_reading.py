"""Rows of shards are read as they were written."""

from pathlib import Path

import polars as pl
import pytest

from handdata.pipeline.shards import list_shards
from handdata.pipeline.storage import Dataset, Storage
from handdata.trainer.data.reading import StoredRows
from handdata.trainer.data.sample_index import chosen_rows
from handdata.trainer.presets import DataConfig
from tests.fixtures.samples import sample, write_dataset


@pytest.mark.parametrize("untold", [(), ("hand_mask",), ("image",), ("image", "hand_mask")])
def test_a_row_has_its_mask_whatever_its_file_tells_of_places(tmp_path: Path, untold: tuple[str, ...]) -> None:
    storage = Storage(tmp_path)
    write_dataset(storage, [sample("still", 0)])
    shards = list_shards(Dataset(storage))
    rows = chosen_rows(Dataset(storage), shards, DataConfig())
    gone = {f"{name}_{part}": pl.lit(None, pl.UInt32) for name in untold for part in ("start", "bytes", "crc32")}
    (frame,) = StoredRows(storage, shards, rows.with_columns(**gone)).read([(0, True)])
    assert frame.mask == sample("still", 0).hand_mask.bytes  # type: ignore[union-attr]
    assert frame.image == sample("still", 0).image.bytes
