"""Reading files from outside: paths stay below the root, headers are checked, nothing is unpickled."""

import warnings
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from handdata.schemas.errors import RecordError, RejectReason

MAX_IMAGE_PIXELS = 178_956_970
"""More pixels than this are a decompression bomb; twice Pillow's own warning limit (about 13,000 x 13,000)."""

_FORMAT_OF_SUFFIX = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF"}


def resolve_below(root: Path, relative: str) -> Path:
    """Return ``root / relative``, where a label named ``relative``.

    Raises:
        RecordError: ``path_escapes_root``: the path is absolute or leaves ``root`` through ``..``.

    """
    parts = Path(relative.replace("\\", "/")).parts
    if not parts or Path(relative).is_absolute() or ".." in parts or "\0" in relative:
        raise RecordError(RejectReason.PATH_ESCAPES_ROOT, f"the label names {relative!r}, which is not below {root}")
    return root.joinpath(*parts)


def read_image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an image file from its header, without decoding pixels.

    Raises:
        RecordError: the file is missing, empty, unreadable, of another format than its suffix says, or too large.

    """
    try:
        with warnings.catch_warnings(), path.open("rb") as stream:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(stream) as image:
                (width, height), kind = image.size, image.format
    except FileNotFoundError:
        raise RecordError(RejectReason.IMAGE_MISSING, f"{path} does not exist") from None
    except Image.DecompressionBombError as error:
        raise RecordError(RejectReason.IMAGE_TOO_LARGE, f"{path}: {error}") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        if path.is_file() and path.stat().st_size == 0:
            raise RecordError(RejectReason.IMAGE_EMPTY, f"{path} has no bytes") from None
        raise RecordError(RejectReason.IMAGE_CORRUPT, f"{path}: {error}") from None
    if width * height > MAX_IMAGE_PIXELS:
        raise RecordError(RejectReason.IMAGE_TOO_LARGE, f"{path} announces {width} x {height} pixels")
    expected = _FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if expected is not None and kind != expected:
        raise RecordError(RejectReason.IMAGE_FORMAT_MISMATCH, f"{path} is named {path.suffix} but holds {kind}")
    return width, height


def read_npz(path: Path, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, NDArray[np.generic]]:
    """Return the named arrays of an ``.npz`` file; absent optional ones are left out. Pickled objects are refused.

    Raises:
        RecordError: ``label_missing``, ``label_unsafe`` (a pickled object) or ``label_corrupt``.

    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = [*required, *(name for name in optional if name in archive.files)]
            return {name: archive[name] for name in names}
    except FileNotFoundError:
        raise RecordError(RejectReason.LABEL_MISSING, f"{path} does not exist") from None
    except KeyError as error:
        raise RecordError(RejectReason.LABEL_CORRUPT, f"{path} lacks the array {error}") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        reason = RejectReason.LABEL_UNSAFE if "allow_pickle" in str(error) else RejectReason.LABEL_CORRUPT
        detail = "holds pickled objects, which are never loaded" if reason is RejectReason.LABEL_UNSAFE else str(error)
        raise RecordError(reason, f"{path}: {detail}") from None


def require_finite(path: Path, name: str, values: NDArray[np.generic]) -> None:
    """Raise ``label_not_finite`` where a label holds NaN or infinity.

    Raises:
        RecordError: naming the file and the field.

    """
    if not np.isfinite(values).all():
        raise RecordError(RejectReason.LABEL_NOT_FINITE, f"{path}: {name} holds NaN or infinity")
