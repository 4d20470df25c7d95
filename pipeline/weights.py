"""Model files: what they are, under which licence, and where they lie on this machine.

They are searched for in this order: the path given by a flag, the folder ``HANDDATA_WEIGHTS``, the folder of this
installation of Python, the download cache. Last, the pinned URL is downloaded and its SHA-256 checked. Files of the
Hugging Face Hub lie in its own cache, where diffusers and timm look for them.

A download that was cut goes on where it stopped, with ``huggingface_hub``, for any server that answers range requests.
"""

import errno
import fcntl
import hashlib
import importlib.util
import io
import logging as standard_logging
import os
import re
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from handdata.schemas import WeightsError

_CLIENTS: Final = ("httpx", "httpcore", "huggingface_hub", "requests", "urllib3")
"""Packages whose errors are about the server, and no ``OSError`` in part."""

OnProgress = Callable[[int, int | None], None]
"""Called with (bytes so far, bytes in all, None where nobody knows)."""


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """One published model file.

    Args:
        name: Its name in ``handdata weights``.
        filename: Published file name.
        url: Address where it is published.
        size_bytes: Exact size; None where none is published.
        sha256: SHA-256 of the whole file, or its first digits where no more is published; None where nothing is.
        purpose: Its use, in a few words.
        licence: Its licence, an SPDX id, with what else is to be known of it.
        by_hand: Whether its place asks a person with a browser.
        repository: Repository of the Hugging Face Hub that it lies in, or empty.
        beside: Further files that are needed with it, of the same repository.

    """

    name: str
    filename: str
    url: str
    size_bytes: int | None
    sha256: str | None
    purpose: str
    licence: str = "Apache-2.0"
    by_hand: bool = False
    repository: str = ""
    beside: tuple[str, ...] = ()


UPSCALER: Final = "ldm_super_resolution"
"""Name of the model that enlarges generated pictures."""
_SAM_URL: Final = "https://dl.fbaipublicfiles.com/segment_anything"
_HUB_URL: Final = "https://huggingface.co"
_CC_BY_NC: Final = (
    "CC-BY-NC-4.0 (https://creativecommons.org/licenses/by-nc/4.0/): name the authors; no commercial use, neither of "
    "the weights nor of what is trained from them"
)

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
        WeightsFile(
            name="foundhand",
            filename="DINO_EMA_11M_b50_lr1e-5_epoch6_step320k.ckpt",
            url="https://drive.google.com/file/d/1AR08bpX5Ync7VykXq-S7ww8YIbRihVMD/view",
            size_bytes=None,
            sha256=None,
            purpose="FoundHand (Chen et al., CVPR 2025), preset foundhand-xl",
            licence=_CC_BY_NC,
            by_hand=True,
        ),
        WeightsFile(
            name="dit_xl2_imagenet",
            filename="DiT-XL-2-256x256.pt",
            url="https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt",
            size_bytes=None,
            sha256=None,
            purpose="what FoundHand's training started from (DiT-XL/2, ImageNet)",
            licence=_CC_BY_NC,
        ),
        WeightsFile(
            name="sd_vae",
            filename="diffusion_pytorch_model.safetensors",
            url=f"{_HUB_URL}/stabilityai/sd-vae-ft-mse",
            size_bytes=334_643_276,
            sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
            purpose="autoencoder of the foundhand presets",
            licence="MIT",
            repository="stabilityai/sd-vae-ft-mse",
            beside=("config.json",),
        ),
        WeightsFile(
            name="dinov2",
            filename="model.safetensors",
            url=f"{_HUB_URL}/timm/vit_base_patch14_dinov2.lvd142m",
            size_bytes=None,
            sha256=None,
            purpose="encoder of [alignment] in training (DINOv2 ViT-B/14)",
            repository="timm/vit_base_patch14_dinov2.lvd142m",
        ),
        WeightsFile(
            name="alexnet",
            filename="alexnet-owt-7be5be79.pth",
            url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            size_bytes=244_408_911,
            sha256="7be5be79",
            purpose="LPIPS in evaluations (AlexNet, ImageNet)",
            licence="BSD-3-Clause",
        ),
        WeightsFile(
            name="inception",
            filename="weights-inception-2015-12-05-6726825d.pth",
            url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
            "weights-inception-2015-12-05-6726825d.pth",
            size_bytes=None,
            sha256="6726825d",
            purpose="FID and KID in evaluations (Inception-v3, ImageNet)",
        ),
        WeightsFile(
            name=UPSCALER,
            filename="unet/diffusion_pytorch_model.bin",
            url=f"{_HUB_URL}/CompVis/ldm-super-resolution-4x-openimages",
            size_bytes=None,
            sha256=None,
            purpose="sample --upscale: super-resolution by four",
            repository="CompVis/ldm-super-resolution-4x-openimages",
            beside=(
                "unet/config.json",
                "vqvae/config.json",
                "vqvae/diffusion_pytorch_model.bin",
                "scheduler/scheduler_config.json",
            ),
        ),
    )
}
"""All model files that handdata can use, by name."""


