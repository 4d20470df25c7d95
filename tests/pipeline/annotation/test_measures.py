"""Contrast tells frames that show something from those that do not, however dark they are and however they rustle."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from handdata.pipeline.annotation.annotator import Annotator, GrabCutModel
from handdata.pipeline.annotation.measures import contrast, sharpness
from handdata.pipeline.settings import AnnotateSettings, QualitySettings
from handdata.schemas import HandRecord
from handdata.schemas.arrays import ByteArray

LEAST = QualitySettings().min_contrast
RNG = np.random.default_rng(0)
WHOLE = np.ones(42, dtype=np.bool_)

EMPTY = {
    "black": np.zeros((320, 320, 3)),
    "one colour": np.full((320, 320, 3), (200, 140, 120)),
    "a dark sensor's noise": RNG.integers(0, 4, (320, 320, 3)),
    "stronger noise": RNG.normal(12, 6, (320, 320, 3)),
    "noise in blotches": cv2.resize(RNG.normal(10, 4, (160, 160, 3)), (320, 320)),
    "noise by column": np.broadcast_to(RNG.normal(8, 2, (1, 320, 1)), (320, 320, 3)),
}


def stored(pixels: np.ndarray, folder: Path) -> Path:
    path = folder / "image.jpg"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)
    return path


def keypoints(low: float, high: float) -> np.ndarray:
    points = np.random.default_rng(1).uniform(low, high, (42, 2)).astype(np.float32)
    points[0], points[1] = low, high
    return points


def lit() -> ByteArray:
    image = np.full((320, 320, 3), 60, np.uint8)
    cv2.circle(image, (160, 160), 50, (190, 150, 130), -1)
    return image


def annotated(path: Path, hand_px: int = 100, **quality: float) -> tuple[str, ...]:
    points = np.zeros((42, 2), np.float32)
    points[:21] = np.stack([np.tile(np.linspace(-0.5, 0.5, 7), 3), np.repeat([-0.4, 0, 0.4], 7)], axis=1)
    points[:21] = 160 + hand_px * points[:21]
    record = HandRecord(
        source="interhand26m",
        split="train",
        sequence_id="a",
        frame_index=0,
        image_uri=str(path),
        width=320,
        height=320,
        viewpoint="exo",
        keypoints_2d=points,
        keypoints_valid=np.arange(42) < 21,
        hand_state=("labelled", "absent"),
    )
    settings = AnnotateSettings(image_size=128, keypoints="dataset", quality=QualitySettings(**quality))
    annotator = Annotator(lambda _: np.zeros((320, 320), bool), "", settings, "hash", None, GrabCutModel())
    ((sample,), _) = annotator.process("unit", [record])
    assert sample.contrast is not None
    assert sample.mask_score is not None
    if sample.contrast < LEAST:
        assert sample.mask_score == 0  # no mask that calls itself good
    return sample.flags


@pytest.mark.parametrize("kind", EMPTY)
def test_a_frame_that_shows_nothing_is_flagged_whatever_its_noise_counts_as_sharpness(
    kind: str, tmp_path: Path
) -> None:
    assert "no_content" in annotated(stored(EMPTY[kind], tmp_path))
    assert "no_content" not in annotated(stored(EMPTY[kind], tmp_path), min_contrast=0)


@pytest.mark.parametrize("hand_px", [20, 24, 32, 64, 200])
def test_noise_is_nothing_to_see_in_hands_of_20_pixels_and_more(hand_px: int, tmp_path: Path) -> None:
    noise = np.random.default_rng(hand_px).normal(12, 9, (320, 320, 3))
    assert "no_content" in annotated(stored(noise, tmp_path), hand_px)
    disc = cv2.circle(np.full((320, 320, 3), 60.0), (160, 160), hand_px // 3, (190, 150, 130), -1)
    assert "no_content" not in annotated(stored(disc + noise - 12, tmp_path), hand_px)


@pytest.mark.parametrize("brightness", [1, 0.3, 0.1])
def test_a_dark_frame_that_shows_a_hand_is_not_flagged(brightness: float, tmp_path: Path) -> None:
    assert "no_content" not in annotated(stored(lit() * brightness, tmp_path))


def test_the_edge_of_the_image_is_nothing_to_see() -> None:
    image = np.full((64, 64, 3), 120, np.uint8)
    image[:, 40:] = 0
    outside = np.zeros((64, 64), bool)
    outside[:, 40:] = True
    assert contrast(image, keypoints(10, 60), WHOLE, outside, 1) < LEAST
    assert contrast(image, keypoints(10, 60), WHOLE, ~outside & outside, 1) > LEAST
    assert contrast(image, keypoints(45, 60), WHOLE, outside, 1) == 0


def test_no_real_image_is_flagged_even_where_it_is_dark(shared_dir: Path) -> None:
    inside = np.zeros((256, 256), bool)
    for path in sorted((shared_dir / "data").rglob("*-40*.jpg")):
        image = np.array(Image.open(path).convert("RGB"))
        labels = np.load(path.with_suffix(".npz"))
        points, valid = labels["kpts"], labels["joint_valid"].reshape(-1) > 0
        assert contrast(image, points, valid, inside, 1) > 10 * LEAST
        assert sharpness(image, points, valid) > 0
        dark = (image * 0.1).astype(np.uint8)
        assert contrast(dark, points, valid, inside, 1) > LEAST
