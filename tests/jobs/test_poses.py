"""Poses for ``handdata sample``: files of keypoints and of 3D joints and cameras, and turned samples."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from handdata.jobs.outputs import NamedFrame
from handdata.jobs.poses import other_hands, target_of_array, targets_in
from handdata.schemas import UsageError
from handdata.trainer.poses import pose_frame, read_poses, turntable

SIDE, SCALE = 64, 1.6


def a_pose(width: float, height: float) -> np.ndarray:
    """Return a right hand's keypoints (42, 2) in the middle of an image."""
    keypoints = np.zeros((42, 2), np.float32)
    keypoints[:21] = np.random.default_rng(0).uniform(0.3, 0.7, (21, 2)) * [width, height]
    return keypoints


def no_notes(line: str) -> None:
    raise AssertionError(line)


@pytest.mark.parametrize("name", ["pose.npz", "pose.json"])
def test_keypoints_are_scaled_from_the_size_that_their_file_says(tmp_path: Path, name: str) -> None:
    keypoints, size = a_pose(256, 256), (256, 256)
    if name.endswith(".npz"):
        np.savez(tmp_path / name, kpts=keypoints, size=size, joint_valid=np.ones(42))
    else:
        rows = [row if row[0] else None for row in keypoints.tolist()]
        (tmp_path / name).write_text(json.dumps({"keypoints": rows, "size": size}))
    (target,) = targets_in(tmp_path / name, SIDE, SCALE, no_notes)
    assert (target.name, target.frame.image.shape) == (str(tmp_path / name), (SIDE, SIDE, 3))
    np.testing.assert_allclose(target.frame.keypoints[:21], (keypoints[:21] + 0.5) / 4 - 0.5, rtol=1e-5)
    np.testing.assert_array_equal(target.frame.valid, np.arange(42) < 21)


def test_keypoints_belong_to_the_picture_beside_them_unless_a_size_is_given(tmp_path: Path) -> None:
    keypoints = a_pose(128, 128)
    np.save(tmp_path / "pose.npy", keypoints)
    (alone,) = targets_in(tmp_path / "pose.npy", 128, SCALE, no_notes)
    np.testing.assert_allclose(alone.frame.keypoints, keypoints, rtol=1e-5)
    cv2.imwrite(str(tmp_path / "pose.png"), np.zeros((256, 256, 3), np.uint8))
    (beside,) = targets_in(tmp_path / "pose.npy", 128, SCALE, no_notes)
    np.testing.assert_allclose(beside.frame.keypoints[:21], (keypoints[:21] + 0.5) / 2 - 0.5, rtol=1e-5)
    (given,) = targets_in(tmp_path / "pose.npy", SIDE, SCALE, no_notes, (128, 128))
    np.testing.assert_allclose(given.frame.keypoints[:21], (keypoints[:21] + 0.5) / 2 - 0.5, rtol=1e-5)


def test_of_an_image_that_is_no_square_the_one_around_the_hands_is_taken() -> None:
    keypoints = a_pose(200, 200) + np.array([900, 300], np.float32)
    keypoints[21:] = 0
    frame = target_of_array(keypoints, SIDE, SCALE, no_notes, (1920, 1080))
    assert frame.valid[:21].all() and not frame.valid[21:].any()
    found = frame.keypoints[:21]
    span = np.ptp(found, axis=0).max()
    assert span == pytest.approx(SIDE / SCALE, rel=0.05)
    np.testing.assert_allclose((found.min(axis=0) + found.max(axis=0)) / 2, SIDE / 2, atol=1.5)
    stretched = np.ptp(keypoints[:21], axis=0) / np.ptp(found, axis=0)
    assert stretched[0] == pytest.approx(stretched[1], rel=1e-3)


@pytest.mark.parametrize("name", ["pose.npy", "pose.npz", "pose.json"])
def test_fractions_of_an_image_are_refused(tmp_path: Path, name: str) -> None:
    fractions = a_pose(1, 1)
    if name.endswith(".npy"):
        np.save(tmp_path / name, fractions)
    elif name.endswith(".npz"):
        np.savez(tmp_path / name, keypoints=fractions, size=(64, 64))
    else:
        (tmp_path / name).write_text(json.dumps(fractions.tolist()))
    with pytest.raises(UsageError, match="fractions of an image") as caught:
        targets_in(tmp_path / name, SIDE, SCALE, no_notes)
    assert "multiply" in caught.value.hint
    with pytest.raises(UsageError, match="fractions"):
        target_of_array(fractions.reshape(2, 21, 2), SIDE, SCALE, no_notes, (64, 64))


def test_fractions_of_joints_a_little_outside_the_image_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "pose.npy", a_pose(1, 1) * 1.3 - 0.1)
    with pytest.raises(UsageError, match="fractions of an image"):
        targets_in(tmp_path / "pose.npy", SIDE, SCALE, no_notes)


def test_a_file_without_a_pose_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros((0, 42, 2)))
    with pytest.raises(UsageError, match=r"none.npy holds no poses"):
        targets_in(tmp_path / "none.npy", SIDE, SCALE, no_notes)


def test_of_several_poses_an_empty_one_is_passed_over(tmp_path: Path) -> None:
    poses = np.random.default_rng(0).uniform(4, 28, (3, 42, 2))
    poses[1] = 0
    np.save(tmp_path / "poses.npy", poses)
    notes: list[str] = []
    found = targets_in(tmp_path / "poses.npy", SIDE, SCALE, notes.append)
    assert [target.name.rpartition(", ")[2] for target in found] == ["pose 0", "pose 2"]
    assert [note.rpartition(", ")[2] for note in notes] == ["pose 1: it has no keypoint"]


