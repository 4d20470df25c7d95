"""The diffusion process: noising, the training loss and the exact reverse step.

Gaussian diffusion over T = 1000 steps with linear betas, noise prediction, and a learned variance that lies between the
posterior's and beta (Ho et al. 2020, DDPM; Nichol and Dhariwal 2021, improved DDPM, section 3). ``steps`` keeps fewer
of the T steps for sampling ("respacing", 250 as published).

Why not ``diffusers.DDPMScheduler`` here: it holds its tables in float32, where 1 - alpha_bar loses 3 to 4 digits at
small t (the published code computes in float64), and it clamps the last step's posterior variance to 1e-20 where the
published code takes the next one's. Steps and tables would differ from the published ones by more than 1e-5. The fast
sampler ``dpm++`` (``handdata.trainer.samplers``) is diffusers' own.

Shapes: N samples, C latent channels, H x W latent pixels. ``t`` and ``index`` (N,) are int64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handdata.trainer.presets import DiffusionConfig

DETAIL_WINDOW: Final = 8
"""Side of the windows, pixels, in which ``l1+gradient+detail`` compares the amount of detail; they overlap by half."""
_LEAST_DETAIL: Final = 0.01
"""Differences that are no detail: the root's slope would be without end at none."""


class BatchNoise:
    """The noise of a batch that goes through the network in parts: each part's is what the whole batch would get."""

    def __init__(self, generator: torch.Generator, count: int) -> None:
        self._generator, self._count = generator, count
        self._drawn: list[Tensor] = []

    def turn(self, number: int, shape: torch.Size) -> Tensor:
        """Return the batch's noise of a turn, 0 and on, for samples of some shape."""
        if number == len(self._drawn):
            size = (self._count, *shape)
            self._drawn.append(torch.randn(size, generator=self._generator, device=self._generator.device))
        return self._drawn[number]


class PartNoise:
    """The noise of one part of a batch, from its sample ``first`` on."""

    def __init__(self, batch: BatchNoise, first: int) -> None:
        self._batch, self._first, self._turn = batch, first, 0

    def draw(self, shape: torch.Size) -> Tensor:
        """Return the part's next noise."""
        noise = self._batch.turn(self._turn, shape[1:])[self._first : self._first + shape[0]]
        self._turn += 1
        return noise


Draws = torch.Generator | Sequence[torch.Generator] | PartNoise
"""Where random numbers of a batch come from: one generator for all, one for each of its N samples, a larger batch."""


@dataclass(frozen=True)
class TrainingLoss:
    """Loss of each sample (N,), and its parts."""

    total: Tensor
    mse: Tensor
    """Mean squared error of the predicted noise (or velocity, or clean latent); with ``l1+gradient`` that error."""
    variational: Tensor
    """The learned variance's part of the variational bound, bits a dimension; zero without a learned variance."""


@dataclass(frozen=True)
class ReverseStep:
    """The network's distribution of x_(t-1), and its estimate of the clean latent (each N, C, H, W)."""

    mean: Tensor
    log_variance: Tensor
    x0: Tensor


