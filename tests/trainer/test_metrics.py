"""What measures promise: closed forms, and never a number of weights that are not there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from handdata.schemas import WeightsError
from handdata.schemas.arrays import ByteArray
from handdata.trainer.metrics import (
    feature_similarity,
    flicker,
    load_inception,
    load_lpips,
    picture_distances,
    picture_marks,
    set_marks,
    skin_distance,
)
from tests.trainer.test_evaluation import frame


def colours(images: Tensor) -> Tensor:
    """A few numbers of each image that stand for learned features: its mean colour, and that of its left half."""
    pixels = images.double()
    return torch.cat([pixels.mean(dim=(2, 3)), pixels[..., : images.shape[-1] // 2].mean(dim=(2, 3))], dim=1)


def plain(*shades: int) -> list[ByteArray]:
    return [np.full((64, 64, 3), shade, np.uint8) for shade in shades]


def test_an_image_that_is_off_by_a_shade_has_the_psnr_of_its_square() -> None:
    target = frame(0)
    target.image[:] = np.clip(target.image, 0, 250)
    marks = picture_marks(target.image + np.uint8(5), target)
    expected = 10 * np.log10(255**2 / 5**2)
    assert marks["psnr"] == pytest.approx(expected, rel=1e-6)
    assert marks["psnr_box"] == pytest.approx(expected, rel=1e-6)


def test_a_shift_of_one_pixel_costs_much_of_noise_and_nothing_of_a_plain_picture() -> None:
    target = frame(0)
    assert picture_marks(np.roll(target.image, 1, axis=1), target)["ssim"] < 0.1
    target.image[:] = 90
    assert picture_marks(np.roll(target.image, 1, axis=1), target)["ssim"] == pytest.approx(1, abs=1e-3)


def test_sets_of_the_same_images_have_no_distance_and_others_the_square_of_their_means() -> None:
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 200, (40, 64, 64, 3), dtype=np.uint8))
    same = set_marks(images, images[::-1], colours)
    assert same["fid"] == pytest.approx(0, abs=1e-3)
    assert same["kid"] <= 0  # the estimate has no bias, so that it is below zero as often as above
    brighter = set_marks([image + np.uint8(20) for image in images], images, colours)
    assert brighter["fid"] == pytest.approx(6 * 20**2, rel=1e-3)  # equal covariances: the square of the means alone
    assert brighter["kid"] > 0


def test_kid_of_many_images_is_the_same_in_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handdata.trainer.metrics._KID_IMAGES", 10)
    images = list(np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), dtype=np.uint8))
    first = set_marks(images[:15], images[15:], colours)
    torch.rand(7)
    assert set_marks(images[:15], images[15:], colours) == first


def test_skin_of_the_same_colour_has_no_distance_wherever_else_the_image_differs() -> None:
    target = frame(0)
    target.mask[:] = 0
    target.mask[20:40, 20:40] = 255
    target.image[:] = (210, 160, 130)
    other = target.image.copy()
    other[:10] = 0
    assert skin_distance(other, target) == 0
    other[20:40, 20:40] = (90, 60, 45)
    assert skin_distance(other, target) > 25
    target.mask[:] = 0  # then the box of the joints
    assert 0 < skin_distance(other, target) < 25


def test_features_are_compared_inside_the_hand_box() -> None:
    target = frame(0)
    outside = target.image.copy()
    outside[:4] = 0
    assert feature_similarity([outside, 255 - target.image], [target, target], colours)[0] == pytest.approx(1)
    red, blue = frame(0), frame(0)
    red.image[:], blue.image[:] = (255, 0, 0), (0, 0, 255)
    assert feature_similarity([blue.image], [red], colours) == [0]


def test_a_video_that_changes_as_the_true_one_does_not_flicker() -> None:
    truth = np.stack(plain(10, 20, 30))
    assert flicker(truth + np.uint8(40), truth) == 0
    assert flicker(np.stack(plain(10, 24, 30)), truth) == pytest.approx(4)


def test_distances_of_pictures_come_in_their_order() -> None:
    images, truths = plain(*range(0, 200, 5)), plain(*range(1, 201, 5))

    def distance(drawn: Tensor, true: Tensor) -> Tensor:
        return (drawn.double() * true.double()).mean(dim=(1, 2, 3))

    expected = [float(image[0, 0, 0]) * float(true[0, 0, 0]) for image, true in zip(images, truths, strict=True)]
    assert picture_distances(images, truths, distance) == pytest.approx(expected)


@pytest.mark.parametrize("load", [load_inception, load_lpips])
def test_files_that_do_not_hold_the_weights_are_refused(tmp_path: Path, load: type) -> None:
    file = tmp_path / "weights.pth"
    for content in ({"other": torch.zeros(2)}, [print]):
        torch.save(content, file)
        with pytest.raises(WeightsError, match=r"weights\.pth does not hold the weights"):
            load(file)
    file.write_bytes(b"<html>")
    with pytest.raises(WeightsError, match=r"weights\.pth does not hold the weights"):
        load(file)


def test_files_in_the_published_format_are_taken(tmp_path: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchvision.models import alexnet

    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), tmp_path / "alexnet.pth")
    distance = load_lpips(tmp_path / "alexnet.pth")
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    assert distance(images, images).tolist() == [0, 0, 0]
    assert (distance(images, images.flip(3)) > 0).all()

    class Blank(FeatureExtractorInceptionV3):
        def load_state_dict(self, *arguments: object, **named: object) -> None:  # type: ignore[override]
            pass

    torch.save({}, tmp_path / "none.pth")
    blank = Blank("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(tmp_path / "none.pth"))
    torch.save(blank.state_dict(), tmp_path / "inception.pth")
    features = load_inception(tmp_path / "inception.pth")
    assert features(images[:1]).shape == (1, 2048)


@pytest.mark.parametrize("shade", [0, 127, 255])
def test_a_plain_picture_is_wholly_like_itself(shade: int) -> None:
    target = frame(0)
    target.image[:] = shade
    marks = picture_marks(target.image, target)
    assert (marks["ssim"], marks["ssim_box"]) == pytest.approx((1, 1), abs=1e-9)
