"""The endless order in which pairs are trained on: sources mixed by weight, rows shuffled within a few files.

Where a target comes in the order follows from (seed, position) alone. Processes and threads therefore share the work
by sharing out positions, whatever their number, and a run goes on at any position without replaying what came before:
the state of the order is one integer.

``len(order)`` positions are an epoch. A source has a fixed number of them (its quota), by its weight, spread evenly:
each ``MIXED_POSITIONS`` have their part of it. A source goes through its own targets again and again, each time in
another order: its files at random, then rows at random within ``SHUFFLED_FILES`` of them, which bounds what a process
keeps of the files, and what the operating system must cache of them. With one source an epoch shows each target once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from handdata.trainer.data.remembered import Remembered

MIXED_POSITIONS: Final = 4096
SHUFFLED_FILES: Final = 64
_CACHED_WINDOWS_A_SOURCE: Final = 2

_MIX, _FILES, _ROWS = 2, 3, 4
"""Last number of the seeds here, so that no two kinds of draws share one."""


@dataclass(frozen=True)
class SourceTargets:
    """The targets of a source.

    Args:
        name: Name of the source.
        share: Relative share of the source among the positions of an epoch.
        file_starts: (files + 1,) index of each file's first target in the list of all targets, and of the list's end.

    """

    name: str
    share: float
    file_starts: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.file_starts[-1] - self.file_starts[0])


class TargetOrder:
    """Which target (an index in the list of all targets) comes at a position of the endless order."""

    def __init__(self, sources: Sequence[SourceTargets], seed: int) -> None:
        """Mix sources with targets. Their shares are relative to each other."""
        self._sources = sources
        self._seed = seed
        self._length = sum(map(len, sources))
        self._quotas = _quotas([source.share for source in sources], self._length)
        windows = max(1, self._length // MIXED_POSITIONS)
        # Positions of each source (columns) in the first so many parts (rows) of an epoch.
        self._mixed = np.arange(windows + 1)[:, None] * self._quotas[None, :] // windows
        self._mixed_starts = self._mixed.sum(axis=1)
        # Kept for the positions nearby, which come next. Threads may ask at once.
        self._mix = Remembered(self._shuffled_mix, 2)
        self._file_order = Remembered(self._shuffled_files, 2 * len(sources))
        self._window = Remembered(self._shuffled_window, _CACHED_WINDOWS_A_SOURCE * len(sources))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> int:
        source, own_position = self._in_source(position)
        turn, index = divmod(own_position, len(self._sources[source]))
        _, starts = self._file_order(source, turn)
        window = int(np.searchsorted(starts, index, side="right")) - 1
        return int(self._window(source, turn, window)[index - starts[window]])

    def effective_epochs(self, position: int) -> dict[str, float]:
        """Return how often each source's targets have been shown, on average, when ``position`` comes next."""
        epochs = position / self._length
        return {
            source.name: epochs * int(quota) / len(source)
            for source, quota in zip(self._sources, self._quotas, strict=True)
        }

    def _in_source(self, position: int) -> tuple[int, int]:
        """Return the source of a position, and the position in the source's own endless order."""
        if len(self._sources) == 1:
            return 0, position
        epoch, index = divmod(position, self._length)
        window = int(np.searchsorted(self._mixed_starts, index, side="right")) - 1
        mix = self._mix(epoch, window)
        offset = index - int(self._mixed_starts[window])
        source = int(mix[offset])
        before = int(np.count_nonzero(mix[:offset] == source))
        return source, epoch * int(self._quotas[source]) + int(self._mixed[window, source]) + before

    def _shuffled_mix(self, epoch: int, window: int) -> NDArray[np.int64]:
        """Return the source of each position of a part of an epoch."""
        counts = self._mixed[window + 1] - self._mixed[window]
        rng = np.random.default_rng([self._seed, epoch, window, _MIX])
        return rng.permutation(np.repeat(np.arange(len(counts)), counts))

    def _shuffled_files(self, source: int, turn: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the files of a source in a turn's order, and where its windows begin (and end) in the turn."""
        starts = self._sources[source].file_starts
        files = np.random.default_rng([self._seed, source, turn, _FILES]).permutation(len(starts) - 1)
        ends = np.cumsum(np.diff(starts)[files])
        return files, np.concatenate([[0], ends[SHUFFLED_FILES - 1 : -1 : SHUFFLED_FILES], ends[-1:]])

    def _shuffled_window(self, source: int, turn: int, window: int) -> NDArray[np.int64]:
        """Return the targets of a window of files in the order in which they are shown."""
        starts = self._sources[source].file_starts
        files, _ = self._file_order(source, turn)
        chosen = files[window * SHUFFLED_FILES : (window + 1) * SHUFFLED_FILES]
        targets = np.concatenate([np.arange(starts[file], starts[file + 1]) for file in chosen])
        return np.random.default_rng([self._seed, source, turn, window, _ROWS]).permutation(targets)


def source_shares(sizes: Mapping[str, int], weights: Mapping[str, float], temperature: float) -> dict[str, float]:
    """Return the relative share of each source with targets: weight x size^(1 / temperature); weight 1 where unnamed.

    Sources whose share is zero are not in it.
    """
    shares = {name: weights.get(name, 1.0) * size ** (1 / temperature) for name, size in sizes.items() if size}
    return {name: share for name, share in shares.items() if share > 0}


def _quotas(shares: Sequence[float], total: int) -> NDArray[np.int64]:
    """Divide ``total`` positions by shares, each at least one; the largest remainders are rounded up."""
    exact = np.array(shares) / sum(shares) * total
    quotas = np.maximum(np.floor(exact).astype(np.int64), 1)
    left = total - int(quotas.sum())
    if left > 0:
        quotas[np.argsort(quotas - exact, kind="stable")[:left]] += 1
    else:
        quotas[int(np.argmax(quotas))] += left
    return quotas
