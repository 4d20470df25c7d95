"""A loss that grows without end stops a run; a steady one does not."""

import pytest
import torch

from handdata.schemas import RunError
from handdata.trainer.history import LossWatch


def test_a_loss_that_grows_without_end_stops_the_run_and_names_the_last_good_checkpoint() -> None:
    watch = LossWatch(divergence=5)
    for step in range(200):
        watch.add(step, 0.1, "run/step-200")
    with pytest.raises(RunError, match=r"training diverges.*run/step-200 is the last checkpoint before it"):
        for step in range(200, 400):
            watch.add(step, 1.0, "run/step-200")


def test_a_steady_loss_is_no_divergence() -> None:
    watch = LossWatch(divergence=5)
    losses = torch.rand(5000, generator=torch.Generator().manual_seed(0)) + 0.1
    for step, loss in enumerate(losses.tolist()):
        watch.add(step, loss, None)
