"""WebDataset: a tar archive for each unit, with ``.jpg``, ``.mask.png`` and ``.json`` of each sample one after another.

    <split>/<source>-<unit>.tar

A unit holds runs of frames of whole sequences, or parts of long ones, in the order of their frames. A sample's key is
``<source>/<split>/<sequence>/<frame>-<camera>``. A sample without a mask has no ``.mask.png``.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator

import polars as pl
import pyarrow as pa

from handdata.jobs.exports.rows import document_of, frame_name, path_name, rows_of
from handdata.pipeline.shards import Shard


def file_names(shard: Shard, _: pl.DataFrame) -> list[str]:
    """Return the name of the archive of a shard."""
    return [f"{shard.split}/{shard.source}-{shard.stem}.tar"]


def encode(shard: Shard, tables: Iterable[pa.Table]) -> Iterator[tuple[str, bytes]]:
    """Yield the archive of a shard with its content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for table in tables:
            for row in rows_of(table):
                key = f"{path_name(row['source'])}/{row['split']}/{path_name(row['sequence_id'])}/{frame_name(row)}"
                _add(archive, f"{key}.jpg", row["image"]["bytes"])
                if row["hand_mask"] is not None:
                    _add(archive, f"{key}.mask.png", row["hand_mask"]["bytes"])
                _add(archive, f"{key}.json", json.dumps(document_of(row)).encode())
    (name,) = file_names(shard, pl.DataFrame())
    yield name, buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = 0o644
    archive.addfile(entry, io.BytesIO(data))
