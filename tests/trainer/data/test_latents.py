import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from handdata.app import app
from handdata.pipeline.shards import list_shards
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import FLIP_PERMUTATION, UsageError
from handdata.trainer.autoencoders import Autoencoder, load_autoencoder
from handdata.trainer.data.latents import EncodeSummary, encode, fingerprint, open_latents
from handdata.trainer.data.pairs import PairDataset
from handdata.trainer.loop import train
from handdata.trainer.presets import (
    PRESETS,
    AugmentationConfig,
    AutoencoderConfig,
    ModelConfig,
    Preset,
)
from handdata.trainer.trainer import Trainer
from tests.fixtures.commands import CommandResult
from tests.fixtures.samples import sample, write_dataset

SIZE = 64
TAEF2_WEIGHTS = Path(__file__).resolve().parents[3].parent / "shared" / "weights"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = Storage(tmp_path_factory.mktemp("workspace"))
    rows = [
        sample("wave", frame, camera, timestamp_s=frame / 10, size=128, pad_ltrb=(0, 20.0, 0, 0))
        for frame in range(6)
        for camera in "ab"
    ]
    rows += [sample(f"still{number}", 0, size=128, split="val") for number in range(4)]
    write_dataset(storage, rows)
    return storage


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> AutoencoderConfig:
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
    ).save_pretrained(folder)
    return AutoencoderConfig(kind="sd-vae", weights=str(folder))


@pytest.fixture(params=["sd-vae", "taef2", "pixel"])
def config(request: pytest.FixtureRequest) -> AutoencoderConfig:
    if request.param == "sd-vae":
        found: AutoencoderConfig = request.getfixturevalue("vae")
        return found
    return AutoencoderConfig(kind=request.param, weights=request.getfixturevalue(f"{request.param}_weights"))


@pytest.fixture
def pixel_weights() -> None:
    return None


