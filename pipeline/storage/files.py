"""Files outside the workspace, named by path or URL, such as the images of records.

Three things are told apart. Only a server or disk that says so makes a file **missing**: HTTP 404 and 410, S3's
NoSuchKey, ENOENT, and names that no file can have. What is no file, or too large, is **unusable**; it concerns one
record, too. All else (a server that is away, credentials that have run out) says nothing about the file: it is tried
again where that may help, and then stops the run, since to go on would lose every record behind it. HTTP's 401 and 403
and S3's AccessDenied are among these: expired signatures and credentials look so, for all files at once.
"""

import errno
import io
import re
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.zip import ZipFileSystem

from handdata.pipeline.storage.store import as_storage_error, is_from_server, open_filesystem, retried
from handdata.schemas import StorageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_NO_FILE: Final = {errno.EISDIR, errno.ELOOP, errno.EILSEQ, errno.ENXIO, errno.ENODEV}
_NO_SUCH_NAME: Final = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
_MISSING_STATUS: Final = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
_NOT_ALLOWED: Final = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED}
_AWAY_STATUS: Final = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_NOT_ALLOWED_HINT: Final = "are its credentials or signed URLs still valid? the same command continues"
_UNUSABLE_ANSWERS: Final = {"InvalidBucketName", "InvalidRange", "InvalidURI", "KeyTooLongError"}
"""S3's answers to names that nothing can have, and to empty files."""

_DAMAGED_ARCHIVE: Final = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
"""What a ZIP archive raises that is none, is cut off, or has another checksum or compression than it should."""

_CACHES: Final = re.compile(r"^((simplecache|filecache|blockcache|cached)::)+")
"""fsspec's caches: each file is read once, and they say of a server that is away that a file is missing."""


class UnusableFileError(ValueError):
    """What has this name is no file, or too large, or nothing that its server hands out."""


@retried
def read_file(uri: str, most_bytes: int) -> bytes:
    """Return the content of a file.

    Args:
        uri: Path on this machine, or any fsspec URL.
        most_bytes: Size of the largest file that is read.

    Raises:
        FileNotFoundError: It is not there, or nothing can have this name; ``strerror`` says which.
        UnusableFileError: It is no file, or larger.
        StorageError: Its server or disk is away, or does not let us in.

    """
    with _judged(uri):
        if "\0" in uri:  # not every file system says so itself
            raise ValueError("embedded null character")
        filesystem, path = _opened(uri)
        if isinstance(filesystem, LocalFileSystem):
            _require_file(Path(path), most_bytes)
            return Path(path).read_bytes()
        if uri.startswith(("http://", "https://")):
            buffer = _Bounded(most_bytes)
            filesystem.get_file(path, buffer)
            return buffer.getvalue()
        data = bytes(filesystem.cat_file(path, start=0, end=most_bytes + 1))
        if len(data) > most_bytes:
            raise UnusableFileError(_too_large(most_bytes))
        return data


@contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """Yield the path of a file on this machine: its own, or that of a temporary copy.

    Raises:
        FileNotFoundError: It is a URL, and nothing is there.
        UnusableFileError: Its server does not hand it out.
        StorageError: Its server is away, or does not let us in.

    """
    if "://" not in uri:
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="handdata-") as folder:
        copy = Path(folder) / f"file{PurePosixPath(uri).suffix}"
        _download(uri, copy)
        yield copy


@retried
def _download(uri: str, copy: Path) -> None:
    with _judged(uri):
        filesystem, path = _opened(uri)
        filesystem.get_file(path, str(copy))


def _opened(uri: str) -> tuple[Any, str]:
    """Return the file system of a path or URL, and the path in it.

    Paths on this machine are taken as they are. fsspec would cut them at each ``::``, also that of an archive.
    """
    uri = _CACHES.sub("", uri)
    if "://" not in uri or uri.startswith("file://"):
        return LocalFileSystem(), uri.removeprefix("file://")
    if _is_in_local_archive(uri):
        member, _, archive = uri.removeprefix("zip://").partition("::")
        return _archive(archive.removeprefix("file://")), member
    return open_filesystem(uri)


