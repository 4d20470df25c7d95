"""The network with its own geometry: off it is the published one, and it starts from published weights unchanged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from handdata.pipeline.storage import Storage
from handdata.schemas import WeightsError
from handdata.trainer.checkpoints import load_for_sampling
from handdata.trainer.conditioning import Task, null_conditions, reference_condition, target_condition
from handdata.trainer.data.batch import FramePair
from handdata.trainer.data.loading import pair_batches
from handdata.trainer.data.pairs import open_pairs
from handdata.trainer.diffusion import Diffusion
from handdata.trainer.model import DiT
from handdata.trainer.presets import PRESETS, DiffusionConfig, GeometryConfig, ModelConfig, Preset, SamplingConfig
from handdata.trainer.samplers import guided
from handdata.trainer.trainer import Trainer
from handdata.trainer.weights import export_foundhand, write_foundhand
from tests.fixtures.training import SMALL, changed, weights, write_two_sequences

SIZES = SMALL.model
SIZE = SIZES.input_size
ALL_PARTS = {"limbs": True, "reference_at_target": True, "residual": "carried", "head": "conv"}
GEOMETRIES = [
    {"limbs": True},
    {"reference_at_target": True},
    {"reference_at_target": True, "residual": "reference"},
    {"residual": "carried"},
    {"head": "conv"},
    ALL_PARTS,
]


def network(**geometry: Any) -> DiT:
    torch.manual_seed(0)
    return DiT(**SIZES.model_copy(update={"geometry": GeometryConfig(**geometry)}).model_dump())


def opened(model: DiT) -> DiT:
    """Return the network with gates open, so that every input reaches the output."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval().requires_grad_(False)


def inputs(count: int = 3, joints: int = 42) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    keypoints = 2 + torch.rand(2, count, 42, 2, generator=generator) * (SIZE - 4)
    valid = (torch.arange(42) < joints).expand(count, 42)
    picture = torch.rand(count, 3, SIZE, SIZE, generator=generator) * 2 - 1
    mask = (torch.rand(count, 1, SIZE, SIZE, generator=generator) > 0.8).float()
    return (
        torch.randn(count, 3, SIZE, SIZE, generator=generator),
        torch.tensor([0, 400, 999])[:count],
        target_condition(keypoints[0], valid, (SIZE, SIZE)),
        reference_condition(picture, keypoints[1], valid, mask),
        torch.full((count,), int(Task.POSE_CHANGE)),
    )


def test_geometry_is_off_by_default_and_leaves_the_published_presets_as_they_are() -> None:
    assert all(preset.model.geometry == GeometryConfig() for name, preset in PRESETS.items() if "foundhand" in name)
    torch.manual_seed(0)
    without = DiT(**SIZES.model_dump(exclude={"geometry"}))
    state = network().state_dict()
    assert state.keys() == without.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in without.state_dict().items())


@pytest.mark.parametrize(
    "geometry", [{"limbs": True}, {"reference_at_target": True}, {"limbs": True, "reference_at_target": True}]
)
@pytest.mark.parametrize("published", [True, False])
def test_plain_weights_give_their_own_output_at_step_0(
    geometry: dict[str, Any], published: bool, tmp_path: Path
) -> None:
    plain = opened(network())
    state = export_foundhand(plain.state_dict()) if published else plain.state_dict()
    safetensors.torch.save_file(state, tmp_path / "plain.safetensors")
    sizes = SIZES.model_copy(update={"geometry": GeometryConfig(**geometry)})
    trainer = Trainer(SMALL.model_copy(update={"model": sizes}), "cpu")
    trainer.start_from(str(tmp_path / "plain.safetensors"))
    expected = plain(*inputs())
    assert expected.abs().max() > 0.1
    assert torch.equal(trainer.model(*inputs()), expected)
    assert torch.equal(trainer.averaged_model(*inputs()), expected)


