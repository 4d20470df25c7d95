"""``handdata sample fix``: what is marked is drawn anew, and nothing else changes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

import handdata
from handdata.adapters.synthesis.dataset import write_dataset as write_synthetic
from handdata.jobs import fixing
from handdata.jobs.fixing import fix_photo
from handdata.pipeline.annotation.crop import CropSquare
from handdata.pipeline.annotation.photo import PhotoHand, read_photo
from handdata.pipeline.annotation.regions import marked_region, read_mask, region_of_box
from handdata.pipeline.settings import AnnotateSettings
from handdata.schemas import NoHandError, UsageError, hand_rows
from handdata.trainer.data.augment import Frame
from handdata.trainer.pasting import paste_softly
from handdata.trainer.presets import SamplingOptions
from handdata.trainer.samplers import Progress
from handdata.trainer.tasks import Sampler, load_sampler
from tests.fixtures.commands import CommandResult
from tests.fixtures.photographs import encoded, photograph

SETTINGS = AnnotateSettings(image_size=64)
STEPS = SamplingOptions(steps=2)


@pytest.fixture
def sampler(checkpoint: Path) -> Sampler:
    return load_sampler(str(checkpoint), device="cpu", preset="foundhand-xs")


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A photograph of 211 x 150 pixels without a hand."""
    pixels = np.random.default_rng(0).integers(0, 255, (150, 211, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def write_mask(path: Path, levels: np.ndarray) -> Path:
    Image.fromarray(levels.astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    "places",
    [
        [np.s_[40:90, 60:120]],
        [np.s_[0:30, 0:50], np.s_[110:150, 180:211]],  # in two corners
        [np.s_[70:71, 99:100]],  # one pixel
        [np.s_[:, :]],
        [np.s_[:, 50:160], np.s_[75:76, :]],
    ],
)
def test_what_a_mask_does_not_mark_stays_to_the_pixel(
    places: list[tuple[slice, slice]], sampler: Sampler, noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixing, "find_hands_at", lambda *_: [])
    region = np.zeros((150, 211), bool)
    for place in places:
        region[place] = True
    notes: list[str] = []
    before = read_photo(noise)
    fixed = fix_photo(sampler, noise, SETTINGS, None, STEPS, region=region, on_note=notes.append)
    np.testing.assert_array_equal(fixed[~region], before[~region])
    assert (fixed[region] != before[region]).any(axis=1).mean() > 0.9
    assert len(notes) == 1 and "drawn without keypoints" in notes[0]


def test_a_thin_part_of_what_is_drawn_is_seen_beside_a_wide_one() -> None:
    image, drawn = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 200, np.uint8)
    region = np.zeros((40, 40), np.bool_)
    region[2:30, 2:30] = region[35:38, 5:30] = True
    pasted = paste_softly(image, drawn, region, 8)
    assert not pasted[~region].any()
    assert (pasted[16, 16] == 200).all() and (pasted[36, 15] == 200).all()
    assert 0 < pasted[2, 16, 0] < 200 and 0 < pasted[35, 15, 0] < 200


def test_the_edge_of_what_is_drawn_is_soft_and_lies_inside_the_mask(
    sampler: Sampler, noise: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (1280, 640)).save(noise)
    region = np.zeros((640, 1280), bool)
    region[100:500, 0:600] = True
    monkeypatch.setattr(fixing, "redraw", lambda *_, **__: np.full((64, 64, 3), 250, np.uint8))
    fixed = fix_photo(sampler, noise, SETTINGS, None, STEPS, region=region)[..., 0].astype(int)
    assert not fixed[~region].any()
    assert fixed[300, 0] == 250  # the photograph's own border is no edge
    ramp = fixed[300, 600 - 25 : 600]
    assert ramp[0] == 250 and 0 < ramp[-1] < 30
    assert (np.diff(ramp) <= 0).all() and -np.diff(ramp).min() < 30


def test_a_pixel_of_a_mask_counts_from_128(noise: Path, tmp_path: Path) -> None:
    levels = np.zeros((150, 211))
    levels[10, 20:23] = 127, 128, 255
    region = read_mask(write_mask(tmp_path / "mask.png", levels), noise)
    assert np.argwhere(region).tolist() == [[10, 21], [10, 22]]
    deep = Image.fromarray((levels * 257).astype(np.uint16))
    deep.save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "deep.png", noise), region)


