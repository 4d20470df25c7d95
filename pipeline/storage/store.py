"""A workspace folder at a local path or any fsspec URL, with whole-file atomic writes.

On local disk a file is written under a hidden temporary name and renamed; on an object store an upload becomes visible
when it is complete. A reader never sees half a file on either. ``create_bytes`` decides between writers: the first
one's file stays.
"""

import errno
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, wraps
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, ParamSpec, TypeGuard, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from handdata.pipeline.storage.damage import advice, damaged, parse_document
from handdata.schemas import StorageError

UNFINISHED = ".tmp"
"""How the names of files under way end on local disk; they begin with a dot."""


RETRY_WAITS_S = (2.0, 8.0, 30.0)
"""Pauses before the second, third and fourth try of a request to a server that is away. The client has its own, shorter
retries inside each."""

HTTP_TIMEOUTS_S: Final[dict[str, float]] = {"total": 300, "sock_connect": 10, "sock_read": 15}
"""How long an HTTP server may take for a whole file, to answer, and between two parts of an answer."""

_CLIENTS = ("botocore", "aiobotocore", "aiohttp")
"""Packages behind s3fs, whose errors are no ``OSError`` in part."""

_TRANSIENT = {
    errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTDOWN,
    errno.EHOSTUNREACH, errno.EIO, errno.EMFILE, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.ENFILE,
    errno.ENOTCONN, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip
"""s3fs turns a server's 500 into EREMOTEIO, 503 and "slow down" into EBUSY, 429, 502 and the 409 of a conditional
request that meets another one into EIO; a network file system gives ESTALE or EIO."""

Document = TypeVar("Document")
Given = ParamSpec("Given")
Result = TypeVar("Result")


def _is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed a little later."""
    if isinstance(error, OSError):
        looked_up = error if isinstance(error, socket.gaierror) else getattr(error, "os_error", None)  # aiohttp's
        return (
            isinstance(error, TimeoutError | ConnectionError)
            or isinstance(looked_up, socket.gaierror)  # a name server that is away says that a host is unknown, too
            or error.errno in _TRANSIENT
        )
    return not type(error).__name__.endswith(("CredentialsError", "ValidationError", "InvalidRegionError"))


def retried(action: Callable[Given, Result]) -> Callable[Given, Result]:
    """Call an action again, after longer and longer pauses, while the server that it needs is away."""

    @wraps(action)
    def run(*arguments: Given.args, **options: Given.kwargs) -> Result:
        waits = getattr(arguments[0], "retry_waits_s", None) if arguments else None
        for wait in RETRY_WAITS_S if waits is None else waits:
            try:
                return action(*arguments, **options)
            except StorageError as error:
                if not error.transient:
                    raise
                time.sleep(wait)
        return action(*arguments, **options)

    return run


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, with limits on how long its server may be silent, and the path in it.

    A path on this machine is taken as it is: fsspec would cut it at each ``::``.
    """
    if "://" not in url:
        return LocalFileSystem(), url
    # Other processes write too: a listing remembered here would hide their files.
    options: dict[str, Any] = {"use_listings_cache": False}
    if url.startswith(("s3://", "s3a://")):
        # s3fs tries five times itself: with botocore's five each, a silent server would hold us for minutes.
        options["config_kwargs"] = {"retries": {"total_max_attempts": 2}}
    elif url.startswith(("http://", "https://")):
        import aiohttp

        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(**HTTP_TIMEOUTS_S)}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    return filesystem, str(path)


def is_from_server(error: BaseException | None) -> TypeGuard[Exception]:
    """Return whether an error is about a file system or its server."""
    return isinstance(error, OSError) or type(error).__module__.startswith(_CLIENTS)


