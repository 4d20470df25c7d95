"""Files and settings that do not fit end in one line that says why."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from handdata.schemas import DamagedWeightsError, HandDataError, RunError, UsageError, WeightsError
from handdata.trainer.autoencoders import PixelAutoencoder, load_autoencoder, require_fit
from handdata.trainer.presets import AutoencoderConfig, Preset, SamplingConfig, SamplingOptions, load_preset
from handdata.trainer.tasks import Sampler, load_sampler, unconditional
from handdata.trainer.trainer import Trainer
from tests.fixtures.commands import CommandResult
from tests.fixtures.training import SMALL, changed


def write_files(folder: Path) -> None:
    """Write files that somebody may take for weights."""
    for name in ("folder", "folder.pt", "folder.safetensors"):
        (folder / name).mkdir()
    for name in ("text", "text.pt", "text.safetensors"):
        (folder / name).write_text("404: Not Found\n" * 20)
    for name in ("empty.pt", "empty.safetensors"):
        (folder / name).touch()
    torch.save([1, 2], folder / "list.pt")
    torch.save({"a": "b"}, folder / "words.pt")
    tensors = {"a": torch.zeros(2)}
    configs = {"plain": None, "cut-config": "{", "list-config": "[]", "no-model": "{}", "other": '{"model": {"x": 1}}'}
    newer = SMALL.model_dump(mode="json") | {"not-yet": 1}
    for name, config in {**configs, "small": SMALL.model_dump_json(), "newer": json.dumps(newer)}.items():
        metadata = None if config is None else {"config": config}
        safetensors.torch.save_file(tensors, folder / f"{name}.safetensors", metadata)
    for name in ("x_embedder", "feature_aligned_embedder"):
        safetensors.torch.save_file({f"{name}.proj.weight": torch.zeros(2)}, folder / f"{name}.safetensors")
    for name in ("plain.safetensors", "words.pt"):
        (folder / f"cut-{name}").write_bytes((folder / name).read_bytes()[:-20])


def test_what_is_no_weights_is_an_error_of_one_line(tmp_path: Path) -> None:
    write_files(tmp_path)
    trainer = Trainer(SMALL, "cpu")
    places = [str(path) for path in sorted(tmp_path.iterdir())]
    places += [str(tmp_path / name) for name in ("missing", "missing.pt", "missing.safetensors")]
    places += ["http://127.0.0.1:9/a.pt", "http://127.0.0.1:9/a.safetensors", "nosuch://a/b.pt", ""]
    for place in places:
        for reading in (trainer.start_from, load_sampler):
            with pytest.raises(HandDataError) as caught:
                reading(place)
            assert "\n" not in caught.value.message, place
            assert len(caught.value.message) < 600, place


def test_a_run_or_its_checkpoint_is_something_to_start_from(tmp_path: Path) -> None:
    other = Trainer(changed(SMALL, seed=5), "cpu")
    checkpoint = other.save(str(tmp_path / "run"))
    for place in (checkpoint, str(tmp_path / "run")):
        trainer = Trainer(SMALL, "cpu")
        trainer.start_from(place)
        state = trainer.model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in other.model.state_dict().items())


def test_a_file_that_has_changed_since_a_run_wrote_it_is_nothing_to_start_or_sample_from(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, "cpu")
    checkpoint = trainer.save(str(tmp_path / "run"))
    file = Path(checkpoint) / "ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-401] ^= 1  # a bit of a number, which stays finite
    file.write_bytes(content)
    for place in (str(tmp_path / "run"), checkpoint, str(file)):
        for reading in (trainer.start_from, load_sampler):
            with pytest.raises(DamagedWeightsError, match="its checksum differs"):
                reading(place)
    alone = file.rename(tmp_path / "ema.safetensors")  # by itself nothing says what it was
    trainer.start_from(str(alone))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 48}, "image_size 48 does not fit model.input_size 32"),
        ({"model": {"input_size": 16}}, "image_size 32 does not fit model.input_size 16"),
        ({"model": {"latent_channels": 4}}, "model.latent_channels 4 does not fit the autoencoder pixel, which has 3"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes: dict[str, object], message: str) -> None:
    nested = {name: getattr(SMALL, name).model_dump() | value if isinstance(value, dict) else value
              for name, value in changes.items()}  # fmt: skip
    preset = Preset.model_validate(SMALL.model_dump() | nested)
    with pytest.raises(UsageError, match=message):
        require_fit(preset, PixelAutoencoder())
    with pytest.raises(UsageError, match=message):
        Trainer(preset, "cpu")


def test_more_denoising_steps_than_the_schedule_has_are_an_error() -> None:
    assert SamplingOptions(1000).applied_to(SMALL).steps == 1000
    with pytest.raises(UsageError, match="1001 denoising steps"):
        SamplingOptions(1001).applied_to(SMALL)
    short = SMALL.model_copy(update={"diffusion": SMALL.diffusion.model_copy(update={"train_steps": 20})})
    with pytest.raises(UsageError, match="25 denoising steps are more than the noise schedule has, 20"):
        Trainer(short, "cpu")  # before it trains, not when it draws its first samples
    Trainer(short.model_copy(update={"sampling": SamplingConfig(steps=20)}), "cpu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[optimisation]\nsteps = 3 # für".encode("latin-1"), "is not UTF-8"),
        ("[optimisation]".encode("utf-16"), "is not UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00", "is not UTF-8"),
        (b"steps 3", "is not TOML"),
        (b"data = 3", "setting data"),
        (b"[optimisation]\nlearning_rate = nan", "setting optimisation.learning_rate"),
    ],
)
def test_a_wrong_settings_file_is_an_error_of_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.toml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load_preset("tiny", file)
    assert "\n" not in caught.value.message
    with pytest.raises(UsageError, match="cannot read"):
        load_preset("tiny", tmp_path)


def test_weights_that_are_not_finite_are_nothing_to_start_from(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in Trainer(SMALL, "cpu").model.state_dict().items()}
    state["positions"].view(-1)[3] = torch.inf
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(DamagedWeightsError, match="holds numbers that are not finite"):
        Trainer(SMALL, "cpu").start_from(str(tmp_path / "a.safetensors"))


def test_guidance_of_more_channels_than_the_latent_has_is_an_error() -> None:
    with pytest.raises(UsageError, match="guided_channels 4 are more channels than the latent has, 3"):
        Trainer(SMALL.model_copy(update={"sampling": SamplingConfig(steps=1, guided_channels=4)}), "cpu")


def test_a_given_guidance_scale_is_that_of_pose_and_appearance_unless_they_are_given_too() -> None:
    apart = SMALL.model_copy(update={"sampling": SamplingConfig(pose_guidance=3.0, appearance_guidance=4.0)})

    def scales(options: SamplingOptions) -> tuple[float, float | None, float | None]:
        chosen = options.applied_to(apart)
        return chosen.guidance_scale, chosen.pose_guidance, chosen.appearance_guidance

    assert scales(SamplingOptions()) == (2.5, 3.0, 4.0)
    assert scales(SamplingOptions(guidance_scale=2.0)) == (2.0, None, None)
    assert scales(SamplingOptions(guidance_scale=2.0, pose_guidance=5.0)) == (2.0, 5.0, None)
    assert scales(SamplingOptions(pose_guidance=0.0)) == (2.5, 0.0, 4.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sampler": "dpm+"}, "--sampler is 'dpm\\+', and no such sampler is known"),
        ({"guided_channels": 0}, "--guided-channels is 0, and should be a whole number from 1 on"),
        ({"pose_guidance": -1}, "--pose-guidance is -1, and should be a number from 0 on"),
        ({"appearance_guidance": float("inf")}, "--appearance-guidance inf is no finite number"),
    ],
)
def test_sampling_options_that_make_no_sense_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SamplingOptions(**options).applied_to(SMALL)


def test_numbers_of_arrays_are_numbers() -> None:
    options = SamplingOptions(steps=np.int64(3), seed=np.uint32(7), guidance_scale=np.float32(2))  # type: ignore[arg-type]
    assert options == SamplingOptions(3, 2.0, 7)
    assert json.dumps([options.steps, options.seed]) == "[3, 7]"
    with pytest.raises(UsageError, match="seed"):
        SamplingOptions(seed=True)


def test_a_settings_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[optimisation]\nsteps = 3", encoding="utf-8-sig")
    assert load_preset("tiny", tmp_path / "a.toml").optimisation.steps == 3


def test_an_autoencoder_that_is_not_there_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("<html>")
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(WeightsError, match="cannot load the autoencoder") as caught:
            load_autoencoder(AutoencoderConfig(weights=str(place)))
        assert "\n" not in caught.value.message


@pytest.mark.parametrize("number", ["inf", "nan", "-inf"])
@pytest.mark.parametrize("setting", ["monitoring.divergence", "pairs.video", "sampling.guidance_scale"])
def test_no_setting_is_beyond_numbers(tmp_path: Path, setting: str, number: str) -> None:
    section, name = setting.split(".")
    (tmp_path / "a.toml").write_text(f"[{section}]\n{name} = {number}")
    with pytest.raises(UsageError, match=rf"setting {setting}: Input should be"):
        load_preset("tiny", tmp_path / "a.toml")


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "gesture-transfer", "--guidance-scale=nan"),
        ("sample", "fix", "a.png", "--guidance-scale=inf"),
        ("sample", "video", "--fps=nan"),
        ("sample", "unconditional", "--seed=-1"),
        ("evaluate", "--min-motion=nan"),
        ("evaluate", "--seed=-1"),
    ],
)
def test_options_that_are_no_numbers_are_named(
    words: tuple[str, ...], tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    result = run_command(*words, "-w", tmp_path)
    assert result.code == 2, result
    assert words[-1].split("=")[0] in result.err
    assert "Traceback" not in result.err


def test_images_that_are_no_numbers_are_not_shown_as_black() -> None:
    class Wild(torch.nn.Linear):
        def forward(self, x_t: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            return torch.full_like(x_t, torch.nan)

    sampler = Sampler(Wild(1, 1), PixelAutoencoder(), SMALL)
    with pytest.raises(RunError, match="the generated images hold numbers that are not finite"):
        unconditional(sampler, 1, SamplingOptions(steps=2))


@pytest.mark.parametrize("gpus", [(), ("--gpus", "0"), ("--gpus", "1")])
def test_an_address_that_nothing_would_join_is_an_error(
    gpus: tuple[str, ...], tmp_path: Path, run_command: Callable[..., CommandResult]
) -> None:
    result = run_command("train", "--address", "head:6379", *gpus, "-w", tmp_path)
    assert result.code == 2
    assert "--address is for several GPUs" in result.err
