"""RenderIH: MANO parameters become the joints of both posed hands; without MANO or joints the command is an error."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handdata.adapters.base import AdapterOptions
from handdata.adapters.renderih import RenderIHAdapter
from handdata.adapters.roots import find_root
from handdata.schemas import HandRecord, RecordError, Rejection, RejectReason, UsageError
from tests.fixtures.mano import write_mano
from tests.fixtures.renderih import FIRST_ID, Scene, write_image, write_renderih


@pytest.fixture(scope="module")
def mano_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mano")
    write_mano(folder)
    return folder


def ingest(root: Path, mano_dir: Path | None = None) -> list[HandRecord | Rejection]:
    adapter = RenderIHAdapter(AdapterOptions(mano_dir=mano_dir))
    root = find_root(RenderIHAdapter, root)
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def only(root: Path, mano_dir: Path | None = None) -> Any:
    (row,) = ingest(root, mano_dir)
    return row


def assert_holds_the_scene(record: HandRecord, scene: Scene) -> None:
    assert record.keypoints_valid.all() and record.hand_state == ("labelled", "labelled")
    assert record.keypoints_3d is not None and record.camera_k is not None and record.camera_t_world is not None
    for side, start in (("right", 0), ("left", 21)):
        assert record.keypoints_2d[start : start + 21] == pytest.approx(np.array(scene.pixels(side)), abs=0.01)
        assert record.keypoints_3d[start : start + 21] == pytest.approx(scene.joints(side), abs=1e-5)
    assert np.array_equal(record.camera_k, scene.camera)
    assert np.array_equal(record.camera_t_world[:3], np.c_[scene.rotation, scene.translation[0]])


def test_images_and_labels_of_all_ids_become_rows_in_order(tmp_path: Path) -> None:
    write_renderih(tmp_path)
    rows = ingest(tmp_path)
    numbers = [FIRST_ID, FIRST_ID + 1, FIRST_ID + 3, FIRST_ID + 4, 1_000_000, 1_000_002]
    assert [row.record_id for row in rows] == [f"renderih/train/{number}/000000-0" for number in numbers]
    assert {row.record_id.split("/")[2]: row.reason for row in rows if isinstance(row, Rejection)} == {
        str(FIRST_ID + 4): RejectReason.IMAGE_MISSING,
        "1000000": RejectReason.LABEL_MISSING,
    }
    assert [partition.name for partition in RenderIHAdapter().partitions(tmp_path)] == ["000036", "000100"]


@pytest.mark.parametrize("seed", [3, 4])
def test_keypoints_are_the_projections_of_both_posed_hands(tmp_path: Path, mano_dir: Path, seed: int) -> None:
    scene = write_image(tmp_path / "train", seed, with_handdict=False)
    assert_holds_the_scene(only(tmp_path, mano_dir), scene)


def test_the_joints_of_step_seven_are_read_where_mano_is_not_given(tmp_path: Path) -> None:
    scene = write_image(tmp_path / "train", 5)
    assert_holds_the_scene(only(tmp_path), scene)


def test_the_folder_train_may_be_missing(tmp_path: Path) -> None:
    scene = write_image(tmp_path / "renderih", 5)
    assert_holds_the_scene(only(tmp_path), scene)


def test_without_mano_and_without_joints_the_command_says_what_to_do_before_it_starts(tmp_path: Path) -> None:
    write_image(tmp_path / "train", 5, with_handdict=False)
    with pytest.raises(UsageError, match=r"MANO parameters.*no ori_handdict .*--mano.*step7_gen_annotations"):
        ingest(tmp_path)


def test_a_mano_folder_without_the_files_is_an_error_at_once(tmp_path: Path) -> None:
    write_image(tmp_path / "train", 5)
    with pytest.raises(UsageError, match=r"MANO_RIGHT\.pkl does not exist"):
        ingest(tmp_path, mano_dir=tmp_path)


def test_an_image_without_its_joints_is_one_rejection(tmp_path: Path) -> None:
    write_image(tmp_path / "train", 5)
    write_image(tmp_path / "train", 6, with_handdict=False)
    _, row = ingest(tmp_path)
    assert isinstance(row, Rejection) and row.reason == RejectReason.LABEL_MISSING
    assert "ori_handdict/6.npy does not exist" in row.detail


def test_there_are_no_masks(tmp_path: Path) -> None:
    write_image(tmp_path / "train", 5)
    record = only(tmp_path)
    assert not record.has_mask
    with pytest.raises(RecordError, match="mask_unreadable"):
        RenderIHAdapter().open_mask(record)


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def _with_hand(side: str, name: str, values: Any) -> dict[str, Any]:
    parameters = Scene(5).annotation(5)["mano_params"]
    parameters[side] = parameters[side] | {name: values}
    return {"mano_params": parameters}


@pytest.mark.parametrize(
    ("replace", "reason", "detail"),
    [
        ({"camera": {}}, RejectReason.LABEL_CORRUPT, "lacks 'R'"),
        ({"mano_params": None}, RejectReason.LABEL_CORRUPT, "lacks 'right' where it holds NoneType"),
        (
            _with_hand("left", "pose", np.ones((1, 6))),
            RejectReason.LABEL_CORRUPT,
            "left pose should hold numbers (45,)",
        ),
        (_with_hand("left", "trans", [0, 0, 0]), RejectReason.LABEL_CORRUPT, "left trans should hold numbers (3,)"),
        (_with_hand("right", "shape", np.full((1, 10), np.nan)), RejectReason.LABEL_NOT_FINITE, "right shape"),
        (_with_hand("right", "R", np.full((3, 3), "x")), RejectReason.LABEL_CORRUPT, "right R should hold"),
        ({"image": _Evil()}, RejectReason.LABEL_UNSAFE, "posix.system"),
    ],
)
def test_a_damaged_label_is_one_rejection_and_the_others_go_through(
    tmp_path: Path,
    mano_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    replace: dict[str, Any],
    reason: RejectReason,
    detail: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "train", 5, replace=replace)
    write_image(tmp_path / "train", 6)
    row, record = ingest(tmp_path, mano_dir)
    assert isinstance(row, Rejection) and isinstance(record, HandRecord)
    assert (row.reason, row.record_id) == (reason, "renderih/train/5/000000-0")
    assert detail in row.detail and "5.pkl" in row.detail
    assert not (tmp_path / "pwned").exists()


def test_a_hand_behind_the_camera_is_unknown(tmp_path: Path, mano_dir: Path) -> None:
    write_image(tmp_path / "train", 5, with_handdict=False)
    label_path = tmp_path / "train/color_annot/5.pkl"
    label = pickle.loads(label_path.read_bytes())
    label["camera"]["t"] = np.array([[0, 0, -5]], dtype=np.float32)
    label_path.write_bytes(pickle.dumps(label))
    record = only(tmp_path, mano_dir)
    assert record.hand_state == ("unknown", "unknown") and not record.keypoints_2d.any()
