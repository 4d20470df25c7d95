"""The layout of the synthetic dataset on disk; shared by the writer and the adapter.

::

    synthetic.json                                      the arguments, and the sequences of each split
    <split>/<sequence_id>/labels.npz                    plain arrays, see ``LABEL_ARRAYS``
    <split>/<sequence_id>/<camera_id>/000000.jpg        RGB image, JPEG quality 95
    <split>/<sequence_id>/<camera_id>/000000.mask.png   0 nothing, 1 right hand, 2 left hand; no forearm
"""

from typing import Final

DATASET_FILE: Final = "synthetic.json"
DATASET_FORMAT: Final = "handdata-synthetic"
FORMAT_VERSION: Final = 1
LABEL_FILE: Final = "labels.npz"

LABEL_ARRAYS: Final[dict[str, str]] = {
    "frame_index": "(F,) int",
    "camera_id": "(C,) str",
    "timestamp_s": "(F,) seconds since the sequence began",
    "keypoints_3d_world": "(F, 42, 3) metres, world frame; 0 where the hand is absent",
    "keypoints_valid": "(42,) bool: whose hands are there",
    "keypoints_2d": "(F, C, 42, 2) pixels, (0, 0) the centre of the top-left pixel; 0 where the hand is absent",
    "camera_k": "(C, 3, 3) intrinsics",
    "camera_t_world": "(C, 4, 4) world to camera, metres",
    "image_size": "(2,) width and height",
    "identity": "() int",
}
"""Names of the arrays in a label file, and what each holds."""


def image_path(camera_id: str, frame: int) -> str:
    """Return an image's path relative to its sequence's folder."""
    return f"{camera_id}/{frame:06d}.jpg"


def mask_path(camera_id: str, frame: int) -> str:
    """Return a mask's path relative to its sequence's folder."""
    return f"{camera_id}/{frame:06d}.mask.png"
