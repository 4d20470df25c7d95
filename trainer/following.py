"""What a run measures of itself: does the network follow the target's keypoints?"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from handdata.trainer.data.batch import FramePair
from handdata.trainer.schedule import timesteps_at

BatchLoss = Callable[[FramePair, Tensor, torch.Generator], Tensor]
"""(batch of N pairs, timesteps (N,), generator of the noise) -> loss of each pair (N,)."""


@dataclass(frozen=True, slots=True)
class ConditionFollowing:
    """Losses over the same pairs, noise and timesteps.

    Args:
        true_loss: Loss with each target's own keypoints.
        permuted_loss: Loss with the keypoints of another target of the batch.

    """

    true_loss: float
    permuted_loss: float

    @property
    def gain(self) -> float:
        """How much lower the loss is with the true keypoints: 0 for a network that ignores them, 0.1 for 10%."""
        return 1 - self.true_loss / self.permuted_loss


def condition_following(
    batch_loss: BatchLoss, batches: Iterable[FramePair], train_steps: int, seed: int = 0, few_steps: int | None = None
) -> ConditionFollowing:
    """Compare the loss with true and with permuted target keypoints.

    Timesteps are spread evenly within each batch, in random order. Timesteps, noise and permutations follow from
    ``seed``, so that two networks, or one network at two times, get the same questions.

    Args:
        batch_loss: Loss of the network.
        batches: Batches of at least two pairs.
        train_steps: Timesteps are 0 to this - 1.
        seed: Seed of all draws.
        few_steps: Ask only at timesteps that a sampler of so many steps visits: others were not trained.

    """
    true_losses: list[float] = []
    permuted_losses: list[float] = []
    for number, batch in enumerate(batches):
        draws = torch.Generator().manual_seed(seed + number)
        count = len(batch.task)
        spread = (torch.arange(count) + torch.rand(count, generator=draws)) / count
        timesteps = timesteps_at(spread, train_steps, few_steps)[torch.randperm(count, generator=draws)]
        other = derangement(count, draws)
        permuted = batch._replace(
            target_keypoints=batch.target_keypoints[other], target_valid=batch.target_valid[other]
        )
        noise_seed = int(torch.randint(2**62, (), generator=draws))
        for pairs, losses in ((batch, true_losses), (permuted, permuted_losses)):
            losses += batch_loss(pairs, timesteps, torch.Generator().manual_seed(noise_seed)).tolist()
    return ConditionFollowing(fmean(true_losses), fmean(permuted_losses))


def derangement(count: int, generator: torch.Generator) -> Tensor:
    """Return a random permutation (count,) that leaves nothing in its place: one cycle through all."""
    cycle = torch.randperm(count, generator=generator)
    permutation = torch.empty_like(cycle)
    permutation[cycle] = cycle.roll(1)
    return permutation
