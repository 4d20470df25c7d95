"""Commands for model files: ``weights list``, ``fetch`` and ``verify``."""

from typing import Annotated

import typer

from handdata.console import ProgressLine, out, print_table
from handdata.pipeline.settings import load_settings
from handdata.schemas import UsageError, WeightsError, known_names

weights_app = typer.Typer(no_args_is_help=True, help="List, fetch and verify model files.")


@weights_app.command("list", epilog="Example: handdata weights list")
def weights_list() -> None:
    """List the model files that handdata can use, their licences, and where they are on this machine."""
    from handdata.pipeline.weights import WEIGHTS, find_weights

    folder = load_settings().weights
    rows = [
        (
            file.name,
            file.purpose,
            "" if file.size_bytes is None else f"{file.size_bytes / 1e6:,.0f} MB",
            file.licence.split()[0],
            str(find_weights(file.name, folder) or "-"),
        )
        for file in WEIGHTS.values()
    ]
    print_table("Model files", rows, header=("name", "for", "size", "licence", "found at"))


@weights_app.command("fetch", epilog="Example: handdata weights fetch sam_vit_h")
def weights_fetch(
    name: Annotated[str, typer.Argument(help="Model file name, as listed by `handdata weights list`.")],
) -> None:
    """Download a model file and check it; interrupted, the same command continues.

    A file that is on this machine is checked, and stays as it is. Where only a browser can fetch it, the link, the
    file's name and the folder for it are printed.
    """
    from handdata.pipeline.weights import WEIGHTS, fault_of, find_weights, keep_licence, place_of, require_weights

    _check_name(name)
    file, folder = WEIGHTS[name], load_settings().weights
    found = find_weights(name, folder)
    if found is None:
        out.print(f"licence of {name}: {file.licence}")
        if file.by_hand:
            place = place_of(name, folder)
            keep_licence(file, place.parent)
            print_table(
                f"To be fetched with a browser: {name}",
                {"link": file.url, "file": place.name, "folder": str(place.parent)},
            )
            require_weights(name, folder)
        with ProgressLine(f"Fetching {name}", None, "bytes") as progress:
            found = require_weights(name, folder, progress.count)
    elif fault := fault_of(name, found):
        again = f"fetch it from {file.url} again" if file.by_hand else "call this again"
        raise WeightsError(f"{found} is not the file of {name}: {fault}", f"remove it, and {again}")
    out.print(f"{name}: {found}")


@weights_app.command("verify", epilog="Example: handdata weights verify")
def weights_verify() -> None:
    """Check every model file that is on this machine: its SHA-256, where one is published."""
    from handdata.pipeline.weights import WEIGHTS, fault_of, find_weights

    folder = load_settings().weights
    broken = 0
    for file in WEIGHTS.values():
        path = find_weights(file.name, folder)
        if path is None:
            out.print(f"{file.name}: not on this machine")
            continue
        fault = fault_of(file.name, path)
        broken += fault is not None
        known = "ok" if file.sha256 or file.repository else "ok, as far as can be told: no SHA-256 is published"
        out.print(f"{file.name}: {known if fault is None else 'NOT the published file, ' + fault} ({path})")
    if broken:
        raise typer.Exit(1)


def _check_name(name: str) -> None:
    """Check that there is a model file of this name.

    Raises:
        UsageError: There is none.

    """
    from handdata.pipeline.weights import WEIGHTS

    if name not in WEIGHTS:
        raise UsageError(f"unknown model file {name!r}", known_names(name, WEIGHTS))
