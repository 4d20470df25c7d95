"""Whatever file of a workspace is damaged, and however: each command ends in one line, or does its work."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path

import pytest

from handdata.adapters.synthetic import SyntheticAdapter
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.run.annotate import annotate
from handdata.pipeline.run.request import AnnotateRequest
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards.settle import drop
from handdata.pipeline.storage import Dataset, Storage
from tests.fixtures.commands import CommandResult

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "halved": lambda data: data[: len(data) // 2],
    "a byte short": lambda data: data[:-1],
    "not UTF-8": lambda data: b"\xff\xfe" + data[2:-2] + b"\xff\xfe",
    "a list": lambda data: b"[]\n",
    "a number": lambda data: b"7\n",
    "another document": lambda data: b'{"name": "another"}\n',
    "flipped": lambda data: bytes(byte ^ (7 if place % 97 == 50 else 0) for place, byte in enumerate(data)),
}

FILES = {
    "marker": "dataset/units/*/*.json",
    "generation": "dataset/plan/*/*.json",
    "planned records": "dataset/plan/*/*.parquet",
    "lease": "dataset/plan/lease.json",
    "manifest": "dataset/dataset.json",
    "ingest summary": "records/*/_ingest.json",
    "records": "records/*/*.parquet",
    "rejected by ingest": "rejected/ingest/*/*.parquet",
    "tombstone": "dropped/*/*.json",
    "shard": "dataset/data/*/*/*.parquet",
    "settings of latents": "dataset/latents/*/latents.json",
    "latents": "dataset/latents/*/*/*/*.parquet",
    "settings of a run": "runs/first/settings.json",
    "curves of a run": "runs/first/metrics.jsonl",
    "marker of a checkpoint": "runs/first/checkpoints/*/*.json",
}

ANNOTATE = ("annotate", "--masks", "dataset", "--image-size", "64")
COMMANDS = {
    "status": ("status",),
    "annotate": ANNOTATE,
    "flag": ("flag", "--min-hand-px", "30"),
    "drop --dry-run": ("drop", "-s", "synthetic", "--sequence", "SEQUENCE", "--dry-run"),
    "report": ("report", "--run", "first", "--out", "OUT"),
    "repair": (*ANNOTATE, "--repair"),
    "drop": ("drop", "-s", "synthetic", "--sequence", "SEQUENCE"),
    "ingest": ("ingest", "-s", "synthetic", "--root", "ROOT"),
    "encode": ("encode", "--preset", "tiny"),
    "train": ("train", "--preset", "tiny", "--run", "second", "--steps", "1"),
    "resume": ("train", "--preset", "tiny", "--run", "first", "--resume", "--steps", "2"),
}
CHEAP = ("status", "annotate", "flag", "drop --dry-run", "report")
"""Commands that take less than a second and start nothing."""

READERS = {
    "marker": {"status", "annotate", "repair", "flag", "drop", "report", "encode", "train"},
    "generation": {"status", "annotate", "repair", "flag", "drop"},
    "planned records": {"annotate", "drop"},
    "manifest": {"status", "annotate", "flag", "drop", "report", "encode", "train"},
    "ingest summary": {"annotate", "drop", "drop --dry-run"},
    "records": {"annotate", "drop", "drop --dry-run"},
    "tombstone": {"status", "annotate", "flag", "drop", "drop --dry-run", "ingest"},
    "shard": {"annotate", "flag", "drop", "report", "train"},  # it was encoded before
    "settings of latents": {"encode"},
    "curves of a run": {"report", "resume"},
}
"""Commands that cannot do their work without the file, so that they must name it."""


@pytest.fixture(scope="module")
def sound(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A workspace with records, one of which was rejected, a dataset, a tombstone and the curves of a run."""
    folder = tmp_path_factory.mktemp("sound")
    root = Path(shutil.copytree(synthetic_root, folder / "root"))
    next(root.rglob("000002.jpg")).unlink()
    storage = Storage(folder / "w")
    ingest(SyntheticAdapter, root, storage)
    annotate(AnnotateRequest(Dataset(storage)), AnnotateSettings(masks="dataset", image_size=64))
    drop(storage, "sequence", [sequences(folder / "w")[0]], "synthetic")
    storage.write_bytes("runs/first/metrics.jsonl", b'{"step": 1, "loss": 1.5}\n')
    return folder / "w"


