"""What works without the extras, and how what does not says so."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from handdata.pipeline.storage import Storage
from handdata.schemas.errors import missing_package
from tests.fixtures.commands import clean_environment
from tests.fixtures.training import write_two_sequences

BLOCKED = """
import sys
packages = sys.argv.pop(1).split(",")
class Blocked:
    def find_spec(self, name, path=None, target=None):
        package = name.partition(".")[0]
        if package in packages:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
sys.meta_path.insert(0, Blocked())
"""
"""A program in which some packages cannot be imported."""
TRAINED = (
    BLOCKED
    + """
import handdata
dataset = handdata.open_dataset(sys.argv[1], split="train")
print(len(dataset), dataset[0].image.shape)
from handdata.cli import main
sys.argv = ["handdata", "train", "--preset", "tiny", "--steps", "1", "--gpus", "0", "--workspace", sys.argv[1]]
main()
"""
)
COMMAND = BLOCKED + "from handdata.cli import main; main()"


def run_blocked(program: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", program, *arguments]
    environment = clean_environment(PYTHONPATH=str(Path.cwd()))
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder, env=environment)


def test_reading_and_training_need_neither_ray_nor_mediapipe(tmp_path: Path) -> None:
    write_two_sequences(Storage(tmp_path / "w"))
    done = run_blocked(TRAINED, "ray,mediapipe", "w", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Trained" in done.stdout and (tmp_path / "w/runs/default/checkpoints").is_dir()


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("ray", "annotate", ["train", "--preset", "tiny", "--gpus", "2", "--workspace", "w"]),
        ("mediapipe", "annotate", ["demo"]),
        ("torch", "train", ["sample", "gesture-transfer", "--workspace", "w"]),
    ],
)
def test_a_missing_package_is_one_line_that_names_the_extra(
    package: str, extra: str, command: list[str], tmp_path: Path
) -> None:
    write_two_sequences(Storage(tmp_path / "w"))
    done = run_blocked(COMMAND, package, *command, folder=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"needs the package {package}" in done.stderr and f'pip install "handdata[{extra}]"' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_another_missing_module_is_a_bug_and_keeps_its_traceback() -> None:
    assert missing_package(ModuleNotFoundError("No module named 'x'", name="x")) is None
    assert missing_package(ModuleNotFoundError("no name")) is None


def test_all_is_every_extra_but_the_developers_and_half_a_gigabyte_of_a_viewer() -> None:
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = (Requirement(text) for text in extras["all"])
    assert everything.extras == set(extras) - {"all", "dev", "rerun"}
