"""Which rows can be the reference of a target, and how one is drawn.

A reference is another moment of the same video (same sequence and camera), the same moment seen by another camera, or
nothing (a still: an image that is its own reference teaches to copy). All are found by two sorted orders of the rows:
by video and time, and by moment.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from handdata.trainer.data.order import SourceTargets, source_shares
from handdata.trainer.presets import PairConfig

VIDEO, VIEW, STILL = range(3)
"""Kinds of pairs, in the order of ``KINDS``."""

KINDS: Final = ("video", "view", "still")
"""Their names, as ``PairConfig`` has them."""

_TOLERANCE: Final = 1e-6
"""Slack of times, in units of the largest gap: keeps frames at exactly that gap, whatever the rounding."""
_SMALLEST_GAP: Final = 1e-3
"""Smallest gap that the log-uniform density is computed at, in the same units."""


class PairCandidates:
    """For every row, the rows that can be its reference, kept as ranks in two sorted orders.

    Memory is a few integers a row; drawing is a lookup.
    """

    def __init__(self, rows: pl.DataFrame, sources: Sequence[tuple[str, int, int]], config: PairConfig) -> None:
        """Sort rows by video and time, and by moment.

        Args:
            rows: Table of ``read_rows``.
            sources: Name, first row and one past the last row of each source.
            config: Weights of the kinds of pairs, and the largest gap.

        """
        self._config = config
        self._sources = [name for name, _, _ in sources]
        self._source_starts = np.array([first for _, first, _ in sources] + [len(rows)])
        self._weights = np.array([_kind_weights(config, name) for name in self._sources])
        video = _numbered(rows["video"])
        time = _pair_time(rows, video, config)
        by_video = np.lexsort((time, video)).astype(np.int32)
        by_moment = np.argsort(rows["moment"].to_numpy(), kind="stable").astype(np.int32)
        time, video = time[by_video], video[by_video]
        moment_starts = _run_starts(rows["moment"].to_numpy()[by_moment])

        fits = np.ones((len(rows), len(KINDS)), bool)
        near = (video[1:] == video[:-1]) & (np.diff(time) <= 1 + _TOLERANCE)
        fits[by_video, VIDEO] = np.append(near, False) | np.append(False, near)
        fits[by_moment, VIEW] = np.repeat(np.diff(moment_starts) > 1, np.diff(moment_starts))
        source = np.repeat(np.arange(len(sources)), np.diff(self._source_starts))
        targets = np.flatnonzero((fits & (self._weights > 0)[source]).any(axis=1)).astype(np.int32)
        self.arrays = {
            "fits": fits,  # by row and kind
            "time": time,  # by rank in by_video
            "by_video": by_video,
            "in_video": _inverse(by_video),  # each row's rank in it
            "video_starts": _run_starts(video),
            "by_moment": by_moment,
            "in_moment": _inverse(by_moment),
            "moment_starts": moment_starts,
            "targets": targets,
        }

    def source_targets(self, shard_starts: NDArray[np.int64]) -> list[SourceTargets]:
        """Return the sources to mix.

        Args:
            shard_starts: Rows that begin new files.

        """
        targets = self.arrays["targets"]
        file_starts = np.searchsorted(targets, shard_starts)
        source_starts = np.searchsorted(targets, self._source_starts)
        sizes = dict(zip(self._sources, np.diff(source_starts).tolist(), strict=True))
        weights = {name: settings.weight for name, settings in self._config.sources.items()}
        shares = source_shares(sizes, weights, self._config.temperature)
        sources = []
        for number, name in enumerate(self._sources):
            if name in shares:
                first, stop = source_starts[number : number + 2]
                own_starts = file_starts[(file_starts >= first) & (file_starts <= stop)]
                sources.append(SourceTargets(name, shares[name], np.unique(own_starts)))
        return sources

    def target(self, number: int) -> int:
        """Return the row of a target by its index in the list of all targets: rows that can be in a wanted pair."""
        return int(self.arrays["targets"][number])

    def draw(self, target: int, rng: np.random.Generator) -> tuple[int, int | None]:
        """Draw the kind of a target's pair, by weight among those that fit, and its reference."""
        weights = self._weights[self._source(target)] * self.arrays["fits"][target]
        kind = _drawn(weights, rng)
        if kind == STILL:
            return kind, None
        return kind, self._draw_moment(target, rng) if kind == VIDEO else self._draw_view(target, rng)

    def video_rows(self, row: int) -> list[int]:
        """Return the rows of a row's video, in order of time."""
        first, stop = _run_around(self.arrays["video_starts"], int(self.arrays["in_video"][row]))
        return [int(other) for other in self.arrays["by_video"][first:stop]]

    def _source(self, row: int) -> int:
        return int(np.searchsorted(self._source_starts, row, side="right")) - 1

    def _draw_moment(self, target: int, rng: np.random.Generator) -> int:
        rank = int(self.arrays["in_video"][target])
        first, stop = _run_around(self.arrays["video_starts"], rank)
        time = self.arrays["time"][first:stop]
        now = time[rank - first]
        low, high = np.searchsorted(time, [now - 1 - _TOLERANCE, now + 1 + _TOLERANCE])
        weights = self._gap_weights(np.abs(time[low:high] - now))
        weights[rank - first - low] = 0
        return int(self.arrays["by_video"][first + low + _drawn(weights, rng)])

    def _gap_weights(self, gaps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the density of the configured distribution at gaps that are given as shares of the largest."""
        if self._config.gap == "log-uniform":
            return 1 / np.maximum(gaps, _SMALLEST_GAP)
        if self._config.gap == "exponential":
            return np.exp(-gaps / self._config.mean_gap)
        return np.ones_like(gaps)

    def _draw_view(self, target: int, rng: np.random.Generator) -> int:
        rank = int(self.arrays["in_moment"][target])
        first, stop = _run_around(self.arrays["moment_starts"], rank)
        other = first + int(rng.integers(stop - first - 1))
        return int(self.arrays["by_moment"][other + (other >= rank)])


def _kind_weights(config: PairConfig, source: str) -> list[float]:
    """Return the weights of the kinds of pairs for a source."""
    own = config.sources.get(source)
    weights = []
    for kind in KINDS:
        replaced = None if own is None else getattr(own, kind)
        weights.append(getattr(config, kind) if replaced is None else replaced)
    return weights


def _drawn(weights: NDArray[np.float64], rng: np.random.Generator) -> int:
    """Draw an index by weight: what ``rng.choice`` does, without its checks, which take as long as all else."""
    shares = np.cumsum(weights)
    return int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))


def _numbered(groups: pl.Series) -> NDArray[np.int32]:
    """Return the number of each row's group, in the groups' order."""
    return groups.rank("dense").to_numpy().astype(np.int32)


def _run_starts(values: NDArray[np.generic]) -> NDArray[np.int32]:
    """Return where runs of equal values begin, and the length of all."""
    starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])) if len(values) else np.zeros(0)
    return np.append(starts, len(values)).astype(np.int32)


def _run_around(starts: NDArray[np.int32], rank: int) -> tuple[int, int]:
    """Return the first rank of the run that a rank lies in, and the one past its last."""
    # A number of another type than the array's would have the whole array copied.
    run = int(starts.searchsorted(np.int32(rank), side="right"))
    return int(starts[run - 1]), int(starts[run])


def _inverse(order: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the rank of each row in an order of rows."""
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order), dtype=np.int32)
    return inverse


def _pair_time(rows: pl.DataFrame, video: NDArray[np.int32], config: PairConfig) -> NDArray[np.float64]:
    """Return each row's time in units of the largest gap: of seconds, or of frames in videos without time stamps."""
    seconds = rows["timestamp_s"].to_numpy()
    untimed = np.zeros(int(video.max(initial=0)) + 1, bool)
    untimed[video[np.isnan(seconds)]] = True
    return np.where(untimed[video], rows["frame_index"].to_numpy() / config.max_gap_frames, seconds / config.max_gap_s)
