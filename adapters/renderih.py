"""RenderIH: rendered pairs of interacting hands, single images of 256 x 256.

Layout (readme and ``rendering_code`` of https://github.com/adwardlee/RenderIH), after unpacking both archives; the
folder ``train`` is absent where they were unpacked as ``step7_gen_annotations.py`` reads them::

    train/color_img/<id>.jpg          crops around both hands
    train/color_annot/<id>.pkl        MANO parameters of both hands, camera
    train/ori_handdict/<id>.npy       joints; only where the user ran step 7, which needs the MANO model

The labels hold no joints. They are computed from the parameters and the user's own MANO files
(``AdapterOptions.mano_dir``), exactly as the authors' ``models/manolayer.py`` does: 45 PCA coefficients about the mean
pose, a rotation matrix, the left hand's shape corrected, finger tips at vertices 745, 317, 444, 556 and 673 of both
hands, then X_camera = R X + t, and K of the crop. Without MANO, ``ori_handdict`` is read instead, whose joints are in
our order already. Without either there is nothing to ingest, and the command says so before it starts.

Both hands are always there, and all their joints are given, hidden or not. Poses derive from InterHand2.6M, but the
images are new ones: no ``origin_id``. There are no masks.
"""

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.arrays import require_finite
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.geometry import place_hands, project, rigid_transform, transform_points
from handdata.adapters.reading.images import read_image_size, require_size
from handdata.adapters.reading.listing import files_in, is_folder
from handdata.adapters.reading.mano import ManoModel, Tips, correct_left_shape, load_mano
from handdata.adapters.reading.pickles import load_object_npy, load_pickle
from handdata.schemas import (
    SIDES,
    SOURCE_CARDS,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    Side,
    SourceCard,
    UsageError,
    hand_states,
    record_name,
)
from handdata.schemas.arrays import BoolArray

IDS_PER_PARTITION: Final = 10_000

_SIZE: Final = (256, 256)
"""Width and height of all images, to which the intrinsics belong."""
_TIPS: Final[Tips] = (745, 317, 444, 556, 673)

Hands = dict[Side, ManoModel]


