"""How much a network follows its conditions is the loss that wrong ones add."""

import torch
from torch import Tensor

from handdata.trainer.data.batch import FramePair
from handdata.trainer.following import condition_following, derangement


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
