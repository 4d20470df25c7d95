"""Frames of video files, named by their index in presentation order from 0.

A frame is found by its presentation time, as the packets announce it: B-frames, variable frame rates and packets that
the decoder drops do not shift the index, as they do where decoded frames are counted. (AVI has no such times and is
an error; no source ships it.) Images are turned, and mirrored, as the file's display matrix says (phones record
sideways), which is what ffmpeg does by default and what the datasets' own labels therefore refer to; ``VideoInfo``
gives the size after turning.

**Damage spreads.** Frames are predicted from others: a decoder that has lost one goes on from what it has, and the
smear looks like any other frame. So behind a damaged frame, in the order of decoding, none is handed on until a frame
that needs no other one: a key frame, or a recovery point that H.264 calls one. A frame that is shown before the
damaged one may be predicted from it, so each waits until all that were decoded before it are known.
"""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeAlias

import av
import numpy as np
from numpy.typing import NDArray

from handdata.adapters.reading.listing import NotRegularFileError, exists, is_file, open_file
from handdata.adapters.reading.matroska import find_damage
from handdata.adapters.reading.mp4 import Data, IndexDamagedError, Layout, read_layout
from handdata.adapters.reading.packets import check_of, codec_name, has_vp8_head, is_shown
from handdata.schemas.arrays import ByteArray
from handdata.schemas.errors import RecordError, RejectReason

