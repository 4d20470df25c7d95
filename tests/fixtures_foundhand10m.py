"""Writes FoundHand-10M's packed layout, with keypoints projected from known 3D points."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Pose:
    """A frame's truth: 42 world points in millimetres and the camera that sees them."""

    world_mm: NDArray[np.float64]
    rotation: NDArray[np.float64]
    centre_mm: NDArray[np.float64]
    focal: tuple[float, float] = (310.0, 287.0)
    principal: tuple[float, float] = (61.5, 66.25)

    def project(self, joint: int) -> tuple[float, float, float]:
        """Return u, v in pixels and the depth in metres, coordinate by coordinate."""
        x, y, z = (
            sum(self.rotation[i, j] * (self.world_mm[joint, j] - self.centre_mm[j]) for j in range(3)) for i in range(3)
        )
        return self.focal[0] * x / z + self.principal[0], self.focal[1] * y / z + self.principal[1], z / 1000

    def keypoints(self) -> NDArray[np.float32]:
        return np.array([self.project(joint)[:2] for joint in range(42)], dtype=np.float32)


def make_pose(seed: int = 0) -> Pose:
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    centre = rng.normal(size=3) * 500
    camera_mm = np.c_[rng.uniform(-90, 90, (42, 2)), rng.uniform(600, 800, 42)]
    return Pose(world_mm=camera_mm @ rotation + centre, rotation=rotation, centre_mm=centre)


def write_frame(
    folder: Path,
    stem: str,
    pose: Pose | None = None,
    *,
    size: int = 128,
    mask_size: int = 128,
    absent: tuple[int, ...] = (),
    with_camera: bool = False,
    with_joint_valid: bool = False,
    with_mask: bool = True,
    with_image: bool = True,
    with_label: bool = True,
    compressed: bool = False,
    replace: dict[str, NDArray[np.generic]] | None = None,
) -> NDArray[np.float32]:
    """Write one picture and its label; return the (42, 2) keypoints in the label, 0 for the joints in ``absent``."""
    pose = pose or make_pose()
    folder.mkdir(parents=True, exist_ok=True)
    keypoints = pose.keypoints()
    keypoints[list(absent)] = (-0.0, 0.0)
    valid = np.ones(42, dtype=np.float32)
    valid[list(absent)] = 0
    arrays: dict[str, NDArray[np.generic]] = {"kpts": keypoints}
    if with_mask:
        mask = np.zeros((mask_size, mask_size), dtype=np.uint8)
        mask[mask_size // 4 : mask_size // 2, : mask_size // 8] = 1
        arrays["hand_mask"] = mask
    if with_joint_valid:
        arrays["joint_valid"] = valid
    if with_camera:
        arrays |= {
            "campos": pose.centre_mm.astype(np.float32),
            "camrot": pose.rotation.astype(np.float32),
            "focal": np.array(pose.focal),
            "princpt": np.array(pose.principal),
            "joint3d": (pose.world_mm * valid[:, None]).astype(np.float32),
            "obj_mask": np.zeros((mask_size, mask_size), dtype=np.uint8),
        }
    arrays |= replace or {}
    if with_image:
        Image.new("RGB", (size, size), (90, 80, 70)).save(folder / f"{stem}.jpg")
    if with_label:
        (np.savez_compressed if compressed else np.savez)(folder / f"{stem}.npz", **arrays)
    return keypoints


LEFT_HAND = tuple(range(21, 42))
STILL = "0a1b2c3d-1111-2222-3333-444455556666"


def write_foundhand10m(root: Path) -> None:
    """Write a small pack: four sources, both processed folders, all splits, one image without a label."""
    for camera in ("0", "6"):
        for frame in ("00010", "00011"):
            write_frame(root / "Arctic/processed/train/s01-box_grab_01", f"{frame}-{camera}", absent=LEFT_HAND)
    write_frame(root / "Arctic/processed/test/s01-box_grab_01", "00010-0", absent=(3,))
    assembly = root / "AssemblyHands/processed_seq"
    write_frame(assembly / "train/nusar-2021_action_both", "000520-C10095_rgb")
    write_frame(assembly / "train/nusar-2021_action_both", "000520-HMC_21176623_mono10bit", compressed=True)
    write_frame(assembly / "val/nusar-2021_action_both", "000525-C10095_rgb")
    write_frame(root / "HAGRID/processed/train/call", f"{STILL}-0")
    write_frame(
        root / "InterHand/processed/test/0032_pinkytip",
        "7-400002",
        absent=LEFT_HAND,
        with_camera=True,
        with_joint_valid=True,
    )
    write_frame(root / "InterHand/processed/test/0032_pinkytip", "11-400002", with_label=False)
