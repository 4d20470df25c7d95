"""Fixtures of tests of tasks: a small network in the published format."""

from pathlib import Path

import pytest
import torch

from handdata.trainer import presets
from handdata.trainer.presets import Preset
from tests.fixtures.published import published_state, small_published, write_vae


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Preset]:
    """A small network in the published format, and its settings."""
    folder = tmp_path_factory.mktemp("weights")
    preset = small_published(write_vae(folder / "vae"))
    torch.save({"ema_state_dict": published_state(preset)}, folder / "foundhand.pt")
    return folder / "foundhand.pt", preset


@pytest.fixture
def checkpoint(weights: tuple[Path, Preset], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The network's file; its preset is ``foundhand-xs``."""
    monkeypatch.setitem(presets.PRESETS, "foundhand-xs", weights[1])
    return weights[0]
