"""What help says of every option: a text, and the defaults that hold."""

import dataclasses
import re
from typing import Annotated, Any

import pytest
import typer
from pydantic import BaseModel

from handdata.commands.options import setting_option
from handdata.jobs.evaluate import EvaluationRequest
from handdata.pipeline.settings import AnnotateSettings, QualitySettings, Settings
from handdata.pipeline.storage.layout import DATASET
from handdata.trainer.evaluation import LEAST_MOTION
from tests.fixtures.commands import all_commands

COMMANDS = {" ".join(path): command for path, command in all_commands()}


def defaults_of(kind: Any) -> dict[str, object]:
    if issubclass(kind, BaseModel):
        return {name: field.default for name, field in kind.model_fields.items()}
    return {field.name: field.default for field in dataclasses.fields(kind)}


QUALITY = defaults_of(QualitySettings) | {"max_blur": 1 / (1 + QualitySettings().min_sharpness)}
SOURCES_ROOT = Settings.model_fields["sources_root"].default
EVERYWHERE = {"workspace": Settings.model_fields["workspace"].default}
OF_COMMANDS: dict[str, dict[str, object]] = {
    "annotate": defaults_of(AnnotateSettings) | QUALITY | {"dataset": DATASET},
    "flag": QUALITY | {"dataset": DATASET},
    "report": {"dataset": DATASET},
    "status": {"dataset": DATASET},
    "synth": {"out_dir": SOURCES_ROOT / "synthetic"},
    "ingest": {"root": SOURCES_ROOT / "NAME"},
    "inspect": {"root": SOURCES_ROOT / "NAME"},
    "evaluate": {name: value for name, value in defaults_of(EvaluationRequest).items() if isinstance(value, str | int)}
    | {"min_motion": LEAST_MOTION, "device": "CUDA where there is a GPU"}
    | {"dataset": "the one of the training run", "checkpoint": "the run's latest"}
    | {"steps": "the preset's", "guidance_scale": "the preset's"},
}
"""The settings behind the options of a command, by the option's name."""


def shown_default(option: Any) -> str | None:
    """Return the default that help shows, as it is printed."""
    record = option.get_help_record(typer.Context(typer.core.TyperCommand("any")))
    found = re.search(r"\[default: \(?(.*?)\)?(?:; .*)?\]$", record[1] if record else "")
    return found.group(1) if found else None


def is_the_same(shown: str, setting: object) -> bool:
    """Return whether a shown default is a setting, up to three digits."""
    if isinstance(setting, int | float):
        return float(shown) == pytest.approx(setting, rel=1e-3)
    if isinstance(setting, frozenset):
        return shown == (", ".join(sorted(setting)) or "none")
    return shown == str(setting)


def check_default(command: str, option: Any) -> None:
    shown = shown_default(option)
    settings = EVERYWHERE | OF_COMMANDS.get(command, {})
    if option.name in settings:
        assert shown is not None and is_the_same(shown, settings[option.name]), (
            f"{option.name}: {shown} is not {settings[option.name]}"
        )
    elif isinstance(option.show_default, str):  # typed by hand: words are free, no number may be
        assert not re.search(r"\d", option.show_default), f"{option.name}: no setting behind {option.show_default}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_text_and_shows_the_default_of_its_setting(command: str) -> None:
    for option in COMMANDS[command].params:
        assert option.help and option.help.endswith("."), option.name
        assert "default" not in option.help, option.name
        check_default(command, option)


@pytest.mark.parametrize("command", OF_COMMANDS)
def test_the_settings_of_the_comparison_have_options(command: str) -> None:
    named = {option.name for option in COMMANDS[command].params}
    assert named & OF_COMMANDS[command].keys()
    assert command not in ("annotate", "flag") or named >= QUALITY.keys() - {"reject"}


@pytest.mark.parametrize(("text", "name"), [("0.05", "max_mask_spill"), ("7", "something_new")])
def test_a_default_that_is_typed_by_hand_is_found(text: str, name: str) -> None:
    app = typer.Typer()

    @app.command()
    def annotate(value: Annotated[float | None, typer.Option(f"--{name}", show_default=text)] = None) -> None: ...

    (option, *_) = typer.main.get_command(app).params
    option.name = name
    with pytest.raises(AssertionError, match=text):
        check_default("annotate", option)


def test_an_option_takes_default_and_bounds_from_its_setting() -> None:
    option = setting_option(QualitySettings, "min_phash_distance", help="Text.")
    assert (option.show_default, option.min, option.max) == ("3", 0, 65)
    assert setting_option(Settings, "weights", help="Text.").show_default is False


def test_licence_is_spelled_in_both_ways() -> None:
    train = COMMANDS["train"]
    for spelling in ("--licence", "--license"):
        with train.make_context("train", [spelling, "CC-BY-4.0"]) as context:
            assert context.params["licence"] == "CC-BY-4.0"
