import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from trainer_fixtures import sample, write_dataset

from handdata.pipeline.storage import Storage
from handdata.schemas import RunError, UsageError, WeightsError
from handdata.trainer.checkpoints import export_foundhand, load_for_sampling, read_weights
from handdata.trainer.diffusion import Diffusion
from handdata.trainer.loop import Trainer, spread_timesteps, train
from handdata.trainer.metrics import condition_following, derangement
from handdata.trainer.model import DiT
from handdata.trainer.pairs import FramePair
from handdata.trainer.presets import PRESETS, DiffusionConfig, ModelConfig, Preset

SMALL = PRESETS["tiny"].model_copy(
    update={
        "model": ModelConfig(input_size=32, patch_size=8, latent_channels=3, hidden_size=32, depth=2, num_heads=2),
        "optimisation": PRESETS["tiny"].optimisation.model_copy(update={"batch_size": 4}),
    }
)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    samples = [sample("wave", frame, camera, timestamp_s=frame / 10) for frame in range(6) for camera in "ab"]
    samples += [sample("held-out", frame, split="val", timestamp_s=frame / 10) for frame in range(6)]
    storage = Storage(tmp_path / "workspace")
    write_dataset(storage, samples)
    return storage


def weights(checkpoint_url: str) -> dict[str, Tensor]:
    networks = {
        name: safetensors.torch.load_file(Path(checkpoint_url.removeprefix("file://")) / f"{name}.safetensors")
        for name in ("model", "ema")
    }
    return {f"{network}.{name}": tensor for network, state in networks.items() for name, tensor in state.items()}


def test_training_leaves_checkpoint_settings_and_metrics(storage: Storage) -> None:
    seen: list[int] = []
    summary = train(SMALL, storage, "first", steps=2, device="cpu", on_step=lambda step, *_: seen.append(step))
    assert seen == [1, 2]
    assert summary.steps == 2
    assert summary.loss is not None
    assert summary.validation is not None
    lines = [json.loads(line) for line in storage.read_bytes("runs/first/metrics.jsonl").splitlines()]
    assert [sorted(line) for line in lines] == [
        ["loss", "samples_per_s", "step"],
        ["permuted_loss", "step", "validation_loss"],
    ]
    assert storage.list_files("runs/first/tensorboard", "")
    settings = Preset.model_validate_json(storage.read_bytes("runs/first/settings.json"))
    assert settings == SMALL
    _, embedded = load_for_sampling(summary.run_url)
    assert Preset.model_validate(embedded) == SMALL


def test_a_resumed_run_has_the_weights_of_one_that_never_stopped(storage: Storage) -> None:
    straight = train(SMALL, storage, "straight", steps=4, device="cpu")
    train(SMALL, storage, "halted", steps=2, device="cpu")
    resumed = train(SMALL, storage, "halted", steps=4, resume=True, device="cpu")
    expected, found = weights(straight.checkpoint_url), weights(resumed.checkpoint_url)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    steps = [json.loads(line)["step"] for line in storage.read_bytes("runs/halted/metrics.jsonl").splitlines()]
    assert steps == [2, 2, 4, 4]


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


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    other = DiT(**SMALL.model.model_copy(update={"depth": 1}).model_dump())
    safetensors.torch.save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="does not fit this network"):
        Trainer(SMALL, "cpu").start_from(str(tmp_path / "other.safetensors"))


def test_a_loss_that_is_not_a_number_stops_the_run(storage: Storage) -> None:
    settings = SMALL.optimisation.model_copy(update={"learning_rate": 1e30, "warmup_steps": 0})
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step"):
        train(SMALL.model_copy(update={"optimisation": settings}), storage, "wild", steps=20, device="cpu")


def test_timesteps_cover_all_noise_levels_evenly() -> None:
    draws = torch.Generator().manual_seed(0)
    timesteps = spread_timesteps(10, 1000, draws)
    assert sorted((timesteps // 100).tolist()) == list(range(10))
    drawn = torch.cat([spread_timesteps(10, 1000, draws) for _ in range(400)]).float()
    assert drawn.mean().item() == pytest.approx(499.5, abs=5)


def test_a_derangement_moves_everything() -> None:
    for count in range(2, 20):
        moved = derangement(count, torch.Generator().manual_seed(count))
        assert sorted(moved.tolist()) == list(range(count))
        assert (moved != torch.arange(count)).all()


def test_condition_following_asks_both_questions_with_the_same_noise() -> None:
    batch = FramePair(*(torch.arange(4).float().view(4, 1, 1) for _ in FramePair._fields))
    asked: list[tuple[list[int], float]] = []

    def loss(pairs: FramePair, timesteps: Tensor, draws: torch.Generator) -> Tensor:
        asked.append((timesteps.tolist(), torch.rand((), generator=draws).item()))
        wrong = (pairs.target_keypoints != pairs.target_image).flatten()
        return 1.0 + wrong

    result = condition_following(loss, [batch], 1000)
    assert asked[0] == asked[1]
    assert (result.true_loss, result.permuted_loss, result.gain) == (1.0, 2.0, 0.5)


def test_a_perfect_clean_latent_has_no_loss_and_gives_back_the_noise() -> None:
    process = Diffusion(DiffusionConfig(prediction="clean"))
    x0, noise = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([0, 300, 700, 999])
    assert process.training_loss(x0, x0, noise, index).total.max() < 1e-5
    found = process.noise_output(x0, process.add_noise(x0, noise, index), index)
    torch.testing.assert_close(found, noise, atol=1e-4, rtol=1e-4)
    wrong = process.training_loss(x0 + 0.5, x0, noise, index).total
    torch.testing.assert_close(wrong, torch.full((4,), 0.25), atol=1e-3, rtol=1e-3)
