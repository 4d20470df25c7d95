"""The adapter of docs/adding-a-source.md reads the dataset that the page describes."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from handdata.adapters import AdapterOptions
from handdata.schemas import HandRecord, Rejection

GUIDE = Path(__file__).parents[2] / "docs/adding-a-source.md"


@pytest.fixture
def guide(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("adapter_of_the_guide")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (source,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    exec(compile(source, str(GUIDE), "exec"), module.__dict__)
    return module


def test_the_adapter_of_the_guide_reads_its_dataset(guide: ModuleType, tmp_path: Path) -> None:
    hand = [[4.0 + joint, 20.0] for joint in range(21)]
    labels = {
        "one": {"person": "p7", "right": hand, "left": None},
        "gone": {"person": "p7", "right": None, "left": None},
    }
    for folder in ("labels", "images", "masks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "labels/train.json").write_text(json.dumps(labels))
    Image.new("RGB", (64, 48)).save(tmp_path / "images/one.jpg")
    Image.new("L", (64, 48), 255).save(tmp_path / "masks/one.png")

    adapter = guide.WaveAdapter(AdapterOptions())
    assert not adapter.layouts[0].missing_from(tmp_path)
    (partition,) = adapter.partitions(tmp_path)
    record, rejection = adapter.records(tmp_path, partition)

    assert isinstance(record, HandRecord)
    assert (record.record_id, record.width, record.height) == ("wave/train/one/000000-0", 64, 48)
    assert record.hand_state == ("labelled", "unknown")
    assert np.array_equal(record.keypoints_2d[:21], hand)
    assert adapter.open_mask(record).all()
    assert isinstance(rejection, Rejection)
    assert (rejection.record_id, rejection.reason) == ("wave/train/gone/000000-0", "image_missing")
