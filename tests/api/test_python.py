"""``import handdata``: the examples of its docstrings and of docs/python.md run, and wrong input is an error."""

import doctest
import importlib
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import handdata
from handdata.pipeline.storage import Storage
from handdata.schemas import UsageError
from handdata.trainer.trainer import Trainer
from tests.fixtures.training import SMALL

PAGE = Path(__file__).parents[2] / "docs/python.md"
SHARDS_PAGE = PAGE.with_name("shards.md")


@pytest.fixture(scope="module")
def prepared(
    annotated_synthetic: Path, synthetic_root: Path, shared_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with what the examples name: a dataset, a workspace with a run, a photograph and a pose."""
    folder = tmp_path_factory.mktemp("python")
    (folder / "sources").mkdir()
    (folder / "sources" / "synthetic").symlink_to(synthetic_root)
    shutil.copytree(annotated_synthetic, folder / "workspace")
    Trainer(SMALL, "cpu").save(Storage(folder / "workspace").url("runs/default"))
    photo = Image.open(next((shared_dir / "data" / "phone_video").rglob("*.jpg"))).convert("RGB")
    photo.thumbnail((320, 320))
    photo.save(folder / "photo.jpg")
    np.save(folder / "pose.npy", np.random.default_rng(0).uniform(4, 28, (42, 2)))
    return folder


@pytest.fixture
def there(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(prepared)
    monkeypatch.setenv("HANDDATA_ANNOTATE__IMAGE_SIZE", "64")
    return prepared


@pytest.mark.parametrize("module", [name for name in handdata._MODULES if name.startswith("handdata.api.")])
def test_the_examples_of_docstrings_run(there: Path, module: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    found = doctest.DocTestFinder().find(importlib.import_module(module))
    for test in found:
        if test.examples:
            test.globs["handdata"] = handdata
            runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)
    documented = {name for test in found if test.examples for name in test.name.split(".")}
    assert {name for name in handdata._MODULES[module] if name != "Hand"} <= documented


def test_the_examples_of_the_page_run(there: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert {path.name for path in there.iterdir()} >= {"sample.png", "transferred.png", "video.webp", "fixed.png"}


def test_the_examples_of_the_page_about_shards_run(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", there / "huggingface")
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", SHARDS_PAGE.read_text(), re.MULTILINE | re.DOTALL):
        assert block.count("\n") <= 22
        exec(compile(block, str(SHARDS_PAGE), "exec"), names)
    rows = {split: part.num_rows for split, part in names["hands"].items()}  # type: ignore[attr-defined]
    assert rows == {"train": 32, "validation": 8, "test": 8}
    drawn, name = Image.open("hand.png"), names["row"]["sample_id"]  # type: ignore[index]
    sample = handdata.open_dataset("workspace").find(name)
    plain = Image.fromarray(sample.image).resize(drawn.size)
    changed = np.abs(np.asarray(drawn, int) - np.asarray(plain, int)).max(axis=2) > 60
    at = np.round((sample.keypoints[sample.valid] + 0.5) * drawn.width / sample.image.shape[1]).astype(int)
    assert changed.mean() < 0.2 and changed[np.clip(at[:, 1], 0, 511), np.clip(at[:, 0], 0, 511)].mean() > 0.7


SCRIPT = """
import sys
import handdata
assert not {"ray", "torch", "mediapipe", "numpy", "polars"} & {*sys.modules}
print("once")
print(handdata.ingest("synthetic", root=sys.argv[1], workspace="workspace").records)
assert not {"ray", "torch", "mediapipe"} & {*sys.modules}
"""


def test_a_script_without_a_main_guard_ingests_and_loads_only_what_it_needs(
    synthetic_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, "script.py", str(synthetic_root)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "once\n48\n"), done.stderr
    assert "Ingesting synthetic" in done.stderr


def test_every_name_is_there_and_no_other() -> None:
    assert {*handdata.__all__} == {"__version__"}.union(*handdata._MODULES.values())
    assert {*handdata.__all__} <= {*dir(handdata)}
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = handdata.nonsense  # type: ignore[attr-defined]


def test_a_photograph_is_the_same_as_path_image_and_array(there: Path) -> None:
    photo = Image.open("photo.jpg")
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    url = (there / "photo.jpg").as_uri()
    every = [handdata.annotate_image(image) for image in ("photo.jpg", url, photo, np.array(photo), turned)]
    for hands in every:
        assert [hand.side for hand in hands] == [hand.side for hand in every[0]]
        for hand, first in zip(hands, every[0], strict=True):
            np.testing.assert_array_equal(hand.keypoints, first.keypoints)
            np.testing.assert_array_equal(hand.mask, first.mask)
            assert hand.mask.shape == (photo.height, photo.width)
    x, y = np.round(every[0][0].keypoints[every[0][0].valid]).astype(int).T
    assert every[0][0].mask[y, x].mean() > 0.7
    assert handdata.annotate_image(np.full((90, 120, 3), 90, np.uint8)) == []


def test_a_sample_is_what_its_row_says_and_is_its_own(there: Path) -> None:
    dataset = handdata.open_dataset("workspace", split="val")
    rows = dataset.to_polars()
    assert rows["sample_id"].to_list() == [sample.sample_id for sample in dataset]
    for sample, keypoints, valid in zip(dataset, rows["keypoints_2d"], rows["keypoints_valid"], strict=True):
        np.testing.assert_array_equal(sample.keypoints.ravel(), keypoints.to_numpy())
        np.testing.assert_array_equal(sample.valid.ravel(), valid.to_numpy())
        assert sample.mask is not None and sample.mask.shape == sample.image.shape[:2]
    sample.keypoints[:] = 0
    assert dataset.find(sample.sample_id).keypoints.any()
    resized = dataset.to_torch(image_size=32)[0]
    assert resized["mask"].shape == (32, 32) and resized["has_mask"]
    assert len(list(dataset.pairs("tiny"))) > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: handdata.ingest("nosuch"), "unknown source"),
        (lambda: handdata.ingest("synthetic", "sources/synthetic", "elsewhere", stride=0), "stride is 0"),
        (lambda: handdata.ingest("folder", "sources", "elsewhere", stride=2, fps=3), "which frames are kept"),
        (
            lambda: handdata.ingest("synthetic", "sources/synthetic", "elsewhere", mirrored=True),
            "no option of the source",
        ),
        (lambda: handdata.annotate("workspace", dataset="records"), "not a name"),
        (lambda: handdata.annotate("workspace", min_hand_pixels=3), "min_hand_pixels"),
        (lambda: handdata.annotate("workspace", masks="sum"), "masks"),  # type: ignore[arg-type]
        (lambda: handdata.open_dataset("elsewhere"), "has no annotated dataset"),
        (lambda: handdata.open_dataset("workspace/dataset"), "the workspace is the folder above it"),
        (lambda: handdata.open_dataset("workspace", split="training"), "no split training"),  # type: ignore[arg-type]
        (lambda: handdata.open_dataset("workspace", where="sharpnes > 3"), "no column 'sharpnes'"),
        (lambda: handdata.open_dataset("workspace").to_arrow(["images"]), "no column 'images'"),
        (lambda: handdata.open_dataset("workspace").pairs("tyni"), "unknown preset"),
        (lambda: handdata.annotate_image("nosuch.jpg"), "nosuch.jpg"),
        (lambda: handdata.annotate_image(np.zeros((9, 9, 3))), "uint8, this one is"),
        (lambda: handdata.annotate_image(Image.new("F", (9, 9))), "of mode F has numbers whose range"),
        (lambda: handdata.annotate_image(Image.new("I", (9, 9))), "of mode I has numbers whose range"),
        (lambda: handdata.annotate_image("file:///nosuch.jpg"), "nosuch.jpg"),
        (lambda: handdata.annotate_image("nosuch://photo.jpg"), "Protocol not known"),
        (lambda: handdata.annotate_image(3), r"or an array \(H, W, 3\), not int"),  # type: ignore[arg-type]
    ],
)
def test_wrong_input_is_a_usage_error(there: Path, wrong, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        wrong()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda dataset: handdata.open_dataset("workspace", where=3), "where is an SQL condition, a text, not int"),  # type: ignore[arg-type]
        (lambda dataset: dataset.to_polars(["split", "split"]), "a column is asked for twice: split, split"),
        (lambda dataset: dataset.to_torch(0), "image_size is 0, and should be a whole number"),
        (lambda dataset: dataset.to_torch("64"), "image_size is '64', and should be"),
        (lambda dataset: dataset[0].draw(-1), "size is -1, and should be"),
    ],
)
def test_wrong_arguments_of_a_dataset_are_usage_errors(there: Path, wrong, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        wrong(handdata.open_dataset("workspace"))
    assert handdata.open_dataset("workspace").to_polars("split").columns == ["split"]


def test_wrong_numbers_of_sampling_are_usage_errors(there: Path) -> None:
    model = handdata.load_model("default", workspace="workspace")
    sample = handdata.open_dataset("workspace")[0]
    for options, said in (
        ({"steps": 0}, "steps is 0, and should be a whole number from 1"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": "3"}, "steps is '3'"),
        ({"seed": -1}, "seed is -1, and should be a whole number from 0"),
        ({"seed": 2**70}, "seed is 1180591620717411303424"),
        ({"steps": 1, "guidance": float("nan")}, "guidance"),
    ):
        with pytest.raises(UsageError, match=said):
            model.gesture_transfer(sample, sample, **options)
    assert model.gesture_transfer([], []) == []
    with pytest.raises(UsageError, match="a target for each of its frames"):
        model.video(sample, [])


def test_datasets_travel_to_processes_that_are_not_forked(there: Path) -> None:
    dataset = handdata.open_dataset("workspace", split="train")
    assert dataset[0].sample_id and len(dataset.pairs("tiny")) > 0
    again = pickle.loads(pickle.dumps(dataset))
    assert [sample.sample_id for sample in again[:3]] == [sample.sample_id for sample in dataset[:3]]
    pairs = dataset.pairs("tiny", seed=3)
    first = pairs[5].target_image
    assert torch.equal(pickle.loads(pickle.dumps(pairs))[5].target_image, first)
    assert len(pickle.loads(pickle.dumps(dataset.to_torch()))) == len(dataset)


def test_wrong_poses_are_usage_errors(there: Path) -> None:
    model = handdata.load_model("default", workspace="workspace")
    sample = handdata.open_dataset("workspace")[0]
    for pose, said in (
        (np.zeros((42, 2)), "has no keypoints"),
        (np.ones((21, 2)), "has shape"),
        (np.full((42, 2), 500.0), "no keypoint inside the generated image of 32 x 32"),
    ):
        with pytest.raises(UsageError, match=said):
            model.gesture_transfer(sample, pose)
    with pytest.raises(UsageError, match="2 references and 1 targets"):
        model.gesture_transfer([sample, sample], [sample])


def test_without_the_library_of_hugging_face_an_error_names_it(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match='the library "datasets"'):
        handdata.open_dataset("workspace").to_huggingface()
