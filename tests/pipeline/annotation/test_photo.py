"""A photograph of the user's own is taken as viewers show it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from handdata.pipeline.annotation import photo as photographs
from handdata.pipeline.annotation.photo import annotate_hands, annotate_photo
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.weights import WEIGHTS, find_weights
from handdata.schemas import UsageError


def test_a_photograph_that_a_phone_stores_on_its_side_gives_the_same_sample_as_upright(
    shared_dir: Path, tmp_path: Path
) -> None:
    photo = Image.open(next((shared_dir / "data" / "phone_video").rglob("*.jpg"))).convert("RGB")
    photo = photo.crop((0, 0, photo.width - 16, photo.height))
    photo.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.png", exif=exif)
    settings = AnnotateSettings(image_size=64)
    upright, phone = (annotate_photo(tmp_path / f"{name}.png", settings) for name in ("upright", "phone"))
    assert (phone.width, phone.height) == (upright.width, upright.height) == photo.size
    assert phone.crop_xyxy == upright.crop_xyxy
    np.testing.assert_array_equal(phone.keypoints_2d, upright.keypoints_2d)
    assert phone.image == upright.image


def test_a_damaged_photograph_is_an_error_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + data[len(data) // 2 + 300 :])
    with pytest.raises(UsageError, match=r"a\.jpg is damaged: "):
        annotate_photo(path, AnnotateSettings(image_size=64))


def two_hands(shared_dir: Path, folder: Path) -> Path:
    """A photograph of a hand and, far from it, its mirror image."""
    photo = Image.open(next((shared_dir / "data" / "phone_video").rglob("*.jpg"))).convert("RGB")
    wide = Image.new("RGB", (2 * photo.width + 400, photo.height), (90, 90, 90))
    wide.paste(photo, (0, 0))
    wide.paste(ImageOps.mirror(photo), (photo.width + 400, 0))
    wide.save(folder / "two.png")
    return folder / "two.png"


def test_each_hand_of_a_photograph_has_a_square_and_a_mask_of_its_own(shared_dir: Path, tmp_path: Path) -> None:
    path = two_hands(shared_dir, tmp_path)
    settings = AnnotateSettings(image_size=128)
    hands = annotate_hands(path, settings)
    assert len(hands) == 2
    whole = annotate_photo(path, settings)
    middle = whole.width / 2
    for hand, rows in zip(hands, (slice(0, 21), slice(21, 42)), strict=True):
        assert hand.own[rows].any()
        assert hand.own.sum() == hand.own[rows].sum()
        assert hand.square.side < 0.6 * (whole.crop_xyxy[2] - whole.crop_xyxy[0])
        full = hand.square.to_full(hand.keypoints[hand.own])
        assert len({bool(x < middle) for x, _ in full}) == 1  # the joints of one hand
        low, high = hand.keypoints[hand.own].min(axis=0), hand.keypoints[hand.own].max(axis=0)
        assert (high - low).max() == pytest.approx(128 / settings.crop_scale, rel=0.05)
        x, y = np.round(hand.keypoints[hand.own]).astype(int).T
        assert hand.mask[y, x].mean() > 0.7


class KnownMask:
    """Stands in for SAM, whose smallest model needs seconds: the right half of each crop."""

    origin = "sam_vit_b"

    def __init__(self, checkpoint: Path, origin: str, device: str) -> None:
        assert (checkpoint.name, origin) == (WEIGHTS["sam_vit_b"].filename, self.origin)

    def submit(self, crops: Sequence[photographs.PreparedCrop]) -> Callable[[], list[np.ndarray]]:
        masks = [np.arange(crop.square.size) >= crop.square.size / 2 for crop in crops]
        return lambda: [np.tile(mask, (len(mask), 1)) for mask in masks]


def test_sam_masks_photographs_where_it_is_set_up(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = next((shared_dir / "data" / "phone_video").rglob("*.jpg"))
    landmarker = find_weights("hand_landmarker")
    assert landmarker is not None
    (tmp_path / WEIGHTS["hand_landmarker"].filename).symlink_to(landmarker)
    (tmp_path / WEIGHTS["sam_vit_b"].filename).touch()
    monkeypatch.setattr(photographs, "LocalSam", KnownMask)
    settings = AnnotateSettings(image_size=64)
    assert annotate_photo(photo, settings, tmp_path).mask_origin == "sam_vit_b"
    (hand,) = annotate_hands(photo, settings, tmp_path)
    assert hand.mask[:, 32:].all() and not hand.mask[:, :32].any()
    asked = settings.model_copy(update={"masks": "grabcut"})
    assert annotate_photo(photo, asked, tmp_path).mask_origin == "grabcut"
    monkeypatch.setattr(photographs.importlib.util, "find_spec", lambda name: None)  # no package
    assert annotate_photo(photo, settings, tmp_path).mask_origin == "grabcut"
