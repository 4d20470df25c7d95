"""What follows from a step of a training run: learning rate, timesteps, random numbers, micro batches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch.distributed
from torch import Tensor
from torch.utils.data import Sampler

from handdata.schemas import UsageError
from handdata.trainer.presets import OptimisationConfig

FINAL_LEARNING_RATE_SHARE: Final = 0.05
"""Share of the learning rate that a cosine decay ends at."""


@dataclass(frozen=True, slots=True)
class Process:
    """One of the processes that train a network together; by default the only one.

    Args:
        rank: 0 to ``count`` - 1. The first one writes checkpoints, curves and pictures.
        count: Number of processes.

    """

    rank: int = 0
    count: int = 1


def learning_rate_share(step: int, settings: OptimisationConfig, done: float | None = None) -> float:
    """Return the share of the learning rate that a step takes: a linear warm-up, then the preset's decay.

    ``done`` is the share of the run that is over, 0 to 1; None counts steps.
    """
    if step < settings.warmup_steps:
        return (step + 1) / (settings.warmup_steps + 1)
    if settings.decay == "none":
        return 1.0
    if done is None:
        done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    done = min(1.0, done)
    return FINAL_LEARNING_RATE_SHARE + (1 - FINAL_LEARNING_RATE_SHARE) * (1 + math.cos(math.pi * done)) / 2


def spread_timesteps(
    count: int,
    steps: int,
    draws: torch.Generator,
    distribution: Literal["uniform", "logit-normal"] = "uniform",
    few_steps: int | None = None,
) -> Tensor:
    """Draw timesteps (count,) in 0 .. ``steps`` - 1: each one by the distribution, together spread evenly over it.

    With ``few_steps`` they are those that a sampler of so many steps visits.

    A batch that covers all noise levels has a steadier loss than one of independent draws (Kingma et al. 2021,
    Variational Diffusion Models, appendix I.1).
    """
    offsets = (torch.arange(count) + torch.rand((), generator=draws)) / count
    if distribution == "logit-normal":  # the distribution's quantiles
        offsets = torch.sigmoid(torch.special.ndtri(offsets))
    return timesteps_at(offsets, steps, few_steps)[torch.randperm(count, generator=draws)]


def timesteps_at(shares: Tensor, steps: int, few_steps: int | None = None) -> Tensor:
    """Return the timesteps at shares (count,), 0 to 1, of the noise schedule; 1 is its noisiest end.

    Args:
        shares: How far through the schedule.
        steps: Length of the schedule.
        few_steps: Take only timesteps that a sampler of so many steps visits, the nearest noisier one.

    """
    visits = few_steps or steps
    visit = (shares * visits).long().clamp(max=visits - 1) + 1
    return (visit * (steps / visits)).round().long() - 1


def pair_generator(seed: int, position: int) -> torch.Generator:
    """Return what a pair's noise and dropped conditions are drawn from: on a CPU, the same for any accelerator."""
    return torch.Generator().manual_seed(seed_of(seed, position, 2))


def seed_of(*entropy: int) -> int:
    """Return a seed of 63 bits that follows from some numbers."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def micro_batches(settings: OptimisationConfig, process: Process) -> int:
    """Return into how many micro batches a process's share of a batch is cut.

    Raises:
        UsageError: The batch cannot be shared evenly.

    """
    share, rest = divmod(settings.batch_size, process.count)
    micro = settings.micro_batch_size or max(share, 1)
    if rest or share % micro:
        raise UsageError(
            f"a batch of {settings.batch_size} pairs cannot be cut into {process.count} shares of micro batches of "
            f"{settings.micro_batch_size or share}",
            "choose optimisation.batch_size as a multiple of processes times micro_batch_size",
        )
    return share // micro


class MicroBatches(Sampler[list[int]]):
    """Gives a loader the positions of one process's micro batches for the steps after ``first_step``.

    Step n trains on positions (n - 1) B to n B - 1; each process takes an unbroken share of them.
    """

    def __init__(self, settings: OptimisationConfig, process: Process, first_step: int, last_step: int) -> None:
        self._batch_size = settings.batch_size
        self._share = settings.batch_size // process.count
        self._offset = process.rank * self._share
        self._micro = self._share // micro_batches(settings, process)
        self._steps = range(first_step, last_step)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            first = step * self._batch_size + self._offset
            for start in range(first, first + self._share, self._micro):
                yield list(range(start, start + self._micro))

    def __len__(self) -> int:
        return len(self._steps) * self._share // self._micro
