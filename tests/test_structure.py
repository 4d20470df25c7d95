"""The tree as its map describes it: a stranger who looks a file up finds it, and finds all of them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("schemas", "adapters", "pipeline", "trainer", "jobs", "handdata")


def _modules() -> set[str]:
    """Return the modules of the tree but for links and packages' ``__init__.py``."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" and not any(parent.is_symlink() for parent in path.parents)
    }


def _mapped() -> list[str]:
    """Return the files of the file map of docs/architecture.md, with their folders."""
    section = (ROOT / "docs" / "architecture.md").read_text().split("## File map", 1)[1].split("\n## ", 1)[0]
    files = []
    for part in section.split("\n### ")[1:]:
        folder = re.match(r"`([\w/]+)/`", part)
        assert folder, part
        files += [f"{folder[1]}/{name}" for name in re.findall(r"^\| `(\w+\.py)` \| \S", part, re.MULTILINE)]
    return files


def test_the_file_map_names_each_module_once() -> None:
    mapped = _mapped()
    assert sorted(mapped) == sorted(_modules())


def test_each_path_that_the_docs_name_exists() -> None:
    tracked = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    names = {name.rpartition("/")[2] for name in tracked}
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for name in re.findall(r"`([\w/]+\.py)`", page.read_text()):
            assert name in tracked if "/" in name else name in names, f"{page.name} names {name}, which is not there"


def test_tests_lie_in_the_folders_of_what_they_test() -> None:
    tested = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")} - {Path()}
    there = {*FOLDERS, "benchmarks"}
    for folder in tested:
        assert (ROOT / folder).is_dir() or (ROOT / "handdata" / folder).is_dir(), f"tests/{folder} tests nothing"
        assert folder.parts[0] in there or (ROOT / "handdata" / folder.parts[0]).is_dir()
