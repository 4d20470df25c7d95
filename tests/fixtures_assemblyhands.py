"""Writes AssemblyHands' layout: annotations, ego images, exo videos with calib.txt, with joints of known 3D points."""

import json
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from fixtures_wlasl import write_clip
from numpy.typing import NDArray
from PIL import Image

EGO_SIZE, EXO_SIZE = (636, 480), (192, 108)
TRAIN = "nusar-2021_action_both_9014-a23_9014_user_id_2021-02-02_142800"
TRAIN_2 = "nusar-2021_action_both_9034-c08b_9034_user_id_2021-02-23_175357"
VAL = "nusar-2021_action_both_9081-c11b_9081_user_id_2021-02-12_161433"
EGO_CAMERAS = ("HMC_21176623", "HMC_21179183")
"""As ``ego_data`` names them; folders and calibration add ``_mono10bit``."""
EXO_CAMERAS = ("C10095_rgb", "C10379_rgb")
FRAMES = (520, 522, 524)
ALL_JOINTS = tuple(range(42))

EgoImage = tuple[int, str]
"""Frame number, camera as ``ego_data`` names it."""


def suffixed(camera: str) -> str:
    return camera + "_mono10bit" if camera.startswith("HMC") else camera


def world_points_mm(sequence: str, frame: int) -> NDArray[np.float64]:
    """Return the (42, 3) joints in the dataset's order, millimetres in the world frame."""
    rng = np.random.default_rng([*sequence.encode(), frame])
    points = rng.uniform(-90, 90, (42, 3))
    points[:, 0] += np.repeat([-60, 60], 21)
    return points


def intrinsics(camera: str) -> NDArray[np.float64]:
    if camera.startswith("HMC"):
        return np.array([[251.5, 0, 317.25], [0, 250.0, 241.0], [0, 0, 1]])
    return np.array([[119.0, 0, 95.6], [0, 119.5, 53.1], [0, 0, 1]])