def as_storage_error(verb: str, place: str, error: Exception) -> StorageError:
    """Return the one error that stands for the many of file systems, and that names the file."""
    if isinstance(error, ImportError):
        return StorageError(f"cannot {verb} {place}: {error}", 'pip install "handdata[s3]"')
    if isinstance(error, ValueError):  # fsspec: unknown protocol
        return StorageError(f"cannot {verb} {place}: {error}")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    transient = _is_transient(error)
    hint = "choose another place with --workspace or HANDDATA_WORKSPACE, or check its permissions"
    if transient:
        hint = "is the server reachable? the same command continues"
    elif getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        hint = "make room there; the same command continues"
    return StorageError(f"cannot {verb} {place}: {reason}", hint, transient)


class Storage:
    """A root folder; all names below are POSIX paths relative to it. Cheap to pickle: it travels to Ray workers."""

    def __init__(self, url: str | Path, retry_waits_s: tuple[float, ...] | None = None) -> None:
        """Name a folder or file; nothing is opened yet.

        Args:
            url: Path or URL.
            retry_waits_s: Pauses before further tries where a server is away; None takes ``RETRY_WAITS_S``.

        """
        text = str(url)
        self.root = text if "://" in text else str(Path(text).expanduser().absolute())
        self.retry_waits_s = retry_waits_s

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self.root,)

    @cached_property
    def _filesystem(self) -> Any:
        with self._named_errors("open", ""):
            return open_filesystem(self.root)[0]

    @cached_property
    def _root(self) -> str:
        return str(self._filesystem._strip_protocol(self.root)).rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether the root lies on a file system of this machine."""
        return isinstance(self._filesystem, LocalFileSystem)

    def url(self, name: str = "") -> str:
        """Return the address of a name, an absolute path or a URL, as other software opens it."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def describe(self, name: str = "") -> str:
        """Return how a message names a file: its full path or URL."""
        return self.url(name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _named_errors(self, verb: str, name: str) -> Iterator[None]:
        """Turn the many errors of file systems into one that names the file."""
        try:
            yield
        except Exception as error:
            if isinstance(error, ImportError | ValueError) or is_from_server(error):
                named = as_storage_error(verb, self.describe(name), error)
                if verb == "read" and isinstance(error, FileNotFoundError):
                    named = StorageError(named.message, advice(name, gone=True) or named.hint)
                raise named from error
            raise

    @retried
    def exists(self, name: str) -> bool:
        """Return whether a file or folder is there."""
        with self._named_errors("read", name):
            return bool(self._filesystem.exists(self._path(name)))

    @retried
    def size(self, name: str) -> int:
        """Return a file's size in bytes.

        Raises:
            StorageError: It is missing.

        """
        with self._named_errors("read", name):
            return int(self._filesystem.size(self._path(name)))

    @retried
    def read_bytes(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            StorageError: It is missing or unreadable.

        """
        with self._named_errors("read", name):
            return bytes(self._filesystem.cat_file(self._path(name)))

    def read_document(self, name: str, form: type[Document]) -> Document:
        """Return what a small JSON file holds.

        Args:
            name: Name of the file.
            form: What it must hold: a pydantic model or a dataclass.

        Raises:
            StorageError: It is missing, unreadable, or does not hold that.

        """
        return parse_document(self.read_bytes(name), form, self.describe(name), name)

    @contextmanager
    def local_copy(self, name: str = "") -> Iterator[Path]:
        """Yield the path of a file on this machine: its own, or that of a temporary copy where it lies elsewhere.

        Raises:
            StorageError: The file lies elsewhere, and is missing or unreadable.

        """
        if self.is_local:
            yield Path(self._path(name))
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / PurePosixPath(self._path(name)).name
            self._download(name, copy)
            yield copy

    @retried
    def _download(self, name: str, target: Path) -> None:
        with self._named_errors("read", name):
            self._filesystem.get_file(self._path(name), str(target))

    @retried
    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """Return the contents of many small files, at once where the file system can."""
        if not names:
            return []
        with self._named_errors("read", names[0]):
            contents = self._filesystem.cat([self._path(name) for name in names])
        if len(names) == 1 and isinstance(contents, bytes):
            return [contents]
        return [contents[self._path(name)] for name in names]

    @retried
    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Return parts of files, each given as (name, first byte, number of bytes); at once where the store can.

        Raises:
            StorageError: A file is missing, unreadable or too short.

        """
        if not ranges:
            return []
        with self._named_errors("read", ranges[0][0]):
            if self.is_local:
                parts = self._read_local_ranges(ranges)
            else:
                paths = [self._path(name) for name, _, _ in ranges]
                starts = [start for _, start, _ in ranges]
                parts = self._filesystem.cat_ranges(
                    paths, starts, [start + length for _, start, length in ranges], on_error="raise"
                )
        for (name, start, length), part in zip(ranges, parts, strict=True):
            if len(part) != length:
                raise StorageError(f"{self.describe(name)} ends before byte {start + length}")
        return parts

    def _read_local_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        handles: dict[str, int] = {}
        try:
            parts = []
            for name, start, length in ranges:
                if name not in handles:
                    handles[name] = os.open(self._path(name), os.O_RDONLY)
                parts.append(os.pread(handles[name], length, start))
            return parts
        finally:
            for handle in handles.values():
                os.close(handle)

    @retried
    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file so that readers see all of it or nothing."""
        if self.is_local:
            with self.open_output(name) as stream:
                stream.write(data)
        else:
            with self._named_errors("write", name):
                self._filesystem.pipe_file(self._path(name), data)

    @retried
    def write_many(self, files: Mapping[str, bytes]) -> None:
        """Write many small files, at once where the store can.

        On local disk a reader may see half of one, and a power cut may cost them until ``flush``: whoever writes them
        says afterwards that they are there.
        """
        if not files:
            return
        with self._named_errors("write", next(iter(files))):
            if not self.is_local:
                self._filesystem.pipe({self._path(name): data for name, data in files.items()})
                return
            paths = {Path(self._path(name)): data for name, data in files.items()}
            for folder in {path.parent for path in paths}:
                folder.mkdir(parents=True, exist_ok=True)
            for path, data in paths.items():
                path.write_bytes(data)

    def flush(self) -> None:
        """Let what was written survive a power cut."""
        if self.is_local:
            os.sync()

    @contextmanager
    def open_output(self, name: str) -> Iterator[BinaryIO]:
        """Open a file for writing in one go; it becomes visible when the block ends without an error."""
        with self._named_errors("write", name):
            target = self._path(name)
            if not self.is_local:
                stream = self._filesystem.open(target, "wb")
                try:
                    yield stream
                except BaseException:
                    stream.discard()
                    stream.closed = True  # closing would upload what was written so far
                    raise
                stream.close()
                return
            with _written_beside(Path(target), Path.replace) as stream:
                yield stream

    @retried
    def create_bytes(self, name: str, data: bytes) -> bytes:
        """Write a file unless there is one, and return what it holds now: ``data``, or an earlier writer's bytes.

        Exactly one of several writers wins on local disk (a hard link) and on S3 (a conditional request). Other object
        stores are asked whether the file exists before it is written; two writers at the same moment can both pass.
        """
        with self._named_errors("write", name):
            target = self._path(name)
            try:
                if self.is_local:
                    with _written_beside(Path(target), _link) as stream:
                        stream.write(data)
                else:
                    self._filesystem.pipe_file(target, data, mode="create")
            except OSError:
                # A link or request that was carried out and then repeated fails as well, as if another had won.
                if not self._filesystem.exists(target):
                    raise
                return bytes(self._filesystem.cat_file(target))
            return data

    def list_files(self, folder: str, suffix: str) -> list[str]:
        """Return the names of all files below a folder that end in ``suffix``, sorted; none if it is absent.

        Names that begin with a dot or an underscore, of files or of folders below ``folder``, are skipped.
        """
        return list(self._listing(folder, suffix))

    def sizes(self, folder: str, suffix: str) -> dict[str, int]:
        """Return the size in bytes of each file that ``list_files`` returns, from one listing."""
        return {name: int(entry["size"]) for name, entry in self._listing(folder, suffix).items()}

    @retried
    def modified_times(self, folder: str, suffix: str) -> dict[str, float]:
        """Return when each file that ``list_files`` returns was last written.

        Times are seconds since 1970 by the storage's clock.
        """
        listing = self._listing(folder, suffix)
        with self._named_errors("list", folder):
            return {name: self._modified_time(name, entry) for name, entry in listing.items()}

    def _modified_time(self, name: str, entry: dict[str, Any]) -> float:
        """Take the time from a listing: local disks and S3 put it there, others are asked file by file."""
        time = entry.get("mtime") or entry.get("LastModified") or self._filesystem.modified(self._path(name))
        return float(time) if isinstance(time, int | float) else float(time.timestamp())

    @retried
    def _listing(self, folder: str, suffix: str) -> dict[str, dict[str, Any]]:
        """Return what the file system says of each file that ``list_files`` describes, sorted by name."""
        with self._named_errors("list", folder):
            base = self._path(folder)
            found = self._filesystem.find(base, detail=True)
        listing = {}
        for path, entry in sorted(found.items()):
            inside = str(path).removeprefix(base).lstrip("/")
            if inside.endswith(suffix) and not any(part.startswith((".", "_")) for part in inside.split("/")):
                listing[f"{folder}/{inside}".lstrip("/")] = entry
        return listing

    @retried
    def list_folders(self, folder: str) -> list[str]:
        """Return the names of the visible folders directly in a folder, links to folders among them, sorted.

        There are none where the folder is absent.
        """
        with self._named_errors("list", folder):
            base = self._path(folder)
            if not self._filesystem.isdir(base):
                return []
            entries = [
                str(entry["name"]).rstrip("/")
                for entry in self._filesystem.ls(base, detail=True)
                if entry["type"] == "directory" or (entry.get("islink") and self._filesystem.isdir(entry["name"]))
            ]
        names = (entry.rpartition("/")[2] for entry in entries)
        return sorted(name for name in names if not name.startswith((".", "_")))

    @retried
    def remove(self, name: str) -> None:
        """Remove a file or a folder with all in it; nothing happens where there is none."""
        with self._named_errors("remove", name):
            path = self._path(name)
            if self._filesystem.exists(path):
                self._filesystem.rm(path, recursive=True)

    def remove_many(self, names: Iterable[str]) -> None:
        """Remove files, and on local disk the folders that are empty then; those that are not there are passed over."""
        for name in names:
            self.remove(name)
            if self.is_local:
                self._remove_empty_folders(Path(self._path(name)).parent)

    def _remove_empty_folders(self, folder: Path) -> None:
        root = Path(self._root)
        while folder != root and folder.is_relative_to(root):
            try:
                folder.rmdir()
            except OSError:  # not empty, or gone
                return
            folder = folder.parent

    @retried
    def is_empty(self) -> bool:
        """Return whether nothing lies in the root folder, or there is none."""
        with self._named_errors("list", ""):
            return not self._filesystem.exists(self._root) or not self._filesystem.ls(self._root, detail=False)

    @retried
    def move(self, source: str, target: str) -> None:
        """Give a file another name, which no other has. On an object store this is a copy and a removal."""
        with self._named_errors("write", target):
            if self.is_local:
                Path(self._path(target)).parent.mkdir(parents=True, exist_ok=True)
                Path(self._path(source)).replace(self._path(target))
            elif self._filesystem.exists(self._path(source)) or not self._filesystem.exists(self._path(target)):
                self._filesystem.mv(self._path(source), self._path(target))

    def remove_unfinished(self, folder: str) -> None:
        """Remove what killed writers left of files that never became visible, anywhere below a folder.

        A writer under way loses its file and fails. Object stores drop unfinished uploads by a rule of the bucket.
        """
        if self.is_local:
            with self._named_errors("remove", folder):
                for path in Path(self._path(folder)).rglob(f".*{UNFINISHED}"):
                    path.unlink(missing_ok=True)

    def make_folder(self, name: str) -> None:
        """Create a folder and its parents; object stores need none."""
        with self._named_errors("create", name):
            self._filesystem.makedirs(self._path(name), exist_ok=True)

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            StorageError: The folder cannot be created or written.

        """
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        with self._named_errors("write to", ""):
            try:
                self.write_bytes(probe, b"")
                self.remove(probe)
            except StorageError as error:
                raise error.__cause__ or error from None

    def check_creates_once(self) -> None:
        """Write a small file twice by ``create_bytes``, and remove it.

        Raises:
            StorageError: The folder cannot be written, or the store lets two writers create one file.

        """
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        unfit = StorageError(
            f"{self.describe()} lies on a store that ignores or lacks conditional writes (If-None-Match: *)",
            "two runs could overwrite each other there: use AWS S3, Cloudflare R2, MinIO of 2024 or later, or a disk",
        )
        with self._named_errors("write to", ""):
            try:
                self.create_bytes(probe, b"first")
                held = self.create_bytes(probe, b"second")
            except StorageError as error:
                if getattr(error.__cause__, "errno", None) == errno.ENOSYS:  # HTTP 501
                    raise unfit from None
                raise error.__cause__ or error from None
        self.remove(probe)
        if held != b"first":
            raise unfit

    def arrow_filesystem(self, folder: str) -> dict[str, Any]:
        """Return a folder as Ray's arguments ``storage_path`` and, for a URL, ``storage_filesystem``."""
        if self.is_local:
            return {"storage_path": self._path(folder)}
        return {
            "storage_path": self._path(folder),
            "storage_filesystem": pa.fs.PyFileSystem(pa.fs.FSSpecHandler(self._filesystem)),
        }

    @contextmanager
    def open_parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """Open a Parquet file for reading by row group; the checksums of its pages are compared.

        Raises:
            StorageError: It is missing, not a Parquet file, or damaged; also where the block that reads finds that out.

        """
        with (
            self._named_errors("read", name),
            self._named_damage(name),
            self._filesystem.open(self._path(name), "rb") as stream,
            pq.ParquetFile(stream, pre_buffer=not self.is_local, page_checksum_verification=True) as file,
        ):
            yield file

    @contextmanager
    def _named_damage(self, name: str) -> Iterator[None]:
        """Turn what Arrow says about a damaged file into one error that names it."""
        try:
            yield
        except StorageError:
            raise
        except (pa.ArrowException, ValueError) as error:
            raise damaged(self.describe(name), name, str(error)) from None
        except OSError as error:
            if type(error) is not OSError or error.errno is not None:
                raise  # of the file system, not of Arrow
            raise damaged(self.describe(name), name, str(error)) from None

    @retried
    def read_parquet(
        self,
        name: str,
        columns: Sequence[str] | None = None,
        row_group: int | None = None,
        *,
        optional: Collection[str] = (),
    ) -> pa.Table:
        """Return a Parquet file, or some of its columns, or one of its row groups.

        Args:
            name: Name of the file.
            columns: The only columns to read; None for all.
            row_group: The only row group to read; None for all.
            optional: Those of ``columns`` that files of earlier versions lack.

        Raises:
            StorageError: It is missing or damaged, or lacks a column.

        """
        wanted = None if columns is None else list(columns)
        with self.open_parquet(name) as file:
            if lacking := set(wanted or ()) - set(file.schema_arrow.names) - set(optional):
                raise damaged(self.describe(name), name, f"it has no column {', '.join(sorted(lacking))}")
            table = file.read(wanted) if row_group is None else file.read_row_group(row_group, wanted)
            table.validate(full=True)  # what a file without checksums may hide: text that is none
        return table


@contextmanager
def _written_beside(target: Path, publish: Callable[[Path, Path], object]) -> Iterator[BinaryIO]:
    """Open a hidden file in the folder of ``target``; once it is whole on the disk, ``publish(hidden, target)``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}"
    try:
        with hidden.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        publish(hidden, target)
        _sync_folder(target.parent)
    finally:
        hidden.unlink(missing_ok=True)


def _link(hidden: Path, target: Path) -> None:
    """Give a file its name unless another has it."""
    try:
        os.link(hidden, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        hidden.replace(target)  # a mount without hard links, mostly of an object store


def _sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut, in the order in which they were given."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
