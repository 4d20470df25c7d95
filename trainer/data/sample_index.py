"""The rows of a split that pairs are made of, chosen by their small columns.

A row costs about 55 bytes of memory. Its sequence is kept as a number of a list of names, its other names as hashes.
"""

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from handdata.pipeline.shards import Shard, list_shards, read_shard_index
from handdata.pipeline.storage import Dataset
from handdata.schemas import Split, UsageError, license_id_of
from handdata.schemas.sample import PIXEL_COLUMNS, SAMPLE_SCHEMA
from handdata.trainer.data.splits import HELD_OUT
from handdata.trainer.presets import DataConfig

UNLABELLED_FLAG: Final = "unlabelled_hand"
NO_CONTENT_FLAG: Final = "no_content"
SIDE_UNKNOWN_FLAG: Final = "side_unknown"
"""Flags of rows that are not used unless the settings take them."""

INDEX_COLUMNS: Final = (
    "record_id",
    "source",
    "split",
    "sequence_id",
    "frame_index",
    "camera_id",
    "timestamp_s",
    "origin_id",
    "hand_state",
    "keypoints_origin",
)

_CHOICE_COLUMNS: Final = ("sample_id", "license", "license_id", "flags")
"""Columns that ``DataConfig`` chooses by, and the name of a row."""

READERS: Final = 16
"""Files whose index is read at once: on object stores waiting costs the time."""

_EXAMPLE: Final = "an example: --where \"source = 'hagrid' AND sharpness > 50 AND NOT array_contains(flags, 'blurry')\""


_ACROSS_ROWS: Final = frozenset(
    {"Agg", "Over", "Rolling", "Len", "Explode", "Gather", "Filter", "Slice", "Sort", "SortBy", "SubPlan"}
    | {"Quantile", "Range", "Rank", "Shift", "Diff", "Unique", "Reverse", "Correlation", "ArgWhere", "Repeat"}
)
"""Parts of a polars expression whose value in a row depends on other rows."""

_WITHIN_ROWS: Final = ("Column", "Literal", "ListExpr", "ArrayExpr", "StringExpr", "evaluation")
"""Parts that hold names, values, and functions of one row's list or text."""

_WORDS_ACROSS_ROWS: Final = re.compile(
    r"\b(avg|bit_\w+|bool_\w+|corr|count|covar\w*|cume_dist|dense_rank|every|exists|explode|first\w*|lag|last\w*|lead|"
    r"\w+_agg|max|median|min|nth_value|ntile|over|percent_rank|quantile\w*|rank|row_number|select|std\w*|sum|unnest|"
    r"var\w*)\s*\(|\b(select)\b",
    re.IGNORECASE,
)
"""Words of SQL that make such parts, by which an error names them."""

_CLOCK: Final = re.compile(
    r"\b(now\s*\(|current_(?:date|time|timestamp)\b|localtime(?:stamp)?\b|today\b)", re.IGNORECASE
)
"""Words of SQL whose value is another one at another time: the same run would choose other rows when it goes on."""


_OF_ATTRIBUTES: Final = "attributes."
_ATTRIBUTE: Final = re.compile(r"""('(?:[^']|'')*'|"(?:[^"]|"")*")|\battributes\.(\w+)""", re.IGNORECASE)
"""A quoted text or name of SQL, or the name of an attribute."""


def read_rows(dataset: Dataset, shards: Sequence[Shard], split: Split, data: DataConfig) -> pl.DataFrame:
    """Return the usable rows of a split, in the order of ``shards``.

    Not usable are rows that ``data`` does not choose, rows whose physical frame another source shows too (the one that
    took it stays, else the first), and those whose physical frame belongs to a split that is held out from this one.

    Returns:
        The columns of ``chosen_rows``; 64-bit hashes of their groups (``video``, ``moment``); ``hands_known``, whether
        something is known of both hands; ``sequence_id`` and ``license_id`` (categorical), ``timestamp_s``,
        ``frame_index``.

    Raises:
        UsageError: ``data.where`` is no condition on a sample's columns.

    """
    rows = chosen_rows(dataset, shards, data, INDEX_COLUMNS, _columns_of_pairs())
    held_out = list_shards(dataset, splits=HELD_OUT[split])

    def origins_of(shard: Shard) -> pl.Series:
        table = read_shard_index(dataset.storage, shard, ["record_id", "origin_id"])
        return table.select(_physical_frame()).to_series()

    with ThreadPoolExecutor(READERS) as readers:
        shown = list(readers.map(origins_of, held_out))
    if shown:
        rows = rows.filter(~pl.col("origin").is_in(pl.concat(shown).unique().implode()))
    return without_repeats(rows, shards)


