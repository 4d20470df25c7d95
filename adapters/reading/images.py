"""Encoded images: which decoder opens them, their size from the header, and how they are turned to stand upright."""

import errno
import importlib
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from handdata.adapters.reading.listing import NotRegularFileError, open_file, open_unbuffered, read_head
from handdata.schemas.errors import RecordError, RejectReason, UsageError

MAX_IMAGE_PIXELS = 12_000 * 12_000
"""More pixels than this are a decompression bomb (phones take 12,000 x 9,000). Decoding takes up to 9 bytes a pixel, so
that a worker stays below the 2 GiB that docs/cluster.md plans for it."""

MAX_IMAGE_BYTES = 1 << 29
"""Size of the largest image file that is decoded: it lies in memory beside its pixels."""

IMAGE_FORMATS = ("AVIF", "BMP", "JPEG", "PNG", "TIFF", "WEBP")
"""The only decoders that files from outside reach, beside that of HEIC (``open_image``). The content says which one,
whatever the name of the file."""
_HEIC_BRANDS: Final = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_AVIF_BRANDS: Final = frozenset({b"avif", b"avis"})
_ISO_IMAGE_BRANDS: Final = _HEIC_BRANDS | _AVIF_BRANDS | {b"mif1", b"mif2", b"msf1", b"miaf"}
"""Brands of image files among those that are built like MP4 (ISO/IEC 23008-12, annex B)."""
_BRAND_BYTES: Final = 64
_ORIENTATIONS: Final = range(1, 9)
_TURNED_SIDEWAYS: Final = (5, 6, 7, 8)
NO_EXIF: Final = (OSError, ValueError, SyntaxError, EOFError, struct.error, KeyError, TypeError)
"""What Pillow raises over a damaged EXIF block."""
_PNG_TEXTS: Final = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})

_LEAST_MIDDLE: Final = 0.3
"""Share of width and height that lies on each side of a principal point: those of real cameras are at 0.45 to 0.55."""
_JPEG_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_MARKERS_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDA), 0xFF})
_JPEG_SEGMENT = struct.Struct(">BBHBHH")
"""Mark, marker and length of any segment; precision, height and width of a frame header."""
_HEAD_BYTES = 1024
"""The frame header of most photographs lies within these."""


def _jpeg_size(head: bytes, stream: IO[bytes] | None = None) -> tuple[int, int] | None:
    """Return (width, height) from the frame header of a usual JPEG file; ``None`` for any other, which Pillow judges.

    Opening with Pillow takes 90 us, most of it for EXIF and plug-ins, this 3 us: at millions of photographs it decides
    how long ingest takes. Segments: ITU-T T.81, B.1.1.4; the frame header: B.2.2.

    Args:
        head: The first bytes.
        stream: The file, where camera data or a preview may come before the frame header; without it, ``None`` is
            returned where the frame header does not lie in ``head``.

    """
    if not head.startswith(b"\xff\xd8"):
        return None
    start, at = 0, 2
    while True:
        if at - start + _JPEG_SEGMENT.size > len(head):
            if stream is None:
                return None
            start = stream.seek(at)
            head = stream.read(_HEAD_BYTES).ljust(_JPEG_SEGMENT.size, b"\0")
        mark, marker, length, precision, height, width = _JPEG_SEGMENT.unpack_from(head, at - start)
        if mark != 0xFF or marker in _JPEG_MARKERS_WITHOUT_LENGTH:
            return None
        if marker in _JPEG_FRAME_MARKERS:
            return (width, height) if precision == 8 and width and height else None
        at += 2 + max(2, length)


def open_image(stream: IO[bytes]) -> Image.Image:
    """Open an encoded image with the decoder that its first bytes ask for; no pixel is decoded.

    Raises:
        UsageError: It is HEIC, and the package that decodes it is not installed.
        OSError: Pillow cannot read it; so do its other errors say.

    """
    head = stream.read(_BRAND_BYTES)
    stream.seek(0)
    if is_iso_image(head) and not _brands(head) & _AVIF_BRANDS:
        _require_heic()
        return Image.open(stream, formats=("HEIF",))
    return Image.open(stream, formats=IMAGE_FORMATS)


def is_iso_image(head: bytes) -> bool:
    """Return whether a file that begins so is HEIC or AVIF, which are built like MP4."""
    return head[4:8] == b"ftyp" and head[8:12] in _ISO_IMAGE_BRANDS


