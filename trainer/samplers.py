"""Drawing samples: classifier-free guidance, and the loop from noise to latent.

Three small parts that tasks combine:

- ``guided``: one guided evaluation of the network;
- ``Predict``: a function (x_t, t) -> network output; a task that changes its conditions from step to step (video draws
  another reference at each) passes its own;
- ``denoise``: the loop over steps: the exact DDPM of the paper, DDIM, and diffusers' DPM-Solver++ and UniPC.

``sample`` joins them for the plain case: fixed conditions, such as gesture transfer and unconditional samples.
``repaint`` is a loop of its own: it draws a part of a latent.
"""

import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from handdata.trainer.conditioning import Task, null_conditions
from handdata.trainer.diffusion import Diffusion, Draws, draw_noise
from handdata.trainer.presets import DiffusionConfig, SamplerName, SamplingConfig

Predict = Callable[[Tensor, Tensor], Tensor]
"""(x_t (N, C, H, W), t (N,)) -> output (N, C or 2C, H, W): noise (or velocity), then the learned variance if any."""

Progress = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all)."""


def guided(
    model: nn.Module,
    x_t: Tensor,
    t: Tensor,
    target_cond: Tensor,
    ref_cond: Tensor,
    task: Tensor,
    config: SamplingConfig,
) -> Tensor:
    """Return the guided output (N, C or 2C, H, W) of the network.

    null + appearance scale * (reference alone - null) + pose scale * (reference and pose - reference alone), with the
    task in all but the null (Brooks et al. 2023, InstructPix2Pix, equation 3). Where both scales are one, as published,
    that is null + scale * (reference and pose - null). What is asked of the network at a step goes through it as one
    batch: two conditions for a joint scale, three for different ones, and one where nothing is guided.

    Args:
        model: Two-frame diffusion transformer.
        x_t: Noisy latents (N, C, H, W).
        t: Timesteps (N,).
        target_cond: Target condition (N, 43, H, W).
        ref_cond: Reference condition (N, C + 43, H, W).
        task: Tasks (N,).
        config: Scales of guidance, 1 being none, and how many of the predicted noise's first channels they act on (the
            published sampler: 3 of 4, a habit of DiT's). The rest, and the learned variance, are the conditional's.

    """
    appearance, pose = (
        config.guidance_scale if scale is None else scale
        for scale in (config.appearance_guidance, config.pose_guidance)
    )
    without_reference = ~ref_cond.flatten(1).any(1)
    if bool(without_reference.all()):
        appearance = pose  # the reference alone is the null
    null = null_conditions(target_cond, ref_cond, task)
    asked = [(target_cond, ref_cond, task)]
    if pose != appearance:
        asked.append((null[0], ref_cond, task.masked_fill(without_reference, Task.NULL)))
    if appearance != 1:
        asked.append(null)
    count = len(asked)
    output = model(
        x_t.repeat(count, 1, 1, 1), t.repeat(count), *(torch.cat(parts) for parts in zip(*asked, strict=True))
    )
    conditional, *others = output.chunk(count)
    if not others:
        return cast(Tensor, conditional)
    channels = config.guided_channels or x_t.shape[1]
    noise = torch.lerp(others[0][:, :channels], conditional[:, :channels], pose)
    if len(others) == 2:
        noise = noise + (appearance - 1) * (others[0] - others[1])[:, :channels]
    return torch.cat([noise, conditional[:, channels:]], dim=1)


@torch.no_grad()
def denoise(
    predict: Predict,
    noise: Tensor,
    *,
    scheduler: SamplerName,
    steps: int,
    diffusion: DiffusionConfig | None = None,
    clip_x0: float | None = None,
    generator: Draws | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Turn noise (N, C, H, W) into a latent of the same shape by ``steps`` evaluations of ``predict``.

    Args:
        predict: Network with its conditions.
        noise: Latent to start from.
        scheduler: ``ddpm`` is the published sampler (learned variance, about 250 steps); ``ddim`` (deterministic; Song
            et al. 2021, DDIM, equation 12), ``dpm++`` and ``unipc`` (second order, diffusers') need 10 to 50.
        steps: Number of denoising steps.
        diffusion: Noise schedule; None takes the published one.
        clip_x0: Bound that keeps each step's estimate of the clean latent within +- its value.
        generator: Source of the noise that ``ddpm`` adds at each step.
        progress: Called after each step.

    """
    schedule = diffusion or DiffusionConfig()
    process = Diffusion(schedule).to(noise.device)

    x = noise
    if scheduler == "ddpm":
        respaced = Diffusion(schedule, steps).to(noise.device)
        for done in range(steps):
            index = torch.full((len(x),), steps - 1 - done, device=x.device)
            t = respaced.timestep_map[index]
            output = _clipped(process, predict(x, t).float(), x, t, clip_x0)
            x = respaced.draw_previous(respaced.reverse_step(output, x, index), index, generator)
            if progress:
                progress(done + 1, steps)
        return x

    if scheduler == "ddim":
        for done in range(steps):
            # Starts at the last timestep, where x_t is the pure noise that it is given (Lin et al. 2023, table 2).
            timestep = round(process.steps * (1 - done / steps)) - 1
            after = timestep - process.steps // steps  # as diffusers has it: the next one, or one beside it
            t = torch.full((len(x),), timestep, device=x.device)
            output = _clipped(process, predict(x, t).float(), x, t, clip_x0)[:, : x.shape[1]]
            x = process.predict_x0(x, output, t)
            if after >= 0:
                x = process.add_noise(x, output, torch.full_like(t, after))
            if progress:
                progress(done + 1, steps)
        return x

    solver = _solver(scheduler, schedule)
    with warnings.catch_warnings():
        # diffusers 0.42 reads a tensor in a way that numpy 2.4 deprecates.
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy keyword", DeprecationWarning)
        solver.set_timesteps(steps, device=noise.device)
    for done, timestep in enumerate(solver.timesteps):
        t = timestep.expand(len(x))
        output = _clipped(process, predict(x, t).float(), x, t, clip_x0)
        x = solver.step(output[:, : x.shape[1]], timestep, x).prev_sample
        if progress:
            progress(done + 1, len(solver.timesteps))
    return x


