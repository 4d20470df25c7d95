"""Figures of generated hands beside what they were made from, under the titles of their columns."""

from collections.abc import Mapping, Sequence
from typing import Final

from handdata.pictures.drawing import draw_crop, fit, titled_columns
from handdata.schemas.arrays import ByteArray
from handdata.trainer.data.augment import Frame, resize
from handdata.trainer.figures import draw_skeleton

OURS, CARRIED, TRUTH = "generated", "carried reference", "truth"
"""Titles of columns, and names of ways to make an image of a target."""

TILE_PX: Final = 160
"""Side of each image of a figure."""
GAP_PX: Final = 4


def side_by_side(
    pairs: Sequence[tuple[Frame | None, Frame]], columns: Mapping[str, Sequence[ByteArray]], *, joints: bool = False
) -> ByteArray:
    """Return a figure (H, W, 3) of a row a pair: the reference, the target's pose, and an image of each column.

    Args:
        pairs: References and targets; where there is no reference in any, there is no column of them.
        columns: By title, an image (S, S, 3) a pair.
        joints: Whether the joints of the references are drawn.

    """
    rows = []
    for (reference, target), images in zip(pairs, zip(*columns.values(), strict=True), strict=True):
        pose = resize(target, TILE_PX)
        shown = [] if reference is None else [_with_joints(reference) if joints else reference.image]
        tiles = [*shown, draw_skeleton(TILE_PX, pose.keypoints, pose.valid), *images]
        rows.append([fit(tile, TILE_PX, TILE_PX) for tile in tiles])
    shown_references = [] if pairs[0][0] is None else ["reference"]
    return titled_columns(rows, [*shown_references, "pose", *columns], GAP_PX)


def _with_joints(frame: Frame) -> ByteArray:
    return draw_crop(frame.image, None, frame.keypoints, frame.valid, (), TILE_PX)
