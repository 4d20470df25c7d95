"""Batches of pairs, made ahead of the caller by threads.

Threads, not processes: simplejpeg and OpenCV decode outside Python's lock, and a batch that stays in its process is not
copied. Sending one to another process costs about as much as decoding it.
"""

import ctypes
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import cv2

from handdata.trainer.data.batch import FramePair
from handdata.trainer.data.pairs import PairDataset

BATCHES_AHEAD: Final = 2
"""Batches that each decoding thread is ahead of the caller."""

KEPT_FREE_BYTES: Final = 512 << 20
"""Freed memory that the process keeps for the next images and activations."""


def pair_batches(
    dataset: PairDataset, batches: Iterable[Sequence[int]], threads: int = 0, pinned: bool = False
) -> Iterator[FramePair]:
    """Yield batches of pairs in their order.

    Args:
        dataset: Pairs by position.
        batches: Positions of each batch.
        threads: Number of threads that decode ahead, ``BATCHES_AHEAD`` batches each; with 0 the caller itself decodes.
        pinned: Whether batches lie in pinned memory, from which a GPU copies them while it computes.

    """

    def read(positions: Sequence[int]) -> FramePair:
        batch = dataset.batch(positions)
        return FramePair(*(field.pin_memory() for field in batch)) if pinned else batch

    keep_freed_memory()
    if not threads:
        yield from map(read, batches)
        return
    pool = ThreadPoolExecutor(threads, "decode", initializer=cv2.setNumThreads, initargs=(1,))
    ahead: deque[Future[FramePair]] = deque()
    try:
        for positions in batches:
            ahead.append(pool.submit(read, positions))
            if len(ahead) > BATCHES_AHEAD * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def keep_freed_memory() -> None:
    """Have glibc reuse what images, batches and activations leave; nothing happens with another C library.

    By default it may give their pages back to the kernel and get them anew, zeroed: up to a third of the loader's time
    (``benchmarks/loader.py``), and a twentieth of a training step on the CPU. It holds for the whole process.
    """
    trim_threshold, mmap_threshold, largest_mmap_threshold = -1, -3, 32 << 20  # of malloc.h
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(mmap_threshold, largest_mmap_threshold)
        set_option(trim_threshold, KEPT_FREE_BYTES)
