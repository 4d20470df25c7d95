"""Pickled labels read as data: numpy arrays, scalars and plain containers, and no code.

RHD, DART, HOI4D and RenderIH ship pickles, ARCTIC ships ``np.save`` of a dict. A pickle is a program; this reader runs
it with a short list of names, each replaced by a stand-in:

- numpy's constructors are stand-ins. They build arrays with ``np.frombuffer``, after the size has been compared with
  the bytes that are there. numpy's own ``__setstate__`` trusts the pickle (a dtype with forged flags makes it take
  bytes for pointers), so it is never called.
- A large file is mapped, and its large arrays are read-only views of the map. Reading many gigabytes costs pages that
  the system can drop at any time, and next to no memory of our own. Others are read whole: who reads a map of a file
  that is cut meanwhile (a download that starts anew) is ended by the system without a word.
- Objects of other classes are read only where the caller names those classes, and come back as ``PickledObject``: the
  name and what the object held. The classes themselves are never imported (MANO's model files hold a scipy matrix and
  chumpy expressions).

It builds on ``pickle._Unpickler``, the readable twin of the C unpickler: the C one cannot hand out views, and allocates
whatever memo size a pickle asks for. All names are known under NumPy 1 and 2, and pickles of Python 2 are read with
``latin1``.
"""

import math
import mmap
import os
import pickle
import reprlib
import struct
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.reading.arrays import read_npy_header
from handdata.adapters.reading.listing import cannot_be_read, open_file
from handdata.schemas.errors import RecordError, RejectReason

Container = TypeVar("Container", dict[Any, Any], set[Any])

_CORRUPT: Final = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)
"""What the unpickler raises on a damaged stream: it was written for pickles that it trusts."""


_READ_WHOLE_BYTES: Final = 1 << 26
_MOST_OFTEN_SHARED: Final = 16
_ALWAYS_ALLOWED_PARTS: Final = 1_000_000
_ALWAYS_ALLOWED_BYTES: Final = 1 << 26
_CONTAINER_BYTES: Final = 64
"""What an empty list, or an entry of a set, takes in memory; a pickle says it in a byte."""


class PickledObject:
    """An object of a class that is never loaded: the class's name, and what the object held, as plain data."""

    name: ClassVar[str]
    """Module and class, as in the file: ``scipy.sparse.csc.csc_matrix``."""
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def load_pickle(path: Path, *, inert: Collection[tuple[str, str]] = ()) -> Any:
    """Return the object that a pickle file holds. Its arrays are read-only; large ones are views of the mapped file.

    Args:
        inert: (module, name) of further classes whose objects may occur; each is returned as a ``PickledObject``.

    Raises:
        RecordError: ``label_missing``, ``label_corrupt``, or ``label_unsafe``, naming what the pickle asks for.

    """
    return _load(path, start_of_npy=False, inert=inert)


def load_object_npy(path: Path) -> Any:
    """Return what ``np.save(path, {...})`` stored: the object itself, or an array of objects.

    Raises:
        RecordError: As ``load_pickle``; also ``label_corrupt`` where the file holds a plain array.

    """
    return _load(path, start_of_npy=True, inert=())


def _load(path: Path, *, start_of_npy: bool, inert: Collection[tuple[str, str]]) -> Any:
    try:
        with open_file(path) as stream:
            start = _end_of_npy_header(stream) if start_of_npy else 0
            content = _content(stream)
        allowance = _Allowance(_MOST_OFTEN_SHARED * len(content) + _ALWAYS_ALLOWED_BYTES)
        resolver = _Resolver(allowance)
        found = resolver.resolve(_Unpickler(_ViewedFile(content, start), path, inert, allowance).load())
        if resolver.shares:
            _require_size(found, _MOST_OFTEN_SHARED * len(content) + _ALWAYS_ALLOWED_PARTS)
    except FileNotFoundError:
        raise RecordError(RejectReason.LABEL_MISSING, f"{path} does not exist") from None
    except OSError as error:  # of the map: the file has been opened
        cannot_be_read(path, error)
    except _CORRUPT as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {type(error).__name__}: {error}") from None
    return found.item() if start_of_npy and isinstance(found, np.ndarray) and found.shape == () else found