class RenderIHAdapter:
    """Reads the images that are there, with joints from MANO or from the user's own run of step 7."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["renderih"]
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout("unpacked", ("train/color_annot/*.pkl", "train/color_img/*.jpg"), "the labels"),
        Layout("unpacked without the folder train", ("color_annot/*.pkl", "color_img/*.jpg"), "the labels"),
    )

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield runs of ids, from the names of images and labels.

        Raises:
            UsageError: There are neither MANO files nor ``ori_handdict``.

        """
        folder = _data_folder(root)
        if self._hands() is None and not is_folder(folder / "ori_handdict"):
            raise UsageError(
                f"the labels of renderih are MANO parameters, and {folder} has no ori_handdict",
                "pass the folder of your own MANO_RIGHT.pkl and MANO_LEFT.pkl (https://mano.is.tue.mpg.de) as --mano "
                "or HANDDATA_MANO_DIR, or run RenderIH's rendering_code/step7_gen_annotations.py",
            )
        annotations = (folder / "color_annot").relative_to(root).as_posix()
        for run in sorted({number // IDS_PER_PARTITION for number in self._numbers(folder)}):
            yield Partition(f"{run:06d}", "train", (annotations,), selection=str(run))

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield the images of a run of ids in their order; ids with neither image nor labels are gaps."""
        hands = self._hands()
        folder = _data_folder(root)
        start = int(partition.selection) * IDS_PER_PARTITION
        for number in sorted(self._numbers(folder) & set(range(start, start + IDS_PER_PARTITION))):
            yield _read_image(folder, number, hands)

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Raise an error: the dataset has no masks.

        Raises:
            RecordError: Always, with ``mask_unreadable``.

        """
        raise RecordError(RejectReason.MASK_UNREADABLE, f"renderih has no masks, asked for that of {record.image_uri}")

    def _numbers(self, folder: Path) -> set[int]:
        """Return the ids of all images and of the labels that are read, from the names of their files."""
        joints = [] if self.options.mano_dir else [("ori_handdict", ".npy")]
        places = [("color_annot", ".pkl"), ("color_img", ".jpg"), *joints]
        return {number for name, suffix in places for number in _ids(folder / name, suffix)}

    def _hands(self) -> Hands | None:
        if self.options.mano_dir is None:
            return None
        right, left = (load_mano(self.options.mano_dir, side) for side in SIDES)
        return {"right": right, "left": correct_left_shape(left, right)}


def _data_folder(root: Path) -> Path:
    return root / "train" if is_folder(root / "train") else root


def _ids(folder: Path, suffix: str) -> set[int]:
    """Return the numbers that name the files of a folder; an empty set where it is not there."""
    stems = (path.stem for path in files_in(folder, suffix))
    return {int(stem) for stem in stems if stem.isascii() and stem.isdecimal() and str(int(stem)) == stem}


def _read_image(folder: Path, number: int, hands: Hands | None) -> HandRecord | Rejection:
    image_path = folder / f"color_img/{number}.jpg"
    label_path = folder / f"color_annot/{number}.pkl"
    try:
        width, height = read_image_size(image_path)
        require_size(image_path, (width, height), _SIZE)
        label = _fields(label_path, load_pickle(label_path), "camera", "mano_params")
        camera = _fields(label_path, label["camera"], "R", "t", "camera")
        camera_k = _numbers(label_path, "camera", camera["camera"], (3, 3))
        camera_t_world = rigid_transform(
            _numbers(label_path, "camera R", camera["R"], (3, 3)), _numbers(label_path, "camera t", camera["t"], (3,))
        )
        if hands is None:
            keypoints_3d = _read_joints(folder / f"ori_handdict/{number}.npy")
        else:
            right, left = (
                transform_points(camera_t_world, _pose(label_path, label["mano_params"], side, hands[side]))
                for side in SIDES
            )
            keypoints_3d = place_hands(right, left, dimensions=3)
        require_finite(label_path, "the joints", keypoints_3d)
        pixels = project(keypoints_3d, camera_k)
        valid = np.isfinite(pixels).all(axis=1)
        return HandRecord(
            source=RenderIHAdapter.card.name,
            split="train",
            sequence_id=str(number),
            frame_index=0,
            image_uri=str(image_path),
            width=width,
            height=height,
            viewpoint="exo",
            keypoints_valid=valid,
            keypoints_2d=pixels,
            hand_state=hand_states(valid, "unknown"),
            keypoints_3d=keypoints_3d,
            camera_k=camera_k,
            camera_t_world=camera_t_world,
        )
    except Exception as error:
        return frame_rejection(
            record_name(RenderIHAdapter.card.name, "train", str(number)), str(image_path), error, label_path
        )


def _pose(path: Path, parameters: object, side: Side, hand: ManoModel) -> NDArray[np.float64]:
    """Return the (21, 3) joints of one hand in the world, metres."""
    values = _fields(path, _fields(path, parameters, side)[side], "R", "pose", "shape", "trans")
    return hand.joints(
        rotation=_numbers(path, f"{side} R", values["R"], (3, 3)),
        pose=hand.pose_from_components(_numbers(path, f"{side} pose", values["pose"], (45,))),
        betas=_numbers(path, f"{side} shape", values["shape"], (10,)),
        translation_m=_numbers(path, f"{side} trans", values["trans"], (3,)),
        tips=_TIPS,
    )


def _read_joints(path: Path) -> NDArray[np.float64]:
    """Return the (42, 3) joints that step 7 wrote, metres in the camera's frame."""
    content = _fields(path, load_object_npy(path), *SIDES)
    right, left = (
        _numbers(path, f"{side} joints3d", _fields(path, content[side], "joints3d")["joints3d"], (21, 3))
        for side in SIDES
    )
    return place_hands(right, left, dimensions=3)


def _fields(path: Path, content: object, *names: str) -> dict[str, Any]:
    fields: dict[str, Any] = content if isinstance(content, dict) else {}
    missing = [name for name in names if name not in fields]
    if missing:
        found = reprlib.repr(list(fields)) if fields else type(content).__name__
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path} lacks {missing[0]!r} where it holds {found}")
    return fields


def _numbers(path: Path, name: str, values: object, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return finite numbers in a shape; a leading dimension of one, as the authors' batches have, is dropped."""
    array = values if isinstance(values, np.ndarray) else np.empty(0, dtype=object)
    if array.dtype.kind not in "iuf" or array.shape not in (shape, (1, *shape)):
        found = f"{array.dtype} {array.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path}: {name} should hold numbers {shape}, holds {found}")
    require_finite(path, name, array)
    return array.reshape(shape).astype(np.float64)
