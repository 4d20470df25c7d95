"""The schedule shares each batch among processes and spreads noise levels."""

import pytest
import torch
from torch import Tensor

from handdata.schemas import UsageError
from handdata.trainer.presets import DiffusionConfig, Preset, SamplingOptions, merged
from handdata.trainer.samplers import denoise
from handdata.trainer.schedule import MicroBatches, Process, learning_rate_share, micro_batches, spread_timesteps
from tests.fixtures.training import SMALL, changed


@pytest.mark.parametrize(("processes", "micro"), [(1, None), (1, 3), (2, 2), (3, 4), (4, None), (6, 1)])
def test_processes_and_micro_batches_share_every_position_once(processes: int, micro: int | None) -> None:
    settings = changed(SMALL, batch_size=12, micro_batch_size=micro).optimisation
    shares = [list(MicroBatches(settings, Process(rank, processes), 5, 8)) for rank in range(processes)]
    for share in shares:
        assert len(share) == 3 * micro_batches(settings, Process(0, processes))
        assert len({len(batch) for batch in share}) == 1
    positions = sorted(position for share in shares for batch in share for position in batch)
    assert positions == list(range(5 * 12, 8 * 12))


def test_a_batch_that_cannot_be_shared_evenly_is_an_error() -> None:
    with pytest.raises(UsageError, match="batch of 4 pairs cannot be cut into 3 shares"):
        micro_batches(SMALL.optimisation, Process(0, 3))
    with pytest.raises(UsageError, match="micro batches of 3"):
        micro_batches(changed(SMALL, micro_batch_size=3).optimisation, Process())


def test_timesteps_cover_all_noise_levels_evenly() -> None:
    draws = torch.Generator().manual_seed(0)
    timesteps = spread_timesteps(10, 1000, draws)
    assert sorted((timesteps // 100).tolist()) == list(range(10))
    drawn = torch.cat([spread_timesteps(10, 1000, draws) for _ in range(400)]).float()
    assert drawn.mean().item() == pytest.approx(499.5, abs=5)


def test_logit_normal_timesteps_are_mostly_the_middle_ones() -> None:
    draws = torch.Generator().manual_seed(0)
    drawn = torch.cat([spread_timesteps(16, 1000, draws, "logit-normal") for _ in range(200)]).float()
    logits = torch.logit((drawn + 0.5) / 1000)
    assert float(logits.mean()) == pytest.approx(0, abs=0.05)
    assert float(logits.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("few", [1, 2, 3, 4, 7])
def test_a_network_for_few_steps_is_trained_at_the_timesteps_that_they_visit(few: int) -> None:
    visited: list[int] = []

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        visited.append(int(t[0]))
        return x_t

    denoise(
        predict, torch.zeros(1, 3, 4, 4), scheduler="ddim", steps=few, diffusion=DiffusionConfig(prediction="clean")
    )
    drawn = spread_timesteps(64, 1000, torch.Generator().manual_seed(0), few_steps=few)
    assert set(drawn.tolist()) == set(visited)


def test_a_network_for_few_steps_is_not_sampled_in_others() -> None:
    settings = {"diffusion": {"few_steps": 4}, "sampling": {"steps": 4}}
    preset = Preset.model_validate(merged(SMALL.model_dump(), settings))
    assert [SamplingOptions(steps=steps).applied_to(preset).steps for steps in (None, 1, 2)] == [4, 1, 2]
    for steps in (3, 8):
        with pytest.raises(UsageError, match=f"sampled in 4 denoising steps, not in {steps}"):
            SamplingOptions(steps=steps).applied_to(preset)
    assert SamplingOptions(steps=1, sampler="unipc").applied_to(preset).scheduler == "unipc"  # which is one step of all
    with pytest.raises(UsageError, match="the timesteps that ddim visits, not at those of dpm\\+\\+"):
        SamplingOptions(sampler="dpm++").applied_to(preset)


def test_the_learning_rate_falls_by_the_clock_where_a_run_ends_by_one() -> None:
    settings = changed(SMALL, steps=100, warmup_steps=10, decay="cosine").optimisation
    assert learning_rate_share(4, settings, 0.9) == learning_rate_share(4, settings)  # still warming up
    assert learning_rate_share(55, settings, 0.5) == pytest.approx(learning_rate_share(55, settings))
    assert learning_rate_share(20, settings, 1.0) == pytest.approx(0.05)
    assert learning_rate_share(20, settings, 1.2) == pytest.approx(0.05)
