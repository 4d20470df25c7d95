"""What other people's libraries, and our own adapters, read of an exported dataset is what was annotated."""

import gc
import json
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from numpy.typing import NDArray
from pycocotools.coco import COCO

from handdata.adapters.coco import CocoAdapter
from handdata.adapters.foundhand10m import FoundHand10MAdapter
from handdata.cli import after_interruption
from handdata.jobs.exports.documents import STATE, ExportRequest, FormatName
from handdata.jobs.exports.export import ExportSummary, export_dataset
from handdata.pipeline.shards.commit import rewrite_unit
from handdata.pipeline.shards.lease import take_lease
from handdata.pipeline.shards.markers import encode_marker, read_markers
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import (
    SAMPLE_SCHEMA,
    SKELETON_EDGES,
    AnnotatedSample,
    EncodedImage,
    HandRecord,
    RunError,
    UsageError,
)
from handdata.schemas.sample import JPEG_SIGNATURE
from tests.fixtures.commands import CommandResult
from tests.fixtures.samples import make_older, sample, write_dataset

SIZE = 48
LICENCES = {"synthetic": "Apache-2.0", "hagrid": "LicenseRef-HaGRID", "rhd": "LicenseRef-RHD"}


def hands(sequence: str, frame: int, camera: str = "0", **changes: Any) -> AnnotatedSample:
    """A sample with a JPEG image, whose joints lie at half a metre before a camera a metre from the world's origin."""
    made = sample(sequence, frame, camera, size=SIZE, **changes)
    pixels = cv2.imdecode(np.frombuffer(made.image.bytes, np.uint8), cv2.IMREAD_COLOR)
    camera_k = np.array([[60, 0, 20], [0, 62, 22], [0, 0, 1]], np.float32)
    camera_t_world = np.eye(4, dtype=np.float32)
    camera_t_world[:3, :3] = cv2.Rodrigues(np.array([0.1, 0.7, -0.2]))[0]
    camera_t_world[:3, 3] = 0, 0, 1
    joints = np.zeros((42, 3), np.float32)
    seen = made.keypoints_valid
    joints[seen] = np.c_[(made.keypoints_2d[seen] - camera_k[:2, 2]) / [60, 62] * 0.5, np.full(seen.sum(), 0.5)]
    own = {
        "image": EncodedImage(bytes=bytes(cv2.imencode(".jpg", pixels)[1])),
        "camera_k": camera_k,
        "camera_t_world": camera_t_world,
        "keypoints_3d": joints,
        "license": LICENCES[made.source],
        "license_id": LICENCES[made.source],
    }
    return made.model_copy(update={name: value for name, value in own.items() if name not in changes})


def two_hands() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "keypoints_2d": rng.uniform(4, 44, (42, 2)).astype(np.float32),
        "keypoints_valid": np.arange(42) != 25,
        "hand_state": ("labelled", "labelled"),
        "keypoints_origin": ("dataset", "mediapipe"),
    }


SAMPLES = [
    *(hands("s01 (left)", frame, camera, timestamp_s=frame / 30) for frame in range(3) for camera in ("0", "HMC-1.a")),
    *(hands(".hidden", frame, camera_model="fisheye", camera_k=None, keypoints_3d=None) for frame in range(2)),
    hands("two/hands", 7, **two_hands()),
    hands("unknown", 0, hand_state=("labelled", "unknown"), flags=("unlabelled_hand",)),
    hands("no-mask", 0, hand_mask=None, mask_origin=None, mask_extent=None, mask_score=None, mask_spill=None),
    hands("held-out", 0, split="val"),
    hands("held-out", 1, split="test", source="hagrid", attributes={"gesture": "call"}),
    hands("more", 1, split="train", source="rhd", flags=("blurry",)),
]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = Storage(tmp_path_factory.mktemp("exported") / "workspace")
    write(storage, SAMPLES)
    return storage


def write(storage: Storage, samples: Sequence[AnnotatedSample]) -> None:
    write_dataset(storage, samples)
    dataset = Dataset(storage)
    manifest = json.loads(storage.read_bytes(dataset.manifest_file))
    manifest["licenses"] = {source: LICENCES[source] for source in manifest["sources"]}
    manifest["license_ids"] = manifest["licenses"]
    storage.write_bytes(dataset.manifest_file, json.dumps(manifest).encode())


