"""Contact sheets of samples and of records."""

import io
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import polars as pl
from PIL import Image

from handdata.pictures.drawing import draw_crop, draw_keypoints, draw_mask, tile
from handdata.pipeline.annotation.crop import CropSquare
from handdata.pipeline.shards import Shard, list_shards, read_index, read_row_group
from handdata.pipeline.storage import Dataset
from handdata.schemas import HandRecord
from handdata.schemas.arrays import BoolArray, ByteArray

SHEET_COLUMNS: Final = (
    "sample_id",
    "source",
    "split",
    "sequence_id",
    "hand_state",
    "image",
    "hand_mask",
    "keypoints_2d",
    "keypoints_valid",
    "keypoints_origin",
    "mask_origin",
    "flags",
)
"""Columns of a sample that are needed to draw it."""


def choose_samples(dataset: Dataset, count: int, seed: int) -> list[dict[str, Any]]:
    """Return ``count`` rows with ``SHEET_COLUMNS``, or all of a smaller dataset, sorted by sample.

    The rows are spread evenly over the sources, and within a source over its sequences. Images are read only from row
    groups that hold a chosen sample, and a source of many shards is represented by a few of them.

    Args:
        dataset: The dataset.
        count: Number of rows.
        seed: Seed of the choice.

    Raises:
        UsageError: There is no dataset.

    """
    by_source: dict[str, list[Shard]] = {}
    for shard in list_shards(dataset):
        by_source.setdefault(shard.source, []).append(shard)
    generator = np.random.default_rng(seed)
    shards = [
        source_shards[position]
        for source_shards in by_source.values()
        for position in generator.permutation(len(source_shards))[:count]
    ]
    if not shards:
        return []
    index = read_index(dataset.storage, shards, ["sample_id", "source", "sequence_id"]).sample(
        fraction=1, shuffle=True, seed=seed
    )
    # The first sample of every sequence comes before the second of any, and the same for sources.
    index = index.with_columns(turn=pl.int_range(pl.len()).over("source", "sequence_id")).sort(
        "turn", maintain_order=True
    )
    index = index.with_columns(turn=pl.int_range(pl.len()).over("source")).sort("turn", maintain_order=True)
    rows: list[dict[str, Any]] = []
    for (shard, group), chosen in index.head(count).group_by("shard", "row_group"):
        table = read_row_group(dataset.storage, shards[int(shard)], int(group), SHEET_COLUMNS)
        rows += table.take(chosen["row"].to_arrow()).to_pylist()
    return sorted(rows, key=lambda row: str(row["sample_id"]))


def draw_sample(sample: Mapping[str, Any], size_px: int) -> ByteArray:
    """Return the (size_px, size_px, 3) picture of a row of an annotated shard: mask, keypoints and flags drawn.

    The crop is scaled before it is drawn on, so that lines are as sharp in a small tile as in a large one.
    """
    image = np.array(Image.open(io.BytesIO(sample["image"]["bytes"])).convert("RGB"))
    mask = None
    if sample["hand_mask"] is not None:
        mask = np.array(Image.open(io.BytesIO(sample["hand_mask"]["bytes"])).convert("L"))
    keypoints = np.array(sample["keypoints_2d"], dtype=np.float32).reshape(42, 2)
    return draw_crop(image, mask, keypoints, np.array(sample["keypoints_valid"], dtype=bool), sample["flags"], size_px)


def sample_contact_sheet(samples: Iterable[Mapping[str, Any]], columns: int = 6, tile_px: int = 192) -> ByteArray:
    """Return one RGB picture of annotated samples with their keypoints, sides, masks and flags.

    Args:
        samples: Rows of annotated shards with ``SHEET_COLUMNS``, for instance from ``choose_samples``.
        columns: Number of tiles in a row.
        tile_px: Side of a tile, pixels.

    """
    rows = list(samples)
    if not rows:
        return tile([np.full((tile_px, tile_px, 3), 230, dtype=np.uint8)], 1, 10, ["no annotated samples"])
    pictures = [draw_sample(row, tile_px) for row in rows]
    return tile(pictures, columns, 10, [f"{row['source']}\n{tail(row['sample_id'])}" for row in rows])


def inspection_sheet(
    frames: Iterable[tuple[HandRecord, ByteArray, BoolArray | None]], columns: int = 4, tile_px: int = 320
) -> ByteArray:
    """Return one RGB picture of a source's frames with the labels drawn, which shows whether they fit the hands.

    Each frame is cut to the surroundings of its labelled joints; a frame without labelled joints is shown whole.

    Args:
        frames: Records, their (height, width, 3) RGB pixels, and their (height, width) masks where they have one.
        columns: Number of tiles in a row.
        tile_px: Side of a tile, pixels.

    """
    pictures, captions = [], []
    for record, image, mask in frames:
        pictures.append(_draw_record(record, image, mask, tile_px))
        right, left = record.hand_state
        captions.append(f"{tail(record.record_id)}\nR {right}, L {left}")
    if not pictures:
        return tile([np.full((tile_px, tile_px, 3), 230, dtype=np.uint8)], 1, 10, ["no frames"])
    return tile(pictures, columns, 10, captions)


def _draw_record(record: HandRecord, image: ByteArray, mask: BoolArray | None, tile_px: int) -> ByteArray:
    """Return the square around a record's joints, twice as wide as they are and no larger than the image, drawn on."""
    joints = record.keypoints_2d[record.keypoints_valid]
    largest = max(record.width, record.height)
    side, centre = largest, np.array([record.width - 1, record.height - 1]) / 2
    if len(joints):
        low, high = joints.min(axis=0), joints.max(axis=0)
        # A label far outside the image should be visible: the whole image is shown then.
        if (2 * (high - low) < largest).all() and (high > 0).all() and (low < [record.width, record.height]).all():
            side, centre = max(32, int(2 * (high - low).max())), (low + high) / 2
    left, top = np.round(centre - (side - 1) / 2).astype(int).tolist()
    square = CropSquare(left=left, top=top, side=side, size=tile_px)
    crop = square.cut(image)
    if mask is not None:
        crop = draw_mask(crop, square.cut_mask(mask))
    return draw_keypoints(crop, square.to_crop(record.keypoints_2d), record.keypoints_valid)


def tail(identity: str) -> str:
    """Return the end of an id: the last two of its parts."""
    return "/".join(identity.split("/")[-2:])
