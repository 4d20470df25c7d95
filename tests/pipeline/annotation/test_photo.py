"""A photograph of the user's own is taken as viewers show it."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from handdata.pipeline.annotation import photo as photographs
from handdata.pipeline.annotation.detector import HandDetector
from handdata.pipeline.annotation.photo import annotate_hands, annotate_photo, like_photo, read_photo
from handdata.pipeline.annotation.unit_hands import UnitHands
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.weights import WEIGHTS, find_weights, require_weights
from handdata.schemas import UsageError
from tests.fixtures.photographs import encoded, photograph


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


def saved(image: Image.Image) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "PNG")
    return Image.open(out)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_a_repaired_photograph_is_upright_and_keeps_its_transparency(
    tmp_path: Path, format: str, orientation: int
) -> None:
    upright = photograph()
    alpha = Image.new("L", upright.size, 255)
    alpha.paste(0, (0, 0, 9, 5))
    upright.putalpha(alpha)
    (tmp_path / "a").write_bytes(encoded(upright, format, orientation))
    pixels = read_photo(tmp_path / "a")
    written = saved(like_photo(tmp_path / "a", pixels))
    assert (written.format, written.size, written.getexif().get(0x0112, 1)) == ("PNG", upright.size, 1)
    np.testing.assert_array_equal(np.asarray(written)[..., :3], pixels)
    np.testing.assert_array_equal(np.asarray(written.getchannel("A")), np.asarray(alpha))


@pytest.mark.parametrize(("space", "is_kept"), [("sRGB", True), ("LAB", False)])
def test_a_repaired_photograph_keeps_a_colour_profile_of_rgb(tmp_path: Path, space: str, is_kept: bool) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]
    photograph().save(tmp_path / "a.jpg", icc_profile=profile)
    pixels = read_photo(tmp_path / "a.jpg")
    written = saved(like_photo(tmp_path / "a.jpg", pixels))
    assert written.info.get("icc_profile") == (profile if is_kept else None)
    np.testing.assert_array_equal(np.asarray(written), pixels)


def test_a_damaged_or_structural_exif_block_is_left_out(tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09broken")
    assert "exif" not in like_photo(tmp_path / "a.jpg", read_photo(tmp_path / "a.jpg")).info
    photograph().save(tmp_path / "a.tif", tiffinfo={0x010F: "a scanner"})
    exif = Image.Exif()
    exif.load(like_photo(tmp_path / "a.tif", read_photo(tmp_path / "a.tif")).info["exif"])
    assert dict(exif) == {0x010F: "a scanner", 0x0112: 1}


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_the_sides_of_a_mirror_image_are_exchanged_and_its_pixels_stay(shared_dir: Path, is_mirrored: bool) -> None:
    path = next((shared_dir / "data" / "phone_video").rglob("*.jpg"))
    plain = annotate_photo(path, AnnotateSettings(image_size=64))
    extra = {"upright": True} | ({"mirrored": True} if is_mirrored else {})
    record = photographs.photo_record(path, plain.width, plain.height).model_copy(update={"extra": extra})
    with HandDetector(require_weights("hand_landmarker"), AnnotateSettings().detection_confidence) as detector:
        unit = UnitHands([record], detector, "mediapipe")
        unit.locate(record, read_photo(path))
        (frame,) = unit.agreed().values()
    rows = np.roll(frame.keypoints, 21 if is_mirrored else 0, axis=0)
    valid = np.roll(frame.valid, 21 if is_mirrored else 0)
    np.testing.assert_array_equal(valid, plain.keypoints_valid)
    square = photographs.CropSquare.from_xyxy(plain.crop_xyxy, 64)
    np.testing.assert_allclose(square.to_crop(rows)[valid], plain.keypoints_2d[valid], atol=0.01)


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
