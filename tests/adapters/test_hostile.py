"""Damaged and hostile files from outside, through every registered adapter: rejected with a reason, and no worse."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from handdata.adapters.base import Adapter
from handdata.adapters.reading.paths import Fence, fenced
from handdata.adapters.registry import registered_adapters
from handdata.adapters.roots import find_root
from handdata.schemas import HandDataError, HandRecord, RecordError, Rejection, records_to_table
from tests.fixtures.sources import ADAPTER_FIXTURES, AdapterFixture

IMAGES = {".jpg", ".jpeg", ".png", ".mp4", ".MP4"}


def read_rows(adapter: Adapter, root: Path) -> list[HandRecord | Rejection]:
    """All rows, as ingest sees them."""
    fence = Fence(root)
    return [fenced(fence, row) for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def image_of(record: HandRecord) -> Path:
    return Path(record.image_uri.rpartition("::")[2])


@pytest.fixture(scope="module", params=ADAPTER_FIXTURES, ids=lambda fixture: fixture.name)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[AdapterFixture, Path]:
    folder = tmp_path_factory.mktemp(request.param.name) / "dataset"
    request.param.write(folder)
    return request.param, folder


def test_an_image_behind_a_link_that_leaves_the_root_is_rejected_alone(
    written: tuple[AdapterFixture, Path], tmp_path: Path
) -> None:
    fixture, original = written
    shutil.copytree(original, tmp_path / "dataset")
    adapter = registered_adapters()[fixture.source]()
    root = find_root(type(adapter), tmp_path / "dataset")
    before = [row for row in read_rows(adapter, root) if isinstance(row, HandRecord)]
    image = image_of(before[0])
    image.rename(tmp_path / image.name)
    image.symlink_to(tmp_path / image.name)
    after = read_rows(adapter, root)
    rejected = {row.record_id for row in after if isinstance(row, Rejection) and row.reason == "path_escapes_root"}
    assert rejected == {record.record_id for record in before if image_of(record) == image}
    left = [row for row in after if isinstance(row, HandRecord)]
    expected = [record for record in before if record.record_id not in rejected]
    assert records_to_table(left).equals(records_to_table(expected))


def _half(content: bytes, _: random.Random) -> bytes:
    return content[: len(content) // 2]


def _other_bytes(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(1 + len(changed) // 200):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _huge_numbers(content: bytes, chance: random.Random) -> bytes:
    words = [b"NaN", b"1e999", b"-1e30", b"9" * 400, b'"x"', b"[]", b"null", b"{}"]
    return re.sub(rb"-?\d+\.?\d*", lambda _: chance.choice(words) if chance.random() < 0.2 else _.group(), content)


def _nested(_: bytes, __: random.Random) -> bytes:
    return b"[" * 100_000


def _noise(content: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(len(content))


def _nothing(_: bytes, __: random.Random) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [_half, _other_bytes, _huge_numbers, _nested, _noise, _nothing])
def test_whatever_is_in_a_label_file_its_frames_have_a_record_or_a_reason(
    written: tuple[AdapterFixture, Path], tmp_path: Path, damage: Callable[[bytes, random.Random], bytes]
) -> None:
    fixture, original = written
    folder = tmp_path / "dataset"
    shutil.copytree(original, folder)
    adapter = registered_adapters()[fixture.source]()
    root = find_root(type(adapter), folder)
    chance = random.Random(fixture.name)
    labels = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in IMAGES)
    for path in chance.sample(labels, min(len(labels), 8)):
        content = path.read_bytes()
        path.write_bytes(damage(content, chance))
        try:
            rows = read_rows(adapter, find_root(type(adapter), folder))
        except HandDataError as error:
            assert str(error)
            rows = []
        finally:
            path.write_bytes(content)
        for row in rows:
            if isinstance(row, Rejection):
                assert row.reason and 0 < len(row.detail) <= 1000
            elif row.has_mask:
                try:
                    mask = adapter.open_mask(row)
                except RecordError as error:
                    assert str(error)
                else:
                    assert mask.shape == (row.height, row.width) and mask.dtype == np.bool_
    assert read_rows(adapter, root), "the dataset as it was"