def cache_folder() -> Path:
    """Return the folder of downloads: ``$XDG_CACHE_HOME/handdata/weights`` or ``~/.cache/handdata/weights``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "handdata" / "weights"


def of_installation() -> Path:
    """Return the folder of model files that belong to this installation of Python: ``make setup`` fills it."""
    return Path(sys.prefix) / "share" / "handdata" / "weights"


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
    if file.repository:
        return _in_hub_cache(file)
    paths = [folder / file.filename] if folder else []
    paths += [of_installation() / file.filename, cache_folder() / file.filename]
    return next((path for path in paths if path.is_file()), None)


def place_of(name: str, folder: Path | None = None) -> Path:
    """Return where a model file belongs that somebody brings here by hand."""
    return (folder or cache_folder()) / WEIGHTS[name].filename


def named_weights(name: str, folder: Path | None = None) -> str:
    """Return the path of a model file that is called by its name in ``WEIGHTS``; any other text as it is.

    Raises:
        WeightsError: It is not on this machine.

    """
    if name not in WEIGHTS or Path(name).exists():
        return name
    found = find_weights(name, folder)
    if found is None:
        raise WeightsError(f"the model file {name} is not on this machine", f"run `handdata weights fetch {name}`")
    return str(found)


def model_folder(name: str, folder: Path | None = None) -> Path:
    """Return the folder of a model of several files, as diffusers lays them out.

    Args:
        name: Key of ``WEIGHTS``, of a repository of the Hub.
        folder: The user's weights folder: a folder of the model's name in it is taken first.

    Raises:
        WeightsError: It is not on this machine.

    """
    if folder and (folder / name).is_dir():
        return folder / name
    found = find_weights(name)
    if found is None:
        place = folder / name if folder else f"{name}/ in a folder that HANDDATA_WEIGHTS names"
        raise WeightsError(
            f"the model {name} ({WEIGHTS[name].purpose}) is not on this machine",
            f"run `handdata weights fetch {name}`, or put the files of {WEIGHTS[name].url} into {place}",
        )
    return found.parents[len(Path(WEIGHTS[name].filename).parts) - 1]


def fault_of(name: str, path: Path) -> str | None:
    """Return in a few words why a file is not the published one; None where it is, as far as anybody has said.

    Without a published SHA-256 a file of the Hub is compared with the one that the Hub gave with it, and others are
    checked to be PyTorch files: what a browser saves may be a page that warns of something.
    """
    file = WEIGHTS[name]
    expected = file.sha256 or _hub_sha256(file, path)
    if expected is not None:
        return None if sha256_of(path).startswith(expected) else f"its SHA-256 is not {expected[:12]}..."
    if file.repository or _is_whole_archive(path):
        return None
    return "it is no PyTorch file, or not a whole one"


def require_weights(name: str, folder: Path | None = None, on_progress: OnProgress | None = None) -> Path:
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
    place = place_of(name, folder)
    if file.by_hand:
        raise WeightsError(
            f"{file.filename} is published where only a browser can fetch it",
            f"open {file.url}, and save it under this name in the folder {place.parent}",
        )
    if file.repository:
        return _from_hub(file)
    target = cache_folder() / file.filename
    _download(file, target, place, on_progress or (lambda done, total: None))
    keep_licence(file, target.parent)
    return target


def keep_licence(file: WeightsFile, folder: Path) -> None:
    """Write the licence of a model file beside it.

    Raises:
        WeightsError: The folder cannot be written.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = f"{file.filename}\n{file.purpose}\nfrom {file.url}\nlicence: {file.licence}\n"
        (folder / f"{file.filename}.licence.txt").write_text(text)
    except OSError as error:
        raise WeightsError(f"cannot write to {folder}: {error.strerror}", "set HANDDATA_WEIGHTS to a folder") from error


