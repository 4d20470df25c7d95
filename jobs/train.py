"""``handdata train --gpus N``: several processes train one network; Ray Train starts them and restarts them.

Each process runs ``trainer.loop.train`` on its share of every batch. A lost process ends the group: Ray Train starts
it anew, and it goes on from the run's last checkpoint.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayError
from ray.util.queue import Queue

from handdata.pipeline.run.cluster import connected, on_cluster, require_cluster
from handdata.pipeline.run.supervisor import gist
from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.layout import RAY_TRAIN, ray_train_folder, run_folder
from handdata.schemas import ClusterLostError, HandDataError, RunError, StorageError, UsageError
from handdata.trainer.checkpoints import latest_checkpoint
from handdata.trainer.loop import OnStep, TrainSummary, train
from handdata.trainer.presets import Preset
from handdata.trainer.schedule import Process, micro_batches

MAX_RESTARTS = 3
"""A group of processes that is lost is started again this often."""
_HOW_TO_GO_ON = "--resume goes on from the last checkpoint"


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
        RunError: As in ``train``, or processes were lost more than ``MAX_RESTARTS`` times, or the cluster is away.

    """
    micro_batches(preset.optimisation, Process(0, processes))
    if latest_checkpoint(storage.url(run_folder(run))) and not resume:
        raise UsageError(f"the run {run} has checkpoints", "go on with --resume, or choose another name with --run")
    with connected(address, on_connect=on_connect):
        return _run_task(_Task(preset, storage, run, steps, init), processes, use_gpus, on_step)


def _run_task(task: _Task, processes: int, use_gpus: bool, on_step: OnStep | None) -> TrainSummary:
    kind = "GPU" if use_gpus else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))  # type: ignore[no-untyped-call]
    if there < processes:
        raise UsageError(
            f"{processes} {kind}s were asked for, the cluster has {there}", "ask for fewer, or add nodes to the cluster"
        )
    # Where its process dies, Ray starts another: losing a line of progress is no reason to stop.
    messages = Queue(actor_options={"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1})
    outcome: list[TrainSummary | HandDataError] = []
    listener = Thread(target=_listen, args=(messages, outcome, on_step), daemon=True)
    listener.start()
    lost = False
    try:
        with _notes_folder(task.storage, task.run) as notes:
            # Paths of weights are the user's own: relative to where the command was typed.
            os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
            # It tells functions that save a last checkpoint before their node goes; ours saves as it goes.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            trainer = ray.train.torch.TorchTrainer(
                _train_one_process,
                train_loop_config={"task": task, "messages": messages},
                scaling_config=ray.train.ScalingConfig(num_workers=processes, use_gpu=use_gpus),
                run_config=ray.train.RunConfig(
                    name=RAY_TRAIN, failure_config=ray.train.FailureConfig(max_failures=MAX_RESTARTS), **notes
                ),
            )
            _fit(trainer)
    except ClusterLostError as error:
        lost = True
        raise RunError(error.message, _HOW_TO_GO_ON) from None
    finally:
        if not lost:
            with suppress(RayError):
                messages.put(None)
            listener.join()
            messages.shutdown()
    if not outcome:
        raise RunError("the training has ended, and what it found was lost on the way", _HOW_TO_GO_ON)
    last = outcome[-1]
    if isinstance(last, HandDataError):
        raise last
    return last


def _fit(trainer: "ray.train.torch.TorchTrainer") -> None:
    try:
        on_cluster(trainer.fit)
    except ray.train.TrainingFailedError as error:
        require_cluster()
        reason = str(error).strip().splitlines()[-1]
        raise RunError(
            f"training processes were lost more than {MAX_RESTARTS} times: {reason}", _HOW_TO_GO_ON
        ) from error
    except RayError as error:  # it is one of Ray's own that directs the others
        require_cluster()
        raise RunError(f"the process that directs the training died: {gist(str(error))}", _HOW_TO_GO_ON) from None


def _train_one_process(config: dict[str, Any]) -> None:
    """Run as one of the processes; Ray Train has joined them into a group."""
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
        )
    except StorageError:
        raise  # may pass: the group is started anew
    except HandDataError as error:  # meets all processes alike, and would meet them again
        if leads:
            _say(messages, error)
        return
    if leads:
        _say(messages, summary)


def _say(messages: Queue, message: object) -> None:
    """Put a message into the queue as bytes, since the queue's process would import torch to unpickle it."""
    messages.put(ray.cloudpickle.dumps(message))  # type: ignore[no-untyped-call]


def _listen(messages: Queue, outcome: list[TrainSummary | HandDataError], on_step: OnStep | None) -> None:
    """Pass on what the first process says until ``None`` comes, or nothing more can."""
    with suppress(RayError):
        while (received := messages.get()) is not None:
            message = ray.cloudpickle.loads(received)
            if not isinstance(message, tuple):
                outcome.append(message)
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
