"""Reading files from outside: paths stay below the root, headers are checked, nothing is unpickled."""

import errno
import functools
import io
import math
import os
import re
import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError

from handdata.schemas.errors import RecordError, RejectReason
from handdata.schemas.record import HandRecord, Rejection

MAX_IMAGE_PIXELS = 178_956_970
"""More pixels than this are a decompression bomb; twice Pillow's own warning limit (about 13,000 x 13,000)."""

_FORMAT_OF_SUFFIX = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF"}
IMAGE_FORMATS = tuple(sorted(set(_FORMAT_OF_SUFFIX.values())))
"""The only decoders that files from outside reach."""


MAX_ARRAY_BYTES = 2**28
"""No label array of one frame is larger; more is a damaged header or a decompression bomb."""
_MAX_NPY_HEADER_BYTES = 2**16
MAX_TEXT_BYTES = 2**22
"""The text files that are read whole (cameras, trajectories, lists of frames) have less than a tenth of this."""
_MAX_DETAIL_CHARACTERS = 1000
"""A label of megabytes, quoted in the message about it, helps nobody."""

_JPEG_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_MARKERS_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDA), 0xFF})
_JPEG_SEGMENT = struct.Struct(">BBHBHH")
"""Mark, marker and length of any segment; precision, height and width of a frame header."""
_HEAD_BYTES = 1024
"""The frame header of most photographs lies within these."""
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
"""Relative paths that can be used as they are."""
_PICKLE_MARK = b"\x80"
_ZIP_ERRORS = (ValueError, OSError, EOFError, RuntimeError, KeyError, struct.error, zipfile.BadZipFile, zlib.error)
"""What ``zipfile`` and numpy's header parser raise on damaged input."""


def printable(text: str) -> str:
    """Return ``text`` with what UTF-8 cannot encode written as escapes, so that tables can hold it."""
    return text.encode("utf-8", "backslashreplace").decode()


def rejection(
    record_id: str, image_uri: str, error: RecordError | ValidationError, where: Path | str = ""
) -> Rejection:
    """Return the row of the rejected table for a record that ``error`` made unusable.

    A ``ValidationError`` of ``HandRecord`` is a label that holds what no record can: ``label_corrupt``. It knows no
    file, so ``where`` names the label's place.
    """
    if isinstance(error, ValidationError):
        error = RecordError(RejectReason.LABEL_CORRUPT, f"{where}: {error.errors()[0]['msg']}")
    return Rejection(
        record_id=printable(record_id),
        image_uri=printable(image_uri),
        reason=error.reason,
        detail=shortened(printable(error.detail)),
    )


def fenced(fence: "Fence", row: HandRecord | Rejection) -> HandRecord | Rejection:
    """Return a row; a record whose image, or whose mask's file named in ``extra``, lies beyond a link is refused."""
    if isinstance(row, Rejection):
        return row
    beside = [value for value in (row.extra or {}).values() if isinstance(value, str)] if row.has_mask else []
    try:
        fence.check(row.image_uri, *(value for value in beside if value.startswith(f"{fence.root}/")))
    except RecordError as error:
        return rejection(row.record_id, row.image_uri, error)
    return row


def shortened(text: str, characters: int = _MAX_DETAIL_CHARACTERS) -> str:
    """Return a text without its middle where it is longer than ``characters``."""
    if len(text) <= characters:
        return text
    return f"{text[: characters // 2]} ... {text[5 - characters // 2 :]}"


