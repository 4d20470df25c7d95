"""The hands in a clip of the user's own, a video or a folder of its frames, which sampling takes for a video's poses.

All frames are cut with one square, around the hands of all: the surroundings, and an object in a hand, stand still.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from handdata.adapters.folder import PHOTOGRAPHS
from handdata.adapters.reading.images import read_upright_size
from handdata.adapters.reading.video import video_info
from handdata.pipeline.annotation.crop import CropSquare
from handdata.pipeline.annotation.frames import open_frames
from handdata.pipeline.annotation.photo import photo_annotator, photo_factory, photo_record, prepared_crop
from handdata.pipeline.settings import AnnotateSettings
from handdata.schemas import (
    AnnotatedSample,
    DatasetReadError,
    HandRecord,
    NoHandError,
    RecordError,
    RejectReason,
    UsageError,
)
from handdata.schemas.arrays import BoolArray


@dataclass(frozen=True, slots=True)
class AnnotatedClip:
    """The frames of a clip that were asked for.

    Args:
        samples: Frames with hands, without masks, in their order.
        numbers: Number of each in the clip, from 0 on.
        mask: Hands of the first (S, S).
        total: Number of frames in the clip.
        fps: Frames per second; None in a folder of frames.
        left_out: By number of the frame, why it is not among the samples.

    """

    samples: list[AnnotatedSample]
    numbers: list[int]
    mask: BoolArray
    total: int
    fps: float | None
    left_out: dict[int, str]


def annotate_clip(path: Path, numbers: range, settings: AnnotateSettings, weights: Path | None = None) -> AnnotatedClip:
    """Find the hands in some frames of a clip, tracked from frame to frame.

    Args:
        path: Video file, or folder of images that are the frames, by the numbers in their names.
        numbers: Frames that are asked for; those beyond the end are not there.
        settings: Settings of the samples; those for keypoints, masks and crop are replaced.
        weights: Folder of model files that is searched first.

    Raises:
        UsageError: The clip is none, cannot be read, has no such frame, or its frames differ in size.
        NoHandError: MediaPipe finds no hand in any of the frames.
        WeightsError: MediaPipe's model is missing.

    """
    records, total, fps = _folder_records(path, numbers) if path.is_dir() else _video_records(path, numbers)
    if not records:
        raise UsageError(f"{path} has {total} frames, and none from number {numbers.start} on")
    with photo_factory(settings, weights, crop="stable") as factory:
        annotator = photo_annotator(factory)
        samples, rejections = replace(annotator, mask_model=None).process("clip", records)
        by_id = {record.record_id: record for record in records}
        left_out = {
            by_id[row.record_id].frame_index: "no hand is found"
            if row.reason == RejectReason.NO_HAND_FOUND
            else row.detail
            for row in rejections
        }
        if not samples:
            why = next(iter(left_out.values()))
            raise NoHandError(f"{path} cannot be used: {why} in any of its {len(records)} frames that were asked for")
        first = samples[0]
        record = by_id[first.record_id]
        ((_, image),) = open_frames([record])
        assert not isinstance(image, RecordError)  # it was read before
        square = CropSquare.from_xyxy(first.crop_xyxy, settings.image_size)
        joints = square.to_full(first.keypoints_2d)
        assert annotator.mask_model is not None
        crop = prepared_crop(record, image, first, square, joints, first.keypoints_valid)
        (mask,) = annotator.mask_model.submit([crop])()
    found = [by_id[sample.record_id].frame_index for sample in samples]
    return AnnotatedClip(samples, found, mask, total, fps, left_out)


def _video_records(path: Path, numbers: range) -> tuple[list[HandRecord], int, float]:
    try:
        info = video_info(path)
    except (RecordError, DatasetReadError) as error:
        detail = error.detail if isinstance(error, RecordError) else error.message
        raise UsageError(
            f"{path} is no video that can be read: {detail}", "give a video (MP4, MOV, MKV, WebM) or a folder of frames"
        ) from None
    whole = photo_record(path, info.width, info.height).model_copy(update={"extra": None})
    records = [
        whole.model_copy(
            update={"frame_index": number, "video_frame": number, "timestamp_s": float(info.times_s[number])}
        )
        for number in range(numbers.start, min(numbers.stop, info.frames))
    ]
    return records, info.frames, float(info.rate)


def _folder_records(path: Path, numbers: range) -> tuple[list[HandRecord], int, None]:
    """Return a record for each of some images of a folder, and how many there are.

    Raises:
        UsageError: There are none, one cannot be read, or they differ in size.

    """
    files = frame_files(path)
    if not files:
        raise UsageError(f"{path} holds no images", f"frames end in {', '.join(PHOTOGRAPHS)}")
    records: list[HandRecord] = []
    for number in range(numbers.start, min(numbers.stop, len(files))):
        try:
            width, height = read_upright_size(files[number])
        except RecordError as error:
            raise UsageError(error.detail) from None
        record = photo_record(files[number], width, height)
        if records and (width, height) != (records[0].width, records[0].height):
            raise UsageError(
                f"{files[number]} has {width} x {height} pixels, the frames before it {records[0].width} x "
                f"{records[0].height}",
                "frames of one clip have one size",
            )
        records.append(record.model_copy(update={"frame_index": number, "sequence_id": path.name or "frames"}))
    return records, len(files), None


def frame_files(folder: Path) -> list[Path]:
    """Return the images in a folder in the order of the numbers in their names."""
    return numbered_files(folder, PHOTOGRAPHS)


def numbered_files(folder: Path, endings: Collection[str]) -> list[Path]:
    """Return what has one of some endings in a folder, in the order of the numbers in the names."""
    found = [file for file in folder.iterdir() if file.suffix.lower() in endings and not file.name.startswith(".")]
    return sorted(found, key=lambda file: natural(file.name))


def natural(name: str) -> list[tuple[int, str]]:
    """Return a name for sorting, in which 10 comes after 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]
