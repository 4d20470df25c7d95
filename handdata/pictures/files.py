"""Files of pictures, in the format that their name asks for."""

from io import BytesIO
from pathlib import Path
from typing import Final

from PIL import Image

from handdata.schemas import UsageError

_FORMATS: Final = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_QUALITY: Final = 95
_LONGEST: Final = {"JPEG": 65_500, "WEBP": 16_383}
"""Largest width and height that a format can hold."""


def require_format(file: Path, *, alpha: bool = False, option: str = "--out") -> None:
    """Check that a picture can be written under a name.

    Args:
        file: File to write.
        alpha: Whether the picture has transparency.
        option: Option that gives the name.

    Raises:
        UsageError: The name asks for no format that is written here, or for one without transparency.

    """
    if file.suffix.lower() not in _FORMATS:
        *others, last = _FORMATS
        raise UsageError(
            f"{option} {file}: neither {', '.join(others)} nor {last}", "end the name with one of these, such as .png"
        )
    if alpha and _FORMATS[file.suffix.lower()] == "JPEG":
        raise UsageError(f"--out {file}: JPEG has no transparency, which the photograph has", "end the name with .png")


def encode_picture(picture: Image.Image, file: Path, *, exact: bool = False) -> tuple[bytes, Path]:
    """Return a picture as the content of a file, and the file's name: another, .png, where the format cannot hold it.

    The formats have their limits in size, and what was drawn for an hour is not to be lost to them.

    Args:
        picture: The picture; the colour profile and the EXIF block in its ``info`` are kept.
        file: Name of the file.
        exact: Whether a format that can keeps every pixel as it is.

    """
    kind = _FORMATS[file.suffix.lower()]
    if max(picture.size) > _LONGEST.get(kind, max(picture.size)):
        kind, file = "PNG", file.with_suffix(".png")
    stream = BytesIO()
    kept = {name: picture.info[name] for name in ("icc_profile", "exif") if name in picture.info}
    picture.save(stream, kind, quality=_QUALITY, lossless=exact, exact=exact, **kept)
    return stream.getvalue(), file
