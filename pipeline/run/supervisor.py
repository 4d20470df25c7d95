"""Units on workers that may die: try again, find the record at fault, and go on without it.

What to do with a unit is written as a generator (``_commit_unit``): each call that it yields goes to some worker, and
the outcome is sent back. The ``Supervisor`` only keeps workers busy. Two questions decide what happens after a failure:
is it this record or the whole run, and is trying again useful?

- A worker that dies, gets stuck or raises something unforeseen: the unit is tried again, and deferred if that fails.
  Suspicion falls on its records only when the other units are done, since whatever killed the worker from outside may
  be gone by then: parts of it are tried until the records at fault are alone, and these are rejected.
- A node that is lost with its workers: the unit is tried again, as if nothing had happened.
- A workspace that is away for a moment: the unit is tried again, a few times.
- Any other error that handdata raises on purpose: the run stops.
"""

import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from handdata.pipeline.run.cluster import CHECK_S, require_cluster
from handdata.pipeline.shards.plan import PlannedUnit
from handdata.schemas import ClusterLostError, HandDataError, RunError, StorageError, UnitMarker

ATTEMPTS: Final = 2
"""How often a unit is tried before it is deferred or its records come under suspicion, and how often a workspace may be
away before the run fails."""

MOST_DEFERRALS: Final = 4
"""How often a unit is deferred before it fails the run: none of its records crashes its worker alone."""

CONFIRMATIONS: Final = 2
"""How often a record that crashed its worker alone must do so again: other things kill workers, too."""

CRASHES_IN_A_ROW: Final = 24
"""How many workers may die with nothing finished between them: then the records are not at fault. Finding one record in
the largest unit takes at most 11 + 2 * ``ATTEMPTS`` + ``CONFIRMATIONS``."""

LOG_TAIL_BYTES: Final = 64 << 10
"""Bytes that are read from the end of a dead worker's stderr: the stacks of all its threads fit into it."""

MAX_REASON_CHARACTERS: Final = 300
"""Most characters of a reason."""


@dataclass(frozen=True, slots=True)
class Call:
    """One task of a worker.

    Args:
        unit: Unit of the plan.
        crashed: Reasons why its records at these positions are rejected.
        probe: Positions of the records to annotate, without a commit; None for the whole unit.

    """

    unit: PlannedUnit
    crashed: Mapping[int, str] = field(default_factory=dict)
    probe: range | None = None


@dataclass(frozen=True, slots=True)
class Crash:
    """A call that ended in no answer.

    Args:
        why: Reason, in one line.
        node_lost: Whether the worker's node is gone, so that the worker is not to blame.

    """

    why: str
    node_lost: bool = False


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """Where a worker runs.

    Args:
        node_id: Ray's id of its node.
        log: File of what it writes to stderr, empty where that is unknown.

    """

    node_id: str
    log: str

    @classmethod
    def of_this_process(cls) -> "WorkerPlace":
        """Return the place of the worker that calls this."""
        try:
            log = str(Path("/proc/self/fd/2").readlink())
        except OSError:  # not on Linux
            log = ""
        return cls(ray.get_runtime_context().get_node_id(), log)


