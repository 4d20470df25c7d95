"""The files of a dataset's card, beside its manifest: ``README.md``, ``LICENSE.md`` and ``croissant.json``."""

import json
from collections.abc import Callable
from datetime import date
from typing import Any, Final

from handdata.adapters.registry import known_cards
from handdata.pipeline.report.card import dataset_card
from handdata.pipeline.report.croissant import croissant
from handdata.pipeline.report.labels import read_labels, terms_of_labels
from handdata.pipeline.shards import read_manifest
from handdata.pipeline.storage import Dataset
from handdata.pipeline.storage.layout import CARD, CROISSANT
from handdata.schemas import SPLITS, DatasetManifest
from handdata.schemas.terms import LICENCES_FILE, licences_page

HUB_SPLITS: Final = {"train": "train", "val": "validation", "test": "test"}
"""Names of our splits on the Hugging Face Hub."""

_USAGE: Final = """
```python
from datasets import load_dataset

hands = load_dataset("FOLDER")  # the folder that holds this file

import mlcroissant

hands = mlcroissant.Dataset("FOLDER/croissant.json").records("samples")

import handdata

hands = handdata.open_dataset("WORKSPACE")  # the folder above it
```
"""


def write_card(dataset: Dataset, made_on: date, on_shard: Callable[[int, int], None] | None = None) -> dict[str, str]:
    """Write the card of a dataset into its folder.

    Args:
        dataset: The dataset.
        made_on: Day that the metadata says.
        on_shard: Function called with (shards read, shards to read).

    Returns:
        The files, relative to the dataset, by what they are.

    Raises:
        UsageError: There is no dataset.
        StorageError: A shard is damaged, or the files cannot be written.

    """
    manifest, cards = read_manifest(dataset), known_cards()
    labels = read_labels(dataset, on_shard)
    contents = {
        LICENCES_FILE: licences_page(terms_of_labels(manifest, labels, cards)),
        CROISSANT: json.dumps(croissant(manifest, labels, made_on, cards=cards), indent=2, ensure_ascii=False),
        CARD: dataset_card(manifest, labels, cards=cards, usage=_USAGE, hub={"configs": [_configuration(manifest)]}),
    }
    for name, text in contents.items():
        dataset.storage.write_bytes(dataset.path(name), text.encode())
    return {"card": CARD, "licences": LICENCES_FILE, "Croissant": CROISSANT}


def _configuration(manifest: DatasetManifest) -> dict[str, Any]:
    """Return how the Hub's ``load_dataset`` finds the shards of each split."""
    held = {split for splits in manifest.sources.values() for split, counts in splits.items() if counts.samples}
    files = [
        {"split": HUB_SPLITS[split], "path": f"data/source=*/split={split}/*.parquet"}
        for split in SPLITS
        if split in held
    ]
    return {"config_name": "default", "data_files": files}
