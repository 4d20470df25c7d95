"""Noising, loss, reverse steps and samplers: the published numbers, and that each sampler finds the data."""

import math
from pathlib import Path
from typing import cast, get_args

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import load_file
from torch import Tensor, nn

from handdata.trainer.conditioning import Task, null_conditions
from handdata.trainer.diffusion import Diffusion
from handdata.trainer.presets import DiffusionConfig, SamplerName, SamplingConfig
from handdata.trainer.samplers import denoise, sample


@pytest.fixture(scope="module")
def published(shared_dir: Path) -> dict[str, Tensor]:
    return load_file(shared_dir / "parity" / "diffusion_steps.safetensors")


def test_a_single_step_begins_at_pure_noise_and_ends_at_the_clean_latent() -> None:
    one = Diffusion(DiffusionConfig(prediction="clean"), steps=1)
    assert one.timestep_map.tolist() == [999]
    x0, x_t, index = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)
    noise = Diffusion().predict_noise(x_t, x0, one.timestep_map[index])
    torch.testing.assert_close(one.draw_previous(one.reverse_step(noise, x_t, index), index), x0, rtol=1e-3, atol=1e-4)


def test_training_loss_is_the_published_one(published: dict[str, Tensor]) -> None:
    loss = Diffusion().training_loss(published["model_out"], published["x0"], published["noise"], published["t_train"])
    torch.testing.assert_close(loss.mse, published["mse"], rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.variational, published["vb"], rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.total, published["loss"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("index", [0, 1, 77, 249])
def test_reverse_step_of_250_is_the_published_one(published: dict[str, Tensor], index: int) -> None:
    respaced = Diffusion(steps=250)
    step = respaced.reverse_step(published["model_out"], published["x"], torch.full((4,), index))
    assert torch.equal(respaced.timestep_map, published["timestep_map"])
    for name, value in (("mean", step.mean), ("logvar", step.log_variance), ("x0", step.x0)):
        torch.testing.assert_close(value, published[f"{name}_{index}"], rtol=1e-5, atol=1e-7)


def test_noising_agrees_with_diffusers() -> None:
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02)
    x0, noise, t = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.tensor([0, 10, 500, 999])
    expected = scheduler.add_noise(x0, noise, t)
    # Not closer: diffusers computes 1 - alpha_bar in float32.
    torch.testing.assert_close(Diffusion().add_noise(x0, noise, t), expected, rtol=1e-3, atol=1e-4)


def test_clean_latent_and_noise_are_recovered_from_each_other() -> None:
    diffusion = Diffusion()
    x0, noise, t = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8), torch.tensor([5, 200, 700])
    x_t = diffusion.add_noise(x0, noise, t)
    torch.testing.assert_close(diffusion.predict_x0(x_t, noise, t), x0, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(diffusion.predict_noise(x_t, x0, t), noise, rtol=1e-3, atol=1e-3)


def test_variational_term_trains_the_variance_and_leaves_the_mean_alone() -> None:
    output = torch.randn(2, 6, 4, 4, requires_grad=True)
    x0, noise, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([0, 300])
    Diffusion().training_loss(output, x0, noise, t).variational.sum().backward()
    assert output.grad is not None
    assert not output.grad[:, :3].any()
    assert output.grad[:, 3:].any()


@pytest.mark.parametrize("prediction", ["noise", "clean", "velocity"])
def test_loss_compares_what_the_network_predicts(prediction: str) -> None:
    diffusion = Diffusion(DiffusionConfig.model_validate({"prediction": prediction}))
    x0, noise, error = (torch.randn(4, 3, 4, 4) for _ in range(3))
    t = torch.tensor([20, 300, 600, 990])
    signal, level = (table[t].view(-1, 1, 1, 1) for table in (diffusion.signal, diffusion.noise))
    truth = {"noise": noise, "clean": x0, "velocity": signal * noise - level * x0}[prediction]
    x_t = diffusion.add_noise(x0, noise, t)
    torch.testing.assert_close(diffusion.noise_output(truth, x_t, t), noise, rtol=1e-3, atol=1e-3)
    loss = diffusion.training_loss(truth + error, x0, noise, t)
    torch.testing.assert_close(loss.total, error.square().mean(dim=(1, 2, 3)), rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("prediction", ["noise", "clean", "velocity"])
def test_min_snr_weighs_the_squared_error_by_its_formula_and_leaves_the_variance_alone(prediction: str) -> None:
    settings = {"prediction": prediction}
    plain = Diffusion(DiffusionConfig.model_validate(settings))
    weighed = Diffusion(DiffusionConfig.model_validate(settings | {"min_snr_gamma": 5}))
    output, x0, noise = torch.randn(4, 6, 4, 4), torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4)
    t = torch.tensor([0, 100, 300, 900])
    ratio = DDPMScheduler(beta_start=1e-4, beta_end=0.02).alphas_cumprod[t]
    ratio = ratio / (1 - ratio)
    expected = {
        "noise": (5 / ratio).clamp(max=1), "clean": ratio.clamp(max=5), "velocity": ratio.clamp(max=5) / (ratio + 1)
    }[prediction]  # fmt: skip
    before, after = (diffusion.training_loss(output, x0, noise, t) for diffusion in (plain, weighed))
    torch.testing.assert_close(after.mse, before.mse * expected, rtol=1e-3, atol=0)
    assert torch.equal(after.variational, before.variational)


def test_velocity_prediction_learns_two_points() -> None:
    torch.manual_seed(0)
    diffusion = Diffusion(DiffusionConfig(prediction="velocity"))
    network = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        features = torch.stack([x_t.flatten(), t / 1000], dim=1)
        return network(features).view(-1, 1, 1, 1)

    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(600):
        x0 = torch.randint(2, (256, 1, 1, 1)) * 2.0 - 1
        t, noise = torch.randint(1000, (256,)), torch.randn(256, 1, 1, 1)
        loss = diffusion.training_loss(predict(diffusion.add_noise(x0, noise, t), t), x0, noise, t).total.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    settings = DiffusionConfig(prediction="velocity")
    drawn = denoise(predict, torch.randn(400, 1, 1, 1), scheduler="ddim", steps=40, diffusion=settings)

    assert float((drawn.abs() - 1).abs().median()) < 0.1
    assert 0.3 < float((drawn > 0).float().mean()) < 0.7


def test_loss_without_learned_variance_is_the_squared_error() -> None:
    output, x0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    loss = Diffusion().training_loss(output, x0, noise, torch.tensor([3, 900]))
    torch.testing.assert_close(loss.total, (output - noise).square().mean(dim=(1, 2, 3)))
    assert not loss.variational.any()


def test_loss_ignores_what_lies_outside_the_image() -> None:
    output, x0, noise = torch.randn(2, 6, 4, 4), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    inside = torch.ones(2, 1, 4, 4)
    inside[0, :, :, :2] = 0
    inside[1] = 0
    t = torch.tensor([0, 400])
    changed = output.clone()
    changed[0, :, :, :2] += 1
    diffusion = Diffusion()

    loss = diffusion.training_loss(output, x0, noise, t, weight=inside)

    assert torch.equal(diffusion.training_loss(changed, x0, noise, t, weight=inside).total, loss.total)
    cropped = diffusion.training_loss(output[..., 2:], x0[..., 2:], noise[..., 2:], t)
    torch.testing.assert_close(loss.total[0], cropped.total[0])
    assert loss.total[1] == 0
    ones = diffusion.training_loss(output, x0, noise, t, weight=torch.ones(2, 1, 4, 4))
    torch.testing.assert_close(ones.total, diffusion.training_loss(output, x0, noise, t).total)


def test_last_reverse_step_adds_no_noise() -> None:
    diffusion = Diffusion(steps=50)
    x_t, output = torch.randn(2, 3, 4, 4), torch.randn(2, 6, 4, 4)
    last, earlier = torch.zeros(2, dtype=torch.long), torch.full((2,), 30)
    step = diffusion.reverse_step(output, x_t, last)
    assert torch.equal(diffusion.draw_previous(step, last), step.mean)
    step = diffusion.reverse_step(output, x_t, earlier)
    assert not torch.equal(diffusion.draw_previous(step, earlier), step.mean)


class GaussianData(nn.Module):
    """The exact denoiser of data drawn from a normal distribution whose mean the first target channel gives."""

    deviation = 0.2

    def __init__(self) -> None:
        super().__init__()
        self.diffusion = Diffusion()
        self.calls: list[int] = []

    def forward(self, x_t: Tensor, t: Tensor, target_cond: Tensor, ref_cond: Tensor, task: Tensor) -> Tensor:
        self.calls.append(len(x_t))
        signal, noise = (table[t].view(-1, 1, 1, 1) for table in (self.diffusion.signal, self.diffusion.noise))
        mean = target_cond[:, :1]
        share = signal * self.deviation**2 / (signal**2 * self.deviation**2 + noise**2)
        x0 = mean + share * (x_t - signal * mean)
        predicted = self.diffusion.predict_noise(x_t, x0, t)
        return torch.cat([predicted, torch.full_like(predicted, -1.0)], dim=1)


def gaussian_conditions(count: int, mean: float) -> tuple[Tensor, Tensor, Tensor]:
    target = torch.zeros(count, 43, 4, 4)
    target[:, 0] = mean
    return target, torch.zeros(count, 46, 4, 4), torch.full((count,), Task.POSE_CHANGE)


@pytest.mark.parametrize(("scheduler", "steps"), [("ddpm", 100), ("ddim", 30), ("dpm++", 20), ("unipc", 12)])
def test_each_sampler_draws_from_the_data_distribution(scheduler: str, steps: int) -> None:
    config = SamplingConfig.model_validate({"scheduler": scheduler, "steps": steps, "guidance_scale": 1})
    seen: list[tuple[int, int]] = []
    latents = sample(
        GaussianData(),
        *gaussian_conditions(256, mean=0.7),
        config,
        generator=torch.Generator().manual_seed(0),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert latents.shape == (256, 3, 4, 4)
    assert float(latents.mean()) == pytest.approx(0.7, abs=0.03)
    assert float(latents.std()) == pytest.approx(GaussianData.deviation, abs=0.04)
    assert seen == [(done + 1, steps) for done in range(steps)]


@pytest.mark.parametrize("steps", [1, 4, 7, 30])
def test_ddim_takes_the_steps_of_diffusers(steps: int) -> None:
    model, conditions = GaussianData(), gaussian_conditions(4, mean=0.7)

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        output: Tensor = model(x_t, t, *conditions)
        return output

    theirs = DDIMScheduler(  # type: ignore[no-untyped-call]
        beta_schedule="linear", timestep_spacing="trailing", clip_sample=False
    )
    theirs.set_timesteps(steps)
    noise = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = noise
    for timestep in theirs.timesteps:
        expected = theirs.step(predict(expected, timestep.expand(4))[:, :3], timestep, expected).prev_sample
    torch.testing.assert_close(denoise(predict, noise, scheduler="ddim", steps=steps), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheduler", get_args(SamplerName))
def test_samples_repeat_with_the_same_seed(scheduler: str) -> None:
    config = SamplingConfig.model_validate({"scheduler": scheduler, "steps": 5})
    drawn = [
        sample(GaussianData(), *gaussian_conditions(2, 0.3), config, generator=torch.Generator().manual_seed(seed))
        for seed in (4, 4, 5)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_guidance_moves_samples_away_from_the_null_condition() -> None:
    model = GaussianData()
    config = SamplingConfig(scheduler="ddim", steps=20, guidance_scale=2.0)
    latents = sample(model, *gaussian_conditions(64, 0.4), config, generator=torch.Generator().manual_seed(0))
    assert float(latents.mean()) == pytest.approx(0.8, abs=0.03)  # null is 0, so twice the distance
    assert model.calls == [128] * 20


def test_unconditional_samples_take_one_pass_a_step() -> None:
    model = GaussianData()
    config = SamplingConfig(scheduler="ddim", steps=10, guidance_scale=1.0)
    latents = sample(
        model, *null_conditions(*gaussian_conditions(64, 0.4)), config, generator=torch.Generator().manual_seed(0)
    )
    assert float(latents.mean()) == pytest.approx(0, abs=0.03)
    assert model.calls == [64] * 10


@pytest.mark.parametrize("scheduler", get_args(SamplerName))
def test_clipping_keeps_the_clean_latent_in_range(scheduler: str) -> None:
    config = SamplingConfig.model_validate({"scheduler": scheduler, "steps": 10, "guidance_scale": 1, "clip_x0": 0.5})
    latents = sample(GaussianData(), *gaussian_conditions(16, 2.0), config, generator=torch.Generator().manual_seed(0))
    assert float(latents.max()) <= 0.5 + 1e-3
    assert float(latents.mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("scheduler", get_args(SamplerName))
def test_in_one_step_every_sampler_gives_the_estimate_of_the_clean_latent(scheduler: SamplerName) -> None:
    model, conditions = GaussianData(), gaussian_conditions(4, mean=0.7)
    noise = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    last = torch.full((4,), 999)
    expected = Diffusion().predict_x0(noise, model(noise, last, *conditions)[:, :3], last)
    drawn = denoise(lambda x_t, t: cast(Tensor, model(x_t, t, *conditions)), noise, scheduler=scheduler, steps=1)
    torch.testing.assert_close(drawn, expected, atol=1e-3, rtol=1e-3)


def test_conditions_may_change_from_step_to_step() -> None:
    model, target_means = GaussianData(), iter([0.0] * 15 + [0.9] * 5)

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        output: Tensor = model(x_t, t, *gaussian_conditions(len(x_t), next(target_means)))
        return output

    latents = denoise(predict, torch.randn(8, 3, 4, 4), scheduler="ddim", steps=20)
    assert float(latents.mean()) > 0.2
    assert math.isfinite(float(latents.sum()))


def test_a_perfect_clean_latent_has_no_loss_and_gives_back_the_noise() -> None:
    process = Diffusion(DiffusionConfig(prediction="clean"))
    x0, noise = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([0, 300, 700, 999])
    assert process.training_loss(x0, x0, noise, index).total.max() < 1e-5
    found = process.noise_output(x0, process.add_noise(x0, noise, index), index)
    torch.testing.assert_close(found, noise, atol=1e-4, rtol=1e-4)
    wrong = process.training_loss(x0 + 0.5, x0, noise, index).total
    torch.testing.assert_close(wrong, torch.full((4,), 0.25), atol=1e-3, rtol=1e-3)
