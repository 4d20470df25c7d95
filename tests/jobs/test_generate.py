"""``handdata sample domain-transfer --all``: other people's poses with other people's looks, as a dataset."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import handdata
from handdata.jobs.children import choose_parents
from handdata.jobs.generate import GenerateRequest, generate
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards import read_manifest
from handdata.pipeline.shards.progress import dataset_progress
from handdata.pipeline.shards.settle import drop, flag
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import RunError, Split, UsageError
from handdata.trainer.data.augment import resize
from handdata.trainer.presets import SamplingOptions
from handdata.trainer.trainer import Trainer
from tests.fixtures.commands import CommandResult
from tests.fixtures.samples import sample, write_dataset
from tests.fixtures.training import SMALL

SETTINGS = AnnotateSettings()


def references(split: Split, **changes: object) -> list[Any]:
    return [sample(f"person{number}", 0, split=split, source="hagrid", **changes) for number in range(3)]


def named(rows: list[Any]) -> list[Any]:
    """Samples under the names that their sources give them."""
    return [
        row.model_copy(update=dict.fromkeys(("sample_id", "record_id"), row.record_id.replace("synthetic", row.source)))
        for row in rows
    ]


@pytest.fixture
def two_sources(tmp_path: Path) -> Dataset:
    """Videos to take poses of, of all splits; photographs to take looks of, none of the split test."""
    rows = [
        sample(f"wave-{split}", frame, camera, split=split)
        for split in ("train", "val", "test")
        for frame in range(3)
        for camera in "ab"
    ]
    for split in ("train", "val"):
        rows += references(split, license="CC BY-NC 4.0", license_id="CC-BY-NC-4.0", subject_id=f"me-{split}")
    write_dataset(Storage(tmp_path / "w"), named(rows))
    return Dataset(Storage(tmp_path / "w"))


def test_every_target_has_one_child_whose_parents_are_of_its_split(two_sources: Dataset) -> None:
    children = choose_parents(two_sources, "hagrid", "synthetic", seed=0)
    keys = children.keys
    assert children.without_reference == {"test": 6}
    assert children.other_hands == 0
    assert keys["record_id"].n_unique() == len(keys) == 12
    assert sorted(keys["target_split"]) == ["train"] * 6 + ["val"] * 6
    assert (keys["split"] == keys["reference_split"]).all() and (keys["split"] == keys["target_split"]).all()
    assert set(keys["subject_id"]) == {"hagrid/me-train", "hagrid/me-val"}
    assert all(len(set(of["reference_sample_id"])) == 1 for _, of in keys.group_by("split", "sequence_id"))
    assert sorted(set(children.licences())) == [("Apache-2.0", "Apache-2.0"), ("CC BY-NC 4.0", "CC-BY-NC-4.0")]


def test_references_show_the_hands_of_their_targets_and_no_black_border_where_there_are_such(tmp_path: Path) -> None:
    left = np.arange(42) >= 21
    padded = {"pad_ltrb": (9, 0, 0, 0)}
    rows = [sample("right", 0), sample("left", 0, keypoints_valid=left, keypoints_origin=(None, "dataset"))]
    rows += [sample(f"person{number}", 0, source="hagrid", **padded) for number in range(9)]
    rows += [sample("whole", 0, source="hagrid")]
    dataset = Dataset(Storage(tmp_path))
    write_dataset(dataset.storage, named(rows))
    children = choose_parents(dataset, "hagrid", "synthetic", seed=0)
    assert set(children.keys["reference_sequence_id"]) == {"whole"}
    assert children.other_hands == 1  # nobody shows a left hand


def test_what_has_no_split_in_common_is_refused(tmp_path: Path) -> None:
    write_dataset(Storage(tmp_path), named([sample("wave", 0, split="val"), *references("train")]))
    with pytest.raises(UsageError, match="hagrid has samples of train alone, synthetic of val"):
        choose_parents(Dataset(Storage(tmp_path)), "hagrid", "synthetic", seed=0)
    with pytest.raises(UsageError, match="no source hagrit") as caught:
        choose_parents(Dataset(Storage(tmp_path)), "hagrit", "synthetic", seed=0)
    assert "did you mean hagrid" in caught.value.hint


def request(storage: Storage, sources: tuple[str, str], **changes: Any) -> GenerateRequest:
    checkpoint = storage.url("runs/small")
    if not storage.exists("runs/small"):
        trainer = Trainer(SMALL, "cpu")
        torch.manual_seed(0)
        for weights in trainer.averaged_model.parameters():  # a new network ignores what it is given
            weights.data += 0.05 * torch.randn_like(weights)
        trainer.save(checkpoint)
    given: dict[str, Any] = {"parents": None, "options": SamplingOptions(steps=2), "batch_size": 4, **changes}
    return GenerateRequest(Dataset(storage, "generated"), given.pop("parents"), *sources, checkpoint, **given)


def rows_of(storage: Storage) -> dict[str, dict[str, Any]]:
    """All rows that a reader of the folder sees."""
    found = [row for shard in handdata_shards(storage) for row in pq.read_table(shard, partitioning=None).to_pylist()]
    rows = {row["record_id"]: row for row in found}
    assert len(rows) == len(found)
    return rows


def handdata_shards(storage: Storage) -> list[Path]:
    return sorted(Path(storage.url("generated/data").removeprefix("file://")).rglob("*.parquet"))


def test_children_have_the_poses_labels_and_masks_of_targets_and_the_stricter_licence(
    two_sources: Dataset, ray_cluster: None
) -> None:
    storage, notes = two_sources.storage, list[str]()
    summary = generate(request(storage, ("hagrid", "synthetic")), SETTINGS, on_note=notes.append)
    assert (summary.records, summary.samples, summary.rejected) == (12, 12, {})
    assert notes == ["6 targets of the split test get no image: hagrid has no reference in it"]
    manifest = read_manifest(Dataset(storage, "generated"))
    assert manifest.complete and manifest.image_size == 32
    assert manifest.license_ids == {"generated": "CC-BY-NC-4.0"}
    dataset = handdata.open_dataset(storage.url(), dataset="generated")
    parents = handdata.open_dataset(storage.url())
    for child in dataset:
        target, reference = parents.find(child.attributes["target"]), parents.find(child.attributes["reference"])
        row = child.row
        assert (row["source"], row["origin_id"], row["license_id"]) == ("generated", None, "CC-BY-NC-4.0")
        assert row["split"] == target.row["split"] == reference.row["split"]
        assert (target.row["source"], reference.row["source"]) == ("synthetic", "hagrid")
        expected = resize(target.frame, 32)
        np.testing.assert_allclose(
            child.frame.keypoints[child.frame.valid], expected.keypoints[expected.valid], atol=1e-3
        )
        assert child.mask is not None
        assert (child.mask != (expected.mask >= 128)).mean() < 0.02
        assert child.image.shape == (32, 32, 3)
        assert [row[name] for name in ("frame_index", "camera_id", "crop_xyxy", "mask_origin")] == [
            *(target.row["frame_index"], target.row["camera_id"], [0, 0, 32, 32], "dataset")
        ]
    assert len({child.image.tobytes() for child in dataset}) == 12
    assert len(dataset.pairs(SMALL)) > 0  # what train reads
    assert dataset_progress(Dataset(storage, "generated")).total.samples == 12

    files = {path: path.stat().st_mtime_ns for path in Path(storage.url().removeprefix("file://")).rglob("*.*")}
    again = generate(request(storage, ("hagrid", "synthetic")), SETTINGS)
    assert again.records == 0
    assert files == {path: path.stat().st_mtime_ns for path in files}
    with pytest.raises(UsageError, match="made with other settings: steps 2 -> 3"):
        generate(request(storage, ("hagrid", "synthetic"), options=SamplingOptions(steps=3)), SETTINGS)
    with pytest.raises(UsageError, match="is where references and targets come from"):
        generate(request(storage, ("hagrid", "synthetic"), parents="generated"), SETTINGS)


def test_one_batch_equals_many_and_a_few_children_grow_to_all(two_sources: Dataset, ray_cluster: None) -> None:
    storage = two_sources.storage
    assert generate(request(storage, ("hagrid", "synthetic"), count=5, batch_size=1), SETTINGS).samples == 5
    few = rows_of(storage)
    assert generate(request(storage, ("hagrid", "synthetic"), batch_size=12), SETTINGS).samples == 7
    grown = rows_of(storage)
    assert {name: grown[name] for name in few} == few
    storage.remove("generated")
    generate(request(storage, ("hagrid", "synthetic")), SETTINGS)

    def image(row: dict[str, Any]) -> np.ndarray:
        return np.asarray(cv2.imdecode(np.frombuffer(row["image"]["bytes"], np.uint8), cv2.IMREAD_COLOR), np.int16)

    for name, row in rows_of(storage).items():
        assert np.abs(image(row) - image(grown[name])).max() <= 2  # sums of another order of float32


def test_a_dropped_parent_takes_its_children_along_for_good(annotated_synthetic: Path, tmp_path: Path) -> None:
    storage = Storage(shutil.copytree(annotated_synthetic, tmp_path / "w"))
    assert generate(request(storage, ("synthetic", "synthetic"), count=20), SETTINGS).samples == 20
    flagged = flag(Dataset(storage, "generated"), {"min_hand_px": 1000})
    assert flagged.settled.flags_after["small_hand"] == 20
    before = rows_of(storage)
    parents = {name: list(json.loads(row["attributes"]).values()) for name, row in before.items()}
    looks = next(json.loads(row["attributes"])["reference"] for row in before.values())
    orphans = {name for name, of in parents.items() if looks in of}
    preview = drop(storage, "record", [looks], "synthetic", dry_run=True)
    assert preview.datasets["generated"].samples == len(orphans) > 0
    assert rows_of(storage) == before
    assert drop(storage, "record", [looks], "synthetic").datasets["generated"].samples == len(orphans)
    assert rows_of(storage).keys() == before.keys() - orphans
    again = generate(request(storage, ("synthetic", "synthetic"), count=20), SETTINGS)
    left = rows_of(storage)
    assert again.manifest.complete and not orphans & left.keys()
    assert all("small_hand" in row["flags"] for row in left.values())  # the thresholds are the dataset's
    assert drop(storage, "source", [], "synthetic").datasets["generated"].samples == len(left)
    assert rows_of(storage) == {}


def test_lost_units_are_drawn_again_when_asked_to(two_sources: Dataset, ray_cluster: None) -> None:
    storage = two_sources.storage
    generate(request(storage, ("hagrid", "synthetic")), SETTINGS)
    before = rows_of(storage)
    handdata_shards(storage)[0].unlink()
    with pytest.raises(RunError, match="has lost files") as caught:
        generate(request(storage, ("hagrid", "synthetic")), SETTINGS)
    assert "handdata sample domain-transfer --dataset generated --repair" in caught.value.hint
    generate(request(storage, ("hagrid", "synthetic"), repair=True), SETTINGS)
    assert rows_of(storage) == before


def test_a_parent_that_cannot_be_read_is_a_rejected_child(tmp_path: Path, ray_cluster: None) -> None:
    from handdata.schemas import EncodedImage

    broken = EncodedImage(bytes=b"no image")
    rows = [*(sample(f"still{number}", 0) for number in range(4)), sample("me", 0, source="hagrid", image=broken)]
    storage = Storage(tmp_path)
    write_dataset(storage, named(rows))
    summary = generate(request(storage, ("hagrid", "synthetic")), SETTINGS)
    assert (summary.samples, summary.rejected) == (0, {"frame_missing": 4})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--all",), "give --reference-source and --target-source"),
        (("--dataset", "d", "--reference", "a.jpg"), "are for a figure"),
        (("--gpus", "1"), "are for a dataset"),
        (("--all", "--gpus", "1", "--device", "cpu"), "--gpus and --device"),
    ],
)
def test_words_that_do_not_go_together_end_the_command(
    tmp_path: Path, run_command: Callable[..., CommandResult], words: tuple[str, ...], said: str
) -> None:
    result = run_command("sample", "domain-transfer", "-w", tmp_path, *words)
    assert result.code == 2 and said in result.err, result.err
