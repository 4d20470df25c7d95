"""Weights in the published FoundHand format are sampled, and what only looks like them ends in one line."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from handdata.schemas import HandDataError, UsageError, WeightsError
from handdata.trainer import presets
from handdata.trainer.checkpoints import load_for_sampling
from handdata.trainer.model import DiT, resample_positions
from handdata.trainer.presets import PRESETS, Preset
from handdata.trainer.tasks import load_sampler, unconditional
from handdata.trainer.trainer import Trainer
from handdata.trainer.weights import export_foundhand, fitting_presets
from tests.fixtures.commands import CommandResult
from tests.fixtures.published import network_of, published_state, small_published, write_vae
from tests.fixtures.training import SMALL, changed


@dataclass
class TrainingOptions:
    """What the released file has beside its weights: an object of the training script's own."""

    lr: float = 1e-5
    size: tuple[int, int] = (256, 256)


TrainingOptions.__module__ = "__main__"
TrainingOptions.__qualname__ = "TrainingOptions"


class Attack:
    """Runs a command where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.file}",)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture
def published(vae: Path, monkeypatch: pytest.MonkeyPatch) -> Preset:
    """The published setting at the size of tests, as the preset ``foundhand-xs``."""
    preset = small_published(vae)
    monkeypatch.setitem(presets.PRESETS, "foundhand-xs", preset)
    return preset


def as_released(preset: Preset, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The content of a file as the authors released it."""
    monkeypatch.setattr("__main__.TrainingOptions", TrainingOptions, raising=False)
    state = published_state(preset)
    other = {name: tensor + 1 for name, tensor in state.items()}
    ema = state | {"projector.0.weight": torch.zeros(3, 3)}  # of the alignment with DINOv2
    return {"model_state_dict": other, "ema_state_dict": ema, "opts": TrainingOptions(), "epoch": 6, "step": 320_000}


@pytest.mark.parametrize("name", ["foundhand.pt", "released.ckpt", "weights", "stripped.safetensors"])
def test_the_published_format_gives_its_averaged_network(
    name: str, published: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / name
    notes: list[str] = []
    if name == "stripped.safetensors":
        safetensors.torch.save_file(published_state(published), file)
    else:
        torch.save(as_released(published, monkeypatch), file)
        monkeypatch.delattr("__main__.TrainingOptions")
    network, config = load_for_sampling(str(file), preset="foundhand-xs", on_note=notes.append)
    expected = network_of(published).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items())
    assert Preset.model_validate(config) == published
    assert notes == ([] if name == "stripped.safetensors" else [
        f"1 tensors of {file} are not of the network and are not used, such as projector.0.weight"
    ])  # fmt: skip
    file.write_bytes(b"")  # what was read does not hang on the file
    assert all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items())


@pytest.mark.slow
def test_a_command_draws_with_the_authors_file_and_with_what_export_writes(
    published: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: Callable[..., CommandResult]
) -> None:
    torch.save(as_released(published, monkeypatch), file := tmp_path / "foundhand.pt")
    here = ("-w", tmp_path / "w")
    sampling = ("sample", "unconditional", *here, "--n", "2", "--steps", "2", "--device", "cpu", "--checkpoint")
    unnamed = run_command(*sampling, file, "--out", tmp_path / "a.png")
    assert unnamed.code == 1 and f"{file} carries no settings" in unnamed.err
    assert unnamed.err.splitlines()[-1].endswith("--preset foundhand-xs has its sizes")
    drawn = run_command(*sampling, file, "--preset", "foundhand-xs", "--out", tmp_path / "a.png")
    assert drawn.code == 0, drawn.err
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture is not None and np.std(picture) > 1
    for name in ("exported.safetensors", "exported.pt"):
        exported = run_command(
            "export", *here, "--checkpoint", file, "--preset", "foundhand-xs", "--out", tmp_path / name
        )
        assert exported.code == 0, exported.err
        again = run_command(*sampling, tmp_path / name, "--out", tmp_path / "b.png")  # the settings are inside
        assert again.code == 0, again.err
        assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
        assert (
            run_command(*sampling, tmp_path / name, "--preset", "foundhand-xs", "--out", tmp_path / "b.png").code == 0
        )
        wrong = run_command(*sampling, tmp_path / name, "--preset", "foundhand-xl", "--out", tmp_path / "b.png")
        assert wrong.code == 2 and "model is another than the preset's" in wrong.err, wrong.err


