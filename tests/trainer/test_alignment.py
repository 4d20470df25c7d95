"""Representation alignment: what the encoder sees, what the loss compares, and that training can use it."""

from pathlib import Path

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import Tensor

from handdata.schemas.errors import WeightsError
from handdata.trainer.alignment import AlignedDiT, ImageEncoder, alignment_loss
from handdata.trainer.data.batch import FramePair
from handdata.trainer.model import DiT
from handdata.trainer.presets import PRESETS, AlignmentConfig, DataConfig, ModelConfig, Preset
from handdata.trainer.trainer import Trainer

ENCODER = "vit_tiny_patch16_224"  # a small stand-in for DINOv2 in the tests


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "vit.pth"
    torch.save(timm.create_model(ENCODER, num_classes=0).state_dict(), path)
    return path


@pytest.fixture
def config(weights_file: Path) -> AlignmentConfig:
    return AlignmentConfig(encoder=ENCODER, weights=str(weights_file), block=1, hidden_size=32)


def small_preset(config: AlignmentConfig | None) -> Preset:
    tiny = PRESETS["tiny"]
    model = ModelConfig(input_size=32, patch_size=8, latent_channels=3, hidden_size=32, depth=2, num_heads=2)
    optimisation = tiny.optimisation.model_copy(update={"batch_size": 2, "warmup_steps": 0})
    return tiny.model_copy(update={"model": model, "optimisation": optimisation, "alignment": config})


def pairs() -> FramePair:
    generator = torch.Generator().manual_seed(0)

    def image(channels: int) -> Tensor:
        return torch.randint(256, (2, channels, 32, 32), generator=generator, dtype=torch.uint8)

    keypoints, valid = torch.rand(2, 42, 2, generator=generator) * 32, torch.ones(2, 42, dtype=torch.bool)
    return FramePair(
        image(3), torch.full((2, 1, 32, 32), 255, dtype=torch.uint8), keypoints, valid,
        image(3), image(1), keypoints, valid, torch.zeros(2, dtype=torch.bool), torch.zeros(2, dtype=torch.long),
    )  # fmt: skip


def test_encoder_gives_one_feature_for_each_patch_of_the_network(config: AlignmentConfig) -> None:
    for grid_size, pixels in ((4, 32), (16, 64)):
        features = ImageEncoder(config, grid_size)(torch.randint(256, (2, 3, pixels, pixels), dtype=torch.uint8))
        assert features.shape == (2, grid_size**2, 192)
        assert not features.requires_grad


def test_encoder_has_the_files_weights_and_sees_normalised_images(config: AlignmentConfig, weights_file: Path) -> None:
    bare = timm.create_model(ENCODER, num_classes=0)
    bare.load_state_dict(torch.load(weights_file, weights_only=True))
    images = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8)
    expected = bare.eval().forward_features((images / 255 - 0.5) / 0.5)[:, 1:]  # this encoder's mean and deviation
    torch.testing.assert_close(ImageEncoder(config, 14)(images), expected.detach(), rtol=1e-4, atol=1e-4)


def test_default_encoder_is_a_pinned_dinov2_of_timm() -> None:
    name = AlignmentConfig().encoder
    assert name in timm.list_pretrained("vit_base_patch14_dinov2*")
    assert AlignmentConfig().weight == 0.5


def test_missing_encoder_weights_are_named(config: AlignmentConfig, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights at .*absent.pth"):
        ImageEncoder(config.model_copy(update={"weights": f"{tmp_path}/absent.pth"}), 4)
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="cannot load the encoder"):
        ImageEncoder(config.model_copy(update={"weights": f"{tmp_path}/other.pth"}), 4)


def test_loss_is_one_minus_the_cosine_where_the_crop_shows_the_image() -> None:
    projected = torch.tensor([[[1.0, 0], [0, 2], [3, 0], [1, 1]]])  # grid of 2 x 2
    features = torch.tensor([[[5.0, 0], [0, -1], [0, 1], [0, 0.1]]])
    known = torch.ones(1, 1, 8, 8)
    each = torch.tensor([0, 2, 1, 1 - 0.5**0.5])
    torch.testing.assert_close(alignment_loss(projected, features, known), each.mean().view(1))
    known[..., 4:] = 0  # the right column of patches is padding
    torch.testing.assert_close(alignment_loss(projected, features, known), each[[0, 2]].mean().view(1))
    assert alignment_loss(projected, features, torch.zeros(1, 1, 8, 8)) == 0


def test_tokens_come_from_the_target_after_the_given_block_and_leave_the_output_as_it_is() -> None:
    torch.manual_seed(0)
    model = DiT(input_size=8, patch_size=2, latent_channels=4, hidden_size=32, depth=3, num_heads=4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 43, 8, 8), torch.randn(2, 47, 8, 8)
    task = torch.zeros(2, dtype=torch.long)
    aligned = AlignedDiT(model, AlignmentConfig(block=2, hidden_size=8), features=6)
    output, projected = aligned(*inputs, task)
    assert projected.shape == (2, 16, 6)
    assert torch.equal(output, model(*inputs, task))
    projected.sum().backward()
    assert model.blocks[1].get_parameter("mlp.fc2.weight").grad is not None
    assert model.blocks[2].get_parameter("mlp.fc2.weight").grad is None


def test_training_draws_tokens_towards_the_features_and_checkpoints_hold_the_network_alone(
    config: AlignmentConfig, tmp_path: Path
) -> None:
    trainer = Trainer(small_preset(config), "cpu")
    losses = [trainer.training_step([pairs()]) for _ in range(8)]
    assert losses[-1] < losses[0]
    plain = Trainer(small_preset(None), "cpu")
    assert plain.training_step([pairs()]) < losses[0]  # the same pairs, noise and weights without the alignment
    assert plain.model.state_dict().keys() == trainer.model.state_dict().keys()

    url = trainer.save(str(tmp_path))
    resumed = Trainer(small_preset(config), "cpu")
    resumed.load(url)
    assert resumed.training_step([pairs()]) == trainer.training_step([pairs()])


def test_settings_that_cannot_be_aligned_are_an_error() -> None:
    preset = PRESETS["tiny"].model_dump()
    with pytest.raises(ValidationError, match="beyond the network's 4 blocks"):
        Preset.model_validate(preset | {"alignment": AlignmentConfig(block=5).model_dump()})
    with pytest.raises(ValidationError, match="needs images"):
        changes = {"alignment": AlignmentConfig(block=2).model_dump(), "data": DataConfig(latents=True).model_dump()}
        Preset.model_validate(preset | changes)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        AlignmentConfig.model_validate({"depth": 8})
