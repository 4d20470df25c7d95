"""The pixels of records: image files opened by path or URL, frames of videos decoded forward once."""

import io
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import repeat
from pathlib import Path
from typing import Any, Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile

from handdata.adapters.reading.damage import find_damage
from handdata.adapters.reading.images import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, open_image, orientation_of
from handdata.adapters.reading.listing import NotRegularFileError, open_file
from handdata.adapters.reading.video import VideoReader
from handdata.pipeline.annotation.watchdog import beat, resting
from handdata.pipeline.storage.files import UnusableFileError, local_file, read_file
from handdata.schemas import DatasetReadError, HandRecord, RecordError, RejectReason, StorageError
from handdata.schemas.arrays import ByteArray
from handdata.schemas.sample import JPEG_SIGNATURE

_STRIP_ROWS: Final = 256
_BITS_PER_SAMPLE: Final = 258
_PHOTOMETRIC: Final = 262
_SAMPLE_FORMAT: Final = 339
"""Tags of TIFF files."""
_SIGNED: Final = 2
"""Value of the tag ``_SAMPLE_FORMAT``."""

# A truncated file must raise, not fill up with grey; another library in the process may have switched this on.
ImageFile.LOAD_TRUNCATED_IMAGES = False


def open_frames(records: Sequence[HandRecord]) -> Iterator[tuple[HandRecord, ByteArray | RecordError]]:
    """Yield each record with its (height, width, 3) RGB pixels, or with the error that prevents them.

    Each video is opened once and decoded forward; its frames are as they are shown. An image is as it is stored, since
    labels refer to that, or turned as its EXIF orientation says where the record's ``extra`` says ``upright``.

    Args:
        records: Records to open. Those of one video must be in the order of their frames; several videos may alternate.

    Raises:
        StorageError: The server or disk of an image is away, or does not let us in.
        UsageError: An image is HEIC, and the package that decodes it is not installed.

    """
    videos: dict[str, Iterator[ByteArray | RecordError]] = {}
    for position, record in enumerate(records):
        beat()
        try:
            if record.video_frame is None:
                data = read_image_file(record.image_uri)
                image = decode_image(data, record.image_uri, upright=record.is_upright)
            else:
                if record.image_uri not in videos:
                    videos[record.image_uri] = _video_frames(records[position:], record.image_uri)
                image_or_error = next(videos[record.image_uri])
                if isinstance(image_or_error, RecordError):
                    raise image_or_error
                image = image_or_error
            if image.shape[:2] != (record.height, record.width):
                raise RecordError(
                    RejectReason.IMAGE_SIZE_MISMATCH,
                    f"{record.image_uri} has {image.shape[1]} x {image.shape[0]} pixels, "
                    f"the record says {record.width} x {record.height}",
                )
        except RecordError as error:
            yield record, error
        else:
            yield record, image


def read_image_file(uri: str) -> bytes:
    """Return an image file's bytes from a path or any fsspec URL.

    Raises:
        RecordError: ``image_missing``: there is no such file, or nothing can have this name; ``frame_missing``: it is
            no file, or far too large.
        StorageError: Its server or disk is away, or does not let us in.

    """
    # A request has limits of its own.
    with resting() if "://" in uri else nullcontext(), _rejected(uri):
        return read_file(uri, MAX_IMAGE_BYTES)


@contextmanager
def _rejected(uri: str) -> Iterator[None]:
    """Turn what is wrong with a file's name into the error of a record."""
    try:
        yield
    except FileNotFoundError as error:
        raise RecordError(RejectReason.IMAGE_MISSING, f"{uri} {error.strerror}") from None
    except UnusableFileError as error:
        raise RecordError(RejectReason.FRAME_MISSING, f"{uri} {error}") from None


def decode_image(data: bytes, uri: str, *, upright: bool = False) -> ByteArray:
    """Return the (height, width, 3) RGB pixels of an encoded image.

    Grey of more than 8 bits is scaled by the depth of its container: whether a camera has used 10 or 12 of 16 bits is
    not known. Alpha is left out.

    Args:
        data: The file.
        uri: Name of the image in messages.
        upright: Whether the image is turned as its EXIF orientation says. Labels are of the stored pixels.

    Raises:
        RecordError: ``frame_missing``: the file is truncated or damaged, or its numbers have no known range;
            ``image_too_large``: it announces more pixels than any dataset's images have.

    """
    pixels = _decode_usual_jpeg(data)
    if pixels is None:
        pixels = _decode_by_pillow(data, uri)
    return _turned(pixels, data) if upright else pixels


def _decode_usual_jpeg(data: bytes) -> ByteArray | None:
    """Decode a faultless JPEG, colour or grey, to the values of Pillow in a third of the time; None for the others."""
    if not data.startswith(JPEG_SIGNATURE):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or height * width > MAX_IMAGE_PIXELS:
            return None
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB"), dtype=np.uint8)
    except ValueError:
        return None


