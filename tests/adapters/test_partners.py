"""What one label file names and another lacks is a row with ``label_missing``, in every source alike."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handdata.adapters import interhand26m
from handdata.adapters.interhand26m import InterHand26MAdapter
from handdata.adapters.registry import registered_adapters
from handdata.adapters.roots import find_root
from handdata.schemas import HandRecord, Rejection, RejectReason
from tests.fixtures.interhand26m import write_interhand26m
from tests.fixtures.sources import ADAPTER_FIXTURES

Change = Callable[[Path], object]


def ingest(source: str, root: Path) -> list[HandRecord | Rejection]:
    adapter = registered_adapters()[source]()
    found = find_root(type(adapter), root)
    return [row for partition in adapter.partitions(found) for row in adapter.records(found, partition)]


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def in_json(pattern: str, change: Callable[[Any], object]) -> Change:
    return lambda root: change_json(sorted(root.rglob(pattern))[0], change)


def without(pattern: str) -> Change:
    """Remove the first file, or folder, of a name."""

    def change(root: Path) -> None:
        path = sorted(root.rglob(pattern))[0]
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    return change


def copied(pattern: str, name: Callable[[Path], str]) -> Change:
    """Copy the first file or folder of a name beside itself."""

    def change(root: Path) -> None:
        path = sorted(root.rglob(pattern))[0]
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, path.with_name(name(path)))

    return change


def in_arctic(change: Callable[[dict[str, Any]], object]) -> Change:
    def changed(root: Path) -> None:
        for path in root.rglob("p?_val.npy"):
            document = np.load(path, allow_pickle=True).item()
            change(document)
            np.save(path, document)

    return changed


def pop_first(document: dict[str, Any]) -> None:
    document.pop(next(iter(document)))


def no_sequence_of_ego_data(data: Any) -> None:
    """Take a sequence out of AssemblyHands' list and out of its annotations."""
    name = data["images"][0]["seq_name"]
    gone = {image["id"] for image in data["images"] if image["seq_name"] == name}
    data["images"] = [image for image in data["images"] if image["id"] not in gone]
    data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] not in gone]


def only_ego_images(root: Path) -> None:
    shutil.rmtree(root / "videos")


