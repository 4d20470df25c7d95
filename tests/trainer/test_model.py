"""The two-frame transformer: published numbers, conditions, presets, autoencoders."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from handdata.schemas.errors import WeightsError
from handdata.trainer.autoencoders import (
    TAEF2,
    Autoencoder,
    PixelAutoencoder,
    Posterior,
    StableDiffusionVAE,
    load_autoencoder,
)
from handdata.trainer.conditioning import Task, drop_conditions, target_condition
from handdata.trainer.model import DiT, attend, resample_positions, sincos_positions
from handdata.trainer.presets import PRESETS, AutoencoderConfig, DropoutConfig, ModelConfig, Preset, SamplingConfig
from handdata.trainer.samplers import guided
from handdata.trainer.weights import export_foundhand, import_foundhand


def test_attention_in_bfloat16_is_that_of_float32_but_for_rounding() -> None:
    generator = torch.Generator().manual_seed(3)
    tokens = [torch.randn(2, 3, count, 16, generator=generator, requires_grad=True) for count in (5, 9, 9)]
    expected = attend(*tokens)
    rounded = [token.detach().bfloat16().requires_grad_() for token in tokens]
    attended = attend(*rounded)
    assert attended.dtype == torch.bfloat16
    torch.testing.assert_close(attended.float(), expected, atol=0.02, rtol=0.02)
    weights = torch.randn(expected.shape, generator=generator)
    gradients = torch.autograd.grad(expected, tokens, weights)
    for gradient, other in zip(gradients, torch.autograd.grad(attended, rounded, weights.bfloat16()), strict=True):
        torch.testing.assert_close(other.float(), gradient, atol=0.05, rtol=0.05)


@pytest.fixture(scope="module")
def published(shared_dir: Path) -> dict[str, Tensor]:
    return load_file(shared_dir / "parity" / "dit_small.safetensors")


@pytest.fixture(scope="module")
def published_model(published: dict[str, Tensor]) -> DiT:
    model = DiT(input_size=8, patch_size=2, latent_channels=4, hidden_size=96, depth=3, num_heads=4)
    state = {name.removeprefix("state."): t for name, t in published.items() if name.startswith("state.")}
    model.load_state_dict(import_foundhand(state))
    return model.eval().requires_grad_(False)


def random_model(**changes: int | bool) -> DiT:
    """Return a small network whose gates are open, so that every input can reach the output."""
    torch.manual_seed(0)
    sizes: dict[str, int | bool] = {
        "input_size": 8, "patch_size": 2, "latent_channels": 4, "hidden_size": 32, "depth": 2, "num_heads": 4
    }  # fmt: skip
    model = DiT(**ModelConfig.model_validate(sizes | changes).model_dump())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def random_inputs(count: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(channels: int) -> Tensor:
        return torch.randn(count, channels, 8, 8, generator=generator)

    return draw(4), torch.tensor([0, 400, 999])[:count], draw(43), draw(47), torch.arange(count) % 3


def assert_equal_to_1e_5(actual: Tensor, expected: Tensor) -> None:
    """Check that no value is off by more than 1e-5 of the largest: values near zero are differences of large ones."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_published_weights_give_the_published_output(published: dict[str, Tensor], published_model: DiT) -> None:
    inputs = (published[name] for name in ("x_t", "t", "target_cond", "ref_cond", "nvs"))
    assert_equal_to_1e_5(published_model(*inputs), published["out"])


def test_guidance_of_three_channels_gives_the_published_output(
    published: dict[str, Tensor], published_model: DiT
) -> None:
    inputs = [published[name] for name in ("x_t", "t", "target_cond", "ref_cond")]
    pose_change = torch.full((3,), Task.POSE_CHANGE)
    output = guided(published_model, *inputs, pose_change, SamplingConfig(guidance_scale=2.5, guided_channels=3))
    assert_equal_to_1e_5(output, published["guided_2p5"])


