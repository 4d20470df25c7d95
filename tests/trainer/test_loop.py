import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from handdata.pipeline.storage import Storage
from handdata.schemas import RunError, UsageError, WeightsError
from handdata.trainer.checkpoints import load_for_sampling
from handdata.trainer.data.batch import FramePair
from handdata.trainer.loop import train
from handdata.trainer.model import DiT
from handdata.trainer.presets import (
    MonitoringConfig,
    PairConfig,
    Preset,
    SamplingConfig,
    SourceConfig,
)
from handdata.trainer.schedule import FINAL_LEARNING_RATE_SHARE
from handdata.trainer.trainer import Trainer
from handdata.trainer.weights import export_foundhand, read_weights
from tests.fixtures.commands import CommandResult, clean_environment
from tests.fixtures.training import SMALL, changed, weights, write_two_sequences


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path / "workspace")
    write_two_sequences(storage)
    return storage


def test_training_leaves_checkpoint_settings_and_metrics(storage: Storage) -> None:
    seen: list[int] = []
    summary = train(SMALL, storage, "first", steps=2, device="cpu", on_step=lambda step, *_: seen.append(step))
    assert seen == [1, 2]
    assert summary.steps == 2
    assert summary.loss is not None
    assert summary.validation is not None
    lines = [json.loads(line) for line in storage.read_bytes("runs/first/metrics.jsonl").splitlines()]
    assert [sorted(line) for line in lines] == [
        ["epochs/synthetic", "loss", "samples_per_s", "step"],
        ["permuted_loss", "step", "validation_loss"],
    ]
    assert storage.list_files("runs/first/tensorboard", "")
    settings = Preset.model_validate_json(storage.read_bytes("runs/first/settings.json"))
    assert settings == changed(SMALL, steps=2)
    _, embedded = load_for_sampling(summary.run_url)
    assert Preset.model_validate(embedded) == changed(SMALL, steps=2)
    assert embedded.keys() == SMALL.model_dump().keys()


def test_a_resumed_run_has_the_weights_of_one_that_never_stopped(storage: Storage) -> None:
    straight = train(SMALL, storage, "straight", steps=4, device="cpu")
    train(SMALL, storage, "halted", steps=2, device="cpu")
    resumed = train(SMALL, storage, "halted", steps=4, resume=True, device="cpu")
    expected, found = weights(straight.checkpoint_url), weights(resumed.checkpoint_url)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    steps = [json.loads(line)["step"] for line in storage.read_bytes("runs/halted/metrics.jsonl").splitlines()]
    assert steps == [2, 2, 4, 4]


def test_a_resumed_run_takes_the_learning_rate_of_its_settings(storage: Storage) -> None:
    halted = train(SMALL, storage, "halted", steps=2, device="cpu")
    before = weights(halted.checkpoint_url)
    slower = changed(SMALL, learning_rate=1e-9)
    notes: list[str] = []
    resumed = train(slower, storage, "halted", steps=3, resume=True, device="cpu", on_note=notes.append)
    after = weights(resumed.checkpoint_url)
    different = "optimisation.steps 3 instead of 2, optimisation.learning_rate 1e-09 instead of 0.003"
    assert notes == [f"from step 2 on with {different}"]
    assert all(torch.allclose(before[name], after[name], atol=1e-8) for name in before if name.startswith("model."))
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_decay_follows_the_number_of_steps_also_where_a_run_is_prolonged(storage: Storage) -> None:
    preset = changed(SMALL, warmup_steps=0).model_copy(update={"sampling": SamplingConfig(steps=1)})

    def rates(run: str, steps: int, resume: bool = False) -> list[float]:
        found: list[float] = []
        step = Trainer.training_step

        def watched(trainer: Trainer, batches: Iterable[FramePair]) -> float:
            found.append(trainer._optimizer.param_groups[0]["lr"])
            return step(trainer, batches)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "training_step", watched)
            train(preset, storage, run, steps=steps, resume=resume, device="cpu")
        return found

    share = [FINAL_LEARNING_RATE_SHARE + (1 - FINAL_LEARNING_RATE_SHARE) * (1 + math.cos(math.pi * at / 4)) / 2
             for at in range(4)]  # fmt: skip
    rate = preset.optimisation.learning_rate
    assert rates("run", 2) == pytest.approx([rate * share[0], rate * share[2]])
    assert rates("run", 4, resume=True) == pytest.approx([rate * share[2], rate * share[3]])


