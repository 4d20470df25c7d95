"""What does not fit into a GPU's memory is found out by trying, or ends in a line that says what to change."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from handdata.pipeline.storage import Storage
from handdata.schemas import RunError, UsageError
from handdata.trainer import loop, tasks
from handdata.trainer.loop import train
from handdata.trainer.memory import advice, largest_that_fits, smaller_micro_batch
from handdata.trainer.presets import PRESETS, PURPOSES, Preset, as_toml, load_preset, read_changes
from handdata.trainer.trainer import Trainer
from tests.fixtures.commands import CommandResult
from tests.fixtures.training import SMALL, changed, weights, write_two_sequences


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path / "w")
    write_two_sequences(storage)
    return storage


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Give the trainer memory for so many pairs at once, and return the numbers that it tries."""
    kept = Trainer.losses

    def room(most: int) -> list[int]:
        tried: list[int] = []

        def losses(trainer: Trainer, model: Any, batch: Any, *arguments: Any, **options: Any) -> Tensor:
            tried.append(len(batch.task))
            if len(batch.task) > most:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")
            return kept(trainer, model, batch, *arguments, **options)

        monkeypatch.setattr(Trainer, "losses", losses)
        return tried

    return room


def test_half_as_many_pairs_that_divide_the_share_come_next() -> None:
    tried = [400]
    while (smaller := smaller_micro_batch(400, tried[-1])) is not None:
        tried.append(smaller)
    assert tried == [400, 200, 100, 50, 25, 10, 5, 2, 1]
    assert smaller_micro_batch(7, 7) == 1 and smaller_micro_batch(1, 1) is None


@pytest.mark.parametrize(("room", "found"), [(1000, 48), (47, 24), (5, 3), (1, 1), (0, None)])
def test_the_largest_that_fits_is_found(room: int, found: int | None) -> None:
    def attempt(count: int) -> None:
        if count > room:
            raise torch.cuda.OutOfMemoryError

    assert largest_that_fits(48, attempt) == found


def test_a_run_finds_what_fits_and_learns_the_same(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, room_for: Callable[[int], list[int]]
) -> None:
    whole = train(SMALL, storage, "whole", steps=2, device="cpu")
    monkeypatch.setattr(loop, "finds_micro_batch", lambda device: True)
    tried = room_for(2)
    notes: list[str] = []
    found = train(SMALL, storage, "found", steps=2, device="cpu", on_note=notes.append)
    assert tried[:2] == [4, 2] and set(tried[2:]) == {2}
    assert "2 of 4 pairs go through the network together: what fits into the GPU's memory" in notes
    for name, tensor in weights(whole.checkpoint_url).items():
        torch.testing.assert_close(weights(found.checkpoint_url)[name], tensor, atol=1e-4, rtol=1e-3)
    assert '"micro_batch_size": null' in storage.read_bytes("runs/found/settings.json").decode()  # of any machine


def test_out_of_memory_says_which_micro_batch_to_take(storage: Storage, room_for: Callable[[int], list[int]]) -> None:
    room_for(1)
    for micro, said in [(None, 2), (4, 2), (2, 1)]:
        with pytest.raises(RunError) as caught:
            train(changed(SMALL, micro_batch_size=micro), storage, "run", steps=1, device="cpu")
        assert "\n" not in str(caught.value)
        assert f"out of memory, in step 1 with micro batches of {micro or 4} pairs" in caught.value.message
        assert f"set `micro_batch_size = {said}` below `[optimisation]`" in caught.value.hint
    assert train(changed(SMALL, micro_batch_size=1), storage, "run", steps=1, device="cpu").steps == 1


def test_where_one_pair_does_not_fit_activations_are_to_be_computed_twice(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, room_for: Callable[[int], list[int]]
) -> None:
    room_for(0)
    monkeypatch.setattr(loop, "finds_micro_batch", lambda device: True)
    for micro in (None, 1):
        with pytest.raises(RunError, match=r"activation_checkpointing = true.*smaller --preset"):
            train(changed(SMALL, micro_batch_size=micro), storage, "run", steps=1, device="cpu")
    assert "activation_checkpointing" in advice(3, 1)


