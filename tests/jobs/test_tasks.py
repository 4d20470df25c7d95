"""``handdata sample``: several references and targets, folders, views and poses alone, by a published-format file."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from handdata.pipeline.storage import Storage
from handdata.trainer.data.augment import Frame
from handdata.trainer.presets import SamplingOptions
from handdata.trainer.tasks import gesture_transfer, load_sampler
from handdata.trainer.weights import write_foundhand
from tests.fixtures.commands import CommandResult
from tests.fixtures.published import network_of, small_published, write_vae
from tests.fixtures.samples import sample, write_dataset

Run = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network in the published format, and held-out samples: those of one camera have 3D joints."""
    folder = tmp_path_factory.mktemp("workspace")
    preset = small_published(write_vae(folder / "vae"))
    settings = preset.model_dump_json()
    write_foundhand(network_of(preset), folder / "published.safetensors", settings, ["CC-BY-NC-4.0"])
    joints = np.zeros((42, 3), np.float32)
    joints[:21] = np.random.default_rng(0).uniform(-0.07, 0.07, (21, 3))
    joints[:21, 2] += 0.5
    camera = np.array([[90, 0, 23.5], [0, 90, 23.5], [0, 0, 1]], np.float32)
    in_3d = {"keypoints_3d": joints, "camera_k": camera}
    rows = [
        sample("wave", frame, camera, split="val", timestamp_s=frame / 10, **(in_3d if camera == "a" else {}))
        for frame in range(4)
        for camera in "ab"
    ]
    write_dataset(Storage(folder), rows)
    return folder


def named(frame: int, camera: str = "a") -> str:
    return f"synthetic/val/wave/{frame:06d}-{camera}"


def pictures(run_command: Run, workspace: Path, out: Path, *words: object) -> tuple[list[Image.Image], str]:
    """Return the pictures of a command's folder, and what it said."""
    options = ["--checkpoint", workspace / "published.safetensors", "-w", workspace, "--out", out / "figure.png"]
    result = run_command("sample", *words, *options, "--out-dir", out / "pictures")
    assert result.code == 0, result.err
    found = []
    for file in sorted((out / "pictures").iterdir()):
        with Image.open(file) as picture:
            picture.load()
            found.append(picture)
    assert all(picture.size == (64, 64) for picture in found)
    assert len({np.asarray(picture).tobytes() for picture in found}) == len(found)
    return found, result.err


def texts(found: list[Image.Image], key: str) -> list[str]:
    return [str(picture.info.get(key, "")) for picture in found]


def test_a_single_reference_goes_with_all_targets(workspace: Path, tmp_path: Path, run_command: Run) -> None:
    words = ("gesture-transfer", "--reference", named(0), *("--target", named(1), "--target", named(2)))
    found, _ = pictures(run_command, workspace, tmp_path, *words)
    assert texts(found, "reference") == [named(0)] * 2
    assert texts(found, "target") == [named(1), named(2)]
    assert set(texts(found, "licences")) == {"CC-BY-NC-4.0"}
    figure = cv2.imread(str(tmp_path / "figure.png"))
    assert figure is not None and figure.shape[0] > 2 * 160


def test_several_of_each_are_pairs_in_their_order_or_one_line(
    workspace: Path, tmp_path: Path, run_command: Run
) -> None:
    both = ("--reference", named(0), "--reference", named(1), "--target", named(2), "--target", named(3))
    found, _ = pictures(run_command, workspace, tmp_path, "gesture-transfer", *both)
    assert [*zip(texts(found, "reference"), texts(found, "target"), strict=True)] == [
        (named(0), named(2)),
        (named(1), named(3)),
    ]
    result = run_command("sample", "gesture-transfer", *both, "--target", named(0), "-w", workspace, "--checkpoint",
                         workspace / "published.safetensors", "--out", tmp_path / "a.png")  # fmt: skip
    assert (result.code, result.err.count("error:")) == (2, 1)
    assert "2 references and 3 targets make no pairs" in result.err


