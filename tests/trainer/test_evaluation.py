"""What evaluation promises: perfect images score as they must, baselines as they do, intervals cover the truth."""

import json
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from handdata.pipeline.storage import Storage
from handdata.schemas import HAND_EDGES, Side
from handdata.schemas.arrays import ByteArray, FloatArray
from handdata.trainer.data.augment import Frame
from handdata.trainer.evaluation import (
    MovedPair,
    carried_references,
    compare,
    interval,
    mean_image,
    mean_motion,
    pose_of_truth,
)
from handdata.trainer.loop import train
from handdata.trainer.metrics import FoundHand, hand_box, picture_marks, pose_marks
from handdata.trainer.trainer import Trainer
from tests.fixtures.commands import CommandResult
from tests.fixtures.samples import sample, write_dataset
from tests.fixtures.training import SMALL

OPEN_HAND = np.array(
    [(0, 0)] + [(x * reach, -reach) for x in (-0.6, -0.2, 0.0, 0.2, 0.4) for reach in (0.4, 0.6, 0.8, 1.0)]
)


def frame(seed: int, shift: tuple[float, float] = (0, 0), length: float = 24, size: int = 64) -> Frame:
    """An image of noise with an open right hand of about that length, its wrist at (32, 44) plus ``shift``."""
    rng = np.random.default_rng(seed)
    keypoints = np.zeros((42, 2), np.float32)
    keypoints[:21] = OPEN_HAND * length + (32, 44) + np.array(shift)
    plane = np.full((size, size), 255, np.uint8)
    pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Frame(image=pixels, mask=plane, known=plane, keypoints=keypoints, valid=np.arange(42) < 21)


def pair(seed: int, shift: tuple[float, float]) -> MovedPair:
    reference, target = frame(seed), frame(seed + 1000, shift)
    return MovedPair(f"video{seed % 7}", mean_motion(reference, target), reference, target)


def test_a_carried_reference_is_the_target_where_a_hand_has_moved_over_a_plain_background() -> None:
    picture, hand = np.full((64, 64, 3), 90, np.uint8), np.zeros((64, 64), np.uint8)
    joints = frame(0).keypoints[:21].round().astype(int)
    for start, end in HAND_EDGES:
        cv2.line(hand, tuple(joints[start]), tuple(joints[end]), 255, 7)
    picture[hand > 0] = (200, 120, 80)
    reference = replace(frame(0), image=picture, mask=hand)
    shift = (10, -6)
    target = replace(frame(0, shift), image=np.roll(picture, shift, axis=(1, 0)))
    pairs = [(reference, target)]
    (carried,), (left_in,) = carried_references(pairs), carried_references(pairs, painted_out=False)
    copied, better, worse = (picture_marks(image, target)["psnr_box"] for image in (picture, carried, left_in))
    assert better > copied + 6
    assert copied < worse < better
    old = (hand > 0) & (np.roll(cv2.dilate(hand, np.ones((5, 5))), shift, axis=(1, 0)) == 0)
    assert (left_in[old] == (200, 120, 80)).all()
    assert np.abs(carried[old].astype(int) - 90).max() < 20


def test_motion_is_measured_in_hand_lengths() -> None:
    length = np.hypot(0.6, 1) * 24  # the thumb's tip is the farthest
    assert mean_motion(frame(0), frame(1, shift=(6, 8))) == pytest.approx(10 / length, rel=1e-5)
    assert mean_motion(frame(0), frame(1)) == 0


def test_hands_that_only_one_frame_shows_do_not_count_as_moved() -> None:
    other = frame(1, shift=(9, 0))
    hidden = Frame(other.image, other.mask, other.known, other.keypoints, np.zeros(42, bool))
    assert mean_motion(frame(0), hidden) == 0


def test_the_box_holds_the_hand_and_stays_in_the_image() -> None:
    for shift in ((0, 0), (25, 15), (-28, -18)):
        target = frame(0, shift)
        rows, columns = hand_box(target)
        assert 0 <= rows.start < rows.stop <= 64
        assert 0 <= columns.start < columns.stop <= 64
        assert rows.stop - rows.start >= 16
        for x, y in np.clip(target.keypoints[:21], 0, 63):
            assert columns.start <= x <= columns.stop
            assert rows.start <= y <= rows.stop


def test_only_the_hand_box_counts() -> None:
    target = frame(0)
    outside = target.image.copy()
    keep = np.zeros((64, 64), bool)
    keep[hand_box(target)] = True
    outside[~keep] = 0
    marks = picture_marks(outside, target)
    assert (marks["psnr_box"], marks["ssim_box"]) == (np.inf, pytest.approx(1.0))
    assert marks["psnr"] < 20 and marks["ssim"] < 0.9
    darker = (target.image * 0.9).astype(np.uint8)
    assert 20 < picture_marks(darker, target)["psnr_box"] < 40
    assert picture_marks(darker, target)["ssim_box"] < 1