def test_of_a_photograph_painted_white_the_paint_alone_counts(shared_dir: Path) -> None:
    for number, (least, most) in {1: (0.02, 0.05), 5: (0.12, 0.16), 13: (0.01, 0.03)}.items():
        photo = shared_dir / "data" / "malformed" / f"{number}.jpg"
        painted = photo.with_name(f"{number}_mask.jpg")
        region = read_mask(painted, photo)
        assert least < region.mean() < most, (number, region.mean())
        levels = np.asarray(Image.open(painted).convert("L"))
        assert levels[region].min() >= 128
        white = (read_photo(painted) > 250).all(axis=2) & (read_photo(photo) < 200).any(axis=2)
        assert region[white].mean() > 0.99


def test_a_mask_is_of_the_upright_photograph(tmp_path: Path) -> None:
    (tmp_path / "phone.jpg").write_bytes(encoded(photograph(), "JPEG", 6))
    upright = np.zeros((40, 60))
    upright[:, :30] = 255
    left = read_mask(write_mask(tmp_path / "upright.png", upright), tmp_path / "phone.jpg")
    assert left[:, :30].all() and not left[:, 30:].any()
    with pytest.raises(UsageError, match=r"--mask .*stored.png has 40 x 60 pixels, the upright photograph 60 x 40"):
        read_mask(write_mask(tmp_path / "stored.png", upright.T), tmp_path / "phone.jpg")


def test_wrong_masks_and_boxes_are_told_in_one_line(noise: Path, tmp_path: Path) -> None:
    dark = write_mask(tmp_path / "dark.png", np.ones((150, 211)))
    with pytest.raises(UsageError, match=r"dark.png marks nothing: its brightest pixel has level 1"):
        read_mask(dark, noise)
    with pytest.raises(UsageError, match=r"missing.png"):
        read_mask(tmp_path / "missing.png", noise)
    for box in ((211, 0, 300, 90), (50, 20, 50, 90), (90, 20, 50, 90), (-9, -9, 0, 0)):
        with pytest.raises(UsageError, match=r"holds no pixel of .*noise.png, which has 211 x 150"):
            region_of_box(box, noise)
    with pytest.raises(UsageError, match="--mask and --box"):
        marked_region(noise, dark, (0, 0, 9, 9))


def test_transparent_pixels_of_a_mask_mark_nothing(noise: Path, tmp_path: Path) -> None:
    layer = np.full((150, 211, 4), 255, np.uint8)
    layer[..., 3] = 0
    layer[40:90, 60:119, 3], layer[40:90, 119, 3] = 255, 127
    region = read_mask(write_mask(tmp_path / "layer.png", layer), noise)
    assert region[40:90, 60:119].all() and region.sum() == 50 * 59
    levels = Image.fromarray(layer).convert("LA")
    levels.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png", noise), region)
    layer[..., 3] = 0
    with pytest.raises(UsageError, match="marks nothing"):
        read_mask(write_mask(tmp_path / "layer.png", layer), noise)


