"""Files of videos, in the format that their name asks for."""

from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from handdata.schemas import UsageError
from handdata.schemas.arrays import ByteArray

FORMATS: Final = (".mp4", ".webp", ".gif")
FASTEST_GIF_FPS: Final = 50
"""Frames per second: browsers show a frame of less than 20 ms for 100 ms."""
_QUALITY: Final = 95
_CONSTANT_RATE_FACTOR: Final = 12
"""Of x264: 18 is hardly told from the original."""
_BT_601: Final = 6
"""Number of the matrix, the primaries and the transfer of ITU-R BT.601 in H.264 (table E-3 to E-5)."""


def require_film_format(file: Path) -> None:
    """Check that a video can be written under a name.

    Raises:
        UsageError: The name asks for another format.

    """
    if file.suffix.lower() not in FORMATS:
        *others, last = FORMATS
        raise UsageError(f"--out {file}: neither {', '.join(others)} nor {last}", "end the name with one of these")


def encode_film(frames: ByteArray, file: Path, fps: float) -> bytes:
    """Return frames (T, H, W, 3) RGB as the content of a video file, in the format that its name asks for.

    MP4 is H.264, which has even sizes only: an odd one gets its last row or column twice. Pillow shows a frame that is
    equal to the one before as one longer frame.
    """
    if file.suffix.lower() == ".mp4":
        return _encode_h264(frames, fps)
    stream = BytesIO()
    first, *others = [Image.fromarray(frame) for frame in frames]
    kind, tick_ms = ("GIF", 10) if file.suffix.lower() == ".gif" else ("WEBP", 1)
    # Whole ticks whose sum stays that of the rate: 24 frames a second are 40 and 50 ms in a GIF.
    ends = np.maximum(np.round(np.arange(len(frames) + 1) * 1000 / fps / tick_ms), np.arange(len(frames) + 1)) * tick_ms
    durations = np.diff(ends).astype(int).tolist()
    first.save(stream, kind, save_all=True, append_images=others, duration=durations, loop=0, quality=_QUALITY)
    return stream.getvalue()


def _encode_h264(frames: ByteArray, fps: float) -> bytes:
    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    content = BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(_CONSTANT_RATE_FACTOR)}
        )
        stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
        # Players guess the colours of a small video that does not name them.
        codec = stream.codec_context
        codec.colorspace, codec.color_primaries, codec.color_trc = _BT_601, _BT_601, _BT_601
        codec.color_range = ColorRange.MPEG
        for frame in even:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return content.getvalue()
