"""Records of label files of gigabytes, one at a time: memory is bounded by the largest record, not by the file.

The file is read in blocks. A record's end is guessed by counting its brackets (fast, and wrong only where a string
holds a bracket); pydantic's parser then reads the guess. No proper prefix of a JSON object or list is itself valid
JSON, so a guess that parses is right; any other record goes to an exact scan. Measured on HaGRID's layout (1.6 kB
records), one busy core: 44,000 records/s, 71 MB/s, where ijson's C backend and Python's own parser reach 25,000.

Python's ``json`` writes ``NaN`` and ``Infinity``, which are not JSON: they are read, so that the adapter can say
which number of which record is wrong.
"""

import json
import re
import reprlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from pydantic_core import from_json

from handdata.adapters.reading.listing import NotRegularFileError, open_file
from handdata.schemas.errors import RecordError, RejectReason

BLOCK_BYTES: Final = 1 << 20
"""Bytes read at a time."""
MAX_VALUE_BYTES: Final = 64 << 20
"""A single yielded value larger than this is an error: no label record is, and memory must stay bounded."""
MAX_VALUE_PARTS: Final = 4_000_000
"""So is one of more numbers, texts, lists and objects: an empty list is two bytes in the file and sixty in memory."""
MAX_DEPTH: Final = 100
"""Nesting of lists and objects in one value; labels have less than ten."""
_GUESS_BYTES: Final = 256 << 10
"""How far a record's end is guessed: a bracket within a string must not cost a scan of the whole window."""
_RUN_BYTES: Final = 4 << 10
"""How much of a list is parsed at once: more keeps so many small objects alive that Python's collector takes over."""

_BLANKS = re.compile(rb"[ \t\r\n]*+")
# Possessive (``++``, ``*+``): nothing is remembered to come back to, which took 125 bytes for each one of a text.
_SCALAR = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[^\s,:{}\[\]"]++', re.DOTALL)
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\]]', re.DOTALL)
_WRITTEN_OTHERWISE = re.compile(rb"\\u00[2-7]")
"""The escape of a character that needs none: a key may be written with it, though no program does."""
_LONGEST_KEY: Final = 1 << 10
"""Bytes of a key with the blanks behind it, at most."""
_KEY_END = re.compile(rb'"[ \t\r\n]*+:')
"""The end of a key, or what looks like one within a text."""
_CLOSING = {b"{": b"}", b"[": b"]"}
_UTF8_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json(path: Path) -> Any:
    """Return the one value of a small JSON file.

    Raises:
        RecordError: As ``stream_items``.

    """
    with _open(path) as stream:
        scanner = _Scanner(path, stream)
        value = scanner.value()
        scanner.end()
        return value


def read_object(path: Path) -> dict[str, Any]:
    """Return the one object of a small JSON file.

    Raises:
        RecordError: As ``stream_items``; a key that is there twice with two values is an error too.

    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path} should hold an object, holds {reprlib.repr(value)}")
    return value


def stream_items(path: Path, *prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of a JSON object in file order: of the whole file, or of the one found below ``prefix``.

    ``stream_items(path)`` walks ``{"<id>": {...}, ...}`` (HaGRID); ``stream_items(path, "calibration")`` walks
    ``{"calibration": {"<sequence>": {...}, ...}}``. What follows an object below ``prefix`` is not read; behind that of
    the whole file nothing may follow, such as a second file that was joined to it.

    A key that this object has twice is yielded twice, for to remember all keys takes memory: the caller tells.

    Raises:
        RecordError: ``label_missing``, or ``label_corrupt``, naming file and byte, after all records before it; or
            before them where a key of ``prefix`` is there twice.

    """
    with _open(path) as stream:
        scanner = _scanner_below(path, stream, prefix)
        for key in scanner.members():
            yield key, scanner.value()
        if not prefix:
            scanner.end()


def stream_nested_items(path: Path, *prefix: str) -> Iterator[tuple[str, str, Any]]:
    """Yield (outer key, key, value) of an object of objects: the whole file, or the one found below ``prefix``.

    For ``{"<capture>": {"<frame>": {...}, ...}, ...}`` (InterHand2.6M joint_3d, AssemblyHands joint_3d below
    ``"annotations"``), whose outer values alone are too large to hold.

    Raises:
        RecordError: As ``stream_items``.

    """
    with _open(path) as stream:
        scanner = _scanner_below(path, stream, prefix)
        for outer in scanner.members():
            for key in scanner.members():
                yield outer, key, scanner.value()
        if not prefix:
            scanner.end()


