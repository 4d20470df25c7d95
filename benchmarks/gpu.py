"""What handdata does on a GPU that is lent for minutes: a check of its speed, and a learning run by the clock.

    python benchmarks/gpu.py wheels DIR [--without-polars]
    python benchmarks/gpu.py check --out DIR [--seconds 60] [--peer CHECKOUT] [--only PART ...]
    python benchmarks/gpu.py learn --out DIR [--seconds 420] [--resume WEIGHTS ...]
    python benchmarks/gpu.py join WEIGHTS ... --out FILE

``check`` and ``learn`` are for a bare machine: CUDA, Python 3.12 with torch, numpy, scipy, OpenCV, timm, torchmetrics,
pyarrow and fsspec, no network. What is missing there is downloaded here by ``wheels``, travels in DIR, and is installed
by the same command that uses it:

    python3 -m pip install -q --no-index --no-deps --find-links DIR --target /tmp/site DIR/*.whl
    PYTHONPATH=/tmp/site:. python3 benchmarks/gpu.py check --out OUT

``check`` runs each of its parts in a process. All prepare at the same time, since compilation takes processors and not
the GPU; then they measure one after the other. What is not ready in time, fails or hangs ends as one line of the table,
and stops nothing else. ``learn`` renders hands by all processors but two while it trains on them, anneals by the clock,
and leaves weights in float16, scores, a picture and the loss: seven files, none above 16 MiB. ``join`` makes of the
weights a checkpoint that ``handdata sample --checkpoint FILE`` opens. ``--smallest`` tries both on a CPU.
README.md beside this file has the plan for a machine that is lent for 15 minutes.
"""

import argparse
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Final

WHEELS: Final = (
    *("pydantic", "pydantic-core", "annotated-types", "typing-extensions", "typing-inspection"),
    *("segment-anything", "simplejpeg", "pydantic-settings", "python-dotenv"),
    *("polars", "polars-runtime-32"),
)
"""Packages that the machine lacks, in the versions of this environment. ``learn`` needs the first line, SAM and the
loader the second, the loader the third."""
_PLATFORMS = [f"manylinux{name}_x86_64" for name in ("_2_28", "_2_27", "_2_17", "2014", "1")]
_TRAVELS_MIB = 64


def main() -> int:
    """Run the chosen command and return its exit code."""
    began = time.monotonic()  # before torch is loaded, which takes seconds, too
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", metavar="wheels | check | learn | join")
    wheels = commands.add_parser("wheels", help="download, here, what the machine lacks")
    wheels.add_argument("folder", type=Path)
    wheels.add_argument("--without-polars", action="store_true", help="leave room for weights to resume from")
    for name, seconds, text in (("check", 60, "check and time each part"), ("learn", 420, "train by the clock")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--out", type=Path, required=True, help="folder of the results")
        command.add_argument("--seconds", type=float, default=seconds, help="time in all (%(default)g)")
        command.add_argument("--smallest", action="store_true", help="a tiny network, to try the command on a CPU")
    check_command, learn_command = commands.choices["check"], commands.choices["learn"]
    check_command.add_argument("--peer", type=Path, help="checkout of the published FoundHand, to be timed beside")
    check_command.add_argument("--peak", type=float, metavar="TFLOPS", help="bfloat16 peak; known for common GPUs")
    check_command.add_argument("--only", nargs="+", metavar="PART", help="only these parts")
    learn_command.add_argument("--resume", type=Path, nargs="+", metavar="WEIGHTS", help="weights to start from")
    learn_command.add_argument("--seed", type=int, default=0, help="another one renders other people (%(default)s)")
    join_command = commands.add_parser("join", help="make a checkpoint of the weights that `learn` has left")
    join_command.add_argument("weights", type=Path, nargs="+")
    join_command.add_argument("--out", type=Path, required=True, help="file to write, ending in .safetensors")
    options = parser.parse_args()
    if options.command == "wheels":
        download_wheels(options.folder, options.without_polars)
    elif options.command == "check":
        from gpu_check import CheckOptions, check  # here, as below: processes load this file, and need no torch for it

        told = CheckOptions(options.smallest, options.peer, options.peak)
        return check(told, options.out, began, options.seconds, options.only)
    elif options.command == "learn":
        from gpu_learn import learn

        learn(options.out, began, options.seconds, options.resume, options.smallest, options.seed)
    elif options.command == "join":
        from gpu_learn import write_joined

        write_joined(options.weights, options.out)
    else:  # `make bench` runs all scripts
        print("name a command: wheels, check, learn or join")
    return 0


def download_wheels(folder: Path, without_polars: bool) -> None:
    """Download the wheels for the machine's Python into an empty folder."""
    if any(folder.glob("*.whl")):
        raise SystemExit(f"{folder} holds wheels already: two versions of one stop pip; name an empty folder")
    names = [name for name in WHEELS if not (without_polars and name.startswith("polars"))]
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    target = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *platforms]
    pinned = [f"{name}=={version(name)}" for name in names]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *target, "-d", str(folder), *pinned]
    subprocess.run(command, check=True)
    total = sum(file.stat().st_size for file in folder.glob("*.whl")) / 2**20
    print(f"{len(names)} wheels, {total:.1f} MiB of the {_TRAVELS_MIB} that may travel with the working tree")


if __name__ == "__main__":
    sys.exit(main())
