"""``handdata demo``: the whole pipeline on the synthetic source, as the same commands that a user types."""

import shutil
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from handdata.schemas import UsageError

_MARKER = "handdata-demo"
"""File in the demo's folder which says that its content may be replaced."""


def demo_commands(folder: Path) -> list[list[str]]:
    """Return the commands of the pipeline, in order, with all outputs below ``folder``."""
    source, workspace = folder / "synthetic", folder / "workspace"
    grid = folder / "gesture-transfer.png"
    here = ["--workspace", str(workspace)]
    lines = f"""
        synth --out {source} --identities 48 --sequences 144 --frames 8 --fps 5 --cameras 1 --size 128
        ingest --source synthetic --root {source}
        annotate --masks grabcut --image-size 128 --crop stable
        train --preset carried-64 --run demo
        sample gesture-transfer --run demo --n 6 --out {grid}
        report --run demo --generated {grid} --out {folder}
    """
    commands = [line.split() for line in lines.strip().splitlines()]
    return [command if command[0] == "synth" else command + here for command in commands]


def require_packages() -> None:
    """Raise where a package is not installed that a command of the demo needs, before minutes are spent on the others.

    Raises:
        ModuleNotFoundError: It names the package.

    """
    for name in ("ray", "mediapipe", "torch", "torchmetrics", "safetensors", "tensorboard"):
        import_module(name)


def run_demo(folder: Path, run_command: Callable[[Sequence[str]], None], say: Callable[[str], None]) -> Path:
    """Run the pipeline from scratch and return the path of its page.

    Args:
        folder: New or empty folder, or a former demo's.
        run_command: Runs one ``handdata`` command line.
        say: Prints a line for the user.

    Raises:
        UsageError: ``folder`` holds something else.

    """
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).exists():
        raise UsageError(f"{folder} is not empty and no former demo's", "choose another folder with --out")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / _MARKER).write_text("This folder is replaced by the next `handdata demo`.\n")
    started = time.monotonic()
    for number, command in enumerate(commands := demo_commands(folder), start=1):
        say(f"\n[{number}/{len(commands)}] handdata {' '.join(command)}")
        run_command(command)
    page = folder / "report.html"
    say(f"\nThe whole pipeline took {time.monotonic() - started:.0f} s. Open {page.absolute()}")
    return page
