from pathlib import Path

import pytest

from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import Split
from handdata.trainer.data.splits import training_split
from tests.fixtures.samples import sample, write_dataset


@pytest.mark.parametrize(
    ("frames", "trained"),
    [
        ({"train": 1, "val": 2, "test": 3}, "train"),
        ({"train": 3, "test": 1}, "train"),
        ({"train": 2}, "train"),
        ({"val": 1, "test": 2}, "test"),
        ({"test": 2}, "test"),
    ],
)
def test_a_split_is_chosen_from_what_a_dataset_holds(tmp_path: Path, frames: dict[Split, int], trained: Split) -> None:
    samples = [sample("wave", frame, split=split) for split, count in frames.items() for frame in range(count)]
    write_dataset(Storage(tmp_path), samples)
    assert training_split(Dataset(Storage(tmp_path))) == trained