class Fence:
    """Tells whether files lie below a dataset's root after all links are followed; folders are looked at once.

    A link in an unpacked archive may lead anywhere: to pictures of the user's own, which would end in a dataset.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._prefix = f"{os.path.realpath(root)}/"
        self._inside = functools.lru_cache(maxsize=4096)(self._is_inside)

    def _is_inside(self, folder: str) -> bool:
        return f"{os.path.realpath(folder)}/".startswith(self._prefix)

    def check(self, *paths: str) -> None:
        """Check files, or archives named as ``zip://<member>::<archive>``. Other URLs lead to no file of this machine.

        Raises:
            RecordError: ``path_escapes_root``, naming the file and where it leads.

        """
        for path in paths:
            path = path.rpartition("::")[2]
            if "://" in path:
                continue
            folder = path.rpartition("/")[0]
            is_link = os.path.islink(path)  # noqa: PTH114  a Path costs more than the question
            if not self._inside(folder) or (is_link and not self._is_inside(path)):
                raise RecordError(
                    RejectReason.PATH_ESCAPES_ROOT,
                    f"{path} is reached by a link to {os.path.realpath(path)}, which is not below {self.root}: a part "
                    "of a dataset that lies on another disk can be mounted there (`mount --bind`)",
                )


def resolve_below(root: Path, relative: str) -> Path:
    """Return ``root / relative``, where a label named ``relative``.

    Only the name is judged; ``Fence`` judges where links lead.

    Raises:
        RecordError: ``path_escapes_root``: the path is empty, absolute, leaves ``root`` through ``..``, or holds
            characters that no file name has.

    """
    return Path(path_below(root, relative))


def path_below(root: Path | str, relative: str) -> str:
    """Return what ``resolve_below`` does, as text: a ``Path`` costs more than all else that a photograph needs.

    Raises:
        RecordError: ``path_escapes_root``.

    """
    if _PLAIN_PATH.fullmatch(relative):
        return f"{root}/{relative}"
    path = Path(relative.replace("\\", "/"))
    unusable = "\0" in relative or printable(relative) != relative
    if not path.parts or path.is_absolute() or ".." in path.parts or unusable:
        raise RecordError(RejectReason.PATH_ESCAPES_ROOT, f"the label names {relative!r}, which is not below {root}")
    return str(root / path)


def _jpeg_size(stream: IO[bytes]) -> tuple[int, int] | None:
    """Return (width, height) from the frame header of a usual JPEG file; ``None``: let Pillow judge.

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


def _pillow_size(stream: IO[bytes]) -> tuple[tuple[int, int], str | None]:
    stream.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images and of odd EXIF blocks; neither matters here
        with Image.open(stream, formats=IMAGE_FORMATS) as image:
            # Phones store a preview behind the picture; Pillow then calls the JPEG file an MPO.
            return image.size, "JPEG" if image.format == "MPO" else image.format