Outcome: TypeAlias = UnitMarker | Crash | StorageError | None
"""How a call ended: with the unit's marker, with None for a probe that went well, or with what went wrong."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """A unit that is to be tried once more when the others are done.

    Args:
        unit: Unit of the plan.
        times: How often it has been deferred.
        why: Reason of the last time, in one line.

    """

    unit: PlannedUnit
    times: int = 0
    why: str = ""


Attempts: TypeAlias = Generator[Call, Outcome, UnitMarker | Deferred]


def _commit_unit(case: Deferred) -> Attempts:
    """Get one unit committed; from the second time on without the records that crash their worker."""
    unit, crashed = case.unit, dict[int, str]()
    while True:
        why = ""
        for _ in range(ATTEMPTS):
            outcome = yield from _answer(Call(unit, crashed))
            if isinstance(outcome, UnitMarker):
                return outcome
            why = outcome.why if isinstance(outcome, Crash) else "no answer"
        found = (yield from _at_fault(unit, range(unit.rows), why)) if case.times else {}
        if found.keys() <= crashed.keys():
            return Deferred(unit, case.times + 1, why)
        crashed |= found


def _once_more(case: Deferred) -> Deferred:
    if case.times < MOST_DEFERRALS:
        return case
    raise RunError(
        f"unit {case.unit.unit_id} crashes its worker, but none of its records does alone: {case.why}",
        "give workers more memory (fewer --cpus); the same command continues with the other units done",
    )


def _at_fault(unit: PlannedUnit, part: range, why: str) -> Generator[Call, Outcome, dict[int, str]]:
    """Return which records of a part that crashed do so alone, and why, by halving it."""
    if len(part) == 1:
        for _ in range(CONFIRMATIONS):
            outcome = yield from _answer(Call(unit, probe=part))
            if not isinstance(outcome, Crash):
                return {}
            why = outcome.why
        return {part.start: why}
    middle = len(part) // 2
    found: dict[int, str] = {}
    outcome = yield from _answer(Call(unit, probe=part[:middle]))
    if isinstance(outcome, Crash):
        found |= yield from _at_fault(unit, part[:middle], outcome.why)
        outcome = yield from _answer(Call(unit, probe=part[middle:]))
        if not isinstance(outcome, Crash):
            return found
        why = outcome.why
    return found | (yield from _at_fault(unit, part[middle:], why))


def _answer(call: Call) -> Generator[Call, Outcome, UnitMarker | Crash | None]:
    """Make a call until it says something about the unit."""
    away = 0
    while True:
        outcome = yield call
        if isinstance(outcome, StorageError):
            away += 1
            if away == ATTEMPTS:
                raise outcome
        elif not (isinstance(outcome, Crash) and outcome.node_lost):
            return outcome


class Supervisor:
    """Keeps a number of workers busy with units, and replaces those that die.

    Args:
        start: Function that starts a worker, a Ray actor with ``open``, ``commit``, ``probe`` and ``close``.
        count: Number of workers at a time.

    """

    def __init__(self, start: Callable[[], Any], count: int) -> None:
        self._start, self._count = start, count
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Attempts]] = {}
        self._worker_places: dict[Any, WorkerPlace] = {}
        self._crashes_in_a_row = 0

    def run(self, units: Sequence[PlannedUnit]) -> Iterator[UnitMarker]:
        """Yield the marker of each unit as it is finished; the longest begin first, so that none is waited for alone.

        Raises:
            HandDataError: An error concerns the whole run.
            RunError: Workers die whatever they do, or the cluster is lost.

        """
        fresh = deque(Deferred(unit) for unit in sorted(units, key=lambda unit: -unit.rows))
        continued: deque[tuple[Attempts, Call]] = deque()
        try:
            while to_do := len(fresh) + len(continued) + len(self._busy):
                for _ in range(min(self._count, to_do) - self._workers()):
                    actor = self._start()
                    self._starting[actor.open.remote()] = actor
                while self._idle and (fresh or continued):
                    if not continued:
                        attempts = _commit_unit(fresh.popleft())
                        continued.append((attempts, next(attempts)))
                    self._assign(self._idle.pop(), *continued.popleft())
                done = self._next_answer()
                if done in self._starting:
                    self._started(done)
                    continue
                actor, attempts = self._busy.pop(done)
                try:
                    continued.append((attempts, attempts.send(self._outcome(done, actor))))
                except StopIteration as ended:
                    if isinstance(ended.value, UnitMarker):
                        yield ended.value
                    else:
                        fresh.append(_once_more(ended.value))
        except ClusterLostError:
            self._starting, self._idle, self._busy = {}, [], {}  # nobody is left to be told
            raise
        finally:
            for actor in self._idle:
                actor.close.remote()
            for actor in (*self._starting.values(), *(actor for actor, _ in self._busy.values())):
                ray.kill(actor)

    def _workers(self) -> int:
        return len(self._starting) + len(self._idle) + len(self._busy)

    def _next_answer(self) -> Any:
        """Wait for a worker's answer.

        Raises:
            ClusterLostError: None will come any more.

        """
        while True:
            done, _ = ray.wait([*self._starting, *self._busy], num_returns=1, timeout=CHECK_S)
            if done:
                return done[0]
            require_cluster()

    def _assign(self, actor: Any, attempts: Attempts, call: Call) -> None:
        if call.probe is None:
            answer = actor.commit.remote(call.unit, call.crashed)
        else:
            answer = actor.probe.remote(call.unit, call.probe)
        self._busy[answer] = actor, attempts

    def _started(self, ready: Any) -> None:
        """Let a worker that has started join the idle ones."""
        actor = self._starting.pop(ready)
        outcome = self._outcome(ready, actor, started=True)
        if isinstance(outcome, StorageError):
            raise outcome

    def _outcome(self, answer: Any, actor: Any, *, started: bool = False) -> Outcome:
        """Return how a call ended. The worker is idle afterwards, or gone."""
        try:
            result = ray.get(answer)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, HandDataError):
                if isinstance(cause, StorageError) and cause.transient:
                    self._idle.append(actor)
                    return cause
                raise cause from None
            # Whatever went wrong may have left the process in disorder.
            ray.kill(actor)
            return self._crashed(actor, _one_line(cause))
        except RayError as error:
            return self._crashed(actor, self._why_died(actor, error), "node has died" in str(error))
        if started:
            self._worker_places[actor] = result
        else:
            self._crashes_in_a_row = 0
        self._idle.append(actor)
        return None if started else result

    def _crashed(self, actor: Any, why: str, node_lost: bool = False) -> Crash:
        self._worker_places.pop(actor, None)
        if not node_lost:
            self._crashes_in_a_row += 1
        if self._crashes_in_a_row == CRASHES_IN_A_ROW:
            raise RunError(
                f"{CRASHES_IN_A_ROW} workers died one after another: {why}",
                "are memory and disk of the workers large enough? the same command continues",
            )
        return Crash(why, node_lost)

    def _why_died(self, actor: Any, error: RayError) -> str:
        place = self._worker_places.get(actor)
        reason = "" if place is None else crash_reason(_log_tail(place))
        return reason or gist(str(error))


def crash_reason(log: str) -> str:
    """Return what the end of a dead process's stderr says about its death, in one line; empty if nothing."""
    timeout = re.search(r"^Timeout \(([\d:.]+)\)!$", log, re.MULTILINE)
    fatal = re.search(r"^(?:Fatal Python error: |terminate called )(.+)$", log, re.MULTILINE)
    if timeout:
        # The watched thread is the main one, which comes last.
        where = re.findall(r"most recent call first\):\n  File \"([^\"]+)\", line (\d+) in (\S+)", log)[-1:]
        reason = f"stuck for more than {timeout[1]}"
    elif fatal:
        where = re.findall(r"most recent call first\):\n  File \"([^\"]+)\", line (\d+) in (\S+)", log)[:1]
        reason = fatal[1]
    else:
        return ""
    return reason + "".join(f" in {function} ({Path(file).name}:{line})" for file, line, function in where)


def gist(message: str) -> str:
    """Return the gist of Ray's message about a dead actor."""
    if "node has died" in message:
        return "its node has died"
    if "low on memory" in message or "OutOfMemory" in message:
        return "ended by Ray because its node ran low on memory"
    if "connection error code 2" in message:
        return "its process was killed without a word (out of memory, or by hand)"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return (lines[-1] if lines else "unknown")[:MAX_REASON_CHARACTERS]


def _one_line(error: BaseException) -> str:
    if isinstance(error, RayActorError):
        return f"the mask model died: {gist(str(error))}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:MAX_REASON_CHARACTERS] if text else type(error).__name__


def _log_tail(place: WorkerPlace) -> str:
    """Return the end of a worker's stderr, from its node; empty where that cannot be had."""
    if Path(place.log).exists():
        return _read_tail(place.log)
    node = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
    read: Any = ray.remote(_read_tail)
    try:
        tail: str = ray.get(
            read.options(num_cpus=0, max_retries=0, scheduling_strategy=node).remote(place.log), timeout=30
        )
    except (GetTimeoutError, RayError):
        return ""
    return tail


def _read_tail(path: str) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError:
        return ""
    return data[-LOG_TAIL_BYTES:].decode(errors="replace")