def _brands(head: bytes) -> set[bytes]:
    """Return the brands of a file that is built like MP4: the main one, and those that it is compatible with."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[at : at + 4] for at in range(16, end - 3, 4))}


def _require_heic() -> None:
    """Let Pillow open HEIC.

    Raises:
        UsageError: The package that does it is not installed.

    """
    if "HEIF" in Image.OPEN:
        return
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise UsageError(
            "HEIC photographs need the package pillow-heif", 'pip install "handdata[heic]" on every machine'
        ) from None


def orientation_of(image: Image.Image, stream: IO[bytes]) -> int:
    """Return how the pixels that Pillow gives must be turned to stand upright, as the EXIF orientation: 1 to 8.

    TIFF and HEIC come upright from their decoders. A damaged EXIF block says nothing.

    Args:
        image: Image that ``open_image`` has opened.
        stream: The same encoded image.

    """
    if image.format in ("TIFF", "HEIF"):
        return 1
    try:
        # Of a PNG without EXIF before its pixels Pillow decodes these, to look behind them.
        is_plain = image.format == "PNG" and not _has_text_behind_pixels(stream)
        exif = Image.Image.getexif(image) if is_plain else image.getexif()
        orientation = int(exif.get(ExifTags.Base.Orientation, 1))
    except NO_EXIF:
        return 1
    return orientation if orientation in _ORIENTATIONS else 1


def _has_text_behind_pixels(stream: IO[bytes]) -> bool:
    """Return whether a PNG has a chunk behind its pixels that may hold EXIF."""
    at, behind = 8, False
    while True:
        stream.seek(at)
        chunk = stream.read(8)
        if len(chunk) < 8:
            return False
        if behind and chunk[4:] in _PNG_TEXTS:
            return True
        behind |= chunk[4:] == b"IDAT"
        at += 12 + int.from_bytes(chunk[:4], "big")


def _pillow_size(stream: IO[bytes]) -> tuple[int, int]:
    stream.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images and odd EXIF blocks; neither matters here
        with Image.open(stream, formats=IMAGE_FORMATS) as image:
            return image.size


def _stored_size(stream: IO[bytes]) -> tuple[int, int]:
    return _jpeg_size(stream.read(_HEAD_BYTES), stream) or _pillow_size(stream)


def _upright_size(stream: IO[bytes]) -> tuple[int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_image(stream) as image:
            width, height = image.size
            return (height, width) if orientation_of(image, stream) in _TURNED_SIDEWAYS else (width, height)


def read_image_size(path: Path | str) -> tuple[int, int]:
    """Return (width, height) of an image file from its header, without decoding pixels.

    Raises:
        RecordError: The file is missing, empty, unreadable, or too large.

    """
    try:
        size = _jpeg_size(read_head(path, _HEAD_BYTES))
        if size is not None and size[0] * size[1] <= MAX_IMAGE_PIXELS:
            return size
        with open_unbuffered(path) as stream:
            return read_image_size_from(stream, str(path))
    except (FileNotFoundError, NotRegularFileError) as error:
        raise _file_error(path, error) from None


def read_upright_size(path: Path | str) -> tuple[int, int]:
    """Return what ``read_image_size`` does, of the image turned as its EXIF orientation says.

    Raises:
        RecordError: The file is missing, empty, unreadable, or too large.
        UsageError: It is HEIC, and the package that decodes it is not installed.

    """
    try:
        with open_file(path) as stream:
            return _checked_size(stream, str(path), _upright_size)
    except (FileNotFoundError, NotRegularFileError) as error:
        raise _file_error(path, error) from None


def _file_error(path: Path | str, error: FileNotFoundError | NotRegularFileError) -> RecordError:
    """Return the error of a record for what is wrong with its file."""
    if isinstance(error, NotRegularFileError):
        return RecordError(RejectReason.IMAGE_CORRUPT, f"{path} {error}")
    if error.errno == errno.ENAMETOOLONG:
        name = str(path).rpartition("/")[2]
        return RecordError(RejectReason.IMAGE_MISSING, f"{name[:80]}...: {error.strerror}")
    return RecordError(RejectReason.IMAGE_MISSING, f"{path} does not exist")


def require_size(place: Path | str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Raise where an image has another (width, height) than its labels are for, as one that was made smaller has.

    Raises:
        RecordError: ``image_size_mismatch``.

    """
    if size != expected:
        raise RecordError(
            RejectReason.IMAGE_SIZE_MISMATCH,
            f"{place} is {size[0]} x {size[1]}, its labels are for {expected[0]} x {expected[1]}",
        )


def require_camera_of(place: Path | str, size: tuple[int, int], k: NDArray[np.float64]) -> None:
    """Raise where an image can hardly be of a camera: where no label says how large its images are.

    The principal point of a whole image lies near its middle; it does not where the image was made smaller or larger.

    Args:
        place: The image.
        size: Its width and height.
        k: (3, 3) intrinsics.

    Raises:
        RecordError: ``image_size_mismatch``.

    """
    x, y = (float(k[axis, 2]) / (length - 1 if length > 1 else 1) for axis, length in enumerate(size))
    if not (_LEAST_MIDDLE <= x <= 1 - _LEAST_MIDDLE and _LEAST_MIDDLE <= y <= 1 - _LEAST_MIDDLE):
        raise RecordError(
            RejectReason.IMAGE_SIZE_MISMATCH,
            f"{place} is {size[0]} x {size[1]}, the middle of its camera's images is ({k[0, 2]:.0f}, {k[1, 2]:.0f})",
        )


def read_image_size_from(stream: IO[bytes], name: str) -> tuple[int, int]:
    """Return (width, height) of an encoded image from its header.

    Args:
        stream: The encoded image, such as a member of an archive.
        name: Its name, for messages.

    Raises:
        RecordError: The image is empty, unreadable, or too large.

    """
    return _checked_size(stream, name, _stored_size)


def _checked_size(stream: IO[bytes], name: str, read: Callable[[IO[bytes]], tuple[int, int]]) -> tuple[int, int]:
    try:
        width, height = read(stream)
    except Image.DecompressionBombError as error:
        raise RecordError(RejectReason.IMAGE_TOO_LARGE, f"{name}: {error}") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, RuntimeError) as error:
        stream.seek(0)
        if not stream.read(1):
            raise RecordError(RejectReason.IMAGE_EMPTY, f"{name} has no bytes") from None
        # Pillow's own message names the object that it reads from.
        why = f"no image of {', '.join(IMAGE_FORMATS)} or HEIC" if isinstance(error, UnidentifiedImageError) else error
        raise RecordError(RejectReason.IMAGE_CORRUPT, f"{name}: {why}") from None
    if width * height > MAX_IMAGE_PIXELS:
        raise RecordError(RejectReason.IMAGE_TOO_LARGE, f"{name} announces {width} x {height} pixels")
    return width, height
