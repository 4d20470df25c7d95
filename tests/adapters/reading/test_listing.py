"""Folders are listed and files opened in one place, which tells what is missing from what cannot be read."""

import ast
import errno
import io
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import handdata.adapters
from handdata.adapters.reading import listing
from handdata.adapters.reading.arrays import read_npz
from handdata.adapters.reading.images import read_image_size
from handdata.adapters.reading.json_stream import read_json
from handdata.adapters.reading.listing import (
    exists,
    files_in,
    find_all,
    folders_in,
    holds_match,
    is_file,
    is_folder,
    is_named,
    names_in,
    only_one,
    open_file,
    size_of,
)
from handdata.adapters.reading.masks import read_label_image
from handdata.adapters.reading.paths import read_text
from handdata.adapters.reading.pickles import load_pickle
from handdata.schemas import DatasetReadError, LayoutError, RecordError

CLUTTER = ("._a.jpg", ".hidden", "__MACOSX", ".ipynb_checkpoints", ".snapshot", "@eaDir", "lost+found", ".DS_Store")
RAW = {"glob", "rglob", "iterdir", "is_dir", "is_file", "exists", "is_symlink", "scandir", "listdir", "walk", "stat"}
RAW |= {"lstat", "read_text", "read_bytes", "FileIO", "isdir", "isfile", "iglob", "lexists"}


