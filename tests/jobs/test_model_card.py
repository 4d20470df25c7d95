"""The card of a trained network says what it learned from, and which licences bind it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from handdata.jobs.model_card import model_card
from handdata.pipeline.shards import read_manifest
from handdata.pipeline.shards.manifest import encode_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import UsageError
from handdata.trainer.loop import train
from tests.fixtures.commands import CommandResult
from tests.fixtures.training import SMALL, write_two_sequences

SCORE = {"mean": 0.5, "low": 0.4, "high": 0.6}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = Storage(tmp_path_factory.mktemp("trained"))
    write_two_sequences(storage)
    train(SMALL, storage, "mine", steps=1, device="cpu")
    return storage


def test_the_card_says_data_licences_settings_and_results(
    trained: Storage, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    scores = {"generated": {"psnr": SCORE}, "copied reference": {"psnr": SCORE}}
    (tmp_path / "evaluation.json").write_text(json.dumps({"pairs": 7, "scores": scores, "truth": {}}))
    arguments = ("--run", "mine", "--evaluation", tmp_path / "evaluation.json", "-w", trained.url())
    result = run_command("card", *arguments)
    assert result.code == 0, result.err
    card = trained.read_bytes("runs/mine/README.md").decode()
    assert "| `synthetic` | Apache-2.0 |" in card and "| 1 of 1 |" in card
    assert "7 pairs of frames" in card and "| generated | 0.500 (0.400 to 0.600) |" in card
    assert trained.read_bytes("runs/mine/LICENSE.md").startswith(b"# Licences")
    fields = yaml.safe_load(card.split("---\n")[1])
    assert fields["license"] == "apache-2.0"
    assert fields["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5


def test_a_source_that_has_left_the_dataset_since_still_binds_the_weights(trained: Storage, tmp_path: Path) -> None:
    dataset = Dataset(trained)
    manifest = read_manifest(dataset)
    try:
        others = manifest.model_copy(update={"sources": {}, "licenses": {}, "license_ids": {}})
        trained.write_bytes(dataset.manifest_file, encode_manifest(others))
        assert "| `synthetic` | Apache-2.0 |" in model_card(trained, "mine").card
    finally:
        trained.write_bytes(dataset.manifest_file, encode_manifest(manifest))


@pytest.mark.parametrize(
    ("init", "licence"),
    [
        ("/weights/DINO_EMA_11M_b50_lr1e-5_epoch6_step320k.ckpt", ["apache-2.0", "cc-by-nc-4.0"]),
        ("builtin", "apache-2.0"),
        ("/home/me/other.pt", ["apache-2.0", "other"]),
    ],
)
def test_the_licence_of_the_first_weights_binds_too(
    trained: Storage, monkeypatch: pytest.MonkeyPatch, init: str, licence: object
) -> None:
    from handdata.jobs import model_card as module

    real = module.checkpoint_settings
    monkeypatch.setattr(module, "checkpoint_settings", lambda url: real(url).model_copy(update={"init": init}))
    made = model_card(trained, "mine")
    assert yaml.safe_load(made.card.split("---\n")[1])["license"] == licence and init in made.card
    assert "## --init: " in made.licences


def test_a_run_that_is_not_there_and_a_file_without_scores_are_usage_errors(
    trained: Storage, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    with pytest.raises(UsageError, match="no training run 'other'"):
        model_card(trained, "other")
    (tmp_path / "e.json").write_text("{}")
    result = run_command("card", "--run", "mine", "--evaluation", tmp_path / "e.json", "-w", trained.url())
    assert result.code == 2 and "holds no scores" in result.err
