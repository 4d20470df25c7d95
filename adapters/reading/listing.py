"""The one place of the adapters that lists folders and opens files.

Three things are told apart. What is **not there** is fine: parts of datasets are. What **cannot be read** (a network
disk that is away, a folder without rights) is tried again and then ends the ingest with ``DatasetReadError``, since to
go on would drop a part of the dataset in silence. What is **of another kind** (a pipe named like an image, a file where
a folder belongs) is never opened.

Names that systems leave behind, and archives beside the folder that they were unpacked to, are not listed.
"""

import errno
import fnmatch
import io
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn, TypeVar, cast

from handdata.schemas.errors import DatasetReadError, LayoutError

Found = TypeVar("Found")
AnyPath = Path | str

WAITS_S: Final = [0.1, 0.5, 2.0]
"""Pauses before what could not be read is tried again."""

_CLUTTER: Final = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
)
"""Folders of systems; other leftovers (``._*``, ``.snapshot``, ``.ipynb_checkpoints``) have hidden names."""
_ARCHIVE: Final = re.compile(r"(.+?)\.(?:zip|rar|7z|tar|tgz|tbz2|txz|tar\.(?:gz|bz2|xz|zst))", re.IGNORECASE)
ARCHIVE_SUFFIXES: Final = (".zip", ".rar", ".7z", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst")
_IMAGE_SUFFIXES: Final = (".jpg", ".png", ".mp4")
MOST_NAMES: Final = 10_000
_COPY: Final = re.compile(
    r"(?:copy of )?(.+?)(?:[ _-]+\(?(?:another )?copy\)?)?(?: ?\([0-9]+\)| [0-9]+)?(?:\.bak|\.old|\.orig|~)?",
    re.IGNORECASE,
)
"""Names that systems and people give to a copy of a folder, and the name of the first one within them."""
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
"""A pipe that nobody writes to would let the opening wait for ever."""
_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
_NO_SUCH_NAME: Final = frozenset({errno.ENAMETOOLONG, errno.EILSEQ})
"""What the text of a label can cause, and so says nothing about the disk."""
_NO_FILE: Final = {
    errno.ELOOP: "is a link that leads back to itself, not a file",
    errno.ENXIO: "is a socket or a device, not a file",
    errno.ENODEV: "is a device, not a file",
}
_NO_USE_TO_RETRY: Final = frozenset({errno.EACCES, errno.EPERM})


@dataclass(slots=True)
class Visits:
    """Where a dataset was looked into: what is left over was not read (``unread``)."""

    folders: set[str] = field(default_factory=set)
    """Folders whose files were opened, found or listed as files."""
    archives: set[str] = field(default_factory=set)
    """Archives that were opened."""
    inside: dict[str, list[str]] = field(default_factory=dict)
    """Folders and archives in each folder that was listed and has any."""
    present: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    """Files that were asked for by name, and are there (``is_named``) or not."""

    def add(self, others: "Visits") -> None:
        """Add what another process visited."""
        self.folders |= others.folders
        self.archives |= others.archives
        self.inside |= others.inside
        self.present |= others.present
        self.absent |= others.absent

    def of_file(self, path: AnyPath) -> None:
        """Note a file that is there."""
        name = os.fspath(path)
        self.folders.add(name.rpartition("/")[0])
        if not name.endswith(_IMAGE_SUFFIXES) and name.lower().endswith(ARCHIVE_SUFFIXES):
            self.archives.add(name)

    def of_name(self, path: AnyPath, is_there: bool) -> None:
        """Note a file that was asked for by name; those that are named as frames are too many."""
        name = os.fspath(path)
        known = self.present if is_there else self.absent
        if len(known) < MOST_NAMES and not name.endswith(_IMAGE_SUFFIXES) and name.rpartition("/")[2][:1].isalpha():
            known.add(name)

    def of_listing(self, folder: AnyPath, entries: "list[os.DirEntry[str]]") -> None:
        """Note what a folder holds."""
        inside = [
            entry.path
            for entry in entries
            if entry.is_symlink() or entry.is_dir() or entry.name.lower().endswith(ARCHIVE_SUFFIXES)
        ]
        if inside:
            self.inside[os.fspath(folder)] = inside


_visits: Visits | None = None


@contextmanager
def noted_visits() -> Iterator[Visits]:
    """Note what this process looks into, until the block ends."""
    global _visits
    before, _visits = _visits, Visits()
    try:
        yield _visits
    finally:
        _visits = before


class NotRegularFileError(ValueError):
    """What should be a file is a folder, a pipe, a socket or a device, or has a name that no file can have."""


def is_clutter(name: str) -> bool:
    """Return whether a name is none of the dataset's: hidden, or left behind by a system."""
    return name.startswith(".") or name in _CLUTTER


# ---------------------------------------------------------------------------------------------------- folders


def folders_in(folder: AnyPath) -> list[Path]:
    """Return the folders of a folder, links to folders included, sorted by name; none where it is not there.

    Raises:
        DatasetReadError: The folder cannot be read, or is a file; or a link in it that is not named as a file leads
            nowhere, so that a folder would be lost.

    """
    found = []
    for entry in _entries(folder):
        if _is_folder(entry):
            found.append(Path(entry.path))
        elif "." not in entry.name:
            _refuse_broken_link(entry.path)
    return found


def files_in(folder: AnyPath, *suffixes: str) -> list[Path]:
    """Return all of a folder that is no folder, sorted by name; none where it is not there.

    Pipes and broken links are among them, and folders that are named as files are: who opens one finds out, while an
    omitted one would be lost in silence.

    Args:
        folder: Folder to list.
        suffixes: Ends of the names to return, such as ``.json``, in any case and before blanks; without any, all that
            is no folder.

    Raises:
        DatasetReadError: The folder cannot be read, or is a file.

    """
    found = _entries(folder)
    if suffixes:
        ends = tuple(suffix.lower() for suffix in suffixes)
        files = [Path(entry.path) for entry in found if entry.name.rstrip().lower().endswith(ends)]
    else:
        files = [Path(entry.path) for entry in found if not _is_folder(entry)]
    if files and _visits is not None:
        _visits.folders.add(os.fspath(folder))
    return files


def names_in(folder: AnyPath) -> list[str]:
    """Return the sorted names of a folder, those of folders with ``/`` at the end; none where it is not there.

    Raises:
        DatasetReadError: The folder cannot be read, or is a file.

    """
    return [entry.name + ("/" if _is_folder(entry) else "") for entry in _entries(folder)]


def links_in(folder: AnyPath) -> list[Path]:
    """Return the links of a folder, sorted by name; none where it is not there.

    Raises:
        DatasetReadError: The folder cannot be read, or is a file.

    """
    return [Path(entry.path) for entry in _entries(folder) if entry.is_symlink()]


def find_all(root: AnyPath, pattern: str) -> list[Path]:
    """Return what matches a pattern below ``root``, sorted: ``*``, ``?`` and ``[..]`` within the names of a path.

    Raises:
        DatasetReadError: A folder on the way cannot be read, or what should be one is a link that leads nowhere.

    """
    return sorted(_walk(Path(root), pattern, _refuse_lost_folder))


def holds_match(root: AnyPath, pattern: str) -> bool:
    """Return whether anything below ``root`` matches a pattern, without looking further than the first match.

    Raises:
        DatasetReadError: A folder on the way cannot be read.

    """
    return next(_walk(Path(root), pattern, lambda _: None), None) is not None


def _walk(folder: Path, pattern: str, judge: Callable[[Path], None]) -> Iterator[Path]:
    name, _, rest = pattern.partition("/")
    for path in _matches(folder, name):
        if not rest:
            yield path
        elif _leads_to_folder(path):
            yield from _walk(path, rest, judge)
        else:
            judge(path)


def _matches(folder: Path, name: str) -> list[Path]:
    if not any(character in name for character in "*?["):
        return [folder / name] if is_named(folder / name) else []
    matches = _compiled(name)
    return [folder / entry.name for entry in _entries(folder) if matches.fullmatch(entry.name)]


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


def only_one(found: Iterable[Path], what: str) -> Path | None:
    """Return the one place where a part of a dataset lies; None where there is none.

    Raises:
        LayoutError: There are several; the message names them.

    """
    places = list(dict.fromkeys(found))
    if len(places) > 1:
        raise LayoutError(
            f"there are several {what}: {', '.join(map(str, places))}",
            "pass the folder of one of them as --root, or move the others away",
        )
    return places[0] if places else None


def refuse_copies(folders: Iterable[Path]) -> None:
    """Raise where one of some folders is named as a copy of another one beside it: its frames would be there twice.

    Raises:
        LayoutError: It names both.

    """
    beside: dict[Path, set[str]] = {}
    for folder in folders:
        beside.setdefault(folder.parent, set()).add(folder.name)
    for parent, names in sorted(beside.items()):
        for name in sorted(names):
            first = copied_from(name, names)
            if first is not None:
                raise LayoutError(
                    f"{parent / name} is named as a copy of {first!r} beside it",
                    "keep one of these folders and move the other away",
                )


def copied_from(name: str, names: Collection[str]) -> str | None:
    """Return that one of some names of which another one is named as a copy; None where it is not."""
    match = _COPY.fullmatch(name)
    return match[1] if match is not None and match[1] != name and match[1] in names else None


def is_copy_name(name: str) -> bool:
    """Return whether a name is one that systems and people give to a copy, whatever it may be a copy of."""
    match = _COPY.fullmatch(name)
    return match is not None and match[1] != name


def _entries(folder: AnyPath) -> list["os.DirEntry[str]"]:
    entries = [entry for entry in _scan(folder) if not is_clutter(entry.name)]
    unpacked = {entry.name for entry in entries} if any(_ARCHIVE.fullmatch(entry.name) for entry in entries) else set()
    entries = [entry for entry in entries if not _is_unpacked_archive(entry, unpacked)]
    if _visits is not None:
        _visits.of_listing(folder, entries)
    return entries


def _is_unpacked_archive(entry: "os.DirEntry[str]", names: set[str]) -> bool:
    match = _ARCHIVE.fullmatch(entry.name) if names else None
    return match is not None and match[1] in names and _leads_to_folder(Path(entry.path).parent / match[1])


def _scan(folder: AnyPath) -> list["os.DirEntry[str]"]:
    def read() -> list["os.DirEntry[str]"]:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)

    try:
        return _retried(folder, read)
    except NotADirectoryError:
        if exists(folder):
            raise DatasetReadError(f"{folder} is a file, where a folder of the dataset is expected") from None
        return []
    except (FileNotFoundError, NotRegularFileError):
        _refuse_broken_link(folder)
        _require_way_to(folder)
        return []


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    if not entry.is_symlink():
        return entry.is_dir()
    return _leads_to_folder(entry.path)


