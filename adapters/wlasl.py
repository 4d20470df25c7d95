"""WLASL (Word-Level American Sign Language): short videos of one signer who faces the camera, one sign each.

Layout, after the start kit of https://github.com/dxli94/WLASL has run (or a mirror of its result)::

    <root>/WLASL_v0.3.json
    <root>/videos/<video_id>.mp4

The label file is a list of ``{"gloss": ..., "instances": [{"video_id", "split", "signer_id", "frame_start",
"frame_end", "bbox", "url", ...}, ...]}``. There are no joints and no masks; both hands are ``unknown``. Every frame
of a clip is a record, numbered in presentation order from 0.

**The clips are cut already** (``start_kit/preprocess.py``), so ``frame_start`` and ``frame_end`` are not applied
again: they count in the source video.

**Timestamps** are the file's own. From YouTube the start kit takes frames at the source's rate and writes them at 25
frames per second, whatever that rate was; the true times of such a clip are lost, so it has none.

**The person's box** holds for the source's resolution. It is kept as a hint (``extra["person_box_xyxy_px"]``) unless
it cannot belong to this file: the authors' own pre-processed clips are 256 x 256.
"""

import math
import reprlib
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from handdata.adapters.base import AdapterOptions, Layout, Partition
from handdata.adapters.reading.fields import label_numbers
from handdata.adapters.reading.frames import frame_rejection
from handdata.adapters.reading.json_stream import stream_list
from handdata.adapters.reading.listing import files_in
from handdata.adapters.reading.paths import resolve_below
from handdata.adapters.reading.video import VideoInfo, video_info
from handdata.schemas import (
    KEYPOINT_COUNT,
    SOURCE_CARDS,
    SPLITS,
    HandRecord,
    RecordError,
    Rejection,
    RejectReason,
    SourceCard,
    Split,
    record_name,
)
from handdata.schemas.arrays import BoolArray
from handdata.schemas.record import is_encodable
from handdata.schemas.rejection import rejection

CLIPS_PER_PARTITION: Final = 300
"""About 18,000 frames."""

_LABELS: Final = "WLASL_v0.3.json"
_START_KIT_RATE: Final = Fraction(25)
_AUTHORS_SIZE: Final = (256, 256)


