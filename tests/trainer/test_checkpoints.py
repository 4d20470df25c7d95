"""Checkpoints: resumed runs, crashes at any moment, published weights."""

import argparse
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import safetensors.torch
import torch

from handdata.pipeline.storage import Storage
from handdata.schemas.errors import DamagedWeightsError, StorageError, WeightsError
from handdata.trainer.checkpoints import latest_checkpoint, load_checkpoint, load_for_sampling, save_checkpoint
from handdata.trainer.model import DiT
from handdata.trainer.presets import ModelConfig
from handdata.trainer.weights import (
    export_foundhand,
    import_foundhand,
    import_imagenet_dit,
    read_weights,
    write_foundhand,
)
from tests.fixtures.training import CONFIG, SIZES, Run


def equal_states(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal_states(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal_states, first, second))
    return bool(first == second)


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = Run(seed=0)
    losses = whole.train(10)

    interrupted = Run(seed=0)
    interrupted.train(5)
    checkpoint = interrupted.save(str(tmp_path))
    resumed = Run(seed=99)
    data_state = resumed.resume(checkpoint)

    assert data_state == {"epoch": 1, "rows": [5, 5]}
    assert resumed.train(5) == losses[5:]
    for part in ("model", "ema", "optimizer", "schedule"):
        assert equal_states(getattr(resumed, part).state_dict(), getattr(whole, part).state_dict())


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_latest_checkpoint_is_the_last_complete_one_at_any_fsspec_url(where: str, tmp_path: Path) -> None:
    url = str(tmp_path / "run") if where == "folder" else "memory://bucket/run"
    run = Run(seed=0)
    assert latest_checkpoint(url) is None
    for _ in range(3):
        run.train(1)
        saved = run.save(url, keep_last=2)

    latest = latest_checkpoint(url)
    assert latest == saved
    fs, root = fsspec.core.url_to_fs(url)
    assert [name.rsplit("/", 1)[-1] for name in sorted(fs.ls(f"{root}/checkpoints", detail=False))] == [
        "step-00000002", "step-00000003"
    ]  # fmt: skip
    fresh = Run(seed=1)
    fresh.resume(latest)
    assert fresh.step == 3
    model, config = load_for_sampling(url)
    assert equal_states(model.state_dict(), run.ema.state_dict())
    assert config == CONFIG
    fs.rm(root, recursive=True)


def test_a_server_that_is_away_does_not_pass_for_a_run_without_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(seed=0).save(str(tmp_path))

    def away(storage: Storage, name: str) -> bytes:
        raise StorageError(f"cannot read {name}: connection refused", transient=True)

    monkeypatch.setattr(Storage, "read_bytes", away)
    with pytest.raises(StorageError, match="connection refused"):
        latest_checkpoint(str(tmp_path))


@pytest.mark.parametrize("name", ["complete.json", "model.safetensors"])
def test_a_run_whose_only_checkpoint_is_damaged_does_not_begin_anew(tmp_path: Path, name: str) -> None:
    run = Run(seed=0)
    run.train(1)
    saved = Path(fsspec.core.url_to_fs(run.save(str(tmp_path / "run")))[1])
    (saved / name).write_bytes((saved / name).read_bytes()[:7])
    with pytest.raises(WeightsError, match=r"step-00000001 is damaged, and the run has no other.*to begin anew"):
        latest_checkpoint(str(tmp_path / "run"))


def test_every_prefix_of_a_save_leaves_the_checkpoint_before_it(tmp_path: Path) -> None:
    run = Run(seed=0)
    run.train(1)
    first = run.save(str(tmp_path / "run"))
    run.train(1)
    second = Path(fsspec.core.url_to_fs(run.save(str(tmp_path / "run")))[1])
    complete = {path.name: path.read_bytes() for path in second.iterdir()}
    order = ["model.safetensors", "ema.safetensors", "state.pt", "complete.json"]
    assert sorted(order) == sorted(complete)

    for written in range(len(order)):
        for share in (0.0, 0.5):  # of the file that was being written when the process died
            shutil.rmtree(second)
            second.mkdir()
            for name in order[:written]:
                (second / name).write_bytes(complete[name])
            torn = complete[order[written]]
            (second / order[written]).write_bytes(torn[: int(len(torn) * share)])
            assert latest_checkpoint(str(tmp_path / "run")) == first

    for name in order:
        (second / name).write_bytes(complete[name])
    assert latest_checkpoint(str(tmp_path / "run")) != first
    (second / "ema.safetensors").write_bytes(b"")  # a disk that lost its last writes
    assert latest_checkpoint(str(tmp_path / "run")) == first


