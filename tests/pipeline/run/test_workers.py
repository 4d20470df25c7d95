"""A SAM actor serves the masks of several workers, and is started again when it dies."""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from handdata.adapters.synthetic import SyntheticAdapter
from handdata.pipeline.annotation.annotator import Annotator
from handdata.pipeline.annotation.sam import SamSegmenter
from handdata.pipeline.run.workers import SAM_OPTIONS, RemoteSam, SamWorker
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards.plan import read_unit, stored_units
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import HandRecord, samples_to_table
from tests.fixtures import sam
from tests.fixtures.sam import build_small_sam


class RandomSamWorker(SamWorker):
    """A SAM worker with a small model of random weights."""

    def process_id(self) -> int:
        return os.getpid()

    def _load(self) -> SamSegmenter:
        return SamSegmenter(build_small_sam(), "cpu")


@pytest.fixture(scope="module")
def actor(ray_cluster: None) -> Any:
    """A SAM actor, which takes seconds to start, for all tests of this file."""
    for module in (sys.modules[__name__], sam):
        ray.cloudpickle.register_pickle_by_value(module)  # workers cannot import test files
    return ray.remote(RandomSamWorker).options(**SAM_OPTIONS).remote(Path("random"), "cpu", 600)


@pytest.fixture
def annotator(actor: Any) -> Annotator:
    return Annotator(
        open_mask=SyntheticAdapter().open_mask,
        license="",
        settings=AnnotateSettings(masks="sam", image_size=64),
        annotator_hash="",
        detector=None,
        mask_model=RemoteSam("sam_vit_b", [actor]),
    )


@pytest.fixture
def records(annotated_synthetic: Path) -> list[HandRecord]:
    storage = Storage(annotated_synthetic)
    unit = next(unit for unit in stored_units(Dataset(storage), "synthetic") if unit.split == "train")
    return read_unit(storage, unit)


def test_sam_masks_come_from_an_actor_that_serves_the_workers(annotator: Annotator, records: list[HandRecord]) -> None:
    samples, rejections = annotator.process("unit", records[:20])
    assert len(samples) == 20
    assert not rejections
    assert all(sample.mask_origin == "sam_vit_b" and sample.hand_mask is not None for sample in samples)


def test_a_sam_actor_that_dies_during_a_call_is_started_again(
    actor: Any, annotator: Annotator, records: list[HandRecord]
) -> None:
    undisturbed, _ = annotator.process("unit", records[:32])
    victim = ray.get(actor.process_id.remote())
    kill_soon = threading.Timer(0.1, os.kill, (victim, signal.SIGKILL))
    kill_soon.start()
    samples, _ = annotator.process("unit", records[:32])
    kill_soon.join()
    assert samples_to_table(samples) == samples_to_table(undisturbed)
    assert ray.get(actor.process_id.remote()) != victim