LACKING: dict[str, tuple[str, Change]] = {
    "arctic: misc.json lacks a subject": ("arctic", in_json("misc.json", lambda data: data.pop("s05"))),
    "arctic: a listed sequence has no labels": ("arctic", in_arctic(lambda data: pop_first(data["data_dict"]))),
    "arctic: a labelled sequence is not listed": (
        "arctic",
        in_arctic(lambda data: data["data_dict"].update({"s05/other_use_01": next(iter(data["data_dict"].values()))})),
    ),
    "assemblyhands: an image has no annotation": (
        "assemblyhands",
        in_json("*train_ego_data*", lambda data: data["annotations"].pop(0)),
    ),
    "assemblyhands: an annotation has no image": (
        "assemblyhands",
        in_json("*train_ego_data*", lambda data: data["annotations"].append({"image_id": 5, "joint_valid": [1] * 42})),
    ),
    "assemblyhands: joint_3d lacks a frame": (
        "assemblyhands",
        in_json("*train_joint_3d*", lambda data: pop_first(next(iter(data["annotations"].values())))),
    ),
    "assemblyhands: ego_data lacks a frame": (
        "assemblyhands",
        lambda root: (
            only_ego_images(root),
            in_json(
                "*train_joint_3d*",
                lambda data: [frames.update({"000530": frames["000520"]}) for frames in data["annotations"].values()],
            )(root),
        ),
    ),
    "assemblyhands: ego_data lacks a sequence": (
        "assemblyhands",
        in_json(
            "*train_joint_3d*",
            lambda data: data["annotations"].update({"other": next(iter(data["annotations"].values()))}),
        ),
    ),
    "assemblyhands: ego_calib lacks a frame": (
        "assemblyhands",
        in_json("*train_ego_calib*", lambda data: pop_first(next(iter(data["calibration"].values()))["extrinsics"])),
    ),
    "dart: images of a part without labels": ("dart", copied("*_wbg", lambda path: "7_wbg")),
    "dexycb: a sequence has no meta.yml": ("dexycb", without("meta.yml")),
    "dexycb: no intrinsics of a camera": ("dexycb", without("*_640x480.yml")),
    "dexycb: no extrinsics": ("dexycb", without("extrinsics.yml")),
    "dexycb: no label of an image": ("dexycb", without("labels_000000.npz")),
    "dexycb: frames beyond meta.yml": ("dexycb", copied("color_000000.jpg", lambda path: "color_000099.jpg")),
    "ego4d: no label of an image of HInt": ("ego4d", copied("*_l.jpg", lambda path: f"{path.stem[:-1]}r.jpg")),
    "foundhand10m: no label of an image": ("foundhand10m", without("*.npz")),
    "interhand26m: an image has no annotation": (
        "interhand26m",
        in_json("*train_data.json", lambda data: data["annotations"].pop(0)),
    ),
    "interhand26m: the last image has no annotation": (
        "interhand26m",
        in_json("*train_data.json", lambda data: data["annotations"].pop()),
    ),
    "interhand26m: an annotation has no image": (
        "interhand26m",
        in_json("*train_data.json", lambda data: data["images"].pop(0)),
    ),
    "interhand26m: the last annotation has no image": (
        "interhand26m",
        in_json("*train_data.json", lambda data: data["images"].pop()),
    ),
    "interhand26m: joint_3d lacks a frame": (
        "interhand26m",
        in_json("*train_joint_3d.json", lambda data: pop_first(next(iter(data.values())))),
    ),
    "interhand26m: no camera of a capture": ("interhand26m", in_json("*train_camera.json", pop_first)),
    "interhand26m: no list of images": ("interhand26m", without("*val_data.json")),
    "reinterhand: no camera": ("reinterhand", in_json("Mugsy_cameras/cam_params.json", pop_first)),
    "reinterhand: no joints of a frame": (
        "reinterhand",
        lambda root: [path.unlink() for path in root.rglob("keypoint-*.json")],
    ),
    "renderih: no label of an image": ("renderih", without("color_annot/*.pkl")),
    "renderih: no joints of an image": (
        "renderih",
        lambda root: [path.unlink() for path in root.rglob("ori_handdict/*.npy")],
    ),
    "rhd: no label of an image": ("rhd", copied("training/color/*.png", lambda path: "00077.png")),
    "rhd: a split has no labels": ("rhd", without("anno_evaluation.pickle")),
    "synthetic: a sequence has no labels": ("synthetic", without("labels.npz")),
    "visor: frames of a video without annotations": ("visor", without("annotations/train/*.json")),
    "wlasl: a clip that the list does not name": ("wlasl", copied("videos/*.mp4", lambda path: "99999.mp4")),
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, int]]:
    """Write each source once; return it with its number of rows with ``label_missing``."""
    written: dict[str, tuple[Path, int]] = {}

    def dataset(source: str) -> tuple[Path, int]:
        if source not in written:
            root = tmp_path_factory.mktemp(source)
            next(fixture for fixture in ADAPTER_FIXTURES if fixture.source == source).write(root)
            written[source] = root, len(missing(ingest(source, root)))
        return written[source]

    return dataset


def missing(rows: list[HandRecord | Rejection]) -> list[Rejection]:
    return [row for row in rows if isinstance(row, Rejection) and row.reason is RejectReason.LABEL_MISSING]


@pytest.mark.parametrize(("source", "change"), LACKING.values(), ids=LACKING)
def test_what_another_file_lacks_is_label_missing(
    datasets: Callable[[str], tuple[Path, int]], tmp_path: Path, source: str, change: Change
) -> None:
    written, before = datasets(source)
    root = shutil.copytree(written, tmp_path / "root")
    change(root)
    assert len(missing(ingest(source, root))) > before


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("at", [0, 7, -1])
def test_an_annotation_of_interhand_without_image_is_one_row_whatever_part_it_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, parts: int
) -> None:
    write_interhand26m(tmp_path)
    path = tmp_path / "annotations/train/InterHand2.6M_train_data.json"
    images = json.loads(path.read_text())["images"]
    gone = images[at]["id"]
    change_json(path, lambda data: data["images"].pop(at))
    size = path.stat().st_size
    monkeypatch.setattr(interhand26m, "PARTITION_BYTES", 1 + size // parts)
    partitions = [part for part in InterHand26MAdapter().partitions(tmp_path) if part.split == "train"]
    assert len(partitions) == parts
    rows = [row for part in partitions for row in InterHand26MAdapter().records(tmp_path, part)]
    (row,) = missing(rows)
    assert f"is of image {gone}, which the list images does not have" in row.detail
    assert len(rows) == len(images)
