"""Environments for other people's packages that are measured beside handdata, one each in the cache folder."""

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from handdata.pipeline.weights import cache_folder


def peer_python(name: str, requirements: Sequence[str]) -> Path:
    """Return the Python of a peer's environment; the first call installs the requirements from PyPI."""
    folder = cache_folder().parent / "peers" / name
    python, done = folder / "bin" / "python", folder / "requirements.txt"
    wanted = "\n".join(requirements)
    if not done.is_file() or done.read_text() != wanted:
        print(f"installing {wanted} into {folder} (once)", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
        done.write_text(wanted)
    return python
