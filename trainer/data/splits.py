"""Which split is trained on, and which splits are held out from it: the answers for training, sampling and scores."""

from collections import Counter
from typing import Final

from handdata.pipeline.shards import read_manifest
from handdata.pipeline.storage import Dataset
from handdata.schemas import Split

VALIDATION_SPLIT: Final[Split] = "val"
"""Split that a run is measured on while it goes on; the test split never is."""

HELD_OUT: Final[dict[Split, tuple[Split, ...]]] = {"train": (VALIDATION_SPLIT, "test"), "val": ("test",), "test": ()}
"""Splits that are held out from each split: it must not show their physical frames."""

TRAINED_FIRST: Final[tuple[Split, ...]] = ("train", *HELD_OUT["train"])
"""All splits, the one to train on first."""

SHOWN_FIRST: Final[tuple[Split, ...]] = (*HELD_OUT["train"], "train")
"""All splits, those held out from training first: samples that are shown come from the first with any."""


def training_split(dataset: Dataset) -> Split:
    """Return the split to train on: ``train``, or the largest one of a dataset without it (a test set alone)."""
    samples = _samples(dataset)
    return "train" if samples["train"] or not samples else samples.most_common(1)[0][0]


def _samples(dataset: Dataset) -> Counter[Split]:
    """Return the number of samples of each split."""
    samples: Counter[Split] = Counter()
    for splits in read_manifest(dataset).sources.values():
        for split, counts in splits.items():
            samples[split] += counts.samples
    return samples
