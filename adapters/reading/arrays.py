"""NumPy files from outside: bounded, without pickles, with every number checked."""

import functools
import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from itertools import chain
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.reading.listing import NotRegularFileError, open_file
from handdata.schemas.errors import RecordError, RejectReason

MAX_ARRAY_BYTES = 2**28
"""No label array of one frame is larger; more is a damaged header or a decompression bomb."""
MAX_LISTED_NUMBERS = 1_000_000
"""No list of numbers of one label is longer."""
_MAX_NPY_HEADER_BYTES = 2**16

_PICKLE_MARK = b"\x80"
ZIP_ERRORS: Final = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""What ``zipfile``, the decompressors and numpy's header parser raise on damaged input.

An ``OSError`` is no fault of the disk here (``listing.DatasetFile`` tells those apart): bz2 raises it.
"""


def read_npz(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, NDArray[np.generic]]:
    """Return the named arrays of an ``.npz`` file; absent optional ones are omitted. Pickled objects are never loaded.

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
    except ZIP_ERRORS as error:
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
    with open_file(path) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in shapes:
                raise ValueError(f"the array {name!r} is there twice")
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
        ValueError: The bytes are no such header.

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
        with open_file(path) as stream:
            return stream.read(1)
    except (FileNotFoundError, NotRegularFileError):
        return b""


def numbers(path: Path, name: str, values: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a label's array as float64 after checking that it holds numbers, no booleans, in the expected shape.

    Raises:
        RecordError: ``label_corrupt``, naming the file, the field, what was expected and what was there.

    """
    if values.dtype.kind not in "iuf" or values.shape != shape:
        found = f"{values.dtype} {values.shape}"
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {name} should hold numbers {shape}, holds {found}")
    return values.astype(np.float64)


def number_array(
    where: Path | str, name: str, values: object, shape: tuple[int, ...], *, any_nesting: bool = False
) -> NDArray[np.float64]:
    """Return a label's list of lists of numbers as an array, after looking at each level of it.

    ``np.array`` alone takes ``"1.5"`` and ``true`` for numbers, and a few hundred bytes of a pickle, whose lists hold
    one list a thousand times, for a thousand million of them.

    Args:
        where: Place of the label, for messages.
        name: Name of the label, for messages.
        values: Lists, tuples, arrays or numbers, as a JSON file or a pickle held them.
        shape: Expected shape; -1 for a length that the label decides.
        any_nesting: Whether lists of another depth that hold as many numbers are reshaped.

    Raises:
        RecordError: ``label_corrupt``, naming what was expected and what was there.

    """
    found: list[int] = []
    level: list[object] = [values]
    most = math.prod(shape) if -1 not in shape else MAX_LISTED_NUMBERS
    while level and (length := _length(level[0])) >= 0:
        if any(_length(item) != length for item in level):
            raise _no_numbers(where, name, shape, "parts of several lengths")
        found.append(length)
        if len(level) * length > most:
            raise _no_numbers(where, name, shape, f"more than {most} numbers")
        level = list(chain.from_iterable(level))  # type: ignore[arg-type]
    kinds = set(map(type, level))
    if not kinds <= _NUMBER_TYPES and not all(issubclass(kind, _NUMPY_NUMBERS) for kind in kinds - _NUMBER_TYPES):
        raise _no_numbers(where, name, shape, ", ".join(sorted(kind.__name__ for kind in kinds - _NUMBER_TYPES)))
    fits = len(found) == len(shape) and all(known in (-1, length) for known, length in zip(shape, found, strict=True))
    if not fits and not (any_nesting and len(level) == most):
        raise _no_numbers(where, name, shape, f"the shape {tuple(found)}")
    try:
        return np.array(level, dtype=np.float64).reshape(shape if any_nesting else tuple(found))
    except OverflowError:
        raise _no_numbers(where, name, shape, "a number that no float holds") from None


def _length(item: object) -> int:
    """Return the length of a list, tuple or array; -1 for all else."""
    if type(item) is list or isinstance(item, list | tuple):
        return len(item)
    return len(item) if isinstance(item, np.ndarray) and item.ndim else -1


def _no_numbers(where: Path | str, name: str, shape: tuple[int, ...], found: str) -> RecordError:
    return RecordError(RejectReason.LABEL_CORRUPT, f"{where}: {name} should be numbers of shape {shape}, has {found}")


_NUMBER_TYPES: Final = frozenset({int, float})
_NUMPY_NUMBERS: Final = (np.integer, np.floating)


def require_finite(where: Path | str, name: str, values: NDArray[np.generic]) -> None:
    """Raise ``label_not_finite`` where a label holds NaN, infinity, or a number that float32 cannot hold.

    Raises:
        RecordError: Naming the place (a file, or an entry of a file) and the field.

    """
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32)).all()
    if not finite:
        raise RecordError(RejectReason.LABEL_NOT_FINITE, f"{where}: {name} holds NaN or infinity")