def test_sampling_out_of_memory_says_to_draw_fewer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sampler = tasks.load_sampler(Trainer(SMALL, "cpu").save(str(tmp_path)), device="cpu")

    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(tasks, "sample", full)
    with pytest.raises(RunError, match=r"out of memory, drawing 3 images at once \(choose a smaller --batch-size"):
        tasks.unconditional(sampler, 3)


@pytest.mark.parametrize(
    ("has_gpu", "words", "chosen", "said"),
    [
        (True, (), "foundhand-xl", "a CUDA GPU trains: foundhand-xl, the published setting"),
        (True, ("--init", "builtin"), "foundhand-xl", ", started from builtin;"),
        (True, ("--gpus", "0"), "tiny", "a CPU trains: tiny"),
        (False, (), "tiny", "there is no CUDA GPU: tiny"),
        (False, ("--gpus", "8"), "foundhand-xl", "a CUDA GPU trains: foundhand-xl"),
        (True, ("--preset", "foundhand-s"), "foundhand-s", None),
    ],
)
def test_without_a_preset_the_machine_decides_and_says_so(
    has_gpu: bool,
    words: tuple[str, ...],
    chosen: str,
    said: str | None,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    run_command: Callable[..., CommandResult],
) -> None:
    def run(preset: Preset, *_: object, **__: object) -> None:
        assert preset.model == PRESETS[chosen].model
        raise RunError("trained")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr("handdata.trainer.loop.train", run)
    monkeypatch.setattr("handdata.jobs.train.train_in_processes", run)
    result = run_command("train", "-w", storage.url(), *words)
    assert result.err.splitlines()[-1] == "error: trained", result.err
    lines = [line for line in result.err.splitlines() if "no --preset" in line]
    assert (len(lines) == 1 and said in lines[0]) if said else not lines


def test_a_resumed_run_keeps_its_own_settings_on_another_machine(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, run_command: Callable[..., CommandResult]
) -> None:
    train(SMALL, storage, "run", steps=1, device="cpu")

    def run(preset: Preset, *_: object, device: str | None, **__: object) -> None:
        assert preset.model == SMALL.model and device is None  # which is the GPU
        raise RunError("trained")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("handdata.trainer.loop.train", run)
    resumed = run_command("train", "-w", storage.url(), "--run", "run", "--resume", "--steps", "2")
    assert resumed.err.splitlines()[-1] == "error: trained" and "no --preset" not in resumed.err, resumed.err


def test_presets_are_listed_and_one_is_shown_as_a_file_of_settings(
    tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    assert PURPOSES.keys() == PRESETS.keys()
    listed = run_command("presets").out
    assert all(name in listed for name in PRESETS)
    for name, preset in PRESETS.items():
        assert as_toml(name).isascii()
        shown = run_command("presets", name)
        (tmp_path / "a.toml").write_text(shown.out)
        assert load_preset(name, tmp_path / "a.toml") == preset
        other = "tiny" if name != "tiny" else "carried-64"
        assert load_preset(None, tmp_path / "a.toml", partial(str, other)) == preset  # also what is not set in it
        with pytest.raises(UsageError, match=f"has the settings of the preset {name}, not of {other}"):
            load_preset(other, tmp_path / "a.toml")
        assert "preset" not in read_changes(tmp_path / "a.toml")
    document = run_command("presets", "--json").out
    assert document.count("\n") == 1 and '"foundhand-xl"' in document
    assert Preset.model_validate_json(run_command("presets", "tiny", "--json").out) == PRESETS["tiny"]
    unknown = run_command("presets", "foundhand")
    assert unknown.code == 2 and "did you mean foundhand-" in unknown.err
