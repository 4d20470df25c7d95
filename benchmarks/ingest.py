"""Speed and memory of ``handdata ingest`` on generated label files in the layouts of InterHand2.6M and HaGRID.

Run ``python benchmarks/ingest.py [--records N] [--source NAME] [--keep FOLDER]``. InterHand2.6M: 80 cameras see each
moment, labels of about 500 bytes a record in ``data.json`` and of 3 kB a moment in ``joint_3d.json``. HaGRID: 34
gestures of the split train, one file each, one or two hands a photograph. Every record has an image file of its own
name, most of them hard links to a few files, so that a million need no space: only the header of an image is read.

Prints records a second, the processor time of all processes, and the peak memory of the largest worker and of the
command that started them, also for half as many records: the time should double. The peer, in the same run, is plain
``json.load`` of the same label files, and Pillow's ``Image.open`` for the size of each image, in a process of its own;
it checks nothing and stores nothing. Peaks are ``VmHWM`` of ``/proc``, which starts afresh in each process (a child's
``ru_maxrss`` starts with its parent's).
"""

import argparse
import atexit
import io
import json
import multiprocessing
import os
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from handdata.adapters import Adapter
from handdata.adapters.hagrid import HagridAdapter
from handdata.adapters.interhand26m import InterHand26MAdapter
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.storage import Storage

Result = TypeVar("Result")
CAMERAS = tuple(str(400000 + 2 * number) for number in range(80))
MOMENTS_PER_CAPTURE = 500
SIZE = (334, 512)
GESTURES = 34
LINKS_PER_FILE = 10_000
"""Most links to one file: file systems limit them."""
PEAKS_VARIABLE = "HANDDATA_BENCHMARK_PEAKS"
"""Variable with the folder in which each worker leaves its peak memory when it ends."""


@dataclass(frozen=True)
class Figures:
    """Time and memory of one run."""

    records: int
    seconds: float
    processor_seconds: float
    peaks: str

    def __str__(self) -> str:
        return (
            f"{self.records:9,d} records in {self.seconds:6.1f} s: {self.records / self.seconds:7,.0f} records/s, "
            f"{1e6 * self.processor_seconds / self.records:5.1f} us of processor time a record, "
            f"peak {self.peaks}"
        )


def main() -> None:
    """Generate, ingest and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=100_000, help="up to 1,000,000 (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="generate here and keep it, or use what is here")
    parser.add_argument("--source", choices=list(SOURCES), help="this one only")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        base = arguments.keep or Path(scratch)
        for name in [arguments.source] if arguments.source else SOURCES:
            adapter, write = SOURCES[name]
            for records in (arguments.records // 2, arguments.records):
                root = base / f"{adapter.card.name}-{records}"
                if not root.is_dir():
                    in_own_process(write, root, records)
                print(f"{name:14s}", time_ingest(adapter, root, Path(scratch)), flush=True)
            print(f"{'plain reading':14s}", in_own_process(time_peer, root, records), flush=True)


def in_own_process(function: Callable[[Path, int], Result], root: Path, records: int) -> Result:
    """Call a function in a process of its own, so that its memory is counted alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, root, records).result()


def time_peer(root: Path, records: int) -> Figures:
    """Load each whole label file with ``json``, and read each image's size with Pillow."""
    start, processor_start = time.perf_counter(), time.process_time()
    for path in sorted(root.rglob("*.json")):
        json.loads(path.read_bytes())
    for path in root.rglob("*.jpg"):
        with Image.open(path) as image:
            if image.size != SIZE:
                raise RuntimeError(f"{path} is {image.size}")
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
    return Figures(records, seconds, processor_seconds, f"{peak_mib():,.0f} MiB")


def time_ingest(adapter: type[Adapter], root: Path, scratch: Path) -> Figures:
    """Ingest a dataset; the workers leave their peaks in a folder."""
    Path("/proc/self/clear_refs").write_text("5")  # resets this process's peak
    with tempfile.TemporaryDirectory(dir=scratch) as peaks_folder:
        os.environ[PEAKS_VARIABLE] = peaks_folder
        start, processor_start = time.perf_counter(), _processor_seconds()
        summary = ingest(adapter, root, Storage(str(scratch / "workspace")))
        seconds, processor_seconds = time.perf_counter() - start, _processor_seconds() - processor_start
        peaks = [float(path.read_text()) for path in Path(peaks_folder).iterdir()]
    if summary.rejected:
        raise RuntimeError(f"records of the generated dataset were rejected: {summary.rejected}")
    workers = f"{max(peaks):,.0f} MiB a worker ({len(peaks)} workers), " if peaks else ""
    return Figures(summary.records, seconds, processor_seconds, f"{workers}{peak_mib():,.0f} MiB the command itself")