def test_guidance_acts_on_all_latent_channels_unless_told_otherwise() -> None:
    model = random_model()
    x_t, t, target, reference, task = random_inputs()
    conditional = model(x_t, t, target, reference, task)
    null = model(x_t, t, torch.zeros_like(target), torch.zeros_like(reference), torch.full_like(task, 2))
    output = guided(model, x_t, t, target, reference, task, SamplingConfig(guidance_scale=3))
    torch.testing.assert_close(output[:, :4], (null + 3 * (conditional - null))[:, :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output[:, 4:], conditional[:, 4:])
    unguided = guided(model, x_t, t, target, reference, task, SamplingConfig(guidance_scale=1))
    torch.testing.assert_close(unguided, conditional)


@pytest.mark.parametrize(
    ("appearance", "pose", "passes"), [(2.0, 3.0, 3), (1.0, 3.0, 2), (2.0, 1.0, 3), (3.0, 3.0, 2), (1.0, 1.0, 1)]
)
def test_pose_and_appearance_are_guided_apart(appearance: float, pose: float, passes: int) -> None:
    model, asked = random_model(), []
    model.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    x_t, t, target, reference, task = random_inputs()
    reference[2] = 0  # dropped: nothing is left of its pair without the pose
    nothing = torch.full_like(task, Task.NULL)
    both = model(x_t, t, target, reference, task)
    null = model(x_t, t, torch.zeros_like(target), torch.zeros_like(reference), nothing)
    alone = model(x_t, t, torch.zeros_like(target), reference, torch.where(torch.arange(3) == 2, nothing, task))
    asked.clear()
    config = SamplingConfig(appearance_guidance=appearance, pose_guidance=pose)
    output = guided(model, x_t, t, target, reference, task, config)
    expected = null + appearance * (alone - null) + pose * (both - alone)
    torch.testing.assert_close(output[:, :4], expected[:, :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output[:, 4:], both[:, 4:])
    assert asked == [3 * passes]


def test_without_a_reference_the_pose_alone_is_guided() -> None:
    model, asked = random_model(), []
    x_t, t, target, reference, task = random_inputs()
    reference.zero_()
    joint = guided(model, x_t, t, target, reference, task, SamplingConfig(guidance_scale=3))
    model.register_forward_pre_hook(lambda module, inputs: asked.append(len(inputs[0])))
    apart = guided(model, x_t, t, target, reference, task, SamplingConfig(appearance_guidance=5, pose_guidance=3))
    assert torch.equal(apart, joint)
    assert asked == [6]


def test_xl_maps_one_to_one_on_the_published_parameters(shared_dir: Path) -> None:
    shapes = json.loads((shared_dir / "parity" / "foundhand_xl2_state_shapes.json").read_text())
    published = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        model = DiT(**PRESETS["foundhand-xl"].model.model_dump())

    imported = import_foundhand(published)
    model.load_state_dict(imported, strict=True, assign=True)

    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 675.6
    exported = export_foundhand(model.state_dict())
    assert {name: list(tensor.shape) for name, tensor in exported.items()} == shapes


def test_positions_are_sine_and_cosine_of_column_then_row() -> None:
    table = sincos_positions(rows=32, columns=16, hidden_size=1152)
    assert table.shape == (512, 1152)
    row, column, k = 21, 5, 100
    frequency = 10_000 ** (-k / 288)
    expected = [math.sin(column * frequency), math.cos(column * frequency)]
    expected += [math.sin(row * frequency), math.cos(row * frequency)]
    values = table[row * 16 + column].view(4, 288)[:, k]
    assert values.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_new_network_predicts_zero_and_has_distinct_positions() -> None:
    model = DiT(input_size=8, patch_size=2, latent_channels=4, hidden_size=32, depth=2, num_heads=4)
    assert model(*random_inputs()).abs().max() == 0
    assert len(model.positions[0].unique(dim=0)) == 32


def test_a_new_network_hears_a_joint_about_as_well_as_the_latent() -> None:
    model = DiT(input_size=32, patch_size=4, latent_channels=3, hidden_size=128, depth=1, num_heads=4)
    frame = torch.zeros(1, 46, 32, 32)
    frame[:, 3:] = target_condition(torch.full((1, 42, 2), 17.5), torch.arange(42).unsqueeze(0) == 8, (32, 32))
    latent = torch.cat([torch.randn(1, 3, 32, 32), torch.zeros(1, 43, 32, 32)], dim=1)
    model.requires_grad_(False)
    of_joint = model.patch_embedding(frame)[0, 4 * 8 + 4].std()
    of_latent = model.patch_embedding(latent).std()
    assert 0.3 < of_joint / of_latent < 3


@pytest.mark.parametrize(("learn_sigma", "channels"), [(True, 8), (False, 4)])
def test_output_has_a_variance_half_only_where_sigma_is_learned(learn_sigma: bool, channels: int) -> None:
    assert random_model(learn_sigma=learn_sigma)(*random_inputs()).shape == (3, channels, 8, 8)


def test_activation_checkpointing_changes_neither_loss_nor_gradients() -> None:
    model = random_model().requires_grad_(True).train()
    results = []
    for model.activation_checkpointing in (False, True):
        model.zero_grad()
        loss = model(*random_inputs()).square().mean()
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(plain, checkpointed) for plain, checkpointed in zip(*results, strict=True))


def test_activation_checkpointing_keeps_less_for_the_backward_pass() -> None:
    model = random_model(depth=6).requires_grad_(True).train()
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    kept_bytes = []
    for model.activation_checkpointing in (False, True):
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x) or x, lambda x: x):
            model(*random_inputs())
        activations = {x.data_ptr(): x.nbytes for x in kept if x.data_ptr() not in parameters}
        kept_bytes.append(sum(activations.values()))
    assert kept_bytes[1] < kept_bytes[0] / 4


