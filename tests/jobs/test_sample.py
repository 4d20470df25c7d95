"""``handdata sample``: each task from a checkpoint to an image on disk."""

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from handdata.adapters.synthesis.dataset import write_dataset as write_synthetic
from handdata.app import app
from handdata.jobs import sample as jobs_sample
from handdata.jobs.figures import GAP_PX, TILE_PX
from handdata.jobs.sample import SampleRequest, Sampling
from handdata.pictures.files import encode_picture
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.storage import Storage
from handdata.schemas import EncodedImage, UsageError
from handdata.trainer.presets import PairConfig, Preset, SourceConfig
from handdata.trainer.trainer import Trainer
from tests.fixtures.commands import CommandResult
from tests.fixtures.samples import sample, write_dataset
from tests.fixtures.training import SMALL, write_two_sequences


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on two sources: a video by two cameras, and stills."""
    folder = tmp_path_factory.mktemp("workspace")
    samples = [sample("wave", frame, camera, timestamp_s=frame / 10) for frame in range(6) for camera in "ab"]
    samples += [sample(f"still{number}", 0).model_copy(update={"source": "hagrid"}) for number in range(3)]
    samples = [
        row.model_copy(update={"sample_id": f"{row.source}-{number}", "record_id": f"{row.source}-{number}"})
        for number, row in enumerate(samples)
    ]
    write_dataset(Storage(folder), samples)
    (folder / "small.toml").write_text("[optimisation]\nbatch_size = 4\n")
    arguments = ["--config", str(folder / "small.toml"), "--steps", "30", "--gpus", "0", "--workspace", str(folder)]
    app(["train", *arguments], standalone_mode=False)
    return folder


def run(workspace: Path, *arguments: str) -> None:
    app(["sample", *arguments, "--steps", "2", "--workspace", str(workspace)], standalone_mode=False)


def read_image(path: Path) -> np.ndarray:
    found = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    assert found is not None
    return np.asarray(found)


def rows_and_columns(figure: Path) -> tuple[int, int]:
    """Return how many images a figure has below the titles of its columns."""
    height, width = (side // (TILE_PX + GAP_PX) for side in read_image(figure).shape[:2])
    return height, width


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("gesture-transfer", []),
        ("novel-view", []),
        ("domain-transfer", ["--reference-source", "hagrid", "--target-source", "synthetic"]),
    ],
)
def test_pairs_of_the_dataset_give_a_figure(workspace: Path, tmp_path: Path, task: str, options: list[str]) -> None:
    run(workspace, task, *options, "--n", "2", "--out", str(tmp_path / "figure.png"))
    assert rows_and_columns(tmp_path / "figure.png") == (2, 5)


@pytest.mark.parametrize(
    ("task", "name"),
    [("gesture-transfer", "a.npy"), ("novel-view", "A.NPY"), ("domain-transfer", "a.json"), ("video", "a.npy")],
)
def test_keypoints_are_no_reference(workspace: Path, tmp_path: Path, task: str, name: str) -> None:
    pose = tmp_path / name
    with pose.open("wb") as file:
        np.save(file, np.full((42, 2), 9.0))
    targets = [] if task == "video" else ["--target", str(pose)]
    with pytest.raises(UsageError, match=re.escape(f"--reference {pose} holds keypoints")) as caught:
        run(workspace, task, "--reference", str(pose), *targets, "--out", str(tmp_path / "no.webp"))
    assert "photograph" in caught.value.hint


def test_drawn_pairs_are_of_rows_that_the_run_uses(tmp_path: Path) -> None:
    samples = [
        sample(sequence, frame, split=split, timestamp_s=frame / 10, license=license, flags=flags)
        for sequence, split, license, flags in (
            ("free", "train", "MIT", ()),
            ("free-val", "val", "MIT", ()),
            ("free-hidden", "val", "MIT", ("unlabelled_hand",)),
            ("bought", "val", "proprietary", ()),
            ("blurred", "val", "MIT", ("blurry",)),
        )
        for frame in range(3)
    ]
    storage = Storage(tmp_path)
    write_dataset(storage, samples)
    where = "NOT array_contains(flags, 'blurry')"

    def shown(preset: Preset) -> set[str]:
        checkpoint = Trainer(preset, "cpu").save(storage.url("runs/run"))
        sampling = Sampling(SampleRequest(checkpoint), storage, AnnotateSettings())
        dataset = sampling._pairs(PairConfig(video=1, view=0, still=0))
        return {dataset.sequence_id(dataset.rows_at(position)[0]) for position in range(len(dataset))}

    chosen = SMALL.choosing_rows(where, ["MIT"])
    assert shown(chosen) == {"free-val"}
    everything = chosen.model_copy(update={"data": chosen.data.model_copy(update={"unlabelled_hands": True})})
    assert shown(everything) == {"free-val", "free-hidden"}
    assert shown(SMALL.choosing_rows("sequence_id = 'free'")) == {"free"}  # held-out rows have none of these
    assert shown(SMALL) == {"free-val", "bought", "blurred"}  # a checkpoint without a choice of rows


def test_drawn_pairs_are_of_no_source_that_the_run_leaves_out(tmp_path: Path) -> None:
    samples = [
        sample(f"{source}-{split}", frame, split=split, timestamp_s=frame / 10).model_copy(
            update=dict.fromkeys(("sample_id", "record_id"), f"{source}-{split}-{frame}") | {"source": source}
        )
        for source in ("hagrid", "synthetic")
        for split in ("train", "val")
        for frame in range(3)
    ]
    storage = Storage(tmp_path)
    write_dataset(storage, samples)
    sources = {"hagrid": SourceConfig(weight=0), "elsewhere": SourceConfig(weight=0)}  # of another dataset than this
    preset = SMALL.model_copy(update={"pairs": PairConfig(sources=sources)})
    checkpoint = Trainer(preset, "cpu").save(storage.url("runs/run"))
    sampling = Sampling(SampleRequest(checkpoint), storage, AnnotateSettings())
    dataset = sampling._pairs(PairConfig(video=1, view=0, still=0))
    assert {dataset.sequence_id(dataset.rows_at(position)[0]) for position in range(20)} == {"synthetic-val"}
    assert sampling._frame("hagrid-val-1").valid.any()  # what is asked for by its name is drawn
    across = SampleRequest(checkpoint, reference_source="hagrid", target_source="synthetic", count=2)
    assert len(Sampling(across, storage, AnnotateSettings())._pairs_across_sources()) == 2


@pytest.mark.parametrize("task", ["gesture-transfer", "video", "unconditional"])
def test_a_place_that_cannot_be_written_ends_before_anything_is_drawn(
    workspace: Path,
    tmp_path: Path,
    task: str,
    run_command: Callable[..., CommandResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.webp").mkdir()
    monkeypatch.setattr(jobs_sample, "load_sampler", lambda *arguments: Trainer(SMALL, "cpu"))
    for place in (tmp_path / "file" / "a.webp", tmp_path / "folder.webp", "/proc/none/a.webp"):
        result = run_command("sample", task, "-w", workspace, "--out", place)
        assert (result.code, result.err.count("error:"), result.err.count("\n")) == (1, 1, 2), result.err
        assert f"cannot write {place}" in result.err


def test_domain_transfer_says_which_sources_there_are(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--reference-source") as caught:
        run(workspace, "domain-transfer", "--out", str(tmp_path / "figure.png"))
    assert "hagrid, synthetic" in caught.value.hint


def test_a_video_is_written_with_a_strip_beside_it(workspace: Path, tmp_path: Path) -> None:
    run(workspace, "video", "--n", "3", "--fps", "5", "--out", str(tmp_path / "wave.webp"))
    with Image.open(tmp_path / "wave.webp") as film:
        assert (film.n_frames, film.size) == (3, (32, 32))  # type: ignore[attr-defined]
        assert film.info.get("duration", 200) == 200
    assert rows_and_columns(tmp_path / "wave.png") == (3, 4)  # reference, pose, generated and truth
    with pytest.raises(UsageError, match=r"neither \.mp4, \.webp nor \.gif"):
        run(workspace, "video", "--out", str(tmp_path / "wave.avi"))


def test_unconditional_samples_fill_a_grid(workspace: Path, tmp_path: Path) -> None:
    run(workspace, "unconditional", "--n", "4", "--out", str(tmp_path / "grid.png"))
    assert read_image(tmp_path / "grid.png").shape == (2 * 132, 2 * 132, 3)


@pytest.mark.slow
def test_without_a_run_the_built_in_network_draws_photographs(
    tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    write_synthetic(tmp_path / "hands", identities=1, sequences=1, frames=2, cameras=1, size=256, seed=3, processes=1)
    first, second = sorted((tmp_path / "hands").rglob("*.jpg"))
    words = ["sample", "gesture-transfer", "--reference", first, "--target", second, "--out", tmp_path / "a.png"]
    result = run_command(*words, "-w", tmp_path / "w")
    assert result.code == 0, result.err
    assert "has no run: the built-in network draws" in result.err.splitlines()[0]
    assert rows_and_columns(tmp_path / "a.png") == (1, 5)
    named = run_command(*words, "-w", tmp_path / "w", "--run", "mine")
    assert named.code == 1 and "no complete checkpoint in" in named.err  # a run that was asked for is never another
    (tmp_path / "w" / "runs" / "theirs").mkdir(parents=True)
    other = run_command(*words, "-w", tmp_path / "w")
    assert other.code == 2 and "has no run default" in other.err and "theirs" in other.err


@pytest.mark.parametrize("command", [["evaluate"], ["export", "weights"]])
def test_a_run_with_a_typo_is_told_from_the_one_that_is_meant(
    command: list[str], tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    write_two_sequences(Storage(tmp_path))
    (tmp_path / "runs" / "theirs").mkdir(parents=True)
    done = run_command(*command, "-w", tmp_path, "--run", "thiers")
    assert done.code == 2 and "has no run thiers" in done.err and "did you mean theirs?" in done.err


@pytest.mark.parametrize("task", ["gesture-transfer", "video", "unconditional"])
def test_more_steps_than_the_noise_schedule_has_are_an_error(workspace: Path, tmp_path: Path, task: str) -> None:
    words = ["sample", task, "--steps", "1001", "--workspace", str(workspace), "--out", str(tmp_path / "a.webp")]
    with pytest.raises(UsageError, match="1001 denoising steps are more than the noise schedule has, 1000"):
        app(words, standalone_mode=False)


@pytest.fixture
def partly_unreadable(tmp_path: Path) -> Path:
    """A checkpoint, and held-out videos and stills whose first images cannot be decoded."""
    samples = [
        sample(sequence, frame, camera, split="val", timestamp_s=frame / 10)
        for sequence in ("wave", "point")
        for frame in range(6)
        for camera in "ab"
    ]
    samples += [sample(f"still{number}", 0, split="val", source="hagrid") for number in range(4)]
    broken = [row.sequence_id == "still0" or (row.sequence_id == "wave" and row.frame_index < 3) for row in samples]
    image = EncodedImage(bytes=b"no image")
    rows = [row.model_copy(update={"image": image}) if bad else row for row, bad in zip(samples, broken, strict=True)]
    write_dataset(Storage(tmp_path), rows)
    Trainer(SMALL, "cpu").save(Storage(tmp_path).url("runs/default"))
    return tmp_path


def test_drawn_images_that_cannot_be_decoded_are_passed_over_with_a_word(
    partly_unreadable: Path, run_command: Callable[..., CommandResult]
) -> None:
    across = ("--reference-source", "hagrid", "--target-source", "synthetic")
    pictures = partly_unreadable / "figure.png"
    for words, rows in ((("gesture-transfer",), 4), (("novel-view",), 4), (("domain-transfer", *across), 3)):
        result = run_command("sample", *words, "--n", rows, "--steps", 1, "-w", partly_unreadable, "--out", pictures)
        assert result.code == 0, result.err
        assert rows_and_columns(pictures) == (rows, 5)
        assert "passed over" in result.err
    words = ("sample", "video", "--steps", 1, "-w", partly_unreadable, "--out", partly_unreadable / "a.webp")
    sequences = []
    for seed in range(4):
        result = run_command(*words, "--seed", seed)
        assert result.code == 0, result.err
        sequences.append("passed over" in result.err)
        assert rows_and_columns(partly_unreadable / "a.png")[0] == (3 if sequences[-1] else 6)
    assert set(sequences) == {True, False}
    named = ("--reference", "synthetic/val/wave/000000-a", "--target", "synthetic/val/point/000000-a")
    result = run_command("sample", "gesture-transfer", *named, "-w", partly_unreadable, "--out", pictures)
    assert (result.code, result.err.count("error:")) == (1, 1)  # what was asked for by its name is not exchanged
    assert "the image cannot be decoded" in result.err


@pytest.mark.parametrize(("x", "said"), [(500.0, "has no keypoint inside"), (31.9, "21 of 42 keypoints of")])
def test_keypoints_outside_the_generated_image_are_noticed(
    workspace: Path, tmp_path: Path, run_command: Callable[..., CommandResult], x: float, said: str
) -> None:
    pose = np.full((42, 2), 9.0)
    pose[:21] = x
    if x > 100:
        pose[:] = x
    np.save(tmp_path / "pose.npy", pose)
    words = ("--reference", "synthetic-0", "--target", tmp_path / "pose.npy", "--steps", 1, "--out", tmp_path / "a.png")
    result = run_command("sample", "gesture-transfer", *words, "-w", workspace)
    assert result.code == (2 if x > 100 else 0), result.err
    assert said in result.err


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP"), ("a.png", "PNG")]
)
def test_a_figure_is_written_as_its_name_says(workspace: Path, tmp_path: Path, name: str, kind: str) -> None:
    run(workspace, "unconditional", "--n", "1", "--out", str(tmp_path / name))
    with Image.open(tmp_path / name) as opened:
        assert opened.format == kind


def test_a_name_of_no_picture_ends_before_anything_is_drawn(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: Callable[..., CommandResult]
) -> None:
    monkeypatch.setattr(jobs_sample, "load_sampler", lambda *arguments: pytest.fail("was loaded"))
    Image.new("RGBA", (64, 64)).save(tmp_path / "clear.png")
    for words, said in [
        (("gesture-transfer", "--out", tmp_path / "a.tiff"), "neither .png, .jpg, .jpeg nor .webp"),
        (("unconditional", "--out", tmp_path / "a"), "neither .png, .jpg, .jpeg nor .webp"),
        (("fix", tmp_path / "clear.png", "--out", tmp_path / "a.jpg"), "JPEG has no transparency"),
        (("fix", tmp_path / "clear.png", "--out", tmp_path / "a.tif"), "neither .png, .jpg, .jpeg nor .webp"),
        (("novel-view", "--out", tmp_path / "a.gif"), "neither .png, .jpg, .jpeg nor .webp"),
        (("video", "--out", tmp_path / "a.png"), "neither .mp4, .webp nor .gif"),
    ]:
        result = run_command("sample", *words, "-w", workspace)
        assert (result.code, result.err.count("\n")) == (2, 2) and said in result.err, result.err


def test_a_picture_that_a_format_cannot_hold_is_not_lost(tmp_path: Path) -> None:
    tall = Image.new("RGB", (2, 16_384))
    content, file = encode_picture(tall, tmp_path / "a.webp")
    assert file == tmp_path / "a.png" and content.startswith(b"\x89PNG")
    assert encode_picture(tall, tmp_path / "a.jpg")[1] == tmp_path / "a.jpg"
