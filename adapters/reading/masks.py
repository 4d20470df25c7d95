"""Segmentations as the datasets store them, as (height, width) masks: polygons, COCO RLE, label images, colours, npz.

Everything comes from outside: whatever is not what the format says is a ``RecordError`` with ``mask_unreadable`` that
names the file. Sizes are (width, height) as in ``HandRecord``.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from handdata.adapters.reading.arrays import read_npz
from handdata.adapters.reading.damage import find_damage
from handdata.adapters.reading.images import IMAGE_FORMATS, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from handdata.adapters.reading.listing import open_file
from handdata.schemas.arrays import BoolArray, ByteArray
from handdata.schemas.errors import RecordError, RejectReason

Size = tuple[int, int]
"""(width, height) in pixels."""
MAX_COORDINATE: Final = 32_767
"""OpenCV's polygon filler works in 16.16 fixed point: larger coordinates overflow silently."""


# ---------------------------------------------------------------------------------------------------- polygons


def fill_polygon(rings: Sequence[ArrayLike], size: Size, path: Path) -> BoolArray:
    """Return the mask of one entity made of rings of (x, y) pixels, filled together by the even-odd rule.

    A ring within another is a hole, separate rings are separate parts, as VISOR's renderer has it (coordinates are
    truncated to whole pixels, and a ring's own outline is filled). Rings of fewer than three points have no area and
    are omitted. Two entities may overlap: fill each and combine them with ``|``; filled together they would cancel.

    Raises:
        RecordError: ``mask_unreadable``: a ring is not a list of (x, y), or lies absurdly far outside the image.

    """
    whole = []
    for ring in rings:
        try:
            points = np.asarray(ring, dtype=np.float64)
        except (TypeError, ValueError):
            raise _unreadable(path, "a ring is not a list of numbers") from None
        if len(points) < 3:
            continue
        if points.ndim != 2 or points.shape[1] != 2:
            raise _unreadable(path, f"a ring has shape {points.shape}, expected (points, 2)")
        if not (np.abs(points) <= MAX_COORDINATE).all():  # NaN fails, too
            raise _unreadable(path, f"a ring has coordinates that are not within {MAX_COORDINATE} pixels")
        whole.append(points.astype(np.int32))
    mask = np.zeros(_shape(size, path), dtype=np.uint8)
    if whole:
        cv2.fillPoly(mask, whole, color=1)
    return mask.astype(np.bool_)


# ---------------------------------------------------------------------------------------------------- run lengths


