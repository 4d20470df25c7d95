"""The pixels of records: image files opened by path or URL, frames of videos decoded forward once."""

import io
import warnings
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path

import fsspec
import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from handdata.adapters.reading.images import IMAGE_FORMATS, MAX_IMAGE_PIXELS
from handdata.adapters.reading.video import VideoReader
from handdata.pipeline.annotation.watchdog import beat
from handdata.schemas import HandRecord, RecordError, RejectReason
from handdata.schemas.arrays import ByteArray
from handdata.schemas.sample import JPEG_SIGNATURE

# A truncated file must raise, not fill up with grey; another library in the process may have switched this on.
ImageFile.LOAD_TRUNCATED_IMAGES = False


def open_frames(records: Sequence[HandRecord]) -> Iterator[tuple[HandRecord, ByteArray | RecordError]]:
    """Yield each record with its (height, width, 3) RGB pixels, or with the error that prevents them.

    Each video is opened once and decoded forward.

    Args:
        records: Records to open. Those of one video must be in the order of their frames; several videos may alternate.

    """
    videos: dict[str, Iterator[ByteArray | RecordError]] = {}
    for position, record in enumerate(records):
        beat()
        try:
            if record.video_frame is None:
                image = decode_image(read_image_file(record.image_uri), record.image_uri)
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
        RecordError: ``image_missing``: there is no such file; ``frame_missing``: it cannot be read.

    """
    try:
        if "://" not in uri:
            return Path(uri).read_bytes()
        with fsspec.open(uri, "rb") as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        raise RecordError(RejectReason.IMAGE_MISSING, f"{uri} does not exist") from None
    except OSError as error:
        raise RecordError(RejectReason.FRAME_MISSING, f"{uri}: {error}") from None


def decode_image(data: bytes, uri: str) -> ByteArray:
    """Return the (height, width, 3) RGB pixels of an encoded image as stored: EXIF rotation is not applied.

    Raises:
        RecordError: ``frame_missing``: the file is truncated or corrupt; ``image_too_large``: it announces more pixels
            than any dataset's images have.

    """
    pixels = _decode_jpeg(data)
    if pixels is not None:
        return pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise RecordError(
                    RejectReason.IMAGE_TOO_LARGE, f"{uri} announces {image.width} x {image.height} pixels"
                )
            return np.array(image.convert("RGB"), dtype=np.uint8)
    except Image.DecompressionBombError as error:
        raise RecordError(RejectReason.IMAGE_TOO_LARGE, f"{uri}: {error}") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise RecordError(RejectReason.FRAME_MISSING, f"{uri} cannot be decoded: {error}") from None


def _decode_jpeg(data: bytes) -> ByteArray | None:
    """Decode a faultless colour JPEG to the same values as Pillow, in a third of the time; None for anything else."""
    if not data.startswith(JPEG_SIGNATURE):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours != "YCbCr" or height * width > MAX_IMAGE_PIXELS:
            return None
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB"), dtype=np.uint8)
    except ValueError:
        return None


def _video_frames(records: Sequence[HandRecord], uri: str) -> Iterator[ByteArray | RecordError]:
    """Yield the frames of one video that the records name, in the order of the records, or why they are missing."""
    wanted = [record.video_frame for record in records if record.image_uri == uri and record.video_frame is not None]
    try:
        with VideoReader(Path(uri)) as reader:
            for _, image in reader.read(wanted):
                yield image
    except RecordError as error:  # of the file as a whole
        yield from repeat(error)