def test_normalised_queries_and_keys_bound_attention_however_large_their_weights() -> None:
    def change(model: DiT) -> float:
        before = model(*random_inputs())
        for block in model.blocks:
            for part in ("weight", "bias"):
                block.get_parameter(f"attention.qkv.{part}")[:64] *= 30  # queries and keys
        return float((model(*random_inputs()) - before).abs().max())

    assert change(random_model(qk_norm=True)) < 1e-2 < change(random_model())
    assert not any("_norm" in name for name in random_model().state_dict())  # off, it has the published parameters


def test_positions_for_another_size_keep_tokens_where_they_are_in_the_image() -> None:
    coarse = sincos_positions(rows=32, columns=16, hidden_size=128).unsqueeze(0)
    fine = resample_positions(coarse, grid=32)
    assert fine.shape == (1, 2 * 32 * 32, 128)
    frames = fine.view(2, 16, 2, 16, 2, 128)  # four fine tokens about each coarse one
    inner = (slice(None), slice(2, -2), slice(2, -2))
    around = frames.mean(dim=(2, 4))[inner]
    torch.testing.assert_close(around, coarse.view(2, 16, 16, 128)[inner], rtol=0, atol=0.05)
    assert not torch.equal(frames[:, :, 0], frames[:, :, 1]) and not torch.equal(frames[..., 0, :], frames[..., 1, :])
    exact = sincos_positions(rows=64, columns=32, hidden_size=128)  # whose tokens are half as far apart
    assert float((fine[0] - exact).abs().mean()) > 0.1
    back = resample_positions(fine, grid=16).view(2, 16, 16, 128)[inner]
    torch.testing.assert_close(back, around, rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_positions_of_the_same_size_are_the_same_bits(dtype: torch.dtype) -> None:
    positions = torch.randn(1, 512, 8).to(dtype)
    assert resample_positions(positions, grid=16) is positions
    assert resample_positions(positions, grid=32).dtype == dtype


def test_every_parameter_that_is_used_gets_a_gradient() -> None:
    model = random_model().requires_grad_(True)
    model(*random_inputs()).square().mean().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


def test_every_input_reaches_the_output() -> None:
    model, inputs = random_model(), random_inputs()
    output = model(*inputs)
    for changed in range(5):
        others = list(inputs)
        others[changed] = (others[changed] + 1) % 3 if changed in (1, 4) else others[changed] + 1
        assert not torch.allclose(model(*others), output)


@pytest.mark.parametrize("dropped", ["reference", "target_keypoints", "reference_mask", "both"])
def test_output_ignores_what_is_dropped(dropped: str) -> None:
    model = random_model()
    x_t, t, target, reference, task = random_inputs()
    target[:, -1] = 0  # the target's mask is always zero
    other_target, other_reference, other_task = target.clone(), reference.clone(), task
    if dropped in ("target_keypoints", "both"):
        other_target[:, :42] += 1
    if dropped in ("reference", "both"):
        other_reference += 1
    if dropped == "reference_mask":
        other_reference[:, -1] += 1
    if dropped == "both":
        other_task = (task + 1) % 3
    nothing = DropoutConfig(reference=0, target_keypoints=0, reference_mask=0, both=0)
    certain = nothing.model_copy(update={dropped: 1.0})

    output = model(x_t, t, *drop_conditions(target, reference, task, certain))
    other = model(x_t, t, *drop_conditions(other_target, other_reference, other_task, certain))

    assert torch.equal(output, other)
    assert not torch.allclose(model(x_t, t, other_target, other_reference, other_task), output)


# ------------------------------------------------------------------------------------------ presets


def test_unknown_keys_and_sizes_that_do_not_divide_are_errors() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        ModelConfig.model_validate({**PRESETS["tiny"].model.model_dump(), "heads": 4})
    with pytest.raises(ValidationError, match="input_size 9 is not a multiple of patch_size 2"):
        ModelConfig(input_size=9, patch_size=2, latent_channels=4, hidden_size=32, depth=1, num_heads=4)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json_and_fits_its_autoencoder(name: str) -> None:
    preset = PRESETS[name]
    assert Preset.model_validate_json(preset.model_dump_json()) == preset
    factor, channels = {"pixel": (1, 3), "sd-vae": (8, 4), "taef2": (8, 32)}[preset.autoencoder.kind]
    assert preset.model.input_size * factor == preset.image_size
    assert preset.model.latent_channels == channels


# ------------------------------------------------------------------------------------------ autoencoders


@pytest.fixture
def vae_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
    )
    vae.save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_stable_diffusion_vae_scales_both_moments_and_draws_latents(vae_folder: Path) -> None:
    autoencoder: Autoencoder = StableDiffusionVAE(str(vae_folder))
    bare = AutoencoderKL.from_pretrained(vae_folder).encode(images := torch.rand(2, 3, 64, 64) * 2 - 1).latent_dist

    posterior = autoencoder.encode(images)

    assert (autoencoder.factor, autoencoder.latent_channels) == (8, 4)
    assert posterior.log_variance is not None
    torch.testing.assert_close(posterior.mean, bare.mean.detach() * 0.18215)
    torch.testing.assert_close((0.5 * posterior.log_variance).exp(), bare.std.detach() * 0.18215)
    drawn = posterior.sample(torch.Generator().manual_seed(3))
    assert torch.equal(drawn, posterior.sample(torch.Generator().manual_seed(3)))
    assert not torch.equal(drawn, posterior.mean)
    assert autoencoder.decode(drawn).shape == images.shape


