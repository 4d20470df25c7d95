"""Model files: what they are, and where they lie on this machine.

They are searched for in this order: the path given by a flag, the folder ``HANDDATA_WEIGHTS``, an installed package
that ships the file, the download cache. Last, the pinned URL is downloaded and its SHA-256 checked.
"""

import hashlib
import importlib.util
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from handdata.schemas import WeightsError

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """One published model file.

    Args:
        name: Its name in ``handdata weights``.
        filename: Published file name.
        url: Address where it is published.
        size_bytes: Exact size.
        sha256: SHA-256 of the whole file.
        purpose: Its use, in a few words.
        package: Importable package that ships the same file, or empty.

    """

    name: str
    filename: str
    url: str
    size_bytes: int
    sha256: str
    purpose: str
    package: str = ""


_SAM_URL: Final = "https://dl.fbaipublicfiles.com/segment_anything"

WEIGHTS: Final[dict[str, WeightsFile]] = {
    file.name: file
    for file in (
        WeightsFile(
            name="hand_landmarker",
            filename="hand_landmarker.task",
            url="https://storage.googleapis.com/mediapipe-models/hand_landmarker/hand_landmarker/float16/1/"
            "hand_landmarker.task",
            size_bytes=7_819_105,
            sha256="fbc2a30080c3c557093b5ddfc334698132eb341044ccee322ccf8bcf3607cde1",
            purpose="MediaPipe hand keypoints",
            package="hand_tracking",
        ),
        WeightsFile(
            name="sam_vit_h",
            filename="sam_vit_h_4b8939.pth",
            url=f"{_SAM_URL}/sam_vit_h_4b8939.pth",
            size_bytes=2_564_550_879,
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            purpose="SAM masks, the published choice",
        ),
        WeightsFile(
            name="sam_vit_l",
            filename="sam_vit_l_0b3195.pth",
            url=f"{_SAM_URL}/sam_vit_l_0b3195.pth",
            size_bytes=1_249_524_607,
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            purpose="SAM masks, smaller",
        ),
        WeightsFile(
            name="sam_vit_b",
            filename="sam_vit_b_01ec64.pth",
            url=f"{_SAM_URL}/sam_vit_b_01ec64.pth",
            size_bytes=375_042_383,
            sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            purpose="SAM masks, smallest",
        ),
    )
}
"""All model files that handdata can use, by name."""


def cache_folder() -> Path:
    """Return the folder of downloads: ``$XDG_CACHE_HOME/handdata/weights`` or ``~/.cache/handdata/weights``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "handdata" / "weights"


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_weights(name: str, folder: Path | None = None) -> Path | None:
    """Return the path of a model file on this machine, without downloading it; None where it is missing.

    Args:
        name: Key of ``WEIGHTS``.
        folder: The user's weights folder, searched first.

    """
    file = WEIGHTS[name]
    paths = [folder / file.filename] if folder else []
    if file.package and (package := importlib.util.find_spec(file.package)) is not None:
        paths += [Path(location) / file.filename for location in package.submodule_search_locations or ()]
    paths.append(cache_folder() / file.filename)
    return next((path for path in paths if path.is_file()), None)


def require_weights(
    name: str, folder: Path | None = None, on_progress: Callable[[int, int], None] | None = None
) -> Path:
    """Return the path of a model file; a missing one is downloaded to the cache.

    Args:
        name: Key of ``WEIGHTS``.
        folder: The user's weights folder, searched first.
        on_progress: Function called with (bytes so far, bytes in all) during a download.

    Raises:
        WeightsError: The file is missing and cannot be downloaded, or the download is not the published file.

    """
    found = find_weights(name, folder)
    if found is not None:
        return found
    file = WEIGHTS[name]
    target = cache_folder() / file.filename
    try:
        _download(file, target, on_progress or (lambda done, total: None))
    except (urllib.error.URLError, OSError, TimeoutError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        wanted = (folder or target.parent) / file.filename
        raise WeightsError(
            f"the model file {file.filename} ({file.purpose}) is not on this machine and cannot be downloaded: {error}",
            f"put it at {wanted} ({file.size_bytes:,} bytes, SHA-256 {file.sha256[:12]}..., from {file.url}), "
            "or set HANDDATA_WEIGHTS to the folder that holds it",
        ) from None
    return target


def _download(file: WeightsFile, target: Path, on_progress: Callable[[int, int], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    digest = hashlib.sha256()
    done = 0
    try:
        with urllib.request.urlopen(file.url, timeout=30) as response, partial.open("wb") as stream:  # noqa: S310 - a pinned https URL
            while block := response.read(_BLOCK_BYTES):
                stream.write(block)
                digest.update(block)
                done += len(block)
                on_progress(done, file.size_bytes)
        if digest.hexdigest() != file.sha256:
            raise WeightsError(
                f"{file.url} gave {done:,} bytes with SHA-256 {digest.hexdigest()[:12]}..., "
                f"expected {file.size_bytes:,} bytes with {file.sha256[:12]}...",
                "a proxy may have answered instead; nothing was kept",
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