class Diffusion(nn.Module):
    """Tables of a diffusion process and what is computed from them.

    A module only so that ``.to(device)`` moves the tables; it has no parameters and no state to save. ``steps`` None
    keeps all of the process's steps, which training needs.
    """

    timestep_map: Tensor
    """(steps,) the process's timestep behind each kept step, rising: what the network is given as ``t``."""
    signal: Tensor
    noise: Tensor
    inverse_signal: Tensor
    noise_to_signal: Tensor
    posterior_x0: Tensor
    posterior_x_t: Tensor
    log_beta: Tensor
    log_posterior_variance: Tensor

    def __init__(self, config: DiffusionConfig | None = None, steps: int | None = None) -> None:
        super().__init__()
        config = config or DiffusionConfig()
        self.prediction = config.prediction
        self.min_snr_gamma = config.min_snr_gamma
        self.loss = config.loss
        betas = torch.linspace(config.beta_start, config.beta_end, config.train_steps, dtype=torch.float64)
        alpha_bar_all = torch.cumprod(1 - betas, dim=0)
        # Equally spaced with both ends kept, as published; equal to DDPMScheduler's timestep_spacing="linspace".
        # A single step is the last: sampling begins there, at pure noise.
        last, count = config.train_steps - 1, steps or config.train_steps
        kept = torch.linspace(0 if count > 1 else last, last, count, dtype=torch.float64).round().long()

        alpha_bar = alpha_bar_all[kept]
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        beta = 1 - alpha_bar / previous
        posterior_variance = beta * (1 - previous) / (1 - alpha_bar)
        # At the first step the posterior is a point, and its logarithm -inf: the second step's stands in.
        posterior_variance[0] = posterior_variance[1] if len(kept) > 1 else beta[0]

        tables = {
            "signal": alpha_bar.sqrt(),
            "noise": (1 - alpha_bar).sqrt(),
            "inverse_signal": (1 / alpha_bar).sqrt(),
            "noise_to_signal": (1 / alpha_bar - 1).sqrt(),
            "posterior_x0": beta * previous.sqrt() / (1 - alpha_bar),  # DDPM, equation 7
            "posterior_x_t": (1 - previous) * (1 - beta).sqrt() / (1 - alpha_bar),
            "log_beta": beta.log(),
            "log_posterior_variance": posterior_variance.log(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)
        self.register_buffer("timestep_map", kept, persistent=False)

    @property
    def steps(self) -> int:
        """Number of kept steps."""
        return len(self.timestep_map)

    def add_noise(self, x0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """Return x_t (N, C, H, W): the clean latent ``x0`` with ``noise`` mixed in up to step ``index`` (N,)."""
        return _at(self.signal, index) * x0 + _at(self.noise, index) * noise

    def add_step_noise(self, x_previous: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """Return x_t from x_(t-1) (N, C, H, W): one step of the forward process, to step ``index`` (N,)."""
        beta = _at(self.log_beta, index).exp()
        return (1 - beta).sqrt() * x_previous + beta.sqrt() * noise

    def predict_x0(self, x_t: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """Return the clean latent that x_t would come from if ``noise`` were what it holds."""
        # Not (x_t - noise part) / signal: the published order of operations, which rounds in the same places.
        return _at(self.inverse_signal, index) * x_t - _at(self.noise_to_signal, index) * noise

    def predict_noise(self, x_t: Tensor, x0: Tensor, index: Tensor) -> Tensor:
        """Return the noise that x_t holds if ``x0`` is its clean latent: the inverse of ``predict_x0``."""
        return (x_t - _at(self.signal, index) * x0) / _at(self.noise, index)

    def noise_output(self, output: Tensor, x_t: Tensor, index: Tensor) -> Tensor:
        """Return the network's ``output`` (N, C or 2C, H, W) at x_t with predicted noise in its first C channels."""
        if self.prediction == "noise":
            return output
        predicted, rest = output[:, : x_t.shape[1]].float(), output[:, x_t.shape[1] :]
        if self.prediction == "clean":
            noise = self.predict_noise(x_t, predicted, index)
        else:
            noise = _at(self.noise, index) * x_t + _at(self.signal, index) * predicted
        return torch.cat([noise, rest], dim=1)

    def posterior_mean(self, x0: Tensor, x_t: Tensor, index: Tensor) -> Tensor:
        """Return the mean of q(x_(t-1) | x_t, x0) (DDPM, equation 7)."""
        return _at(self.posterior_x0, index) * x0 + _at(self.posterior_x_t, index) * x_t

    def reverse_step(self, output: Tensor, x_t: Tensor, index: Tensor) -> ReverseStep:
        """Return the network's p(x_(t-1) | x_t) for its ``output`` (N, C or 2C, H, W).

        With 2C channels the second half v in [-1, 1] places the log variance between the posterior's (-1) and beta (1)
        (improved DDPM, equation 15); with C channels the posterior's variance is taken.
        """
        noise, variance = _split(output, x_t)
        lowest = _at(self.log_posterior_variance, index)
        if variance is None:
            log_variance = lowest.expand_as(x_t)
        else:
            share = (variance.float() + 1) / 2
            log_variance = share * _at(self.log_beta, index) + (1 - share) * lowest
        x0 = self.predict_x0(x_t, noise.float(), index)
        return ReverseStep(mean=self.posterior_mean(x0, x_t, index), log_variance=log_variance, x0=x0)

    def draw_previous(self, step: ReverseStep, index: Tensor, generator: Draws | None = None) -> Tensor:
        """Draw x_(t-1) (N, C, H, W) from a reverse step; the last one (index 0) returns the mean, without noise."""
        noise = draw_noise(step.mean.shape, step.mean.device, generator)
        return step.mean + (index > 0).view(-1, 1, 1, 1) * (0.5 * step.log_variance).exp() * noise

    def training_loss(
        self, output: Tensor, x0: Tensor, noise: Tensor, index: Tensor, weight: Tensor | None = None
    ) -> TrainingLoss:
        """Return the loss of each sample for the network's ``output`` at ``add_noise(x0, noise, index)``.

        Squared error of the predicted noise (or of the clean latent, or the velocity, that follows from it), weighed by
        ``min_snr_gamma``, plus, where the output has a variance half, the variational term, which trains the variance
        only (improved DDPM, section 3.1: the mean's gradient is stopped). With ``l1+gradient`` the size of the clean
        latent's error and of its differences between neighbours takes the squared error's place, with
        ``l1+gradient+detail`` also the error of how much detail there is. ``weight`` (N, 1, H, W) weighs latent pixels:
        0 where the crop lies outside the source image. A sample of zero weight has zero loss.
        """
        predicted, variance = _split(self.noise_output(output, self.add_noise(x0, noise, index), index), x0)
        if self.loss == "squared":
            error = self._squared_error(predicted, noise, index, weight)
        else:
            drawn = _split(output, x0)[0].float()
            error = _size_of_error(drawn - x0, weight)
            if self.loss == "l1+gradient+detail":
                error = error + _error_of_detail(drawn, x0, weight)
        if variance is None:
            return TrainingLoss(total=error, mse=error, variational=torch.zeros_like(error))
        variational = _mean(self._variational_bits(predicted.detach(), variance, x0, noise, index), weight)
        return TrainingLoss(total=error + variational, mse=error, variational=variational)

    def _squared_error(self, predicted: Tensor, noise: Tensor, index: Tensor, weight: Tensor | None) -> Tensor:
        """Return each sample's mean squared error of what is predicted, which follows from the ``predicted`` noise."""
        mse = _mean((predicted.float() - noise) ** 2, weight)
        if self.prediction == "clean":  # an error of the clean latent is that of the noise, times noise over signal
            mse = mse * self.noise_to_signal[index] ** 2
        elif self.prediction == "velocity":  # likewise, over signal
            mse = mse * self.inverse_signal[index] ** 2
        if self.min_snr_gamma is not None:
            mse = mse * self._min_snr_weight(index, self.min_snr_gamma)
        return mse

    def _min_snr_weight(self, index: Tensor, gamma: float) -> Tensor:
        """Return the weight of each step's squared error (Hang et al. 2023, equations 6 to 8)."""
        ratio = self.noise_to_signal[index] ** -2
        least = ratio.clamp(max=gamma)
        return {"clean": least, "noise": least / ratio, "velocity": least / (ratio + 1)}[self.prediction]

    def _variational_bits(
        self, predicted: Tensor, variance: Tensor, x0: Tensor, noise: Tensor, index: Tensor
    ) -> Tensor:
        """Return the bound's term of step ``index`` at each latent value, bits (N, C, H, W) (DDPM, equation 5)."""
        x_t = self.add_noise(x0, noise, index)
        step = self.reverse_step(torch.cat([predicted, variance], dim=1), x_t, index)
        true_mean = self.posterior_mean(x0, x_t, index)
        true_log_variance = _at(self.log_posterior_variance, index)
        divergence = 0.5 * (
            step.log_variance
            - true_log_variance
            - 1
            + (true_log_variance - step.log_variance).exp()
            + (true_mean - step.mean) ** 2 * (-step.log_variance).exp()
        )
        # The last step ends at data: there the bound is the likelihood of x0 itself.
        first = (index == 0).view(-1, 1, 1, 1)
        return torch.where(first, -_binned_log_likelihood(x0, step.mean, step.log_variance), divergence) / math.log(2)


def draw_noise(shape: torch.Size, device: torch.device, draws: Draws | None = None) -> Tensor:
    """Draw standard normal float32 noise on the generators' device: a CPU seed gives the same noise anywhere."""
    if draws is None:
        return torch.randn(shape, device=device, dtype=torch.float32)
    if isinstance(draws, torch.Generator):
        return torch.randn(shape, generator=draws, device=draws.device, dtype=torch.float32).to(device)
    if isinstance(draws, PartNoise):
        return draws.draw(shape).to(device)
    rows = [torch.randn(shape[1:], generator=draw, device=draw.device, dtype=torch.float32) for draw in draws]
    return torch.stack(rows).to(device)


def _at(table: Tensor, index: Tensor) -> Tensor:
    return table[index].view(-1, 1, 1, 1)


def _split(output: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
    channels = like.shape[1]
    if output.shape[1] == channels:
        return output, None
    return output[:, :channels], output[:, channels:]


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over all but the first axis, weighted by (N, 1, H, W)."""
    if weight is None:
        return values.mean(dim=(1, 2, 3))
    weighed = (values.mean(dim=1, keepdim=True) * weight).sum(dim=(1, 2, 3))
    return weighed / weight.sum(dim=(1, 2, 3)).clamp(min=1e-6)


def _size_of_error(error: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean size of an error (N, C, H, W), plus that of its differences to the right and down."""
    total = _mean(error.abs(), weight)
    for axis in (-1, -2):
        total = total + _mean(error.diff(dim=axis).abs(), None if weight is None else _of_both(weight, axis))
    return total


def _error_of_detail(drawn: Tensor, truth: Tensor, weight: Tensor | None) -> Tensor:
    """Return how far the amount of detail is off in small windows, in each sample (N,).

    Where a finger's edge may be here or there, the least error is a blur between, which has less detail than either.
    A window's detail is the root of the mean square of the differences between neighbours.
    """
    total = torch.zeros_like(drawn[:, 0, 0, 0])
    for axis in (-1, -2):
        both = _of_both(torch.ones_like(drawn[:, :1]) if weight is None else weight, axis)
        window = [min(DETAIL_WINDOW, side) for side in both.shape[-2:]]
        pooled = partial(F.avg_pool2d, kernel_size=window, stride=[max(1, side // 2) for side in window])
        share = pooled(both)
        details = [
            (pooled(values.diff(dim=axis).square() * both) / share.clamp(min=1e-6) + _LEAST_DETAIL**2).sqrt()
            for values in (drawn, truth)
        ]
        total = total + _mean((details[0] - details[1]).abs(), share)
    return total


def _of_both(weight: Tensor, axis: int) -> Tensor:
    """Return the weight of each difference between neighbours: that of both of them."""
    pixels = weight.shape[axis] - 1
    return weight.narrow(axis, 1, pixels) * weight.narrow(axis, 0, pixels)


def _binned_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the log probability (nats) that a Gaussian gives to x's bin of width 2/255, the outermost bins being open.

    DDPM, equation 13, with the normal distribution function approximated by tanh as in DiT and its ancestors, so that
    the published loss is reproduced. (The bins are those of 8-bit pixels; on latents the term is a convention.)
    """
    inverse_deviation = (-0.5 * log_variance).exp()
    upper = _normal_cdf((x - mean + 1 / 255) * inverse_deviation)
    lower = _normal_cdf((x - mean - 1 / 255) * inverse_deviation)
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
