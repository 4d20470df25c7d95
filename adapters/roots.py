"""Find a dataset's root in the folder that a user points at."""

from pathlib import Path

from handdata.adapters.base import Adapter
from handdata.adapters.registry import registered_adapters
from handdata.schemas import LayoutError, UsageError


def find_root(adapter: type[Adapter], path: Path) -> Path:
    """Return the dataset's root: ``path`` itself, or the one folder in it that has the source's layout.

    Users point at the folder that a download unpacks to, or at the folder that holds it; both are accepted.

    Raises:
        UsageError: ``path`` is not a folder.
        LayoutError: No layout of the source matches; the message says what was looked for and what is there.

    """
    if not path.is_dir():
        problem = "is a file, not a folder" if path.exists() else "does not exist"
        raise UsageError(
            f"the root {path} of source {adapter.card.name} {problem}",
            f"download it from {adapter.card.homepage} and pass --root, or set HANDDATA_SOURCES_ROOT",
        )
    root = _matching_folder(adapter, path)
    if root is not None:
        return root.resolve()
    looked_for = " or ".join(f"{' + '.join(layout.patterns)} ({layout.name})" for layout in adapter.layouts)
    found = sorted(child.name + ("/" if child.is_dir() else "") for child in path.iterdir())
    shown = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "") if found else "nothing"
    raise LayoutError(
        f"{path} does not look like {adapter.card.name}: looked for {looked_for}, found {shown}",
        _hint(adapter, path),
    )


def _matching_folder(adapter: type[Adapter], path: Path) -> Path | None:
    """Return ``path`` or the first folder in it that has one of an adapter's layouts."""
    folders = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
    return next(
        (folder for folder in folders if any(not layout.missing_from(folder) for layout in adapter.layouts)), None
    )


def _hint(adapter: type[Adapter], path: Path) -> str:
    """Return a hint that names the source that a folder does look like, if there is one."""
    for name, other in registered_adapters().items():
        if other is not adapter and _matching_folder(other, path) is not None:
            return f"it looks like {name}: `handdata ingest --source {name} --root {path}`"
    return f"`handdata sources {adapter.card.name}` describes the expected layout"