def test_plain_weights_do_not_fit_another_head(tmp_path: Path) -> None:
    safetensors.torch.save_file(network().state_dict(), tmp_path / "plain.safetensors")
    sizes = SIZES.model_copy(update={"geometry": GeometryConfig(head="conv")})
    with pytest.raises(WeightsError, match=r"does not fit this network: final_layer"):
        Trainer(SMALL.model_copy(update={"model": sizes}), "cpu").start_from(str(tmp_path / "plain.safetensors"))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_input_of_the_geometry_is_seen(geometry: dict[str, Any]) -> None:
    model = opened(network(**geometry))
    x_t, t, target, reference, task = inputs()
    output = model(x_t, t, target, reference, task)
    assert output.shape == (3, 6, SIZE, SIZE)  # noise and variance
    assert torch.isfinite(output).all()
    moved = torch.roll(target, 3, dims=-1)
    assert not torch.equal(model(x_t, t, moved, reference, task), output)


def test_a_new_network_draws_the_base_that_its_output_is_added_to() -> None:
    x_t, t, target, reference, task = inputs(joints=21)
    picture = reference[:, :3]
    assert network().eval()(x_t, t, target, reference, task).abs().max() == 0
    assert torch.equal(network(residual="reference")(x_t, t, target, reference, task)[:, :3], picture)
    carried = network(**ALL_PARTS)(x_t, t, target, reference, task)[:, :3]
    assert carried.abs().max() > 0.1
    assert not torch.equal(carried, picture)
    nothing = torch.zeros_like(target)
    assert torch.equal(network(**ALL_PARTS)(x_t, t, nothing, reference, task)[:, :3], picture)


def test_the_null_condition_shows_nothing_of_either_frame() -> None:
    model = opened(network(**ALL_PARTS))
    x_t, t, target, reference, task = inputs()
    null = null_conditions(target, reference, task)
    expected = model(x_t, t, *null)
    plain = model(x_t, t, target, reference, task)
    unguided = guided(model, x_t, t, target, reference, task, SamplingConfig(guidance_scale=0))[:, :3]
    torch.testing.assert_close(unguided, expected[:, :3], atol=1e-4, rtol=1e-4)
    assert not torch.equal(plain, expected)
    geometry = model._geometry(*null[:2], torch.float32)
    assert all(part is not None and part.abs().max() == 0 for part in geometry)


def test_geometry_is_computed_in_float32_whatever_the_network_computes_in() -> None:
    model = opened(network(**ALL_PARTS))
    exact = model(*inputs())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(*inputs())
        geometry = model._geometry(*inputs()[2:4], torch.float32)
    assert all(
        part is not None and torch.equal(part, other)
        for part, other in zip(geometry, model._geometry(*inputs()[2:4], torch.float32), strict=True)
    )
    torch.testing.assert_close(rounded.float(), exact, atol=0.2, rtol=0.1)