def _refuse_broken_link(path: AnyPath) -> None:
    """Raise where a link stands where a folder may belong, and what it leads to is not there.

    Raises:
        DatasetReadError: It is such a link: a disk that is away, most likely.

    """
    if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114  a Path costs more than the question
        raise DatasetReadError(
            f"{path} is a link to {os.readlink(path)}, which is not there",  # noqa: PTH115
            "see that its disk is there, or remove the link, then ingest again: nothing was changed",
        )


def _refuse_lost_folder(path: Path) -> None:
    """Raise where what is named as a folder is neither that nor a file, which may be anything beside the folders.

    Raises:
        DatasetReadError: It is a link that leads nowhere, a pipe, a socket or a device.

    """
    _refuse_broken_link(path)
    mode = _mode(path)
    if mode is not None and not stat.S_ISREG(mode):
        raise DatasetReadError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'no folder')}, where a folder is expected")


def _require_way_to(path: AnyPath) -> None:
    """Raise where a folder on the way to what is not there is a link that leads nowhere.

    Raises:
        DatasetReadError: It names the link.

    """
    for folder in Path(path).parents:
        _refuse_broken_link(folder)
        if os.path.lexists(folder):
            return


# ---------------------------------------------------------------------------------------------------- files


def is_folder(path: AnyPath) -> bool:
    """Return whether a folder is there, or a link to one.

    Raises:
        DatasetReadError: It cannot be found out, or something else stands in its place.

    """
    mode = _mode(path)
    if mode is None:
        _refuse_broken_link(path)
        return False
    if not stat.S_ISDIR(mode):
        raise DatasetReadError(f"{path} is a file, where a folder of the dataset is expected")
    return True