class WlaslAdapter:
    """Reads the clips that are there; the labels name many that have vanished from the web."""

    card: ClassVar[SourceCard] = SOURCE_CARDS["wlasl"]
    layouts: ClassVar[tuple[Layout, ...]] = (Layout("start kit, after preprocess.py", (_LABELS, "videos/*.mp4")),)
    unused: ClassVar[tuple[str, ...]] = (
        "raw_videos*",
        "start_kit",
        "code",
    )

    def __init__(self, options: AdapterOptions = AdapterOptions()) -> None:
        self.options = options

    def partitions(self, root: Path) -> Iterator[Partition]:
        """Yield blocks of clips of each split; the label file says only later which clips are in a block."""
        clips = len(files_in(root / "videos", ".mp4"))
        blocks = max(1, math.ceil(clips / CLIPS_PER_PARTITION))
        for split in sorted(SPLITS):
            for block in range(blocks):
                yield Partition(f"{split}/{block:04d}", split, (_LABELS, "videos"), f"{block}/{blocks}")

    def records(self, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        """Yield all frames of a block's clips, clip by clip in the order of the label file, which is streamed."""
        block, blocks = map(int, partition.selection.split("/"))
        labels = root / _LABELS
        is_first = partition.split == "train" and block == 0  # what belongs to no clip is reported there, once
        unnamed = {path.stem: path for path in files_in(root / "videos", ".mp4")} if is_first else {}
        try:
            for number, entry in enumerate(stream_list(labels)):
                instances = entry.get("instances") if isinstance(entry, dict) else None
                if not isinstance(instances, list):
                    if is_first:
                        yield _corrupt_entry(labels, f"entry {number}", "has no list of instances")
                    continue
                for position, instance in enumerate(instances):
                    where = f"entry {number}, instance {position}"
                    if not _names_a_clip(instance):
                        if is_first:
                            yield _corrupt_entry(labels, where, "has no video_id, or its split is not one of three")
                        continue
                    unnamed.pop(instance["video_id"], None)
                    if instance["split"] == partition.split and _block_of(instance["video_id"], blocks) == block:
                        yield from _read_clip(root, partition.split, instance, entry.get("gloss"))
        except RecordError as error:
            if is_first:
                yield rejection(f"{self.card.name}/{partition.split}/{_LABELS}", str(labels), error)
            return
        for name, path in unnamed.items():
            missing = RecordError(RejectReason.LABEL_MISSING, f"{labels} does not name {path.name}")
            yield rejection(f"{self.card.name}/{partition.split}/videos/{name}", str(path), missing)

    def open_mask(self, record: HandRecord) -> BoolArray:
        """Raise an error: the dataset has no masks.

        Raises:
            RecordError: Always, with ``mask_unreadable``.

        """
        raise RecordError(RejectReason.MASK_UNREADABLE, f"wlasl has no masks, asked for that of {record.image_uri}")


def _block_of(video_id: str, blocks: int) -> int:
    return zlib.crc32(video_id.encode("utf-8", "backslashreplace")) % blocks


def _names_a_clip(instance: object) -> bool:
    return (
        isinstance(instance, dict)
        and isinstance(instance.get("video_id"), str)
        and instance["video_id"] != ""
        and instance.get("split") in SPLITS
    )


def _corrupt_entry(labels: Path, where: str, problem: str) -> Rejection:
    error = RecordError(RejectReason.LABEL_CORRUPT, f"{labels}, {where}: {problem}")
    return rejection(f"{WlaslAdapter.card.name}/train/{where}", str(labels), error)


def _read_clip(root: Path, split: Split, instance: dict[str, Any], gloss: object) -> Iterator[HandRecord | Rejection]:
    video_id = instance["video_id"]
    path = root / "videos"
    try:
        path = resolve_below(root / "videos", f"{video_id}.mp4")
        info = video_info(path)
        box = _person_box(f"{root / _LABELS}: {video_id}", instance.get("bbox"), (info.width, info.height))
    except Exception as error:
        yield frame_rejection(record_name(WlaslAdapter.card.name, split, video_id), str(path), error)
        return
    signer = instance.get("signer_id")
    has_times = not _was_cut_from_youtube(instance, info)
    attributes = {"gloss": gloss} if isinstance(gloss, str) and is_encodable(gloss) else None
    subject = str(signer) if type(signer) is int and 0 <= signer < 2**31 else None
    for index, time_s in enumerate(info.times_s):
        yield HandRecord(
            source=WlaslAdapter.card.name,
            split=split,
            sequence_id=video_id,
            frame_index=index,
            timestamp_s=float(time_s) if has_times else None,
            subject_id=subject,
            image_uri=str(path),
            video_frame=index,
            width=info.width,
            height=info.height,
            viewpoint="exo",
            keypoints_valid=np.zeros(KEYPOINT_COUNT, dtype=np.bool_),
            keypoints_2d=np.zeros((KEYPOINT_COUNT, 2)),
            hand_state=("unknown", "unknown"),
            extra={"person_box_xyxy_px": box} if box else None,
            attributes=attributes,
        )


def _was_cut_from_youtube(instance: dict[str, Any], info: VideoInfo) -> bool:
    """Return whether the start kit wrote this file, and so lost the source's rate; other clips it copies as they are.

    The conditions are those of ``preprocess.py``; at another rate than its 25 the file was made in some other way.
    """
    url, frame_end = instance.get("url"), instance.get("frame_end")
    if not isinstance(url, str) or type(frame_end) is not int:
        return True  # nothing says how it was made
    is_youtube = "youtube" in url or "youtu.be" in url
    return is_youtube and frame_end > 1 and info.rate == _START_KIT_RATE


def _person_box(where: str, box: object, size: tuple[int, int]) -> list[float] | None:
    """Return [x0, y0, x1, y1] in pixels of the clip; ``None`` where it refers to an image of another size.

    Raises:
        RecordError: ``label_corrupt``.

    """
    if box is None:
        return None
    corners = label_numbers(where, "bbox", box)
    if corners.shape != (4,):
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{where}: bbox should be four numbers, is {reprlib.repr(box)}")
    if size == _AUTHORS_SIZE:
        return None
    left, top, right, bottom = corners.tolist()
    fits = 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    return [left, top, right, bottom] if fits else None
