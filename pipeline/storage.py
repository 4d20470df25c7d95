"""A workspace folder at a local path or any fsspec URL, with whole-file atomic writes.

On local disk a file is written under a hidden temporary name and renamed; on an object store an upload becomes visible
when it is complete. A reader never sees half a file on either.
"""

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from handdata.schemas import StorageError


class Storage:
    """A root folder; all names below are POSIX paths relative to it. Cheap to pickle: it travels to Ray workers."""

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        self.url = text if "://" in text else str(Path(text).expanduser().absolute())

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self.url,)

    @cached_property
    def _filesystem(self) -> Any:
        with self._named_errors("open", ""):
            filesystem, _ = fsspec.core.url_to_fs(self.url)
            return filesystem

    @cached_property
    def _root(self) -> str:
        return str(self._filesystem._strip_protocol(self.url)).rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether the root lies on a file system of this machine."""
        return isinstance(self._filesystem, LocalFileSystem)

    def describe(self, name: str = "") -> str:
        """Return the full path or URL of a name, for messages."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _named_errors(self, verb: str, name: str) -> Iterator[None]:
        """Turn the many errors of file systems into one that names the file."""
        try:
            yield
        except ImportError as error:
            raise StorageError(f"cannot {verb} {self.describe(name)}: {error}", 'pip install "handdata[s3]"') from None
        except ValueError as error:  # fsspec: unknown protocol
            raise StorageError(f"cannot {verb} {self.describe(name)}: {error}") from None
        except Exception as error:
            if isinstance(error, OSError) or type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
                reason = getattr(error, "strerror", None) or str(error)
                raise StorageError(
                    f"cannot {verb} {self.describe(name)}: {reason}",
                    "choose another place with --workspace or HANDDATA_WORKSPACE, or check its permissions",
                ) from error
            raise

    def exists(self, name: str) -> bool:
        """Return whether a file or folder is there."""
        with self._named_errors("read", name):
            return bool(self._filesystem.exists(self._path(name)))

    def read_bytes(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            StorageError: it is missing or unreadable.

        """
        with self._named_errors("read", name):
            return bytes(self._filesystem.cat_file(self._path(name)))

    def read_many(self, names: Sequence[str]) -> list[bytes]:
        """Return the contents of many small files, at once where the file system can."""
        if not names:
            return []
        with self._named_errors("read", names[0]):
            contents = self._filesystem.cat([self._path(name) for name in names])
        if len(names) == 1 and isinstance(contents, bytes):
            return [contents]
        return [contents[self._path(name)] for name in names]

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file so that readers see all of it or nothing."""
        with self.open_output(name) as stream:
            stream.write(data)

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
            folder, _, base = target.rpartition("/")
            Path(folder).mkdir(parents=True, exist_ok=True)
            temporary = Path(folder, f".{base}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                with temporary.open("wb") as stream:
                    yield stream
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)

    def list_files(self, folder: str, suffix: str) -> list[str]:
        """Return the names of all files below a folder that end in ``suffix``, sorted; none if it is absent.

        Names that begin with a dot or an underscore, of files or of folders below ``folder``, are left out.
        """
        with self._named_errors("list", folder):
            base = self._path(folder)
            self._filesystem.invalidate_cache()
            found = self._filesystem.find(base)
        inside = (path.removeprefix(base).lstrip("/") for path in map(str, found))
        return sorted(
            f"{folder}/{name}".lstrip("/")
            for name in inside
            if name.endswith(suffix) and not any(part.startswith((".", "_")) for part in name.split("/"))
        )

    def list_folders(self, folder: str) -> list[str]:
        """Return the names of the visible folders directly in a folder, sorted; none if it is absent."""
        with self._named_errors("list", folder):
            base = self._path(folder)
            self._filesystem.invalidate_cache()
            if not self._filesystem.isdir(base):
                return []
            entries = self._filesystem.ls(base, detail=True)
        names = (str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")
        return sorted(name for name in names if not name.startswith((".", "_")))

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all in it; nothing happens where there is none."""
        with self._named_errors("remove", name):
            path = self._path(name)
            if self._filesystem.exists(path):
                self._filesystem.rm(path, recursive=True)

    def replace_folder(self, staged: str, final: str) -> None:
        """Put a staged folder in the place of ``final``, so that readers never see both contents at once.

        On local disk these are two renames. An object store has no rename: the old files go first, then the new ones
        come, and a reader in between finds fewer files, never doubled ones.
        """
        with self._named_errors("replace", final):
            source, target = self._path(staged), self._path(final)
            if self.is_local:
                discarded = Path(f"{Path(source).parent}/discarded-{uuid.uuid4().hex[:8]}")
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                if Path(target).exists():
                    Path(target).rename(discarded)
                Path(source).rename(target)
                if discarded.exists():
                    self._filesystem.rm(str(discarded), recursive=True)
                return
            self.remove(final)
            for path in sorted(self._filesystem.find(source)):
                self._filesystem.mv(path, target + path.removeprefix(source))

    def make_folder(self, name: str) -> None:
        """Create a folder and its parents; object stores need none."""
        with self._named_errors("create", name):
            self._filesystem.makedirs(self._path(name), exist_ok=True)

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            StorageError: the folder cannot be created or written.

        """
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        with self._named_errors("write to", ""):
            try:
                self.write_bytes(probe, b"")
                self.remove(probe)
            except StorageError as error:
                raise error.__cause__ or error from None

    def arrow_place(self, folder: str) -> dict[str, Any]:
        """Return a folder as Ray takes places: ``storage_path`` and, for a URL, ``storage_filesystem``."""
        if self.is_local:
            return {"storage_path": self._path(folder)}
        return {
            "storage_path": self._path(folder),
            "storage_filesystem": pa.fs.PyFileSystem(pa.fs.FSSpecHandler(self._filesystem)),
        }

    def open_parquet(self, name: str) -> pq.ParquetFile:
        """Open a Parquet file for reading by row group.

        Raises:
            StorageError: it is missing or not a Parquet file.

        """
        with self._named_errors("read", name):
            return pq.ParquetFile(self._filesystem.open(self._path(name), "rb"), pre_buffer=not self.is_local)

    def read_parquet(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """Return a whole Parquet file, or some of its columns."""
        with self.open_parquet(name) as file:
            return file.read(columns)


def table_to_parquet(table: pa.Table, row_group_rows: list[int] | int) -> bytes:
    """Return a table as the bytes of a Parquet file.

    Args:
        table: the rows.
        row_group_rows: rows of each row group in turn, or the most rows of any.

    """
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd", use_dictionary=_dictionary_columns(table)) as writer:
        if isinstance(row_group_rows, int):
            writer.write_table(table, row_group_size=row_group_rows)
        else:
            start = 0
            for rows in row_group_rows:
                writer.write_table(table.slice(start, rows), row_group_size=rows)
                start += rows
    return bytes(sink.getvalue().to_pybytes())


def _dictionary_columns(table: pa.Table) -> list[str]:
    """Return the text columns: pictures and coordinates hardly repeat, and trying costs time and memory."""
    return [field.name for field in table.schema if pa.types.is_string(field.type)]