def test_the_photograph_itself_is_no_mask(noise: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the photograph itself"):
        read_mask(noise, noise)
    photograph().save(tmp_path / "photo.png")
    photograph().save(tmp_path / "copy.jpg", quality=95)
    with pytest.raises(UsageError, match="is the photograph itself"):
        read_mask(tmp_path / "copy.jpg", tmp_path / "photo.png")


@pytest.mark.parametrize("box", [(1, 2, 30), (1.5, 2, 30, 40), ("1", 2, 30, 40)])
def test_a_box_is_four_whole_numbers(noise: Path, box: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="4 whole numbers"):
        region_of_box(box, noise)


def test_what_is_repaired_is_not_written_over(noise: Path, run_command: Callable[..., CommandResult]) -> None:
    before = noise.read_bytes()
    aside = noise.parent / "." / noise.name
    result = run_command("sample", "fix", noise, "--box", 5, 5, 20, 20, "--out", aside, "-w", noise.parent)
    assert result.code == 2 and "would be written over what it is made from" in result.err
    assert noise.read_bytes() == before


def test_a_box_holds_its_first_column_and_not_its_last(noise: Path) -> None:
    region = region_of_box((3, -5, 7, 2), noise)
    assert np.argwhere(region).tolist() == [[row, column] for row in (0, 1) for column in (3, 4, 5, 6)]


def test_parts_of_one_hand_are_one_part_and_far_ones_have_squares_of_their_own(
    sampler: Sampler, shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = Image.open(next((shared_dir / "data" / "phone_video").rglob("0000.jpg"))).convert("RGB")
    wide = Image.new("RGB", (1000, 400), (90, 90, 90))
    wide.paste(photo, (20, 60))
    wide.save(tmp_path / "wide.png")
    hand = fixing.find_hands_at(np.asarray(wide), [], SETTINGS)[0]
    tips = hand.keypoints[[4, 20]]  # thumb and little finger
    region = np.zeros((400, 1000), bool)
    for x, y in np.round(tips).astype(int):
        region[y - 8 : y + 8, x - 8 : x + 8] = True
    region[300:340, 880:930] = True
    shown: list[tuple[Frame, np.ndarray]] = []

    def drawn(_: Sampler, frame: Frame, wanted: np.ndarray, *__: object, **___: object) -> np.ndarray:
        shown.append((frame, wanted))
        return np.full((64, 64, 3), 255, np.uint8)

    monkeypatch.setattr(fixing, "redraw", drawn)
    notes: list[str] = []
    fix_photo(sampler, tmp_path / "wide.png", SETTINGS, None, STEPS, region=region, on_note=notes.append)
    assert notes == ["no hand is found in 1 of the 2 parts of the region: it is drawn without keypoints"]
    (of_hand, wanted), (empty, _) = sorted(shown, key=lambda each: -each[0].valid.sum())
    rows = hand_rows(hand.side)
    assert of_hand.valid[rows].all() and not empty.valid.any()
    x, y = np.round(of_hand.keypoints[rows][[4, 20]]).astype(int).T
    assert wanted[y, x].all() and wanted.mean() < 0.3
    size = np.ptp(of_hand.keypoints[rows], axis=0).max()
    assert 64 / 2 < size < 64 / 1.4  # the hand's share of the square is about that of training


@pytest.mark.parametrize("extension", ["png", "webp"])
@pytest.mark.slow
def test_the_command_keeps_alpha_profile_exif_and_every_other_pixel(
    extension: str, checkpoint: Path, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    upright = photograph(size=(90, 60))
    upright.putalpha(Image.linear_gradient("L").resize((90, 60)))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "a phone"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] = 60
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "phone.png", exif=exif, icc_profile=profile)
    out = tmp_path / f"fixed.{extension}"
    words = (
        "sample",
        "fix",
        tmp_path / "phone.png",
        "--box",
        10,
        5,
        40,
        30,
        "--out",
        out,
        "--steps",
        2,
        "--out-dir",
        tmp_path / "d",
    )
    result = run_command(*words, "--checkpoint", checkpoint, "--preset", "foundhand-xs", "-w", tmp_path / "w")
    assert result.code == 0, result.err
    assert "no hand is found in the region" in result.err
    (square,) = (tmp_path / "d").iterdir()
    with Image.open(square) as drawn:
        assert drawn.size == (64, 64)
        assert (drawn.info["task"], drawn.info["target"]) == ("fix", str(tmp_path / "phone.png"))
        assert "CC-BY-NC-4.0" in drawn.info["licences"]
    with Image.open(out) as fixed:
        changed = (np.asarray(fixed.convert("RGBA")) != np.asarray(upright)).any(axis=2)
        kept = fixed.getexif()
        assert fixed.info["icc_profile"] == profile
    assert changed[5:30, 10:40].mean() > 0.9 and changed.sum() == changed[5:30, 10:40].sum()
    assert (kept[ExifTags.Base.Orientation], kept[ExifTags.Base.Make]) == (1, "a phone")
    assert kept.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] == 90
    assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


