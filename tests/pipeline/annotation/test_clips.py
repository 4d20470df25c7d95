"""The hands in a clip: tracked, in one square, and every frame that was asked for is there or said why not."""

from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from handdata.adapters.synthesis.dataset import write_dataset as write_synthetic
from handdata.pipeline.annotation.clips import annotate_clip, frame_files
from handdata.pipeline.annotation.photo import read_photo
from handdata.pipeline.settings import AnnotateSettings
from handdata.schemas import NoHandError, UsageError

SETTINGS = AnnotateSettings(image_size=64)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Six frames of a moving hand, in pictures of 320 x 256 pixels."""
    folder = tmp_path_factory.mktemp("hand")
    write_synthetic(folder, identities=1, sequences=1, frames=6, cameras=1, size=256, seed=3, processes=1)
    return [np.pad(read_photo(file), ((0, 0), (0, 64), (0, 0))) for file in sorted(folder.rglob("*.jpg"))]


def write_folder(folder: Path, frames: list[np.ndarray]) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame{8 + number}.png")  # 8, 9, 10: by number, not by letter
    (folder / "notes.txt").touch()
    return folder


def write_video(file: Path, frames: list[np.ndarray]) -> Path:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = frames[0].shape[0], frames[0].shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file


@pytest.mark.parametrize("write", [write_folder, write_video])
def test_the_frames_of_a_clip_are_cut_with_one_square(
    write: Callable[[Path, list[np.ndarray]], Path], frames: list[np.ndarray], tmp_path: Path
) -> None:
    path = write(tmp_path / "clip.mp4", frames)
    clip = annotate_clip(path, range(1, 5), SETTINGS)
    assert (clip.numbers, clip.total, clip.left_out) == ([1, 2, 3, 4], 6, {})
    assert clip.fps == (25 if path.is_file() else None)
    assert len({sample.crop_xyxy for sample in clip.samples}) == 1
    for number, sample in zip(clip.numbers, clip.samples, strict=True):
        x0, y0, x1, y1 = sample.crop_xyxy
        box = Image.fromarray(frames[number]).transform((64, 64), Image.Transform.EXTENT, (x0, y0, x1, y1))
        shown = cv2.imdecode(np.frombuffer(sample.image.bytes, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert shown is not None and np.abs(shown.astype(int) - np.asarray(box)).mean() < 12
        assert sample.hand_mask is None
    first = clip.samples[0]
    x, y = np.round(first.keypoints_2d[first.keypoints_valid]).astype(int).T
    assert clip.mask.shape == (64, 64) and clip.mask[y, x].mean() > 0.6


def test_a_frame_without_a_hand_is_named(frames: list[np.ndarray], tmp_path: Path) -> None:
    empty = np.full_like(frames[0], 90)
    folder = write_folder(tmp_path / "clip", [empty, frames[1], frames[2]])
    clip = annotate_clip(folder, range(12), SETTINGS)
    assert (clip.numbers, clip.left_out, clip.total) == ([1, 2], {0: "no hand is found"}, 3)
    with pytest.raises(NoHandError, match=r"clip cannot be used: no hand is found in any of its 1 frames"):
        annotate_clip(folder, range(1), SETTINGS)
    with pytest.raises(UsageError, match=r"clip has 3 frames, and none from number 3 on"):
        annotate_clip(folder, range(3, 9), SETTINGS)


def test_what_is_no_clip_is_told_in_one_line(frames: list[np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("by the lake")
    (tmp_path / "empty").mkdir()
    mixed = write_folder(tmp_path / "mixed", [frames[0], frames[1][:99]])
    for path, said in (
        (tmp_path / "text.mp4", r"text.mp4 is no video that can be read"),
        (tmp_path / "none.mp4", r"none.mp4 is no video that can be read"),
        (tmp_path / "empty", r"empty holds no images"),
        (mixed, r"frame9.png has 320 x 99 pixels, the frames before it 320 x 256"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            annotate_clip(path, range(9), SETTINGS)
        assert "\n" not in caught.value.message and caught.value.hint
    assert [file.name for file in frame_files(mixed)] == ["frame8.png", "frame9.png"]