def is_file(path: AnyPath) -> bool:
    """Return whether a regular file is there, or a link to one.

    Raises:
        DatasetReadError: It cannot be found out.

    """
    found = _visit(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def exists(path: AnyPath) -> bool:
    """Return whether anything is there; a broken link is nothing.

    Raises:
        DatasetReadError: It cannot be found out.

    """
    return _visit(path) is not None


def is_named(path: AnyPath) -> bool:
    """Return whether anything has this name, a link that leads nowhere included: who opens it finds out what it is.

    Raises:
        DatasetReadError: It cannot be found out.

    """
    is_there = exists(path) or os.path.islink(path)  # noqa: PTH114  a Path costs more than the question
    if _visits is not None:
        _visits.of_name(path, is_there)
    return is_there


def size_of(path: AnyPath) -> int:
    """Return the bytes of a file; 0 where it is not there.

    Raises:
        DatasetReadError: It cannot be found out.

    """
    found = _visit(path)
    return 0 if found is None else found.st_size


def open_file(path: AnyPath) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        FileNotFoundError: It is not there.
        NotRegularFileError: It is no regular file; pipes, which would wait for ever, are not opened.
        DatasetReadError: It cannot be read; also what a later read raises.

    """
    return cast(BinaryIO, io.BufferedReader(open_unbuffered(path)))


def open_unbuffered(path: AnyPath) -> "DatasetFile":
    """Open a regular file as ``open_file`` does, without a buffer, for those who read little of many files."""
    try:
        return DatasetFile(path)
    except (FileNotFoundError, NotADirectoryError):
        if _visits is not None:
            _visits.of_name(path, is_there=False)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None


def read_head(path: AnyPath, size: int) -> bytes:
    """Return the first bytes of a regular file, up to ``size``; three times as fast as to open it.

    Raises:
        FileNotFoundError: It is not there.
        NotRegularFileError: It is no regular file.
        DatasetReadError: It cannot be read.

    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                if _visits is not None:
                    _visits.of_file(path)
                return os.read(descriptor, size)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        pass  # the slow way finds out what it is
    with open_unbuffered(path) as file:
        return file.read(size)


class DatasetFile(io.FileIO):
    """A regular file whose reads are tried again, and end with ``DatasetReadError`` where they fail."""

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        descriptor = _retried(path, lambda: os.open(path, _OPEN_FLAGS))
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise NotRegularFileError(f"is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}, not a file")
            super().__init__(descriptor)
            if _visits is not None:
                _visits.of_file(path)
        except BaseException:
            os.close(descriptor)
            raise

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to ``size`` bytes, or all that are left."""
        if size is None or size < 0:
            return self.readall()
        return _retried(self.path, lambda: super(DatasetFile, self).read(size))

    def readall(self) -> bytes:
        """Return all bytes that are left.

        Block by block: what Python's own function had read when a block failed would be missing after the next try.
        """
        size = max(io.DEFAULT_BUFFER_SIZE, os.fstat(self.fileno()).st_size + 1)
        return b"".join(iter(lambda: self.read(size), b""))

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer and return how many bytes were read."""
        return _retried(self.path, lambda: super(DatasetFile, self).readinto(buffer))


_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _leads_to_folder(path: AnyPath) -> bool:
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: AnyPath) -> int | None:
    found = _stat(path)
    return None if found is None else found.st_mode


