"""Lists survive what editors and other systems do to text files."""

import codecs
from pathlib import Path

import pytest

from handdata.adapters.reading.text_lists import read_lines
from handdata.schemas.errors import RecordError, RejectReason

LINES = ["ZY1/H1/C1/N1/S1/s1/T1", "ZY2/H2/C2/N2/S2/s2/T2", "last"]
TEXT = "\n".join(LINES) + "\n"

SAVED = {
    "as written": TEXT.encode(),
    "without a last line break": TEXT.rstrip("\n").encode(),
    "windows": TEXT.replace("\n", "\r\n").encode(),
    "old mac": TEXT.replace("\n", "\r").encode(),
    "mixed line breaks": TEXT.replace("\n", "\r\n", 1).encode(),
    "utf-8 with a mark": codecs.BOM_UTF8 + TEXT.encode(),
    "two marks": codecs.BOM_UTF8 * 2 + TEXT.encode(),
    "utf-16 little": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "utf-16 big": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "utf-16 little without a mark": TEXT.encode("utf-16-le"),
    "utf-16 big without a mark": TEXT.encode("utf-16-be"),
    "utf-16 of windows": codecs.BOM_UTF16_LE + TEXT.replace("\n", "\r\n").encode("utf-16-le"),
    "utf-32": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    "blanks at the ends": "".join(f" \t{line}  \t\n" for line in LINES).encode(),
    "no-break spaces": "".join(f"{line}\u00a0\n" for line in LINES).encode(),
    "empty lines": ("\n\n" + "\n\n \n".join(LINES) + "\n\n\n").encode(),
    "joined files": "".join(f"\ufeff{line}\n" for line in LINES).encode(),
    "dos end of file": TEXT.encode() + b"\x1a",
}


@pytest.mark.parametrize("content", SAVED.values(), ids=SAVED)
def test_the_lines_are_those_that_were_written(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    assert read_lines(path) == LINES


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\xd8", b"caf\xe9\n", b"\xff" * 7, codecs.BOM_UTF16_LE])
def test_what_is_no_text_is_label_corrupt(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"list\.txt") as error:
        read_lines(path)
    assert error.value.reason is RejectReason.LABEL_CORRUPT


def test_a_missing_list_is_label_missing(tmp_path: Path) -> None:
    with pytest.raises(RecordError) as error:
        read_lines(tmp_path / "list.txt")
    assert error.value.reason is RejectReason.LABEL_MISSING