def export(workspace: Storage, out: Storage | Path, name: FormatName, **choice: Any) -> ExportSummary:
    request = ExportRequest(format=name, workspace=workspace.url(), dataset="dataset", **choice)
    return export_dataset(request, out if isinstance(out, Storage) else Storage(out))


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".handdata" not in path.parts
    }


def points_of(one: AnnotatedSample) -> NDArray[np.float32]:
    return np.where(one.keypoints_valid[:, None], one.keypoints_2d, np.float32(0))


def mask_of(one: AnnotatedSample) -> NDArray[np.bool_] | None:
    if one.hand_mask is None:
        return None
    return cv2.imdecode(np.frombuffer(one.hand_mask.bytes, np.uint8), cv2.IMREAD_GRAYSCALE) > 0


def by_pixels(samples: Sequence[AnnotatedSample]) -> dict[bytes, AnnotatedSample]:
    return {one.image.bytes: one for one in samples}


def records_of(adapter: Any, root: Path) -> list[HandRecord]:
    found = [record for part in adapter.partitions(root) for record in adapter.records(root, part)]
    assert all(isinstance(record, HandRecord) for record in found), found
    return found


def test_our_adapter_reads_the_foundhand_layout_to_the_same_labels(workspace: Storage, tmp_path: Path) -> None:
    summary = export(workspace, tmp_path / "out", "foundhand")
    adapter = FoundHand10MAdapter()
    records = records_of(adapter, tmp_path / "out")
    assert summary.samples == len(records) == len(SAMPLES)
    originals = by_pixels(SAMPLES)
    for record in records:
        one = originals[Path(record.image_uri).read_bytes()]
        assert np.array_equal(record.keypoints_2d, points_of(one))
        assert np.array_equal(record.keypoints_valid, one.keypoints_valid)
        mask = mask_of(one)
        assert record.has_mask == (mask is not None)
        if mask is not None:
            assert np.array_equal(adapter.open_mask(record), mask)
        assert ("unknown" in one.hand_state) == ("unknown" in record.hand_state)
        assert (record.split, record.frame_index) == (one.split, one.frame_index)
        if one.keypoints_3d is None:
            assert record.keypoints_3d is None
        elif one.sequence_id != "two/hands":  # its second hand has no place in space
            assert record.keypoints_3d == pytest.approx(one.keypoints_3d, abs=1e-5)
            assert record.camera_k == pytest.approx(one.camera_k)
            assert record.camera_t_world == pytest.approx(one.camera_t_world, abs=1e-5)


def test_frames_and_cameras_of_a_sequence_stay_together_in_the_foundhand_layout(
    workspace: Storage, tmp_path: Path
) -> None:
    export(workspace, tmp_path / "out", "foundhand", where="sequence_id LIKE 's01%'")
    records = records_of(FoundHand10MAdapter(), tmp_path / "out")
    assert len({record.sequence_id for record in records}) == 1
    assert len({record.camera_id for record in records}) == 2


def test_names_that_adapters_pass_over_or_refuse_come_back_from_the_foundhand_layout(tmp_path: Path) -> None:
    names = ["IMG_1", "IMG_1_copy", "IMG_1_copy_copy", "IMG_1-copy", "IMG_1.bak", "IMG_1~", "IMG_1 (1)", "__MACOSX"]
    samples = [hands(sequence, 0, camera) for sequence in names for camera in ("0", "0_copy")]
    storage = Storage(tmp_path / "w")
    write(storage, samples)
    export(storage, tmp_path / "out", "foundhand")
    records = records_of(FoundHand10MAdapter(), tmp_path / "out")
    assert {Path(one.image_uri).read_bytes() for one in records} == set(by_pixels(samples))
    assert len(records) == len(samples) == len({one.record_id for one in records})


