"""Pairs a second of our loader, compared with WebDataset, MosaicML Streaming, LitData and Hugging Face datasets.

    python benchmarks/loader.py [--rows N] [--seconds S]

All store the same JPEG images and PNG masks of 512 px, and decode them with the same libraries. The others give single
frames; two of these count as a pair. The limit is decoding the same bytes from memory in one process, warmed up. Rates
are by the clock and by the CPU time of a loader's processes, which other work on the machine affects less. The packages
of the others are installed once, into an environment of their own in ``~/.cache/handdata``. Their workers are
processes, ours are threads.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

PEERS = {"webdataset": "webdataset", "streaming": "mosaicml-streaming", "litdata": "litdata"}
NAMES = {"webdataset": "WebDataset", "streaming": "MosaicML Streaming", "litdata": "LitData", "datasets": "HF datasets"}
STORED = 512
FRAMES_A_BATCH = 32
WARM_UP_BATCHES = 5
_MASK_CODING = [
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT),
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
]
"""Coding of masks, as ``handdata annotate`` writes them."""


def main() -> None:
    """Write the same rows in every format, measure each loader in a process of its own, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--measure", nargs=4, metavar=("NAME", "SIZE", "WORKERS", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, size, workers, folder = options.measure
        print(json.dumps(measured(name, int(size), int(workers), Path(folder), options.seconds)))
        return
    if options.write:
        name, folder = options.write
        WRITERS[name](Path(folder), json_rows(Path(folder)))
        return

    with tempfile.TemporaryDirectory(prefix="handdata-loader-") as name:
        folder = Path(name)
        images, masks = encoded_frames(options.rows)
        for kind, values in (("image", images), ("mask", masks)):
            np.save(folder / f"{kind}.npy", np.array([np.frombuffer(value, np.uint8) for value in values], object))
        print(f"{options.rows} rows of {STORED} px, JPEG {_mean_kb(images):.0f} KB, mask {_mean_kb(masks):.1f} KB")
        for peer in WRITERS:
            call(peer, "--write", peer, str(folder))

        def rate(loader: str, size: int, workers: int) -> tuple[float, float]:
            found = call(loader, "--measure", loader, str(size), str(workers), str(folder), options.seconds)
            print(
                f"  {loader} {size} px, {workers} workers: {found[0]:.0f} pairs/s, {found[1]:.0f} a CPU second",
                file=sys.stderr,
                flush=True,
            )
            return found

        def row(title: str, loader: str, size: int, limit: float) -> float:
            (one, one_cpu), (two, two_cpu) = rate(loader, size, 1), rate(loader, size, 2)
            cells = f"{one:10.0f}{two:10.0f}{one_cpu:16.0f}{two_cpu:10.0f}{one_cpu / limit:14.2f}"
            print(f"{title:22}{cells}", flush=True)
            return one_cpu

        for size in (STORED, 256):
            _, limit = rate("limit", size, 0)
            title = "all decode at full size" if size == STORED else "the others decode at full size and resize"
            print(f"\n{size} px, {title}; limit {limit:.0f} pairs a CPU second")
            print(f"{'workers':22}{'1':>10}{'2':>10}{'1, CPU second':>16}{'2':>10}{'of the limit':>14}")
            best = max(row(NAMES[loader], loader, size, limit) for loader in NAMES)
            ours = row("handdata", "ours", size, limit)
            print(f"handdata: {ours / best:.2f} times the best of the others a CPU second")
        stored = row("handdata, latents", "latents", 256, limit)
        print(f"handdata, latents: {stored / best:.2f} times the best of the others a CPU second")


@cache
def python_of_peers() -> Path:
    """Return the Python of the other packages; it uses our environment for everything else (torch, OpenCV)."""
    from peers import peer_python  # not at the top: the peers run this script, too, and cannot import handdata

    python = peer_python("loader", sorted(PEERS.values()))
    # Written each time: another checkout's environment may be gone.
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    (site / "ours.pth").write_text(sysconfig.get_paths()["purelib"])
    return python


