"""PNG files of pictures."""

import cv2

from handdata.schemas.arrays import ByteArray


def encode_png(picture: ByteArray) -> bytes:
    """Return an RGB picture (H, W, 3) as the bytes of a PNG file."""
    return bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1])