def test_a_folder_stands_for_its_files_and_what_cannot_be_used_is_passed_over(
    workspace: Path, tmp_path: Path, run_command: Run
) -> None:
    folder = tmp_path / "poses"
    folder.mkdir()
    for number in range(3):
        keypoints = np.zeros((42, 2))
        keypoints[:21] = np.random.default_rng(number).uniform(15, 50, (21, 2))
        np.save(folder / f"{number}.npy", keypoints if number != 1 else keypoints / 64)
    (folder / "notes.txt").write_text("no pose")
    found, said = pictures(
        run_command, workspace, tmp_path, "gesture-transfer", "--reference", named(0), "--target", folder
    )
    assert texts(found, "target") == [str(folder / "0.npy"), str(folder / "2.npy")]
    assert "passed over" in said and "1.npy has numbers of at most 0." in said.replace("\n", "")
    (tmp_path / "none").mkdir()
    words = ("--reference", named(0), "--target", tmp_path / "none", "-w", workspace, "--out", tmp_path / "a.png")
    result = run_command("sample", "gesture-transfer", *words, "--checkpoint", workspace / "published.safetensors")
    assert result.code == 2 and "no photograph and no keypoint file is in" in result.err


def test_all_references_of_a_moment_serve_each_view(workspace: Path, tmp_path: Path, run_command: Run) -> None:
    camera = {"camera_k": [[90, 0, 31.5], [0, 90, 31.5], [0, 0, 1]], "size": [64, 64]}
    joints = np.random.default_rng(0).uniform(-0.07, 0.07, (42, 3)) + np.array([0, 0, 0.5])
    moved = np.eye(4)
    moved[0, 3] = 0.02
    views = {"keypoints_3d": joints.tolist(), "camera_t_world": [np.eye(4).tolist(), moved.tolist()], **camera}
    (tmp_path / "views.json").write_text(json.dumps(views))
    words = ("novel-view", "--reference", named(0), "--reference", named(0, "b"), "--target", tmp_path / "views.json")
    found, said = pictures(run_command, workspace, tmp_path, *words)
    assert texts(found, "reference") == [f"{named(0)}, {named(0, 'b')}"] * 2
    assert texts(found, "target") == [f"{tmp_path / 'views.json'}, pose {number}" for number in range(2)]
    assert "has a left hand, which" in said


def test_a_turntable_goes_around_what_has_joints_in_3d(workspace: Path, tmp_path: Path, run_command: Run) -> None:
    found, _ = pictures(run_command, workspace, tmp_path, "novel-view", "--reference", named(0), "--turntable", 3)
    assert texts(found, "target") == [f"{named(0)}, turned by {angle} degrees" for angle in (0, 120, 240)]
    photo = tmp_path / "me.png"
    cv2.imwrite(str(photo), np.zeros((64, 64, 3), np.uint8))
    options = ("-w", workspace, "--checkpoint", workspace / "published.safetensors", "--out", tmp_path / "a.png")
    for reference, said in ((named(0, "b"), "has no 3D joints to turn: its source, synthetic"), (photo, "in 2D alone")):
        result = run_command("sample", "novel-view", "--reference", reference, "--turntable", 3, *options)
        assert result.code == 2 and said in result.err.replace("\n", " "), result.err


def test_poses_alone_are_drawn_without_a_reference(workspace: Path, tmp_path: Path, run_command: Run) -> None:
    found, _ = pictures(run_command, workspace, tmp_path, "keypoints-only", "--target", named(0), "--target", named(1))
    assert texts(found, "reference") == ["", ""] and texts(found, "task") == ["keypoints-only"] * 2
    result = run_command("sample", "keypoints-only", "--target", named(0), "--checkpoint", "builtin", "-w", workspace,
                         "--out", tmp_path / "a.png")  # fmt: skip
    assert result.code == 2 and "needs a reference" in result.err


def test_references_take_turns_alike_in_every_batch(workspace: Path) -> None:
    sampler = load_sampler(str(workspace / "published.safetensors"), device="cpu")
    rng = np.random.default_rng(0)

    def frame() -> Frame:
        image = np.asarray(rng.integers(0, 255, (64, 64, 3)), np.uint8)
        plane = np.full((64, 64), 255, np.uint8)
        return Frame(image, plane, plane, np.asarray(rng.uniform(5, 60, (42, 2)), np.float32), np.ones(42, bool))

    given = [[frame(), frame(), frame()], [frame()], [frame(), frame()]]
    targets = [frame() for _ in given]
    options = SamplingOptions(steps=4, seed=3)
    together = gesture_transfer(sampler, given, targets, options)
    alone = gesture_transfer(sampler, given, targets, options, batch_size=1)
    second = gesture_transfer(sampler, given[1:2], targets[1:2], options, numbers=[1])
    assert np.abs(together.astype(int) - alone).max() <= 1
    assert np.abs(together[1].astype(int) - second[0]).max() <= 1
    first_only = gesture_transfer(sampler, [each[:1] for each in given], targets, options)
    assert (together[0] != first_only[0]).any() and np.abs(together[1].astype(int) - first_only[1]).max() <= 1
