"""Frames of video files, named by their index in presentation order from 0.

A frame is found by its presentation time, as the packets announce it: B-frames, variable frame rates and packets that
the decoder drops do not shift the index, as they do where decoded frames are counted. (AVI has no such times and is
an error; no source ships it.) Images are turned as the file's display matrix says (phones record sideways), which is
what OpenCV and ffmpeg do by default and what the datasets' own labels therefore refer to; ``VideoInfo`` gives the size
after turning.

**Damage spreads.** Frames are predicted from others: a decoder that has lost one goes on from what it has, and the
smear looks like any other frame. So behind a damaged frame, in the order of decoding, none is handed on until a frame
that needs no other one: a key frame, or a recovery point that H.264 calls one. A frame that is shown before the
damaged one may be predicted from it, so each waits until all that were decoded before it are known.
"""

import re
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self, TypeAlias

import av
import numpy as np
from numpy.typing import NDArray

from handdata.adapters.reading.listing import NotRegularFileError, exists, is_file, open_file
from handdata.adapters.reading.matroska import find_damage
from handdata.adapters.reading.mp4 import Data, IndexDamagedError, read_layout
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
_NEVER_REORDERED: Final = frozenset({"vp8", "vp9", "av1", "mjpeg", "png"})
"""Codecs that show frames in the order in which they are decoded."""
_MOST_REORDERED: Final = 16
"""How many frames of other codecs are shown behind one that is decoded after them: as many as a decoder must keep."""
_DECODER_DELAY: Final = 64
"""Most packets that a decoder, with its threads, takes in before it reports that one of them is damaged."""
_NEVER: Final = -(2**63)
_MOST_PADDING: Final = 8
"""Zeros that a program may leave behind a unit of H.264; more are what is left of its data."""
_NEVER_IN_A_UNIT: Final = re.compile(rb"\0\0[\0-\2]")
"""Bytes that mark the beginning of a unit of H.264; within one, an encoder puts a 3 between them."""


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
            length_size = _nal_length_size(stream.codec_context)
            rank, last = -1, _NEVER
            for rank, packet in self._known_packets(self._container, stream):
                if length_size and not _is_well_formed(memoryview(packet), length_size):
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
    keys: dict[int, int]
    """Presentation time of the key frames by rank."""
    leading: set[int]
    """Ranks of frames that are decoded behind a key frame and shown before it: who starts there skips them."""
    has_hidden_frames: bool
    """Whether packets of this codec may hold no frame to show."""
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
        self._unnumbered: set[int] = set()
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
        elif is_clean and rank > self._clean_ranks[-1]:
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
            return "frames come in another order than the file says, so that their numbers are unknown"
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


def _codec_name(codec: av.codec.context.CodecContext) -> str:
    """Return the codec's name, whichever decoder reads it."""
    return codec.codec.canonical_name


def _nal_length_size(codec: av.codec.context.CodecContext) -> int:
    """Return how many bytes say how long each unit of an H.264 packet is; 0 of other codecs and streams."""
    extradata = codec.extradata or b""
    return (extradata[4] & 3) + 1 if _codec_name(codec) == "h264" and len(extradata) > 6 and extradata[0] == 1 else 0


def _is_well_formed(packet: memoryview, length_size: int) -> bool:
    """Return whether an H.264 packet is made of whole units, none of which holds what an encoder escapes.

    The decoder reads what stands before such bytes, fills up the rest of the image, and says nothing.
    """
    at = 0
    while at + length_size <= len(packet):
        start = at + length_size
        at = start + int.from_bytes(packet[at:start], "big")
        if at == start or at > len(packet):
            return False
        unit = bytes(packet[start:at])
        content = unit.rstrip(b"\0")
        holds_pixels = 1 <= unit[0] & 31 <= 5
        if holds_pixels and (len(unit) - len(content) > _MOST_PADDING or _NEVER_IN_A_UNIT.search(content)):
            return False
    return at == len(packet)


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
    image = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


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
    codec = _codec_name(stream.codec_context)
    must_rise = _never_reorders(stream.codec_context)
    packets = [_announced(packet, stream) for packet in container.demux() if packet.size]
    whole_until, broken_parts = _damage_of_file(path, container, packets, stream)
    problem = "" if whole_until is None else f"its file is damaged at byte {whole_until}"
    last_decoded, key_time, untimed = None, None, None
    for packet in packets:
        if not packet.is_video:
            continue
        if whole_until is not None and packet.position >= whole_until:
            break
        rank, last_decoded, time = len(latest), packet.decoded, packet.shown
        if any(begin <= packet.position < end for begin, end in broken_parts):
            broken.append(rank)
        latest.append(max(latest[-1:] + ([] if time is None or packet.is_discard else [time]), default=_NEVER))
        if time is None or packet.is_unclear:
            untimed = len(decoded) if untimed is None else untimed
            continue
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
    if len(latest) < stream.frames and last_decoded is not None:
        # The file is cut: of the frames after the last packet's decoding time, earlier ones may be among those lost.
        problem = "its file is cut"
        ranks = {time: rank for time, rank in ranks.items() if time <= last_decoded}
    shown = sorted(ranks)
    if whole_until is not None:
        shown = shown[: max(len(shown) - most_reordered, 0)]
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
        keys,
        leading,
        codec not in _SHOW_EVERY_FRAME,
        codec != "h264",
        problem,
    )


