"""Several processes train one network, on a real Ray cluster with gloo between them."""

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.util import placement_group, remove_placement_group

from handdata.jobs.train import MAX_RESTARTS, _LostError, _named, train_in_processes
from handdata.pipeline.run.cluster import start_local
from handdata.pipeline.storage import Storage
from handdata.schemas import RunError, UsageError
from handdata.trainer.loop import TrainSummary, train
from handdata.trainer.presets import MonitoringConfig
from tests.fixtures.faults import processes
from tests.fixtures.training import SMALL, changed, weights, write_two_sequences

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("polled_often", "ray_cluster")]

IN_SIX = changed(SMALL, batch_size=6)
PRESET = changed(SMALL, batch_size=8).model_copy(update={"monitoring": MonitoringConfig(checkpoint_every=2)})


@pytest.fixture(scope="module")
def polled_often() -> Iterator[None]:
    """Let Ray Train look after its processes every fifth of a second, instead of every other second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        yield


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = Storage(tmp_path_factory.mktemp("training") / "workspace")
    write_two_sequences(storage)
    return storage


def same(first: str, second: str, tolerance: float = 1e-5) -> None:
    expected, found = weights(first), weights(second)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance)


def test_two_processes_end_where_one_with_twice_the_share_does(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_two_sequences(storage, unreadable=1)
    seen: list[int] = []
    alone = train(PRESET, storage, "alone", steps=5, device="cpu")
    together = train_in_processes(
        PRESET, storage, "together", processes=2, use_gpus=False, steps=5, on_step=lambda step, *_: seen.append(step)
    )
    same(alone.checkpoint_url, together.checkpoint_url)
    assert together.unreadable == alone.unreadable > 0
    assert seen == [1, 2, 3, 4, 5]
    assert together.steps == 5
    assert together.validation is not None
    assert alone.validation is not None
    assert together.validation.true_loss == pytest.approx(alone.validation.true_loss, rel=1e-4)
    assert not storage.exists("runs/together/ray_train")


def test_a_lost_process_is_replaced_and_training_goes_on_from_the_last_checkpoint(storage: Storage) -> None:
    killed: list[int] = []
    notes: list[str] = []

    def kill_one(step: int, *_: object) -> None:
        if step == 3 and not killed:
            last = max(processes("RayTrainWorker"), key=lambda process: process.pid)
            killed.append(last.pid)
            last.kill()

    alone = train(PRESET, storage, "undisturbed", steps=30, device="cpu")
    disturbed = train_in_processes(
        PRESET, storage, "disturbed", processes=2, use_gpus=False, steps=30, on_step=kill_one, on_note=notes.append
    )
    assert killed
    assert any("was lost" in note and "start again from the last checkpoint" in note for note in notes)
    same(alone.checkpoint_url, disturbed.checkpoint_url, tolerance=1e-3)  # one batch, summed in another order 30 times


def sabotaged(storage: Storage, deed: str) -> Storage:
    """Return a storage that spoils the training of each process that it travels to: one deed, at the third step.

    Each deed leaves a line with its time in the file ``<deed>``.
    """

    def arrive(root: str) -> Storage:
        import os
        import time
        from pathlib import Path

        from handdata.pipeline.storage import Storage
        from handdata.trainer.trainer import Trainer

        kept_step, kept_write = Trainer.training_step, Storage.write_bytes

        def note() -> None:
            with Path(root, deed).open("a") as file:
                file.write(f"{time.time()}\n")

        def step(trainer: Any, micro_batches: Any) -> float:
            if trainer.step == 2 and trainer.process.rank == 1 and deed in ("missing", "bug", "killed"):
                note()
                if deed == "missing":
                    Storage(root).read_bytes("dataset/data/gone.parquet")
                if deed == "killed":
                    os.kill(os.getpid(), 9)
                raise ZeroDivisionError("a bug")
            return kept_step(trainer, micro_batches)

        def validate(trainer: Any, batches: Any) -> None:
            note()
            raise ZeroDivisionError("a bug")

        def write(self: Storage, name: str, data: bytes) -> None:
            if name.endswith(".safetensors"):
                note()
                with self._named_errors("write", name):
                    raise OSError(28, os.strerror(28))
            kept_write(self, name, data)

        Trainer.training_step = step  # type: ignore[method-assign, assignment]
        if deed == "validation":
            Trainer.validate = validate  # type: ignore[method-assign, assignment]
        if deed == "full":
            Storage.write_bytes = write  # type: ignore[method-assign, assignment]
        return Storage(root)

    class Sabotaged(Storage):
        def __reduce__(self) -> Any:
            return arrive, (self.root,)

    return Sabotaged(storage.root)


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("missing", "cannot read .*gone.parquet: No such file"),
        pytest.param("bug", "training process 1 met a ZeroDivisionError: a bug", marks=pytest.mark.soak),
        pytest.param("validation", "training process 0 met a ZeroDivisionError: a bug", marks=pytest.mark.soak),
        pytest.param("full", "cannot write .*safetensors: No space left on device", marks=pytest.mark.soak),
        pytest.param("killed", "lost 4 times without a new checkpoint: .*process 1", marks=pytest.mark.soak),
        pytest.param("wild", r"the loss is (nan|inf) at step", marks=pytest.mark.soak),
    ],
)
def test_an_error_in_one_process_ends_all_at_once_under_its_name_and_is_not_tried_again(
    storage: Storage, tmp_path: Path, deed: str, message: str
) -> None:
    write_two_sequences(Storage(tmp_path))
    preset = PRESET if deed != "wild" else changed(PRESET, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(RunError, match=message):
        train_in_processes(preset, sabotaged(Storage(tmp_path), deed), "run", processes=2, use_gpus=False, steps=20)
    if deed != "wild":
        done = [float(line) for line in (tmp_path / deed).read_text().splitlines()]
        assert time.time() - done[-1] < 30
        assert len(done) == (1 + MAX_RESTARTS if deed == "killed" else 1)


def on_three_cpus(root: Path, deed: str | None) -> TrainSummary:
    """Train in three processes of a Ray head of their own, in a process that knows no other."""
    start_local(3)
    try:
        storage = sabotaged(Storage(root), deed) if deed else Storage(root)
        return train_in_processes(IN_SIX, storage, "together", processes=3, use_gpus=False, steps=6)
    finally:
        ray.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("deed", "message"),
    [
        (None, ""),
        ("missing", "cannot read .*gone.parquet: No such file"),
        ("bug", "training process 1 met a ZeroDivisionError: a bug"),
        ("validation", "training process 0 met a ZeroDivisionError: a bug"),
        ("killed", "lost 4 times without a new checkpoint: .*process 1"),
    ],
)
def test_three_processes_have_the_weights_of_one_or_end_at_once(tmp_path: Path, deed: str | None, message: str) -> None:
    write_two_sequences(Storage(tmp_path), unreadable=1)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as others:
        ending = others.submit(on_three_cpus, tmp_path, deed)
        if deed is None:
            alone = train(IN_SIX, Storage(tmp_path), "alone", steps=6, device="cpu")
            together = ending.result()
            same(alone.checkpoint_url, together.checkpoint_url)
            assert together.unreadable == alone.unreadable > 0
            return
        with pytest.raises(RunError, match=message):
            ending.result()
    done = [float(line) for line in (tmp_path / deed).read_text().splitlines()]
    assert time.time() - done[-1] < 30
    assert len(done) == (1 + MAX_RESTARTS if deed == "killed" else 1)


def test_errors_that_are_not_ours_are_named_and_those_of_a_connection_are_tried_again() -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        raise ZeroDivisionError("a bug")
    bug = _named(raised.value, 3)
    assert "training process 3 met a ZeroDivisionError: a bug" in str(bug)
    assert "test_processes.py, line" in bug.hint
    assert not isinstance(bug, _LostError)
    assert "out of memory" in str(_named(torch.OutOfMemoryError("CUDA out of memory"), 0))
    for lost in (
        torch.distributed.DistBackendError("NCCL error"),
        RuntimeError("[gloo/transport/tcp/pair.cc:5] closed"),
    ):
        assert isinstance(_named(lost, 0), _LostError)


def test_more_gpus_than_there_are_and_uneven_shares_are_errors(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="8 GPUs were asked for, the cluster has 0"):
        train_in_processes(PRESET, storage, "many", processes=8, use_gpus=True)
    with pytest.raises(UsageError, match="cannot be cut into 3 shares"):
        train_in_processes(PRESET, storage, "uneven", processes=3, use_gpus=False)


@pytest.mark.soak
def test_processes_for_which_no_cpus_come_free_end_in_one_line(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    taken = placement_group([{"CPU": 1}])
    assert taken.wait(60)
    try:
        with pytest.raises(RunError, match="the 2 training processes did not start: ") as caught:
            train_in_processes(PRESET, storage, "busy", processes=2, use_gpus=False, steps=1)
    finally:
        remove_placement_group(taken)
    assert caught.value.hint == "are 2 CPUs of the cluster free? `ray status` tells"
