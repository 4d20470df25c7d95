"""Damage in encoded images that decoders read over in silence: what they fill up looks like any other image.

libjpeg only warns where the data of an image makes no sense; Pillow checks neither the checksums of a PNG's pixels nor
those of a TIFF's. Formats without any checksum (WebP, BMP, uncompressed TIFF) keep what happens inside their data to
themselves.
"""

import io
import os
import re
import struct
import tempfile
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Final

import cv2
import numpy as np
import simplejpeg
from PIL import Image

JPEG_SIGNATURE: Final = b"\xff\xd8\xff"
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER: Final = 16
"""First byte of what a PNG says of its pixels."""
_PNG_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Numbers a pixel, by colour type."""
_ADAM7: Final = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip
"""Passes of an interlaced PNG: first column and row, and the steps to the next ones."""
_TIFF_SIGNATURES: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_SCAN: Final = 0xDA
_SCAN_MARKER: Final = b"\xff\xda"
_END: Final = b"\xff\xd9"
_STRUCTURAL: Final = frozenset(range(0xC0, 0xD0)) | {0xDB, 0xDD}
"""Markers of the segments that a JPEG's data is decoded with: frame, Huffman and quantisation tables, restarts."""
_SEQUENTIAL: Final = frozenset({0xC0, 0xC1})
_HARMLESS_EXCESS: Final = 1
"""Bytes between data and end of a JPEG that some webcams leave. Of 1,080 images with 20 changed bytes, 1 had so few."""
_EXCESS: Final = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_TIFF_JPEG: Final = 7
_TIFF_DEFLATE: Final = (8, 32946)
_stderr_lock = threading.Lock()


def find_damage(data: bytes) -> str | None:
    """Return what is wrong with the data of an encoded image, in words; None where nothing shows.

    The decoder that makes the pixels still has to judge what it raises itself.
    """
    if data.startswith(JPEG_SIGNATURE):
        return _jpeg_damage(data)
    if data.startswith(_PNG_SIGNATURE):
        return _png_damage(data)
    if data.startswith(_TIFF_SIGNATURES):
        return _tiff_damage(data)
    return None


def _jpeg_damage(data: bytes) -> str | None:
    """Return libjpeg's first warning about an image's data, other than about its header or about padding behind it."""
    lean = _without_trimmings(data)
    if lean is None:
        return "its header is damaged"
    lean = _without_padding(lean)
    if lean is None:
        return "it ends before its end marker"
    try:
        simplejpeg.decode_jpeg_header(lean)
    except ValueError:  # a subsampling that simplejpeg does not know
        warning = _opencv_warning(lean)
    else:
        warning = _simplejpeg_warning(lean)
    excess = _EXCESS.search(warning) if warning else None
    return None if excess and int(excess[1]) <= _HARMLESS_EXCESS else warning


def _without_trimmings(data: bytes) -> bytes | None:
    """Return a JPEG with only what its pixels are decoded with, so that libjpeg's first warning is about these.

    It warns of filling between segments, of unknown versions in them, and of odd parameters of a sequential scan, which
    it does not use; cameras write all of these. None where a header is no header.
    """
    kept, at, sequential = [data[:2]], 2, False
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 4 > len(data):
            return None
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # filling
            at += 1
            continue
        stop = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _SCAN:
            parameters = b"\0\x3f\0" if sequential else data[stop - 3 : stop]
            return b"".join([*kept, data[at : stop - 3], parameters, data[stop:]])
        if marker in _STRUCTURAL:
            kept.append(data[at:stop])
            sequential |= marker in _SEQUENTIAL
        at = stop


def _without_padding(lean: bytes) -> bytes | None:
    """Return a JPEG that ends with its end marker, and without the zeros before it; None where it has no such marker.

    Cameras pad with zeros. A lost end of the data looks the same (a hole in the file, a download that was broken off),
    and zeros decode to flat blocks: only without them does it show that data is missing.
    """
    end = lean.find(_END, lean.index(_SCAN_MARKER))
    if end < 0:
        return None
    data = lean[:end].rstrip(b"\0")
    return data + lean[len(data) : end][:1] + _END  # the last byte of the data may be zero


def _simplejpeg_warning(data: bytes) -> str | None:
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1)  # reads all data, and computes few pixels
    except ValueError as error:
        return str(error).removeprefix("tjDecompress2(): ")
    return None


def _opencv_warning(data: bytes) -> str | None:
    """Return what the libjpeg inside OpenCV writes to stderr."""
    with _stderr_lock, tempfile.TemporaryFile() as heard:
        stderr = os.dup(2)
        os.dup2(heard.fileno(), 2)
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_GRAYSCALE_8)
        except cv2.error as error:
            return str(error)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        heard.seek(0)
        warning = heard.read().decode(errors="replace").strip().partition("\n")[0]
    return warning or ("it cannot be decoded" if image is None else None)


def _png_damage(data: bytes) -> str | None:
    """Return which chunk of a PNG does not have its checksum, or that chunks or pixels are missing."""
    at = len(_PNG_SIGNATURE)
    view = memoryview(data)
    pixels: list[memoryview] = []
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return f"the checksum of its chunk {kind.decode('ascii', 'backslashreplace')} at byte {at} is wrong"
        if kind == b"IDAT":
            pixels.append(view[at + 8 : end])
        if kind == b"IEND":
            return _short_of_pixels(data, pixels)
        at = end + 4
    return "it ends before its last chunk"


def _short_of_pixels(data: bytes, parts: Sequence[memoryview]) -> str | None:
    """Return whether the compressed data of a PNG holds fewer rows than its header says; Pillow makes them black."""
    width, height, depth, kind, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, _PNG_HEADER)
    expected = 0
    for left, top, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0:
            expected += max(0, rows) * (1 + -(-columns * depth * _PNG_CHANNELS.get(kind, 1) // 8))
    stream, found = zlib.decompressobj(), 0
    try:
        for part in parts:
            rest: bytes | memoryview = part
            while rest and not stream.eof and found < expected:
                found += len(stream.decompress(rest, 1 << 20))
                rest = stream.unconsumed_tail
        found += len(stream.flush()) if found < expected else 0
    except zlib.error as error:
        return str(error)
    return "its data ends before its last row" if found < expected else None


def _tiff_damage(data: bytes) -> str | None:
    """Return what is wrong with the strips or tiles of the first image of a TIFF that are JPEGs or have checksums."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = Image.open(io.BytesIO(data), formats=("TIFF",)).tag_v2  # type: ignore[attr-defined]
        compression, tables = tags.get(259, 1), tags.get(347, b"")
        starts, lengths = (tags.get(tile, tags.get(strip, ())) for tile, strip in ((324, 273), (325, 279)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error)
    for part in (data[start : start + length] for start, length in zip(starts, lengths, strict=False)):
        if compression == _TIFF_JPEG:
            problem = _jpeg_damage(tables[:-2] + part[2:] if tables else part)
            if problem:
                return problem
        elif compression in _TIFF_DEFLATE:
            try:
                for _ in _inflated(part):
                    pass
            except zlib.error as error:
                return str(error)
    return None


def _inflated(part: bytes) -> Iterator[bytes]:
    """Yield what a compressed part holds, a piece at a time, up to its checksum."""
    stream = zlib.decompressobj()
    while part and not stream.eof:
        yield stream.decompress(part, 1 << 20)
        part = stream.unconsumed_tail