def sample(
    model: nn.Module,
    target_cond: Tensor,
    ref_cond: Tensor | Callable[[], Tensor],
    task: Tensor,
    config: SamplingConfig,
    *,
    noise: Tensor | None = None,
    generator: Draws | None = None,
    diffusion: DiffusionConfig | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Draw one latent (N, C, H, W) for each of N conditions, with guidance; scaled as the network sees latents.

    Unconditional samples take the null conditions and a guidance scale of 1.

    Args:
        model: Two-frame diffusion transformer.
        target_cond: Target condition (N, 43, H, W).
        ref_cond: Reference condition (N, C + 43, H, W), or a function that gives that of each step.
        task: Tasks (N,).
        config: Scheduler, steps and guidance.
        noise: Latent to start from (N, C, H, W); None draws it by ``generator``, and needs one reference condition.
        generator: Source of all noise.
        diffusion: Noise schedule; None takes the published one.
        progress: Called after each step.

    """
    if noise is None:
        assert isinstance(ref_cond, Tensor)
        channels = ref_cond.shape[1] - target_cond.shape[1]
        shape = torch.Size((ref_cond.shape[0], channels, *ref_cond.shape[2:]))
        noise = draw_noise(shape, ref_cond.device, generator)

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        shown = ref_cond if isinstance(ref_cond, Tensor) else ref_cond()
        return guided(model, x_t, t, target_cond, shown, task, config)

    return denoise(
        predict,
        noise,
        scheduler=config.scheduler,
        steps=config.steps,
        diffusion=diffusion,
        clip_x0=config.clip_x0,
        generator=generator,
        progress=progress,
    )


@torch.no_grad()
def repaint(
    predict: Predict,
    known: Tensor,
    region: Tensor,
    *,
    steps: int,
    diffusion: DiffusionConfig | None = None,
    clip_x0: float | None = None,
    jump: int = 10,
    resamples: int = 10,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Draw the ``region`` (N or 1, 1, H, W, bool) of a latent anew so that it fits the rest, which stays ``known``.

    RePaint (Lugmayr et al. 2022, algorithm 1), with the exact DDPM: after every step the rest is the known latent with
    that step's noise.

    Args:
        predict: Network with its conditions.
        known: Latent (N, C, H, W) of the whole image.
        region: Latent pixels that are drawn anew.
        steps: Number of denoising steps.
        diffusion: Noise schedule; None takes the published one.
        clip_x0: Bound that keeps each step's estimate of the clean latent within +- its value.
        jump: Number of steps that are taken again, after going back by adding noise.
        resamples: How often each jump is taken, so that what is drawn and what is known come to agree.
        generator: Source of all noise.
        progress: Called after each step, down or up.

    """
    schedule = diffusion or DiffusionConfig()
    process, respaced = Diffusion(schedule).to(known.device), Diffusion(schedule, steps).to(known.device)
    order = _jumping(steps, jump, resamples)
    x = draw_noise(known.shape, known.device, generator)
    for done, (now, after) in enumerate(pairwise(order), start=1):
        index = torch.full((len(x),), now - 1, device=x.device)
        if after < now:
            t = respaced.timestep_map[index]
            output = _clipped(process, predict(x, t).float(), x, t, clip_x0)
            x = respaced.draw_previous(respaced.reverse_step(output, x, index), index, generator)
            rest = known
            if after:
                rest = respaced.add_noise(known, draw_noise(known.shape, known.device, generator), index - 1)
            x = torch.where(region, x, rest)
        else:
            x = respaced.add_step_noise(x, draw_noise(x.shape, x.device, generator), index + 1)
        if progress:
            progress(done, len(order) - 1)
    return x


def _jumping(steps: int, jump: int, resamples: int) -> list[int]:
    """Return the noise levels that RePaint goes through, from ``steps`` to 0, each step down or up by one."""
    left = dict.fromkeys(range(1, steps - jump + 1, jump), resamples - 1)
    order, level = [steps], steps
    while level > 0:
        level -= 1
        order.append(level)
        if left.get(level, 0) > 0:
            left[level] -= 1
            for _ in range(jump):
                level += 1
                order.append(level)
    return order


def _clipped(process: Diffusion, output: Tensor, x_t: Tensor, t: Tensor, clip_x0: float | None) -> Tensor:
    """Return an output with noise in its first channels that leaves the clean latent within +- ``clip_x0``."""
    output = process.noise_output(output, x_t, t)
    if clip_x0 is None:
        return output
    channels = x_t.shape[1]
    x0 = process.predict_x0(x_t, output[:, :channels], t).clamp(-clip_x0, clip_x0)
    return torch.cat([process.predict_noise(x_t, x0, t), output[:, channels:]], dim=1)


class _Scheduler(Protocol):
    """What is used of diffusers' scheduler (it carries no types)."""

    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int, device: torch.device) -> None: ...

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Any: ...


def _solver(name: SamplerName, config: DiffusionConfig) -> _Scheduler:
    # Here, since it loads scipy.stats, which takes a second.
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    kind = DPMSolverMultistepScheduler if name == "dpm++" else UniPCMultistepScheduler
    solver = kind(
        num_train_timesteps=config.train_steps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="linear",
        timestep_spacing="trailing",
        use_karras_sigmas=True,  # evenly spaced, few steps lose what an exact denoiser says varies
    )
    return cast(_Scheduler, solver)
