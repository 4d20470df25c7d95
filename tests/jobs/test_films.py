"""``handdata sample video``: poses from whatever has them, exactly the frames that were asked for, or why not."""

import json
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import handdata
from handdata.adapters.synthesis.dataset import write_dataset as write_synthetic
from handdata.jobs.films import poses_of_file
from handdata.pipeline.annotation.photo import read_photo
from handdata.schemas import UsageError
from tests.fixtures.commands import CommandResult


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five frames, of which the second shows no hand."""
    made, folder = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("clips") / "clip"
    write_synthetic(made, identities=1, sequences=1, frames=4, cameras=1, size=256, seed=3, processes=1)
    folder.mkdir()
    for number, file in zip((0, 2, 3, 4), sorted(made.rglob("*.jpg")), strict=True):
        Image.fromarray(np.pad(read_photo(file), ((0, 0), (0, 64), (0, 0)))).save(folder / f"{number}.png")
    Image.new("RGB", (320, 256), (90, 90, 90)).save(folder / "1.png")
    return folder


@pytest.mark.slow
def test_a_clip_gives_its_frames_as_a_film_and_as_pictures(
    clip: Path, checkpoint: Path, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    words = ("sample", "video", "-w", tmp_path / "w", "--checkpoint", checkpoint, "--preset", "foundhand-xs")
    words = (*words, "--target", clip, "--n", 9, "--steps", 2, "--sampler", "ddim", "--fps", 5)
    result = run_command(*words, "--out", tmp_path / "a.mp4", "--out-dir", tmp_path / "pictures")
    assert result.code == 0, result.err
    assert f"left out of {clip}: frame 1: no hand is found" in result.err
    assert f"{clip} ends with frame 4: 5 frames are drawn from, not 9" in result.err
    with av.open(str(tmp_path / "a.mp4")) as film:
        (stream,) = film.streams.video
        assert (stream.frames, stream.width, stream.height, stream.average_rate) == (4, 64, 64, 5)
        shown = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert len(pictures) == 4
    for number, frame, picture in zip((0, 2, 3, 4), shown, pictures, strict=True):
        with Image.open(picture) as opened:
            assert opened.size == (64, 64)
            assert opened.info["target"] == f"{clip}, frame {number}"
            assert json.loads(opened.info["settings"])["recent"] == 1
            assert (opened.info["task"], opened.info["reference"]) == ("video", f"{clip}, frame 0")
            assert np.abs(np.asarray(opened).astype(int) - frame).mean() < 40  # H.264 keeps colours at half the size
    with Image.open(tmp_path / "a.png") as figure:
        assert figure.width > 4 * 160 and figure.height > 4 * 160
    fast = run_command(*words, "--n", 1, "--fps", 60, "--out", tmp_path / "fast.gif")
    assert fast.code == 0 and "--fps 50 is the most" in fast.err
    away = run_command(*words, "--target", tmp_path / "wave.mov", "--out", tmp_path / "b.gif")
    assert away.code == 2 and "wave.mov is neither a file, a folder nor a sample" in away.err
    later = run_command(*words, "--start", 5, "--out", tmp_path / "b.gif")
    assert later.code == 2 and "has 5 frames, and none from number 5 on" in later.err


def test_the_figure_of_a_video_is_not_written_over_its_reference(
    tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    Image.new("RGB", (90, 90)).save(tmp_path / "me.png")
    before = (tmp_path / "me.png").read_bytes()
    words = ("--reference", tmp_path / "me.png", "--target", tmp_path / "wave.mov", "--out", tmp_path / "me.mp4")
    result = run_command("sample", "video", *words, "-w", tmp_path / "w")
    assert result.code == 2 and "me.png would be written over what it is made from" in result.err
    assert (tmp_path / "me.png").read_bytes() == before


def hand_at(x: float, y: float, size: float) -> np.ndarray:
    keypoints = np.zeros((42, 2))
    keypoints[:21] = np.random.default_rng(0).uniform(0, 1, (21, 2)) * size + (x, y)
    return keypoints


def test_poses_of_a_file_are_placed_in_one_square_and_absent_ones_named(tmp_path: Path) -> None:
    poses = np.stack([hand_at(300, 100, 90), np.zeros((42, 2)), hand_at(340, 140, 90)])
    np.savez(tmp_path / "wide.npz", keypoints=poses, size=(640, 360))
    notes: list[str] = []
    found = poses_of_file(tmp_path / "wide.npz", range(3), 64, 1.6, notes.append)
    assert notes == [f"left out of {tmp_path / 'wide.npz'}: frame 1: no keypoint lies inside the image"]
    first, last = (each.frame for each in found.targets)
    assert first.valid[:21].all() and last.valid[:21].all() and found.first is None
    moved = last.keypoints[:21] - first.keypoints[:21]
    side = 1.6 * np.ptp(np.concatenate([poses[0, :21], poses[2, :21]]), axis=0).max()
    np.testing.assert_allclose(moved, 40 * 64 / round(side), atol=0.01)


def test_poses_of_a_square_image_stay_where_they_are(tmp_path: Path) -> None:
    poses = np.stack([hand_at(30, 10, 90), hand_at(90, 40, 90)])
    np.save(tmp_path / "poses.npy", poses)
    notes: list[str] = []
    found = poses_of_file(tmp_path / "poses.npy", range(1, 12), 64, 1.6, notes.append, (256, 256))
    np.testing.assert_allclose(found.targets[0].frame.keypoints[:21], (poses[1, :21] + 0.5) / 4 - 0.5, atol=1e-4)
    assert len(found.targets) == 1 and "ends with frame 1: 1 frames are drawn from, not 11" in notes[0]
    with pytest.raises(UsageError, match=r"poses.npy has 2 poses, and none from number 2 on"):
        poses_of_file(tmp_path / "poses.npy", range(2, 4), 64, 1.6, notes.append)
    with pytest.raises(UsageError, match="no keypoint inside"):
        poses_of_file(tmp_path / "poses.npy", range(2), 8, 1.6, notes.append)


@pytest.mark.slow
def test_python_draws_videos_of_files_and_of_lists(
    clip: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HANDDATA_WORKSPACE", str(tmp_path / "w"))
    model = handdata.load_model(checkpoint, "cpu", preset="foundhand-xs")
    np.save(tmp_path / "poses.npy", np.stack([hand_at(30, 10, 90), hand_at(90, 40, 90)]))
    frames = model.video(None, clip, frames=range(2, 4), steps=2)
    assert [frame.size for frame in frames] == [(64, 64)] * 2
    of_file = model.video(clip / "0.png", tmp_path / "poses.npy", keypoints_size=(256, 256), steps=2)
    of_list = model.video(
        [clip / "0.png"], [pose / 4 - 0.375 * (pose > 0) for pose in np.load(tmp_path / "poses.npy")], steps=2
    )
    for one, other in zip(of_file, of_list, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1
    again = model.video(clip / "0.png", str(tmp_path / "poses.npy"), keypoints_size=(256, 256), steps=2, recent=0)
    assert (np.asarray(again[0]) == np.asarray(of_file[0])).all()
    for wrong in (range(0, 2, 2), range(-1, 1), range(1, -1, -1), 2):
        with pytest.raises(UsageError, match="range of frames one after another"):
            model.video(clip / "0.png", tmp_path / "poses.npy", frames=wrong, keypoints_size=(256, 256), steps=2)
    with pytest.raises(UsageError, match="recent is -1"):
        model.video(clip / "0.png", tmp_path / "poses.npy", keypoints_size=(256, 256), steps=2, recent=-1)
    with pytest.raises(UsageError, match="poses alone show no hand"):
        model.video(None, tmp_path / "poses.npy", steps=2)
    with pytest.raises(UsageError, match=r"none.mp4 is no video that can be read"):
        model.video(clip / "0.png", tmp_path / "none.mp4", steps=2)
