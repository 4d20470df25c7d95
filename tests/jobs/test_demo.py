"""The demo's commands are the user's; run one after another, they end in a network that follows its conditions."""

import json
from pathlib import Path

import pytest

from handdata.jobs.demo import demo_commands, run_demo
from handdata.schemas import UsageError


def test_the_demo_runs_the_whole_road_below_its_folder(tmp_path: Path) -> None:
    commands = demo_commands(tmp_path / "demo")
    assert [command[0] for command in commands] == ["synth", "ingest", "annotate", "train", "sample", "report"]
    assert all(any(str(tmp_path / "demo") in word for word in command) for command in commands)


def test_a_folder_that_is_no_former_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match="no former demo"):
        run_demo(tmp_path, lambda command: None, lambda line: None)
    assert (tmp_path / "thesis.tex").exists()


def test_a_second_demo_replaces_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    said: list[str] = []
    run_demo(folder, lambda command: None, said.append)
    (folder / "leftover").touch()
    run_demo(folder, lambda command: None, said.append)
    assert not (folder / "leftover").exists()
    assert str(folder / "report.html") in said[-1]


@pytest.mark.soak
@pytest.mark.usefixtures("ray_cluster")
def test_the_demo_ends_in_a_network_that_follows_its_keypoints(tmp_path: Path, run_command) -> None:
    folder = tmp_path / "demo"
    result = run_command("demo", "--out", folder)
    assert result.code == 0
    page = (folder / "report.html").read_text()
    assert page.count("data:image/") > 12
    rows = [json.loads(line) for line in (folder / "workspace/runs/demo/metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if "permuted_loss" in row)
    assert last["validation_loss"] < 0.9 * last["permuted_loss"]
