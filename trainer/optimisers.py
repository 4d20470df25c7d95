"""The optimiser of a run: AdamW, or Muon for the matrices of the blocks beside AdamW for all else."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from handdata.trainer.model import Block
from handdata.trainer.presets import OptimisationConfig


def make_optimiser(trained: nn.Module, settings: OptimisationConfig) -> Optimizer:
    """Return the optimiser that the settings ask for, over all parameters of a module."""
    if settings.optimiser == "muon":
        return MuonWithAdamW(trained, settings)
    return _adamw(trained.parameters(), settings)


class MuonWithAdamW(Optimizer):
    """Muon and AdamW as one optimiser: one list of groups, one state, one step.

    Muon takes the matrices of attention and MLP. What comes from outside or goes there (embeddings, modulations, the
    last layers) and all that is no matrix is AdamW's, as Muon's author has it.
    """

    def __init__(self, trained: nn.Module, settings: OptimisationConfig) -> None:
        matrices = [
            parameter
            for block in trained.modules()
            if isinstance(block, Block)
            for name, parameter in block.named_parameters()
            if parameter.ndim == 2 and not name.startswith("modulation.")
        ]
        chosen = {id(parameter) for parameter in matrices}
        rest = [parameter for parameter in trained.parameters() if id(parameter) not in chosen]
        self._muon = Muon(
            matrices,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            adjust_lr_fn="match_rms_adamw",  # so that one learning rate serves both
        )
        self._adamw = _adamw(rest, settings)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step of both."""
        self._muon.step(closure)  # type: ignore[no-untyped-call]
        self._adamw.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the state of an optimiser of the same groups."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let both work on the groups and the state of this one, which schedules and checkpoints know."""
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.state = self._adamw.state = self.state


def _adamw(parameters: Iterable[torch.Tensor], settings: OptimisationConfig) -> AdamW:
    return AdamW(
        parameters,
        lr=settings.learning_rate,
        betas=(0.9, settings.adam_beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
