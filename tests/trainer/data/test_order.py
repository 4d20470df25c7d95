from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handdata.pipeline.shards import Shard
from handdata.trainer.data.order import SHUFFLED_FILES, SourceTargets, TargetOrder, source_shares
from handdata.trainer.data.reading import remembered_by_source

FILES = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def sources_of(files: list[list[int]], shares: list[float]) -> list[SourceTargets]:
    sources, start = [], 0
    for number, (sizes, share) in enumerate(zip(files, shares, strict=True)):
        sources.append(SourceTargets(f"source{number}", share, start + np.cumsum([0, *sizes])))
        start += sum(sizes)
    return sources


@settings(max_examples=60, deadline=None)
@given(files=FILES, seed=st.integers(0, 2**31))
def test_one_source_shows_each_target_once_an_epoch(files: list[int], seed: int) -> None:
    order = TargetOrder(sources_of([files], [1.0]), seed)
    for epoch in range(3):
        shown = [order[epoch * len(order) + index] for index in range(len(order))]
        assert sorted(shown) == list(range(sum(files)))


@settings(max_examples=60, deadline=None)
@given(
    mixture=st.lists(st.tuples(FILES, st.floats(0.1, 10)), min_size=2, max_size=4),
    seed=st.integers(0, 2**31),
)
def test_a_source_shows_all_its_targets_before_any_again(mixture: list[tuple[list[int], float]], seed: int) -> None:
    sources = sources_of([files for files, _ in mixture], [share for _, share in mixture])
    order = TargetOrder(sources, seed)
    shown = [order[position] for position in range(4 * len(order))]
    for source in sources:
        first, stop = source.file_starts[0], source.file_starts[-1]
        own = [target for target in shown if first <= target < stop]
        assert own, "every source of a share has a place in every epoch"
        times = Counter(own)
        assert max(times.values()) - min(times.get(target, 0) for target in range(first, stop)) <= 1


def test_sources_are_mixed_by_their_shares_all_through_an_epoch() -> None:
    order = TargetOrder(sources_of([[9000], [3000]], [1, 3]), seed=0)
    shown = np.array([order[position] for position in range(len(order))])
    for part in np.split(shown[:12_000], 6):
        assert np.mean(part >= 9000) == pytest.approx(0.75, abs=0.05)
    assert order.effective_epochs(2 * len(order)) == {"source0": 2 * 3000 / 9000, "source1": 2 * 9000 / 3000}


def test_temperature_brings_small_sources_forward() -> None:
    sizes = {"large": 10_000, "small": 100, "empty": 0, "unwanted": 50}
    weights = {"unwanted": 0.0, "small": 2.0}
    assert source_shares(sizes, weights, 1) == {"large": 10_000, "small": 200}
    assert source_shares(sizes, weights, 2) == {"large": pytest.approx(100), "small": pytest.approx(20)}


def test_the_order_depends_on_seed_and_position_alone() -> None:
    sources = sources_of([[30, 20, 50], [40]], [1, 1])
    straight = [TargetOrder(sources, seed=3)[position] for position in range(300)]
    order = TargetOrder(sources, seed=3)
    assert [order[position] for position in reversed(range(300))] == straight[::-1]
    assert [TargetOrder(sources, seed=4)[position] for position in range(300)] != straight


def test_few_files_are_read_at_a_time() -> None:
    order = TargetOrder(sources_of([[10] * 640], [1]), seed=0)
    files = np.array([order[position] for position in range(len(order))]) // 10
    for window in np.split(files, 10):
        assert len(set(window)) == SHUFFLED_FILES
        assert len(set(window[:100])) > 40
    assert (np.diff(np.unique(files[:640])) > 1).any()  # the files themselves are shuffled


@pytest.mark.parametrize("shares", [[1.0] * 4, [1.0] * 8, [10.0, 1.0, 1.0, 0.2, 0.2]])
def test_labels_of_a_mixture_are_read_once_a_turn(shares: list[float]) -> None:
    order = TargetOrder(sources_of([[20] * 300] * len(shares), shares), seed=0)
    shards = [
        Shard(f"{number}/{file}", f"source{number}", "train", "unit")
        for number in range(len(shares))
        for file in range(300)
    ]
    read: Counter[int] = Counter()
    labels_of = remembered_by_source(lambda shard: read.update([shard]), shards)
    shown = [order[position] // 20 for position in range(len(order) // 2)]
    for shard in shown:
        labels_of(shard)
    turns = order.effective_epochs(len(shown))
    needed = sum(300 * max(turns[source], 1) for source in turns)
    assert read.total() <= min(1.1 * needed, len(shown) / 4)
