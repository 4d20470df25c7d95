"""Progress of long work where nobody watches a terminal."""

import pytest

from handdata import console
from handdata.console import ProgressLine


def test_a_line_of_progress_says_how_long_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_PLAIN_INTERVAL_S", -1)
    seconds = iter(range(100))
    monkeypatch.setattr(console.time, "monotonic", lambda: 60 * next(seconds))
    with ProgressLine("Sampling", None, "steps") as progress:
        progress.set(5)
        progress.set(5, total=15)
    first, second = capsys.readouterr().err.splitlines()[1:]
    assert "5 steps" in first and "left" not in first
    assert "5 of 15 steps" in second and "min left" in second
