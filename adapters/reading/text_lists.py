"""Text files that people open and save: what editors and other systems do to them changes no entry."""

import codecs
from pathlib import Path
from typing import Final

from handdata.adapters.reading.paths import MAX_TEXT_BYTES, read_bytes
from handdata.schemas.errors import RecordError, RejectReason

_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_INVISIBLE: Final = "\ufeff\u200b\u2060\x1a\0"
"""Marks that editors, joined files and old systems leave at the ends of lines and files."""


def read_lines(path: Path, most_bytes: int = MAX_TEXT_BYTES) -> list[str]:
    """Return the lines of a small text file without the blanks around them; empty lines are omitted.

    Raises:
        RecordError: ``label_missing``, or ``label_corrupt``: the bytes are no text, or more than ``most_bytes``.

    """
    content = read_bytes(path, most_bytes)
    try:
        text = _decode(content)
    except UnicodeError as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {error}") from None
    lines = (_stripped(line) for line in text.splitlines())
    return [line for line in lines if line]


def _decode(content: bytes) -> str:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content == mark and encoding != "utf-8":
            raise UnicodeError(f"holds a mark of {encoding} and nothing else")
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding)
    # Windows' editors once saved UTF-16 without a mark: every other byte of plain text is then zero.
    if len(content) >= 4 and len(content) % 2 == 0:
        even, odd = content[0::2], content[1::2]
        if not any(odd) and all(even):
            return content.decode("utf-16-le")
        if not any(even) and all(odd):
            return content.decode("utf-16-be")
    return content.decode("utf-8")


def _stripped(line: str) -> str:
    while line != (shorter := line.strip().strip(_INVISIBLE)):
        line = shorter
    return line
