"""``handdata train --gpus N``: several processes train one network; Ray Train starts them and restarts them.

Each process runs ``trainer.loop.train`` on its share of every batch. An error in one of them ends the group: Ray Train
looks after its processes every other second, whatever the others wait for. Where a process was lost, or its storage was
away for a moment, a new group goes on from the run's last checkpoint. All other errors would come again, and come back
as they are.
"""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch.distributed
from ray.exceptions import RayError
from ray.util.queue import Queue

from handdata.pipeline.run.cluster import connected, on_cluster, require_cluster
from handdata.pipeline.run.supervisor import gist
from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.layout import RAY_TRAIN, ray_train_folder, run_folder
from handdata.schemas import ClusterLostError, HandDataError, RunError, StorageError, UsageError
from handdata.trainer.checkpoints import latest_checkpoint
from handdata.trainer.loop import OnNote, OnStep, TrainSummary, train
from handdata.trainer.presets import Preset
from handdata.trainer.schedule import Process, micro_batches

MAX_RESTARTS = 3
"""A group of processes that is lost is started again this often without a new checkpoint."""
_STARTS = 5
"""How often Ray Train waits for the processes of a group, a minute each time; by default without end."""
_HOW_TO_GO_ON = "--resume goes on from the last checkpoint"


class _LostError(RunError):
    """A process, its connection to the others, or its storage was lost; a new group may go on."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What each process receives."""

    preset: Preset
    storage: Storage
    run: str
    steps: int | None
    init: str | None


def train_in_processes(
    preset: Preset,
    storage: Storage,
    run: str,
    *,
    processes: int,
    use_gpus: bool,
    address: str | None = None,
    steps: int | None = None,
    resume: bool = False,
    init: str | None = None,
    on_step: OnStep | None = None,
    on_note: OnNote | None = None,
    on_connect: Callable[[str], None] | None = None,
) -> TrainSummary:
    """Train a preset in several processes of a Ray cluster: the one at ``address``, or one on this machine.

    The rest is as in ``trainer.loop.train``.

    Args:
        processes: Number of processes.
        use_gpus: Each process has a GPU and they talk by NCCL; else a core and gloo.
        address: Ray cluster address; None starts Ray on this machine.
        on_connect: Function called with the address of a running head before Ray connects to it.

    Raises:
        UsageError: As in ``train``, or the cluster lacks the GPUs, or the batch cannot be shared.
        WeightsError: As in ``train``.
        RunError: As in ``train``, or a process met an error that is none of ours, or processes were lost more than
            ``MAX_RESTARTS`` times without a new checkpoint, or the cluster is away.

    """
    micro_batches(preset.optimisation, Process(0, processes))
    if latest_checkpoint(storage.url(run_folder(run))) and not resume:
        raise UsageError(f"the run {run} has checkpoints", "go on with --resume, or choose another name with --run")
    with connected(address, on_connect=on_connect):
        return _run_task(_Task(preset, storage, run, steps, init), processes, use_gpus, on_step, on_note)


