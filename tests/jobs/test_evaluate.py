"""What `evaluate` promises with a pair list: one table for any method, twice the same, on the list's crops alone."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from handdata.jobs import evaluate as jobs_evaluate
from handdata.jobs import listed_images
from handdata.jobs.measures import LearnedMeasures
from handdata.pipeline.storage import Storage
from handdata.trainer.data.pair_lists import read_pair_list
from handdata.trainer.trainer import Trainer
from tests.fixtures.commands import CommandResult
from tests.fixtures.samples import sample, write_dataset
from tests.fixtures.training import SMALL

Run = Callable[..., CommandResult]
PAIRS = 4
SIZE = 48
"""Side of the stored images, pixels."""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A workspace of a dataset with two cameras, and a run without a step."""
    samples = [
        sample(f"{split}{video}", at, camera, split=split, timestamp_s=at / 10)
        for split in ("train", "test") for video in range(3) for at in range(4) for camera in "ab"
    ]  # fmt: skip
    storage = Storage(tmp_path_factory.mktemp("evaluate") / "workspace")
    write_dataset(storage, samples)
    Trainer(SMALL, "cpu").save(storage.url("runs/run"))
    return storage


@pytest.fixture
def pair_list(storage: Storage, tmp_path: Path, run_command: Run) -> Path:
    return made(storage, tmp_path / "pairs.json", run_command)


def made(storage: Storage, file: Path, run_command: Run, *options: object) -> Path:
    result = run_command(
        "evaluate",
        "--make-pair-list",
        file,
        "--workspace",
        storage.url(),
        "--split",
        "test",
        "--pairs",
        PAIRS,
        *options,
    )
    assert result.code == 0, result.err
    return file


def scored(run_command: Run, storage: Storage, pair_list: Path, *options: object) -> dict[str, Any]:
    result = run_command("evaluate", "--pair-list", pair_list, "--workspace", storage.url(), *options, "--json")
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out, parse_constant=no_number)
    return found


def no_number(name: str) -> None:
    raise AssertionError(f"strict parsers refuse {name}")


def test_a_list_is_made_twice_with_equal_bytes(storage: Storage, tmp_path: Path, run_command: Run) -> None:
    first = made(storage, tmp_path / "a.json", run_command)
    assert made(storage, tmp_path / "b.json", run_command).read_bytes() == first.read_bytes()
    listed = json.loads(first.read_text())
    assert len(listed["pairs"]) == PAIRS
    assert (listed["split"], listed["seed"], listed["size"]) == ("test", 0, SIZE)
    other = made(storage, tmp_path / "c.json", run_command, "--image-size", 32, "--seed", 3, "--task", "view")
    assert (json.loads(other.read_text())["size"], json.loads(other.read_text())["task"]) == (32, "view")


