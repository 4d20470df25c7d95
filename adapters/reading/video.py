"""Frames of video files, named by their index in presentation order from 0.

A frame is found by its presentation time, as the packets announce it: B-frames, variable frame rates and packets that
the decoder drops do not shift the index, as they do where decoded frames are counted. (AVI has no such times and is
an error; no source ships it.) Images are turned as the file's display matrix says (phones record sideways), which is
what OpenCV and ffmpeg do by default and what the datasets' own labels therefore refer to; ``VideoInfo`` gives the size
after turning.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import av
import numpy as np
from numpy.typing import NDArray

from handdata.schemas.arrays import ByteArray
from handdata.schemas.errors import RecordError, RejectReason

MAX_FRAME_PIXELS: Final = 2**26
"""More than 8K video has; a header that announces more would have the decoder fill memory."""
_CONTAINERS: Final = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
"""FFmpeg knows some that name other files, a playlist among them: a "video" must not lead out of the dataset."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What ingest needs to know about a video.

    Args:
        frames: Number of frames that will be shown, counted in the packets.
        width: Pixels of the image as it is shown.
        height: Pixels of the image as it is shown.
        rate: Average frames per second.
        times_s: (frames,) presentation times in seconds since the first frame.

    """

    frames: int
    width: int
    height: int
    rate: Fraction
    times_s: NDArray[np.float64]


def video_info(path: Path) -> VideoInfo:
    """Return size, rate and presentation times from the container; only the first image is decoded.

    (PyAV gives the display matrix only with a decoded frame.)

    Raises:
        RecordError: ``image_missing``, or ``frame_missing`` where the file is no video or its first frame is broken.

    """
    with VideoReader(path) as reader:
        (_, first) = next(reader.frames([0]))
        times = reader.presentation_times
        seconds = (np.array(times, dtype=np.float64) - times[0]) * float(reader.time_base)
        return VideoInfo(len(times), first.shape[1], first.shape[0], reader.rate, seconds)


class VideoReader:
    """A video file open for reading.

    Raises:
        RecordError: ``image_missing``, or ``frame_missing`` where the file is no video.

    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _open(path) as container, _video_errors(path):
            stream = _video_stream(path, container)
            self.presentation_times = _presentation_times(path, container, stream)
            """Rising presentation times of all frames, in units of ``time_base``."""
            self.time_base = stream.time_base or Fraction(1)
            self.rate = stream.average_rate or stream.guessed_rate or Fraction(0)
        self._container: av.container.InputContainer = _open(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def frames(self, indices: Iterable[int]) -> Iterator[tuple[int, ByteArray]]:
        """Yield (index, (height, width, 3) RGB) for each of the rising ``indices``, decoding forward once.

        Call it once a reader. A frame that is missing ends it: the error names the frame, and those after it may still
        be readable by a new reader.

        Raises:
            RecordError: ``frame_missing``: The video ends before the frame, or the frame cannot be decoded.
            ValueError: The indices do not rise.

        """
        index_of_time: dict[int | None, int] = {time: index for index, time in enumerate(self.presentation_times)}
        with _video_errors(self._path):
            stream = _video_stream(self._path, self._container)
            stream.thread_type = "AUTO"
            decoded = ((index_of_time.get(frame.pts, -1), frame) for frame in self._container.decode(stream))
            at, frame = -1, None
            previous = -1
            for index in indices:
                if index <= previous:
                    raise ValueError(f"frame indices must rise from 0, got {index} after {previous}")
                if index >= len(self.presentation_times):
                    raise _missing(self._path, index, f"the video has {len(self.presentation_times)} frames")
                while at < index:
                    at, frame = next(decoded, (len(index_of_time), None))
                if at != index or frame is None:
                    raise _missing(self._path, index, "its data is there but does not decode")
                if frame.is_corrupt:
                    raise _missing(self._path, index, "it is damaged")
                image = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
                yield index, np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
                previous = index


def _presentation_times(
    path: Path, container: av.container.InputContainer, stream: av.video.stream.VideoStream
) -> list[int]:
    """Return the times of all frames that will be shown, in order, without decoding."""
    if container.format.name == "avi":
        raise RecordError(RejectReason.FRAME_MISSING, f"{path}: AVI carries no presentation times; convert it to MP4")
    shown, packets, last_decoded = set(), 0, None
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        packets, last_decoded = packets + 1, packet.dts
        if packet.pts is not None and not packet.is_discard:
            shown.add(packet.pts)
    if packets < stream.frames and last_decoded is not None:
        # The file is cut: of the frames after the last packet's decoding time, earlier ones may be among those lost.
        shown = {time for time in shown if time <= last_decoded}
    if not shown:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path} holds no video frames")
    return sorted(shown)


def _open(path: Path) -> av.container.InputContainer:
    with _video_errors(path):
        return av.open(str(path), options={"format_whitelist": _CONTAINERS})


def _video_stream(path: Path, container: av.container.InputContainer) -> av.video.stream.VideoStream:
    if not container.streams.video:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path} has no video stream")
    stream = container.streams.video[0]
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    return stream


@contextmanager
def _video_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise RecordError(RejectReason.IMAGE_MISSING, f"{path} does not exist") from None
    except av.FFmpegError as error:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path}: {error}") from None


def _missing(path: Path, index: int, problem: str) -> RecordError:
    return RecordError(RejectReason.FRAME_MISSING, f"{path}, frame {index}: {problem}")