def test_several_poses_of_a_file_are_several_targets(tmp_path: Path) -> None:
    np.savez(tmp_path / "film.npz", kpts=np.stack([a_pose(64, 64), a_pose(60, 60)]), frames=np.array(["0", "1"]))
    first, second = targets_in(tmp_path / "film.npz", SIDE, SCALE, no_notes)
    assert second.name == f"{tmp_path / 'film.npz'}, pose 1"
    np.testing.assert_allclose(first.frame.keypoints, a_pose(64, 64), rtol=1e-5)
    np.testing.assert_allclose(second.frame.keypoints, a_pose(60, 60), rtol=1e-5)


def a_hand_in_3d() -> np.ndarray:
    """Return a right hand's joints (42, 3), metres, half a metre before the camera."""
    joints = np.zeros((42, 3))
    joints[:21] = np.random.default_rng(1).uniform(-0.08, 0.08, (21, 3))
    joints[:21, 2] += 0.5
    return joints


CAMERA = np.array([[100.0, 0, 63.5], [0, 110.0, 63.5], [0, 0, 1]])


@pytest.mark.parametrize("name", ["views.npz", "views.json"])
def test_3d_joints_and_cameras_give_a_target_a_camera(tmp_path: Path, name: str) -> None:
    joints = a_hand_in_3d()
    moved = np.eye(4)
    moved[:3, 3] = 0.02, 0, 0.1
    content = {
        "keypoints_3d": joints,
        "camera_k": CAMERA,
        "camera_t_world": np.stack([np.eye(4), moved]),
        "size": [128, 128],
    }
    if name.endswith(".npz"):
        np.savez(tmp_path / name, **content)  # type: ignore[arg-type]
    else:
        (tmp_path / name).write_text(json.dumps({key: np.asarray(value).tolist() for key, value in content.items()}))
    poses = read_poses(tmp_path / name)
    assert [pose.size for pose in poses] == [(128, 128)] * 2
    for pose, (dx, dz) in zip(poses, ((0, 0), (0.02, 0.1)), strict=True):
        for joint, (x, y, z) in enumerate(joints[:21]):
            expected = 100 * (x + dx) / (z + dz) + 63.5, 110 * y / (z + dz) + 63.5
            np.testing.assert_allclose(pose.keypoints[joint], expected, rtol=1e-5)
        np.testing.assert_array_equal(pose.valid, np.arange(42) < 21)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"camera_k": None}, "there is no camera_k"),
        ({"size": None}, "there is no size"),
        ({"size": np.array([128, 0])}, "its size is"),
        ({"keypoints_3d": np.zeros((21, 3))}, "keypoints_3d has shape"),
        ({"camera_k": np.zeros((3, 3))}, "its cameras are none"),
        ({"camera_t_world": np.diag([1.0, 1, -1, 1])}, "its cameras are none"),
        ({"camera_t_world": np.zeros((2, 2, 2))}, "camera_t_world"),
        ({"camera_t_world": np.eye(4) - np.eye(4, k=1) * [0, 0, 0, 0] + [[0] * 4, [0] * 4, [0, 0, 0, -2], [0] * 4]},
         "no joint lies before camera 0"),
    ],
)  # fmt: skip
def test_what_is_no_camera_or_sees_nothing_is_one_line(
    tmp_path: Path, change: dict[str, np.ndarray], said: str
) -> None:
    content = {"keypoints_3d": a_hand_in_3d(), "camera_k": CAMERA, "size": np.array([128, 128])} | change
    np.savez(tmp_path / "views.npz", **{name: value for name, value in content.items() if value is not None})
    with pytest.raises(UsageError, match=said) as caught:
        read_poses(tmp_path / "views.npz")
    assert str(tmp_path / "views.npz") in caught.value.message


def test_a_turntable_begins_at_the_camera_and_shows_the_back_half_way_round() -> None:
    joints = np.zeros((42, 3), np.float32)
    joints[:21, :2] = np.random.default_rng(2).uniform(-0.08, 0.08, (21, 2))
    joints[:21, 2] = 0.5  # flat: from behind it is its mirror image
    views = turntable(joints, CAMERA.astype(np.float32), (128, 128), 8)
    assert len(views) == 8 and all(view.valid.sum() == 21 and view.size == (128, 128) for view in views)
    own = joints[:21, :2] / 0.5 * [100, 110] + 63.5
    np.testing.assert_allclose(views[0].keypoints[:21], own, rtol=1e-4)
    centre = own.mean(axis=0)
    behind = views[4].keypoints[:21]
    np.testing.assert_allclose(behind[:, 0] - centre[0], centre[0] - own[:, 0], atol=1e-2)
    np.testing.assert_allclose(behind[:, 1], own[:, 1], atol=1e-2)
    assert np.ptp(views[2].keypoints[:21, 0]) < 0.5 < np.ptp(own[:, 0])  # from the side it is nearly a line
    for view in views:
        assert (view.keypoints[:21] > 0).all() and (view.keypoints[:21] < 128).all()


def test_hands_that_no_reference_shows_are_warned_of() -> None:
    def frame(name: str, *rows: slice) -> NamedFrame:
        valid = np.zeros(42, bool)
        for each in rows:
            valid[each] = True
        return NamedFrame(name, pose_frame(np.full((42, 2), 9, np.float32), valid, 32))

    right, left = slice(0, 21), slice(21, 42)
    me, you, both = frame("me.jpg", right), frame("you.jpg", left), frame("both.jpg", right, left)
    assert other_hands([((me,), frame("pose", right)), ((both,), you), ((), you), ((me, you), both)]) is None
    warning = other_hands([((me,), you), ((you,), both)])
    assert warning is not None
    assert "you.jpg has a left hand, which me.jpg does not show (and so on, 2 pairs)" in warning
