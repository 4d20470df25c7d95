"""A source from a package of its own: installed with an entry point, it is there like the built-in ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ADAPTER = """
from pathlib import Path

import numpy as np

from handdata.adapters import AdapterOptions, Layout, Partition
from handdata.adapters.reading.images import read_image_size
from handdata.schemas import HandRecord, SourceCard


class WaveAdapter:
    card = SourceCard(
        name="wave", title="Wave", license="CC BY 4.0", commercial_use="yes", redistribution="yes",
        homepage="https://example.org/wave", size="3 images", viewpoint="exo", multi_view=False, video=False,
        labels="none", citation="Doe, Wave, 2026",
    )
    layouts = (Layout("as unpacked", ("images/*.png",)),)

    def __init__(self, options=AdapterOptions()):
        self.options = options

    def partitions(self, root):
        yield Partition("all", "train", ("images",))

    def records(self, root, partition):
        for path in sorted((root / "images").glob("*.png")):
            width, height = read_image_size(path)
            yield HandRecord(
                source="wave", split="train", sequence_id=path.stem, frame_index=0, image_uri=str(path), width=width,
                height=height, viewpoint="exo", keypoints_2d=np.zeros((42, 2)), keypoints_valid=np.zeros(42, bool),
                hand_state=("unknown", "unknown"),
            )

    def open_mask(self, record):
        raise AssertionError("there are no masks")
"""

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "handdata-wave"
version = "1.0"

[project.entry-points."handdata.adapters"]
wave = "handdata_wave:WaveAdapter"

[tool.setuptools]
py-modules = ["handdata_wave"]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package."""
    source = tmp_path_factory.mktemp("package")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "handdata_wave.py").write_text(ADAPTER)
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, timeout=120)
    return target


def run(installed: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "handdata", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=installed)


def test_an_installed_adapter_is_listed_and_ingested(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "wave" / "images").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (20, 10)).save(tmp_path / "wave" / "images" / f"{number}.png")
    listed = json.loads(run(installed, "sources", "--json").stdout)["sources"]
    assert "wave" in {card["name"] for card in listed}
    done = run(installed, "ingest", "-s", "wave", "--root", tmp_path / "wave", "-w", tmp_path / "w", "--json")
    assert json.loads(done.stdout)["records"] == 3, done.stderr


def test_a_broken_foreign_adapter_is_a_warning_and_the_others_work(installed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[handdata.adapters]\nbroken = no_such_module:Adapter\n")
    done = run(tmp_path, "sources", "--json")
    assert done.returncode == 0
    names = {card["name"] for card in json.loads(done.stdout)["sources"]}
    assert "hagrid" in names
    assert "broken" not in names
    assert "cannot be loaded" in done.stderr
