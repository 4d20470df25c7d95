"""A photograph of the user's own is taken as viewers show it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handdata.pipeline.annotation.photo import annotate_photo
from handdata.pipeline.settings import AnnotateSettings
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