def _stat(path: AnyPath) -> os.stat_result | None:
    try:
        return _retried(path, lambda: os.stat(path))  # noqa: PTH116  a Path costs more than the question
    except (FileNotFoundError, NotADirectoryError, NotRegularFileError):
        _require_way_to(path)
        return None


def _visit(path: AnyPath) -> os.stat_result | None:
    """Return what ``_stat`` does and note the file, which somebody asked for; who walks past one reads nothing."""
    found = _stat(path)
    if _visits is not None and found is not None and stat.S_ISREG(found.st_mode):
        _visits.of_file(path)
    return found


def _retried(path: AnyPath, action: Callable[[], Found]) -> Found:
    """Return what an action on a path returns, trying again where the system may be away.

    Raises:
        FileNotFoundError: There is no such file.
        NotADirectoryError: A file stands where a folder of the path should be.
        NotRegularFileError: No file can have this name.
        DatasetReadError: The last try failed, too.

    """
    waits = iter(WAITS_S)
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno in _MISSING:
                raise
            if error.errno in _NO_SUCH_NAME:
                raise FileNotFoundError(error.errno, error.strerror, str(path)) from None
            if error.errno in _NO_FILE:
                raise NotRegularFileError(_NO_FILE[error.errno]) from None
            wait = None if error.errno in _NO_USE_TO_RETRY else next(waits, None)
            if wait is None:
                cannot_be_read(path, error)
        except ValueError as error:  # a null character in the name
            if isinstance(error, NotRegularFileError):
                raise
            raise NotRegularFileError(str(error)) from None
        time.sleep(wait)


def cannot_be_read(path: AnyPath, error: OSError) -> NoReturn:
    """Raise the error of a file or folder that is there and cannot be read.

    Raises:
        DatasetReadError: Always.

    """
    place = error.filename if isinstance(error.filename, str | os.PathLike) else path
    raise DatasetReadError(
        f"{os.fspath(place)} cannot be read: {error.strerror or error}",
        "see that its disk is there and that you may read it, then ingest again: nothing was changed",
    ) from None