def stream_list(path: Path, *prefix: str) -> Iterator[Any]:
    """Yield the elements of a JSON list in file order: the whole file, or the list found below ``prefix``.

    ``stream_list(path, "annotations")`` walks ``{"images": [...], "annotations": [...]}`` (InterHand2.6M).

    Raises:
        RecordError: As ``stream_items``.

    """
    with _open(path) as stream:
        scanner = _scanner_below(path, stream, prefix)
        if scanner.opens_list():
            yield from scanner.values_of_list()
        if not prefix:
            scanner.end()


def stream_lists(path: Path, *names: str) -> Iterator[tuple[str, Any]]:
    """Yield (name, element) of several lists of a JSON object, in one pass, in whatever order the file has them.

    ``stream_lists(path, "images", "annotations")`` walks COCO's format. A member that is no list is yielded whole.

    Raises:
        RecordError: As ``stream_items``; one of the names is there twice.

    """
    with _open(path) as stream:
        scanner = _Scanner(path, stream)
        found: set[str] = set()
        for key in scanner.members():
            if key not in names:
                scanner.skip()
                continue
            if key in found:
                raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: the key {key!r} is there twice")
            found.add(key)
            if not scanner.at_list():
                yield key, scanner.value()
            elif scanner.opens_list():
                for element in scanner.values_of_list():
                    yield key, element
        scanner.end()


def stream_list_part(path: Path, start: int, stop: int) -> Iterator[Any]:
    """Yield the elements of a JSON list that begin at bytes ``start`` (an element's first byte) to ``stop``.

    So that several workers share a list: each reads on from its own first element until the next one's.

    Raises:
        RecordError: As ``stream_items``.

    """
    with _open(path) as stream:
        stream.seek(start)
        scanner = _Scanner(path, stream)
        if scanner.offset() < stop:
            yield from scanner.values_of_list(stop)


def _open(path: Path) -> BinaryIO:
    try:
        return open_file(path)
    except FileNotFoundError:
        raise RecordError(RejectReason.LABEL_MISSING, f"{path} does not exist") from None
    except NotRegularFileError as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path} {error}") from None


def _scanner_below(path: Path, stream: BinaryIO, prefix: tuple[str, ...]) -> "_Scanner":
    """Return a scanner at the value below the keys of ``prefix``, each of which its object has once."""
    _require_once(path, stream, prefix)
    scanner = _Scanner(path, stream)
    scanner.enter(prefix)
    return scanner


def require_once(path: Path, *prefix: str) -> None:
    """Raise where a key of ``prefix`` is there twice: parsers take the last one, who streams takes the first.

    That it is not there at all is no error here.

    Raises:
        RecordError: ``label_corrupt``, naming file and key, or ``label_missing``.

    """
    with _open(path) as stream:
        _require_once(path, stream, prefix)


def _require_once(path: Path, stream: BinaryIO, prefix: tuple[str, ...]) -> None:
    if not all(_occurs_once(stream, key) for key in prefix):
        stream.seek(0)
        doubled = None
        with suppress(RecordError):  # who reads the records reports what else is wrong
            doubled = _Scanner(path, stream).doubled(prefix)
        if doubled is not None:
            raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: the key {doubled!r} is there twice")
    stream.seek(0)


def _occurs_once(stream: BinaryIO, key: str) -> bool:
    """Return whether a key surely occurs at most once in a file, at any depth: a gigabyte or two a second."""
    if not key.isascii():  # it may be written with escapes
        return False
    quoted = re.compile(re.escape(json.dumps(key).encode()) + rb"[ \t\r\n]*+:")
    stream.seek(0)
    found, kept = 0, b""
    while block := stream.read(BLOCK_BYTES):
        window = kept + block
        if b"\\u00" in window and _WRITTEN_OTHERWISE.search(window):
            return False
        behind = 0
        for match in quoted.finditer(window):
            found, behind = found + 1, match.end()
        kept = window[max(behind, len(window) - _LONGEST_KEY) :]  # a key may go on in the next block
    return found < 2


def _count_keys(value: Any) -> int:
    """Return the keys of all objects in a value that is not empty.

    What lists hold is told by their first elements; too small a count only costs the time of ``_load_once``.
    """
    if type(value) is dict:
        count = len(value)
        for part in value.values():
            if type(part) in _CONTAINERS and part:
                count += _count_keys(part)
        return count
    first = _count_keys(value[0]) if type(value[0]) in _CONTAINERS and value[0] else 0
    return first + sum(_count_keys(part) for part in value[1:] if type(part) in _CONTAINERS and part) if first else 0


