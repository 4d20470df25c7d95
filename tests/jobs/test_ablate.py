"""What ``handdata ablate`` promises: variants see what their names say, and what is done is not done again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from handdata.jobs.ablate import QUESTIONS, AblationRequest, Answer, ablate, as_markdown
from handdata.pipeline.storage import Storage
from handdata.schemas import UsageError, WeightsError
from handdata.trainer.conditioning import reference_condition, target_condition
from handdata.trainer.model import DiT
from handdata.trainer.presets import PRESETS, GeometryConfig
from handdata.trainer.weights import write_foundhand
from tests.fixtures.commands import CommandResult
from tests.fixtures.samples import sample, write_dataset
from tests.fixtures.training import SIZES, SMALL

SIZE = SIZES.input_size


def network(**conditions: object) -> DiT:
    """A network that says something: its last layer is no longer zero."""
    torch.manual_seed(0)
    model = DiT(**SIZES.model_dump(exclude={"conditions"}), conditions=conditions)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def drawn(model: DiT, order: list[int], with_mask: bool = True) -> torch.Tensor:
    """Its output where the target's joints are taken in some order."""
    generator = torch.Generator().manual_seed(0)
    joints = torch.rand(1, 42, 2, generator=generator) * (SIZE - 2) + 1
    valid = torch.ones(1, 42, dtype=torch.bool)
    latent = torch.randn(1, 3, SIZE, SIZE, generator=generator)
    mask = torch.full((1, 1, SIZE, SIZE), float(with_mask))
    with torch.no_grad():
        found: torch.Tensor = model(
            latent,
            torch.tensor([500]),
            target_condition(joints[:, order], valid, (SIZE, SIZE)),
            reference_condition(latent, joints, valid, mask),
            torch.tensor([0]),
        )
    return found


AS_THEY_ARE = list(range(42))
SWAPPED = [*range(21, 42), *range(21)]


def test_a_summed_channel_tells_no_joint_from_another_and_heatmaps_and_skeletons_do() -> None:
    outputs = {}
    for keypoints in ("heatmaps", "sum", "skeleton"):
        model = network(keypoints=keypoints)
        outputs[keypoints] = drawn(model, AS_THEY_ARE)
        same = torch.allclose(outputs[keypoints], drawn(model, SWAPPED), atol=1e-5)
        assert same == (keypoints == "sum")
    assert not torch.allclose(outputs["heatmaps"], outputs["sum"])
    assert not torch.allclose(outputs["heatmaps"], outputs["skeleton"])


def test_a_network_without_the_mask_does_not_look_at_it() -> None:
    without = network(reference_mask=False)
    assert torch.equal(drawn(without, AS_THEY_ARE), drawn(without, AS_THEY_ARE, with_mask=False))
    with_it = network()
    assert not torch.equal(drawn(with_it, AS_THEY_ARE), drawn(with_it, AS_THEY_ARE, with_mask=False))


def test_joints_that_are_not_there_are_not_drawn() -> None:
    model = network(keypoints="skeleton")
    nothing = torch.zeros(1, 43, SIZE, SIZE)
    assert not model.shown(nothing).any()


def test_what_sees_less_than_the_published_network_is_not_exported_as_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="shown less"):
        write_foundhand(network(reference_mask=False), tmp_path / "weights.pt")


def test_geometry_would_show_what_the_keypoints_hide() -> None:
    model = PRESETS["tiny"].model.model_dump() | {"geometry": GeometryConfig(limbs=True)}
    with pytest.raises(ValidationError, match="geometry would show the joints"):
        type(SIZES).model_validate(model | {"conditions": {"keypoints": "sum"}})


def test_a_preset_that_a_question_does_not_fit_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "workspace")
    with pytest.raises(UsageError, match="geometry would show"):
        ablate(AblationRequest(PRESETS["carried-64"], ["mask", "heatmaps"]), storage, tmp_path)
    with pytest.raises(UsageError, match="no question is called masks"):
        ablate(AblationRequest(SMALL, ["masks"]), storage, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_table_has_the_mean_the_spread_and_the_difference_of_the_same_seeds() -> None:
    def answer(variant: str, *psnr: float) -> Answer:
        names = ("psnr", "ssim", "psnr_box", "ssim_box", "detected", "pck@0.2")
        return Answer("mask", variant, {name: list(psnr) for name in names})

    table = as_markdown([answer("with", 20, 22), answer("without", 19, 21)], AblationRequest(SMALL, ["mask"]))
    assert "| mask | with | 21.000 +- 1.414 |" in table
    assert "| mask | without | 20.000 +- 1.414 (-1.000 +- 0.000) |" in table


def test_what_is_done_is_not_done_again(
    tmp_path: Path, run_command: Callable[..., CommandResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(tmp_path / "workspace")
    samples = [
        sample(f"{split}{video}", at, split=split, timestamp_s=at / 10)
        for split in ("train", "val")
        for video in range(2)
        for at in range(3)
    ]
    write_dataset(storage, samples)
    small = tmp_path / "small.toml"
    small.write_text(
        "[model]\npatch_size = 8\nhidden_size = 32\ndepth = 2\nnum_heads = 2\n"
        "[sampling]\nsteps = 2\n[monitoring]\npictures = 1\n[optimisation]\nbatch_size = 2\n"
    )
    asked = ("ablate", "--workspace", storage.url(), "--what", "dropout", "--seeds", 1, "--steps", 2, "--pairs", 2)
    asked += ("--config", small)
    asked += ("--out", tmp_path / "found")
    first = run_command(*asked)
    assert first.code == 0, first.err
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == [
        "ablate-base-0-unguided.json",
        "ablate-base-0.json",
        "ablate-no-dropout-0-unguided.json",
        "ablation.md",
    ]
    table = (tmp_path / "found/ablation.md").read_text()
    assert all(variant.name in table for variant in QUESTIONS["dropout"])
    assert json.loads((tmp_path / "found/ablate-base-0.json").read_text())["asked"]["pairs"] == 2

    def again(*arguments: object, **named: object) -> None:
        raise AssertionError("it is done again")

    monkeypatch.setattr("handdata.jobs.ablate.evaluate", again)
    second = run_command(*asked)
    assert second.code == 0, second.err
    assert (tmp_path / "found/ablation.md").read_text() == table