class _Allowance:
    """The memory that a pickle may claim for what it has not: copies of its texts and lists, and empty containers.

    Five bytes of a pickle make another copy of a text of a megabyte that stands in it once.
    """

    def __init__(self, most: int) -> None:
        self._left = most

    def spend(self, size: int) -> None:
        """Count bytes.

        Raises:
            pickle.UnpicklingError: They are more than is left.

        """
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError("it claims far more memory than it has bytes")

    def spend_on(self, made: Any) -> None:
        """Count an object that was made of others."""
        if isinstance(made, bytes | np.generic | np.ndarray):
            self.spend(len(made) if isinstance(made, bytes) else made.nbytes)
        elif isinstance(made, set | frozenset | dict):
            self.spend(_CONTAINER_BYTES * len(made))


def _content(stream: BinaryIO) -> bytes | mmap.mmap:
    """Return all bytes of a file, mapped where they are many."""
    if os.fstat(stream.fileno()).st_size > _READ_WHOLE_BYTES:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    stream.seek(0)
    return stream.read()


def _end_of_npy_header(stream: Any) -> int:
    _, _, dtype = read_npy_header(stream)
    if not dtype.hasobject:
        raise ValueError(f"expected pickled objects, found an array of {dtype}")
    return cast(int, stream.tell())


class _ViewedFile:
    """The reading side of a file, as the unpickler wants it, over its bytes."""

    def __init__(self, content: bytes | mmap.mmap, start: int) -> None:
        self._content = content
        self._view = memoryview(content)
        self._position = start

    def view(self, size: int) -> memoryview:
        """Return the next bytes without copying them."""
        if size > len(self._view) - self._position:
            raise EOFError(f"{size} bytes are announced at byte {self._position}, the file has {len(self._view)}")
        self._position += size
        return self._view[self._position - size : self._position]

    def read(self, size: int) -> bytes:
        return bytes(self.view(size))

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        target[:] = self.view(len(target))
        return len(target)

    def readline(self) -> bytes:
        end = self._content.find(b"\n", self._position) + 1
        if end == 0:
            raise EOFError("a line does not end")
        return self.read(end - self._position)


class _DType:
    """Stand-in for a numpy dtype while its pickle is read."""

    __slots__ = ("value",)

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or code[:1] not in tuple("?bBhHiIlLqQefdgFDucSUO"):
            raise pickle.UnpicklingError(f"arrays of dtype {reprlib.repr(code)} are not read")
        self.value: np.dtype[Any] = np.dtype(object) if code[0] == "O" else np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, byte_order, subdtype, names, *_ = state
        if subdtype is not None or names is not None:
            raise pickle.UnpicklingError("structured arrays are not read")
        if byte_order in ("<", ">"):
            self.value = self.value.newbyteorder(byte_order)


class _Array:
    """Stand-in for an array while its pickle is read: numpy makes it empty and fills it by ``__setstate__``."""

    __slots__ = ("state",)

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


def _array(raw: Any, dtype: _DType, shape: Any, order: str) -> NDArray[Any]:
    """Return the read-only array of ``raw``'s bytes, a view where they are mapped."""
    if isinstance(raw, str):
        raw = raw.encode("latin1")  # a str of Python 2
    shape = _shape(shape)
    size = math.prod(shape) * dtype.value.itemsize
    if dtype.value.hasobject or len(raw) != size:
        raise pickle.UnpicklingError(f"an array of shape {shape} and {dtype.value} has {len(raw)} bytes")
    if size == 0:
        if math.prod(shape):  # of texts without a character, to each of which numpy gives one
            raise pickle.UnpicklingError(f"an array of shape {shape} and {dtype.value} has no bytes")
        return np.zeros(shape, dtype.value)
    array = np.frombuffer(raw, dtype.value).reshape(shape, order="F" if order == "F" else "C")
    array.setflags(write=False)
    return array


def _shape(found: Any) -> tuple[int, ...]:
    """Return a shape after checking that it is one: a text or list in its place, multiplied, would fill memory."""
    shape = tuple(found) if isinstance(found, tuple | list) else (found,)
    if not all(type(length) is int and 0 <= length < 2**62 for length in shape):
        raise pickle.UnpicklingError(f"{reprlib.repr(shape)} is not the shape of an array")
    return shape