def peak_mib() -> float:
    """Return the most memory that this process has held at once."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def leave_peak() -> None:
    """Write this process's peak into the folder of peaks, if there is one."""
    folder = os.environ.get(PEAKS_VARIABLE)
    if folder is not None and Path(folder).is_dir():
        (Path(folder) / str(os.getpid())).write_text(str(peak_mib()))


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def write_interhand26m(root: Path, records: int) -> None:
    """Write the split train with this many records; both hands, in front of every camera."""
    rng = np.random.default_rng(0)
    labels = root / "annotations/train"
    labels.mkdir(parents=True)
    names = list(file_names(records))
    with (labels / "InterHand2.6M_train_data.json").open("w") as stream:
        stream.write('{"images": [')
        for number, (moment, camera, name) in enumerate(names):
            entry = {
                "id": number,
                "file_name": name,
                "width": SIZE[0],
                "height": SIZE[1],
                "capture": moment // MOMENTS_PER_CAPTURE,
                "subject": 0,
                "seq_name": "0266_dh_pray",
                "camera": camera,
                "frame_idx": 18 * moment,
            }
            stream.write((", " if number else "") + json.dumps(entry))
        stream.write('], "annotations": [')
        valid = ", ".join(["[1]"] * 42)
        for number in range(records):
            box = ", ".join(repr(value) for value in rng.uniform(30, 180, 4).tolist())
            stream.write(
                f'{", " if number else ""}{{"id": {number}, "image_id": {number}, "bbox": [{box}], '
                f'"joint_valid": [{valid}], "hand_type": "interacting", "hand_type_valid": 1}}'
            )
        stream.write("]}")
    captures: dict[str, dict[str, object]] = {}
    for moment in range(1 + names[-1][0]):
        captures.setdefault(str(moment // MOMENTS_PER_CAPTURE), {})[str(18 * moment)] = {
            "world_coord": rng.uniform(-120, 120, (42, 3)).tolist(),
            "joint_valid": [[True]] * 42,
            "hand_type": "interacting",
            "hand_type_valid": True,
        }
    (labels / "InterHand2.6M_train_joint_3d.json").write_text(json.dumps(captures))
    cameras = {
        "campos": {camera: [0.0, 0.0, -1000.0] for camera in CAMERAS},
        "camrot": {camera: np.eye(3).tolist() for camera in CAMERAS},
        "focal": {camera: [1290.0, 1290.0] for camera in CAMERAS},
        "princpt": {camera: [167.0, 256.0] for camera in CAMERAS},
    }
    (labels / "InterHand2.6M_train_camera.json").write_text(json.dumps(dict.fromkeys(captures, cameras)))
    write_images(root / "images/train", [name for _, _, name in names])


def write_hagrid(root: Path, records: int) -> None:
    """Write v2-1M's split train; every third photograph shows two hands."""
    rng = np.random.default_rng(0)
    for gesture in range(GESTURES):
        names = [f"{gesture:04d}-{number:012d}" for number in range(gesture, records, GESTURES)]
        entries = {}
        for number, name in enumerate(names):
            hands = 2 if number % 3 == 0 else 1
            entries[name] = {
                "bboxes": rng.uniform(0.1, 0.4, (hands, 4)).tolist(),
                "labels": ["like", "no_gesture"][:hands],
                "united_bbox": None,
                "united_label": None,
                "user_id": f"{number % 5000:032x}",
                "hand_landmarks": rng.uniform(0.1, 0.8, (hands, 21, 2)).tolist(),
                "meta": {"age": [24.41], "gender": ["female"], "race": ["White"]},
            }
        path = root / f"hagrid_annotations/train/gesture{gesture:02d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries))
        write_images(root / "hagrid_dataset", [f"gesture{gesture:02d}/{name}.jpg" for name in names])


def file_names(records: int) -> Iterator[tuple[int, str, str]]:
    """Yield (moment, camera, file name) of each record, in the dataset's order: sequence by sequence."""
    for number in range(records):
        moment, camera = number // len(CAMERAS), CAMERAS[number % len(CAMERAS)]
        capture = moment // MOMENTS_PER_CAPTURE
        yield moment, camera, f"Capture{capture}/0266_dh_pray/cam{camera}/image{18 * moment}.jpg"


def write_images(folder: Path, names: list[str]) -> None:
    """Write the images: links to a few files with the same pixels."""
    encoded = io.BytesIO()
    Image.new("RGB", SIZE).save(encoded, "JPEG", quality=30)
    for parent in sorted({name.rpartition("/")[0] for name in names}):
        (folder / parent).mkdir(parents=True, exist_ok=True)
    original = folder
    for number, name in enumerate(names):
        if number % LINKS_PER_FILE == 0:
            original = folder / name
            original.write_bytes(encoded.getvalue())
        else:
            os.link(original, folder / name)


SOURCES: dict[str, tuple[type[Adapter], Callable[[Path, int], None]]] = {
    adapter.card.name: (adapter, write)
    for adapter, write in ((InterHand26MAdapter, write_interhand26m), (HagridAdapter, write_hagrid))
}

if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # a spawned worker imports this file first
    atexit.register(leave_peak)
