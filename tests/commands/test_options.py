"""What shared options do with a value."""

import pytest

from handdata.commands.options import given_thresholds
from handdata.schemas import UsageError


def test_only_given_thresholds_are_returned() -> None:
    assert given_thresholds(min_sharpness=None, max_blur=None, min_hand_px=64, max_mask_spill=None) == {
        "min_hand_px": 64
    }


def test_a_blur_is_a_sharpness_seen_from_the_other_end() -> None:
    assert given_thresholds(min_sharpness=None, max_blur=0.2) == {"min_sharpness": pytest.approx(4)}


@pytest.mark.parametrize(("sharpness", "blur"), [(2.0, 0.5), (None, 0.0), (None, 1.5)])
def test_a_blur_that_cannot_be_used_is_an_error(sharpness: float | None, blur: float) -> None:
    with pytest.raises(UsageError, match="--max-blur"):
        given_thresholds(min_sharpness=sharpness, max_blur=blur)


@pytest.mark.parametrize("name", ["records", "runs", "../elsewhere", ".hidden", ""])
def test_a_dataset_cannot_have_the_name_of_another_folder(name: str, run_command) -> None:
    result = run_command("flag", "--dataset", name)
    assert result.code == 2
    assert "not a name for a folder of the workspace" in result.err


@pytest.mark.parametrize(
    "options", [("--masks", "nosuch"), ("--image-size", 31), ("--crop", "half"), ("--max-mask-spill", 1.1)]
)
def test_a_value_outside_a_setting_is_wrong_usage(options: tuple[object, ...], run_command) -> None:
    result = run_command("annotate", *options)
    assert result.code == 2
    assert str(options[0]) in result.err


@pytest.mark.parametrize("command", ["flag", "annotate"])
def test_an_infinite_threshold_which_json_would_store_as_null_is_wrong_usage(command: str, run_command) -> None:
    result = run_command(command, "--min-hand-px", "inf")
    assert result.code == 2
    assert "--min-hand-px inf is no finite number" in result.err


def test_an_unknown_flag_is_wrong_usage_that_names_the_flags(run_command) -> None:
    result = run_command("annotate", "--reject", "grey")
    assert result.code == 2
    assert "reject" in result.err
    assert "'mask_spill'" in result.err


def test_an_unknown_kind_of_autoencoder_is_wrong_usage(run_command) -> None:
    result = run_command("encode", "--autoencoder", "jpeg")
    assert result.code == 2
    assert "--autoencoder" in result.err
    assert "taef2" in result.err
