"""What commands propose next repeats where this one worked, quoted as a shell needs it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from handdata.console import say_next
from tests.fixtures.commands import CommandResult


@pytest.mark.parametrize(
    ("commands", "options", "line"),
    [
        (("annotate",), {"workspace": None}, "Next: handdata annotate"),
        (("annotate",), {"workspace": "s3://b/w"}, "Next: handdata annotate --workspace s3://b/w"),
        (
            ("report", "train"),
            {"dataset": "b", "workspace": "my [old] work"},
            "Next: handdata report --dataset b --workspace 'my [old] work', "
            "handdata train --dataset b --workspace 'my [old] work'",
        ),
    ],
)
def test_next_commands_name_what_this_one_worked_on(
    capsys: pytest.CaptureFixture[str], commands: tuple[str, ...], options: dict[str, str | None], line: str
) -> None:
    say_next(*commands, **options)
    assert capsys.readouterr().out == line + "\n"


def test_ingest_proposes_to_annotate_in_the_same_workspace(
    synthetic_root: Path, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    result = run_command("ingest", "--source", "synthetic", "--root", synthetic_root, "-w", tmp_path / "w")
    assert result.out.splitlines()[-1] == f"Next: handdata annotate --workspace {tmp_path / 'w'}"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("ingest", "--source", "hagird"), "did you mean hagrid?"),
        (("sources", "artic"), "did you mean arctic?"),
        (("train", "--preset", "carried64"), "did you mean carried-64?"),
    ],
)
def test_a_name_that_is_nearly_right_is_suggested(
    words: tuple[str, ...], meant: str, run_command: Callable[..., CommandResult]
) -> None:
    result = run_command(*words)
    assert result.code == 2 and meant in result.err
