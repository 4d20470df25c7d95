"""Rows of samples as the formats of an export take them: arrays of their lists, and names for their files."""

import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

import cv2
import numpy as np
import polars as pl
import pyarrow as pa
from PIL import Image

from handdata.adapters.reading.listing import is_clutter, is_copy_name
from handdata.schemas import KEYPOINT_COUNT, SAMPLE_SCHEMA, UnreadableImageError, license_id_of
from handdata.schemas.arrays import BoolArray, FloatArray
from handdata.schemas.sample import PIXEL_COLUMNS

Row = dict[str, Any]
"""A sample by its columns, as Arrow gives them to Python."""

NAMING_COLUMNS: Final = ("source", "split", "sequence_id", "frame_index", "camera_id")
"""Columns that the names of a sample's files are made of."""

_LONGEST_NAME: Final = 180
"""Characters of the longest name of a folder or file that is made of an id; file systems allow 255 bytes."""

_SHAPES: Final = {"keypoints_2d": (-1, 2), "keypoints_3d": (-1, 3), "camera_k": (3, 3), "camera_t_world": (4, 4)}
"""Shapes of the columns that are flat lists."""


def rows_of(table: pa.Table) -> Iterator[Row]:
    """Yield the rows of a table of samples."""
    yield from table.to_pylist()


def keypoints_of(row: Row) -> tuple[FloatArray, BoolArray]:
    """Return (42, 2) crop pixels, zeros where not valid, and which are valid (42,)."""
    valid = np.array(row["keypoints_valid"], np.bool_)
    points = np.array(row["keypoints_2d"], np.float32).reshape(KEYPOINT_COUNT, 2)
    return np.where(valid[:, None], points, np.float32(0)), valid


def mask_of(row: Row) -> BoolArray | None:
    """Return the pixels (S, S) of the hands; None where there is no mask.

    Raises:
        UnreadableImageError: The mask cannot be decoded.

    """
    if row["hand_mask"] is None:
        return None
    pixels = cv2.imdecode(np.frombuffer(row["hand_mask"]["bytes"], np.uint8), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise UnreadableImageError(f"the hand mask of {row['sample_id']} cannot be decoded")
    return np.asarray(pixels >= 128)


def image_size(row: Row) -> tuple[int, int]:
    """Return width and height of a sample's image, from its header.

    Raises:
        UnreadableImageError: It has none.

    """
    try:
        with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
            return image.size
    except OSError:
        raise UnreadableImageError(f"the image of {row['sample_id']} cannot be decoded") from None


def license_id(row: Row) -> str:
    """Return the id of the licence of a row, also of one of format version 1."""
    return str(row["license_id"] or license_id_of(row["license"]))


def document_of(row: Row) -> dict[str, Any]:
    """Return all of a row but its pixels, as JSON holds it: matrices nested, ``attributes`` as an object."""
    document = {name: row[name] for name in SAMPLE_SCHEMA.names if name not in PIXEL_COLUMNS}
    for name, shape in _SHAPES.items():
        if document[name] is not None:
            document[name] = shortest(np.array(document[name], np.float32).reshape(shape))
    document["license_id"] = license_id(row)
    document["attributes"] = json.loads(document["attributes"] or "{}")
    return document


def shortest(values: FloatArray) -> Any:
    """Return an array of 32-bit numbers as nested lists of the shortest decimals that give the same numbers again."""
    return np.vectorize(lambda value: float(str(value)), otypes=[object])(np.asarray(values, np.float32)).tolist()


def path_name(text: str) -> str:
    """Return a name of a folder or file for an id, another one for each: characters with a meaning are escaped."""
    name = quote(text, safe="")
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    if is_clutter(name) or is_copy_name(name):  # our adapters pass over the one, and refuse the other
        name = f"{name[:-1]}%{ord(name[-1]):02X}"
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}~{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return name or "%"


def frame_name(row: Row) -> str:
    """Return ``<frame>-<camera>`` for a sample, without a dot and with one ``-``: both end a name in some layouts."""
    camera = path_name(str(row["camera_id"])).replace(".", "%2E").replace("-", "%2D")
    return f"{row['frame_index']:06d}-{camera}"


def naming_rows(chosen: pl.DataFrame) -> Iterator[Row]:
    """Yield what the names of the chosen samples are made of."""
    yield from chosen.select(NAMING_COLUMNS).iter_rows(named=True)
