"""Find a dataset's root in the folder that a user points at."""

import os
from pathlib import Path

from handdata.adapters.base import Adapter, Layout
from handdata.adapters.reading.listing import exists, is_file, names_in
from handdata.adapters.registry import registered_adapters
from handdata.schemas import DatasetReadError, LayoutError, UsageError
from handdata.schemas.rejection import in_one_line, printable


def find_root(adapter: type[Adapter], path: Path) -> Path:
    """Return the dataset's root: ``path`` itself, or the one folder in it that has the source's layout.

    Users point at the folder that a download unpacks to, or at the folder that holds it; both are accepted.

    Raises:
        UsageError: ``path`` is not a folder, or its name is no text.
        LayoutError: No layout of the source matches; the message says what was looked for and what is there. Or
            several folders match, or several layouts that hold the same part of the dataset: they are named.
        DatasetReadError: Nothing matches, and a folder cannot be read.

    """
    if is_file(path) or not exists(path):
        problem = "is a file, not a folder" if exists(path) else "does not exist"
        raise UsageError(
            f"the root {path} of source {adapter.card.name} {problem}",
            "pass its folder as --root"
            if not adapter.card.homepage
            else f"run `handdata synth --out {path}`, or pass --root"
            if adapter.card.name == "synthetic"
            else f"download it from {adapter.card.homepage} and pass --root, or set HANDDATA_SOURCES_ROOT",
        )
    roots = _matching_folders(adapter, path)
    if len(roots) > 1:
        raise LayoutError(
            f"{path} holds {adapter.card.name} more than once: {', '.join(root.name for root in roots)}",
            f"choose one of them: --root {roots[0]}",
        )
    if roots:
        _refuse_rival_layouts(adapter, roots[0])
        root = roots[0].resolve()
        _require_text(root)
        return root
    looked_for = " or ".join(f"{' + '.join(layout.patterns)} ({layout.name})" for layout in adapter.layouts)
    found = names_in(path)
    shown = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "") if found else "nothing"
    raise LayoutError(
        f"{path} does not look like {adapter.card.name}: looked for {looked_for}, found {shown}",
        _hint(adapter, path),
    )


def _require_text(folder: Path) -> None:
    """Raise where the path of a root cannot be stored: file systems allow bytes that are no UTF-8.

    Raises:
        UsageError: It names the folder with escapes.

    """
    name = str(folder)
    if printable(name) != name:
        raise UsageError(f"the root {in_one_line(name)} has a name that is no text in UTF-8", "rename the folder")


def _matching_folders(adapter: type[Adapter], path: Path) -> list[Path]:
    """Return ``path`` where it has one of an adapter's layouts, and else all folders in it that have one.

    Raises:
        DatasetReadError: Nothing matches, and a folder cannot be read.

    """
    unreadable: DatasetReadError | None = None
    found: dict[str, Path] = {}
    for folder in (path, *(path / name for name in names_in(path) if name.endswith("/"))):
        try:
            if _layouts_of(adapter, folder):
                found.setdefault(os.path.realpath(folder), folder)
        except DatasetReadError as error:  # it may be another's folder, beside the dataset
            unreadable = unreadable or error
        if folder == path and found:
            break
    if unreadable is not None and not found:
        raise unreadable
    return list(found.values())


def _layouts_of(adapter: type[Adapter], folder: Path) -> list[Layout]:
    """Return the layouts of an adapter that a folder has.

    Raises:
        DatasetReadError: It has none that could be read; where it has one, the adapter meets what cannot be read.

    """
    unreadable: DatasetReadError | None = None
    found = []
    for layout in adapter.layouts:
        try:
            if not layout.missing_from(folder):
                found.append(layout)
        except DatasetReadError as error:
            unreadable = unreadable or error
    if unreadable is not None and not found:
        raise unreadable
    return found


def _refuse_rival_layouts(adapter: type[Adapter], root: Path) -> None:
    """Raise where several layouts hold the same part of a dataset.

    Raises:
        LayoutError: It names them.

    """
    first: dict[str, Layout] = {}
    for layout in _layouts_of(adapter, root):
        rival = first.setdefault(layout.part, layout) if layout.part else layout
        if rival is not layout:
            places = " and ".join(f"{' + '.join(one.patterns)} ({one.name})" for one in (rival, layout))
            raise LayoutError(
                f"{root} holds {layout.part} of {adapter.card.name} in two layouts: {places}",
                "pass the folder of one of them as --root, or move the other away",
            )


def release_of(adapter: type[Adapter], root: Path) -> str | None:
    """Return the release of the dataset at a root, as its layout tells; None where that does not."""
    releases = {layout.release for layout in _layouts_of(adapter, root) if layout.release}
    return ", ".join(sorted(releases)) or None


def _hint(adapter: type[Adapter], path: Path) -> str:
    """Return a hint that names the source that a folder does look like, if there is one."""
    for name, other in registered_adapters().items():
        try:
            typical = all(layout.is_typical for layout in other.layouts)
            if other is not adapter and typical and _matching_folders(other, path):
                return f"it looks like {name}: `handdata ingest --source {name} --root {path}`"
        except DatasetReadError:
            continue
    return f"`handdata sources {adapter.card.name}` describes the expected layout"