def test_a_run_killed_while_saving_can_be_resumed(tmp_path: Path) -> None:
    program = (
        "import sys, torch\n"
        "from tests.fixtures.training import Run\n"
        "torch.set_num_threads(1)\n"
        "run = Run(seed=0)\n"
        "while True:\n"
        "    run.step += 1\n"
        "    run.save(sys.argv[1], keep_last=2)\n"
        "    print(run.step, flush=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        reported = int(process.stdout.readline())
        time.sleep(0.137)
        process.send_signal(signal.SIGKILL)
        process.wait()
        reported = max([reported, *map(int, process.stdout.read().split())])

    latest = latest_checkpoint(str(tmp_path))
    assert latest is not None
    run = Run(seed=1)
    run.resume(latest)
    assert run.step >= reported
    run.step += 1
    run.save(str(tmp_path), keep_last=1)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_sampling_needs_nothing_but_the_file(tmp_path: Path) -> None:
    run = Run(seed=0)
    run.train(2)
    checkpoint = Path(fsspec.core.url_to_fs(run.save(str(tmp_path / "run")))[1])
    alone = shutil.move(checkpoint / "ema.safetensors", tmp_path / "alone.safetensors")

    model, config = load_for_sampling(str(alone))

    assert not model.training
    assert equal_states(model.state_dict(), run.ema.state_dict())
    assert ModelConfig.model_validate(config["model"]) == SIZES


def test_files_that_are_no_checkpoint_are_an_error_that_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no complete checkpoint in .*give a run's folder"):
        load_for_sampling(str(tmp_path))
    with pytest.raises(WeightsError, match="no checkpoint at"):
        load_for_sampling(str(tmp_path / "none.safetensors"))
    safetensors.torch.save_file({"a": torch.zeros(1)}, bare := tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match="carries no settings"):
        load_for_sampling(str(bare))
    (tmp_path / "torn.safetensors").write_bytes(bare.read_bytes()[:20])
    with pytest.raises(WeightsError, match="not a readable file of weights"):
        load_for_sampling(str(tmp_path / "torn.safetensors"))
    run = Run(seed=0)
    with pytest.raises(WeightsError, match="not a complete checkpoint"):
        run.resume(str(tmp_path))


def test_a_checkpoint_of_another_size_is_an_error(tmp_path: Path) -> None:
    run = Run(seed=0)
    checkpoint = run.save(str(tmp_path))
    other = DiT(**SIZES.model_copy(update={"depth": 3}).model_dump())
    with pytest.raises(WeightsError, match="does not fit this network"):
        load_checkpoint(checkpoint, other, run.ema, run.optimizer)


def test_state_that_could_not_be_read_back_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    run = Run(seed=0)
    with pytest.raises(TypeError, match=r"data_state\['rows'\]\[0\] is a int64"):
        save_checkpoint(str(tmp_path), 1, run.model, run.ema, run.optimizer, CONFIG, data_state={"rows": [np.int64(3)]})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"cannot write .*model\.safetensors"):
        Run(seed=0).save(str(tmp_path / "run"))


# ------------------------------------------------------------------------------------------ published weights


def test_export_is_the_inverse_of_import() -> None:
    state = DiT(**SIZES.model_dump()).state_dict()
    published = export_foundhand(state)
    assert {"pos_embed", "blocks.1.adaLN_modulation.1.weight", "t_embedder.mlp.2.bias"} < published.keys()
    assert equal_states(import_foundhand(published), state)


@pytest.mark.parametrize("name", ["mine.pt", "mine.safetensors"])
def test_an_exported_run_has_its_averaged_weights_bit_for_bit(name: str, tmp_path: Path) -> None:
    Run(seed=0).save(str(tmp_path / "run"))
    model, _ = load_for_sampling(str(tmp_path / "run"))
    write_foundhand(model, tmp_path / name)
    published = read_weights(str(tmp_path / name))
    assert "feature_aligned_embedder.proj.weight" in published
    assert equal_states(import_foundhand(published), model.state_dict())


def test_what_the_published_code_cannot_read_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="qk_norm has no published format"):
        write_foundhand(DiT(**SIZES.model_copy(update={"qk_norm": True}).model_dump()), tmp_path / "mine.pt")
    with pytest.raises(WeightsError, match=r"end it with .pt"):
        write_foundhand(DiT(**SIZES.model_dump()), tmp_path / "mine.bin")
    with pytest.raises(WeightsError, match="cannot write"):
        write_foundhand(DiT(**SIZES.model_dump()), tmp_path / "absent" / "mine.pt")


def imagenet_state(model: DiT) -> dict[str, torch.Tensor]:
    state = {name: torch.randn_like(tensor) for name, tensor in export_foundhand(model.state_dict()).items()}
    del state["nvs_label_embedder.embedding_table.weight"]
    state["pos_embed"] = state["pos_embed"][:, : model.patches]
    bias, weight = (state.pop(f"feature_aligned_embedder.proj.{part}") for part in ("bias", "weight"))
    return state | {"x_embedder.proj.bias": bias, "x_embedder.proj.weight": weight[:, : model.latent_channels]}