@pytest.fixture(scope="module")
def trained(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with latents, and with a training run."""
    from handdata.app import app

    workspace = Path(shutil.copytree(sound.parent, tmp_path_factory.mktemp("trained") / "sound")) / "w"
    shutil.rmtree(workspace / "runs")
    for command in (COMMANDS["encode"], ("train", "--preset", "tiny", "--run", "first", "--steps", "1")):
        app([*command, "-w", str(workspace)], standalone_mode=False)
    return workspace


def sequences(workspace: Path) -> list[str]:
    import pyarrow.parquet as pq

    column = pq.read_table(workspace / "records", columns=["sequence_id"], partitioning=None)["sequence_id"]
    return sorted(set(column.to_pylist()))


def outcomes(
    run: Callable[..., CommandResult], sound: Path, folder: Path, file: str, damage: str, commands: Sequence[str]
) -> Iterator[tuple[str, str, CommandResult]]:
    """Run commands, each in a copy of the workspace with a damaged file; yield command, name of the file and result."""
    words = {"ROOT": str(sound.parent / "root"), "SEQUENCE": sequences(sound)[-1]}
    for number, command in enumerate(commands):
        workspace = Path(shutil.copytree(sound, folder / f"w{number}"))
        found = sorted(workspace.glob(FILES[file]))
        path = found[len(found) // 2]  # of shards that of the split train
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
        words["OUT"] = str(folder / f"out{number}")
        result = run(*(words.get(word, word) for word in COMMANDS[command]), "-w", workspace)  # raises what is no line
        yield command, path.name, result
        shutil.rmtree(workspace)


def check(file: str, damage: str, command: str, name: str, result: CommandResult) -> None:
    """Check that a command ended in one line where it could not do its work."""
    what = f"{file}, {damage}: {command}: {result}"
    assert result.code in (0, 1), what
    assert result.err.count("error:") == (result.code != 0), what
    if result.code:
        assert "hint:" in result.err, what
    harmless = damage == "flipped" and not name.endswith(".parquet")  # letters within a text
    # The end of its last line, or all lines: so is the file of a run that was lost before its first.
    harmless |= damage in ("a byte short", "emptied") and name.endswith(".jsonl")
    unread = damage in ("flipped", "not UTF-8") and file == "shard" and command == "annotate"  # which compares sizes
    if command in READERS.get(file, ()) and not harmless and not unread:
        assert result.code == 1, what
        assert name in result.err, what


@pytest.mark.parametrize(
    "file", ["marker", "generation", "planned records", "manifest", "ingest summary", "records", "tombstone", "shard"]
)
def test_a_file_that_is_cut_off_ends_each_command_in_one_line(
    sound: Path, tmp_path: Path, run_command: Callable[..., CommandResult], file: str
) -> None:
    for command, name, result in outcomes(run_command, sound, tmp_path, file, "halved", CHEAP):
        check(file, "halved", command, name, result)


def test_curves_that_are_cut_off_end_the_report_in_one_line(
    sound: Path, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    ((command, name, result),) = outcomes(run_command, sound, tmp_path, "curves of a run", "halved", ["report"])
    check("curves of a run", "halved", command, name, result)


@pytest.mark.soak
@pytest.mark.parametrize(("file", "damage"), list(product(FILES, DAMAGES)))
def test_any_damage_to_any_file_ends_any_command_in_one_line(
    trained: Path, tmp_path: Path, run_command: Callable[..., CommandResult], file: str, damage: str
) -> None:
    for command, name, result in outcomes(run_command, trained, tmp_path, file, damage, list(COMMANDS)):
        check(file, damage, command, name, result)