def _download(file: WeightsFile, target: Path, place: Path, on_progress: OnProgress) -> None:
    """Download a file, from where an earlier call stopped, and give it its name once it is whole and the right one."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.partial"), target, on_progress, file.size_bytes) as partial:
            if partial is None:
                return  # another process has fetched it
            resumed = partial.tell() > 0
            while True:
                _fetch(file, partial)
                fault = _fault_of_partial(file, Path(str(partial.name)))
                if fault is None:
                    break
                done = partial.tell()
                partial.truncate(0)
                partial.seek(0)
                if not resumed:
                    raise WeightsError(
                        f"{file.url} gave {done:,} bytes, which are not the published file: {fault}",
                        "a proxy may have answered instead; nothing was kept",
                    )
                resumed = False  # what an earlier call had left was of another file
            Path(str(partial.name)).replace(target)
    except WeightsError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith(_CLIENTS):
            raise
        raise _failed(file, error, place, target) from error


def _fault_of_partial(file: WeightsFile, path: Path) -> str | None:
    if file.sha256 is None:
        return None if _is_whole_archive(path) else "it is no PyTorch file, or not a whole one"
    found = sha256_of(path)
    return None if found.startswith(file.sha256) else f"SHA-256 {found[:12]}..., expected {file.sha256[:12]}..."


def _is_whole_archive(path: Path) -> bool:
    """Return whether a file is an archive, as PyTorch writes them, with nothing damaged inside: its checksums say."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error):
        return False


def _failed(file: WeightsFile, error: Exception, place: Path, target: Path) -> WeightsError:
    """Return the error for a download that failed: the disk, or the server."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return WeightsError(
            f"cannot write {file.filename} to {target.parent}: {getattr(error, 'strerror', error)}",
            "make room there, or set XDG_CACHE_HOME to another disk; the same command continues",
        )
    if isinstance(error, PermissionError | FileExistsError | NotADirectoryError):
        return WeightsError(
            f"cannot write {file.filename} to {target.parent}: {error.strerror}", "set XDG_CACHE_HOME to another folder"
        )
    facts = "" if file.size_bytes is None else f"{file.size_bytes:,} bytes, "
    facts += "" if file.sha256 is None else f"SHA-256 {file.sha256[:12]}..., "
    return WeightsError(
        f"the model file {file.filename} ({file.purpose}) is not on this machine and cannot be downloaded: "
        f"{_reason(error)}",
        f"the same command continues; or put it at {place} ({facts}from {file.url}), "
        "or set HANDDATA_WEIGHTS to the folder that holds it",
    )


def _reason(error: Exception) -> str:
    """Return what is wrong with a server, in one line."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the server answers {status}"
    return (getattr(error, "strerror", None) or str(error).strip().split("\n")[0].rstrip(".")) or type(error).__name__


class _Reporting(io.FileIO):
    """A file that reports how long it is after each write."""

    def __init__(self, path: Path, on_progress: OnProgress, total: int | None) -> None:
        super().__init__(path, "a+")
        self._report = on_progress
        self._total = total

    def write(self, data: Any) -> int:
        """Write all of some bytes."""
        left = memoryview(data)
        while left:
            left = left[super().write(left) :]
        self._report(self.tell(), self._total)
        return len(data)