def test_imagenet_weights_start_a_network_that_ignores_its_conditions() -> None:
    model = DiT(**SIZES.model_dump())
    imagenet = imagenet_state(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    model.load_state_dict(import_imagenet_dit(imagenet, model))

    weight = model.patch_embedding.proj.weight
    assert torch.equal(weight[:, :3], imagenet["x_embedder.proj.weight"])
    assert not weight[:, 3:].any()
    assert torch.equal(model.positions[:, :16], imagenet["pos_embed"])
    assert torch.equal(model.positions[:, 16:], before["positions"][:, 16:])
    assert torch.equal(model.task_embedding.weight, before["task_embedding.weight"])
    assert torch.equal(model.class_embedding.weight, imagenet["y_embedder.embedding_table.weight"])
    x, t, task = torch.randn(1, 3, 8, 8), torch.tensor([7]), torch.tensor([0])
    outputs = [model(x, t, torch.full((1, 43, 8, 8), value), torch.zeros(1, 46, 8, 8), task) for value in (0.0, 1.0)]
    assert torch.equal(*outputs)


def test_imagenet_weights_of_another_size_are_an_error() -> None:
    model = DiT(**SIZES.model_dump())
    deeper = DiT(**SIZES.model_copy(update={"depth": 3}).model_dump())
    wider = DiT(**SIZES.model_copy(update={"hidden_size": 64}).model_dump())
    with pytest.raises(WeightsError, match="not a DiT of 2 blocks"):
        import_imagenet_dit(imagenet_state(deeper), model)
    with pytest.raises(WeightsError, match=r"has shape \(.*64.*expected"):
        import_imagenet_dit(imagenet_state(wider), model)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_weights_are_read_from_safetensors_and_pytorch_files(name: str, tmp_path: Path) -> None:
    state = {"a": torch.randn(3)}
    if name.endswith(".pt"):
        torch.save({"ema_state_dict": state, "model_state_dict": {"a": torch.zeros(3)}, "step": 5}, tmp_path / name)
    else:
        safetensors.torch.save_file(state, tmp_path / name)
    assert equal_states(read_weights(str(tmp_path / name)), state)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pt"
    torch.save({"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(seed=1)}, path)
    assert equal_states(read_weights(str(path)), {"a": torch.zeros(1)}), "the options that DiT keeps are passed over"
    torch.save({"model": {"a": torch.zeros(1)}, "args": Fraction(1, 2)}, path)
    with pytest.raises(WeightsError, match="not a readable file of weights"):
        read_weights(str(path))
    torch.save({"lr": 1e-5}, path)
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_weights(str(path))


def test_the_header_of_a_checkpoint_holds_its_settings(tmp_path: Path) -> None:
    checkpoint = Path(fsspec.core.url_to_fs(Run(seed=0).save(str(tmp_path)))[1])
    with safetensors.safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["config"]) == CONFIG


def test_a_changed_bit_of_a_checkpoint_is_noticed_which_no_reader_of_it_would_notice(tmp_path: Path) -> None:
    run = Run(seed=0)
    run.train(1)
    checkpoint = Path(run.save(str(tmp_path)))
    for name in ("model.safetensors", "ema.safetensors", "state.pt"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
        with pytest.raises(DamagedWeightsError, match=rf"{name} is damaged: its checksum differs"):
            run.resume(str(checkpoint))
        if name == "ema.safetensors":
            with pytest.raises(DamagedWeightsError, match="its checksum differs"):
                load_for_sampling(str(tmp_path))
        (checkpoint / name).write_bytes(whole)
    marker = json.loads((checkpoint / "complete.json").read_text())
    del marker["crc32"]  # as earlier versions wrote it
    (checkpoint / "complete.json").write_text(json.dumps(marker))
    assert run.resume(str(checkpoint))
    (checkpoint / "complete.json").write_text(json.dumps(marker | {"crc32": [1]}))
    with pytest.raises(DamagedWeightsError, match="is damaged, and the run has no other"):
        latest_checkpoint(str(tmp_path))


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(seed=0)
    run.train(1)
    checkpoint = run.save(str(tmp_path))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(fsspec.implementations.local.LocalFileSystem, "cat_file", fail)
        with pytest.raises(StorageError, match=r"cannot read .*: Cannot allocate memory"):
            run.resume(checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "load_file", fail)
        with pytest.raises(StorageError, match=r"cannot read .*: Cannot allocate memory"):
            read_weights(f"{checkpoint}/model.safetensors")

    def too_large(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(torch, "load", too_large)
    with pytest.raises(WeightsError, match="cannot be loaded: DefaultCPUAllocator") as caught:
        run.resume(checkpoint)
    assert not isinstance(caught.value, DamagedWeightsError)
