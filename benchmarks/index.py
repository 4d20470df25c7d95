"""Memory and time of the training index at ten million generated rows, without images.

    python benchmarks/index.py [--rows N]

Prints the time and memory to build the index, the memory that a process holds of it, and the time to draw a pair.
"""

import argparse
import gc
import resource
import time
from pathlib import Path

import numpy as np
import polars as pl

from handdata.pipeline.shards import Shard
from handdata.trainer.data.candidates import PairCandidates
from handdata.trainer.data.order import TargetOrder
from handdata.trainer.data.sample_index import source_ranges, without_repeats
from handdata.trainer.presets import PairConfig

SOURCES = 13
ROWS_A_SHARD = 2000
CAMERAS = 4
FRAMES = 250
"""Number of frames in a sequence."""


def main() -> None:
    """Build, draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    count = parser.parse_args().rows

    shards, rows = generated(count)
    gc.collect()
    before, began = _resident_mib(), time.perf_counter()
    rows = without_repeats(rows, shards)
    counts = np.bincount(rows["shard"].to_numpy(), minlength=len(shards))
    candidates = PairCandidates(rows, list(source_ranges(shards, counts)), PairConfig())
    byte_ranges = rows.select(pl.col("^(image|hand_mask)_(start|bytes)$")).to_numpy(order="c")
    arrays = {"row": rows["row"].to_numpy(), "byte_ranges": byte_ranges, "sample": rows["sample"].to_numpy()}
    order = TargetOrder(candidates.source_targets(np.concatenate([[0], np.cumsum(counts)])), seed=0)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    del rows
    gc.collect()
    held = sum(array.nbytes for array in (*arrays.values(), *candidates.arrays.values()))
    print(f"{count:,} rows in {len(shards):,} shards")
    print(f"index: {seconds:.1f} s, peak {peak:,.0f} MiB, {before:,.0f} MiB of them the rows as generated")
    print(f"held: {held / 2**20:,.0f} MiB")
    for line in measure_draws(candidates, order):
        print(line)


def generated(count: int) -> tuple[list[Shard], pl.DataFrame]:
    """Return rows as ``read_rows`` makes them from shards: videos of several cameras; a tenth are stills."""
    rng = np.random.default_rng(0)
    number = np.arange(count)
    shard = (number // ROWS_A_SHARD).astype(np.int32)
    shards = [
        Shard(f"{index}.parquet", f"source{index * SOURCES // (shard[-1] + 1):02d}", "train", "")
        for index in range(shard[-1] + 1)
    ]
    sequence, inside = np.divmod(number, CAMERAS * FRAMES)
    frame, camera = np.divmod(inside, CAMERAS)
    still = sequence % 10 == 0
    video = np.where(still, number, -1 - sequence * CAMERAS - camera)
    moment = np.where(still, number, -1 - sequence * FRAMES - frame)
    return shards, pl.DataFrame(
        {
            "shard": shard,
            "row": (number % ROWS_A_SHARD).astype(np.int32),
            **{
                f"{name}_{part}": rng.integers(4, 2**27, count).astype(np.uint32)
                for name in ("image", "hand_mask")
                for part in ("start", "bytes")
            },
            "sample": number.astype(np.uint64),
            "origin": number.astype(np.uint64),
            "repacked": np.zeros(count, bool),
            "video": video.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15),
            "moment": moment.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15),
            "timestamp_s": np.where(sequence % 3 == 0, np.nan, frame / 30),
            "frame_index": frame.astype(np.int32),
        }
    )


def measure_draws(candidates: PairCandidates, order: TargetOrder) -> list[str]:
    """Draw pairs; return lines about the time and memory that this takes."""
    start = _resident_mib()
    began = time.perf_counter()
    first = order[0]
    first_s = time.perf_counter() - began
    began = time.process_time()
    draws = 20_000
    for position in range(draws):
        candidates.draw(candidates.target(order[position]), np.random.default_rng([0, position, 0]))
    each_us = (time.process_time() - began) / draws * 1e6
    more = _resident_mib() - start
    jump = time.perf_counter()
    order[37 * len(order) + first]
    jump = time.perf_counter() - jump
    return [
        f"first position {first_s * 1e3:.0f} ms, then {each_us:.0f} us CPU a pair; any other position, as on --resume, "
        f"{jump * 1e3:.0f} ms",
        f"{more:.0f} MiB more after {draws:,} pairs",
    ]


def _resident_mib() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024


if __name__ == "__main__":
    main()