def _run_task(
    task: _Task, processes: int, use_gpus: bool, on_step: OnStep | None, on_note: OnNote | None
) -> TrainSummary:
    kind = "GPU" if use_gpus else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))  # type: ignore[no-untyped-call]
    if there < processes:
        raise UsageError(
            f"{processes} {kind}s were asked for, the cluster has {there}", "ask for fewer, or add nodes to the cluster"
        )
    # Where its process dies, Ray starts another: losing a line of progress is no reason to stop.
    messages = Queue(actor_options={"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1})
    outcome: list[TrainSummary] = []
    listener = Thread(target=_listen, args=(messages, outcome, on_step, on_note), daemon=True)
    listener.start()
    lost = False
    try:
        # Paths of weights are the user's own: relative to where the command was typed.
        os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
        # It tells functions that save a last checkpoint before their node goes; ours saves as it goes.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        run_url, lost_so_far = task.storage.url(run_folder(task.run)), 0
        while not outcome:
            before = latest_checkpoint(run_url)
            try:
                _fit(task, messages, processes, use_gpus)
                break
            except _LostError as error:
                lost_so_far = lost_so_far + 1 if latest_checkpoint(run_url) == before else 1
                if lost_so_far > MAX_RESTARTS:
                    raise RunError(
                        f"training processes were lost {lost_so_far} times without a new checkpoint: {error.message}",
                        _HOW_TO_GO_ON,
                    ) from None
                if on_note:
                    on_note(f"{error.message}; the processes start again from the last checkpoint")
    except ClusterLostError as error:
        lost = True
        raise ClusterLostError(error.message, _HOW_TO_GO_ON) from None
    finally:
        if not lost:
            with suppress(RayError):
                messages.put(None)
            listener.join()
            messages.shutdown()
    if not outcome:
        raise RunError("the training has ended, and what it found was lost on the way", _HOW_TO_GO_ON)
    return outcome[-1]


def _fit(task: _Task, messages: Queue, processes: int, use_gpus: bool) -> None:
    """Train in one group of processes until it ends.

    Raises:
        HandDataError: What one of the processes raised.
        RunError: The processes do not start, or the one that directs them died, which leaves their CPUs and GPUs taken.
        _LostError: A process was lost.

    """
    with _notes_folder(task.storage, task.run) as notes:
        trainer = ray.train.torch.TorchTrainer(
            _train_one_process,
            train_loop_config={"task": task, "messages": messages},
            scaling_config=ray.train.ScalingConfig(num_workers=processes, use_gpu=use_gpus),
            run_config=ray.train.RunConfig(
                name=RAY_TRAIN,
                failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=_STARTS - 1),  # type: ignore[call-arg]
                **notes,
            ),
        )
        try:
            on_cluster(trainer.fit)
        except ray.train.TrainingFailedError as error:
            require_cluster()
            if isinstance(error, ray.train.ControllerError):
                raise RunError(
                    f"the {processes} training processes did not start: {gist(str(error.controller_failure))}",
                    f"are {processes} {'GPUs' if use_gpus else 'CPUs'} of the cluster free? `ray status` tells",
                ) from None
            failures: dict[int, Exception] = getattr(error, "worker_failures", {})
            # A process that is lost or raises takes others with it, which then lose their connection to it.
            ours = [failure for failure in failures.values() if isinstance(failure, HandDataError)]
            ours.sort(key=lambda failure: isinstance(failure, _LostError))
            if ours and not isinstance(ours[0], _LostError):
                raise ours[0] from None
            died = [(rank, failure) for rank, failure in failures.items() if not isinstance(failure, HandDataError)]
            if died:
                rank, failure = died[0]
                raise _LostError(f"training process {rank} was lost: {gist(str(failure))}") from None
            if ours:
                raise ours[0] from None
            raise _LostError(f"the processes were lost: {gist(str(error))}") from None
        except RayError as error:  # it is one of Ray's own that directs the others
            require_cluster()
            raise RunError(f"the process that directs the training died: {gist(str(error))}", _HOW_TO_GO_ON) from None


def _train_one_process(config: dict[str, Any]) -> None:
    """Run as one of the processes; Ray Train has joined them into a group.

    Raises:
        HandDataError: What ``train`` raises, or what stands for another error; Ray Train then ends the group.

    """
    task: _Task = config["task"]
    messages: Queue = config["messages"]
    context = ray.train.get_context()
    process = Process(context.get_world_rank(), context.get_world_size())
    leads = process.rank == 0
    try:
        summary = train(
            task.preset,
            task.storage,
            task.run,
            steps=task.steps,
            resume=True,
            init=task.init,
            device=str(ray.train.torch.get_device()),
            process=process,
            on_step=(lambda *progress: _say(messages, progress)) if leads else None,
            on_note=(lambda line: _say(messages, line)) if leads else None,
        )
    except StorageError as error:
        if not error.transient:
            raise
        raise _LostError(f"training process {process.rank}: {error.message}", error.hint) from None
    except HandDataError:
        raise
    except Exception as error:
        raise _named(error, process.rank) from error
    if leads:
        _say(messages, summary)


def _named(error: Exception, rank: int) -> RunError:
    """Return the error that stands for one that is not ours: of a lost connection, of the GPU's memory, or a bug."""
    text = " ".join(str(error).split())
    if isinstance(error, torch.distributed.DistError) or "gloo" in text or "NCCL" in text:
        return _LostError(f"training process {rank} has lost its connection to the others: {text}")
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return RunError(
            f"training process {rank} is out of memory: {text}", "set optimisation.micro_batch_size to a smaller number"
        )
    last = traceback.extract_tb(error.__traceback__)[-1]
    return RunError(
        f"training process {rank} met a {type(error).__name__}: {text}",
        f"raised in {last.filename}, line {last.lineno}; {_HOW_TO_GO_ON}",
    )


def _say(messages: Queue, message: object) -> None:
    """Put a message into the queue as bytes, since the queue's process would import torch to unpickle it."""
    messages.put(ray.cloudpickle.dumps(message))  # type: ignore[no-untyped-call]


def _listen(messages: Queue, outcome: list[TrainSummary], on_step: OnStep | None, on_note: OnNote | None) -> None:
    """Pass on what the first process says until ``None`` comes, or nothing more can."""
    with suppress(RayError):
        while (received := messages.get()) is not None:
            message = ray.cloudpickle.loads(received)
            if isinstance(message, TrainSummary):
                outcome.append(message)
            elif isinstance(message, str):
                if on_note:
                    on_note(message)
            elif on_step:
                on_step(*message)


@contextmanager
def _notes_folder(storage: Storage, run: str) -> Iterator[dict[str, Any]]:
    """Yield where Ray Train keeps its notes: all nodes must see the place. It is removed when training ends."""
    name = ray_train_folder(run)
    storage.remove(name)
    try:
        yield storage.arrow_filesystem(run_folder(run))
    finally:
        storage.remove(name)