def test_missing_autoencoder_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot load the autoencoder .*diffusion_pytorch_model.safetensors"):
        StableDiffusionVAE(str(tmp_path))
    with pytest.raises(WeightsError, match=r"no weights at .*taef2_encoder.pth"):
        load_autoencoder(AutoencoderConfig(kind="taef2", weights=str(tmp_path)))
    with pytest.raises(WeightsError, match=r"set autoencoder.weights"):
        load_autoencoder(AutoencoderConfig(kind="taef2"))


def test_pixel_autoencoder_returns_its_input() -> None:
    autoencoder = load_autoencoder(AutoencoderConfig(kind="pixel"))
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    assert isinstance(autoencoder, PixelAutoencoder)
    assert torch.equal(autoencoder.decode(autoencoder.encode(images).sample()), images)


def test_posterior_draws_have_its_moments() -> None:
    posterior = Posterior(torch.full((64, 4, 8, 8), 2.0), torch.full((64, 4, 8, 8), math.log(0.25)))
    drawn = posterior.sample(torch.Generator().manual_seed(0))
    assert float(drawn.mean()) == pytest.approx(2, abs=0.02)
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.02)


def test_taef2_reproduces_hand_photographs_at_33_to_42_db(shared_dir: Path) -> None:
    autoencoder = TAEF2(str(shared_dir / "weights"))
    ratios = []
    for photograph in sorted((shared_dir / "data" / "FoundHand10M").rglob("*.jpg"))[::6]:
        shown = Image.open(photograph).convert("RGB").resize((256, 256), Image.Resampling.LANCZOS)
        images = pil_to_tensor(shown).unsqueeze(0) / 127.5 - 1
        latents = autoencoder.encode(images).sample()
        assert latents.shape == (1, 32, 32, 32)
        assert 0.7 < float(latents.std()) < 1.3
        ratios.append(float(10 * torch.log10(4 / (autoencoder.decode(latents) - images).square().mean())))
    assert min(ratios) > 33
    assert max(ratios) < 42
