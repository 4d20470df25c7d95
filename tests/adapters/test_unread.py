"""What lies in a dataset's folder and is not read: the ingest names it, whatever the adapter knows of it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handdata.adapters.registry import registered_adapters
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.records.stored import IngestSummary
from handdata.pipeline.storage import Storage
from tests.fixtures.sources import ADAPTER_FIXTURES

FIXTURES = {fixture.name: fixture for fixture in ADAPTER_FIXTURES}
FEW = 100
"""More records than any of these datasets has: with a limit no other process is started."""


def only(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


def rename(root: Path, pattern: str, name: str) -> None:
    path = only(root, pattern)
    path.rename(path.with_name(name))


def deeper(root: Path, pattern: str) -> None:
    path = only(root, pattern)
    path.rename(path.with_name("away"))
    path.mkdir()
    path.with_name("away").rename(path / path.name)


def pack(root: Path, pattern: str) -> None:
    path = only(root, pattern)
    shutil.make_archive(str(path), "zip", path.parent, path.name)
    shutil.rmtree(path)


def of_split_val(root: Path) -> None:
    for path in root.rglob("p[12]_val.npy"):
        path.unlink()


UNREAD: list[tuple[str, Callable[[Path], Any], str]] = [
    ("arctic", of_split_val, "nothing of these was read, .*: arctic_data/data/cropped_images/s05"),
    ("reinterhand", lambda root: deeper(root, "m--*/Mugsy_cameras"), "HIR112[^,]*/Mugsy_cameras$"),
    ("reinterhand", lambda root: pack(root, "m--*/Ego_cameras"), r"Ego_cameras\.zip"),
    ("rhd", lambda root: rename(root, "evaluation", "Evaluation"), "Evaluation"),
    ("dart", lambda root: rename(root, "test", "Test"), "Test"),
    ("ego4d", lambda root: rename(root, "**/fho_hands_train.json", "fho_hand_train.json"), "fho_hand_train.json"),
]


@pytest.mark.parametrize(("fixture", "change", "message"), UNREAD)
def test_a_part_that_nobody_reads_is_named_once(
    tmp_path: Path, fixture: str, change: Callable[[Path], Any], message: str
) -> None:
    summary = changed(tmp_path, fixture, change)
    assert summary.records < FIXTURES[fixture].records
    assert [bool(re.search(message, warning)) for warning in summary.warnings].count(True) == 1


def test_what_a_limit_or_another_split_leaves_is_not_named(tmp_path: Path) -> None:
    assert changed(tmp_path, "dart", lambda root: None, limit=1).warnings == ()
    assert changed(tmp_path, "dart", lambda root: None, split="test").warnings == ()


def test_what_a_source_ships_beside_is_not_named(tmp_path: Path) -> None:
    def add(root: Path) -> None:
        for name in ("training/depth", "training/@eaDir", "empty/deeper"):
            (root / name).mkdir(parents=True, exist_ok=True)
        (root / "training/depth/00000.png").write_bytes(b"")
        (root / "training/@eaDir/00000.png").write_bytes(b"")
        (root / "RHD_v1-1.zip").write_bytes(b"")
        (root / "again").symlink_to(root / "training")
        for name in ("docs/README.txt", "docs/format.md", "licences/LICENSE", "code/rhd/read.py", "README.md"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("for people")

    assert changed(tmp_path, "rhd", add).warnings == ()

    def add_models(root: Path) -> None:
        (root / "models/002_master_chef_can").mkdir(parents=True, exist_ok=True)
        (root / "models/002_master_chef_can/points.xyz").write_text("0 0 0")
        (root / "models/README.txt").write_text("for people")

    assert not [line for line in changed(tmp_path, "dexycb", add_models).warnings if "models" in line]


def changed(tmp_path: Path, fixture: str, change: Callable[[Path], Any], **options: Any) -> IngestSummary:
    shutil.rmtree(tmp_path / "d", ignore_errors=True)
    FIXTURES[fixture].write(tmp_path / "d")
    change(tmp_path / "d")
    adapter = registered_adapters()[FIXTURES[fixture].source]
    return ingest(adapter, tmp_path / "d", Storage(tmp_path / "w"), **{"limit": FEW, **options})
