"""Names from outside stay below the root, links included; text files have a size limit."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handdata.adapters.reading.listing import is_file
from handdata.adapters.reading.paths import Fence, read_text, resolve_below
from handdata.schemas import RecordError, RejectReason


@pytest.mark.parametrize(
    "name",
    [
        "../a.jpg",
        "a/../../b.jpg",
        "/etc/passwd",
        "\\etc\\passwd",
        "..\\a.jpg",
        "a\\..\\..\\b",
        "",
        ".",
        "a\0b",
        "\udcff",
    ],
)
def test_names_that_leave_the_root_are_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError) as error:
        resolve_below(tmp_path, name)
    assert error.value.reason == RejectReason.PATH_ESCAPES_ROOT
    error.value.detail.encode()


@given(name=st.text(max_size=30))
def test_whatever_is_accepted_lies_below_the_root(name: str) -> None:
    root = Path("/data/root")
    try:
        path = resolve_below(root, name)
    except RecordError:
        return
    assert Path(os.path.normpath(path)).is_relative_to(root)
    assert Path(os.path.normpath(path)) != root


def test_names_with_folders_spaces_and_other_scripts_are_kept(tmp_path: Path) -> None:
    assert resolve_below(tmp_path, "a b/手\u00a0.jpg") == tmp_path / "a b" / "手\u00a0.jpg"
    assert resolve_below(tmp_path, "train\\0001.jpg") == tmp_path / "train" / "0001.jpg"


def test_is_file_is_false_for_names_that_no_file_can_have(tmp_path: Path) -> None:
    assert not is_file(tmp_path / ("n" * 300))
    assert not is_file(tmp_path)


def test_a_text_file_of_gigabytes_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cameras.txt"
    with path.open("wb") as stream:
        stream.truncate(1 << 33)  # takes no room on the disk
    with pytest.raises(RecordError, match=r"cameras\.txt: is larger than 4194304 bytes") as caught:
        read_text(path)
    assert caught.value.reason == RejectReason.LABEL_CORRUPT
    path.write_bytes(b"\xff")
    with pytest.raises(RecordError, match="utf-8"):
        read_text(path)
    with pytest.raises(RecordError, match="label_missing"):
        read_text(tmp_path / "absent.txt")


def test_links_are_followed_within_the_root_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "root-beside"
    for folder in (root / "inner", outside):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(b"")
    (root / "folder").symlink_to(root / "inner")
    (root / "inner" / "away").symlink_to(outside)
    (root / "b.jpg").symlink_to(root / "inner" / "a.jpg")
    (root / "inner" / "c.jpg").symlink_to(outside / "a.jpg")
    (tmp_path / "root-by-link").symlink_to(root)
    for fence in (Fence(root), Fence(tmp_path / "root-by-link")):
        fence.check(*(f"{fence.root}/{name}" for name in ("inner/a.jpg", "folder/a.jpg", "b.jpg", "absent.jpg")))
        fence.check(f"zip://member.jpg::{fence.root}/b.jpg", "s3://bucket/a.jpg", "zip://a.jpg::https://host/b.zip")
        for name in ("inner/away/a.jpg", "inner/c.jpg", "folder/away/absent.jpg"):
            with pytest.raises(RecordError, match=rf"{name} is reached by a link to .*root-beside") as caught:
                fence.check(f"{fence.root}/{name}")
            assert caught.value.reason == RejectReason.PATH_ESCAPES_ROOT


def test_links_at_the_top_are_followed_and_deeper_ones_only_on_request(tmp_path: Path) -> None:
    root, disk, private = tmp_path / "root", tmp_path / "disk", tmp_path / "private"
    for folder in (root / "deep", disk / "inner", private):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(b"")
    (root / "images").symlink_to(disk)
    (root / "one.jpg").symlink_to(private / "a.jpg")
    (root / "chain").symlink_to(root / "images")
    (root / ".hidden").symlink_to(private)
    (root / "up").symlink_to(tmp_path)
    (root / "all").symlink_to("/")
    (root / "broken").symlink_to(tmp_path / "absent")
    (root / "deep" / "away").symlink_to(private)
    (root / "deep" / "b.jpg").symlink_to(private / "b.jpg")
    (root / "deep" / "known").symlink_to(disk)
    fence = Fence(root)
    inside = ("images/inner/a.jpg", "images/absent.jpg", "one.jpg", "chain/inner/a.jpg", "deep/a.jpg", "deep/known/x")
    fence.check(*(f"{root}/{name}" for name in inside))
    outside = ("deep/away/a.jpg", "deep/b.jpg", ".hidden/a.jpg", "up/private/a.jpg", "all/etc/passwd")
    for name in outside:
        with pytest.raises(RecordError, match=rf"{re.escape(name)} is reached .* --follow-links follows it") as caught:
            fence.check(f"{root}/{name}")
        assert caught.value.reason == RejectReason.PATH_ESCAPES_ROOT
    Fence(root, follow_links=True).check(*(f"{root}/{name}" for name in (*inside, *outside)))
