"""CPU stages and the GPU's overlap: while there is work, the mask model does not wait for it."""

import sys
import threading
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import ray

from handdata.adapters.synthesis.dataset import write_dataset
from handdata.adapters.synthetic import SyntheticAdapter
from handdata.pipeline.annotation.factory import ModelFiles
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.run.workers import SAM_OPTIONS, AnnotateWorker, SamWorker
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards.lease import take_lease
from handdata.pipeline.shards.plan import plan_source
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas.arrays import BoolArray, ByteArray, FloatArray

BATCH_S = 0.6
"""Far above what a worker needs to prepare a batch, also on a busy machine."""


class SleepingModel:
    """Answers with full masks after ``BATCH_S``, one call at a time as a GPU does, and remembers when."""

    def __init__(self) -> None:
        self.busy: list[tuple[float, float]] = []
        self._one_at_a_time = threading.Lock()

    def propose(
        self, images: Sequence[ByteArray], keypoints: Sequence[FloatArray], valid: Sequence[BoolArray]
    ) -> list[BoolArray]:
        with self._one_at_a_time:
            began = time.monotonic()
            time.sleep(BATCH_S)
            self.busy.append((began, time.monotonic()))
        hands = [int(joints[:21].any()) + int(joints[21:].any()) for joints in valid]
        return [np.ones((count, 3, *image.shape[:2]), bool) for image, count in zip(images, hands, strict=True)]


class SleepingSamWorker(SamWorker):
    """The real actor around the sleeping model."""

    def busy(self) -> list[tuple[float, float]]:
        return self.open().busy  # type: ignore[attr-defined]

    def _load(self) -> SleepingModel:  # type: ignore[override]
        return SleepingModel()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_mask_model_is_busy_while_the_cpu_can_feed_it(tmp_path: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test files
    write_dataset(tmp_path / "frames", 2, 12, 20, 1, 64, seed=0)
    storage = Storage(tmp_path / "workspace")
    ingest(SyntheticAdapter, tmp_path / "frames", storage)
    units = plan_source(Dataset(storage), "synthetic", 64)
    lease = take_lease(Dataset(storage))
    sam = ray.remote(SleepingSamWorker).options(**SAM_OPTIONS, resources={"stand_in_gpu": 1})
    sam = sam.remote(Path("none"), "cpu", 600)
    ray.get(sam.check.remote())
    settings = AnnotateSettings(keypoints="dataset", masks="sam", image_size=64)
    models = ModelFiles(hand_landmarker=None, sam=Path("none"), sam_origin="sam_vit_b", grabcut=False, hashes={})
    worker = ray.remote(num_cpus=1)(AnnotateWorker)
    workers = [worker.remote(lease, settings, models, [sam], 600, {}) for _ in range(2)]
    ray.get([each.open.remote() for each in workers])

    turns = zip(cycle(workers), units, strict=False)
    markers = ray.get([each.commit.remote(unit, {}) for each, unit in turns])

    assert sum(marker.samples for marker in markers) == 240
    busy = sorted(ray.get(sam.busy.remote()))
    assert len(busy) >= 240 / 16
    # From the first batch to the last but one: then one of the two workers has nothing left to send.
    spans = busy[:-1]
    share = sum(stop - start for start, stop in spans) / (spans[-1][1] - spans[0][0])
    assert share >= 0.9
    for each in (*workers, sam):
        ray.kill(each)
