"""Where a network computes: on the device that was asked for, or in a named error."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import UsageError
from handdata.trainer.autoencoders import PixelAutoencoder
from handdata.trainer.data.latents import encode
from handdata.trainer.devices import TrainedPrecision, autocast, choose_device, encoding_devices
from handdata.trainer.presets import AutoencoderConfig, OptimisationConfig
from tests.fixtures.commands import CommandResult
from tests.fixtures.samples import sample, write_dataset

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@no_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:3", "mps", "tpu", "CPU", ""])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    if not name:
        assert choose_device(name) == choose_device(None) == torch.device("cpu")
        return
    with pytest.raises(UsageError, match=r"is no device|this machine has 0 CUDA GPUs"):
        choose_device(name)


@no_gpu
@pytest.mark.parametrize("command", [["sample", "unconditional"], ["evaluate"], ["encode", "--preset", "tiny"]])
def test_commands_that_use_a_network_take_a_device(
    command: list[str], run_command: Callable[..., CommandResult], tmp_path: Path
) -> None:
    result = run_command(*command, "--device", "cuda", "-w", tmp_path)
    assert result.code == 2
    assert "the device cuda was asked for, this machine has 0 CUDA GPUs" in result.err


def test_a_network_answers_in_float32_and_on_a_cpu_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(4, 4)
    wrapped = TrainedPrecision(network, OptimisationConfig(steps=1, batch_size=1, precision="bfloat16"))
    given = torch.randn(2, 4)
    assert torch.equal(wrapped(given), network(given))
    for has, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("handdata.trainer.devices.cpu_has_bfloat16", lambda has=has: has)
        with autocast(torch.device("cpu"), "bfloat16", on_cpu=True):
            assert network(given).dtype == expected
        with autocast(torch.device("cpu"), "float16", on_cpu=True):
            assert network(given).dtype == torch.float32


def test_several_devices_and_threads_store_the_latents_of_one(tmp_path: Path) -> None:
    config, cpu = AutoencoderConfig(kind="pixel"), torch.device("cpu")
    stored = []
    shown: list[tuple[int, int]] = []
    for name, devices, threads in (("one", (cpu,), 0), ("more", (cpu, cpu), 2)):
        storage = Storage(tmp_path / name)
        write_dataset(storage, [sample("wave", n, split=split) for split in ("train", "val", "test") for n in range(5)])
        shown.clear()
        summary = encode(
            Dataset(storage), PixelAutoencoder(), config, 32, variants=3, devices=devices, threads=threads,
            batch_size=4, on_shard=lambda *done: shown.append(done),
        )  # fmt: skip
        assert (summary.shards, summary.rows, shown) == (3, 45, [(1, 3), (2, 3), (3, 3)])
        files = storage.list_files("dataset/latents", ".parquet")
        stored.append({file: storage.read_bytes(file) for file in files})
    assert len(stored[0]) == 3
    assert stored[0] == stored[1]


def test_gpus_and_a_device_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="--gpus and --device were both given"):
        encoding_devices(1, "cpu")
    assert encoding_devices(0, None) == [torch.device("cpu")]