def chosen_rows(
    dataset: Dataset,
    shards: Sequence[Shard],
    data: DataConfig,
    columns: Sequence[str] = (),
    made: Sequence[pl.Expr] = (),
) -> pl.DataFrame:
    """Return the rows of some shards that ``data`` chooses, in the order of ``shards``.

    Args:
        dataset: Dataset of the shards.
        shards: At least one shard.
        data: Choice of rows.
        columns: Further columns that are read.
        made: What is kept of these columns.

    Returns:
        ``shard`` and ``row`` in its file; where its image and mask lie (``image_start``, ``image_bytes``,
        ``hand_mask_start``, ``hand_mask_bytes``) and their CRC-32 (``image_crc32``, ``hand_mask_crc32``), null where
        unknown; a 64-bit hash of its name (``sample``).

    Raises:
        UsageError: ``data.where`` is no condition on a sample's columns.

    """
    condition, asked = parse_condition(data.where)
    attributes = [name for name in asked if name.startswith(_OF_ATTRIBUTES)]
    asked = ["attributes" if name in attributes else name for name in asked]
    wanted = list(dict.fromkeys((*_CHOICE_COLUMNS, *columns, *asked)))

    def rows_of(position: int) -> pl.DataFrame:
        table = _with_license_ids(read_shard_index(dataset.storage, shards[position], wanted, PIXEL_COLUMNS))
        table = table.with_columns(map(_attribute, attributes))
        chosen = table.drop("row").with_row_index("row").filter(_chosen(table, condition, data))
        return chosen.select(
            pl.lit(position, pl.Int32).alias("shard"),
            pl.col("row").cast(pl.Int32),
            *(f"{name}_{part}" for name in PIXEL_COLUMNS for part in ("start", "bytes", "crc32")),
            pl.col("sample_id").hash().alias("sample"),
            *made,
        )

    with ThreadPoolExecutor(READERS) as readers:
        return pl.concat(readers.map(rows_of, range(len(shards))), rechunk=True)


def parse_condition(text: str | None) -> tuple[pl.Expr, list[str]]:
    """Return an SQL expression as polars' own, and the columns that it reads.

    ``attributes.NAME`` is the column ``attributes.NAME``, a text: what the JSON of ``attributes`` has under that name.

    Raises:
        UsageError: The text is no SQL, or no condition on a sample's columns.

    """
    if text is None:
        return pl.lit(True), []
    known = [name for name in SAMPLE_SCHEMA.names if name not in PIXEL_COLUMNS]
    sql = _ATTRIBUTE.sub(lambda found: found[1] or f'"{_OF_ATTRIBUTES}{found[2]}"', text)
    words = re.sub(r"'[^']*'", "", text)
    if clock := _CLOCK.search(words):
        asked = clock[0].rstrip(" (").upper()
        raise UsageError(
            f"--where {text!r} asks for the time by {asked}: another day it would choose other rows",
            "write the date itself, such as DATE '2026-01-31'",
        )
    across = [match[0].rstrip(" (").upper() for match in _WORDS_ACROSS_ROWS.finditer(words)]
    names = f" by {', '.join(across)}" if across else ""
    looks_across = UsageError(
        f"--where {text!r} asks about other rows{names}; "
        "a condition looks at one row, without aggregates, windows and subqueries",
        _EXAMPLE,
    )
    try:
        condition = pl.sql_expr(sql)
        columns = condition.meta.root_names()
        if _looks_across_rows(json.loads(condition.meta.serialize(format="json"))):
            raise looks_across
        if condition.meta.has_multiple_outputs():
            raise UsageError(f"--where {text!r} does not name its columns one by one", _EXAMPLE)
    except pl.exceptions.PolarsError as error:
        if across:
            raise looks_across from None
        raise UsageError(f"--where {text!r} is no SQL expression: {_first_line(error)}", _EXAMPLE) from None
    attributes = [name for name in columns if name.startswith(_OF_ATTRIBUTES)]
    unknown = [name for name in columns if name not in (*known, *attributes)]
    if unknown:
        raise UsageError(f"--where {text!r}: a sample has no column {unknown[0]!r}", f"there are {', '.join(known)}")
    empty = pl.DataFrame(SAMPLE_SCHEMA.empty_table().select(known)).with_columns(pl.col(pl.Categorical).cast(pl.String))
    empty = empty.with_columns(map(_attribute, attributes))
    try:
        kind = empty.lazy().select(condition).collect_schema().dtypes()
        empty.select(condition)
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"--where {text!r} does not fit the columns: {_first_line(error)}", _EXAMPLE) from None
    if kind != [pl.Boolean]:
        raise UsageError(f"--where {text!r} is {kind[0]}, not true or false", _EXAMPLE)
    return condition, columns