def test_a_network_with_geometry_has_no_published_format(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="geometry has no published format"):
        write_foundhand(network(limbs=True), tmp_path / "mine.pt")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"diffusion": {"loss": "l1+gradient"}}, "needs prediction clean"),
        ({"diffusion": {"loss": "l1+gradient", "prediction": "velocity"}}, "needs prediction clean"),
        ({"diffusion": {"loss": "l1+gradient+detail"}}, "needs prediction clean"),
        ({"diffusion": {"loss": "l1+gradient", "prediction": "clean", "min_snr_gamma": 5}}, "knows no min_snr_gamma"),
        ({"model": SIZES.model_dump() | {"geometry": {"residual": "carried"}}}, "needs diffusion.prediction clean"),
        ({"model": SIZES.model_dump() | {"geometry": {"residual": "both"}}}, "residual"),
    ],
)
def test_settings_that_do_not_go_together_are_an_error(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Preset.model_validate(SMALL.model_dump() | {"diffusion": {}} | settings)


def test_the_loss_of_sizes_counts_an_edge_twice_and_a_shift_of_brightness_once() -> None:
    diffusion = Diffusion(DiffusionConfig(prediction="clean", loss="l1+gradient"))
    clean, noise, t = torch.zeros(1, 3, 8, 8), torch.randn(1, 3, 8, 8), torch.tensor([500])
    brighter = diffusion.training_loss(clean + 0.5, clean, noise, t).total
    assert brighter.item() == pytest.approx(0.5)
    edge = clean.clone()
    edge[..., 4:] = 0.5  # half of the pixels are off, and one in seven differences along rows
    assert diffusion.training_loss(edge, clean, noise, t).total.item() == pytest.approx(0.25 + 0.5 / 7)
    known = torch.ones(1, 1, 8, 8)
    known[..., 4:] = 0
    assert diffusion.training_loss(edge, clean, noise, t, known).total.item() == 0
    assert diffusion.training_loss(edge, clean, noise, t, known * 0).total.item() == 0


def test_the_loss_of_detail_draws_the_crease_whose_place_is_not_known() -> None:
    """Without it, to leave out what may lie in one of three places is the least error."""

    def with_crease(column: int | None) -> torch.Tensor:
        image = torch.zeros(1, 3, 32, 32)
        if column is not None:
            image[..., column] = -1
        return image

    def mean_loss(name: str, drawn: torch.Tensor, known: torch.Tensor | None = None) -> float:
        diffusion = Diffusion(DiffusionConfig.model_validate({"prediction": "clean", "loss": name}))
        noise, t = torch.randn(drawn.shape), torch.tensor([500])
        places = (with_crease(column) for column in (13, 15, 17))
        return sum(diffusion.training_loss(drawn, place, noise, t, known).total.item() for place in places) / 3

    assert mean_loss("l1+gradient", with_crease(None)) < mean_loss("l1+gradient", with_crease(15))
    assert mean_loss("l1+gradient+detail", with_crease(None)) > mean_loss("l1+gradient+detail", with_crease(15))
    known = torch.ones(1, 1, 32, 32)
    known[..., 12:19] = 0
    assert mean_loss("l1+gradient+detail", with_crease(15), known) == 0
    small = torch.zeros(1, 3, 4, 4)
    diffusion = Diffusion(DiffusionConfig(prediction="clean", loss="l1+gradient+detail"))
    assert diffusion.training_loss(small + 0.5, small, small, torch.tensor([500])).total.item() == pytest.approx(0.5)


def with_parts(preset: Preset, optimiser: str) -> Preset:
    model = ModelConfig.model_validate(preset.model.model_dump() | {"geometry": ALL_PARTS})
    diffusion = DiffusionConfig(prediction="clean", loss="l1+gradient")
    return changed(preset.model_copy(update={"model": model, "diffusion": diffusion}), optimiser=optimiser, steps=6)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_training_with_geometry_goes_on_bit_for_bit(optimiser: str, tmp_path: Path) -> None:
    storage = Storage(tmp_path / "workspace")
    write_two_sequences(storage)
    preset = with_parts(SMALL, optimiser)
    pairs = open_pairs(storage, preset, "train")

    def batches(first: int) -> Iterator[FramePair]:
        return pair_batches(pairs, [range(4 * step, 4 * step + 4) for step in range(first, 6)])

    whole = Trainer(preset, "cpu")
    for number, batch in enumerate(batches(0)):
        whole.training_step([batch])
        if number == 2:
            checkpoint = whole.save(storage.url("runs/first"))
    resumed = Trainer(preset, "cpu")
    resumed.load(checkpoint)
    for batch in batches(3):
        resumed.training_step([batch])
    ends = [weights(trainer.save(storage.url(f"runs/{name}"))) for name, trainer in (("a", whole), ("b", resumed))]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    start = Trainer(preset, "cpu").model.state_dict()
    still = [name for name, tensor in start.items() if torch.equal(tensor, ends[0][f"model.{name}"])]
    assert not [name for name in still if "class_embedding" not in name and "task_embedding" not in name], still
    sampled, _ = load_for_sampling(storage.url("runs/b"))
    assert sampled.geometry == preset.model.geometry
    assert torch.equal(sampled(*inputs()), resumed.averaged_model.eval()(*inputs()))