def annotations_of(labels: Path) -> list[tuple[Any, Any, COCO]]:
    coco = COCO(labels)
    return [(coco.loadImgs(entry["image_id"])[0], entry, coco) for entry in coco.loadAnns(coco.getAnnIds())]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_pycocotools_reads_hands_as_coco_wholebody_has_them(
    workspace: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(workspace, tmp_path / "out", "coco")
    labels = sorted((tmp_path / "out" / "annotations").iterdir())
    assert [path.name for path in labels] == [f"hands_{split}.json" for split in ("test", "train", "val")]
    found = [entry for path in labels for entry in annotations_of(path)]
    assert len(found) == len(SAMPLES)
    originals = by_pixels(SAMPLES)
    for image, annotation, coco in found:
        one = originals[(tmp_path / "out" / "images" / image["file_name"]).read_bytes()]
        points = np.array([*annotation["righthand_kpts"], *annotation["lefthand_kpts"]], np.float32).reshape(42, 3)
        assert np.array_equal(points[:, :2], points_of(one))
        assert np.array_equal(points[:, 2] > 0, one.keypoints_valid)
        assert annotation["lefthand_valid"] == bool(one.keypoints_valid[21:].any())
        mask = mask_of(one)
        if mask is None:
            assert annotation["segmentation"] == []
        else:
            assert np.array_equal(coco.annToMask(annotation), mask)
            assert annotation["area"] == mask.sum()
        licence = next(entry for entry in coco.dataset["licenses"] if entry["id"] == image["license"])
        assert licence["name"] == one.license_id
        assert image["sample_id"] == one.sample_id


def test_our_adapter_reads_the_coco_layout_to_the_same_keypoints(workspace: Storage, tmp_path: Path) -> None:
    export(workspace, tmp_path / "out", "coco")
    originals = by_pixels(SAMPLES)
    records = records_of(CocoAdapter(), tmp_path / "out")
    assert len(records) == len(SAMPLES)
    for record in records:
        one = originals[Path(record.image_uri).read_bytes()]
        assert np.array_equal(record.keypoints_2d, points_of(one))
        assert (record.width, record.height, record.split) == (SIZE, SIZE, one.split)


def test_pycocotools_reads_the_layout_of_fiftyone_with_its_skeleton(
    workspace: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(workspace, tmp_path / "out", "fiftyone", split="train")
    originals = by_pixels(SAMPLES)
    found = annotations_of(tmp_path / "out" / "train" / "labels.json")
    assert len(found) == sum(one.split == "train" for one in SAMPLES)
    for image, annotation, coco in found:
        one = originals[(tmp_path / "out" / "train" / "data" / image["file_name"]).read_bytes()]
        points = np.array(annotation["keypoints"], np.float32).reshape(42, 3)
        assert np.array_equal(points[:, :2], points_of(one))
        (category,) = coco.loadCats(annotation["category_id"])
        assert len(category["keypoints"]) == 42
        assert category["skeleton"] == [[first + 1, second + 1] for first, second in SKELETON_EDGES]
    compile((tmp_path / "out" / "load.py").read_text(), "load.py", "exec")


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its archives open
def test_webdataset_reads_its_archives_sequence_by_sequence(workspace: Storage, tmp_path: Path) -> None:
    import webdataset

    export(workspace, tmp_path / "out", "webdataset")
    archives = sorted(map(str, (tmp_path / "out").glob("*/*.tar")))
    assert len(archives) == 4
    found = list(webdataset.WebDataset(archives, shardshuffle=False))
    gc.collect()
    assert len(found) == len(SAMPLES)
    originals = by_pixels(SAMPLES)
    for entry in found:
        one = originals[entry["jpg"]]
        document = json.loads(entry["json"])
        assert document["sample_id"] == one.sample_id
        assert document["license_id"] == one.license_id
        assert np.array_equal(np.array(document["keypoints_2d"], np.float32), one.keypoints_2d)
        assert entry.get("mask.png") == (None if one.hand_mask is None else one.hand_mask.bytes)
        assert document["attributes"] == (one.attributes or {})
    keys = [entry["__key__"].rpartition("/")[0] for entry in found]
    changes = sum(first != second for first, second in pairwise(keys))
    assert changes == len(set(keys)) - 1
    assert len({entry["__key__"] for entry in found}) == len(SAMPLES)


def test_load_dataset_reads_the_folder_with_splits_and_images(
    workspace: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    export(workspace, tmp_path / "out", "huggingface")
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 12, "validation": 1, "test": 1}
    originals = {one.sample_id: one for one in SAMPLES}
    for rows in found.values():
        for row in rows:
            one = originals[row["sample_id"]]
            assert row["image"].size == (SIZE, SIZE)
            assert np.array_equal(np.array(row["keypoints_2d"], np.float32).reshape(42, 2), one.keypoints_2d)
            mask = mask_of(one)
            if mask is not None:
                assert np.array_equal(np.array(row["hand_mask"]) > 0, mask)


def test_the_card_of_the_hub_has_features_splits_and_licences(workspace: Storage, tmp_path: Path) -> None:
    import datasets
    from huggingface_hub import DatasetCard

    export(workspace, tmp_path / "out", "huggingface")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    head = yaml.safe_load(card.data.to_yaml())
    assert head["dataset_info"]["features"] == datasets.Features.from_arrow_schema(SAMPLE_SCHEMA)._to_yaml_list()
    assert {one["name"]: one["num_examples"] for one in head["dataset_info"]["splits"]} == {
        "train": 12,
        "validation": 1,
        "test": 1,
    }
    assert head["license"] == ["apache-2.0", "other"]
    assert all(name in card.text for name in LICENCES.values())


def test_rerun_reads_a_recording_of_each_sequence_with_cameras_and_joints(workspace: Storage, tmp_path: Path) -> None:
    from rerun.chunk import RrdReader

    summary = export(workspace, tmp_path / "out", "rerun")
    assert summary.samples == sum(one.keypoints_3d is not None for one in SAMPLES)
    (file,) = (tmp_path / "out").glob("train/synthetic/s01*/*.rrd")
    chunks = [chunk for chunk in RrdReader(file).stream() if not chunk.is_static]
    rows: dict[str, int] = {}
    for chunk in chunks:
        rows[str(chunk.entity_path)] = rows.get(str(chunk.entity_path), 0) + chunk.num_rows
    cameras = [name for name in rows if re.fullmatch(r"/world/[^/]+", name)]
    assert len(cameras) == 2
    for camera in cameras:
        assert rows[f"{camera}/joints/right"] == rows[f"{camera}/image/keypoints/right"] == 3
        assert rows[f"{camera}/image"] == 3


@pytest.mark.parametrize("name", get_args(FormatName))
def test_licences_and_obligations_stand_in_every_export(name: FormatName, workspace: Storage, tmp_path: Path) -> None:
    summary = export(workspace, tmp_path / "out", name)
    text = (tmp_path / "out" / "LICENSE.md").read_text()
    for source, licence in LICENCES.items():
        assert f"## {source}: " in text and licence in text
    assert "Do not pass the images on, nor crops of them." in text
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"`{licence}`" in card for licence in LICENCES.values())
    assert sum(summary.licences.values()) == summary.samples


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (("--where", "array_contains(flags, 'blurry')"), 1),
        (("--where", "attributes.gesture = 'call'"), 1),
        (("--split", "val"), 1),
        (("--licence", "LicenseRef-RHD"), 1),
        (("--license", "LicenseRef-RHD,Apache-2.0"), 13),
        (("--commercial",), 13),
        ((), 14),
    ],
)
def test_the_options_choose_samples(
    options: Sequence[str], count: int, workspace: Storage, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    result = run_command(
        *("export", "dataset", "-w", workspace.url(), "--format", "foundhand", "--out", tmp_path / "out", *options)
    )
    assert result.code == 0, result.err
    assert len(list((tmp_path / "out").rglob("*.npz"))) == count
    assert f"│ {count}," in result.out
    assert f"handdata ingest --source foundhand10m --root {tmp_path / 'out'}" in result.out


def test_an_interrupted_export_continues_to_the_same_files(workspace: Storage, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    export(workspace, whole, "coco")
    request = ExportRequest(format="coco", workspace=workspace.url(), dataset="dataset")

    def interrupt(done: int, _units: int, _samples: int) -> None:
        if done:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export_dataset(request, Storage(out), interrupt)
    assert not (out / "annotations").exists()
    done = {path: path.stat().st_mtime_ns for path in (out / ".handdata" / "units").rglob("*.json")}
    assert done
    summary = export(workspace, out, "coco")
    assert summary.done_before == len(done)
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert files_in(out) == files_in(whole)


def test_half_a_unit_is_written_again(workspace: Storage, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(workspace, out, "foundhand")
    whole = files_in(out)
    for marker in (out / ".handdata" / "units").rglob("*.json"):
        marker.unlink()
    torn = sorted(out.rglob("*.npz"))
    torn[0].write_bytes(b"half")
    torn[1].unlink()
    export(workspace, out, "foundhand")
    assert files_in(out) == whole


def test_what_was_dropped_leaves_the_export(tmp_path: Path) -> None:
    storage, out = Storage(tmp_path / "w"), tmp_path / "out"
    write(storage, SAMPLES)
    dataset = Dataset(storage)
    export(storage, out, "coco")
    units = {path.name: path.stat().st_mtime_ns for path in (out / ".handdata" / "units").rglob("*.json")}
    for marker in read_markers(dataset):
        for name in map(dataset.path, marker.files):
            rows = storage.read_parquet(name)
            kept = pc.invert(pc.is_in(rows["sequence_id"], pa.array(["held-out", "unknown"])))
            if not pc.all(kept).as_py():
                rewrite_unit(take_lease(dataset), marker, rows.filter(kept))  # as drop does
    summary = export(storage, out, "coco")
    assert summary.samples == len(SAMPLES) - 3
    assert not [name for name in files_in(out) if "held-out" in name or "unknown" in name]
    assert "held-out" not in "".join(path.read_text() for path in (out / "annotations").iterdir())
    left = {path.name: path.stat().st_mtime_ns for path in (out / ".handdata" / "units").rglob("*.json")}
    assert len(units.items() & left.items()) == 1  # the unit that has nothing dropped


def test_an_export_to_an_object_store_has_the_same_files(workspace: Storage, tmp_path: Path, s3_bucket: str) -> None:
    target = Storage(f"{s3_bucket}/exports/coco")
    export(workspace, target, "coco")
    export(workspace, tmp_path / "out", "coco")
    for name, data in files_in(tmp_path / "out").items():
        assert target.read_bytes(name) == data, name
    assert export(workspace, target, "coco").done_before == 4


def test_a_dataset_of_an_older_version_is_exported(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "w")
    write(storage, SAMPLES)
    make_older(storage)
    for name in ("huggingface", "webdataset"):
        assert export(storage, tmp_path / name, name).samples == len(SAMPLES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "cocoa"), "coco"),
        (("--format", "coco", "--where", "nothing > 1"), "a sample has no column 'nothing'"),
        (("--format", "coco", "--where", "sharpness > 1e9"), "no sample fulfils these conditions"),
        (("--format", "coco", "--dataset", "datasett"), "did you mean dataset?"),
        (("--format", "coco", "--out", ""), "--out names no folder"),
        (("--format", "coco", "--push-to", "a/b"), "--push-to goes with --format huggingface"),
    ],
)
def test_a_choice_that_cannot_be_made_is_one_line(
    options: Sequence[str], words: str, workspace: Storage, tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    result = run_command("export", "dataset", "-w", workspace.url(), "--out", tmp_path / "out", *options)
    assert result.code == 2
    assert words in result.err


def test_a_choice_of_no_sample_leaves_the_folder_to_another_choice(workspace: Storage, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no sample fulfils"):
        export(workspace, tmp_path / "out", "coco", where="sharpness > 1e9")
    assert export(workspace, tmp_path / "out", "coco").samples == len(SAMPLES)


def test_a_folder_that_holds_something_else_is_left_alone(workspace: Storage, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        export(workspace, out, "coco")
    assert files_in(out) == {"mine.txt": b"mine"}
    export(workspace, tmp_path / "other", "coco")
    before = files_in(tmp_path / "other")
    with pytest.raises(UsageError, match="another split"):
        export(workspace, tmp_path / "other", "coco", split="val")
    assert files_in(tmp_path / "other") == before


def test_options_before_the_command_are_not_taken_for_its_own(
    tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    result = run_command("export", "-w", tmp_path, "weights")
    assert result.code == 2 and "options come after `export weights`" in result.err


def test_an_interrupted_export_says_what_the_same_command_does() -> None:
    assert "continues" in after_interruption(["export", "dataset", "--format", "coco", "--out", "x"])
    assert "starts anew" in after_interruption(["export", "weights"])


def test_a_licence_that_only_samples_name_stands_in_the_export(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "w")
    write(storage, [hands("s", 0), hands("s", 1, license="CC BY-NC-SA 4.0", license_id="CC-BY-NC-SA-4.0")])
    summary = export(storage, tmp_path / "out", "coco")
    assert summary.licences == {"Apache-2.0": 1, "CC-BY-NC-SA-4.0": 1}
    text = (tmp_path / "out" / "LICENSE.md").read_text()
    assert "CC-BY-NC-SA-4.0" in text and "No commercial use." in text


@pytest.mark.parametrize("name", ["coco", "huggingface"])
def test_the_card_of_an_export_has_the_licences_of_its_samples(name: FormatName, tmp_path: Path) -> None:
    storage, out = Storage(tmp_path / "w"), tmp_path / "out"
    write(storage, [hands("s", 0), hands("s", 1, license="CC BY-NC-SA 4.0", license_id="CC-BY-NC-SA-4.0")])
    export(storage, out, name, licences=("CC-BY-NC-SA-4.0",))
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-nc-sa-4.0"
    assert "No commercial use." in card and "Apache-2.0" not in card


@pytest.mark.parametrize("name", ["coco", "fiftyone", "foundhand"])
def test_an_export_whose_last_sample_has_gone_leaves_an_empty_folder(name: FormatName, tmp_path: Path) -> None:
    storage, out = Storage(tmp_path / "w"), tmp_path / "out"
    write(storage, [hands("s", 0), hands("s", 1, flags=("blurry",))])
    dataset = Dataset(storage)
    export(storage, out, name, where="array_contains(flags, 'blurry')")
    (marker,) = read_markers(dataset)
    rows = storage.read_parquet(dataset.path(marker.files[0]))
    rewrite_unit(take_lease(dataset), marker, rows.slice(0, 1))
    with pytest.raises(UsageError, match="no sample fulfils"):
        export(storage, out, name, where="array_contains(flags, 'blurry')")
    assert not [*out.iterdir()]
    assert export(storage, out, name).samples == 1


def test_a_unit_counts_as_missing_before_its_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, out = Storage(tmp_path / "w"), tmp_path / "out"
    write(storage, [hands("s", 0), hands("s", 1)])
    dataset = Dataset(storage)
    export(storage, out, "foundhand")
    whole = files_in(out)
    (marker,) = read_markers(dataset)
    rows = storage.read_parquet(dataset.path(marker.files[0]))
    rewrite_unit(take_lease(dataset), marker, rows.slice(0, 1))
    remove = Storage.remove

    def interrupted(self: Storage, file: str) -> None:
        remove(self, file)
        if file.startswith(STATE):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "remove", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(storage, out, "foundhand")
    (changed,) = read_markers(dataset)
    rewrite_unit(take_lease(dataset), changed, rows)
    storage.write_bytes(dataset.marker_file(marker.source, marker.unit_id), encode_marker(marker))
    export(storage, out, "foundhand")  # the dataset is again what it was at first
    assert files_in(out) == whole


def test_images_are_the_bytes_that_were_annotated(workspace: Storage, tmp_path: Path) -> None:
    export(workspace, tmp_path / "out", "foundhand")
    images = {path.read_bytes() for path in (tmp_path / "out").rglob("*.jpg")}
    assert images == {one.image.bytes for one in SAMPLES}
    assert all(image.startswith(JPEG_SIGNATURE) for image in images)


def test_a_damaged_mask_ends_the_export_in_one_line(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "w")
    write(storage, [hands("s", 0, hand_mask=EncodedImage(bytes=b"no mask"))])
    with pytest.raises(RunError, match="the hand mask of synthetic/train/s/000000-0 cannot be decoded"):
        export(storage, tmp_path / "out", "coco")
