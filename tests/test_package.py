"""The package as others see it: links, light imports, errors that travel, help that answers."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import handdata
from handdata.schemas import HandDataError, RecordError, RejectReason, SourceCard, errors
from tests.fixtures.commands import all_commands

ROOT = Path(handdata.__file__).resolve().parent.parent
FOLDERS = ("adapters", "jobs", "pipeline", "schemas", "trainer")


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_link_resolves_to_its_sibling(folder: str) -> None:
    link = ROOT / "handdata" / folder
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{folder}"
    assert link.resolve() == ROOT / folder


def test_importing_the_trainer_loads_neither_ray_nor_annotation_models() -> None:
    loaded = modules_after("import handdata.trainer, handdata.trainer.loop, handdata.trainer.tasks")
    assert not loaded & {"ray", "mediapipe", "segment_anything"}


def test_reading_shards_loads_neither_ray_nor_mediapipe() -> None:
    assert not modules_after("import handdata.pipeline.shards") & {"ray", "mediapipe", "torch"}


@pytest.mark.parametrize("arguments", [["--help"], ["annotate", "--help"], ["train", "--help"]])
def test_help_answers_without_torch(arguments: list[str]) -> None:
    loaded = modules_after(
        "from typer.testing import CliRunner\nimport handdata.app\n"
        f"assert 'Usage' in CliRunner().invoke(handdata.app.app, {arguments!r}).output"
    )
    assert not loaded & {"torch", "ray", "mediapipe", "polars"}


@pytest.mark.parametrize("command", [" ".join(path) for path, _ in all_commands()])
def test_every_command_shows_an_example(command: str, run_command) -> None:
    result = run_command(*command.split(), "--help")
    assert result.code == 0
    assert f"Example: handdata {command}" in result.out


def test_a_wrong_option_is_wrong_usage(run_command) -> None:
    assert run_command("annotate", "--no-such-option").code == 2


@pytest.mark.parametrize(
    "error",
    [
        kind("message", "hint")
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, HandDataError) and kind is not RecordError
    ]
    + [RecordError(RejectReason.LABEL_CORRUPT, "detail")],
    ids=lambda error: type(error).__name__,
)
def test_errors_cross_process_borders_unchanged(error: HandDataError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.exit_code == error.exit_code


def test_sources_lists_every_dataset_with_its_licence(run_command) -> None:
    result = run_command("sources", "--json")
    listed = {card["name"]: card for card in json.loads(result.out)["sources"]}
    expected = (
        "dexycb arctic interhand26m reinterhand assemblyhands ego4d visor hoi4d rhd renderih dart hagrid wlasl "
        "foundhand10m synthetic coco"
    )
    assert set(listed) >= set(expected.split())
    assert all(set(card) >= set(SourceCard.model_fields) and card["license"] for card in listed.values())


def test_an_unknown_source_card_is_one_line(run_command) -> None:
    result = run_command("sources", "nosuch")
    assert result.code == 2
    assert "unknown source 'nosuch'" in result.err


def test_settings_come_from_flag_then_variable_then_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "handdata.toml").write_text('workspace = "from-file"\n')
    assert f"{tmp_path}/from-file has no records" in run_command("annotate").err
    monkeypatch.setenv("HANDDATA_WORKSPACE", str(tmp_path / "from-variable"))
    assert "from-variable has no records" in run_command("annotate").err
    assert "from-flag has no records" in run_command("annotate", "--workspace", "from-flag").err
    (tmp_path / "handdata.toml").write_text("nonsense = 1\n")
    result = run_command("annotate")
    assert result.code == 2
    assert "nonsense" in result.err
