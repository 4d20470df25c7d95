"""Counts of the rows, rejected rows and seconds of each annotation stage.

A ``StageMeter`` only observes: what a stage returns never depends on it. ``StageTally`` sums in this process, for the
estimate of a run; ``run.ray_meter`` exports to Ray's metrics.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar

from handdata.schemas import RecordError, RejectReason

Stage = Literal["decode", "keypoints", "crop", "mask", "encode", "judge", "write"]
"""Name of a stage. ``mask`` includes waiting for SAM, ``encode`` also measures the crop, ``judge`` applies the quality
gates to a unit."""

Item = TypeVar("Item")
Owner = TypeVar("Owner", bound="_HasMeter")
Given = ParamSpec("Given")
Made = TypeVar("Made")


class StageMeter(Protocol):
    """Receives what each stage does."""

    def passed(self, stage: Stage, rows: int, seconds: float) -> None:
        """Note that a stage took some rows through in this time."""
        ...

    def rejected(self, stage: Stage, reason: RejectReason) -> None:
        """Note that a stage rejected a row."""
        ...


class _HasMeter(Protocol):
    @property
    def meter(self) -> StageMeter: ...


class StageTally:
    """A ``StageMeter`` that sums in this process."""

    def __init__(self) -> None:
        self.rows: Counter[Stage] = Counter()
        self.seconds: dict[Stage, float] = {}
        self.reasons: Counter[tuple[Stage, RejectReason]] = Counter()

    def passed(self, stage: Stage, rows: int, seconds: float) -> None:
        """Add to the sums."""
        self.rows[stage] += rows
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def rejected(self, stage: Stage, reason: RejectReason) -> None:
        """Add to the sums."""
        self.reasons[stage, reason] += 1


@contextmanager
def metered(meter: StageMeter, stage: Stage, rows: int = 1) -> Iterator[None]:
    """Time a block that takes some rows through a stage; a ``RecordError`` counts as one rejected row.

    Args:
        meter: Receiver of the time and the rows.
        stage: Stage that the block is.
        rows: Number of rows that the block takes through; any other error counts none.

    """
    started = time.perf_counter()
    try:
        yield
    except RecordError as error:
        meter.rejected(stage, error.reason)
        rows -= 1
        raise
    except BaseException:
        rows = 0
        raise
    finally:
        meter.passed(stage, rows, time.perf_counter() - started)


def as_stage(
    stage: Stage,
) -> Callable[[Callable[Concatenate[Owner, Given], Made]], Callable[Concatenate[Owner, Given], Made]]:
    """Decorate a method that takes one row through a stage: the ``meter`` of its object times it."""

    def decorate(method: Callable[Concatenate[Owner, Given], Made]) -> Callable[Concatenate[Owner, Given], Made]:
        @wraps(method)
        def run(self: Owner, /, *arguments: Given.args, **options: Given.kwargs) -> Made:
            with metered(self.meter, stage):
                return method(self, *arguments, **options)

        return run

    return decorate


def metered_each(
    meter: StageMeter, stage: Stage, items: Iterator[tuple[Item, Made | RecordError]]
) -> Iterator[tuple[Item, Made | RecordError]]:
    """Yield the (record, result or error) pairs of an iterator, and time what it takes for each."""
    while True:
        started = time.perf_counter()
        pair = next(items, None)
        if pair is None:
            return
        error = pair[1] if isinstance(pair[1], RecordError) else None
        if error is not None:
            meter.rejected(stage, error.reason)
        meter.passed(stage, error is None, time.perf_counter() - started)
        yield pair