@pytest.fixture(scope="module")
def taef2_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The real weights where they are; else random ones of the same network."""
    if (TAEF2_WEIGHTS / "taef2_encoder.pth").exists():
        return str(TAEF2_WEIGHTS)
    from handdata.trainer.autoencoders import _taef2_decoder, _taef2_encoder

    folder = tmp_path_factory.mktemp("taef2")
    torch.manual_seed(0)
    torch.save(_taef2_encoder().state_dict(), folder / "taef2_encoder.pth")
    torch.save(_taef2_decoder().state_dict(), folder / "taef2_decoder.pth")
    return str(folder)


def encoded(storage: Storage, config: AutoencoderConfig, variants: int = 1) -> tuple[Autoencoder, EncodeSummary]:
    autoencoder = load_autoencoder(config)
    return autoencoder, encode(Dataset(storage), autoencoder, config, SIZE, variants=variants)


def preset_for(config: AutoencoderConfig, autoencoder: Autoencoder) -> Preset:
    side = SIZE // autoencoder.factor
    model = ModelConfig(
        input_size=side,
        patch_size=max(2, side // 4),
        latent_channels=autoencoder.latent_channels,
        hidden_size=32,
        depth=2,
        num_heads=2,
    )
    return PRESETS["tiny"].model_copy(
        update={"image_size": SIZE, "autoencoder": config, "model": model, "data": PRESETS["tiny"].data}
    )


def test_stored_latents_give_the_loss_of_images(storage: Storage, config: AutoencoderConfig, tmp_path: Path) -> None:
    autoencoder, _ = encoded(storage, config)
    store = open_latents(Dataset(storage), autoencoder, config, SIZE)
    from_images = PairDataset(Dataset(storage), image_size=SIZE, split="train")
    from_latents = PairDataset(Dataset(storage), image_size=SIZE, split="train", latents=store)
    trainer = Trainer(preset_for(config, autoencoder), "cpu")
    timesteps = torch.arange(12) * 83

    def losses(dataset: PairDataset) -> torch.Tensor:
        batch = dataset.batch(range(12))
        # A new network answers zero to every input.
        torch.manual_seed(1)
        for weight in trainer.model.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        with torch.no_grad():
            return trainer.losses(trainer.model, batch, timesteps, torch.Generator().manual_seed(0))

    images, latents = losses(from_images), losses(from_latents)
    assert torch.isfinite(images).all()
    assert images.std() > 0.01
    torch.testing.assert_close(latents, images, rtol=1e-3, atol=1e-3)


def test_encoding_again_does_nothing_and_goes_on_where_it_stopped(storage: Storage, vae: AutoencoderConfig) -> None:
    autoencoder, _ = encoded(storage, vae)
    _, again = encoded(storage, vae)
    assert (again.shards, again.done_before) == (0, 2)
    folder = f"dataset/latents/sd-vae-{fingerprint(autoencoder)}-{SIZE}px"
    first, second = storage.list_files(folder, ".parquet")
    kept = storage.read_bytes(first)
    storage.remove(second)
    with pytest.raises(UsageError, match="1 of 1 shards have no latents"):
        PairDataset(
            Dataset(storage),
            image_size=SIZE,
            split="val",
            latents=open_latents(Dataset(storage), autoencoder, vae, SIZE),
        )
    _, rest = encoded(storage, vae)
    assert (rest.shards, rest.done_before) == (1, 1)
    assert storage.list_files(folder, ".parquet") == [first, second]
    assert storage.read_bytes(first) == kept


def test_other_weights_and_other_settings_are_other_latents(storage: Storage, vae: AutoencoderConfig) -> None:
    autoencoder, _ = encoded(storage, vae)
    with pytest.raises(UsageError, match="holds 1 variants of other settings"):
        encode(Dataset(storage), autoencoder, vae, SIZE, variants=2)
    with torch.no_grad():
        next(autoencoder.vae.parameters()).add_(0.1)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="no latents of this sd-vae"):
        open_latents(Dataset(storage), autoencoder, vae, SIZE)


def test_variants_are_flipped_and_darkened_alike_in_a_sequence(tmp_path: Path) -> None:
    """Latents of the pixel autoencoder are images, so what was done to them can be seen."""
    storage = Storage(tmp_path)
    write_dataset(storage, [sample("wave", frame, timestamp_s=frame / 10, size=128) for frame in range(8)])
    config = AutoencoderConfig(kind="pixel")
    autoencoder = load_autoencoder(config)
    changes = AugmentationConfig(max_gamma=2, flip=0.5, smallest_crop=0.9)
    encode(Dataset(storage), autoencoder, config, SIZE, variants=6, augmentation=changes)
    store = open_latents(Dataset(storage), autoencoder, config, SIZE)
    dataset = PairDataset(Dataset(storage), image_size=SIZE, split="train", latents=store)
    reader = store.reader(dataset.shards, dataset.rows.of_shard)
    plain = reader.read([(0, row, 0) for row in range(8)])
    flips = []
    for variant in range(1, 6):
        changed = reader.read([(0, row, variant) for row in range(8)])
        right_hands = {bool(valid) for valid in changed.valid[:, :21].any(axis=1)}
        assert len(right_hands) == 1  # all flipped, or none
        flips.append(right_hands == {False})
        for row in range(8):
            keypoints, moments = changed.keypoints[row], changed.moments[row]
            joints = keypoints[FLIP_PERMUTATION] if flips[-1] else keypoints
            # The hand's disc lies where the joints are, in the image and in the mask.
            middle = joints[:21].mean(axis=0)
            x, y = np.round(middle).astype(int)
            assert changed.mask[row, y, x] == 1
            assert moments[0, :, y, x].mean() > moments[0, :, 0, 0].mean()
            assert not np.array_equal(plain.moments[row], moments)
    assert set(flips) == {True, False}


def test_a_pair_is_of_one_variant_and_training_draws_it(storage: Storage) -> None:
    config = AutoencoderConfig(kind="pixel")
    autoencoder = load_autoencoder(config)
    folder = f"dataset/latents/pixel-{fingerprint(autoencoder)}-{SIZE}px"
    storage.remove(folder)
    encode(Dataset(storage), autoencoder, config, SIZE, variants=3, augmentation=AugmentationConfig(flip=1.0))
    store = open_latents(Dataset(storage), autoencoder, config, SIZE)
    dataset = PairDataset(
        Dataset(storage), image_size=SIZE, split="train", latents=store, augmentation=AugmentationConfig()
    )
    seen = set()
    for pair in (dataset[position] for position in range(36)):
        left = bool(pair.target_valid[21:].any())
        if not pair.reference_dropped:
            assert bool(pair.reference_valid[21:].any()) == left
        seen.add(left)
    assert seen == {True, False}
    storage.remove(folder)


def test_a_batch_of_latents_is_stacked(storage: Storage, vae: AutoencoderConfig) -> None:
    autoencoder, _ = encoded(storage, vae)
    store = open_latents(Dataset(storage), autoencoder, vae, SIZE)
    dataset = PairDataset(Dataset(storage), image_size=SIZE, split="train", latents=store)
    batch = dataset.batch([0, 1, 2])
    assert batch.target_image.shape == (3, 2, 4, 8, 8)
    assert batch.target_image.dtype == torch.float16
    assert batch.target_weight.shape == batch.reference_mask.shape == (3, 1, 8, 8)
    assert 0 < batch.target_weight[:, :, 1].float().mean() < 255  # the padding ends within this row of latents


def test_train_and_encode_meet_by_their_settings(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    preset = PRESETS["tiny"]
    preset = preset.model_copy(
        update={
            "data": preset.data.model_copy(update={"latents": True}),
            "optimisation": preset.optimisation.model_copy(update={"batch_size": 4}),
        }
    )
    with pytest.raises(UsageError, match="no latents of this pixel at 32 px"):
        train(preset, storage, "first", steps=1, device="cpu")
    app(["encode", "--preset", "tiny", "--workspace", storage.url(), "--gpus", "0"], standalone_mode=False)
    assert "2 (0 done before)" in capsys.readouterr().out
    summary = train(preset, storage, "first", steps=2, device="cpu")
    assert summary.loss is not None
    assert summary.validation is not None


def test_each_command_of_the_trainer_takes_another_dataset(
    storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(Path(storage.url()) / "dataset", tmp_path / "other")
    settings = tmp_path / "latents.toml"
    settings.write_text("[data]\nlatents = true\n[optimisation]\nbatch_size = 4\n")

    def run(*arguments: str) -> str:
        app([*arguments, "--workspace", str(tmp_path)], standalone_mode=False)
        return capsys.readouterr().out

    training = ("train", "--config", str(settings), "--gpus", "0")
    with pytest.raises(UsageError, match="dataset"):
        run(*training)
    assert "/other/latents/" in run("encode", "--preset", "tiny", "--dataset", "other", "--gpus", "0").replace("\n", "")
    run(*training, "--steps", "1", "--dataset", "other")
    shard = list_shards(Dataset(Storage(tmp_path), "other"), splits=["train"])[0]
    first, second = Storage(tmp_path).read_parquet(shard.name, ["sample_id"])["sample_id"].to_pylist()[:2]
    figure = tmp_path / "figure.png"
    sampling = ("sample", "gesture-transfer", "--reference", first, "--target", second, "--steps", "1")
    run(*sampling, "--out", str(figure))  # the checkpoint knows the dataset
    assert figure.is_file()
    with pytest.raises(UsageError, match=f"{first} is neither"):
        run(*sampling, "--dataset", "absent", "--out", str(figure))
    assert not (tmp_path / "dataset").exists()


def test_a_size_that_the_autoencoder_does_not_take_is_refused_before_anything_is_written(
    storage: Storage, vae: AutoencoderConfig, run_command: Callable[..., CommandResult]
) -> None:
    words = ("encode", "--preset", "tiny", "--autoencoder", "sd-vae", "--weights", vae.weights, "-w", storage.url())
    before = storage.list_files("dataset/latents", "")
    result = run_command(*words, "--image-size", SIZE + 1)
    assert (result.code, result.err.count("error:")) == (2, 1), result
    assert f"takes no images of {SIZE + 1} pixels" in result.err
    assert storage.list_files("dataset/latents", "") == before
    result = run_command(*words, "--image-size", SIZE // 2)
    assert result.code == 0, result.err
    assert "below `[data]` in the file" in result.out