def test_hostile_files_end_in_one_line_and_run_nothing(
    published: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = published_state(published)
    config = published.model_dump_json()
    deep = config.replace('"depth":2', '"depth":1000000000')
    assert deep != config
    first = next(iter(state))

    def without(name: str) -> dict[str, Tensor]:
        return {key: tensor for key, tensor in state.items() if key != name}

    contents: dict[str, Any] = {
        "attack.pt": {"ema_state_dict": state, "opts": Attack(tmp_path / "ran")},
        "attack-in-tensors.pt": {"ema_state_dict": state | {"pos_embed": Attack(tmp_path / "ran")}},
        "a-class.pt": {"ema_state_dict": state, "opts": CommandResult(1, "", "")},
        "missing.pt": without("pos_embed"),
        "missing-block.pt": without("blocks.1.attn.qkv.weight"),
        "misshapen.pt": state | {"final_layer.linear.bias": torch.zeros(3)},
        "deeper.pt": state | {"blocks.2.attn.qkv.weight": torch.zeros(3, 3)},
        "inside.pt": state | {"blocks.1.attn.q_norm.weight": torch.zeros(3)},
        "numbers.pt": state | {"pos_embed": (state["pos_embed"] * 100).to(torch.int8)},
        "complex.pt": state | {"pos_embed": state["pos_embed"].to(torch.complex64)},
        "sparse.pt": state | {"pos_embed": state["pos_embed"].to_sparse()},
        "meta.pt": state | {"pos_embed": state["pos_embed"].to("meta")},
        "nan.pt": state | {"pos_embed": state["pos_embed"] * torch.nan},
        "flat.pt": state | {"pos_embed": torch.zeros(3)},
        "empty.pt": {},
        "nothing.pt": {"ema_state_dict": {}},
        "keyed.pt": {3: torch.zeros(3)},
        "list.pt": [state],
        "none.pt": None,
        "imagenet.pt": {"x_embedder.proj.weight": torch.zeros(3)},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
    for name, header in {
        "deep": {"config": deep},
        "nested": {"config": "[" * 100_000},
        "words": {"config": '"a"'},
    }.items():
        safetensors.torch.save_file(state, tmp_path / f"{name}.safetensors", header)
    torch.save({"ema_state_dict": state, "handdata_settings": deep}, tmp_path / "deep.pt")
    whole = (tmp_path / "missing.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.ckpt").write_bytes(b"<!DOCTYPE html><title>Google Drive - Virus scan warning</title>" * 9)
    for file in sorted(tmp_path.iterdir()):
        carries = file.suffix == ".safetensors" or file.name == "deep.pt"
        with pytest.raises(HandDataError) as caught:
            load_for_sampling(str(file), preset=None if carries else "foundhand-xs")
        assert "\n" not in str(caught.value) and len(caught.value.message) < 600, file
        assert caught.value.hint, file
    assert not (tmp_path / "ran").exists()
    assert first


@pytest.mark.parametrize("wrapped", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_names_may_be_wrapped_as_ddp_and_the_compiler_leave_them(
    wrapped: str, ending: str, published: Preset, tmp_path: Path
) -> None:
    state = {f"{wrapped}{name}": tensor for name, tensor in published_state(published).items()}
    file = tmp_path / f"a.{ending}"
    if ending == "pt":
        averaged = {"n_averaged": torch.tensor(5), **state}
        torch.save({"model_state_dict": averaged, "args": argparse.Namespace(lr=1e-5)}, file)  # as DiT's train.py does
    else:
        safetensors.torch.save_file(state, file)
    network, _ = load_for_sampling(str(file), preset="foundhand-xs")
    assert torch.equal(network.positions, state[f"{wrapped}pos_embed"])


def test_settings_that_do_not_fit_one_another_draw_nothing(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, "cpu")
    huge = SMALL.model_copy(update={"image_size": 10**9}).model_dump_json()
    safetensors.torch.save_file(trainer.model.state_dict(), tmp_path / "a.safetensors", {"config": huge})
    with pytest.raises(UsageError, match=r"image_size 1000000000 does not fit model.input_size 32"):
        load_sampler(str(tmp_path / "a.safetensors"), device="cpu")


def test_a_wrong_preset_is_told_the_right_one(published: Preset, tmp_path: Path) -> None:
    torch.save({"ema_state_dict": published_state(published)}, file := tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"its hidden_size is 48, not 1152.*of the preset foundhand-xs"):
        load_for_sampling(str(file), preset="foundhand-xl")
    with pytest.raises(UsageError, match="did you mean foundhand-xl"):
        load_for_sampling(str(tmp_path / "none.pt"), preset="foundhnd-xl")


@pytest.fixture
def twice(published: Preset, monkeypatch: pytest.MonkeyPatch) -> Preset:
    """The same at twice the size, as the preset ``foundhand-xs-128``."""
    model = published.model.model_copy(update={"input_size": 2 * published.model.input_size})
    preset = published.model_copy(update={"image_size": 2 * published.image_size, "model": model})
    monkeypatch.setitem(presets.PRESETS, "foundhand-xs-128", preset)
    return preset


@pytest.mark.parametrize("own_settings", [False, True])
def test_a_preset_of_another_size_draws_at_it_and_changes_nothing_at_the_own_one(
    own_settings: bool, published: Preset, twice: Preset, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    settings = {"config": published.model_dump_json()} if own_settings else None
    safetensors.torch.save_file(published_state(published), file, settings)
    notes: list[str] = []
    same = load_sampler(str(file), device="cpu", preset="foundhand-xs", on_note=notes.append)
    trained = network_of(published)
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.rand(2, 43, 8, 8), torch.rand(2, 47, 8, 8))
    with torch.no_grad():
        assert torch.equal(same.network(*inputs, torch.tensor([0, 1])), trained(*inputs, torch.tensor([0, 1])))
    assert not notes
    larger = load_sampler(str(file), device="cpu", preset="foundhand-xs-128", on_note=notes.append)
    assert larger.preset == twice
    assert notes == [
        f"{file} was trained at latents of 8 pixels: its positions are resampled to 16, a size that it has not seen"
    ]
    assert unconditional(larger, 1).shape == (1, 128, 128, 3)
    state = larger.network.state_dict()
    changed = [name for name, tensor in same.network.state_dict().items() if not torch.equal(tensor, state[name])]
    assert [name.removeprefix("network.") for name in changed] == ["positions"]


def test_a_run_at_another_size_starts_from_the_published_weights(
    published: Preset, twice: Preset, tmp_path: Path
) -> None:
    torch.save({"ema_state_dict": published_state(published)}, file := tmp_path / "a.pt")
    trainer, notes = Trainer(twice, "cpu"), list[str]()
    trainer.start_from(str(file), notes.append)
    assert "its positions are resampled to 16" in notes[0]
    expected = network_of(published).state_dict()
    started = trainer.model.state_dict()
    assert torch.equal(started["positions"], resample_positions(expected.pop("positions"), grid=8))
    assert all(torch.equal(started[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", ["tiny", "carried-64", "foundhand-s"])
def test_shapes_name_the_presets_that_they_fit(name: str) -> None:
    with torch.device("meta"):
        state = DiT(**PRESETS[name].model.model_dump()).state_dict()
    assert fitting_presets(state) == [name]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"diffusion": {"prediction": "noise"}}, "diffusion.prediction is clean there, not noise"),
        ({"model": {"num_heads": 4}}, "model.num_heads is 2 there, not 4"),
    ],
)
def test_weights_of_equal_shapes_that_mean_something_else_do_not_start_a_run(
    changes: dict[str, dict[str, object]], said: str, tmp_path: Path
) -> None:
    checkpoint = Trainer(SMALL, "cpu").save(str(tmp_path / "run"))
    parts = {part: getattr(SMALL, part).model_copy(update=values) for part, values in changes.items()}
    other = Trainer(SMALL.model_copy(update=parts), "cpu")
    for place in (checkpoint, str(tmp_path / "run"), f"{checkpoint}/model.safetensors"):
        with pytest.raises(UsageError, match=f"means something else: {said}"):
            other.start_from(place)
    Trainer(changed(SMALL, learning_rate=1.0), "cpu").start_from(checkpoint)  # which says nothing of the weights


def test_weights_that_add_to_a_reference_do_not_start_a_run_that_draws_without(tmp_path: Path) -> None:
    def with_residual(residual: str) -> Preset:
        geometry = SMALL.model.geometry.model_copy(update={"residual": residual})
        return SMALL.model_copy(update={"model": SMALL.model.model_copy(update={"geometry": geometry})})

    checkpoint = Trainer(with_residual("reference"), "cpu").save(str(tmp_path / "run"))
    with pytest.raises(UsageError, match=r"model.geometry.residual is reference there, not none"):
        Trainer(SMALL, "cpu").start_from(checkpoint)
    plain = Trainer(SMALL, "cpu").save(str(tmp_path / "plain"))
    Trainer(with_residual("reference"), "cpu").start_from(plain)


def test_a_file_that_does_not_say_what_it_predicts_is_started_from_with_a_word(tmp_path: Path) -> None:
    state = export_foundhand(Trainer(SMALL, "cpu").model.state_dict())
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    notes: list[str] = []
    Trainer(SMALL, "cpu").start_from(str(tmp_path / "a.safetensors"), notes.append)
    assert len(notes) == 1 and "in which networks predict noise: this run takes its output" in notes[0]
    safetensors.torch.save_file(state, tmp_path / "a.safetensors", {"config": "[]"})
    with pytest.raises(WeightsError, match="carries settings that are not ours"):
        Trainer(SMALL, "cpu").start_from(str(tmp_path / "a.safetensors"))


def test_a_url_without_a_server_is_not_asked_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("handdata.pipeline.storage.store.time.sleep", waited.append)
    for name in ("foundhand.pt", "foundhand.safetensors?download=true", "runs/mine"):
        with pytest.raises(WeightsError, match=r"no checkpoint at http://127.0.0.1:9"):
            load_for_sampling(f"http://127.0.0.1:9/{name}", preset="tiny")
    assert sum(waited) <= 6
