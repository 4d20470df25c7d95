from pathlib import Path

import pytest

from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import Split
from handdata.trainer.data.splits import shown_split, training_split
from tests.fixtures.samples import sample, write_dataset


@pytest.mark.parametrize(
    ("frames", "trained", "shown"),
    [
        ({"train": 1, "val": 2, "test": 3}, "train", "val"),
        ({"train": 3, "test": 1}, "train", "test"),
        ({"train": 2}, "train", "train"),
        ({"val": 1, "test": 2}, "test", "val"),
        ({"test": 2}, "test", "test"),
    ],
)
def test_a_split_is_chosen_from_what_a_dataset_holds(
    tmp_path: Path, frames: dict[Split, int], trained: Split, shown: Split
) -> None:
    samples = [sample("wave", frame, split=split) for split, count in frames.items() for frame in range(count)]
    write_dataset(Storage(tmp_path), samples)
    assert training_split(Dataset(Storage(tmp_path))) == trained
    assert shown_split(Dataset(Storage(tmp_path))) == shown