def test_a_run_is_scored_on_a_list_twice_with_one_table_and_draws_no_image_again(
    storage: Storage, pair_list: Path, tmp_path: Path, run_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--run", "run", "--steps", 2, "--out")
    first = scored(run_command, storage, pair_list, *options, tmp_path / "a")
    assert scored(run_command, storage, pair_list, *options, tmp_path / "b") == first
    ids = [pair["id"] for pair in json.loads(pair_list.read_text())["pairs"]]
    assert [pair["id"] for pair in first["pair_marks"]] == ids
    assert {path.stem for path in (tmp_path / "a" / "generated").glob("*.png")} == set(ids)
    assert re.fullmatch("[0-9a-f]{64}", first["methods"]["generated"]["sha256"])
    assert first["methods"]["generated"]["sampling"]["steps"] == 2
    drawn = sorted((tmp_path / "a" / "generated").glob("*.png"))
    kept = [path.read_bytes() for path in drawn]
    drawn[2].unlink()
    asked: list[object] = []
    transfer = listed_images.gesture_transfer

    def counted(*arguments: Any, **options: Any) -> Any:
        asked.append(options["numbers"])
        return transfer(*arguments, **options)

    monkeypatch.setattr(listed_images, "gesture_transfer", counted)
    assert scored(run_command, storage, pair_list, *options, tmp_path / "a") == first
    assert asked == [[2]]
    assert [path.read_bytes() for path in drawn] == kept
    other = scored(run_command, storage, pair_list, "--run", "run", "--steps", 3, "--out", tmp_path / "a")
    assert other["scores"]["generated"] != first["scores"]["generated"]


def colours(images: Tensor) -> Tensor:
    """Features of images (N, 3, S, S): their mean colours."""
    return images.float().mean(dim=(2, 3))


def learned(weights: Path | None, device: object) -> LearnedMeasures:
    """Measures of learned features, by features that need no weights."""
    return LearnedMeasures(lambda drawn, true: (colours(drawn) - colours(true)).norm(dim=1), colours, colours)


def test_what_another_program_made_is_scored_and_the_targets_themselves_are_perfect(
    storage: Storage, pair_list: Path, tmp_path: Path, run_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_evaluate, "load_learned", learned)
    exported = tmp_path / "exported"
    result = run_command("evaluate", "--pair-list", pair_list, "--workspace", storage.url(), "--export-pairs", exported)
    assert result.code == 0, result.err
    perfect = scored(run_command, storage, pair_list, "--images", exported / "target")
    assert perfect["scores"]["generated"]["psnr"]["mean"] == "Infinity"  # strict JSON has no such number
    assert perfect["scores"]["generated"]["ssim"]["mean"] == pytest.approx(1, abs=1e-9)
    assert perfect["scores"]["generated"]["fid"]["mean"] == pytest.approx(0, abs=1e-3)
    assert perfect["scores"]["generated"]["fid"]["low"] is None
    assert perfect["scores"]["mean picture"]["fid"]["mean"] > 1
    assert perfect["scores"]["generated"]["lpips"]["mean"] == 0
    assert perfect["scores"]["generated"]["dinov2"]["mean"] == pytest.approx(1)
    assert perfect["missing"] == []
    assert perfect["methods"]["generated"]["sha256"] is None
    copies = scored(
        run_command, storage, pair_list, "--images", exported / "reference", "--beside", exported / "target"
    )
    assert copies["scores"]["generated"] == copies["scores"]["copied reference"]
    assert copies["scores"]["beside: target"] == perfect["scores"]["generated"]


def test_the_pairs_of_a_list_are_written_out_for_other_programs(
    storage: Storage, pair_list: Path, tmp_path: Path, run_command: Run
) -> None:
    result = run_command("evaluate", "--pair-list", pair_list, "--workspace", storage.url(), "--export-pairs", tmp_path)
    assert result.code == 0, result.err
    assert (tmp_path / "pair-list.json").read_bytes() == pair_list.read_bytes()
    for pair in json.loads(pair_list.read_text())["pairs"]:
        for kind in ("reference", "reference_mask", "pose", "target", "target_mask"):
            with Image.open(tmp_path / kind / f"{pair['id']}.png") as image:
                assert image.size == (SIZE, SIZE)
                assert "mask" not in kind or set(np.unique(np.asarray(image))) <= {0, 255}
        with np.load(tmp_path / "keypoints" / f"{pair['id']}.npz") as stored:
            assert stored["target"].shape == stored["reference"].shape == (42, 2)
            assert stored["target_valid"].any()
            assert stored["reference_valid"].dtype == bool


def test_images_that_do_not_fit_the_list_are_named_in_one_line(
    storage: Storage, pair_list: Path, tmp_path: Path, run_command: Run
) -> None:
    ids = [pair["id"] for pair in json.loads(pair_list.read_text())["pairs"]]
    here = ("evaluate", "--pair-list", pair_list, "--workspace", storage.url(), "--images", tmp_path / "made")

    def refused(*words: str) -> None:
        result = run_command(*here)
        assert (result.code, result.err.count("\n")) == (2, 3), result.err  # progress, the error and a hint
        assert all(word in result.err for word in words), result.err

    refused("no folder", "made")
    (tmp_path / "made").mkdir()
    for name in ids:
        Image.new("RGB", (SIZE, SIZE), (90, 60, 30)).save(tmp_path / "made" / f"{name}.png")
    (tmp_path / "made" / f"{ids[1]}.png").unlink()
    refused("lacks 1 of 4", f"{ids[1]}.png")
    Image.new("RGB", (SIZE, 40)).save(tmp_path / "made" / f"{ids[1]}.png")
    refused("not square", f"{ids[1]}.png ({SIZE} x 40)")
    (tmp_path / "made" / f"{ids[1]}.png").write_bytes(b"no image")
    refused(f"{ids[1]}.png cannot be read as an image", "hint")
    whole = (tmp_path / "made" / f"{ids[0]}.png").read_bytes()
    (tmp_path / "made" / f"{ids[1]}.png").write_bytes(whole[:-40])
    refused(f"{ids[1]}.png cannot be read as an image", "hint")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "made" / f"{ids[1]}.png")
    refused(f"{ids[1]}.png cannot be read as an image", "hint")
    for mode in ("I;16", "I", "F"):  # read as 8 bits they would be white, or black
        Image.new(mode, (SIZE, SIZE)).save(tmp_path / "made" / f"{ids[1]}.png", "TIFF")
        refused("grey images of more than 8 bits", f"{ids[1]}.png")
    Image.new("RGBA", (SIZE, SIZE), (90, 60, 30, 128)).save(tmp_path / "made" / f"{ids[1]}.png")
    refused("images that are transparent", f"{ids[1]}.png")
    Image.new("L", (128, 128)).save(tmp_path / "made" / f"{ids[1]}.png")
    result = run_command(*here)
    assert result.code == 0, result.err
    assert f"1 images of {tmp_path / 'made'} are resized to the list's {SIZE} px: {ids[1]}.png (128 px)" in result.err


