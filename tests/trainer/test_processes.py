"""Several processes train one network, on a real Ray cluster with gloo between them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from handdata.jobs.train import train_in_processes
from handdata.pipeline.storage import Storage
from handdata.schemas import RunError, UsageError
from handdata.trainer.loop import train
from handdata.trainer.presets import MonitoringConfig
from tests.fixtures.faults import processes
from tests.fixtures.training import SMALL, changed, weights, write_two_sequences

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("polled_often", "ray_cluster")]

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


def test_two_processes_end_where_one_with_twice_the_share_does(storage: Storage) -> None:
    seen: list[int] = []
    alone = train(PRESET, storage, "alone", steps=5, device="cpu")
    together = train_in_processes(
        PRESET, storage, "together", processes=2, use_gpus=False, steps=5, on_step=lambda step, *_: seen.append(step)
    )
    same(alone.checkpoint_url, together.checkpoint_url)
    assert seen == [1, 2, 3, 4, 5]
    assert together.steps == 5
    assert together.validation is not None
    assert not storage.exists("runs/together/ray_train")


def test_a_lost_process_is_replaced_and_training_goes_on_from_the_last_checkpoint(storage: Storage) -> None:
    killed: list[int] = []

    def kill_one(step: int, *_: object) -> None:
        if step == 3 and not killed:
            last = max(processes("RayTrainWorker"), key=lambda process: process.pid)
            killed.append(last.pid)
            last.kill()

    alone = train(PRESET, storage, "undisturbed", steps=30, device="cpu")
    disturbed = train_in_processes(
        PRESET, storage, "disturbed", processes=2, use_gpus=False, steps=30, on_step=kill_one
    )
    assert killed
    same(alone.checkpoint_url, disturbed.checkpoint_url, tolerance=1e-3)  # one batch, summed in another order 30 times


def test_an_error_of_ours_comes_back_as_it_is_and_is_not_tried_again(storage: Storage) -> None:
    wild = changed(PRESET, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step"):
        train_in_processes(wild, storage, "wild", processes=2, use_gpus=False, steps=20)


def test_more_gpus_than_there_are_and_uneven_shares_are_errors(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="8 GPUs were asked for, the cluster has 0"):
        train_in_processes(PRESET, storage, "many", processes=8, use_gpus=True)
    with pytest.raises(UsageError, match="cannot be cut into 3 shares"):
        train_in_processes(PRESET, storage, "uneven", processes=3, use_gpus=False)
