"""Images are enlarged by an upscaler in the format that diffusers keeps, here a small one of random weights."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel, VQModel

import handdata
from handdata.pipeline.weights import UPSCALER, WEIGHTS, model_folder
from handdata.schemas import WeightsError
from handdata.trainer.trainer import Trainer
from handdata.trainer.upscaling import Upscaler
from tests.fixtures.training import SMALL
from tests.fixtures.upscaler import write_upscaler

PHOTO = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_upscaler(tmp_path_factory.mktemp("upscaler"))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handdata.trainer.upscaling.STEPS", 2)


def test_an_image_of_any_size_becomes_four_times_as_wide(folder: Path) -> None:
    upscaler = Upscaler(folder)
    assert upscaler.factor == 4
    assert upscaler.enlarge(PHOTO).shape == (128, 128, 3)
    wide = upscaler.enlarge(PHOTO[:9, :20])
    assert wide.shape == (36, 80, 3) and wide.dtype == np.uint8 and wide.std() > 1


def test_the_same_seed_gives_the_same_image_and_another_one_another(folder: Path) -> None:
    upscaler = Upscaler(folder)
    first = upscaler.enlarge(PHOTO, seed=3)
    torch.rand(1)  # of the global generator nothing is drawn
    assert np.array_equal(upscaler.enlarge(PHOTO, seed=3), first)
    assert not np.array_equal(upscaler.enlarge(PHOTO, seed=4), first)
    assert not np.array_equal(upscaler.enlarge(255 - PHOTO, seed=3), first)


def test_weights_may_be_of_pytorch_as_the_published_ones_are(folder: Path, tmp_path: Path) -> None:
    for kind, part in ((UNet2DModel, "unet"), (VQModel, "vqvae")):
        kind.from_pretrained(folder / part, low_cpu_mem_usage=False).save_pretrained(
            tmp_path / part, safe_serialization=False
        )
    shutil.copytree(folder / "scheduler", tmp_path / "scheduler")
    ours, theirs = (Upscaler(each).enlarge(PHOTO).astype(float) for each in (folder, tmp_path))
    assert np.abs(ours - theirs).mean() < 1  # where the weights lie in memory decides some last bits
    published = {*WEIGHTS[UPSCALER].beside, WEIGHTS[UPSCALER].filename}
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()} == published


@pytest.mark.parametrize("damage", ["none", "vqvae/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_folder_that_lacks_a_part_is_an_error_of_one_line(damage: str, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    if damage != "none":
        shutil.copytree(folder, broken)
        (broken / damage).write_bytes(b"<html>")
    with pytest.raises(WeightsError, match="cannot load the upscaler in") as caught:
        Upscaler(broken)
    assert "\n" not in str(caught.value) and "unet, vqvae and scheduler" in str(caught.value)


def test_it_is_looked_for_in_the_folder_of_weights_and_where_it_is_missing_a_line_says_what_to_fetch(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for mine in (None, tmp_path):
        with pytest.raises(WeightsError, match="run `handdata weights fetch ldm_super_resolution`, or put"):
            model_folder("ldm_super_resolution", mine)
    shutil.copytree(folder, tmp_path / "ldm_super_resolution")
    assert model_folder("ldm_super_resolution", tmp_path) == tmp_path / "ldm_super_resolution"


def test_a_model_enlarges_what_it_has_drawn(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, tmp_path / UPSCALER)
    monkeypatch.setenv("HANDDATA_WEIGHTS", str(tmp_path))
    model = handdata.load_model(Trainer(SMALL, "cpu").save(str(tmp_path / "run")), "cpu")
    (image,) = model.unconditional(steps=1)
    enlarged = model.upscale(image, seed=1)
    assert enlarged.size == (4 * model.image_size,) * 2
    assert np.array_equal(enlarged, Upscaler(folder).enlarge(np.asarray(image), seed=1))