def decode_rle(counts: Sequence[int] | str | bytes, size: Size, path: Path) -> BoolArray:
    """Return the mask of COCO run lengths, compressed (a string) or not (a list).

    Runs go down the columns, background first. In the string each number is a series of characters of six bits (minus
    48): five of data, lowest first, and one that says that more follow; the last data bit is the sign; from the fourth
    on a number is the difference from the one two before (COCO API, ``maskApi.c``, ``rleFrString``).

    Raises:
        RecordError: ``mask_unreadable``: not run lengths, or they do not fill the image.

    """
    height, width = _shape(size, path)
    runs = _decode_counts(counts, path) if isinstance(counts, str | bytes) else list(counts)
    if any(not isinstance(run, int) or run < 0 for run in runs):
        raise _unreadable(path, "a run length is not a whole number from 0")
    if sum(runs) != width * height:
        raise _unreadable(path, f"the run lengths cover {sum(runs)} pixels of {width} x {height}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _decode_counts(text: str | bytes, path: Path) -> list[int]:
    data = text.encode("utf-8") if isinstance(text, str) else text
    runs: list[int] = []
    value = bits = 0
    for character in data:
        chunk = character - 48
        if not 0 <= chunk < 64 or bits > 35:
            raise _unreadable(path, f"{character} is not a character of compressed run lengths")
        value |= (chunk & 0x1F) << bits
        bits += 5
        if chunk & 0x20:
            continue
        if chunk & 0x10:
            value -= 1 << bits
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = bits = 0
    if bits:
        raise _unreadable(path, "the compressed run lengths end within a number")
    return runs


# ---------------------------------------------------------------------------------------------------- images


def read_label_image(path: Path, size: Size | None = None) -> NDArray[np.integer]:
    """Return the (height, width) ids of a one-channel image, exactly as stored: palette indices, 1 to 16 bits of grey.

    Raises:
        RecordError: ``mask_unreadable``: missing, corrupt, of another size than ``size``, or in colour.

    """
    with _open_image(path, size) as image:
        if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"):
            raise _unreadable(path, f"expected one channel of ids, got an image of mode {image.mode}")
        scale = {2: 85, 4: 17}.get(_png_grey_bits(path), 1)  # Pillow stretches 2 and 4 bits of grey to 0..255
        labels = np.asarray(image)
    if labels.dtype == np.bool_:
        return labels.astype(np.uint8)
    return (labels // scale).astype(labels.dtype.newbyteorder("="))


def read_mask_of_colours(path: Path, colours: Sequence[tuple[int, int, int]], size: Size | None = None) -> BoolArray:
    """Return where an RGB, RGBA or palette image has exactly one of the (red, green, blue) colours (HOI4D).

    Raises:
        RecordError: As ``read_label_image``.

    """
    with _open_image(path, size) as image:
        pixels = np.asarray(image.convert("RGB"))
    mask = np.zeros(pixels.shape[:2], dtype=np.bool_)
    for colour in colours:
        mask |= (pixels == colour).all(axis=2)
    return mask


def read_nonzero_mask(path: Path, size: Size | None = None) -> BoolArray:
    """Return where any channel but alpha is not zero; palette images by index.

    Raises:
        RecordError: As ``read_label_image``.

    """
    with _open_image(path, size) as image:
        channels = np.asarray(image)
        if channels.ndim == 3:
            channels = channels[..., : len(image.getbands()) - ("A" in image.getbands())].max(axis=2)
    return np.asarray(channels != 0)


def read_alpha(path: Path, size: Size | None = None) -> ByteArray:
    """Return the (height, width) alpha channel, 0..255 (DART).

    Raises:
        RecordError: As ``read_label_image``, or there is no alpha channel.

    """
    with _open_image(path, size) as image:
        if "A" not in image.getbands():
            raise _unreadable(path, f"has no alpha channel: its mode is {image.mode}")
        return np.array(image.getchannel("A"))


def read_npz_labels(path: Path, name: str, size: Size) -> NDArray[np.integer]:
    """Return the (height, width) array of ids called ``name`` in an ``.npz`` (DexYCB's ``seg``). Nothing is unpickled.

    Raises:
        RecordError: ``mask_unreadable``: missing, corrupt, or of another shape or kind.

    """
    shape = _shape(size, path)
    try:
        labels = read_npz(path, (name,))[name]
    except RecordError as error:
        raise RecordError(RejectReason.MASK_UNREADABLE, error.detail) from None
    if labels.shape != shape or labels.dtype.kind not in "iub":
        raise _unreadable(path, f"{name} is {labels.dtype} of shape {labels.shape}, expected ids of shape {shape}")
    return labels.astype(np.uint8) if labels.dtype == np.bool_ else cast(NDArray[np.integer], labels)


@contextmanager
def _open_image(path: Path, size: Size | None) -> Iterator[Image.Image]:
    """Open and decode an image, after its header has been checked."""
    try:
        with open_file(path) as stream:
            data = stream.read(MAX_IMAGE_BYTES + 1)
        if len(data) > MAX_IMAGE_BYTES:
            raise _unreadable(path, f"has more than {MAX_IMAGE_BYTES >> 20} MiB")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
            if size is not None and image.size != size:
                raise _unreadable(path, f"is {image.size[0]} x {image.size[1]}, expected {size[0]} x {size[1]}")
            if image.size[0] * image.size[1] > MAX_IMAGE_PIXELS:
                raise _unreadable(path, f"announces {image.size[0]} x {image.size[1]} pixels")
            damage = find_damage(data)
            if damage:
                raise _unreadable(path, f"is damaged: {damage}")
            image.load()
        yield image
    except FileNotFoundError:
        raise _unreadable(path, "does not exist") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, str(error)) from None


def _png_grey_bits(path: Path) -> int:
    """Return the bits a pixel of a greyscale PNG; 0 for any other file."""
    with open_file(path) as stream:
        header = stream.read(26)  # signature (8), length and "IHDR" (8), width and height (8), bits, colour type
    is_grey_png = len(header) == 26 and header[:8] == b"\x89PNG\r\n\x1a\n" and header[25] == 0
    return header[24] if is_grey_png else 0


def _shape(size: Size, path: Path) -> tuple[int, int]:
    width, height = size
    if width <= 0 or height <= 0 or width * height > MAX_IMAGE_PIXELS:
        raise _unreadable(path, f"{width} x {height} is not the size of an image")
    return height, width


def _unreadable(path: Path, problem: str) -> RecordError:
    return RecordError(RejectReason.MASK_UNREADABLE, f"{path}: {problem}")
