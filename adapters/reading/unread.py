"""What of a dataset's folder was not read, though it may belong to the dataset: a misspelt name loses nothing unseen.

Parts of datasets may be absent, so an adapter passes over a folder that is not there. Where it lies beside, under a
name in another case, with a typo, a folder deeper or still packed, or where the labels of images are what is absent,
records would be lost without a word. So ``listing`` notes what was looked into, and here the rest is found.
"""

import os
import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Final

from handdata.adapters.reading.listing import ARCHIVE_SUFFIXES, Visits, names_in
from handdata.schemas.errors import DatasetReadError

_SHOWN: Final = 8
_DOCUMENT: Final = re.compile(
    r"(?:readme|licen[cs]e|copying|citation|changelog|notice)(?:[._-].*)?"
    r"|.*\.(?:md|rst|pdf|docx?|html?|py|ipynb|sh|bib|md5|sha\d+)",
    re.IGNORECASE,
)
"""Files for people and programs that lie beside datasets, none of which is data: a folder of them is no part of one."""
_ALIKE: Final = 0.9
"""Share of two names that is the same where one is a misspelling of the other."""


def unread_parts(root: Path, visits: Visits, unused: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a line for what was not read: folders that hold files, archives, and files with nearly the right name.

    Args:
        root: Folder of the dataset.
        visits: Where it was looked into.
        unused: Patterns, relative to the root, of what the dataset ships and handdata has no use for.

    """
    top = os.fspath(root)
    unread = [path for path in sorted(_unread(top, visits)) if not _is_unused(path[len(top) + 1 :], unused)]
    if unread:
        yield f"nothing of these was read, and they may belong to the dataset: {_listed(top, unread)}"
    near = sorted({found for path in visits.absent for found in _near_misses(path, visits)})
    if near:
        yield f"these have nearly the name of a file that is looked for, and were not read: {_listed(top, near)}"


def _listed(top: str, paths: list[str]) -> str:
    shown = ", ".join(path[len(top) + 1 :] for path in paths[:_SHOWN])
    return f"{shown} and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else shown


def _is_unused(relative: str, unused: tuple[str, ...]) -> bool:
    return any(fnmatchcase(relative, pattern) for pattern in unused)


def _unread(top: str, visits: Visits) -> Iterator[str]:
    """Yield the folders and archives of which nothing was read, the topmost ones.

    Folders of files, which may hold millions, are not listed for it: their own folders are known where they were.
    """
    used = _with_parents(top, visits.folders)
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        inside = visits.inside.get(folder, [])
        if not inside and (folder == top or folder not in visits.folders):
            names = names_in(folder)
            inside = [
                f"{folder}/{name.rstrip('/')}" for name in names if name.lower().endswith(("/", *ARCHIVE_SUFFIXES))
            ]
        if folder == top:  # where people keep what they downloaded
            inside = [path for path in inside if not path.lower().endswith(ARCHIVE_SUFFIXES)]
        for path in inside:
            if path in used:
                waiting.append(path)
            elif path not in visits.archives and _holds_file(path, used):
                yield path


def _with_parents(top: str, folders: set[str]) -> set[str]:
    used: set[str] = set()
    for folder in folders:
        while folder not in used and folder.startswith(top):
            used.add(folder)
            folder = folder.rpartition("/")[0]
    return used


def _holds_file(path: str, used: set[str]) -> bool:
    """Return whether a path is a file, or a folder with one in it that is no document.

    A link to what was read elsewhere is nothing new.
    """
    if os.path.realpath(path) in used:
        return False
    try:
        names = names_in(path)
    except DatasetReadError:
        return True  # a file, or a folder of which nobody knows
    return any(
        _holds_file(f"{path}/{name[:-1]}", used) if name.endswith("/") else _DOCUMENT.fullmatch(name) is None
        for name in names
    )


def _near_misses(path: str, visits: Visits) -> Iterator[str]:
    """Yield the files beside a path that is not there which are named nearly like it, and were not looked for."""
    folder, _, wanted = path.rpartition("/")
    for name in _files_by_digits(folder).get(_digits(wanted), ()):
        found = f"{folder}/{name}"
        if found not in visits.present and _is_nearly(wanted, name):
            yield found


@lru_cache(maxsize=256)
def _files_by_digits(folder: str) -> dict[str, list[str]]:
    """Return the files of a folder by the digits of their names, which tell frames apart."""
    found: dict[str, list[str]] = {}
    try:
        for name in names_in(folder):
            if not name.endswith("/"):
                found.setdefault(_digits(name), []).append(name)
    except DatasetReadError:
        return {}
    return found


def _digits(name: str) -> str:
    return re.sub(r"[^0-9]", "", name)


def _is_nearly(wanted: str, name: str) -> bool:
    first, second = (re.sub(r"[^a-z0-9]", "", text.casefold()) for text in (wanted, name))
    return SequenceMatcher(None, first, second).ratio() >= _ALIKE
