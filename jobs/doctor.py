"""``handdata doctor``: is everything on this machine that handdata needs, and how is what is not mended?

Whatever is wrong is a finding, never an error: packages are imported in processes of their own, which may crash or
hang. Nothing but the standard library is imported before it is needed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from handdata._version import __version__

State = Literal["ok", "absent", "broken"]

_PROBE_S: Final = 120.0
"""Longest time that a package has to be imported and tried; on a cold network disk torch takes half a minute."""
_LEAST_FREE_BYTES: Final = 1 << 30
"""Less free room than this is a finding."""
_LEAST_SHM_BYTES: Final = 1 << 29
"""Ray keeps objects in shared memory; with less it goes to the disk, slowly."""
_GL: Final = "apt-get install libgl1 libegl1 libgles2 libglib2.0-0"
_MARK: Final = "handdata-doctor:"
"""What begins the line in which a probe tells what it found: libraries print other lines."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about one thing.

    Args:
        name: The thing.
        state: ``absent``: it is not there, and only some commands need it; ``broken``: something needed does not work.
        found: What was found, in one line.
        mend: What to do about it; empty where nothing is to be done.

    """

    name: str
    state: State
    found: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the checks are about.

    Args:
        workspace: Path or URL of the workspace.
        weights: The user's folder of model files.
        address: Address of a Ray cluster, None where none is named.

    """

    workspace: str
    weights: Path | None
    address: str | None


def examine(machine: Machine) -> Iterator[Finding]:
    """Yield what is found out about this machine, one thing after the other; no check raises.

    Args:
        machine: Workspace, folder of model files and cluster to look at.

    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("Python", _python),
        ("packages", _packages),
        ("torch", _torch),
        ("GL libraries", _gl),
        ("MediaPipe", partial(_mediapipe, machine.weights)),
        ("model files", partial(_weights, machine.weights)),
        ("workspace", partial(_workspace, machine.workspace)),
        ("disk", partial(_disk, machine.workspace)),
        ("Ray", partial(_ray, machine.address)),
    ]
    with ThreadPoolExecutor(max_workers=4) as pool:  # most of them wait for processes, disks and servers
        for found in pool.map(lambda check: list(_guarded(*check)), checks):
            yield from found


def _guarded(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except ModuleNotFoundError as error:
        yield Finding(
            name, "broken", f"cannot be checked without the package {error.name}", f"pip install {error.name}"
        )
    except Exception as error:  # what nobody foresaw is a finding too
        yield Finding(name, "broken", f"the check itself failed: {_one_line(error)}")


def _one_line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    found = f"{version} at {sys.executable}, handdata {__version__}"
    if sys.platform != "linux":
        yield Finding(
            "Python", "broken", f"{found}, on {sys.platform}", "handdata runs on Linux: take a container or WSL"
        )
    else:
        yield Finding("Python", "ok", found)


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(text) for text in metadata.requires("handdata") or ()]
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", "broken", "handdata is not installed in this Python", "make setup, or pip install -e '.[all]'"
        )
        return
    extras = sorted(metadata.metadata("handdata").get_all("Provides-Extra") or ())
    needed = [requirement for requirement in declared if _applies(requirement)]
    found = _group("packages", needed, "pip install -U handdata", required=True)
    if found.state == "ok" and (fault := _import_fault(needed)):
        found = Finding("packages", "broken", fault, "pip install --force-reinstall handdata")
    yield found
    for extra in extras:
        if extra not in ("all", "dev"):
            group = [
                requirement for requirement in declared if not _applies(requirement) and _applies(requirement, extra)
            ]
            yield _group(f"extra {extra}", group, f'pip install "handdata[{extra}]"', required=False)


_IMPORTS: Final = """
import importlib
faults = {}
for name in sys.argv[1:]:
    try: importlib.import_module(name)
    except Exception as error: faults[name] = " ".join(str(error).split())
