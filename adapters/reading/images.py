"""The size of an image from its header, without decoding a pixel."""

import errno
import io
import struct
import warnings
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from handdata.adapters.reading.listing import NotRegularFileError, open_unbuffered, read_head
from handdata.schemas.errors import RecordError, RejectReason

MAX_IMAGE_PIXELS = 12_000 * 12_000
"""More pixels than this are a decompression bomb (phones take 12,000 x 9,000). Decoding takes up to 9 bytes a pixel, so
that a worker stays below the 2 GiB that docs/cluster.md plans for it."""

MAX_IMAGE_BYTES = 1 << 29
"""Size of the largest image file that is decoded: it lies in memory beside its pixels."""

IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
"""The only decoders that files from outside reach. The content says which one, whatever the name of the file."""

_JPEG_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_MARKERS_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDA), 0xFF})
_JPEG_SEGMENT = struct.Struct(">BBHBHH")
"""Mark, marker and length of any segment; precision, height and width of a frame header."""
_HEAD_BYTES = 1024
"""The frame header of most photographs lies within these."""


def _jpeg_size(stream: IO[bytes]) -> tuple[int, int] | None:
    """Return (width, height) from the frame header of a usual JPEG file; ``None`` for any other, which Pillow judges.

    Opening with Pillow takes 90 us, most of it for EXIF and plug-ins, this 5 us: at millions of photographs it decides
    how long ingest takes. Segments: ITU-T T.81, B.1.1.4; the frame header: B.2.2.
    """
    head, start, at = stream.read(_HEAD_BYTES), 0, 2
    if not head.startswith(b"\xff\xd8"):
        return None
    while True:
        if at - start + 9 > len(head):  # a segment of camera data or a preview comes first
            start = stream.seek(at)
            head = stream.read(_HEAD_BYTES)
        mark, marker, length, precision, height, width = _JPEG_SEGMENT.unpack(
            head[at - start : at - start + 9].ljust(9, b"\0")
        )
        if mark != 0xFF or marker in _JPEG_MARKERS_WITHOUT_LENGTH:
            return None
        if marker in _JPEG_FRAME_MARKERS:
            return (width, height) if precision == 8 and width and height else None
        at += 2 + max(2, length)


def _pillow_size(stream: IO[bytes]) -> tuple[int, int]:
    stream.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images and odd EXIF blocks; neither matters here
        with Image.open(stream, formats=IMAGE_FORMATS) as image:
            return image.size


def read_image_size(path: Path | str) -> tuple[int, int]:
    """Return (width, height) of an image file from its header, without decoding pixels.

    Raises:
        RecordError: The file is missing, empty, unreadable, or too large.

    """
    try:
        size = _jpeg_size(io.BytesIO(read_head(path, _HEAD_BYTES)))
        if size is not None and size[0] * size[1] <= MAX_IMAGE_PIXELS:
            return size
        with open_unbuffered(path) as stream:
            return read_image_size_from(stream, str(path))
    except FileNotFoundError as error:
        if error.errno == errno.ENAMETOOLONG:
            name = str(path).rpartition("/")[2]
            raise RecordError(RejectReason.IMAGE_MISSING, f"{name[:80]}...: {error.strerror}") from None
        raise RecordError(RejectReason.IMAGE_MISSING, f"{path} does not exist") from None
    except NotRegularFileError as error:
        raise RecordError(RejectReason.IMAGE_CORRUPT, f"{path} {error}") from None


def read_image_size_from(stream: IO[bytes], name: str) -> tuple[int, int]:
    """Return (width, height) of an encoded image from its header.

    Args:
        stream: The encoded image, such as a member of an archive.
        name: Its name, for messages.

    Raises:
        RecordError: The image is empty, unreadable, or too large.

    """
    try:
        width, height = _jpeg_size(stream) or _pillow_size(stream)
    except Image.DecompressionBombError as error:
        raise RecordError(RejectReason.IMAGE_TOO_LARGE, f"{name}: {error}") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        stream.seek(0)
        if not stream.read(1):
            raise RecordError(RejectReason.IMAGE_EMPTY, f"{name} has no bytes") from None
        raise RecordError(RejectReason.IMAGE_CORRUPT, f"{name}: {error}") from None
    if width * height > MAX_IMAGE_PIXELS:
        raise RecordError(RejectReason.IMAGE_TOO_LARGE, f"{name} announces {width} x {height} pixels")
    return width, height