def _keys(found: Iterable[Any]) -> list[Any]:
    """Return what may be a key or a member of a set; the hash of a nested tuple may take forever."""
    keys = list(found)
    if not all(isinstance(key, str | int | float | bytes | np.generic | None) for key in keys):
        raise pickle.UnpicklingError("a key or a member of a set is neither a text nor a number")
    return keys


def _ordered_dict(items: Iterable[Any] = ()) -> OrderedDict[Any, Any]:
    keys, values = [], []
    for key, value in items:
        keys.append(key)
        values.append(value)
    return OrderedDict(zip(_keys(keys), values, strict=True))


def _set(items: Iterable[Any] = ()) -> set[Any]:
    return set(_keys(items))


def _frozenset(items: Iterable[Any] = ()) -> frozenset[Any]:
    return frozenset(_keys(items))


def _scalar(dtype: _DType, raw: Any = b"") -> Any:
    return _array(raw, dtype, (), "C")[()]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stand-in for ``_codecs.encode``, by which Python 3 writes bytes to a pickle of protocol 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes are encoded as {reprlib.repr(encoding)}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    return b""


_NDARRAY: Final = object()
_NUMPY_CORES = ("numpy.core", "numpy._core")
_BUILTINS = ("builtins", "__builtin__")
_ADMITTED: Final[dict[tuple[str, str], Any]] = {
    **{(f"{core}.multiarray", "_reconstruct"): _Array for core in _NUMPY_CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _NUMPY_CORES},
    **{(f"{core}.numeric", "_frombuffer"): _array for core in _NUMPY_CORES},
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _ordered_dict,
    **{(module, "set"): _set for module in _BUILTINS},
    **{(module, "frozenset"): _frozenset for module in _BUILTINS},
    **{(module, "bytes"): _empty_bytes for module in _BUILTINS},
}