tell(**faults)
"""


def _import_fault(requirements: list[Any]) -> str:
    """Return which of some installed packages cannot be imported, and why; empty where all can. GL has OpenCV."""
    wanted = {_plain_name(requirement.name) for requirement in requirements} - {"opencv-contrib-python"}
    modules = [
        module
        for module, owners in metadata.packages_distributions().items()
        if module.isidentifier() and not module.startswith("_") and wanted & {_plain_name(owner) for owner in owners}
    ]
    found = _probe(_IMPORTS, *modules)
    if isinstance(found, str):
        return f"they cannot be imported: {found}"
    return "; ".join(f"{module} cannot be imported: {fault}" for module, fault in found.items())


def _plain_name(package: str) -> str:
    return re.sub("[-_.]+", "-", package).lower()


def _applies(requirement: Any, extra: str = "") -> bool:
    return requirement.marker is None or bool(requirement.marker.evaluate({"extra": extra}))


def _group(name: str, requirements: list[Any], mend: str, *, required: bool) -> Finding:
    """Return whether packages are installed, in versions that fit."""
    missing, unfit, versions = [], [], []
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        versions.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            unfit.append(f"{requirement.name} {version}, not {requirement.specifier}")
    if unfit or (missing and required):
        faults = [*(f"{package} is missing" for package in missing), *unfit]
        return Finding(name, "broken", "; ".join(faults), mend)
    if missing:
        return Finding(name, "absent", f"without {', '.join(missing)}", mend)
    return Finding(name, "ok", f"{len(versions)} packages" if required else ", ".join(versions))


def _is_there(module: str) -> bool:
    with suppress(ModuleNotFoundError):
        return find_spec(module) is not None
    return False


def _probe(program: str, *arguments: str) -> dict[str, Any] | str:
    """Run a program in a process of its own, and return what it tells as JSON, or why it tells nothing, in one line."""
    words = [
        sys.executable,
        "-c",
        f"import json, sys\ndef tell(**found): print({_MARK!r} + json.dumps(found))\n{program}",
    ]
    try:
        done = subprocess.run(  # noqa: S603 - our own programs
            [*words, *arguments], capture_output=True, text=True, errors="replace", check=False, timeout=_PROBE_S
        )
    except subprocess.TimeoutExpired:
        return f"it does not come back within {_PROBE_S:g} s"
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return found
    if done.returncode < 0:
        with suppress(ValueError):
            return f"its process died of {signal.Signals(-done.returncode).name}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return _one_line(lines[-1]) if lines else f"its process ended with {done.returncode}"


_TORCH: Final = """
import torch
cuda = torch.cuda.is_available()
names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())] if cuda else []
if cuda: torch.zeros(8, device="cuda").sum().item()
tell(version=torch.__version__, build=torch.version.cuda, gpus=names)
"""


def _torch() -> Iterator[Finding]:
    mend = 'pip install "handdata[train]"'
    if not _is_there("torch"):
        yield Finding("torch", "absent", "not installed: no training, sampling or SAM here", mend)
        return
    found = _probe(_TORCH)
    driver = _nvidia_driver()
    if isinstance(found, str):
        mend = "does the driver fit torch's CUDA? see https://pytorch.org/get-started/locally" if driver else mend
        yield Finding("torch", "broken", f"cannot be used: {found}", mend)
        return
    build = f"CUDA {found['build']}" if found["build"] else "a build for the CPU"
    told = f"{found['version']}, {build}"
    if found["gpus"]:
        yield Finding("torch", "ok", f"{told}, {', '.join(found['gpus'])}")
    elif driver and not found["build"]:
        mend = "pip install torch torchvision from the index of https://pytorch.org/get-started/locally for CUDA"
        yield Finding("torch", "broken", f"{told}, though there is an NVIDIA GPU (driver {driver})", mend)
    elif driver:
        mend = "is the driver new enough for this CUDA? nvidia-smi says up to which; else take torch for an older CUDA"
        yield Finding("torch", "broken", f"{told}, and cannot use the NVIDIA GPU (driver {driver})", mend)
    else:
        yield Finding("torch", "ok", f"{told}, no NVIDIA GPU here: the CPU computes")


def _nvidia_driver() -> str:
    """Return the version of the NVIDIA driver, empty where there is none."""
    with suppress(OSError):
        found = re.search(r"Kernel Module\D*([\d.]+)", Path("/proc/driver/nvidia/version").read_text())
        return found[1] if found else "unknown"
    return ""


def _gl() -> Iterator[Finding]:
    found = _probe("import cv2; tell(version=cv2.__version__)")
    if isinstance(found, str):
        mend = _GL if ".so" in found else "pip install --force-reinstall opencv-contrib-python"
        yield Finding("GL libraries", "broken", f"OpenCV cannot be loaded: {found}", mend)
        return
    several = [
        name for name in ("opencv-python", "opencv-python-headless", "opencv-contrib-python-headless") if _has(name)
    ]
    if several:
        mend = f"pip uninstall {' '.join(several)}; pip install --force-reinstall opencv-contrib-python"
        yield Finding("GL libraries", "broken", f"{', '.join(several)} overwrites opencv-contrib-python", mend)
        return
    yield Finding("GL libraries", "ok", f"OpenCV {found['version']} loads")


def _has(package: str) -> bool:
    with suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(package))
    return False


_MEDIAPIPE: Final = """
import mediapipe, numpy
from pathlib import Path
from handdata.pipeline.annotation.detector import HandDetector
with HandDetector(Path(sys.argv[1]), 0.3) as detector:
    hands = detector.detect(numpy.zeros((64, 64, 3), numpy.uint8))
