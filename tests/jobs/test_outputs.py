"""``handdata sample --out-dir``: every picture at the network's own size, with what it was made from."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handdata import __version__
from handdata.jobs.outputs import CheckpointOrigin, MadeFrom, NamedFrame
from handdata.jobs.sample import SampleRequest, Sampling
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.storage import Storage
from handdata.pipeline.weights import UPSCALER
from handdata.trainer.checkpoints import builtin_file, read_network
from handdata.trainer.poses import pose_frame
from handdata.trainer.trainer import Trainer
from handdata.trainer.weights import write_foundhand
from tests.fixtures.commands import CommandResult
from tests.fixtures.samples import sample, write_dataset
from tests.fixtures.training import SMALL
from tests.fixtures.upscaler import write_upscaler


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run on a video."""
    folder = tmp_path_factory.mktemp("workspace")
    write_dataset(
        Storage(folder), [sample("wave", frame, "a", split="val", timestamp_s=frame / 10) for frame in range(6)]
    )
    trainer = Trainer(SMALL, "cpu")
    trainer.licences.update(["CC-BY-4.0", "Apache-2.0"])
    trainer.save(Storage(folder).url("runs/default"))
    return folder


Run = Callable[..., CommandResult]


def drawn(run_command: Run, workspace: Path, out: Path, *words: object) -> dict[str, Image.Image]:
    """Return the pictures of a command's folder, by name."""
    options = ["--steps", 2, "-w", workspace, "--out", out / "figure.png", "--out-dir", out / "pictures"]
    result = run_command("sample", *words, *options)
    assert result.code == 0, result.err
    assert str(out / "pictures") in result.out.replace("\n", "")
    return {file.name: opened(file) for file in sorted((out / "pictures").iterdir())}


def opened(file: Path) -> Image.Image:
    """Return a picture that holds no file open."""
    with Image.open(file) as picture:
        picture.load()
        return picture


def test_a_picture_says_what_it_was_made_from(workspace: Path, tmp_path: Path, run_command: Run) -> None:
    names = "synthetic/val/wave/000000-a", "synthetic/val/wave/000003-a"
    words = "gesture-transfer", "--reference", names[0], "--target", names[1], "--seed", 7, "--guidance-scale", 2
    ((name, picture),) = drawn(run_command, workspace, tmp_path, *words).items()
    assert name == "0000_000000-a_000003-a.png"
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (SMALL.image_size,) * 2)
    text = dict(picture.info)
    file = next((workspace / "runs" / "default").rglob("ema.safetensors"))
    settings = json.loads(text.pop("settings"))
    assert (settings["steps"], settings["guidance_scale"]) == (2, 2)
    assert len(text.pop("inputs_sha256")) == 64
    assert text == {
        "handdata": __version__,
        "task": "gesture-transfer",
        "checkpoint": str(file),
        "checkpoint_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "licences": "Apache-2.0, CC-BY-4.0",
        "seed": "7",
        "number": "0",
        "reference": names[0],
        "target": names[1],
    }


def test_options_of_sampling_reach_the_pictures(workspace: Path, tmp_path: Path, run_command: Run) -> None:
    words = "gesture-transfer", "--n", 1, "--sampler", "unipc", "--guidance-scale", 2, "--pose-guidance", 3
    ((_, picture),) = drawn(run_command, workspace, tmp_path, *words, "--guided-channels", 2).items()
    assert json.loads(picture.info["settings"]) == {
        "scheduler": "unipc",
        "steps": 2,
        "guidance_scale": 2,
        "pose_guidance": 3,
        "appearance_guidance": None,
        "guided_channels": 2,
        "clip_x0": 1,
    }
    words = "unconditional", "--n", 1, "--sampler", "dpm++"
    ((_, picture),) = drawn(run_command, workspace, tmp_path / "b", *words).items()
    assert json.loads(picture.info["settings"])["scheduler"] == "dpm++"
    wrong = run_command("sample", "unconditional", "-w", workspace, "--pose-guidance", 3)
    assert wrong.code == 2 and "--pose-guidance" in wrong.err  # there is no pose