def known_hands(*hands: FloatArray, side: Side = "right") -> Callable[[ByteArray], list[FoundHand]]:
    return lambda _: [FoundHand(side, joints) for joints in hands]


def found_pose(image: ByteArray, target: Frame, find: Callable[[ByteArray], list[FoundHand]]) -> dict[str, float]:
    """Return shares of hands and joints alone."""
    return {name: mark for name, mark in pose_marks(image, target, find).items() if name in ("detected", *PCK)}


PCK = ("pck@0.1", "pck@0.2")


def test_joints_are_right_within_a_share_of_the_hand() -> None:
    target = frame(0)
    true = target.keypoints[:21]
    length = np.hypot(0.6, 1) * 24
    assert found_pose(target.image, target, known_hands(true)) == {"detected": 1, "pck@0.1": 1, "pck@0.2": 1}
    half_wrong = true.copy()
    half_wrong[:10] += 0.15 * length
    found = found_pose(target.image, target, known_hands(true + 500, half_wrong))
    assert found["pck@0.1"] == pytest.approx(11 / 21)
    assert found["pck@0.2"] == pytest.approx(11 / 21)  # 0.15 in x and in y is 0.21 away
    missed = {"detected": 0, "pck@0.1": 0, "pck@0.2": 0}
    assert found_pose(target.image, target, known_hands()) == missed
    assert found_pose(target.image, target, known_hands(true + 500)) == missed


def test_the_side_and_the_error_of_a_found_hand_count_apart() -> None:
    target = frame(0)
    true, length = target.keypoints[:21], np.hypot(0.6, 1) * 24
    near = known_hands(true + np.array([0.06, 0.08]) * length)
    marks = pose_marks(target.image, target, near)
    assert marks["error"] == pytest.approx(0.1, rel=1e-4)
    assert marks["side_right"] == 1
    marks = pose_marks(target.image, target, known_hands(true, side="left"))
    assert (marks["detected"], marks["side_right"], marks["error"]) == (1, 0, 0)
    marks = pose_marks(target.image, target, known_hands())
    assert (marks["detected"], marks["side_right"], marks["error"]) == (0, 0, 1)


def test_the_sides_of_swapped_hands_are_wrong() -> None:
    target = two_hands()
    right, left = target.keypoints[:21], target.keypoints[21:]
    named = [FoundHand("right", right), FoundHand("left", left)]
    assert pose_marks(target.image, target, lambda _: named)["side_right"] == 1
    swapped = [FoundHand("left", right), FoundHand("right", left)]
    marks = pose_marks(target.image, target, lambda _: swapped)
    assert (marks["side_right"], marks["pck@0.1"]) == (0, 1)


def two_hands() -> Frame:
    """A frame of two hands, a hand's length apart at most."""
    one = frame(0)
    keypoints = one.keypoints.copy()
    keypoints[21:] = keypoints[:21] + np.array([6, 0])
    return replace(one, keypoints=keypoints, valid=np.ones(42, bool))


def test_a_detection_counts_for_one_hand() -> None:
    target = two_hands()
    right, left = target.keypoints[:21], target.keypoints[21:]
    both = {"detected": 1, "pck@0.1": 1, "pck@0.2": 1}
    half = {"detected": 0.5, "pck@0.1": 0.5, "pck@0.2": 0.5}
    assert found_pose(target.image, target, known_hands(left, right)) == both
    assert found_pose(target.image, target, known_hands(right)) == half
    assert found_pose(target.image, target, known_hands(left, left + 500)) == half
    # The nearest detection of both hands is the same: the other one is left for the hand that it fits.
    found = found_pose(target.image, target, known_hands(right + np.array([5, 0]), right - np.array([12, 0])))
    assert found["detected"] == 1


def test_a_perfect_generator_is_above_both_baselines_and_copying_is_not_above_itself() -> None:
    pairs = [pair(seed, (8, 4)) for seed in range(14)]
    near = [np.clip(pair.target.image.astype(int) + 3, 0, 255).astype(np.uint8) for pair in pairs]
    copies = [pair.reference.image for pair in pairs]
    mean = mean_image(copies)
    images = {"generated": near, "copied": copies, "copied again": copies, "mean": [mean] * 14}
    find_hands = known_hands(pairs[0].target.keypoints[:21])
    scores, above = compare(pairs, images, "generated", find_hands)
    for baseline in ("copied", "mean"):
        assert above[baseline]["psnr_box"].low > 10
        assert above[baseline]["ssim_box"].low > 0.5
        assert scores["generated"]["psnr_box"].mean - scores[baseline]["psnr_box"].mean == pytest.approx(
            above[baseline]["psnr_box"].mean
        )
    _, above = compare(pairs, images, "copied", find_hands)
    assert above["copied again"]["psnr_box"].low == above["copied again"]["psnr_box"].high == 0
    assert pose_of_truth(pairs, find_hands)["pck@0.1"].mean == 1


