"""Parquet files in which each image can be read on its own."""

import base64
import json
import zlib
from collections.abc import Collection, Iterable, Sequence
from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

RANGES_KEY = b"handdata.places"
"""Key of a Parquet file's metadata: the byte range of each value of its binary columns."""

CHECKSUMS_KEY = b"handdata.crc32"
"""Key of a Parquet file's metadata: the CRC-32 of each of those values."""


def table_to_parquet(table: pa.Table, row_group_rows: list[int] | int) -> bytes:
    """Return a table as the bytes of a Parquet file.

    Binary columns (encoded images do not compress) are stored as they are, and the file's metadata says at which
    bytes each value lies, so that one image can be read without the row group around it: see ``blob_ranges``. Each page
    has a checksum: without them most flipped bits change values unnoticed. So has each of those values, for who reads
    no whole pages: see ``blob_checksums``.

    Args:
        table: Rows of the file.
        row_group_rows: Rows of each row group in turn, or the most rows of any.

    """
    # A table that was read from such a file carries its byte ranges.
    own = (RANGES_KEY, CHECKSUMS_KEY)
    metadata = {key: value for key, value in (table.schema.metadata or {}).items() if key not in own}
    table = table.replace_schema_metadata(metadata or None)
    sink = BytesIO()
    blobs = _blob_columns(table)
    compression = _compression(table.schema, blobs)
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression=compression,
        # Statistics would hold a small image once more, before the place that counts.
        write_statistics=[name for name, kind in compression.items() if kind != "none"],
        use_dictionary=_dictionary_columns(table),
        write_page_checksum=True,
    ) as writer:
        if isinstance(row_group_rows, int):
            writer.write_table(table, row_group_size=row_group_rows)
        else:
            start = 0
            for rows in row_group_rows:
                writer.write_table(table.slice(start, rows), row_group_size=rows)
                start += rows
        if blobs:
            columns = list(blobs.values())
            ranges = _find_blobs(sink.getvalue(), columns)
            writer.add_key_value_metadata(
                {
                    RANGES_KEY: _encoded(blobs, ranges),
                    CHECKSUMS_KEY: _encoded(blobs, [_checksums(column) for column in columns]),
                }
            )
    return sink.getvalue()


def _encoded(names: Iterable[str], arrays: Iterable[NDArray[np.uint32]]) -> str:
    return json.dumps(
        {name: base64.b64encode(array.tobytes()).decode() for name, array in zip(names, arrays, strict=True)}
    )


def _decoded(file: pq.ParquetFile, key: bytes, column: str) -> NDArray[np.uint32] | None:
    encoded = json.loads((file.metadata.metadata or {}).get(key, "{}")).get(column)
    return None if encoded is None else np.frombuffer(base64.b64decode(encoded), "<u4")


def _checksums(column: pa.ChunkedArray) -> NDArray[np.uint32]:
    return np.array([zlib.crc32(value.as_buffer()) if value.is_valid else 0 for value in column], "<u4")


def blob_ranges(file: pq.ParquetFile, column: str) -> NDArray[np.uint32] | None:
    """Return the first byte and the number of bytes (N, 2) of a binary column's values; 0, 0 for a null.

    None where the file does not say, or where what it says is not true of it: other software, which wrote it again, may
    have copied its metadata.
    """
    if (found := _decoded(file, RANGES_KEY, column)) is None:
        return None
    ranges = found.reshape(-1, 2)
    return ranges if len(ranges) == file.metadata.num_rows and _ranges_fit(file.metadata, column, ranges) else None


def blob_checksums(file: pq.ParquetFile, column: str) -> NDArray[np.uint32] | None:
    """Return the CRC-32 (N,) of a binary column's values, 0 for a null; None where the file has none.

    They hold only where ``blob_ranges`` does: who copies a file's metadata copies both.
    """
    return _decoded(file, CHECKSUMS_KEY, column)


def _ranges_fit(metadata: pq.FileMetaData, column: str, ranges: NDArray[np.uint32]) -> bool:
    """Tell whether in each row group the column ends with the last value that ``ranges`` has there."""
    paths = [metadata.row_group(0).column(number).path_in_schema for number in range(metadata.num_columns)]
    number = next(number for number, path in enumerate(paths) if path in (column, f"{column}.bytes"))
    first = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        ends = ranges[first : first + group.num_rows].sum(axis=1)
        chunk = group.column(number)
        if ends.any() and ends.max() != chunk.data_page_offset + chunk.total_compressed_size:
            return False
        first += group.num_rows
    return True


def _blob_columns(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Return the binary columns, and the ``bytes`` of those that hold encoded images."""
    blobs = {}
    for field in table.schema:
        if pa.types.is_binary(field.type):
            blobs[field.name] = table[field.name]
        elif pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            blobs[field.name] = pc.struct_field(table[field.name], "bytes")
    return blobs


def _find_blobs(data: bytes, columns: Sequence[pa.ChunkedArray]) -> list[NDArray[np.uint32]]:
    """Return where the values of columns lie in the bytes of a Parquet file that holds them uncompressed."""
    ranges = [np.zeros((len(column), 2), "<u4") for column in columns]
    # A row group holds its values column by column, each in the order of rows: a search goes on where the last ended.
    ends = [0] * len(columns)
    for number, column in enumerate(columns):
        for row, value in enumerate(column):
            if not value.is_valid:
                continue
            blob = value.as_buffer()
            start = data.index(memoryview(blob), ends[number]) if blob.size else ends[number]
            ranges[number][row] = start, blob.size
            ends[number] = start + blob.size
    return ranges


def _compression(schema: pa.Schema, blobs: Collection[str]) -> dict[str, str]:
    """Return the compression of each column, by the names that Parquet gives them."""
    sink = BytesIO()
    pq.write_metadata(schema, sink)
    names = [column.path for column in pq.read_metadata(sink).schema]
    return {name: "none" if name.removesuffix(".bytes") in blobs else "zstd" for name in names}


def _dictionary_columns(table: pa.Table) -> list[str]:
    """Return the text columns: images and coordinates hardly repeat, and trying costs time and memory."""
    return [field.name for field in table.schema if pa.types.is_string(field.type)]