def test_pictures_do_not_depend_on_the_batch_size(workspace: Path, tmp_path: Path, run_command: Run) -> None:
    for words in (("gesture-transfer", "--n", 5), ("unconditional", "--n", 5)):
        found = [
            drawn(run_command, workspace, tmp_path / f"{words[0]}-{size}", *words, "--batch-size", size)
            for size in (1, 2, 16)
        ]
        assert [len(each) for each in found] == [5, 5, 5]
        for name, picture in found[0].items():
            for other in found[1:]:
                apart = np.asarray(picture, np.int16) - np.asarray(other[name], np.int16)
                assert np.abs(apart).max() <= 1  # sums of matrix products in another order
        different = {np.asarray(picture).tobytes() for picture in found[0].values()}
        assert len(different) == 5


def test_the_same_call_goes_on_with_the_pictures_that_are_there(
    workspace: Path, tmp_path: Path, run_command: Run
) -> None:
    names = list(drawn(run_command, workspace, tmp_path, "unconditional", "--n", 4))
    folder = tmp_path / "pictures"
    kept = (folder / names[0]).stat().st_mtime_ns
    whole = (folder / names[1]).read_bytes()
    (folder / names[1]).unlink()
    (folder / names[2]).write_bytes(b"half a file")
    words = "unconditional", "--n", 4, "--steps", 2, "-w", workspace, "--out", tmp_path / "a.png", "--out-dir", folder
    result = run_command("sample", *words)
    assert result.code == 0 and "2 of 4 pictures are in" in result.err
    assert (folder / names[0]).stat().st_mtime_ns == kept
    assert (folder / names[1]).read_bytes() == whole
    other = run_command("sample", *words, "--seed", 1)
    assert other.code == 0 and "4 pictures of an earlier call" in other.err and "take their place" in other.err
    assert (folder / names[0]).stat().st_mtime_ns != kept  # of another seed it is another picture


