"""What to do about a file of a workspace that is damaged or gone, and the one reader of its small JSON files."""

import re
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from handdata.schemas import GENERATED, StorageError

Document = TypeVar("Document")

_INGEST: Final = "run `handdata ingest --source {source}` again"
_ANNOTATE: Final = "`handdata annotate{option}"

_ADVICE: Final = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (r"records/source=(?P<source>[^/]+)/", _INGEST),
        (r"rejected/ingest/source=(?P<source>[^/]+)/", _INGEST),
        (
            r"dropped/source=(?P<source>[^/]+)/",
            "it keeps dropped records out: restore it from a backup; or move it away, run `handdata ingest --source "
            "{source}`, and repeat the `handdata drop` that wrote it",
        ),
        (r"(?P<dataset>[^/]+)/plan/lease\.json$", "run the same command again: it takes the dataset over"),
        (
            r"(?P<dataset>[^/]+)/plan/source=(?P<source>[^/]+)/",
            "restore it from a backup, or remove the folders {dataset}/plan/source={source} and "
            f"{{dataset}}/units/source={{source}}: {_ANNOTATE}` does the source again",
        ),
        (r"(?P<dataset>[^/]+)/units/source=", f"remove it: {_ANNOTATE}` does its unit again"),
        (
            r"(?P<dataset>[^/]+)/dataset\.json$",
            f"remove it: {_ANNOTATE}` with the options of before writes it again",
        ),
        (r"(?P<dataset>[^/]+)/data/source=", f"remove it: {_ANNOTATE} --repair` does its unit again"),
        (r"rejected/annotate(-(?P<dataset>[^/]+))?/source=", f"remove it: {_ANNOTATE} --repair` does its unit again"),
        (
            r"(?P<dataset>[^/]+)/latents/[^/]+/latents\.json$",
            "remove its folder: `handdata encode` makes the latents again",
        ),
        (r"(?P<dataset>[^/]+)/latents/", "remove it: `handdata encode` makes it again"),
        (r"runs/[^/]+/metrics\.jsonl$", "remove the damaged lines, or the file: it holds the run's curves alone"),
    )
)
"""Advice for the files of a workspace, by their names; ``storage.layout`` says what each of them is."""


_READERS: Final[dict[Any, TypeAdapter[Any]]] = {}


def advice(name: str, *, gone: bool = False) -> str:
    """Return what to do about a file of a workspace that cannot be read; empty where nothing general is true.

    Args:
        name: Name of the file, relative to the workspace.
        gone: Whether it is missing, so that it need not be removed.

    """
    for pattern, text in _ADVICE:
        if found := pattern.match(name):
            parts = found.groupdict()
            dataset = parts.get("dataset")
            option = f" --dataset {dataset}" if dataset not in (None, "dataset") else ""
            text = text.removeprefix("remove it: ") if gone else text
            if f"/source={GENERATED}/" in name:
                text = text.replace("`handdata annotate", "`handdata sample domain-transfer")
            return text.format(**parts, option=option)
    return ""


def damaged(where: str, name: str, why: str) -> StorageError:
    """Return the error for a file that does not hold what handdata wrote.

    Args:
        where: Full path or URL of the file.
        name: Name of the file, relative to the workspace.
        why: What is wrong with it.

    """
    return StorageError(f"{where} is damaged: {' '.join(why.split())}", advice(name))


def parse_document(data: bytes, form: type[Document], where: str, name: str) -> Document:
    """Return what a small JSON file holds.

    Args:
        data: Content of the file.
        form: What it must hold: a pydantic model or a dataclass.
        where: Full path or URL of the file.
        name: Name of the file, relative to the workspace.

    Raises:
        StorageError: The file is empty, cut off, not UTF-8, or holds something else.

    """
    try:
        parsed: Document = _reader(form).validate_json(data)
    except ValidationError as error:
        if not data.strip():
            raise damaged(where, name, "it is empty") from None
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise damaged(where, name, f"{place}: {first['msg']}" if place else first["msg"]) from None
    return parsed


def parse_curves(data: bytes, where: str, name: str) -> list[dict[str, int | float]]:
    """Return the rows of a training run's ``metrics.jsonl``: numbers by name, ``step`` among them.

    Args:
        data: Content of the file.
        where: Full path or URL of the file.
        name: Name of the file, relative to the workspace.

    Raises:
        StorageError: A line is cut off, not UTF-8, or holds something else.

    """
    rows = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            row = _reader(dict[str, int | float]).validate_json(line)
        except ValidationError as error:
            raise damaged(where, name, f"line {number}: {error.errors(include_url=False)[0]['msg']}") from None
        if not isinstance(row.get("step"), int):
            raise damaged(where, name, f"line {number} has no step")
        rows.append(row)
    return rows


def _reader(form: Any) -> TypeAdapter[Any]:
    """Return what reads a form; it is made once."""
    if form not in _READERS:
        _READERS[form] = TypeAdapter(form)
    return _READERS[form]