class _Unpickler(pickle._Unpickler):
    """The standard unpickler with the names above, and with views of the map for large byte strings."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    read: Callable[[int], bytes]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    stack: list[Any]
    metastack: list[list[Any]]
    _unframer: Any

    def __init__(
        self, stream: _ViewedFile, path: Path, inert: Collection[tuple[str, str]], allowance: _Allowance
    ) -> None:
        super().__init__(stream, encoding="latin1")
        self._stream = stream
        self._allowance = allowance
        self._path = path
        self._inert = {key: type("PickledObject", (PickledObject,), {"name": ".".join(key)}) for key in inert}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._inert:
            return self._inert[module, name]
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise RecordError(
                RejectReason.LABEL_UNSAFE, f"{self._path}: the pickle asks for {module}.{name}, which is not plain data"
            ) from None

    def _load_bytes(self, size: int) -> None:
        framed = self._unframer.current_frame is not None
        self.append(self.read(size) if framed else self._stream.view(size))

    def load_binbytes(self) -> None:
        self._load_bytes(struct.unpack("<I", self.read(4))[0])

    dispatch[pickle.BINBYTES[0]] = load_binbytes

    def load_binbytes8(self) -> None:
        self._load_bytes(struct.unpack("<Q", self.read(8))[0])

    dispatch[pickle.BINBYTES8[0]] = load_binbytes8
    dispatch[pickle.BYTEARRAY8[0]] = load_binbytes8

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _DType | PickledObject):
            raise pickle.UnpicklingError(f"the pickle changes an object of {type(self.stack[-1])}")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.stack[-1](*arguments)
        self._allowance.spend_on(self.stack[-1])

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_empty_list(self) -> None:
        self._allowance.spend(_CONTAINER_BYTES)
        self.append([])

    dispatch[pickle.EMPTY_LIST[0]] = load_empty_list

    def load_empty_dictionary(self) -> None:
        self._allowance.spend(_CONTAINER_BYTES)
        self.append({})

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary

    def load_empty_set(self) -> None:
        self._allowance.spend(4 * _CONTAINER_BYTES)
        self.append(set())

    dispatch[pickle.EMPTY_SET[0]] = load_empty_set

    def load_mark(self) -> None:
        self._allowance.spend(_CONTAINER_BYTES)
        self.metastack.append(self.stack)
        self.stack = []
        self.append = self.stack.append

    dispatch[pickle.MARK[0]] = load_mark

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(dict(zip(_keys(items[::2]), items[1::2], strict=True)))

    dispatch[pickle.DICT[0]] = load_dict

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._target(dict)[_keys([key])[0]] = value

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._target(dict).update(zip(_keys(items[::2]), items[1::2], strict=True))

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_additems(self) -> None:
        members = _keys(self.pop_mark())
        self._target(set).update(members)

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_frozenset(self) -> None:
        self.append(_frozenset(self.pop_mark()))

    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def _target(self, kind: type[Container]) -> Container:
        """Return what the pickle fills: the top of the stack."""
        target = self.stack[-1]
        if not isinstance(target, kind):
            raise pickle.UnpicklingError(f"the pickle fills an object of {type(target)}")
        return target


def _require_size(found: Any, most: int) -> None:
    """Raise where an object, written out, has more parts than a file of its size may say.

    A list that holds one list a thousand times, which holds another a thousand times, takes some thousand bytes; who
    makes an array or a text of it fills the memory.

    Raises:
        pickle.UnpicklingError: It has more than ``most``, or holds itself.

    """
    sizes: dict[int, int] = {}

    def size(part: Any) -> int:
        if isinstance(part, np.ndarray) and not part.dtype.hasobject:
            return int(part.size)
        if not isinstance(part, dict | list | tuple | np.ndarray | PickledObject):
            return 1
        known = sizes.get(id(part))
        if known is not None:
            if known < 0 and isinstance(part, PickledObject):
                return 1
            if known < 0:
                raise pickle.UnpicklingError("an object holds itself")
            return known
        sizes[id(part)] = -1
        if isinstance(part, PickledObject):
            total = 1 + size(part.state)
        else:
            members = part.values() if isinstance(part, dict) else part.flat if isinstance(part, np.ndarray) else part
            total = 1 + sum(map(size, members))
        if total > most:
            raise pickle.UnpicklingError(f"it names more than {most} parts, by objects that occur again and again")
        sizes[id(part)] = total
        return total

    size(found)


class _Resolver:
    """Replaces the stand-ins in what was unpickled by arrays and dtypes; each object once, so that sharing stays."""

    def __init__(self, allowance: _Allowance) -> None:
        self._allowance = allowance
        self._done: dict[int, Any] = {}
        self._alive: list[Any] = []  # an id is only unique while its object lives
        self.shares = False
        """Whether an object occurs in several places."""

    def resolve(self, found: Any) -> Any:
        if isinstance(found, np.ndarray):
            self.shares |= id(found) in self._done
            self._done[id(found)] = found
            return found
        if not isinstance(found, dict | list | tuple | memoryview | _Array | _DType | PickledObject):
            return found
        if id(found) in self._done:
            self.shares = True
            return self._done[id(found)]
        self._alive.append(found)
        if isinstance(found, dict | list):
            self._done[id(found)] = found  # before its content, which may hold it again
            for key in found if isinstance(found, dict) else range(len(found)):
                found[key] = self.resolve(found[key])
            return found
        if isinstance(found, PickledObject):
            self._done[id(found)] = found
            found.state = self.resolve(found.state)
            return found
        if isinstance(found, tuple):
            result: Any = tuple(self.resolve(item) for item in found)
        elif isinstance(found, memoryview):
            result = bytes(found)
        else:
            result = found.value if isinstance(found, _DType) else self._array(found)
        self._done[id(found)] = result
        return result

    def _array(self, found: _Array) -> NDArray[Any]:
        shape, dtype, is_fortran, raw = found.state[-4:]
        if not dtype.value.hasobject:
            array = _array(raw, dtype, shape, "F" if is_fortran else "C")
            self._allowance.spend_on(array if isinstance(raw, str) else None)
            return array
        shape = _shape(shape)
        self._allowance.spend(8 * len(raw))
        if not isinstance(raw, list) or math.prod(shape) != len(raw):
            raise pickle.UnpicklingError(f"an array of {shape} objects has another number of them")
        array = np.empty(len(raw), dtype=object)
        for index, item in enumerate(raw):
            array[index] = self.resolve(item)
        return array.reshape(shape, order="F" if is_fortran else "C")