tell(version=mediapipe.__version__, hands=len(hands))
"""


def _mediapipe(weights: Path | None) -> Iterator[Finding]:
    from handdata.pipeline.weights import fault_of, find_weights

    if not _is_there("mediapipe"):
        yield Finding("MediaPipe", "absent", "not installed: no annotation here", 'pip install "handdata[annotate]"')
        return
    model = find_weights("hand_landmarker", weights)
    if model is None or fault_of("hand_landmarker", model):
        found = _probe("import mediapipe; tell(version=mediapipe.__version__)")
    else:
        found = _probe(_MEDIAPIPE, str(model))
    if isinstance(found, str):
        mend = _GL if ".so" in found else 'pip install --force-reinstall "handdata[annotate]"'
        yield Finding("MediaPipe", "broken", f"cannot be used: {found}", mend)
    else:
        tried = ", looks for hands" if "hands" in found else ""
        yield Finding("MediaPipe", "ok", f"{found['version']}{tried}")


def _weights(folder: Path | None) -> Iterator[Finding]:
    from handdata.pipeline.weights import WEIGHTS, fault_of, find_weights

    if folder is not None and not folder.is_dir():
        yield Finding("HANDDATA_WEIGHTS", "broken", f"{folder} is no folder", "correct HANDDATA_WEIGHTS, or unset it")
    for name, file in WEIGHTS.items():
        path = find_weights(name, folder)
        if path is None:
            needed = "needed to annotate" if name == "hand_landmarker" else file.purpose
            yield Finding(f"model {name}", "absent", f"not here: {needed}", f"handdata weights fetch {name}")
        elif fault := fault_of(name, path):
            mend = f"remove it, then handdata weights fetch {name}"
            yield Finding(f"model {name}", "broken", f"{path} is not the published file: {fault}", mend)
        else:
            checked = "SHA-256 as published" if file.sha256 or file.repository else "no SHA-256 is published"
            yield Finding(f"model {name}", "ok", f"{path}, {checked}")


def _workspace(url: str) -> Iterator[Finding]:
    if "://" not in url:
        yield _local_workspace(Path(url).expanduser().absolute())
        return
    from handdata.pipeline.storage import Storage
    from handdata.schemas import StorageError

    scheme = url.partition("://")[0]
    name = "S3 access" if scheme in ("s3", "s3a") else "workspace"
    try:
        Storage(url, retry_waits_s=()).check_creates_once()
    except StorageError as error:
        yield Finding(
            name, "broken", error.message, error.hint if not scheme.startswith("s3") else _mend_s3(error.message)
        )
    else:
        yield Finding(name, "ok", f"{url}: writes, reads, and lets one of two writers win")


def _mend_s3(message: str) -> str:
    """Return what to do about a bucket that cannot be used."""
    if "s3fs" in message:
        return 'pip install "handdata[s3]"'
    if "credentials" in message.lower():
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; `aws s3 ls` tells whether they work"
    if any(word in message for word in ("Forbidden", "Access Denied", "AccessDenied", "denied")):
        return "ask for the rights s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket there"
    if re.search("bucket does not exist|NoSuchBucket|No such file", message):
        return "does the bucket exist, in this account and region? AWS_DEFAULT_REGION and AWS_ENDPOINT_URL choose"
    return "is the server reachable? AWS_ENDPOINT_URL names one that is not Amazon's"


def _local_workspace(folder: Path) -> Finding:
    there = _existing(folder)
    if not there.is_dir():
        return Finding("workspace", "broken", f"{there} is no folder", "choose another with HANDDATA_WORKSPACE")
    if not os.access(there, os.W_OK | os.X_OK):
        mend = f"choose another with HANDDATA_WORKSPACE, or ask the owner of {there}"
        return Finding("workspace", "broken", f"{there} cannot be written", mend)
    return Finding("workspace", "ok", str(folder) if folder == there else f"{folder} can be made")


def _existing(path: Path) -> Path:
    """Return a path, or the nearest folder above it that is there."""
    return next((part for part in (path, *path.parents) if part.exists()), Path("/"))


def _disk(workspace: str) -> Iterator[Finding]:
    from handdata.pipeline.weights import cache_folder

    places: dict[str, Path] = {} if "://" in workspace else {"workspace": Path(workspace).expanduser().absolute()}
    places |= {"model files": cache_folder(), "Ray": Path(os.environ.get("RAY_TMPDIR") or "/tmp")}  # noqa: S108 - Ray's own
    mends = {
        "workspace": "make room, or choose another disk with HANDDATA_WORKSPACE",
        "model files": "make room, or choose another disk with XDG_CACHE_HOME",
        "Ray": "make room, or choose another disk with RAY_TMPDIR",
    }
    for name, place in places.items():
        free = shutil.disk_usage(_existing(place)).free
        state: State = "ok" if free >= _LEAST_FREE_BYTES else "broken"
        yield Finding(
            f"disk of {name}", state, f"{free / 1e9:,.1f} GB free at {place}", mends[name] if state == "broken" else ""
        )
    shared = Path("/dev/shm")  # noqa: S108 - where Ray keeps objects
    if shared.is_dir() and (total := shutil.disk_usage(shared).total) < _LEAST_SHM_BYTES:
        mend = "give the container more: docker run --shm-size=2g; Kubernetes: an emptyDir of medium Memory"
        yield Finding("shared memory", "broken", f"{total / 1e6:,.0f} MB: too little for Ray", mend)


_RAY: Final = """
import os
from handdata.pipeline.run.cluster import TOKEN_HINT, offer_token
offer_token()
import ray
found = {"version": ray.__version__}
if sys.argv[1]:
    from handdata.pipeline.run.address import find_head, within
    from handdata.schemas import HandDataError, RunError
    try:
        head = find_head(sys.argv[1])
        found["head"] = head
        if "://" not in head:
            from ray._raylet import GcsClient
            late = RunError("the head does not say which nodes it has")
            nodes = within(20, lambda: GcsClient(address=head).get_all_node_info(timeout=15), late)
            found["nodes"] = sum(node.state == 0 for node in nodes.values())
    except HandDataError as error:
        found["fault"], found["hint"] = error.message, error.hint
    except Exception as error:
        refused = "AuthToken" in str(error)
        found["fault"] = f"the head at {head} refuses the token, or misses one" if refused else str(error)
        found["hint"] = TOKEN_HINT