@contextmanager
def _locked(partial: Path, target: Path, on_progress: OnProgress, total: int | None) -> Iterator[_Reporting | None]:
    """Open the file of an unfinished download for this process alone; None where another has finished it meanwhile."""
    while True:
        with _Reporting(partial, on_progress, total) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            if target.is_file():
                if partial.exists() and os.fstat(stream.fileno()).st_ino == partial.stat().st_ino:
                    partial.unlink()
                yield None
                return
            if partial.exists() and os.fstat(stream.fileno()).st_ino == partial.stat().st_ino:
                stream.seek(0, os.SEEK_END)
                try:
                    yield stream
                finally:
                    if not os.fstat(stream.fileno()).st_size:
                        partial.unlink(missing_ok=True)
                return
        # The process that had it has given it up, with its name.


def _fetch(file: WeightsFile, partial: _Reporting) -> None:
    """Add to the file of an unfinished download what it lacks."""
    try:
        from huggingface_hub.file_download import http_get
    except ImportError:
        raise WeightsError(
            f"{file.filename} is not on this machine, and the package that downloads it is not installed",
            'pip install "huggingface-hub>=0.34"',
        ) from None
    done = partial.tell()
    if file.size_bytes is not None:
        if done >= file.size_bytes:
            return  # only its name was missing; of a longer one the check says what it is
        free = shutil.disk_usage(Path(str(partial.name)).parent).free
        if free < file.size_bytes - done:
            raise OSError(errno.ENOSPC, f"{file.size_bytes - done:,} bytes are missing, and {free:,} are free")
    try:
        with _one_voice(bars=False):
            http_get(file.url, partial, resume_size=done)
    except Exception as error:
        if type(error) is OSError and error.errno is None:  # another size than the server said: bytes of something else
            partial.truncate(0)
        answered = getattr(getattr(error, "response", None), "status_code", None)
        if not (answered == 416 and done):  # nothing follows what an earlier call left: the check says what it is
            raise


@contextmanager
def _one_voice(bars: bool) -> Iterator[None]:
    """Keep the library from telling of each try, and with ``bars`` false of progress: errors are told in one line."""
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

    level = logging.get_verbosity()
    logging.set_verbosity(standard_logging.ERROR)
    if not bars:
        disable_progress_bars("huggingface_hub.http_get")
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not bars:
            enable_progress_bars("huggingface_hub.http_get")


def _in_hub_cache(file: WeightsFile) -> Path | None:
    """Return a file of the Hub in the Hub's own cache, None unless all that is needed with it is there."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(file.repository, name) for name in (*file.beside, file.filename)]
    return Path(found[-1]) if all(isinstance(path, str) for path in found) and isinstance(found[-1], str) else None


def _hub_sha256(file: WeightsFile, path: Path) -> str | None:
    """Return the SHA-256 that the Hub gave with a large file: its cache names the file by it."""
    name = path.resolve().name
    return name if file.repository and re.fullmatch(r"[0-9a-f]{64}", name) else None


def _from_hub(file: WeightsFile) -> Path:
    """Download a file of the Hub, and what is needed with it, into the Hub's own cache."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise WeightsError(
            f"{file.name} lies on the Hugging Face Hub, and the package that downloads it is not installed",
            'pip install "handdata[train]"',
        ) from None
    try:
        with _one_voice(bars=True):
            *_, path = (Path(hf_hub_download(file.repository, name)) for name in (*file.beside, file.filename))
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith(_CLIENTS):
            raise
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise WeightsError(
                f"cannot write {file.name}: {getattr(error, 'strerror', error)}",
                "make room, or set HF_HOME to another disk; the same command continues",
            ) from error
        raise WeightsError(
            f"{file.name} cannot be downloaded from {file.url}: {_reason(error)}",
            "the same command continues; without a network, bring the folder that HF_HOME names, by default "
            "~/.cache/huggingface, from a machine that has it",
        ) from error
    if fault := fault_of(file.name, path):
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise WeightsError(
            f"{file.url} gave another {file.filename} than expected: {fault}",
            "a proxy may have answered instead; nothing was kept",
        )
    return path