def test_a_table_says_what_its_figures_depend_on_and_what_was_measured_elsewhere(
    storage: Storage, pair_list: Path, tmp_path: Path, run_command: Run
) -> None:
    result = run_command(
        *("evaluate", "--pair-list", pair_list, "--workspace", storage.url(), "--run", "run", "--steps", 1),
        *("--beside", "builtin", "--out", tmp_path / "found"),
    )
    assert result.code == 0, result.err
    document = (tmp_path / "found" / "evaluation.md").read_text()
    page = (tmp_path / "found" / "evaluation.html").read_text()
    listed = json.loads(pair_list.read_text())
    for text in (result.out, document, page):
        facts = listed["sha256"][:12], listed["rule"], f"{SIZE} x {SIZE} pixels", "hand box", "MediaPipe", "runs/run"
        for fact in (*facts, "builtin", "PSNR 30.96", "arXiv 2412.02690", "not measured: lpips"):
            assert fact in text, fact
    assert [name for name in ("Best", "Median", "Worst") if f"{name} cases" in page] == ["Best", "Median", "Worst"]
    assert page.count("data:image/png;base64,") == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert (tmp_path / "found" / "beside:-builtin").is_dir()


def test_what_stands_beside_is_looked_for_before_anything_is_drawn(
    storage: Storage, pair_list: Path, tmp_path: Path, run_command: Run
) -> None:
    result = run_command(
        *("evaluate", "--pair-list", pair_list, "--workspace", storage.url(), "--run", "run", "--out", tmp_path / "a"),
        *("--beside", tmp_path / "nothing"),
    )
    assert result.code == 1
    assert "nothing" in result.err
    assert not (tmp_path / "a" / "generated").exists()


def test_a_clip_is_drawn_frame_after_frame(storage: Storage, tmp_path: Path, run_command: Run) -> None:
    clips = made(storage, tmp_path / "clips.json", run_command, "--task", "video")
    options = ("--run", "run", "--steps", 2, "--out", tmp_path / "found")
    found = scored(run_command, storage, clips, *options)
    assert found["pairs"] == PAIRS
    assert found["pair_list"]["task"] == "video"
    assert found["scores"]["generated"]["flicker"]["mean"] > 0
    assert found["scores"]["mean picture"]["flicker"]["mean"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--images", "x"), "--images needs the pairs"),
        (("--export-pairs", "x"), "--export-pairs needs the pairs"),
        (("--pair-list", "x", "--split", "val"), "--split has no effect with --pair-list"),
        (("--pair-list", "x", "--images", "y", "--checkpoint", "z"), "--checkpoint has no effect with --images"),
        (("--make-pair-list", "x", "--out", "y"), "--out has no effect with --make-pair-list"),
        (("--make-pair-list", "x", "--pair-list", "y"), "--pair-list has no effect with --make-pair-list"),
    ],
)
def test_options_without_effect_are_refused(run_command: Run, options: tuple[str, ...], said: str) -> None:
    result = run_command("evaluate", *options)
    assert (result.code, result.err.count("\n")) == (2, 2), result.err
    assert said in result.err


def test_a_list_of_one_pair_is_scored_without_the_distance_of_sets(
    storage: Storage, tmp_path: Path, run_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_evaluate, "load_learned", learned)
    whole = read_pair_list(made(storage, tmp_path / "pairs.json", run_command))
    alone = whole.model_copy(update={"pairs": whole.pairs[:1]})
    alone = alone.model_copy(update={"sha256": alone.hash()})
    (tmp_path / "alone.json").write_bytes(alone.encode())
    made_images = tmp_path / "made"
    made_images.mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(made_images / f"{alone.pairs[0].id}.png", "JPEG")
    result = run_command(
        "evaluate", "--pair-list", tmp_path / "alone.json", "--workspace", storage.url(), "--images", made_images
    )
    assert result.code == 0, result.err
    assert "the list has one pair" in result.out
    assert "1 images of" in result.err and "are JPEG" in result.err