tell(**found)
"""


def _ray(address: str | None) -> Iterator[Finding]:
    if not _is_there("ray"):
        yield Finding("Ray", "absent", "not installed: no annotation here", 'pip install "handdata[annotate]"')
        return
    found = _probe(_RAY, address or "")
    if isinstance(found, str):
        yield Finding("Ray", "broken", f"cannot be used: {found}", 'pip install --force-reinstall "handdata[annotate]"')
        return
    told = found["version"]
    token, fault = _token(os.environ)
    if fault:
        yield Finding("Ray's token", "broken", token, fault)
    else:
        yield Finding("Ray's token", "ok", token)
    if "fault" in found:
        yield Finding("Ray", "broken", f"{told}; {_one_line(found['fault'])}", found["hint"])
    elif address:
        nodes = f", nodes: {found['nodes']}" if "nodes" in found else ""
        yield Finding("Ray", "ok", f"{told}; the cluster at {found['head']} answers{nodes}")
    else:
        yield Finding("Ray", "ok", f"{told}; no cluster is named (RAY_ADDRESS), so annotate starts one here")


def _token(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return where a token is, without showing it, and what to do where it cannot be used."""
    if environment.get("RAY_AUTH_MODE") == "disabled":
        return "switched off by RAY_AUTH_MODE", ""
    if environment.get("RAY_AUTH_TOKEN"):
        return "in RAY_AUTH_TOKEN", ""
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        held = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        if named:
            return f"{file}, which RAY_AUTH_TOKEN_PATH names, is not there", "put the cluster's token there"
        return "none: right for a cluster of this machine, and for one without authentication", ""
    except (OSError, UnicodeDecodeError) as error:
        return f"{file} cannot be read: {_one_line(error)}", "give the file to yourself: chown, chmod 600"
    return (f"in {file}", "") if held else (f"{file} is empty", "put the cluster's token there")