def call(loader: str, *arguments: object) -> tuple[float, float]:
    """Run this script for one loader in the environment that has it; return what it measured."""
    python = python_of_peers() if loader in PEERS else sys.executable
    *flags, last = map(str, arguments)
    seconds = ["--seconds", last] if "--measure" in flags else []
    command = [str(python), __file__, *flags, *(seconds or [last])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    found = subprocess.run(command, capture_output=True, env=environment, text=True)
    if found.returncode:
        raise SystemExit(f"{loader} failed: {found.stderr[-2000:]}")
    lines = found.stdout.strip().splitlines()
    return tuple(json.loads(lines[-1])) if seconds else (0.0, 0.0)


def encoded_frames(count: int) -> tuple[list[bytes], list[bytes]]:
    """Return encoded images with the detail of photographs, and masks with the shape of hands."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for _ in range(min(count, 128)):
        detail = np.zeros((STORED, STORED, 3), np.float32)
        for octave in range(2, 10):
            noise = rng.normal(0, 1, (2**octave, 2**octave, 3)).astype(np.float32)
            detail += cv2.resize(noise, (STORED, STORED), interpolation=cv2.INTER_CUBIC) * 90 / 1.75**octave
        image = np.clip(128 + detail, 0, 255).astype(np.uint8)
        mask = np.zeros((STORED, STORED), np.uint8)
        for finger in range(5):
            tip = (int(rng.integers(100, 400)), int(rng.integers(60, 250)))
            cv2.line(mask, (180 + 35 * finger, 330), tip, 255, int(rng.integers(24, 40)))
        cv2.ellipse(mask, (256, 370), (110, 90), 0, 0, 360, 255, -1)
        images.append(bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]))
        masks.append(bytes(cv2.imencode(".png", mask, _MASK_CODING)[1]))
    return [images[row % len(images)] for row in range(count)], [masks[row % len(masks)] for row in range(count)]


def json_rows(folder: Path) -> list[tuple[bytes, bytes]]:
    """Return the encoded rows that ``main`` saved."""
    images, masks = (np.load(folder / f"{kind}.npy", allow_pickle=True) for kind in ("image", "mask"))
    return [(image.tobytes(), mask.tobytes()) for image, mask in zip(images, masks, strict=True)]


def decoded(image: bytes, mask: bytes, size: int) -> dict[str, Any]:
    """Decode a frame at full size and resize it to the training size, as the peers do with a row."""
    import torch

    pixels = simplejpeg.decode_jpeg(image)
    outline = cv2.imdecode(np.frombuffer(mask, np.uint8), cv2.IMREAD_GRAYSCALE)
    if size != STORED:
        pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
        outline = cv2.resize(outline, (size, size), interpolation=cv2.INTER_AREA)
    return {"image": torch.from_numpy(pixels), "mask": torch.from_numpy(outline)}


class Decoding:
    """Decodes the rows of a format that takes a function; can be pickled."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, row: Any) -> dict[str, Any]:
        """Decode one row."""
        return decoded(row["image"], row["mask"], self.size)


# ------------------------------------------------------------------------------------------ the formats


def write_webdataset(folder: Path, rows: list[tuple[bytes, bytes]]) -> None:
    """Write tar files."""
    import webdataset

    (folder / "webdataset").mkdir()
    with webdataset.ShardWriter(str(folder / "webdataset/%05d.tar"), maxcount=64, verbose=0) as writer:
        for number, (image, mask) in enumerate(rows):
            writer.write({"__key__": f"{number:06d}", "image": image, "mask": mask})


def write_streaming(folder: Path, rows: list[tuple[bytes, bytes]]) -> None:
    """Write MDS shards."""
    from streaming import MDSWriter

    columns = {"image": "bytes", "mask": "bytes"}
    with MDSWriter(out=str(folder / "streaming"), columns=columns, size_limit=2**24) as writer:
        for image, mask in rows:
            writer.write({"image": image, "mask": mask})


class Row:
    """Returns a row; can be pickled, as LitData requires."""

    def __init__(self, rows: list[tuple[bytes, bytes]]) -> None:
        self.rows = rows

    def __call__(self, number: int) -> dict[str, bytes]:
        """Return one row."""
        return {"image": self.rows[number][0], "mask": self.rows[number][1]}


def write_litdata(folder: Path, rows: list[tuple[bytes, bytes]]) -> None:
    """Write LitData chunks."""
    import litdata

    litdata.optimize(
        Row(rows), list(range(len(rows))), str(folder / "litdata"), chunk_bytes="16MB", num_workers=1,
    )  # fmt: skip


def write_datasets(folder: Path, rows: list[tuple[bytes, bytes]]) -> None:
    """Write Hugging Face's Arrow files."""
    import datasets

    columns = {"image": [image for image, _ in rows], "mask": [mask for _, mask in rows]}
    datasets.Dataset.from_dict(columns).save_to_disk(folder / "datasets")


def write_shards(folder: Path, rows: list[tuple[bytes, bytes]]) -> None:
    """Write annotated shards of one video."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from handdata.pipeline.storage import Storage
    from handdata.schemas import EncodedImage
    from tests.fixtures.samples import sample, write_dataset

    first = sample("video", 0, size=STORED)
    samples = [
        first.model_copy(
            update={
                "sample_id": f"{number}",
                "record_id": f"{number}",
                "frame_index": number,
                "timestamp_s": number / 30,
                "image": EncodedImage(bytes=image),
                "hand_mask": EncodedImage(bytes=mask),
            }
        )
        for number, (image, mask) in enumerate(rows)
    ]
    write_dataset(Storage(folder / "ours"), samples)


def write_ours(folder: Path, rows: list[tuple[bytes, bytes]]) -> None:
    """Write annotated shards of one video, and their latents of 4 x 32 x 32 with a variance."""
    import torch
    from diffusers import AutoencoderKL

    from handdata.pipeline.storage import Dataset, Storage
    from handdata.trainer.autoencoders import load_autoencoder
    from handdata.trainer.data.latents import encode
    from handdata.trainer.presets import AutoencoderConfig

    write_shards(folder, rows)
    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
    ).save_pretrained(folder / "vae")
    config = AutoencoderConfig(kind="sd-vae", weights=str(folder / "vae"))
    encode(Dataset(Storage(folder / "ours")), load_autoencoder(config), config, 256)


WRITERS: dict[str, Callable[[Path, list[tuple[bytes, bytes]]], None]] = {
    "webdataset": write_webdataset,
    "streaming": write_streaming,
    "litdata": write_litdata,
    "datasets": write_datasets,
    "ours": write_ours,
}


# ------------------------------------------------------------------------------------------ the loaders


def measured(name: str, size: int, workers: int, folder: Path, seconds: float) -> tuple[float, float]:
    """Return one loader's pairs a second, and a CPU second of all its processes, after its warm-up."""
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if name == "limit":
        return limit(json_rows(folder), size, seconds)
    if name in ("ours", "latents"):
        batches = our_batches(folder, size, workers, stored=name == "latents")
    else:
        batches = LOADERS[name](folder, size, workers)
    iterator = iter(endless(batches))
    for _ in range(WARM_UP_BATCHES):
        next(iterator)
    began, busy, count = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - began < seconds:
        next(iterator)
        count += 1
    pairs = count * FRAMES_A_BATCH / 2
    return pairs / (time.perf_counter() - began), pairs / (cpu_seconds() - busy)


def cpu_seconds() -> float:
    """Return the CPU time of this process and its workers, which other work on the machine affects least."""
    parents, ticks = {}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            process, _, rest = file.read_text().partition(" ")
        except OSError:  # it has ended
            continue
        fields = rest.rpartition(")")[2].split()
        parents[int(process)], ticks[int(process)] = int(fields[1]), int(fields[11]) + int(fields[12])
    family = [os.getpid()]
    for process in family:  # grows while it is read
        family += [child for child, parent in parents.items() if parent == process]
    return sum(ticks[process] for process in family) / os.sysconf("SC_CLK_TCK")


def limit(rows: list[tuple[bytes, bytes]], size: int, seconds: float) -> tuple[float, float]:
    """Return pairs a second, and a CPU second, of decoding alone."""
    for image, mask in rows[:200]:
        decoded(image, mask, size)
    began, busy, count = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - began < seconds:
        decoded(*rows[count % len(rows)], size)
        count += 1
    return count / 2 / (time.perf_counter() - began), count / 2 / (cpu_seconds() - busy)


def endless(batches: Iterable[Any]) -> Iterable[Any]:
    """Repeat a loader's batches without end."""
    while True:
        yield from batches


def our_batches(folder: Path, size: int, workers: int, stored: bool) -> Iterable[Any]:
    """Return our loader, which gives pairs of frames."""
    from handdata.pipeline.storage import Dataset, Storage
    from handdata.trainer.autoencoders import load_autoencoder
    from handdata.trainer.data.latents import open_latents
    from handdata.trainer.data.loading import pair_batches
    from handdata.trainer.data.pairs import PairDataset
    from handdata.trainer.presets import AutoencoderConfig, PairConfig

    storage = Storage(folder / "ours")
    latents = None
    if stored:
        config = AutoencoderConfig(kind="sd-vae", weights=str(folder / "vae"))
        latents = open_latents(Dataset(storage), load_autoencoder(config), config, size)
    moving = PairConfig(video=1, view=0, still=0)
    dataset = PairDataset(Dataset(storage), image_size=size, split="train", pairs=moving, latents=latents)
    pairs = FRAMES_A_BATCH // 2
    return pair_batches(dataset, [range(start, start + pairs) for start in range(0, 10**6, pairs)], workers)


def webdataset_batches(folder: Path, size: int, workers: int) -> Iterable[Any]:
    """Return WebDataset's loader."""
    import torch
    import webdataset

    tars = sorted(map(str, (folder / "webdataset").glob("*.tar")))
    frames = webdataset.WebDataset(tars, shardshuffle=100, workersplitter=webdataset.split_by_worker)
    return torch.utils.data.DataLoader(
        frames.shuffle(1000).map(Decoding(size)),
        batch_size=FRAMES_A_BATCH,
        num_workers=workers,
        persistent_workers=True,
    )


def streaming_batches(folder: Path, size: int, workers: int) -> Iterable[Any]:
    """Return MosaicML Streaming's loader."""
    import torch
    from streaming import StreamingDataset

    class Frames(StreamingDataset):
        def __getitem__(self, number: int) -> dict[str, Any]:
            return decoded(**super().__getitem__(number), size=size)

    frames = Frames(local=str(folder / "streaming"), shuffle=True, batch_size=FRAMES_A_BATCH)
    return torch.utils.data.DataLoader(frames, batch_size=FRAMES_A_BATCH, num_workers=workers, persistent_workers=True)


def litdata_batches(folder: Path, size: int, workers: int) -> Iterable[Any]:
    """Return LitData's loader."""
    import litdata

    class Frames(litdata.StreamingDataset):
        def __getitem__(self, number: Any) -> dict[str, Any]:
            return decoded(**super().__getitem__(number), size=size)

    frames = Frames(str(folder / "litdata"), shuffle=True)
    return litdata.StreamingDataLoader(frames, batch_size=FRAMES_A_BATCH, num_workers=workers, persistent_workers=True)


def datasets_batches(folder: Path, size: int, workers: int) -> Iterable[Any]:
    """Return a loader of Hugging Face's map-style dataset."""
    import datasets
    import torch

    frames = datasets.load_from_disk(folder / "datasets")

    def transformed(rows: dict[str, list[bytes]]) -> dict[str, list[Any]]:
        frames = [decoded(image, mask, size) for image, mask in zip(rows["image"], rows["mask"], strict=True)]
        return {name: [frame[name] for frame in frames] for name in ("image", "mask")}

    return torch.utils.data.DataLoader(
        frames.with_transform(transformed), FRAMES_A_BATCH, shuffle=True, num_workers=workers, persistent_workers=True
    )


LOADERS: dict[str, Callable[[Path, int, int], Iterable[Any]]] = {
    "webdataset": webdataset_batches,
    "streaming": streaming_batches,
    "litdata": litdata_batches,
    "datasets": datasets_batches,
}


def _mean_kb(values: list[bytes]) -> float:
    return float(np.mean([len(value) for value in values])) / 1000


if __name__ == "__main__":
    main()
