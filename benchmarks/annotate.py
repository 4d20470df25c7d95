"""Images a second of ``handdata annotate`` beside a bare MediaPipe loop on the same files, in one run.

    python benchmarks/annotate.py [--frames 480] [--size 256]

The peer is the loop that everybody writes: one process, read, decode, detect, keep the result in memory. Ours also
cuts, masks, measures, encodes and commits, on all cores, Ray's start included.
"""

import argparse
import tempfile
import time
from pathlib import Path

import ray

from handdata.adapters.synthesis.dataset import write_dataset
from handdata.adapters.synthetic import SyntheticAdapter
from handdata.console import print_table
from handdata.pipeline.detector import HandDetector
from handdata.pipeline.engine import annotate
from handdata.pipeline.frames import decode_image
from handdata.pipeline.ingest import ingest
from handdata.pipeline.settings import AnnotateSettings, MasksPolicy
from handdata.pipeline.storage import Storage
from handdata.pipeline.weights import require_weights


def bare_loop_images_per_s(files: list[Path], confidence: float) -> float:
    """Time MediaPipe over the files in this process."""
    with HandDetector(require_weights("hand_landmarker"), confidence) as detector:
        detector.detect(decode_image(files[0].read_bytes(), str(files[0])))
        started = time.perf_counter()
        for file in files:
            detector.detect(decode_image(file.read_bytes(), str(file)))
        return len(files) / (time.perf_counter() - started)


def annotate_images_per_s(root: Path, workspace: Path, masks: MasksPolicy, size: int) -> tuple[float, float]:
    """Time a whole run with a fresh Ray; return the rate with start-up, and from the first finished unit on."""
    storage = Storage(workspace)
    records = ingest(SyntheticAdapter, root, storage).records
    settings = AnnotateSettings(keypoints="mediapipe", masks=masks, image_size=size)
    finished: list[tuple[float, int]] = []
    started = time.perf_counter()
    annotate(storage, settings, on_unit=lambda marker: finished.append((time.perf_counter(), marker.records)))
    whole = records / (time.perf_counter() - started)
    first, last = finished[0][0], finished[-1][0]
    steady = sum(rows for _, rows in finished[1:]) / (last - first) if last > first else whole
    ray.shutdown()
    return whole, steady


def main() -> None:
    """Render frames, run both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=480)
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "synthetic"
        sequences = max(options.frames // 20, 1)
        write_dataset(root, min(8, sequences), sequences, 10, 2, options.size, seed=0)
        files = sorted(root.rglob("*.jpg"))
        bare = bare_loop_images_per_s(files, AnnotateSettings().detection_confidence)
        rows = [("bare MediaPipe loop, one process", f"{bare:.1f}", "", "1.00")]
        for masks in ("none", "grabcut"):
            whole, steady = annotate_images_per_s(root, Path(folder) / masks, masks, options.size)
            rows.append((f"handdata annotate --masks {masks}", f"{whole:.1f}", f"{steady:.1f}", f"{steady / bare:.2f}"))
    print_table(
        f"{len(files)} frames of {options.size} px",
        rows,
        header=("", "images/s", "after the first unit", "ratio to the loop"),
    )


if __name__ == "__main__":
    main()
