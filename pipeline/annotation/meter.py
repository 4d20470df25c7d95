"""Rows, refused rows and seconds of each annotation stage: for Ray's metrics, and for the estimate of a run.

A ``StageMeter`` only looks on: what a stage returns never depends on it. In Ray's metrics, which every node offers to
Prometheus, the names begin with ``ray_handdata_``; docs/cluster.md lists them.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, Literal, ParamSpec, Protocol, TypeVar

from handdata.schemas import RecordError, RejectReason

Stage = Literal["decode", "keypoints", "crop", "mask", "encode", "judge", "write"]
"""``mask`` includes waiting for SAM, ``encode`` also measures the crop, ``judge`` applies the gates to a unit."""

Item = TypeVar("Item")
Owner = TypeVar("Owner", bound="_HasMeter")
Given = ParamSpec("Given")
Made = TypeVar("Made")

_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0]
"""Upper bounds of the histogram's bins."""


class StageMeter(Protocol):
    """Is told what the stages do."""

    def passed(self, stage: Stage, rows: int, seconds: float) -> None:
        """Note that a stage took some rows through in this time."""
        ...

    def refused(self, stage: Stage, reason: RejectReason) -> None:
        """Note that a stage refused a row."""
        ...


class _HasMeter(Protocol):
    @property
    def meter(self) -> StageMeter: ...


class StageTally:
    """Sums in this process."""

    def __init__(self) -> None:
        self.rows: Counter[Stage] = Counter()
        self.seconds: dict[Stage, float] = {}
        self.reasons: Counter[tuple[Stage, RejectReason]] = Counter()

    def passed(self, stage: Stage, rows: int, seconds: float) -> None:
        """Add to the sums."""
        self.rows[stage] += rows
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def refused(self, stage: Stage, reason: RejectReason) -> None:
        """Add to the sums."""
        self.reasons[stage, reason] += 1


class RayMeter:
    """Ray's metrics of this worker process."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Histogram

        self._rows = Counter("handdata_rows", "Rows that a stage took through.", ("Stage",))
        self._refused = Counter("handdata_rejected", "Rows that a stage refused.", ("Stage", "Reason"))
        self._seconds = Histogram("handdata_stage_seconds", "Seconds of a call of a stage.", _SECONDS, ("Stage",))

    def passed(self, stage: Stage, rows: int, seconds: float) -> None:
        """Export the rows and the time."""
        self._seconds.observe(seconds, {"Stage": stage})
        if rows:
            self._rows.inc(rows, {"Stage": stage})

    def refused(self, stage: Stage, reason: RejectReason) -> None:
        """Export the refusal."""
        self._refused.inc(1, {"Stage": stage, "Reason": reason.value})


@contextmanager
def metered(meter: StageMeter, stage: Stage, rows: int = 1) -> Iterator[None]:
    """Time a block that takes some rows through a stage. A ``RecordError`` counts as one refused row and goes on."""
    started = time.perf_counter()
    try:
        yield
    except RecordError as error:
        meter.refused(stage, error.reason)
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
    """Meter a method that takes one row through a stage, with the ``meter`` of its object."""

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
    """Time what an iterator takes for each of its (record, result or error) pairs."""
    while True:
        started = time.perf_counter()
        pair = next(items, None)
        if pair is None:
            return
        error = pair[1] if isinstance(pair[1], RecordError) else None
        if error is not None:
            meter.refused(stage, error.reason)
        meter.passed(stage, error is None, time.perf_counter() - started)
        yield pair