def test_micro_batches_add_up_to_the_step_of_the_whole_batch(storage: Storage) -> None:
    whole = train(SMALL, storage, "whole", steps=3, device="cpu")
    parts = train(changed(SMALL, micro_batch_size=1), storage, "parts", steps=3, device="cpu")
    expected, found = weights(whole.checkpoint_url), weights(parts.checkpoint_url)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_network_trains_to_the_same_loss_and_weights(storage: Storage) -> None:
    shallow = SMALL.model_copy(update={"model": SMALL.model.model_copy(update={"depth": 1})})
    plain = train(shallow, storage, "plain", steps=3, device="cpu")
    compiled = train(changed(shallow, compile=True), storage, "compiled", steps=3, device="cpu")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert compiled.loss == pytest.approx(plain.loss, rel=1e-5)
    expected, found = weights(plain.checkpoint_url), weights(compiled.checkpoint_url)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(storage: Storage, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        "[model]\npatch_size = 8\nhidden_size = 32\ndepth = 2\nnum_heads = 2\n"
        "[optimisation]\nbatch_size = 4\n[monitoring]\ncheckpoint_every = 5\n[sampling]\nsteps = 2\n"
    )
    command = [sys.executable, "-m", "handdata", "train", "--config", config, "-w", storage.url(), "--gpus", "0"]

    def run(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert run("--run", "straight", "--steps", "10").wait() == 0
    killed = run("--run", "killed", "--steps", "100000")
    while storage.list_files("runs/killed/checkpoints/step-00000005", "complete.json") == []:
        time.sleep(0.02)
        assert killed.poll() is None
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    for folder in storage.list_folders("runs/killed/checkpoints"):  # it may have come farther than step 5
        if folder != "step-00000005":
            storage.remove(f"runs/killed/checkpoints/{folder}")
    assert run("--run", "killed", "--steps", "10", "--resume").wait() == 0
    expected = weights(storage.describe("runs/straight/checkpoints/step-00000010"))
    found = weights(storage.describe("runs/killed/checkpoints/step-00000010"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_best_checkpoint_outlives_the_last_ones(storage: Storage) -> None:
    watchful = MonitoringConfig(checkpoint_every=1, validate_every=1, keep_last=1)
    # A learning rate that makes it worse from step to step.
    preset = changed(SMALL, learning_rate=0.05, warmup_steps=0, decay="none", ema_decay=0.0)
    train(preset.model_copy(update={"monitoring": watchful}), storage, "run", steps=6, device="cpu")
    curve = [json.loads(line) for line in storage.read_bytes("runs/run/metrics.jsonl").splitlines()]
    losses = {line["step"]: line["validation_loss"] for line in curve if "validation_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert best < 6
    kept = storage.list_folders("runs/run/checkpoints")
    assert kept == sorted({f"step-{best:08d}", "step-00000006"})


def test_samples_are_drawn_while_the_run_goes_on(storage: Storage) -> None:
    preset = SMALL.model_copy(update={"monitoring": MonitoringConfig(pictures_every=1, pictures=2)})
    train(preset, storage, "run", steps=2, device="cpu")
    assert storage.list_files("runs/run/samples", ".png") == [
        "runs/run/samples/step-00000001.png",
        "runs/run/samples/step-00000002.png",
    ]


def test_pictures_are_of_pairs_also_where_a_source_gives_stills(storage: Storage) -> None:
    pairs = PairConfig(sources={"synthetic": SourceConfig(video=0.1, still=1.0)})
    preset = SMALL.model_copy(
        update={"pairs": pairs, "monitoring": MonitoringConfig(pictures_every=1, pictures=4)},
    )
    train(preset, storage, "run", steps=1, device="cpu")
    assert storage.list_files("runs/run/samples", ".png") == ["runs/run/samples/step-00000001.png"]


def test_a_choice_without_held_out_rows_trains_without_validation(storage: Storage) -> None:
    preset = SMALL.choosing_rows(where="sequence_id = 'wave'")
    preset = preset.model_copy(update={"monitoring": MonitoringConfig(pictures_every=1, pictures=2)})
    summary = train(preset, storage, "run", steps=1, device="cpu")
    assert (summary.steps, summary.validation) == (1, None)


def test_weights_and_biases_gets_the_curves_where_it_is_in_use(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(SMALL, storage, "watched", steps=1, device="cpu")
    assert storage.list_files("runs/watched/wandb", ".wandb")


def test_bfloat16_trains_as_float32_does_but_for_rounding(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handdata.trainer.devices.cpu_has_bfloat16", lambda: True)
    exact = train(SMALL, storage, "exact", steps=3, device="cpu")
    rounded = train(changed(SMALL, precision="bfloat16"), storage, "rounded", steps=3, device="cpu")
    expected, found = weights(exact.checkpoint_url), weights(rounded.checkpoint_url)
    assert any(not torch.equal(expected[name], found[name]) for name in expected)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert rounded.loss == pytest.approx(exact.loss, rel=0.02)


def test_a_finished_run_has_nothing_left_to_do(storage: Storage) -> None:
    done = train(SMALL, storage, "run", steps=2, device="cpu")
    again = train(SMALL, storage, "run", steps=2, resume=True, device="cpu")
    assert (again.steps, again.loss, again.checkpoint_url) == (2, None, done.checkpoint_url)


def test_a_run_that_exists_is_not_overwritten(storage: Storage) -> None:
    train(SMALL, storage, "run", steps=1, device="cpu")
    with pytest.raises(UsageError, match="has checkpoints"):
        train(SMALL, storage, "run", steps=1, device="cpu")


def test_training_starts_from_published_weights(storage: Storage, tmp_path: Path) -> None:
    torch.manual_seed(7)
    network = DiT(**SMALL.model.model_dump())
    safetensors.torch.save_file(export_foundhand(network.state_dict()), tmp_path / "published.safetensors")
    trainer = Trainer(SMALL, "cpu")
    trainer.start_from(str(tmp_path / "published.safetensors"))
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in trainer.model.state_dict().items())
    summary = train(SMALL, storage, "tuned", steps=1, device="cpu", init=f"{tmp_path}/published.safetensors")
    assert read_weights(f"{summary.checkpoint_url}/model.safetensors").keys() == network.state_dict().keys()


@pytest.mark.parametrize("name", ["mine.pt", "mine.safetensors"])
def test_exported_weights_come_back_as_those_of_the_run(
    storage: Storage, tmp_path: Path, run_command: Callable[..., CommandResult], name: str
) -> None:
    summary = train(SMALL, storage, "mine", steps=2, device="cpu")
    exported = run_command("export", "-w", storage.url(), "--run", "mine", "--out", tmp_path / name)
    assert exported.code == 0, exported.err
    trainer = Trainer(SMALL, "cpu")
    trainer.start_from(str(tmp_path / name))
    expected = read_weights(f"{summary.checkpoint_url}/ema.safetensors")
    assert "feature_aligned_embedder.proj.weight" in read_weights(str(tmp_path / name))
    assert all(torch.equal(value, expected[key]) for key, value in trainer.model.state_dict().items())


def test_weights_of_another_size_are_an_error(tmp_path: Path) -> None:
    other = DiT(**SMALL.model.model_copy(update={"depth": 1}).model_dump())
    safetensors.torch.save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="does not fit this network"):
        Trainer(SMALL, "cpu").start_from(str(tmp_path / "other.safetensors"))


def test_a_loss_that_is_not_a_number_stops_the_run(storage: Storage) -> None:
    settings = SMALL.optimisation.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0})
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step"):
        train(SMALL.model_copy(update={"optimisation": settings}), storage, "wild", steps=20, device="cpu")


@pytest.mark.slow
def test_several_processes_send_the_users_token_and_keep_the_lines_of_ray_from_the_results(tmp_path: Path) -> None:
    # Ray reads both variables when it is loaded. A batch of 16 has no three shares: the command ends there.
    code = (
        "import os, sys; from contextlib import suppress; from handdata.app import app; "
        "from handdata.schemas import UsageError\n"
        "with suppress(UsageError): app(['train', '--gpus', '3', '-w', sys.argv[1]], standalone_mode=False)\n"
        "from ray._private import ray_constants\n"
        "print(ray_constants.RAY_DEDUP_LOGS_SKIP_REGEX, os.environ.get('RAY_AUTH_MODE'))"
    )
    environment = clean_environment(RAY_AUTH_TOKEN="a-token")
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [".", "token"]


def test_samples_that_cannot_be_drawn_do_not_end_a_run(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflow(*arguments: object) -> None:
        raise RunError("the generated images hold numbers that are not finite")

    monkeypatch.setattr(Trainer, "draw", overflow)
    notes: list[str] = []
    assert train(SMALL, storage, "run", steps=1, device="cpu", on_note=notes.append).steps == 1
    assert notes == ["no samples are drawn at step 1: the generated images hold numbers that are not finite"]