def test_intervals_cover_the_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        videos = rng.normal(5, 1, 40)
        values = np.repeat(videos, 5) + rng.normal(0, 0.1, 200)
        found = interval(values, np.repeat(np.arange(40), 5).astype(str), seed=trial)
        covered += found.low <= 5 <= found.high
    assert 0.88 < covered / 200 < 0.99


def test_pairs_of_one_video_do_not_make_the_interval_narrower() -> None:
    values = np.random.default_rng(0).normal(size=30).tolist()
    names = [str(number) for number in range(30)]
    once, often = interval(values, names), interval(values * 9, names * 9)
    assert astuple(often) == pytest.approx(astuple(once))


def test_equal_images_are_infinitely_alike_and_no_better_than_one_another() -> None:
    pairs = [pair(seed, (8, 4)) for seed in range(6)]
    truths = [pair.target.image for pair in pairs]
    worse = [truths[0], *(np.roll(truth, 1, axis=1) for truth in truths[1:])]
    images = {"generated": truths, "again": truths, "worse": worse}
    scores, above = compare(pairs, images, "generated", known_hands())
    assert astuple(scores["generated"]["psnr"]) == (np.inf,) * 3
    assert astuple(above["again"]["psnr"]) == (0, 0, 0)
    assert scores["worse"]["psnr"].low < np.inf
    assert above["worse"]["psnr"].low > 0


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    samples = [sample(f"{split}{video}", at, split=split, timestamp_s=at / 10)
               for split in ("train", "val") for video in range(3) for at in range(4)]  # fmt: skip
    storage = Storage(tmp_path / "workspace")
    write_dataset(storage, samples)
    return storage


def test_a_checkpoint_is_scored_from_the_command_line(
    storage: Storage, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    train(SMALL, storage, "run", steps=1, device="cpu")
    here = ("--workspace", storage.url(), "--run", "run", "--min-motion", 0, "--pairs", 6, "--steps", 2)
    result = run_command("evaluate", *here, "--out", tmp_path / "found", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found == json.loads((tmp_path / "found" / "evaluation.json").read_text())
    assert found["pairs"] == 6
    baselines = {"copied reference", "carried reference", "carried reference, hand left in", "mean picture"}
    assert set(found["scores"]) == {"generated"} | baselines
    assert set(found["above"]) == baselines
    pose = {"detected", "side_right", "error", "pck@0.1", "pck@0.2"}
    assert set(found["scores"]["generated"]) == {"psnr", "ssim", "psnr_box", "ssim_box"} | pose | {"skin"}
    assert found["above"]["copied reference"]["psnr"]["mean"] == pytest.approx(
        found["scores"]["generated"]["psnr"]["mean"] - found["scores"]["copied reference"]["psnr"]["mean"]
    )
    assert (tmp_path / "found" / "losses.png").is_file()
    with Image.open(tmp_path / "found" / "evaluation.png") as figure:
        assert figure.width == 6 * 164 + 4
    table = run_command("evaluate", *here)
    assert "95% intervals" in table.out
    assert run_command("evaluate", *here, "--split", "test").code == 2


def test_where_an_evaluation_goes_is_looked_at_before_it_begins(
    storage: Storage, tmp_path: Path, run_command: Callable[..., CommandResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(*arguments: object) -> None:
        raise AssertionError("hours of work have begun")

    monkeypatch.setattr("handdata.jobs.evaluate.evaluate", begun)
    Trainer(SMALL, "cpu").save(storage.url("runs/run"))
    here = ("evaluate", "--workspace", storage.url(), "--run", "run", "--out")
    (tmp_path / "file").touch()
    result = run_command(*here, tmp_path / "file" / "found")
    assert (result.code, result.err.count("\n")) == (1, 2), result.err
    assert "cannot write" in result.err
    with pytest.raises(AssertionError, match="have begun"):  # a run that was copied without its curves has none
        run_command(*here, tmp_path / "found")
    storage.write_bytes("runs/run/metrics.jsonl", b'{"step": 3, "lo')
    assert "metrics.jsonl is damaged" in run_command(*here, tmp_path / "found").err