MAX_FRAME_PIXELS: Final = 2**26
"""More than 8K video has; a header that announces more would have the decoder fill memory."""
_Packet: TypeAlias = "av.Packet[av.stream.Stream]"
_VideoPacket: TypeAlias = "av.Packet[av.video.stream.VideoStream]"
_CONTAINERS: Final = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
"""FFmpeg knows some that name other files, a playlist among them: a "video" must not lead out of the dataset."""
_SHOW_EVERY_FRAME: Final = frozenset({"h264", "hevc", "mjpeg", "png"})
"""Codecs without hidden frames: where one does not come, it is lost."""
_SILENT_ABOUT_DAMAGE: Final = frozenset({"hevc", "mpeg4", "mjpeg"})
"""Codecs whose decoder hides damage unless it is strict: of 12 damaged files each, 5 of HEVC and 1 of MPEG-4 then gave
smeared frames, 2 and none with a strict one; of MJPEG 23 of 40 with a run of 0xff, and 1 with a strict one. A strict
decoder of H.264 finds no more, and that of VP8, VP9 and AV1 neither. Checksums of HEVC are not used: with threads,
FFmpeg finds fault with healthy frames."""
_MOST_REORDERED: Final = 16
"""How many frames may be shown behind one that is decoded after them: as many as a decoder must keep."""
_DECODER_DELAY: Final = 64
"""Most packets that a decoder, with its threads, takes in before it reports that one of them is damaged."""
_NEVER: Final = -(2**63)


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
    """Return size, rate and presentation times from the container; images are decoded up to the first good one.

    (PyAV gives the display matrix only with a decoded frame.)

    Raises:
        RecordError: ``image_missing``, or ``frame_missing`` where the file is no video or no frame of it decodes.
        DatasetReadError: The file cannot be read.

    """
    with _video_errors(path), open_file(path) as stream:
        stream.read(1)  # a disk that is away ends the ingest; to ffmpeg it is one more kind of damage
    with VideoReader(path) as reader:
        times = reader.presentation_times
        found = (image for _, image in reader.read(range(len(times))))
        first = next((image for image in found if not isinstance(image, RecordError)), None)
        if first is None:
            raise RecordError(RejectReason.FRAME_MISSING, f"{path}: none of its {len(times)} frames decodes")
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
            self._packets = _read_packets(path, container, stream)
            self.presentation_times = self._packets.shown
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

        Call it, or ``read``, once a reader. A frame that is missing ends it.

        Raises:
            RecordError: ``frame_missing``: The video ends before the frame, the frame cannot be decoded, or it is
                predicted from one that cannot.
            ValueError: The indices do not rise.

        """
        for index, image in self.read(indices):
            if isinstance(image, RecordError):
                raise image
            yield index, image

    def read(self, indices: Iterable[int]) -> Iterator[tuple[int, ByteArray | RecordError]]:
        """Yield what ``frames`` does, with the error in the place of a frame that is missing, and go on behind it.

        Raises:
            ValueError: The indices do not rise.

        """
        wanted = _rising(indices)
        settled = self._settled()
        at, frame = -1, None
        for index in wanted:
            if index >= len(self.presentation_times):
                yield index, _missing(self._path, index, self._end())
                continue
            while at < index:
                at, frame = next(settled, (len(self.presentation_times), "its data is there but does not decode"))
            if isinstance(frame, av.VideoFrame) and at == index:
                try:
                    yield index, _rgb(frame)
                except av.FFmpegError as error:
                    yield index, _missing(self._path, index, str(error))
            else:
                problem = frame if isinstance(frame, str) and at == index else "its data is there but does not decode"
                yield index, _missing(self._path, index, problem)

    def _end(self) -> str:
        frames = len(self.presentation_times)
        if not self._packets.problem:
            return f"the video has {frames} frames"
        return f"{self._packets.problem}, and only the first {frames} frames are known by number"

    def _settled(self) -> Iterator[tuple[int, av.VideoFrame | str]]:
        """Yield each decoded frame, or what is wrong with it, by its index, once all that it may need are known."""
        index_of_time = {time: index for index, time in enumerate(self.presentation_times)}
        damage = _Damage(self._packets)
        waiting: deque[tuple[int, av.VideoFrame]] = deque()
        for frame in self._decoded(damage):
            if frame.pts is None or frame.pts not in index_of_time:
                continue
            damage.note(frame.pts, frame.is_corrupt, frame.key_frame)
            waiting.append((frame.pts, frame))
            while waiting and damage.is_known(waiting[0][0], frame.pts):
                time, ready = waiting.popleft()
                yield index_of_time[time], damage.problem(time) or ready
        damage.note_end()
        for time, ready in waiting:
            yield index_of_time[time], damage.problem(time) or ready

    def _decoded(self, damage: "_Damage") -> Iterator[av.VideoFrame]:
        """Yield what the decoder makes of the packets; it goes on behind those that it fails on."""
        with _video_errors(self._path):
            stream = _video_stream(self._path, self._container)
            stream.thread_type = "AUTO"
            is_whole = check_of(stream.codec_context)
            rank, last = -1, _NEVER
            for rank, packet in self._known_packets(self._container, stream):
                if not is_whole(bytes(packet)):
                    damage.note_broken(rank)
                try:
                    frames = packet.decode()
                except av.InvalidDataError:
                    damage.note_failure(rank)
                    continue
                for frame in frames:
                    last = last if frame.pts is None else max(last, frame.pts)
                    yield frame
            try:
                frames = stream.codec_context.decode(None)
            except av.InvalidDataError:
                damage.note_failure(rank)
                frames = []
            if {frame.pts for frame in frames}.issuperset(self._packets.shown_after(last)):
                yield from frames
            else:  # a thread that fails takes along what the others hold
                yield from self._decoded_again(damage, last)

    def _decoded_again(self, damage: "_Damage", last: int) -> Iterator[av.VideoFrame]:
        """Yield the frames behind the time ``last`` up to the end, decoded one by one from the key frame before."""
        begin = max((rank for rank, time in self._packets.keys.items() if time <= last), default=0)
        with _open(self._path) as container:
            stream = _video_stream(self._path, container)
            stream.codec_context.thread_count = 1
            for rank, packet in self._known_packets(container, stream):
                if rank < begin:
                    continue
                try:
                    frames = packet.decode()
                except av.InvalidDataError:
                    damage.note_failure(rank)
                    continue
                yield from _behind(last, frames)
            try:
                yield from _behind(last, stream.codec_context.decode(None))
            except av.InvalidDataError:
                damage.note_failure(len(self._packets.latest) - 1)

    def _known_packets(
        self, container: av.container.InputContainer, stream: av.video.stream.VideoStream
    ) -> Iterator[tuple[int, _VideoPacket]]:
        """Yield the packets before any damage of the file, each with its place in the order of decoding."""
        packets = (packet for packet in container.demux(stream) if packet.size)
        yield from zip(range(len(self._packets.latest)), packets, strict=False)


@dataclass(frozen=True, slots=True)
class _Packets:
    """What the packets of a stream announce, in the order of decoding."""

    shown: list[int]
    """Rising presentation times of all frames that will be shown and whose number is known."""
    ranks: dict[int, int]
    """Place in the order of decoding by presentation time, of ``shown`` and of the frames whose number is unknown."""
    latest: list[int]
    """Latest presentation time of any packet up to each rank, so that frames are known when it has been passed."""
    broken: list[int]
    """Rising ranks of packets whose data may not be what was written."""
    unnumbered: set[int]
    """Presentation times of frames that may have changed places with one whose time may not be what was written."""
    keys: dict[int, int]
    """Presentation time of the key frames by rank."""
    leading: set[int]
    """Ranks of frames that are decoded behind a key frame and shown before it: who starts there skips them."""
    has_hidden_frames: bool
    """Whether packets of this codec may hold no frame to show."""
    has_recovery_points: bool
    """Whether a frame may need no other one although its packet is not that of a key frame.

    (The decoder of AV1 says it, too, of frames that it shows again, and shows any where the one to show is lost.)
    """
    skips_leading: bool
    """Whether the decoder may skip ``leading`` frames in the middle of an undamaged video, too, as at a splice."""
    problem: str
    """Why there are no more frames of known number than those of ``shown``; empty where these are all."""

    def shown_after(self, time: int) -> list[int]:
        """Return the times of the frames that are shown behind a time."""
        return self.shown[bisect_right(self.shown, time) :]


class _Announced(NamedTuple):
    """What a packet announces; its times are those of the edit list."""

    is_video: bool
    position: int
    size: int
    shown: int | None
    decoded: int | None
    is_key: bool
    is_discard: bool
    is_shown: bool
    is_unclear: bool
    """Whether it may hold a frame to show, or not."""
    is_corrupt: bool


class _Damage:
    """Which frames of a stream are damaged, or may be predicted from one that is."""

    def __init__(self, packets: _Packets) -> None:
        self._packets = packets
        self._passed = 0
        """Number of ``shown`` frames of which it is known whether the decoder gave them."""
        self._last = _NEVER
        self._is_out_of_order = False
        self._unnumbered = set(packets.unnumbered)
        self._damaged: list[int] = [*packets.broken]
        self._failures: list[int] = []
        self._clean_ranks: list[int] = [0]
        self._clean_times: list[int] = [packets.shown[0]]

    def note_failure(self, rank: int) -> None:
        """Take note that the decoder failed when it was given the packet of this rank, on it or on one before it."""
        self._failures.append(rank)

    def note_broken(self, rank: int) -> None:
        """Take note that the packet of this rank is damaged, whatever the decoder makes of it."""
        insort(self._damaged, rank)

    def note(self, time: int, is_corrupt: bool, is_clean: bool) -> None:
        """Take note of a frame that the decoder gave; those that should have come before it did not come.

        Args:
            time: Presentation time.
            is_corrupt: Whether the decoder filled up what it could not read.
            is_clean: Whether the frame needs no other one.

        """
        self._is_out_of_order |= self._is_late(time) or self._is_early(time)
        if self._is_out_of_order:
            self._unnumbered.add(time)
        self._last = time
        self._note_passed(time)
        rank = self._packets.ranks[time]
        if is_corrupt:
            insort(self._damaged, rank)
        elif (
            is_clean
            and rank > self._clean_ranks[-1]
            and (self._packets.has_recovery_points or rank in self._packets.keys)
        ):
            self._clean_ranks.append(rank)
            self._clean_times.append(time)

    def _is_late(self, time: int) -> bool:
        """Return whether a frame came behind one that is shown after it, and no damage says why."""
        return time < self._last and not self._is_near_damage(self._packets.ranks[time])

    def _is_early(self, time: int) -> bool:
        """Return whether a frame came before others that should precede it, and no damage says why they did not come.

        The times of the file are wrong, then: decoders give frames in the right order.
        """
        packets = self._packets
        if packets.has_hidden_frames or (self._last == _NEVER and 0 not in packets.keys):
            return False
        for place in range(self._passed, bisect_left(packets.shown, time)):
            rank = packets.ranks[packets.shown[place]]
            may_be_skipped = rank in packets.leading and (packets.skips_leading or self._clean_ranks[-1] == 0)
            if not may_be_skipped and not self._is_near_damage(rank):
                return True
        return False

    def _is_near_damage(self, rank: int) -> bool:
        near = rank - _DECODER_DELAY, rank + _DECODER_DELAY
        return _has_between(self._failures, *near) or _has_between(self._damaged, *near)

    def note_end(self) -> None:
        """Take note that no frame comes any more."""
        self._note_passed(self._packets.shown[-1] + 1)

    def _note_passed(self, time: int) -> None:
        shown = self._packets.shown
        while self._passed < len(shown) and shown[self._passed] < time:
            rank = self._packets.ranks[shown[self._passed]]
            if self._is_loss(rank):
                insort(self._damaged, rank)
            self._passed += 1
        if self._passed < len(shown) and shown[self._passed] == time:
            self._passed += 1

    def _is_loss(self, rank: int) -> bool:
        """Return whether a frame that did not come is damage, rather than one that was never to be shown."""
        if _has_between(self._failures, rank, rank + _DECODER_DELAY):
            return True
        return not self._packets.has_hidden_frames and rank not in self._packets.leading

    def is_known(self, time: int, passed: int) -> bool:
        """Return whether all that a frame may need was passed, where the decoder has given frames up to ``passed``."""
        return self._packets.latest[self._packets.ranks[time]] <= passed

    def problem(self, time: int) -> str | None:
        """Return why a frame must not be handed on."""
        if time in self._unnumbered:
            return "the order of the frames around it is unknown, and so is its number"
        rank = self._packets.ranks[time]
        clean = bisect_right(self._clean_ranks, rank) - 1
        while clean > 0 and self._clean_times[clean] > time:
            clean -= 1
        first = bisect_left(self._damaged, self._clean_ranks[clean])
        if first == len(self._damaged) or self._damaged[first] > rank:
            return None
        last = bisect_right(self._damaged, rank)
        if self._damaged[last - 1] == rank:
            return "it is damaged"
        return "it is predicted from a damaged frame, and no key frame lies between"


def _has_between(rising: list[int], first: int, last: int) -> bool:
    return bisect_left(rising, first) < bisect_right(rising, last)


def _behind(time: int, frames: list[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    return (frame for frame in frames if frame.pts is not None and frame.pts > time)


def _rising(indices: Iterable[int]) -> Iterator[int]:
    previous = -1
    for index in indices:
        if index <= previous:
            raise ValueError(f"frame indices must rise from 0, got {index} after {previous}")
        yield index
        previous = index


def _rgb(frame: av.VideoFrame) -> ByteArray:
    """Return the pixels of a frame as players show it: turned, or mirrored, as its display matrix says."""
    image = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return np.ascontiguousarray(image)
    # Rows are the images of the axes x and y, as in MP4 (ISO/IEC 14496-12, 8.3.2); turns by less than 90 degrees
    # are of no camera.
    (x_to_x, x_to_y, _), (y_to_x, y_to_y, _), _ = (
        np.frombuffer(memoryview(matrix)[:36], np.int32).reshape(3, 3).tolist()
    )
    if abs(x_to_y) > abs(x_to_x):
        image, x_to_x, y_to_y = image.swapaxes(0, 1), y_to_x, x_to_y
    return np.ascontiguousarray(image[:: -1 if y_to_y < 0 else 1, :: -1 if x_to_x < 0 else 1])


def _read_packets(path: Path, container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> _Packets:
    """Return when the frames will be shown, and in which order they are decoded, without decoding."""
    if container.format.name == "avi":
        raise RecordError(RejectReason.FRAME_MISSING, f"{path}: AVI carries no presentation times; convert it to MP4")
    ranks: dict[int, int] = {}
    latest: list[int] = []
    broken: list[int] = []
    keys: dict[int, int] = {}
    leading: set[int] = set()
    decoded: list[int] = []
    times: list[int] = []
    codec = codec_name(stream.codec_context)
    must_rise = _never_reorders(stream.codec_context)
    packets = [
        _announced(packet, stream) for packet in container.demux() if packet.size and not _is_picture(packet.stream)
    ]
    found = _damage_of_file(path, container, packets, stream)
    whole_until = found.whole_until
    problem = "" if whole_until is None else f"its file is damaged at byte {whole_until}"
    last_decoded, key_time, untimed = None, None, None
    for packet in packets:
        if not packet.is_video:
            continue
        if whole_until is not None and packet.position >= whole_until:
            break
        rank, last_decoded, time = len(latest), packet.decoded, packet.shown
        is_broken = any(begin <= packet.position < end for begin, end in found.broken)
        if is_broken:
            broken.append(rank)
        latest.append(max(latest[-1:] + ([] if time is None or packet.is_discard else [time]), default=_NEVER))
        if time is None or packet.is_unclear or (is_broken and codec == "vp8"):
            untimed = len(decoded) if untimed is None else untimed
            continue
        if not packet.is_discard:
            times.append(time)
        if packet.is_key:
            key_time = keys[rank] = time
        elif key_time is not None and time < key_time:
            leading.add(rank)
        else:
            key_time = None
        if packet.is_shown:
            ranks.setdefault(time, rank)
            decoded.append(time)
    is_reordered = not must_rise and (stream.codec_context.has_b_frames or any(np.diff(times) <= 0))
    most_reordered = _MOST_REORDERED if is_reordered else 0
    unnumbered = _unnumbered(ranks, broken)
    if found.is_cut and last_decoded is not None:
        # Of the frames after the last packet's decoding time, earlier ones may be among those lost.
        problem = "its file is cut"
        ranks = {time: rank for time, rank in ranks.items() if time <= last_decoded}
    shown = sorted(ranks)
    if whole_until is not None:
        shown = shown[: max(len(shown) - max(most_reordered, found.may_overrun), 0)]
    places = (untimed, _first_doubtful(decoded, must_rise), _first_misplaced(times))
    doubtful = min((place for place in places if place is not None), default=None)
    if doubtful is not None:
        problem = problem or f"its file gives a wrong time to one of the frames from {doubtful} on"
        shown = shown[: max(doubtful - most_reordered, 0)]
    if not shown:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path} holds no video frames{problem and ': '}{problem}")
    return _Packets(
        shown,
        ranks,
        latest,
        broken,
        unnumbered,
        keys,
        leading,
        codec not in _SHOW_EVERY_FRAME,
        codec == "h264",
        codec != "h264",
        problem,
    )


def _announced(packet: _Packet, video: av.video.stream.VideoStream) -> _Announced:
    is_video, codec = packet.stream_index == video.index, codec_name(video.codec_context)
    return _Announced(
        is_video,
        -1 if packet.pos is None else packet.pos,
        packet.size,
        packet.pts,
        packet.dts,
        packet.is_keyframe,
        packet.is_discard,
        is_video and not packet.is_discard and is_shown(packet, codec),
        is_video and codec == "vp8" and not has_vp8_head(bytes(memoryview(packet)[:6]), packet.size),
        packet.is_corrupt,
    )


def _unnumbered(ranks: dict[int, int], broken: list[int]) -> set[int]:
    """Return the times of frames that may have changed places with one of a broken part, whose time may be wrong.

    Args:
        ranks: Place in the order of decoding by presentation time.
        broken: Rising ranks of the packets of broken parts.

    """
    by_rank = {rank: time for time, rank in ranks.items()}
    whole = [by_rank[rank] for rank in sorted(set(by_rank).difference(broken))]
    most_reordered = 2 * int(np.abs(_moved(whole)).max(initial=0))
    ends = [place for place in range(1, len(broken)) if broken[place] > broken[place - 1] + 1]
    found: set[int] = set()
    for begin, end in pairwise([0, *ends, len(broken)]) if broken else ():
        part = broken[begin:end]
        times = [by_rank[rank] for rank in part if rank in by_rank]
        for time, rank in ranks.items():
            is_near = part[0] - most_reordered <= rank <= part[-1] + most_reordered
            is_before = rank < part[0] and time > min(times, default=time)
            is_behind = rank > part[-1] and time < max(times, default=time)
            if not part[0] <= rank <= part[-1] and (is_near or is_before or is_behind):
                found.add(time)
    return found


class _FileDamage(NamedTuple):
    """What of a file is damaged."""

    whole_until: int | None
    """Byte from which on frames may be lost."""
    broken: list[tuple[int, int]]
    """First byte and end of other parts that are not what was written."""
    is_cut: bool
    """Whether the file ends before the data of its last frames."""
    may_overrun: bool
    """Whether the last packet before ``whole_until`` may be longer than it was."""


def _damage_of_file(
    path: Path,
    container: av.container.InputContainer,
    packets: list[_Announced],
    stream: av.video.stream.VideoStream,
) -> _FileDamage:
    if "matroska" in container.format.name:
        damage = find_damage(path)
        return _FileDamage(damage.position, damage.clusters, False, damage.position is not None)
    try:
        layout = read_layout(path)
    except IndexDamagedError as error:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path}: its index is damaged: {error}") from None
    video = [packet for packet in packets if packet.is_video]
    if layout.leaves_out_data and not stream.codec_context.codec.reorder:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path}: its index is damaged: it leaves out some data")
    if layout.frames and len(video) not in layout.frames:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path}: its index is damaged: it names data that is not there")
    whole_until = _whole_until(layout, container, packets, video) if layout.has_fragments else None
    return _FileDamage(whole_until, [], layout.is_cut, False)


def _whole_until(
    layout: Layout, container: av.container.InputContainer, packets: list[_Announced], video: list[_Announced]
) -> int | None:
    """Return the byte of an MP4 in fragments from which on frames may be lost; None where there is none."""
    wrong = [after.position for before, after in pairwise(video) if after.position < before.position]
    wrong += [packet.position for packet in video if packet.is_corrupt or packet.is_discard]
    if all(each.discard != av.stream.Discard.all for each in container.streams):  # it gives no chapters
        spans = sorted((packet.position, packet.position + packet.size) for packet in packets)
        wrong += _first_hole(layout.data, spans)
    if layout.whole_until is not None:
        wrong.append(layout.whole_until)
    return min(wrong, default=None)


def _first_hole(data: list[Data], packets: list[tuple[int, int]]) -> list[int]:
    """Return where the first data begins that is not made of whole packets, side by side, if there is such data."""
    place = 0
    for start, end, named in data:
        at, first = start, place
        while at < end and place < len(packets) and packets[place][0] == at:
            at, place = packets[place][1], place + 1
        if at != end or place - first != (place - first if named is None else named):
            return [start]
    return [packets[place][0]] if place < len(packets) else []


def _never_reorders(codec: av.video.codeccontext.VideoCodecContext) -> bool:
    """Return whether frames are shown in the order in which they are decoded, whatever the file says."""
    return not codec.codec.reorder or (codec_name(codec) == "mpeg4" and not codec.has_b_frames)


def _first_doubtful(decoded: list[int], must_rise: bool) -> int | None:
    """Return the first place in the order of decoding from which times cannot be right, as they repeat or fall."""
    if must_rise:
        least = np.minimum.accumulate(np.array(decoded[::-1], dtype=np.int64))[::-1]
        wrong = np.flatnonzero(np.array(decoded[:-1], dtype=np.int64) >= least[1:])
        return int(wrong[0]) if len(wrong) else None
    seen: dict[int, int] = {}
    return min(
        (first for rank, time in enumerate(decoded) if (first := seen.setdefault(time, rank)) < rank), default=None
    )


def _first_misplaced(times: list[int]) -> int | None:
    """Return the first place in the order of decoding of a frame that is shown too long before or after it."""
    wrong = np.flatnonzero(np.abs(_moved(times)) > _MOST_REORDERED)
    return int(wrong[0]) if len(wrong) else None


def _moved(times: list[int]) -> NDArray[np.intp]:
    """Return by how many places each frame is shown later than it is decoded."""
    return np.argsort(np.argsort(times, kind="stable")) - np.arange(len(times))


def _open(path: Path) -> av.container.InputContainer:
    if exists(path) and not is_file(path):  # ffmpeg would wait for a pipe
        raise RecordError(RejectReason.FRAME_MISSING, f"{path} is no file")
    with _video_errors(path):
        return av.open(str(path), options={"format_whitelist": _CONTAINERS}, metadata_errors="replace")


def _video_stream(path: Path, container: av.container.InputContainer) -> av.video.stream.VideoStream:
    stream = next((each for each in container.streams.video if not _is_picture(each)), None)
    if stream is None:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path} has no video stream")
    if stream.codec_context is None:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path} has a video of a codec that is not known")
    options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    if codec_name(stream.codec_context) in _SILENT_ABOUT_DAMAGE:
        options["err_detect"] = "bitstream+buffer+explode"
    stream.codec_context.options = options
    return stream


def _is_picture(stream: av.stream.Stream) -> bool:
    """Return whether a stream is a picture that a program shows for the file, as the cover of a film."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


@contextmanager
def _video_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise RecordError(RejectReason.IMAGE_MISSING, f"{path} does not exist") from None
    except (av.FFmpegError, NotRegularFileError) as error:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path}: {error}") from None


def _missing(path: Path, index: int, problem: str) -> RecordError:
    return RecordError(RejectReason.FRAME_MISSING, f"{path}, frame {index}: {problem}")
