"""Paths inside a dataset: what exists, what stays inside its folder, and small text files."""

import functools
import os
import re
from pathlib import Path

from handdata.adapters.reading.listing import links_in, open_file
from handdata.schemas.errors import RecordError, RejectReason
from handdata.schemas.record import HandRecord
from handdata.schemas.rejection import Rejection, printable, rejection

MAX_TEXT_BYTES = 2**22
"""The text files that are read whole (cameras, trajectories, lists of frames) have less than a tenth of this."""

_PLAIN_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
"""Relative paths that can be used as they are."""


def fenced(fence: "Fence", row: HandRecord | Rejection) -> HandRecord | Rejection:
    """Return a row, or the rejection of a record whose image, or mask named in ``extra``, lies beyond a link."""
    if isinstance(row, Rejection):
        return row
    beside = [value for value in (row.extra or {}).values() if isinstance(value, str)] if row.has_mask else []
    try:
        fence.check(row.image_uri, *(value for value in beside if value.startswith(f"{fence.root}/")))
    except RecordError as error:
        return rejection(row.record_id, row.image_uri, error)
    return row


class Fence:
    """Tells whether files lie below a dataset's root after links are followed; each folder is checked once.

    A link in an unpacked archive may lead anywhere: to the user's own images, which would end in a dataset. A link at
    the top of the root is one that the user made (readmes say so), and what lies where it leads belongs to the dataset.

    Args:
        root: Folder of the dataset.
        follow_links: Whether links anywhere below the root are followed.

    """

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        self.root = root
        self._follow_links = follow_links
        self._prefixes = _allowed_prefixes(root)
        self._inside = functools.lru_cache(maxsize=4096)(self._is_inside)

    def _is_inside(self, folder: str) -> bool:
        return f"{os.path.realpath(folder)}/".startswith(self._prefixes)

    def check(self, *paths: str) -> None:
        """Check files, or archives named as ``zip://<member>::<archive>``. Other URLs lead to no file of this machine.

        Raises:
            RecordError: ``path_escapes_root``; the detail names the file and where it leads.

        """
        if self._follow_links:
            return
        for path in paths:
            if path.startswith("zip://"):
                path = path.partition("::")[2]
            if "://" in path:
                continue
            folder = path.rpartition("/")[0]
            is_link = os.path.islink(path)  # noqa: PTH114  a Path costs more than the question
            if not self._inside(folder) or (is_link and not self._is_inside(path)):
                raise RecordError(
                    RejectReason.PATH_ESCAPES_ROOT,
                    f"{path} is reached by a link to {os.path.realpath(path)}, which is neither below {self.root} nor "
                    "below a link at its top: --follow-links follows it",
                )


def _allowed_prefixes(root: Path) -> tuple[str, ...]:
    """Return the beginnings of all real paths that belong to a dataset: its folder, and what its top links lead to.

    A link to the root's own parents opens nothing: all of the disk would belong to the dataset.
    """
    own = f"{os.path.realpath(root)}/"
    linked = [f"{os.path.realpath(link).rstrip('/')}/" for link in links_in(root)]
    return own, *(prefix for prefix in linked if not own.startswith(prefix))


def resolve_below(root: Path, relative: str) -> Path:
    """Return ``root / relative``, where ``relative`` is a path that a label names.

    Only the name is judged; ``Fence`` judges where links lead.

    Raises:
        RecordError: ``path_escapes_root``: the path is empty, absolute, leaves ``root`` through ``..``, or holds
            characters that no file name has.

    """
    return Path(path_below(root, relative))


def path_below(root: Path | str, relative: str) -> str:
    """Return what ``resolve_below`` returns, as text: a ``Path`` costs more than all else that a photograph needs.

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


def read_text(path: Path, most_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a small label file.

    Raises:
        RecordError: ``label_missing``, or ``label_corrupt``: it is not UTF-8, or larger than ``most_bytes``.

    """
    content = read_bytes(path, most_bytes)
    try:
        return content.decode("utf-8")
    except ValueError as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {error}") from None


def read_bytes(path: Path, most_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Return the content of a small label file.

    Raises:
        RecordError: ``label_missing``, or ``label_corrupt``: it is larger than ``most_bytes``, or no file.

    """
    try:
        with open_file(path) as stream:
            content = stream.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise ValueError(f"is larger than {most_bytes} bytes")
        return content
    except FileNotFoundError:
        raise RecordError(RejectReason.LABEL_MISSING, f"{path} does not exist") from None
    except ValueError as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {error}") from None
