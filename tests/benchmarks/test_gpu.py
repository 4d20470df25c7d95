"""The commands for a lent GPU work on a CPU, without the packages that the machine lacks, and lose no minute to a part.

What needs a GPU (compiled blocks, micro batches found by trying, memory) is not tried here.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from handdata.schemas import FLIP_PERMUTATION
from handdata.trainer.checkpoints import load_for_sampling
from handdata.trainer.model import DiT
from handdata.trainer.presets import AugmentationConfig
from handdata.trainer.tasks import load_sampler

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LACKING = {
    "polars",
    "av",
    "simplejpeg",
    "diffusers",
    "ray",
    "mediapipe",
    "typer",
    "rich",
    "psutil",
    "pydantic_settings",
}
"""Packages without which the commands must do; simplejpeg and polars may travel as wheels."""


class Scripts(NamedTuple):
    check: ModuleType
    learn: ModuleType
    render: ModuleType


@pytest.fixture(scope="module")
def gpu() -> Iterator[Scripts]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))  # as for a script; processes that are started find them, too
        import gpu_check
        import gpu_learn
        import gpu_render

        yield Scripts(gpu_check, gpu_learn, gpu_render)


@pytest.fixture
def bare_machine(tmp_path: Path) -> dict[str, str]:
    """Return the environment of processes that find none of the lacking packages."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Lacking:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {LACKING!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Lacking())\n"
    )
    paths = os.pathsep.join([str(folder), str(BENCHMARKS.parent), str(BENCHMARKS)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *arguments: object, expected: int = 0) -> str:
    command = [sys.executable, BENCHMARKS / "gpu.py", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout


def test_all_is_imported_without_what_the_machine_lacks(bare_machine: dict[str, str]) -> None:
    code = "import sys, gpu, gpu_render; assert 'torch' not in sys.modules; import gpu_check, gpu_learn, sam, polars"
    done = subprocess.run([sys.executable, "-c", code], env=bare_machine, capture_output=True, text=True)
    assert done.stderr.strip().endswith("ModuleNotFoundError: No module named 'polars'"), done.stderr


@pytest.mark.parametrize("part", ["device", "foundhand-s", "sampling", "sam"])
def test_a_part_of_the_check_measures(gpu: Scripts, part: str) -> None:
    found = gpu.check.PARTS[part](gpu.check.CheckOptions(smallest=True, peak_tflops=1.0))(0.1)
    rates = [value for name, value in found.items() if "/s" in name]
    assert rates
    assert min(rates) > 0


def test_operations_are_counted_as_by_hand(gpu: Scripts) -> None:
    sizes = gpu.check.PRESETS["foundhand-s"].model
    width, tokens = sizes.hidden_size, 2 * (sizes.input_size // sizes.patch_size) ** 2
    of_blocks = 6 * sizes.depth * (12 * width**2 * tokens + 2 * tokens**2 * width)
    # Embeddings and the last layer add a little; the last block makes half of its tokens only.
    assert gpu.check.step_flops(sizes) == pytest.approx(of_blocks, rel=0.05)


def test_parts_that_are_not_ready_in_time_end_as_lines(gpu: Scripts, tmp_path: Path) -> None:
    began = time.monotonic()
    code = gpu.check.check(gpu.check.CheckOptions(smallest=True), tmp_path, began, 0.2, ["device", "sam"])
    assert code == 1
    found = json.loads((tmp_path / "check.json").read_text())
    assert found == {name: {"failed": "not done in its time"} for name in ("device", "sam")}
    assert (tmp_path / "check.md").read_text().count("not done in its time") == 2


def video(gpu: Scripts, number: int, frames: int, size: int) -> object:
    """Make a video of one joint, marked in image and mask, whose column is the video's and whose row is the frame's."""
    images, masks = np.zeros((frames, 3, size, size), np.uint8), np.zeros((frames, 1, size, size), np.uint8)
    keypoints, valid = np.zeros((frames, 42, 2), np.float32), np.zeros((frames, 42), np.bool_)
    for frame in range(frames):
        column, row = 2 + number, 5 + frame
        images[frame, :, row, column] = masks[frame, 0, row, column] = 255
        keypoints[frame, 3], valid[frame, 3] = (column, row), True
    return gpu.render.Video(f"{number}", False, images, masks, keypoints, valid)


def test_a_batch_holds_two_moments_of_one_video_whose_labels_are_true(gpu: Scripts) -> None:
    size, frames = 16, 4
    buffer = gpu.learn.VideoBuffer(3, frames, size, torch.device("cpu"))
    for number in range(4):  # the last replaces the first
        buffer.add(video(gpu, number, frames, size))
    pairs = buffer.pairs(200, AugmentationConfig(max_gamma=1.5), torch.Generator().manual_seed(0))

    mirrored, kept = int(np.flatnonzero(FLIP_PERMUTATION == 3)[0]), 3
    columns = set()
    for number in range(200):
        (joint,) = pairs.target_valid[number].nonzero()[:, 0].tolist()
        assert pairs.reference_valid[number].nonzero()[:, 0].tolist() == [joint]
        (x, y), (x_there, y_there) = (
            keypoints[number, joint].int().tolist() for keypoints in (pairs.target_keypoints, pairs.reference_keypoints)
        )
        assert x == x_there  # one video, both flipped or neither
        assert y != y_there
        assert joint == (kept if x < size // 2 else mirrored)
        assert pairs.target_image[number, :, y, x].tolist() == [255, 255, 255]
        assert pairs.reference_image[number, :, y_there, x_there].tolist() == [255, 255, 255]
        assert pairs.reference_mask[number, 0].nonzero().tolist() == [[y_there, x_there]]
        columns.add(x)
    assert columns == {3, 4, 5, 10, 11, 12}


def test_weights_come_back_from_their_files_as_a_checkpoint(
    gpu: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = gpu.learn.learning_preset(smallest=True)
    network = DiT(**preset.model.model_dump())
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    monkeypatch.setattr(gpu.learn, "PART_BYTES", 150_000)
    files = gpu.learn.write_parts(tmp_path, network, preset, 7)
    assert [file.name for file in files] == [
        f"weights-{n}-of-{len(files)}.safetensors" for n in range(1, 1 + len(files))
    ]
    assert len(files) > 2

    gpu.learn.write_joined(files[::-1], tmp_path / "joined.safetensors")
    loaded, settings = load_for_sampling(str(tmp_path / "joined.safetensors"))
    assert settings == preset.model_dump(mode="json")
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor.half().float())

    (tmp_path / "other").mkdir()
    others = gpu.learn.write_parts(tmp_path / "other", network, preset, 8)
    for wrong in (files[:-1], [*files[:-1], others[-1]], [*files, files[0]]):
        with pytest.raises(SystemExit, match=r"are not the \d files of one run"):
            gpu.learn.read_parts(wrong)


@pytest.mark.soak
def test_a_run_learns_and_goes_on_from_what_it_has_left(bare_machine: dict[str, str], tmp_path: Path) -> None:
    smallest = ["--smallest", "--seconds", 90]
    run(bare_machine, "learn", "--out", tmp_path / "first", *smallest)
    weights = sorted((tmp_path / "first").glob("weights-*"))
    run(bare_machine, "learn", "--out", tmp_path / "second", *smallest, "--seed", 1, "--resume", *weights)
    files = list((tmp_path / "second").iterdir())
    assert {file.name for file in files} == {"curve.jsonl", "learned.json", "learned.png", "weights-1-of-1.safetensors"}
    first, second = (json.loads((tmp_path / name / "learned.json").read_text()) for name in ("first", "second"))
    assert second["resumed"] == [str(path) for path in weights]
    for learned in (first, second):
        assert learned["steps"] > 0
        for way in ("1 step", "2 steps", "4 steps", "carried reference"):
            assert learned["scores"][way]["psnr"][0] > learned["scores"]["copied reference"]["psnr"][0]

    run(bare_machine, "join", tmp_path / "second" / "weights-1-of-1.safetensors", "--out", tmp_path / "j.safetensors")
    assert load_sampler(str(tmp_path / "j.safetensors")).preset.model.geometry.carries


@pytest.mark.soak
def test_a_check_goes_on_after_a_part_that_crashes(bare_machine: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "peer" / "models").mkdir(parents=True)
    (tmp_path / "peer" / "models" / "vit.py").write_text("import os\nos._exit(7)\n")
    parts = ["published foundhand-s", "loader", "device", "foundhand-s"]
    options = ["--smallest", "--seconds", 240, "--peer", tmp_path / "peer", "--only", *parts]
    run(bare_machine, "check", "--out", tmp_path / "out", *options, expected=1)
    found = json.loads((tmp_path / "out" / "check.json").read_text())
    assert set(found) == set(parts)
    assert found["published foundhand-s"] == {"failed": "its process ended with 7"}
    assert found["loader"] == {"skipped": "simplejpeg is not installed"}
    assert found["device"]["device"] == "CPU"
    assert found["foundhand-s"]["pairs/s"] > 0
