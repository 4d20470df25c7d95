"""Commands for model files: ``weights list``, ``fetch`` and ``verify``."""

from typing import Annotated

import typer

from handdata.console import ProgressLine, out, print_table
from handdata.pipeline.settings import load_settings
from handdata.schemas import UsageError

weights_app = typer.Typer(no_args_is_help=True, help="List, fetch and verify model files.")


@weights_app.command("list", epilog="Example: handdata weights list")
def weights_list() -> None:
    """List the model files that handdata can use, and where they are on this machine."""
    from handdata.pipeline.weights import WEIGHTS, find_weights

    folder = load_settings().weights
    rows = [
        (file.name, file.purpose, f"{file.size_bytes / 1e6:,.0f} MB", str(find_weights(file.name, folder) or "-"))
        for file in WEIGHTS.values()
    ]
    print_table("Model files", rows, header=("name", "for", "size", "found at"))


@weights_app.command("fetch", epilog="Example: handdata weights fetch sam_vit_h")
def weights_fetch(
    name: Annotated[str, typer.Argument(help="Model file name, as listed by `handdata weights list`.")],
) -> None:
    """Download a model file and check its SHA-256; a file that is on this machine stays as it is."""
    from handdata.pipeline.weights import require_weights

    _check_name(name)
    with ProgressLine(f"Fetching {name}", None, "bytes") as progress:
        path = require_weights(name, load_settings().weights, lambda done, total: progress.set(done, total=total))
    out.print(f"{name}: {path}")


@weights_app.command("verify", epilog="Example: handdata weights verify")
def weights_verify() -> None:
    """Check the SHA-256 of every model file that is on this machine."""
    from handdata.pipeline.weights import WEIGHTS, find_weights, sha256_of

    folder = load_settings().weights
    broken = 0
    for file in WEIGHTS.values():
        path = find_weights(file.name, folder)
        if path is None:
            out.print(f"{file.name}: not on this machine")
            continue
        good = sha256_of(path) == file.sha256
        broken += not good
        out.print(f"{file.name}: {'ok' if good else 'NOT the published file'} ({path})")
    if broken:
        raise typer.Exit(1)


def _check_name(name: str) -> None:
    """Check that there is a model file of this name.

    Raises:
        UsageError: There is none.

    """
    from handdata.pipeline.weights import WEIGHTS

    if name not in WEIGHTS:
        raise UsageError(f"unknown model file {name!r}", f"there are {', '.join(WEIGHTS)}")