_CONTAINERS: Final = frozenset({dict, list})


def _load_once(text: bytes) -> Any:
    """Return a value none of whose objects says two things under one key; parsers take the last one in silence.

    Raises:
        ValueError: It is no JSON, or has such an object.

    """
    return _DECODER.decode(text.decode("utf-8", "surrogatepass"))


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                raise ValueError(f"the key {key!r} is there twice, with two values")
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object_of)


class _Scanner:
    """A position in a JSON file; one window of the file is in memory."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path = path
        self._stream = stream
        self._window = b""
        self._position = 0  # in the window
        self._window_start = stream.tell()  # in the file
        self._ended = False
        self._no_run_before = 0  # in the file
        while len(self._window) < len(_UTF8_BYTE_ORDER_MARK) and self._refill():
            pass
        if self._window_start == 0 and self._window.startswith(_UTF8_BYTE_ORDER_MARK):
            self._position = len(_UTF8_BYTE_ORDER_MARK)

    def enter(self, prefix: tuple[str, ...]) -> None:
        """Move to the value below the keys of ``prefix``, passing over everything before it."""
        for wanted in prefix:
            for key in self.members():
                if key == wanted:
                    break
                self.skip()
            else:
                raise RecordError(RejectReason.LABEL_CORRUPT, f"{self._path} has no key {wanted!r}")

    def doubled(self, prefix: tuple[str, ...]) -> str | None:
        """Walk the object here to its end, and return the first key of ``prefix`` that is there twice."""
        wanted, *rest = prefix
        is_known = False
        for key in self.members():
            if key == wanted and is_known:
                return wanted
            is_known |= key == wanted
            if key == wanted and rest and self._peek() == b"{":
                inner = self.doubled(tuple(rest))
                if inner is not None:
                    return inner
            else:
                self.skip()
        return None

    def members(self) -> Iterator[str]:
        """Yield the keys of the object here; the caller consumes each key's value before it asks for the next."""
        self._take(b"{")
        if self._peek() == b"}":
            self._position += 1
            return
        while True:
            if self._peek() != b'"':
                self._fail("expected a key")
            key = self.value()
            self._take(b":")
            yield key
            if self._take(b",", b"}") == b"}":
                return

    def at_list(self) -> bool:
        """Return whether the value here is a list."""
        return self._peek() == b"["

    def opens_list(self) -> bool:
        """Move to the first element of the list here, or past it where there is none; True where there is one."""
        self._take(b"[")
        if self._peek() == b"]":
            self._position += 1
            return False
        return True

    def values_of_list(self, stop: int | None = None) -> Iterator[Any]:
        """Yield the values of a list from the element here, to its end or to the element that begins at ``stop``."""
        while True:
            run = self._run_of_objects(stop)
            if run:
                yield from run
            else:
                yield self.value()
            if self._take(b",", b"]") == b"]" or (stop is not None and self.offset() >= stop):
                return

    def end(self) -> None:
        """Check that nothing follows."""
        if self._peek():
            self._fail("expected the end of the file")

    def offset(self) -> int:
        """Return the byte of the file at which the next value begins."""
        self._peek()
        return self._window_start + self._position

    def value(self) -> Any:
        """Parse the value here and move past it."""
        opening = self._peek()
        end = self._guess_end(opening) if opening in _CLOSING else self._until_scalar_ends()
        # A guessed value is too small to hold many parts.
        if end is not None:
            try:
                value = from_json(self._window[self._position : end])
                if opening in _CLOSING and not self._has_all_keys(self._position, end, [value]):
                    _load_once(self._window[self._position : end])
            except (ValueError, RecursionError):
                pass  # a bracket within a string, or a corrupt record
            else:
                self._position = end
                return value
        if end is None or opening in _CLOSING:
            end = self._until_container_ends()
            parts = sum(self._window.count(mark, self._position, end) for mark in (b",", b"[", b"{"))
            if parts > MAX_VALUE_PARTS:
                self._fail(f"one value has {parts} parts")
        try:
            load = _load_once if opening in _CLOSING else json.loads
            value = load(self._window[self._position : end])
        except (ValueError, RecursionError) as error:
            self._fail(f"not JSON: {error}")
        self._position = end
        return value

    def skip(self) -> None:
        """Move past the value here."""
        opening = self._peek()
        if opening == b"{":
            for _ in self.members():
                self.value()
        elif opening == b"[":
            if self.opens_list():
                for _ in self.values_of_list():
                    pass
        else:
            self.value()

    def _run_of_objects(self, stop: int | None) -> list[Any]:
        """Parse the objects of a list that are whole in the window, in one call; none where the guess fails.

        The guess is that the last closing brace ends a record. One by one, a record of 300 bytes costs as much again
        as its parsing. After a wrong guess (a brace within a record) its bytes are not tried again.
        """
        opening, start = self._peek(), self._position
        if opening != b"{" or self._window_start + start < self._no_run_before:
            return []
        limit = start + _RUN_BYTES
        if stop is not None:
            limit = min(limit, stop - self._window_start)
        end = self._window.rfind(b"}", start, limit) + 1
        if end == 0:
            return []
        try:
            run: list[Any] = from_json(b"[" + self._window[start:end] + b"]")
            if not self._has_all_keys(start, end, run):
                raise ValueError("a key may be there twice")
        except ValueError:
            self._no_run_before = self._window_start + end
            return []
        self._position = end
        return run

    def _has_all_keys(self, start: int, end: int, values: list[Any]) -> bool:
        """Return whether values surely have all keys that are written in a part of the window, so that none is twice.

        A key has a colon behind it. Most labels have no other colons, and objects in the outermost ones at most, so
        that two counts tell: 0.3 us for an object of 300 bytes.
        """
        colons = self._window.count(b":", start, end)
        objects = [value for value in values if type(value) is dict]
        known = sum([len(value) for value in objects])
        if known == colons:
            return True
        known += sum([len(part) for value in objects for part in value.values() if type(part) is dict])
        if known == colons:
            return True
        known = _count_keys(values)
        return known == colons or known == len(_KEY_END.findall(self._window, start, end))

    def _guess_end(self, opening: bytes) -> int | None:
        """Return where the brackets of one kind balance, taking those within strings for real; None: not nearby."""
        window, closing = self._window, _CLOSING[opening]
        end, depth = self._position, 0
        limit = self._position + _GUESS_BYTES
        while True:
            start, end = end, window.find(closing, end, limit) + 1
            if end == 0:
                return None
            depth += window.count(opening, start, end) - 1
            if depth == 0:
                return end

    def _until_container_ends(self) -> int:
        while True:
            depth = 0
            for token in _STRUCTURE.finditer(self._window, self._position):
                mark = token.group()
                if mark == b'"':
                    break  # a string that goes on in the next block: what follows is not structure
                depth += (mark in (b"{", b"[")) - (mark in (b"}", b"]"))
                if depth == 0:
                    return token.end()
                if depth > MAX_DEPTH:
                    self._fail(f"lists and objects are nested more than {MAX_DEPTH} deep")
            if not self._refill():
                self._fail("the file ends within a record")

    def _until_scalar_ends(self) -> int:
        while True:
            token = _SCALAR.match(self._window, self._position)
            # A number that touches the window's end may go on in the next block.
            if token is not None and token.end() < len(self._window):
                return token.end()
            if self._peek() in (b",", b":", b"}", b"]"):
                self._fail("expected a value")
            if not self._refill():
                self._fail("the file ends within a value")

    def _peek(self) -> bytes:
        """Return the next byte that is not blank, without consuming it; b"" where the file ends."""
        while True:
            match = _BLANKS.match(self._window, self._position)
            assert match is not None
            self._position = match.end()
            if self._position < len(self._window) or not self._refill():
                return self._window[self._position : self._position + 1]

    def _take(self, *expected: bytes) -> bytes:
        found = self._peek()
        if found not in expected:
            wanted = " or ".join(repr(mark.decode()) for mark in expected)
            self._fail(f"expected {wanted}, found {found!r}" if found else f"the file ends where {wanted} is expected")
        self._position += 1
        return found

    def _refill(self) -> bool:
        """Drop what is consumed and read on, doubling the window where one value fills it; False at the file's end."""
        if self._ended:
            return False
        rest = self._window[self._position :]
        if len(rest) > MAX_VALUE_BYTES:
            self._fail(f"one value is larger than {MAX_VALUE_BYTES} bytes")
        block = self._stream.read(max(BLOCK_BYTES, len(rest)))
        self._window_start += self._position
        self._window, self._position = rest + block, 0
        self._ended = not block
        return not self._ended

    def _fail(self, problem: str) -> NoReturn:
        offset = self._window_start + self._position
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{self._path}, byte {offset}: {problem}")