def _announced(packet: _Packet, video: av.video.stream.VideoStream) -> _Announced:
    is_video, codec = packet.stream_index == video.index, _codec_name(video.codec_context)
    return _Announced(
        is_video,
        -1 if packet.pos is None else packet.pos,
        packet.size,
        packet.pts,
        packet.dts,
        packet.is_keyframe,
        packet.is_discard,
        is_video and not packet.is_discard and _is_shown(packet, codec),
        is_video and codec == "vp8" and not _has_vp8_head(bytes(memoryview(packet)[:6]), packet.size),
        packet.is_corrupt,
    )


def _damage_of_file(
    path: Path,
    container: av.container.InputContainer,
    packets: list[_Announced],
    stream: av.video.stream.VideoStream,
) -> tuple[int | None, list[tuple[int, int]]]:
    """Return the byte of a file from which on frames may be lost, if any, and where other damage begins and ends."""
    if "matroska" in container.format.name:
        damage = find_damage(path)
        return damage.position, damage.clusters
    return _whole_until(path, container, packets, stream), []


def _whole_until(
    path: Path,
    container: av.container.InputContainer,
    packets: list[_Announced],
    stream: av.video.stream.VideoStream,
) -> int | None:
    """Return the byte of an MP4 from which on frames may be lost; None where there is none."""
    try:
        layout = read_layout(path)
    except IndexDamagedError as error:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path}: its index is damaged: {error}") from None
    is_dense = all(each.discard != av.stream.Discard.all for each in container.streams)  # it gives no chapters
    if not layout.has_fragments:
        is_judged = is_dense and not layout.hides_last and _codec_name(stream.codec_context) in _NEVER_REORDERED
        if is_judged and _has_gap(layout.data, packets):
            raise RecordError(RejectReason.FRAME_MISSING, f"{path}: its index is damaged: it leaves out some data")
        return None
    video = [packet for packet in packets if packet.is_video]
    wrong = [after.position for before, after in pairwise(video) if after.position < before.position]
    wrong += [packet.position for packet in video if packet.is_corrupt or packet.is_discard]
    if is_dense:
        spans = sorted((packet.position, packet.position + packet.size) for packet in packets)
        wrong += _first_hole(layout.data, spans)
    if layout.whole_until is not None:
        wrong.append(layout.whole_until)
    return min(wrong, default=None)


def _has_gap(data: list[Data], packets: list[_Announced]) -> bool:
    """Return whether behind a packet of the video there is neither another packet nor the end of the data."""
    begins = {packet.position for packet in packets} | {box.end for box in data}
    return not begins.issuperset(packet.position + packet.size for packet in packets if packet.is_video)


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


def _is_shown(packet: _Packet, codec: str) -> bool:
    """Return whether a packet holds a frame to show; those of VP8 may hold one that others are predicted from."""
    return codec != "vp8" or bool(bytes(memoryview(packet)[:1])[0] & 16)


def _has_vp8_head(head: bytes, size: int) -> bool:
    """Return whether a packet of VP8 begins as one: the head tells whether its frame is shown."""
    is_key, first_part = not head[0] & 1, int.from_bytes(head[:3], "little") >> 5
    return 0 < first_part <= size - (10 if is_key else 3) and (not is_key or head[3:6] == b"\x9d\x01\x2a")


def _never_reorders(codec: av.video.codeccontext.VideoCodecContext) -> bool:
    """Return whether frames are shown in the order in which they are decoded, whatever the file says."""
    name = _codec_name(codec)
    return name in _NEVER_REORDERED or (name == "mpeg4" and not codec.has_b_frames)


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
    moved = np.argsort(np.argsort(times, kind="stable")) - np.arange(len(times))
    wrong = np.flatnonzero(np.abs(moved) > _MOST_REORDERED)
    return int(wrong[0]) if len(wrong) else None


def _open(path: Path) -> av.container.InputContainer:
    if exists(path) and not is_file(path):  # ffmpeg would wait for a pipe
        raise RecordError(RejectReason.FRAME_MISSING, f"{path} is no file")
    with _video_errors(path):
        return av.open(str(path), options={"format_whitelist": _CONTAINERS}, metadata_errors="replace")


def _video_stream(path: Path, container: av.container.InputContainer) -> av.video.stream.VideoStream:
    if not container.streams.video:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path} has no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise RecordError(RejectReason.FRAME_MISSING, f"{path} has a video of a codec that is not known")
    options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    if _codec_name(stream.codec_context) in _SILENT_ABOUT_DAMAGE:
        options["err_detect"] = "bitstream+buffer+explode"
    stream.codec_context.options = options
    return stream


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
