"""The network of the package: it is small, free to use, fits its preset, and draws hands better than geometry alone."""

import hashlib
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from handdata.adapters.synthesis.dataset import (
    noise_generator,
    plan_sequences,
    sample_planned_sequence,
    sequence_labels,
)
from handdata.pipeline.annotation.crop import square_around
from handdata.schemas import inside
from handdata.trainer.checkpoints import BUILTIN, builtin_file, load_for_sampling
from handdata.trainer.data.augment import Frame
from handdata.trainer.evaluation import carried_references
from handdata.trainer.metrics import picture_marks
from handdata.trainer.presets import PRESETS, Preset
from handdata.trainer.tasks import gesture_transfer, load_sampler
from handdata.trainer.trainer import Trainer

RENDERED_PX, SIZE = 192, 128
SEED = 2024  # of no training run: that of `make learn` is 1, that of the demo 0
PAIRS = 8


def test_it_is_small_and_says_what_it_is() -> None:
    assert builtin_file().stat().st_size < 6_000_000
    with safe_open(builtin_file(), framework="pt") as file:
        head = file.metadata()
    settings = Preset.model_validate(json.loads(head["config"]))
    assert settings.model == PRESETS["carried-128"].model
    assert head["license"] == "Apache-2.0"
    packaged = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert {builtin_file().name, "builtin.md"} <= set(packaged["handdata.trainer"])
    card = builtin_file().with_suffix(".md").read_text()
    assert hashlib.sha256(builtin_file().read_bytes()).hexdigest() in card


def rendered_pairs() -> list[tuple[Frame, Frame]]:
    """Two moments, 0.8 s apart, of hands and people that no network was trained on."""
    pairs = []
    for plan in plan_sequences(PAIRS, PAIRS, 25, cameras=1, size=RENDERED_PX, seed=SEED):
        sequence = sample_planned_sequence(plan)
        labels = sequence_labels(plan, sequence)
        there, joints = np.asarray(labels["keypoints_valid"]), np.asarray(labels["keypoints_2d"])[:, 0]
        square = square_around(joints[:, there].reshape(-1, 2).astype(np.float32), RENDERED_PX, RENDERED_PX, 1.6, SIZE)
        known = square.cut(np.full((RENDERED_PX, RENDERED_PX), 255, np.uint8))
        frames = []
        for number in (0, 24):
            drawn = sequence.render(sequence.scene(number), 0, noise_generator(plan, number, 0))
            keypoints = square.to_crop(joints[number])
            valid = there & inside(keypoints, SIZE, SIZE)
            frames.append(
                Frame(
                    image=square.cut(drawn.image),
                    mask=square.cut_mask(drawn.mask > 0).astype(np.uint8) * np.uint8(255),
                    known=known,
                    keypoints=np.where(valid[:, None], keypoints, 0).astype(np.float32),
                    valid=valid,
                )
            )
        pairs.append((frames[0], frames[1]))
    return pairs


def test_it_draws_hands_better_than_geometry_alone() -> None:
    pairs = rendered_pairs()
    references, targets = map(list, zip(*pairs, strict=True))
    ours = gesture_transfer(load_sampler(BUILTIN, device="cpu"), references, targets)
    carried = carried_references(pairs)
    scores = {
        way: [picture_marks(image, target) for image, target in zip(images, targets, strict=True)]
        for way, images in (("ours", ours), ("carried", carried))
    }
    above = {
        measure: np.mean([a[measure] - b[measure] for a, b in zip(scores["ours"], scores["carried"], strict=True)])
        for measure in ("psnr_box", "ssim_box")
    }
    assert above["psnr_box"] > 0.2 and above["ssim_box"] > 0.005, above


def test_it_is_read_as_float32_and_a_folder_of_its_name_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = Trainer(PRESETS["carried-64"], "cpu")
    other.save("builtin")
    network, settings = load_for_sampling("builtin")
    assert settings["image_size"] == SIZE
    assert {str(tensor.dtype) for tensor in network.state_dict().values()} == {"torch.float32"}
    assert load_for_sampling("./builtin")[1]["image_size"] == 64


def test_training_begins_with_it() -> None:
    trainer = Trainer(PRESETS["carried-128"], "cpu")
    trainer.start_from(BUILTIN)
    network, _ = load_for_sampling(BUILTIN)
    assert all((a == b).all() for a, b in zip(network.parameters(), trainer.model.parameters(), strict=True))
