"""Samples a second of ``handdata export dataset``, beside a plain loop for each layout.

Run ``python benchmarks/export.py [--samples N] [--format NAME]``. The samples are crops of 256 px with masks, in
units of 1,000. The plain loop is what a user would write, in one process: ``pyarrow`` reads one shard after another,
``numpy.savez_compressed``, ``pycocotools``, ``webdataset.TarWriter``, ``datasets`` or ``rerun`` write. It chooses
nothing, cannot go on where it stopped, and writes no licences. Both write to the same disk and end with ``sync``.

Prints samples a second, the processor time of all processes a sample, and the peak memory of the largest process, ours
also for half as many samples: it should stay.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow.parquet as pq

from handdata.jobs.exports.documents import ExportRequest
from handdata.jobs.exports.export import export_dataset
from handdata.pipeline.shards.commit import write_unit
from handdata.pipeline.shards.lease import take_lease
from handdata.pipeline.shards.manifest import sum_manifest
from handdata.pipeline.shards.plan import PlannedUnit
from handdata.pipeline.shards.state import read_state, write_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import AnnotatedSample, EncodedImage, Pair

SIDE = 256
UNIT = 1000
IMAGES = 100
"""Different images; the others repeat them."""


def main() -> None:
    """Write samples, export them in each layout, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--format", choices=list(LOOPS), help="this one only")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {arguments.samples:,} samples of {SIDE} px")
    titles = ("samples/s", "CPU a sample", "peak", "peak of half", "loop: samples/s", "CPU")
    print(f"{'':14}{''.join(f'{title:>16}' for title in titles)}")
    with tempfile.TemporaryDirectory(prefix="handdata-export-") as name:
        folder = Path(name)
        for samples in (arguments.samples, arguments.samples // 2):
            in_own_process(write_samples, folder / str(samples), samples)
        for layout in [arguments.format] if arguments.format else LOOPS:
            whole, half = (
                in_own_process(measured, layout, folder / str(samples), folder / "out", True)
                for samples in (arguments.samples, arguments.samples // 2)
            )
            loop = in_own_process(measured, layout, folder / str(arguments.samples), folder / "out", False)
            cells = [f"{arguments.samples / whole[0]:16,.0f}", f"{1e3 * whole[1] / arguments.samples:13.2f} ms"]
            cells += [f"{whole[2]:12.0f} MiB", f"{half[2]:12.0f} MiB"]
            cells += [f"{arguments.samples / loop[0]:16,.0f}", f"{1e3 * loop[1] / arguments.samples:13.2f} ms"]
            print(f"{layout:14}{''.join(cells)}", flush=True)


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, so that its memory is counted alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measured(layout: Any, workspace: Path, out: Path, ours: bool) -> tuple[float, float, float]:
    """Export once; return seconds, processor seconds of all processes, and the peak of the largest in MiB."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    with peak_of_children() as peak:
        start, processor = time.perf_counter(), processor_seconds()
        if ours:
            export_dataset(ExportRequest(format=layout, workspace=str(workspace), dataset="dataset"), Storage(out))
        else:
            out.mkdir()
            LOOPS[layout](sorted(workspace.glob("dataset/data/*/*/*.parquet")), out)
        os.sync()
        seconds, processor = time.perf_counter() - start, processor_seconds() - processor
    return seconds, processor, peak.mib


def processor_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class peak_of_children:  # noqa: N801 - reads as a verb
    """Look twenty times a second how much memory this process or a child has."""

    def __enter__(self) -> "peak_of_children":
        self.mib = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        own = psutil.Process()
        while not self._end.wait(0.05):
            for process in (own, *own.children(recursive=True)):
                try:
                    self.mib = max(self.mib, process.memory_info().rss / 2**20)
                except psutil.NoSuchProcess:
                    continue


def write_samples(workspace: Path, count: int) -> None:
    """Write an annotated dataset of one video, cut into units."""
    rng = np.random.default_rng(0)
    images = [a_sample(rng) for _ in range(IMAGES)]
    dataset = Dataset(Storage(workspace))
    lease = take_lease(dataset)
    starts = range(0, count, UNIT)
    for start in starts:
        name = f"unit-{start:07d}"
        rows = [named(images[row % IMAGES], row, name) for row in range(start, min(start + UNIT, count))]
        write_unit(lease, PlannedUnit(name, "synthetic", "train", len(rows), "", 0), rows, [], "0" * 16)
    state = read_state(dataset)
    licences = {"synthetic": "Apache-2.0"}
    manifest = sum_manifest(
        None, state.markers, len(starts), image_size=SIDE, annotators={"0" * 16: {}}, licenses=licences
    )
    write_manifest(lease, state, manifest)


def named(sample: AnnotatedSample, row: int, unit_id: str) -> AnnotatedSample:
    """Return a sample as the frame of a video of a hundred frames."""
    sequence, frame = f"s{row // 100:05d}", row % 100
    name = f"synthetic/train/{sequence}/{frame:06d}-0"
    own = {"sample_id": name, "record_id": name, "unit_id": unit_id, "sequence_id": sequence, "frame_index": frame}
    return sample.model_copy(update=own)


def a_sample(rng: np.random.Generator) -> AnnotatedSample:
    """Return a crop with the detail of a photograph, and a mask with the outline of a hand."""
    pixels = np.zeros((SIDE, SIDE, 3), np.float32)
    for octave in range(2, 9):
        noise = rng.normal(0, 1, (2**octave, 2**octave, 3)).astype(np.float32)
        pixels += cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) * 90 / 1.75**octave
    mask = np.zeros((SIDE, SIDE), np.uint8)
    keypoints = np.zeros((42, 2), np.float32)
    keypoints[0] = 128, 210
    for finger in range(5):
        tip = rng.uniform((50, 30), (200, 110))
        keypoints[1 + 4 * finger : 5 + 4 * finger] = np.linspace((95 + 17 * finger, 165), tip, 4)
        cv2.line(mask, (95 + 17 * finger, 165), tuple(int(value) for value in tip), 255, 16)
    cv2.ellipse(mask, (128, 185), (55, 45), 0, 0, 360, 255, -1)
    joints = np.zeros((42, 3), np.float32)
    joints[:21] = np.c_[(keypoints[:21] - 128) / 300 * 0.6, np.full(21, 0.6)]
    image = np.clip(128 + pixels, 0, 255).astype(np.uint8)
    return AnnotatedSample(
        **dict.fromkeys(("sample_id", "record_id", "unit_id", "sequence_id"), ""),
        source="synthetic",
        split="train",
        frame_index=0,
        camera_id="0",
        timestamp_s=None,
        subject_id=None,
        origin_id=None,
        viewpoint="exo",
        hand_state=("labelled", "absent"),
        image_uri="image.jpg",
        video_frame=None,
        width=SIDE,
        height=SIDE,
        camera_model="pinhole",
        camera_dist=None,
        camera_t_world=np.eye(4, dtype=np.float32),
        license="Apache-2.0",
        license_id="Apache-2.0",
        image=EncodedImage(bytes=bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])),
        hand_mask=EncodedImage(bytes=bytes(cv2.imencode(".png", mask)[1])),
        keypoints_2d=keypoints,
        keypoints_valid=np.arange(42) < 21,
        keypoints_origin=("dataset", None),
        keypoints_score=Pair(1, 0),
        agreement_px=(None, None),
        hand_px=Pair(180, 0),
        mask_origin="dataset",
        mask_extent="hand",
        mask_score=1.0,
        mask_spill=0.0,
        sharpness=100.0,
        contrast=30.0,
        phash=0,
        crop_xyxy=(0, 0, SIDE, SIDE),
        pad_ltrb=(0, 0, 0, 0),
        crop_mode="frame",
        keypoints_3d=joints,
        camera_k=np.array([[300, 0, 128], [0, 300, 128], [0, 0, 1]], np.float32),
        flags=(),
        annotator_hash="0" * 16,
    )


def rows_of(shards: list[Path]) -> Iterator[dict[str, Any]]:
    """Yield all rows."""
    for shard in shards:
        yield from pq.read_table(shard, partitioning=None).to_pylist()


def decoded_mask(row: dict[str, Any]) -> np.ndarray:
    """Return a mask, 0 or 1."""
    return (cv2.imdecode(np.frombuffer(row["hand_mask"]["bytes"], np.uint8), 0) > 0).astype(np.uint8)


def loop_foundhand(shards: list[Path], out: Path) -> None:
    """Write ``.jpg`` and ``.npz``."""
    for row in rows_of(shards):
        folder = out / "synthetic" / "processed_seq" / row["split"] / row["sequence_id"]
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{row['frame_index']:06d}-{row['camera_id']}"
        (folder / f"{stem}.jpg").write_bytes(row["image"]["bytes"])
        keypoints = np.array(row["keypoints_2d"], np.float32).reshape(42, 2)
        np.savez_compressed(folder / f"{stem}.npz", kpts=keypoints, hand_mask=decoded_mask(row))


def loop_coco(shards: list[Path], out: Path) -> None:
    """Write images and one label file."""
    from pycocotools import mask as masks

    images, annotations = [], []
    for number, row in enumerate(rows_of(shards), start=1):
        name = f"{row['sequence_id']}_{row['frame_index']:06d}.jpg"
        (out / name).write_bytes(row["image"]["bytes"])
        encoded = masks.encode(np.asfortranarray(decoded_mask(row)))
        keypoints = np.c_[np.array(row["keypoints_2d"]).reshape(42, 2), 2 * np.array(row["keypoints_valid"])]
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        annotation = {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0}
        annotation |= {"bbox": masks.toBbox(encoded).tolist(), "area": int(masks.area(encoded))}
        annotation |= {"righthand_kpts": keypoints[:21].ravel().tolist()}
        annotation |= {"lefthand_kpts": keypoints[21:].ravel().tolist()}
        annotations.append(annotation | {"segmentation": encoded | {"counts": encoded["counts"].decode()}})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "hands"}]}
    (out / "hands_train.json").write_text(json.dumps(document))


def loop_webdataset(shards: list[Path], out: Path) -> None:
    """Write an archive a shard."""
    import webdataset

    for shard in shards:
        with webdataset.TarWriter(str(out / f"{shard.stem}.tar")) as archive:
            for row in rows_of([shard]):
                image, mask = row.pop("image")["bytes"], row.pop("hand_mask")["bytes"]
                archive.write({"__key__": row["sample_id"], "jpg": image, "mask.png": mask, "json": row})


def loop_huggingface(shards: list[Path], out: Path) -> None:
    """Write a Parquet file with the library itself."""
    import datasets

    rows = datasets.load_dataset("parquet", data_files=[str(shard) for shard in shards], cache_dir=str(out / "cache"))
    rows["train"].to_parquet(str(out / "train.parquet"))


def loop_rerun(shards: list[Path], out: Path) -> None:
    """Write a recording a sequence."""
    import rerun as rr

    recordings: dict[str, rr.RecordingStream] = {}
    for row in rows_of(shards):
        sequence = row["sequence_id"]
        if sequence not in recordings:
            recordings.clear()
            recordings[sequence] = rr.RecordingStream("loop", recording_id=sequence)
            recordings[sequence].save(str(out / f"{sequence}.rrd"))
        recording = recordings[sequence]
        recording.set_time("frame", sequence=row["frame_index"])
        camera_k = np.array(row["camera_k"]).reshape(3, 3)
        image = rr.EncodedImage(contents=row["image"]["bytes"], media_type="image/jpeg")
        recording.log("camera", rr.Pinhole(image_from_camera=camera_k, resolution=(SIDE, SIDE)), image)
        recording.log("camera/keypoints", rr.Points2D(np.array(row["keypoints_2d"]).reshape(42, 2)[:21]))
        recording.log("joints", rr.Points3D(np.array(row["keypoints_3d"]).reshape(42, 3)[:21]))


LOOPS: dict[str, Callable[[list[Path], Path], None]] = {
    "foundhand": loop_foundhand,
    "coco": loop_coco,
    "webdataset": loop_webdataset,
    "huggingface": loop_huggingface,
    "rerun": loop_rerun,
}


if __name__ == "__main__":
    main()