@pytest.mark.slow
def test_each_found_hand_is_drawn_anew_and_nothing_else(sampler: Sampler, tmp_path: Path) -> None:
    write_synthetic(tmp_path / "made", identities=1, sequences=1, frames=1, cameras=1, size=256, seed=3, processes=1)
    (rendered,) = (tmp_path / "made").rglob("*.jpg")
    framed = np.pad(read_photo(rendered), ((40, 61), (300, 20), (0, 0)), constant_values=90)
    Image.fromarray(framed).save(tmp_path / "photo.png")
    squares: list[np.ndarray] = []
    fixed = fix_photo(
        sampler, tmp_path / "photo.png", SETTINGS, None, STEPS, on_square=lambda *done: squares.append(done[-1])
    )
    assert [square.shape for square in squares] == [(64, 64, 3)]
    changed = (fixed != framed).any(axis=2)
    (hand,) = fixing.find_hands_at(framed, [], SETTINGS)
    x, y = np.round(hand.keypoints).astype(int).T
    assert changed[y, x].all()
    rows, columns = np.nonzero(changed)
    margin = 0.6 * hand.size
    assert columns.min() > x.min() - margin and columns.max() < x.max() + margin
    assert rows.min() > y.min() - margin and rows.max() < y.max() + margin
    Image.new("RGB", (90, 90)).save(tmp_path / "empty.png")
    with pytest.raises(NoHandError, match="cannot be used"):
        fix_photo(sampler, tmp_path / "empty.png", SETTINGS, None, STEPS)


def test_python_takes_masks_as_arrays_pictures_and_files(
    checkpoint: Path, noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANDDATA_WORKSPACE", str(tmp_path / "w"))
    monkeypatch.setattr(fixing, "find_hands_at", lambda *_: [])
    model = handdata.load_model(checkpoint, "cpu", preset="foundhand-xs")
    region = np.zeros((150, 211), bool)
    region[40:90, 60:120] = True
    levels = region.astype(np.uint8) * np.uint8(255)
    masks = [region, levels, Image.fromarray(levels), write_mask(tmp_path / "mask.png", levels)]
    drawn = [np.asarray(model.fix(noise, mask=mask, steps=2)) for mask in masks]
    drawn.append(np.asarray(model.fix(noise, box=(60, 40, 120, 90), steps=2)))
    for other in drawn[1:]:
        np.testing.assert_array_equal(other, drawn[0])
    assert (np.asarray(model.fix(noise, mask=region, steps=2, seed=1)) != drawn[0])[region].any()
    with pytest.raises(UsageError, match=r"mask .*211"):
        model.fix(noise, mask=region[:9], steps=2)
    with pytest.raises(UsageError, match="levels 0 to 255"):
        model.fix(noise, mask=region.astype(float), steps=2)


def test_each_hand_has_a_square_of_its_own_and_nothing_between_them_changes(
    sampler: Sampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    image = np.asarray(rng.integers(0, 200, (120, 400, 3)), np.uint8)
    Image.fromarray(image).save(tmp_path / "two.png")
    hands = []
    for left, side in ((10, "right"), (330, "left")):
        rows = hand_rows(side)
        square = CropSquare(left=left, top=30, side=60, size=30)
        keypoints, own = np.zeros((42, 2), np.float32), np.zeros(42, bool)
        keypoints[rows] = rng.uniform(10, 20, (21, 2))
        own[rows] = True
        whole = np.ones((30, 30), bool)
        hands.append(PhotoHand(square, ~whole, keypoints, own, own, side, 1))
    monkeypatch.setattr(fixing, "annotate_hands", lambda *_: hands)
    steps: list[tuple[int, int]] = []
    seen: list[tuple[Frame, np.ndarray]] = []

    def white(_: Sampler, frame: Frame, region: np.ndarray, __: object, progress: Progress) -> np.ndarray:
        progress(1, 1)
        seen.append((frame, region))
        return np.full((64, 64, 3), 255, np.uint8)

    monkeypatch.setattr(fixing, "redraw", white)
    fixed = fix_photo(sampler, tmp_path / "two.png", SETTINGS, None, STEPS, lambda *done: steps.append(done))
    assert steps == [(1, 2), (2, 2)]
    changed = (fixed != image).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert not changed[:, 70:330].any()
    for hand, (frame, region) in zip(hands, seen, strict=True):
        np.testing.assert_array_equal(frame.valid, hand.own)
        x, y = np.round(frame.keypoints[frame.valid]).astype(int).T
        assert region[y, x].all()
        assert 0.2 < region.mean() < 0.9
    assert columns.min() >= 10 and columns.max() < 390 and rows.min() >= 30 and rows.max() < 90
    assert (fixed == 255).all(axis=2).sum() > 0.5 * changed.sum()