def raw_accesses(source: str) -> Iterator[str]:
    """Yield the calls by which a module lists or opens without ``listing``."""
    tree = ast.parse(source)
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}  # their bodies are looked at too
    own |= {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("handdata.")
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and (called.id == "open" or called.id in RAW - own):
            yield f"line {node.lineno}: {called.id}()"
        if isinstance(called, ast.Attribute):
            first = node.args[0] if node.args else None
            is_mode = (
                isinstance(first, ast.Constant) and isinstance(first.value, str) and set(first.value) <= set("rb+")
            )
            if called.attr in RAW or (called.attr == "open" and (first is None or is_mode)):
                yield f"line {node.lineno}: .{called.attr}()"
            if called.attr == "open" and ast.unparse(called.value) in ("os", "io", "builtins"):
                yield f"line {node.lineno}: {ast.unparse(called)}()"


def test_adapters_list_and_open_through_one_module_only() -> None:
    folder = Path(handdata.adapters.__file__).parent
    found = {
        path.relative_to(folder).as_posix(): list(raw_accesses(path.read_text()))
        for path in folder.rglob("*.py")
        if path.name != "listing.py" and path.parent.name != "synthesis"  # which writes a dataset, and reads none
    }
    assert not {name: lines for name, lines in found.items() if lines}
    raw = [
        "open(p)",
        "p.open('rb')",
        "p.glob('*')",
        "p.iterdir()",
        "os.open(p, 0)",
        "os.scandir(p)",
        "os.path.isdir(p)",
    ]
    assert all(list(raw_accesses(line)) for line in raw)
    assert list(raw_accesses("def is_file(p):\n    return p.is_file()\nis_file(q)")) == ["line 2: .is_file()"]
    assert not list(raw_accesses("from handdata.x import is_file, exists\nis_file(p), exists(p), open_file(p)"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b", "a", "b/d", *CLUTTER[2:-1]):
        (tmp_path / name).mkdir()
    for name in ("2.json", "1.json", "10.jpg", "b/d/x.json", "._1.json", ".hidden", ".DS_Store", "__MACOSX/3.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_what_systems_leave_behind_is_not_listed(folder: Path) -> None:
    assert [path.name for path in folders_in(folder)] == ["a", "b"]
    assert [path.name for path in files_in(folder)] == ["1.json", "10.jpg", "2.json"]
    assert [path.name for path in files_in(folder, ".jpg", "2.json")] == ["10.jpg", "2.json"]
    assert names_in(folder) == ["1.json", "10.jpg", "2.json", "a/", "b/"]
    assert find_all(folder, "*") == sorted(folder / name.rstrip("/") for name in names_in(folder))


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz", ".ZIP", ".7z", ".tar.zst"])
def test_an_archive_beside_its_unpacked_folder_is_not_listed(folder: Path, suffix: str) -> None:
    (folder / f"b{suffix}").write_bytes(b"")
    (folder / f"packed{suffix}").write_bytes(b"")
    (folder / f"1.json{suffix}").write_bytes(b"")
    assert {f"packed{suffix}", f"1.json{suffix}"} == {path.name for path in files_in(folder, suffix)}


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*/d/*.json", ["b/d/x.json"]),
        ("b/d", ["b/d"]),
        ("[ab]", ["a", "b"]),
        ("?/?", ["b/d"]),
        ("*.json", ["1.json", "2.json"]),
        ("1.json/*", []),
        ("absent/*", []),
        ("*/*/*/*", []),
        ("b/d/absent", []),
    ],
)
def test_patterns_match_names_of_a_path(folder: Path, pattern: str, found: list[str]) -> None:
    assert [path.relative_to(folder).as_posix() for path in find_all(folder, pattern)] == found
    assert holds_match(folder, pattern) == bool(found)


def test_what_is_not_there_is_fine(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    for path in (tmp_path / "absent", tmp_path / "absent/inner", tmp_path / "file/inner", tmp_path / ("x" * 300)):
        assert folders_in(path) == files_in(path) == names_in(path) == find_all(path, "*/*") == []
        assert not is_file(path) and not is_folder(path) and not exists(path) and size_of(path) == 0
        with pytest.raises(FileNotFoundError):
            open_file(path)
    assert not exists(str(tmp_path / "nul") + "\0")
    assert is_file(tmp_path / "file") and size_of(tmp_path / "file") == 5 and is_folder(tmp_path)


@pytest.mark.parametrize("target", ["not-there", "link"])
def test_a_link_that_leads_nowhere_is_no_folder_that_was_not_downloaded(tmp_path: Path, target: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(target)
    for use in (
        lambda: folders_in(tmp_path),
        lambda: folders_in(link),
        lambda: files_in(link),
        lambda: files_in(link / "inner"),
        lambda: find_all(tmp_path, "l*/*"),
        lambda: find_all(tmp_path, "link/*"),
        lambda: is_folder(link),
        lambda: is_folder(link / "inner"),
        lambda: exists(link / "file.json"),
        lambda: is_file(link / "inner/file.json"),
    ):
        with pytest.raises(DatasetReadError, match=f"{link} is a link to {target}, which is not there"):
            use()
    assert not exists(link) and is_named(link) and not is_named(tmp_path / "absent")
    assert files_in(tmp_path) == [link] and not holds_match(tmp_path, "l*/*")
    link.rename(tmp_path / "image.jpg")
    assert folders_in(tmp_path) == []


def test_what_is_no_folder_in_its_place_is_an_error_and_not_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    for name in ("pipe", "file"):
        with pytest.raises(DatasetReadError, match=f"{name} is a file, where a folder"):
            is_folder(tmp_path / name)
    with pytest.raises(DatasetReadError, match="pipe is a pipe, where a folder is expected"):
        find_all(tmp_path, "*/x")


def test_a_folder_named_as_a_file_is_listed_so_that_who_opens_it_finds_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    assert files_in(tmp_path, ".png") == [tmp_path / "a.png"] and files_in(tmp_path) == []


def test_a_file_where_a_folder_is_expected_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(b"")
    for action in (folders_in, files_in, names_in):
        with pytest.raises(DatasetReadError, match=r"images is a file, where a folder of the dataset is expected"):
            action(tmp_path / "images")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # in the working folder: the names of sockets are short


def _loop(path: Path) -> None:
    path.symlink_to(path)


READERS: list[Callable[[Path], Any]] = [
    read_image_size,
    read_json,
    read_text,
    load_pickle,
    lambda path: read_npz(path, ("a",)),
    read_label_image,
]


@pytest.mark.parametrize("make", [Path.mkdir, _pipe, _socket, _loop, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("read", READERS)
def test_what_is_no_regular_file_is_rejected_and_never_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], read: Callable[[Path], Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "a.png")
    with pytest.raises(RecordError, match=r"a\.png") as caught:
        read(tmp_path / "a.png")
    assert caught.value.reason in ("image_corrupt", "label_corrupt", "mask_unreadable")
    assert [path.name for path in (*files_in(tmp_path), *folders_in(tmp_path))] == ["a.png"]


class Away:
    """A disk that is away for some calls, then there again."""

    def __init__(self, action: Callable[..., Any], failures: int, number: int) -> None:
        self.action, self.failures, self.number, self.calls = action, failures, number, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.failures:
            self.failures -= 1
            raise OSError(self.number, os.strerror(self.number))
        return self.action(*arguments, **named)


def _opens(path: Path) -> bool:
    with open_file(path) as file:
        return not file.closed


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
@pytest.mark.parametrize(("name", "use"), [("scandir", files_in), ("stat", is_folder), ("open", _opens)])
def test_a_disk_that_is_away_is_tried_again_and_then_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str, use: Callable[[Path], Any]
) -> None:
    path = tmp_path / "a" if name == "open" else tmp_path
    (tmp_path / "a").write_bytes(b"")
    monkeypatch.setattr(listing, "WAITS_S", [0.0, 0.0])
    away = Away(getattr(os, name), 2, number)
    with monkeypatch.context() as patched:
        patched.setattr(os, name, away)
        assert use(path)
    assert away.calls == 3
    for forever in (Away(getattr(os, name), 9, number), Away(getattr(os, name), 9, errno.EACCES)):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, forever)
            with pytest.raises(DatasetReadError, match=f"{path.name}.* cannot be read") as caught:
                use(path)
        assert isinstance(pickle.loads(pickle.dumps(caught.value)), DatasetReadError)
        assert forever.calls == (3 if forever.number == number else 1)


@pytest.mark.parametrize("buffered", [False, True])
def test_a_read_that_fails_in_the_middle_of_a_file_loses_nothing_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buffered: bool
) -> None:
    """A connection that its other end resets gives its bytes, then an error once, then the end of the file."""
    monkeypatch.setattr(listing, "WAITS_S", [0.0])
    (tmp_path / "file").write_bytes(b"")
    content = bytes(range(256)) * 200
    here, there = socket.socketpair()
    raw = listing.open_unbuffered(tmp_path / "file")
    with here, io.BufferedReader(raw) if buffered else raw as file:
        here.sendall(b"never read")
        there.sendall(content)
        there.close()
        os.dup2(here.fileno(), file.fileno())
        assert file.read() == content


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_an_unreadable_folder_is_named_and_not_taken_for_empty() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "locked").mkdir(mode=0o700)
        (root / "locked" / "inner").mkdir()
        (root / "file.json").write_text("{}")
        (root / "file.json").chmod(0o600)
        code = f"""
import os, sys
from pathlib import Path
from handdata.adapters.reading.listing import *
from handdata.adapters.reading.images import read_image_size
from handdata.adapters.reading.json_stream import read_json
from handdata.schemas import DatasetReadError
os.setuid(65534)
root = Path({name!r})
tries = [lambda: files_in(root / "locked"), lambda: find_all(root, "*/*"), lambda: is_folder(root / "locked/inner"),
         lambda: open_file(root / "file.json"), lambda: read_json(root / "file.json"),
         lambda: read_image_size(root / "file.json"), lambda: read_image_size(root / "locked/a.jpg")]
for action in tries:
    try:
        print("no error", action())
    except DatasetReadError as error:
        assert "locked" in str(error) or "file.json" in str(error), error
        print("ok")
"""
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.split("\n") == ["ok"] * 7 + [""], result.stdout + result.stderr


def test_of_several_places_none_is_taken(tmp_path: Path) -> None:
    assert only_one([], "lists") is None
    assert only_one([tmp_path, tmp_path], "lists") == tmp_path
    with pytest.raises(LayoutError, match=r"several lists: .*a, .*b") as caught:
        only_one([tmp_path / "a", tmp_path / "b"], "lists")
    assert "--root" in caught.value.hint
