"""A stage meter that exports what it counts to Ray's metrics, which every node offers to Prometheus.

There the names begin with ``ray_handdata_``; docs/cluster.md lists them.
"""

from typing import Final

from ray.util.metrics import Counter, Histogram

from handdata.pipeline.annotation.meter import Stage
from handdata.schemas import RejectReason

_SECONDS: Final = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0]
"""Upper bounds of the histogram's bins."""


class RayMeter:
    """A ``StageMeter`` that exports the counts of this worker process to Ray's metrics."""

    def __init__(self) -> None:
        self._rows = Counter("handdata_rows", "Rows that a stage took through.", ("Stage",))
        self._rejected = Counter("handdata_rejected", "Rows that a stage rejected.", ("Stage", "Reason"))
        self._seconds = Histogram("handdata_stage_seconds", "Seconds of a call of a stage.", _SECONDS, ("Stage",))

    def passed(self, stage: Stage, rows: int, seconds: float) -> None:
        """Export the rows and the time."""
        self._seconds.observe(seconds, {"Stage": stage})
        if rows:
            self._rows.inc(rows, {"Stage": stage})

    def rejected(self, stage: Stage, reason: RejectReason) -> None:
        """Export the rejection."""
        self._rejected.inc(1, {"Stage": stage, "Reason": reason.value})