def all_of(*conditions: str | None) -> str | None:
    """Return the SQL condition that rows fulfil which fulfil all of some conditions; None where there are none."""
    given = [condition for condition in conditions if condition]
    # A line each: a condition may end in a comment.
    return given[0] if len(given) == 1 else " AND ".join(f"({condition}\n)" for condition in given) or None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def _looks_across_rows(part: Any) -> bool:
    """Tell whether a part of a serialised expression depends on other rows than the one that it is computed for.

    A file is one chunk of rows among many: an aggregate over it would mean something else in every file.
    """
    if isinstance(part, dict):
        inside = (value for name, value in part.items() if name not in _WITHIN_ROWS)
        return not _ACROSS_ROWS.isdisjoint(part) or any(map(_looks_across_rows, inside))
    if isinstance(part, list):
        return any(map(_looks_across_rows, part))
    return part in _ACROSS_ROWS


def _chosen(table: pl.DataFrame, condition: pl.Expr, data: DataConfig) -> pl.Series:
    chosen = condition
    if data.licences:
        chosen = chosen & pl.col("license_id").is_in([license_id_of(name) for name in data.licences])
    if not data.unlabelled_hands:
        chosen = chosen & ~pl.col("flags").list.contains(UNLABELLED_FLAG)
    if not data.no_content:
        chosen = chosen & ~pl.col("flags").list.contains(NO_CONTENT_FLAG)
    if not data.side_unknown:
        chosen = chosen & ~pl.col("flags").list.contains(SIDE_UNKNOWN_FLAG)
    try:  # a condition without columns is a single value
        return table.select(pl.repeat(True, pl.len()) & chosen).to_series().fill_null(False)
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"--where {data.where!r} does not fit the columns: {_first_line(error)}", _EXAMPLE) from None


def _attribute(column: str) -> pl.Expr:
    """Return the column of an attribute, made of the column ``attributes``."""
    return pl.col("attributes").str.json_path_match(f"$.{column.removeprefix(_OF_ATTRIBUTES)}").alias(column)


def _with_license_ids(table: pl.DataFrame) -> pl.DataFrame:
    """Return rows whose ``license_id`` is that of their licence where it is null, as in format version 1."""
    if not table["license_id"].null_count():
        return table
    names = table["license"].unique().to_list()
    ids = pl.col("license").replace_strict(names, [license_id_of(name) for name in names], return_dtype=pl.String)
    return table.with_columns(pl.coalesce("license_id", ids))


def _physical_frame() -> pl.Expr:
    """Return which moment of which camera a row shows: the upstream frame's name where a source repacks another's."""
    return pl.coalesce("origin_id", "record_id").hash().alias("origin")


def _columns_of_pairs() -> list[pl.Expr]:
    """Return what is kept of a row that pairs are made of."""
    # Both frames of a pair know of the same hands. Where a hand is labelled (or said to be absent) in one frame and
    # nothing is known of it in the other, the latter may show it without keypoints: such frames are never paired.
    known = [
        pl.col("keypoints_origin").list.get(hand).is_not_null() | (pl.col("hand_state").list.get(hand) == "absent")
        for hand in (0, 1)
    ]
    hands = [flag.cast(pl.UInt8).cast(pl.String) for flag in known]

    def group(*columns: str) -> pl.Expr:
        return pl.concat_str([*columns, *hands], separator="\x1f").hash()

    return [
        _physical_frame(),
        pl.col("origin_id").is_not_null().alias("repacked"),
        group("source", "split", "sequence_id", "camera_id").alias("video"),
        group("source", "split", "sequence_id", "frame_index").alias("moment"),
        pl.all_horizontal(known).alias("hands_known"),
        pl.col("sequence_id", "license_id").cast(pl.Categorical),
        pl.col("timestamp_s"),
        pl.col("frame_index"),
    ]


def without_repeats(rows: pl.DataFrame, shards: Sequence[Shard]) -> pl.DataFrame:
    """Reject rows whose physical frame another source shows too, or a repacking source shows again."""
    names = sorted({shard.source for shard in shards})
    source = np.array([names.index(shard.source) for shard in shards], np.int32)[rows["shard"].to_numpy()]
    ranked = rows.with_columns(rank=pl.Series(source)).with_columns(
        rank=pl.col("rank") + pl.col("repacked").cast(pl.Int32) * len(names)
    )
    kept = ranked.filter(pl.col("rank") == pl.col("rank").min().over("origin"))
    return kept.filter(pl.col("origin").is_first_distinct()).drop("origin", "repacked", "rank")


def source_ranges(shards: Sequence[Shard], rows_of_shard: NDArray[np.integer]) -> Iterator[tuple[str, int, int]]:
    """Return each source with its first row and the one after its last; the shards of a source follow each other."""
    starts = np.concatenate([[0], np.cumsum(rows_of_shard)])
    first = 0
    for stop in range(1, len(shards) + 1):
        if stop == len(shards) or shards[stop].source != shards[first].source:
            yield shards[first].source, int(starts[first]), int(starts[stop])
            first = stop