def is_file(path: Path) -> bool:
    """Return whether a file is there; ``False`` also for names that no file can have (too long)."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_image_size(path: Path | str) -> tuple[int, int]:
    """Return (width, height) of an image file from its header, without decoding pixels.

    Raises:
        RecordError: the file is missing, empty, unreadable, of another format than its suffix says, or too large.

    """
    try:
        with io.FileIO(path) as stream:
            return read_image_size_from(stream, str(path))
    except (FileNotFoundError, NotADirectoryError):
        raise RecordError(RejectReason.IMAGE_MISSING, f"{path} does not exist") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            name = str(path).rpartition("/")[2]
            raise RecordError(RejectReason.IMAGE_MISSING, f"{name[:80]}...: {error.strerror}") from None
        raise RecordError(RejectReason.IMAGE_CORRUPT, f"{path}: {error}") from None


def read_image_size_from(stream: IO[bytes], name: str) -> tuple[int, int]:
    """Return (width, height) of an encoded image, called ``name``, from its header (of a member of an archive, say).

    Raises:
        RecordError: it is empty, unreadable, of another format than the suffix of ``name`` says, or too large.

    """
    try:
        size = _jpeg_size(stream)
        (width, height), kind = (size, "JPEG") if size is not None else _pillow_size(stream)
    except Image.DecompressionBombError as error:
        raise RecordError(RejectReason.IMAGE_TOO_LARGE, f"{name}: {error}") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        stream.seek(0)
        if not stream.read(1):
            raise RecordError(RejectReason.IMAGE_EMPTY, f"{name} has no bytes") from None
        raise RecordError(RejectReason.IMAGE_CORRUPT, f"{name}: {error}") from None
    if width * height > MAX_IMAGE_PIXELS:
        raise RecordError(RejectReason.IMAGE_TOO_LARGE, f"{name} announces {width} x {height} pixels")
    suffix = f".{name.rpartition('.')[2]}"
    expected = _FORMAT_OF_SUFFIX.get(suffix.lower())
    if expected is not None and kind != expected:
        raise RecordError(RejectReason.IMAGE_FORMAT_MISMATCH, f"{name} is named {suffix} but holds {kind}")
    return width, height


def read_npz(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, NDArray[np.generic]]:
    """Return the named arrays of an ``.npz`` file; absent optional ones are left out. Pickled objects are refused.

    Raises:
        RecordError: ``label_missing``, ``label_unsafe`` (a pickled object) or ``label_corrupt``.

    """
    return read_npz_and_shapes(path, required, optional)[0]


def read_npz_and_shapes(
    path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> tuple[dict[str, NDArray[np.generic]], dict[str, tuple[int, ...]]]:
    """Return the named arrays of an ``.npz`` file, and the shapes of all its arrays from their headers.

    ``numpy.load`` is not used: it reports any unknown file as a pickle, and has no way to learn the shape of a large
    array (a mask) without reading it.

    Raises:
        RecordError: ``label_missing``, ``label_unsafe`` (a pickled object, in whichever array) or ``label_corrupt``.

    """
    try:
        arrays, shapes = _read_npz_members(path, {*required, *optional})
    except FileNotFoundError:
        raise RecordError(RejectReason.LABEL_MISSING, f"{path} does not exist") from None
    except _ZIP_ERRORS as error:
        if _first_byte(path) == _PICKLE_MARK:
            raise RecordError(RejectReason.LABEL_UNSAFE, f"{path} is a pickle, which is never loaded") from None
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {error}") from None
    missing = [name for name in required if name not in arrays]
    if missing:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path} lacks the array {missing[0]!r}, has {sorted(shapes)}")
    return arrays, shapes


def _read_npz_members(
    path: Path, wanted: set[str]
) -> tuple[dict[str, NDArray[np.generic]], dict[str, tuple[int, ...]]]:
    arrays: dict[str, NDArray[np.generic]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as stream:
                magic = stream.read(8)
                length_format = "<H" if magic[6:7] == b"\x01" else "<I"
                length = stream.read(struct.calcsize(length_format))
                (header_bytes,) = struct.unpack(length_format, length)
                if header_bytes > _MAX_NPY_HEADER_BYTES:
                    raise ValueError(f"the array {name!r} announces a header of {header_bytes} bytes")
                header = stream.read(header_bytes)
                shape, column_major, dtype = _parse_npy_header(magic + length + header)
                if dtype.hasobject:
                    detail = f"{path}: the array {name!r} holds pickled objects, which are never loaded"
                    raise RecordError(RejectReason.LABEL_UNSAFE, detail)
                data_bytes = member.file_size - len(magic + length + header)
                if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != data_bytes:
                    raise ValueError(f"the array {name!r} of {dtype} {shape} has {data_bytes} bytes")
                shapes[name] = shape
                if name in wanted:
                    if member.file_size > MAX_ARRAY_BYTES:
                        raise ValueError(f"the array {name!r} announces {member.file_size} bytes")
                    values = np.frombuffer(stream.read(), dtype)
                    arrays[name] = values.reshape(shape, order="F" if column_major else "C")
    return arrays, shapes


@functools.lru_cache(maxsize=256)
def _parse_npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Return shape, column-major order and dtype; cached, as the frames of a dataset share their few headers."""
    return read_npy_header(io.BytesIO(data))


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Return shape, column-major order and dtype of an array as ``np.save`` wrote it, and move past them.

    Raises:
        ValueError: it is no such header.

    """
    version = np.lib.format.read_magic(stream)
    try:
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(stream)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(stream)
    except (SyntaxError, TypeError, tokenize.TokenError) as error:  # of a header that is no Python literal
        raise ValueError(f"the .npy header cannot be parsed: {error}") from None
    raise ValueError(f"the .npy format {version} is not known")


def _first_byte(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(1)
    except OSError:
        return b""


def numbers(path: Path, name: str, values: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a label's array as float64 after checking that it holds numbers in the expected shape.

    Raises:
        RecordError: ``label_corrupt``, naming the file, the field, what was expected and what was there.

    """
    if values.dtype.kind not in "biuf" or values.shape != shape:
        found = f"{values.dtype} {values.shape}"
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {name} should hold numbers {shape}, holds {found}")
    return values.astype(np.float64)


def read_text(path: Path, most_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a small label file.

    Raises:
        RecordError: ``label_missing``, or ``label_corrupt``: it is not UTF-8, or larger than ``most_bytes``.

    """
    try:
        with path.open("rb") as stream:
            content = stream.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise ValueError(f"is larger than {most_bytes} bytes")
        return content.decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise RecordError(RejectReason.LABEL_MISSING, f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {error}") from None


def require_finite(where: Path | str, name: str, values: NDArray[np.generic]) -> None:
    """Raise ``label_not_finite`` where a label holds NaN, infinity, or a number that float32 cannot hold.

    Raises:
        RecordError: naming the place (a file, or an entry of a file) and the field.

    """
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32)).all()
    if not finite:
        raise RecordError(RejectReason.LABEL_NOT_FINITE, f"{where}: {name} holds NaN or infinity")