def _is_in_local_archive(uri: str) -> bool:
    uri = _CACHES.sub("", uri)
    archive = uri.partition("::")[2]
    return uri.startswith("zip://") and bool(archive) and "://" not in archive.removeprefix("file://")


@lru_cache(maxsize=16)
def _archive(path: str) -> Any:
    """Return the file system in a ZIP archive on this machine; its table of contents is read once."""
    _require_file(Path(path), sys.maxsize)
    return ZipFileSystem(Path(path).open("rb"), skip_instance_cache=True)


def _require_file(path: Path, most_bytes: int) -> None:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for ever
        raise UnusableFileError("is no file")
    if found.st_size > most_bytes:
        raise UnusableFileError(_too_large(most_bytes))


def _too_large(most_bytes: int) -> str:
    return f"has more than {most_bytes >> 20} MiB"


class _Bounded(io.BytesIO):
    """A buffer that takes up to a number of bytes: a server may send without end."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self._most_bytes = most_bytes

    def write(self, part: "ReadableBuffer", /) -> int:
        """Add a part."""
        written = super().write(part)
        if self.tell() > self._most_bytes:
            raise UnusableFileError(_too_large(self._most_bytes))
        return written


@contextmanager
def _judged(uri: str) -> Iterator[None]:
    """Turn the many errors of file systems into the three kinds that ``read_file`` raises."""
    try:
        yield
    except (StorageError, UnusableFileError, MemoryError):
        raise
    except Exception as error:
        raise _judgement(uri, error) from error


def _judgement(uri: str, error: Exception) -> Exception:
    answer = _s3_answer(error)
    if isinstance(error, FileNotFoundError) and not answer and is_from_server(error.__cause__):
        return _judgement(uri, error.__cause__)  # fsspec takes any failure to find out a size for a missing file
    if answer == "NoSuchBucket":
        return StorageError(f"cannot read {uri}: there is no such bucket", "is it the right server?")
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return _judgement_of_status(uri, status)
    if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno in _NO_SUCH_NAME):
        return _missing(uri, "does not exist")
    if isinstance(error, OSError) and (error.errno in _NO_FILE or answer in _UNUSABLE_ANSWERS):
        return UnusableFileError(error.strerror or str(error))
    if isinstance(error, _DAMAGED_ARCHIVE) and _is_in_local_archive(uri):
        return UnusableFileError(f"lies in a damaged archive: {error}")
    if isinstance(error, PermissionError):
        return StorageError(f"cannot read {uri}: {error.strerror or error}", _NOT_ALLOWED_HINT)
    if isinstance(error, ValueError) or type(error).__name__ == "ParamValidationError":  # aiohttp's InvalidURL too
        reason = " ".join(str(error).split()) or type(error).__name__
        return _missing(uri, f"is no name of a file: {reason}")
    found = as_storage_error("read", uri, error)
    unknown = found.transient or isinstance(error, ImportError)
    return found if unknown else StorageError(found.message, _NOT_ALLOWED_HINT)


def _judgement_of_status(uri: str, status: int) -> Exception:
    if status in _MISSING_STATUS:
        return _missing(uri, "does not exist")
    if status in _NOT_ALLOWED:
        return StorageError(f"cannot read {uri}: the server answers {status}", _NOT_ALLOWED_HINT)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _AWAY_STATUS:
        hint = "is the server all right? the same command continues"
        return StorageError(f"cannot read {uri}: the server answers {status}", hint, transient=True)
    return UnusableFileError(f"the server answers {status}")


def _missing(uri: str, why: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, why, uri)


def _s3_answer(error: Exception) -> str:
    """Return the code of S3's answer behind an error; empty where there is none."""
    response: Any = getattr(error.__cause__, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
