"""What ``handdata ablate`` promises: variants see what their names say, and what is done is not done again."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from handdata.jobs.ablate import QUESTIONS, Ablation, AblationRequest, Answer, ablate, as_markdown
from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.layout import list_checkpoints
from handdata.schemas import UsageError, WeightsError
from handdata.trainer.conditioning import reference_condition, target_condition
from handdata.trainer.model import DiT
from handdata.trainer.presets import PRESETS, ConditionsConfig, GeometryConfig
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
    without_mask = SMALL.model_copy(
        update={"model": SMALL.model.model_copy(update={"conditions": ConditionsConfig(reference_mask=False)})}
    )
    with pytest.raises(UsageError, match="nothing to compare for mask"):
        ablate(AblationRequest(without_mask, ["heatmaps", "mask"]), storage, tmp_path)
    with pytest.raises(UsageError, match="no question is called masks"):
        ablate(AblationRequest(SMALL, ["masks"]), storage, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_table_has_the_mean_the_spread_and_the_difference_of_the_same_seeds() -> None:
    def answer(variant: str, *psnr: float) -> Answer:
        names = ("psnr", "ssim", "psnr_box", "ssim_box", "detected", "pck@0.2")
        return Answer("mask", variant, {name: list(psnr) for name in names}, ["0" * 64])

    table = as_markdown(
        Ablation([answer("with", 20, 22), answer("without", 19, 21)], {}), AblationRequest(SMALL, ["mask"])
    )
    assert "| mask | with | 21.000 +- 1.414 |" in table
    assert "| mask | without | 20.000 +- 1.414 (-1.000 +- 0.000) |" in table


Ablate = Callable[..., CommandResult]


@pytest.fixture
def asked(tmp_path: Path, run_command: Callable[..., CommandResult], storage: Storage) -> Ablate:
    """`ablate` of networks of a second."""
    small = tmp_path / "small.toml"
    small.write_text(
        "[model]\npatch_size = 8\nhidden_size = 32\ndepth = 2\nnum_heads = 2\n"
        "[sampling]\nsteps = 2\n[monitoring]\npictures = 1\n[optimisation]\nbatch_size = 2\n"
    )

    def ask(*options: object) -> CommandResult:
        always = ("--workspace", storage.url(), "--seeds", 1, "--pairs", 2, "--config", small)
        return run_command("ablate", *always, *options)

    return ask


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A workspace of two videos to train on, and two that are held out."""
    storage = Storage(tmp_path / "workspace")
    samples = [
        sample(f"{split}{video}", at, split=split, timestamp_s=at / 10)
        for split in ("train", "val")
        for video in range(2)
        for at in range(3)
    ]
    write_dataset(storage, samples)
    return storage


def test_what_is_done_is_not_done_again_and_other_settings_are_other_runs(
    tmp_path: Path, asked: Ablate, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_dir = tmp_path / "found"
    usual = ("--what", "dropout, dropout", "--steps", 2, "--out", out_dir)
    first = asked(*usual)
    assert first.code == 0, first.err
    files = sorted(path.name for path in out_dir.iterdir())
    assert [re.sub("-[0-9a-f]{8}", "", name) for name in files] == [
        "ablate-base-0-unguided.json",
        "ablate-base-0.json",
        "ablate-no-dropout-0-unguided.json",
        "ablation.md",
    ]
    table = (out_dir / "ablation.md").read_text()
    assert all(table.count(f"| dropout | {variant.name} |") == 1 for variant in QUESTIONS["dropout"])
    assert all(f"- {fact}: " in table for fact in ("pairs", "pair rule", "size", "region", "detector"))
    scored = json.loads((out_dir / files[1]).read_text())
    assert table.count(scored["checkpoint"][:12]) == 2  # of both rows of that network

    with monkeypatch.context() as patched:
        for name in ("evaluate", "train"):
            patched.setattr(f"handdata.jobs.ablate.{name}", again)
        second = asked(*usual)
        assert second.code == 0, second.err
        assert (out_dir / "ablation.md").read_text() == table

    # A network of two steps is not one of a single step, and does not pass for it.
    fewer = asked("--what", "dropout", "--steps", 1, "--out", out_dir)
    assert fewer.code == 0, fewer.err
    assert "1 steps each" in (out_dir / "ablation.md").read_text()
    steps = {name: list_checkpoints(Storage(storage.url(f"runs/{name}"))) for name in storage.list_folders("runs")}
    assert sorted(of_run[-1][-1] for of_run in steps.values()) == ["1", "1", "2", "2"]


def again(*arguments: object, **named: object) -> None:
    raise AssertionError("it is done again")


def test_what_cannot_be_scored_is_said_before_anything_is_trained(
    tmp_path: Path, asked: Ablate, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = asked("--what", "mask", "--steps", 1, "--split", "test", "--out", tmp_path / "found")
    assert result.code == 2, result.err
    assert "test" in result.err
    assert not storage.list_folders("runs")