def _decode_by_pillow(data: bytes, uri: str) -> ByteArray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images, odd EXIF blocks, palettes with alpha
            image = open_image(io.BytesIO(data))
            takes_twice = image.format in ("AVIF", "HEIF", "WEBP") or image.mode == "CMYK"  # 12 bytes a pixel and more
            if image.width * image.height > MAX_IMAGE_PIXELS // (2 if takes_twice else 1):
                raise RecordError(
                    RejectReason.IMAGE_TOO_LARGE, f"{uri} announces {image.width} x {image.height} pixels"
                )
            damage = find_damage(data)
            if damage:
                raise RecordError(RejectReason.FRAME_MISSING, f"{uri} is damaged: {damage}")
            image.load()
            return _rgb(image)
    except Image.DecompressionBombError as error:
        raise RecordError(RejectReason.IMAGE_TOO_LARGE, f"{uri}: {error}") from None
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError, struct.error) as error:
        reason = str(error).partition(" <")[0]  # Pillow names the object that it reads from
        raise RecordError(RejectReason.FRAME_MISSING, f"{uri} cannot be decoded: {reason}") from None


def _rgb(image: Image.Image) -> ByteArray:
    """Return a decoded image as RGB.

    Raises:
        ValueError: Its numbers have no known range.

    """
    is_deep = image.mode == "I" or image.mode.startswith("I;")
    to_bytes = _scale_of_grey(image) if is_deep else None
    if image.mode == "F":
        raise ValueError("it holds fractions, whose range is not known")
    if not is_deep and _SIGNED in _tags(image).get(_SAMPLE_FORMAT, ()):
        raise ValueError("it holds signed 8-bit numbers, and which of them is black is not known")
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, _STRIP_ROWS):  # as a whole, Pillow's copies would take several times the memory
        strip = image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height)))
        rows = pixels[top : top + strip.height]
        if to_bytes is None:
            rows[:] = np.asarray(strip.convert("RGB"))
        else:
            rows[:] = to_bytes(np.asarray(strip))[..., None]
    return pixels


def _scale_of_grey(image: Image.Image) -> Callable[[NDArray[np.integer]], ByteArray]:
    """Return the function that scales the whole numbers of a grey image to 0..255.

    Raises:
        ValueError: The numbers are negative, or use so little of their container that it cannot be their range.

    """
    tags = _tags(image)
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    is_signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
    is_negative = tags.get(_PHOTOMETRIC) == 0  # 0 is white
    largest = (1 << (bits - is_signed)) - 1
    if image.mode == "I":
        low, high = map(int, image.getextrema())  # type: ignore[arg-type]
        if is_signed and low < 0:
            raise ValueError(f"it holds numbers from {low} to {high}, and which of them is black is not known")
        if bits > 16 and low >= 0 and high < 1 << 16:
            raise ValueError(f"it holds {bits}-bit numbers up to {high}, whose range is not known")

    def scale(strip: NDArray[np.integer]) -> ByteArray:
        scaled = ((strip.astype(np.int64) & largest) * 255 + largest // 2) // largest
        return np.asarray(255 - scaled if is_negative else scaled, dtype=np.uint8)

    return scale


def _tags(image: Image.Image) -> Mapping[int, Any]:
    """Return the tags of a TIFF; none of another image."""
    return getattr(image, "tag_v2", {})


def _turned(pixels: ByteArray, data: bytes) -> ByteArray:
    """Return pixels turned as the EXIF orientation of their file says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = io.BytesIO(data)
        orientation = orientation_of(open_image(stream), stream)
    return turned(pixels, orientation)


def turned(pixels: ByteArray, orientation: int) -> ByteArray:
    """Return pixels (height, width, ...) turned as an EXIF orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _video_frames(records: Sequence[HandRecord], uri: str) -> Iterator[ByteArray | RecordError]:
    """Yield the frames of one video that the records name, in the order of the records, or why they are missing.

    Raises:
        StorageError: The video's server or disk is away, or does not let us in.

    """
    wanted = [record.video_frame for record in records if record.image_uri == uri and record.video_frame is not None]
    with ExitStack() as opened:
        try:
            with resting() if "://" in uri else nullcontext(), _rejected(uri):
                path = opened.enter_context(local_file(uri))
        except RecordError as error:
            yield from repeat(error)
            return
        is_readable = False
        for image in _frames_of(path, wanted):
            if isinstance(image, RecordError):
                if not is_readable:
                    _require_readable(path)
                    is_readable = True
                yield RecordError(image.reason, image.detail.replace(str(path), uri))
            else:
                yield image


def _frames_of(path: Path, wanted: Sequence[int]) -> Iterator[ByteArray | RecordError]:
    try:
        with reading_dataset(), VideoReader(path) as reader:
            for _, image in reader.read(wanted):
                yield image
    except RecordError as error:  # of the file as a whole
        yield from repeat(error)


def _require_readable(path: Path) -> None:
    """Read a file as a whole: to a decoder of videos, a disk that is away is one more kind of damage.

    Raises:
        StorageError: The disk is away.

    """
    with reading_dataset(), suppress(FileNotFoundError, NotRegularFileError), open_file(path) as stream:
        while stream.read(1 << 20):
            beat()


@contextmanager
def reading_dataset() -> Iterator[None]:
    """Let an adapter's error over a disk that is away mean that the unit is worth another try.

    Raises:
        StorageError: Instead of ``DatasetReadError``.

    """
    try:
        yield
    except DatasetReadError as error:
        hint = "is its disk there, and may you read it? the same command continues"
        raise StorageError(error.message, hint, transient=True) from None