def test_pictures_are_enlarged_beside_where_the_weights_are_there(
    workspace: Path, tmp_path: Path, run_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handdata.trainer.upscaling.STEPS", 2)
    monkeypatch.setenv("HANDDATA_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    words = "unconditional", "--n", 2, "--upscale"
    missing = run_command("sample", *words, "-w", workspace, "--out-dir", tmp_path / "pictures")
    assert missing.code == 1 and "run `handdata weights fetch ldm_super_resolution`" in missing.err
    nowhere = run_command("sample", *words, "-w", workspace)
    assert nowhere.code == 2 and "--upscale enlarges the pictures of --out-dir" in nowhere.err
    write_upscaler(tmp_path / UPSCALER)
    plain = drawn(run_command, workspace, tmp_path, *words[:-1])
    more = run_command("sample", *words, "--steps", 2, "-w", workspace, "--out-dir", tmp_path / "pictures")
    assert "enlarging picture 2: 0001_x4.png" in more.err
    found = drawn(run_command, workspace, tmp_path, *words)  # of what is there, too
    assert list(found) == ["0000.png", "0000_x4.png", "0001.png", "0001_x4.png"]
    assert all(found[name].tobytes() == plain[name].tobytes() for name in plain)
    enlarged = found["0001_x4.png"]
    assert enlarged.size == (4 * SMALL.image_size,) * 2
    assert enlarged.info == found["0001.png"].info | {"upscaled": "4 times, by ldm_super_resolution"}
    written = (tmp_path / "pictures" / "0001_x4.png").stat().st_mtime_ns
    drawn(run_command, workspace, tmp_path, *words)
    assert (tmp_path / "pictures" / "0001_x4.png").stat().st_mtime_ns == written


@pytest.mark.parametrize(("source", "alone"), [("synthetic", True), ("hagrid", False)])
def test_a_run_on_rendered_hands_alone_is_known(tmp_path: Path, source: str, alone: bool) -> None:
    storage = Storage(tmp_path)
    write_dataset(storage, [sample("wave", 0, split="val", source=source)])
    checkpoint = Trainer(SMALL, "cpu").save(storage.url("runs/default"))
    assert Sampling(SampleRequest(checkpoint), storage, AnnotateSettings())._saw_rendered_hands_alone() is alone


def test_the_network_of_the_package_saw_rendered_hands_alone(tmp_path: Path) -> None:
    request = SampleRequest(str(builtin_file()), device="cpu")
    assert Sampling(request, Storage(tmp_path), AnnotateSettings())._saw_rendered_hands_alone()


def test_files_of_a_folder_are_taken_in_the_order_of_their_numbers(
    workspace: Path, tmp_path: Path, run_command: Run
) -> None:
    poses = tmp_path / "poses"
    poses.mkdir()
    for number in (10, 2, 1):
        np.save(poses / f"{number}.npy", np.random.default_rng(number).uniform(4, 28, (42, 2)))
    (poses / "._1.npy").write_bytes(b"of a Mac")
    words = ("gesture-transfer", "--reference", "synthetic/val/wave/000000-a", "--target", poses)
    names = list(drawn(run_command, workspace, tmp_path, *words))
    assert names == ["0000_000000-a_1.png", "0001_000000-a_2.png", "0002_000000-a_10.png"]


def test_a_picture_of_a_folder_and_its_keypoints_are_one_target(
    workspace: Path, tmp_path: Path, run_command: Run
) -> None:
    poses = tmp_path / "poses"
    poses.mkdir()
    for name in ("a", "b"):
        np.save(poses / f"{name}.npy", np.random.default_rng(0).uniform(4, 28, (42, 2)))
    Image.new("RGB", (32, 32)).save(poses / "a.png")  # shows no hand: its keypoints are taken
    words = ("gesture-transfer", "--reference", "synthetic/val/wave/000000-a", "--target", poses)
    assert list(drawn(run_command, workspace, tmp_path, *words)) == ["0000_000000-a_a.png", "0001_000000-a_b.png"]


def test_inputs_are_known_by_what_they_hold() -> None:
    def pose(x: float) -> NamedFrame:
        return NamedFrame("pose.npy", pose_frame(np.full((42, 2), x, np.float32), np.ones(42, bool), 32))

    assert MadeFrom.of([], pose(3)) == MadeFrom.of([], pose(3))
    assert MadeFrom.of([], pose(3)) != MadeFrom.of([], pose(4))


def test_a_repair_is_known_by_its_pixels_and_what_of_them_is_drawn() -> None:
    square = pose_frame(np.full((42, 2), 4, np.float32), np.ones(42, bool), 32)
    region = np.zeros((32, 32), bool)
    brighter = replace(square, image=square.image + np.uint8(1))
    made = [MadeFrom.of_repair("a.jpg", *each) for each in ((square, region), (brighter, region), (square, ~region))]
    assert len({each.inputs_sha256 for each in made}) == 3
    assert {each.target for each in made} == {"a.jpg"}


def test_licences_of_the_data_travel_with_weights(tmp_path: Path) -> None:
    first = Trainer(SMALL, "cpu")
    first.licences.add("CC-BY-4.0")
    checkpoint = first.save(str(tmp_path / "first"))
    resumed = Trainer(SMALL, "cpu")
    resumed.load(checkpoint)
    resumed.licences.add("MIT")
    _, head = read_network(Storage(resumed.save(str(tmp_path / "second"))), "ema.safetensors")
    assert json.loads(head["licences"]) == ["CC-BY-4.0", "MIT"]
    started = Trainer(SMALL, "cpu")
    started.start_from(checkpoint)
    assert started.licences == {"CC-BY-4.0"}
    silent = Trainer(SMALL, "cpu").save(str(tmp_path / "silent"))
    assert CheckpointOrigin.of(silent).licences == "unknown"
    assert CheckpointOrigin.of("builtin").licences == "Apache-2.0"
    assert CheckpointOrigin.of("builtin").checkpoint == str(builtin_file())
    for name in ("a.pt", "a.safetensors"):
        write_foundhand(first.averaged_model, tmp_path / name)
        assert CheckpointOrigin.of(str(tmp_path / name)).licences == "CC-BY-NC-4.0"  # the published format
        write_foundhand(first.averaged_model, tmp_path / name, first.preset.model_dump_json(), ["CC-BY-4.0", "MIT"])
        assert CheckpointOrigin.of(str(tmp_path / name)).licences == "CC-BY-4.0, MIT"