def extrinsics_mm(camera: str, frame: int) -> NDArray[np.float64]:
    """Return the (3, 4) world-to-camera matrix, millimetres; head cameras move with the frame."""
    number = [*EGO_CAMERAS, *EXO_CAMERAS].index(camera)
    moving = camera.startswith("HMC")
    turn = 0.2 * number + (0.01 * (frame - 520) if moving else 0)
    rotation = [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    return np.c_[rotation, [10.0 * number, -15.0, 500.0 if moving else 900.0]]


def project(camera: str, frame: int, point_mm: Sequence[float]) -> tuple[float, float, float]:
    """Return u, v in pixels and the depth in millimetres, coordinate by coordinate."""
    matrix, k = extrinsics_mm(camera, frame), intrinsics(camera)
    x, y, z = (float(sum(matrix[i, j] * point_mm[j] for j in range(3)) + matrix[i, 3]) for i in range(3))
    return k[0, 0] * x / z + k[0, 2], k[1, 1] * y / z + k[1, 2], z


def label_path(root: Path, split: str, kind: str) -> Path:
    return root / f"annotations/{split}/assemblyhands_{split}_{kind}_v1-1.json"


def write_json(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def ego_file_name(split: str, sequence: str, image: EgoImage) -> str:
    return f"ego_images_rectified/{split}/{sequence}/{suffixed(image[1])}/{image[0]:06d}.jpg"


def ego_images() -> list[EgoImage]:
    """Return the listed images; of the second camera's last frame there is none, as no hand is seen in it."""
    return [(frame, camera) for frame in FRAMES for camera in EGO_CAMERAS if (frame, camera) != (524, EGO_CAMERAS[1])]


def write_split(
    root: Path,
    split: str,
    sequences: Sequence[str],
    *,
    missing_images: Collection[tuple[str, EgoImage]] = (),
    unseen: Mapping[tuple[str, EgoImage], Collection[int]] | None = None,
    without_3d: Mapping[tuple[str, int], Collection[int]] | None = None,
    with_joints: bool = True,
    held_out: bool = False,
    with_images: bool = True,
    with_videos: bool = True,
    video_frames: int = len(FRAMES),
    video_rate: int = 30,
    with_calib_txt: bool = True,
    with_exo_calib: bool = False,
    replace_image: Mapping[str, Any] | None = None,
    replace_annotation: Mapping[str, Any] | None = None,
    replace_joint: Mapping[str, Any] | None = None,
) -> None:
    """Write one split.

    ``unseen`` are the joints (of the dataset's 42) whose per-view flag is 0 in an ego image, ``without_3d`` those
    without a 3D label in a frame; ``replace_*`` change the entries of the first frame.
    """
    images, annotations = [], []
    for sequence in sequences:
        for number, image in enumerate(ego_images()):
            frame, camera = image
            image_id = 1000 * len(images) + 7
            hidden = (unseen or {}).get((sequence, image), ())
            world = world_points_mm(sequence, frame)
            entry = {
                "id": image_id,
                "file_name": ego_file_name(split, sequence, image),
                "width": EGO_SIZE[0],
                "height": EGO_SIZE[1],
                "seq_name": sequence,
                "camera": camera,
                "frame_idx": frame,
            }
            annotation = {
                "id": image_id + 1,
                "image_id": image_id,
                "frame_id": frame,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": {"right": [100.0, 90.5, 300.25, 260.0], "left": None if number else [310, 80, 480, 240]},
                "joint_valid": [float(joint not in hidden) for joint in ALL_JOINTS],
                "keypoints": [[1.0] * 3 if held_out else [*project(camera, frame, point)[:2], 1.0] for point in world],
            }
            images.append(entry | dict(replace_image or {}) if number == 0 else entry)
            annotations.append(annotation | dict(replace_annotation or {}) if number == 0 else annotation)
            if with_images and (sequence, image) not in missing_images:
                path = root / "images" / ego_file_name(split, sequence, image)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", EGO_SIZE, 80).save(path)
    annotations.reverse()  # nothing says that the two lists go together
    write_json(label_path(root, split, "ego_data"), {"images": images, "annotations": annotations})
    calibration: dict[str, Any] = {
        sequence: {
            "intrinsics": {suffixed(camera): intrinsics(camera).tolist() for camera in EGO_CAMERAS},
            "extrinsics": {
                f"{frame:06d}": {suffixed(camera): extrinsics_mm(camera, frame).tolist() for camera in EGO_CAMERAS}
                for frame in FRAMES
            },
        }
        for sequence in sequences
    }
    write_json(label_path(root, split, "ego_calib"), {"calibration": calibration})
    if with_exo_calib:
        calibration = {
            sequence: {
                "intrinsics": {camera: intrinsics(camera).tolist() for camera in EXO_CAMERAS},
                "extrinsics": {camera: extrinsics_mm(camera, 0).tolist() for camera in EXO_CAMERAS},
            }
            for sequence in sequences
        }
        write_json(label_path(root, split, "exo_calib"), {"calibration": calibration})
    joints: dict[str, Any] = {sequence: {} for sequence in sequences}
    for sequence in sequences:
        for frame in FRAMES:
            hidden = (without_3d or {}).get((sequence, frame), ())
            joints[sequence][f"{frame:06d}"] = {
                "world_coord": np.ones((42, 3)).tolist() if held_out else world_points_mm(sequence, frame).tolist(),
                "joint_valid": [int(joint not in hidden) for joint in ALL_JOINTS],
            } | dict((replace_joint or {}) if frame == FRAMES[0] else {})
    if with_joints:
        write_json(label_path(root, split, "joint_3d"), {"annotations": joints})
    for sequence in sequences if with_videos else ():
        folder = root / "videos/exo_videos_rectified" / sequence
        blocks = []
        for camera in EXO_CAMERAS:
            write_clip(folder / f"{camera}.mp4", video_frames, Fraction(video_rate), EXO_SIZE)
            rows = [*intrinsics(camera).tolist(), [0.0] * 5, *extrinsics_mm(camera, 0).tolist()]
            blocks.append("\n".join([camera, *(" ".join(map(repr, row)) for row in rows), ""]))
        if with_calib_txt:
            (folder / "calib.txt").write_text("\n".join(blocks))


def write_assemblyhands(root: Path) -> None:
    """Write two splits of three sequences; one ego image is missing, one joint has no 3D label.

    Each sequence has five ego images and two exo videos of three frames: 33 rows in all.
    """
    (root / "annotations").mkdir(parents=True)
    (root / "annotations/skeleton.txt").write_text("")
    write_split(
        root,
        "train",
        [TRAIN, TRAIN_2],
        missing_images=[(TRAIN, (522, EGO_CAMERAS[0]))],
        unseen={(TRAIN, (520, EGO_CAMERAS[1])): range(21, 42)},
        without_3d={(TRAIN, 524): [8]},
    )
    write_split(root, "val", [VAL])
