"""``handdata sample video``: the files of generated videos."""

from pathlib import Path

from PIL import Image

from handdata.schemas.arrays import ByteArray


def write_film(file: Path, frames: ByteArray, fps: float) -> None:
    """Write the frames (T, H, W, 3) of a video as an animated WebP or GIF."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(file, save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
