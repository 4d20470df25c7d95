"""A run goes on with its own settings: each of them may change or is refused by name, and a fork records both."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from handdata.pipeline.storage import Storage
from handdata.schemas import RunError, UsageError
from handdata.trainer.data.loading import pair_batches
from handdata.trainer.data.pairs import open_pairs
from handdata.trainer.loop import train
from handdata.trainer.presets import AlignmentConfig, Config, MonitoringConfig, Preset, SamplingConfig, SourceConfig
from handdata.trainer.resuming import MAY_CHANGE, changes, fork, require_same_history, run_settings
from handdata.trainer.trainer import Trainer
from tests.fixtures.commands import CommandResult
from tests.fixtures.samples import sample, write_dataset
from tests.fixtures.training import SMALL, changed, weights, write_two_sequences

MAY, REFUSED = True, False

FIELDS: dict[str, tuple[bool, Any]] = {
    "image_size": (REFUSED, 48),
    "autoencoder.kind": (REFUSED, "taef2"),
    "autoencoder.weights": (REFUSED, "/models/other"),
    "model.input_size": (REFUSED, 48),
    "model.patch_size": (REFUSED, 4),
    "model.latent_channels": (REFUSED, 4),
    "model.hidden_size": (REFUSED, 64),
    "model.depth": (REFUSED, 3),
    "model.num_heads": (REFUSED, 4),
    "model.learn_sigma": (REFUSED, False),
    "model.qk_norm": (REFUSED, True),
    "model.geometry.limbs": (REFUSED, True),
    "model.geometry.reference_at_target": (REFUSED, True),
    "model.geometry.residual": (REFUSED, "carried"),
    "model.geometry.head": (REFUSED, "conv"),
    "diffusion.train_steps": (REFUSED, 500),
    "diffusion.beta_start": (REFUSED, 2e-4),
    "diffusion.beta_end": (REFUSED, 0.03),
    "diffusion.prediction": (REFUSED, "velocity"),
    "diffusion.min_snr_gamma": (REFUSED, 5.0),
    "diffusion.timesteps": (REFUSED, "logit-normal"),
    "diffusion.few_steps": (REFUSED, 4),
    "diffusion.loss": (REFUSED, "l1+gradient"),
    "alignment.encoder": (REFUSED, "vit_tiny_patch16_224"),
    "alignment.weights": (REFUSED, "other.pth"),
    "alignment.block": (REFUSED, 2),
    "alignment.weight": (REFUSED, 0.25),
    "alignment.hidden_size": (REFUSED, 64),
    "dropout.reference": (REFUSED, 0.2),
    "dropout.target_keypoints": (REFUSED, 0.2),
    "dropout.reference_mask": (REFUSED, 0.2),
    "dropout.both": (REFUSED, 0.2),
    "data.dataset": (REFUSED, "other"),
    "data.where": (REFUSED, "sharpness > 5"),
    "data.licences": (REFUSED, ["MIT", "Apache-2.0"]),
    "data.unlabelled_hands": (REFUSED, True),
    "data.no_content": (REFUSED, True),
    "data.side_unknown": (REFUSED, True),
    "data.latents": (REFUSED, True),
    "pairs.video": (REFUSED, 0.1),
    "pairs.view": (REFUSED, 0.5),
    "pairs.still": (REFUSED, 0.5),
    "pairs.max_gap_s": (REFUSED, 2.0),
    "pairs.max_gap_frames": (REFUSED, 10),
    "pairs.gap": (REFUSED, "log-uniform"),
    "pairs.mean_gap": (REFUSED, 0.3),
    "pairs.temperature": (REFUSED, 2.0),
    "pairs.sources.synthetic.weight": (REFUSED, 0.5),
    "pairs.sources.synthetic.video": (REFUSED, 0.5),
    "pairs.sources.synthetic.view": (REFUSED, 0.5),
    "pairs.sources.synthetic.still": (REFUSED, 0.5),
    "augmentation.max_gamma": (REFUSED, 2.0),
    "augmentation.flip": (REFUSED, 0.1),
    "augmentation.hand_swap": (REFUSED, 0.3),
    "augmentation.smallest_crop": (REFUSED, 0.5),
    "optimisation.optimiser": (REFUSED, "muon"),
    "optimisation.steps": (MAY, 7),
    "optimisation.batch_size": (REFUSED, 8),
    "optimisation.micro_batch_size": (MAY, 2),
    "optimisation.learning_rate": (MAY, 1e-5),
    "optimisation.warmup_steps": (REFUSED, 3),
    "optimisation.decay": (REFUSED, "none"),
    "optimisation.weight_decay": (REFUSED, 0.5),
    "optimisation.ema_decay": (REFUSED, 0.5),
    "optimisation.precision": (REFUSED, "bfloat16"),
    "optimisation.activation_checkpointing": (MAY, True),
    "optimisation.compile": (MAY, True),
    "optimisation.max_gradient_norm": (REFUSED, 2.0),
    "optimisation.adam_beta2": (REFUSED, 0.9),
    "optimisation.seed": (REFUSED, 1),
    "monitoring.checkpoint_every": (MAY, 5),
    "monitoring.keep_last": (MAY, 1),
    "monitoring.validate_every": (MAY, 5),
    "monitoring.pictures_every": (MAY, 5),
    "monitoring.pictures": (MAY, 2),
    "monitoring.divergence": (MAY, 9.0),
    "model.conditions.keypoints": (REFUSED, "sum"),
    "model.conditions.reference_mask": (REFUSED, False),
    "sampling.scheduler": (MAY, "ddpm"),
    "sampling.steps": (MAY, 3),
    "sampling.guidance_scale": (MAY, 2.0),
    "sampling.pose_guidance": (MAY, 2.0),
    "sampling.appearance_guidance": (MAY, 2.0),
    "sampling.guided_channels": (MAY, 2),
    "sampling.clip_x0": (MAY, 2.0),
    "init": (REFUSED, "other.pt"),
    "forked_from": (REFUSED, [{"run": "a", "step": 1, "settings": {}}]),
}
"""Every setting: whether it may change on resume, and another value than the run's."""

SECTIONS = {"pairs.sources": ("pairs.sources.synthetic", SourceConfig), "alignment": ("alignment", AlignmentConfig)}
"""Settings that are themselves models behind another type."""

RUN = Preset.model_validate(
    SMALL.model_dump()
    | {"alignment": {"block": 1}, "pairs": SMALL.pairs.model_dump() | {"sources": {"synthetic": {}}}}
    | {"data": {"licences": ["MIT"]}}
)


def fields_of(model: type[BaseModel], section: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        path, nested = SECTIONS.get(f"{section}{name}", (f"{section}{name}", field.annotation))
        if isinstance(nested, type) and issubclass(nested, Config):
            yield from fields_of(nested, f"{path}.")
        else:
            yield path


def other_settings(of_run: Preset, path: str) -> Preset:
    """The run's settings with another value in one place."""
    document = of_run.model_dump()
    place = document
    *sections, name = path.split(".")
    for section in sections:
        place = place[section]
    place[name] = FIELDS[path][1]
    return Preset.model_validate(document)


def test_the_table_has_every_setting_once() -> None:
    assert sorted(fields_of(Preset)) == sorted(FIELDS)


@pytest.mark.parametrize("path", FIELDS)
def test_each_setting_may_change_or_is_refused_by_name(path: str) -> None:
    of_run = RUN.model_copy(update={"alignment": None}) if path == "data.latents" else RUN  # it needs images
    wanted = other_settings(of_run, path)
    assert changes(of_run, wanted) == [path]
    if FIELDS[path][0] == MAY:
        require_same_history("first", of_run, wanted)
        return
    with pytest.raises(UsageError, match=f"cannot go on with other settings: {path} is ") as caught:
        require_same_history("first", of_run, wanted)
    assert "--fork" in caught.value.hint
    assert all(name in caught.value.hint for name in MAY_CHANGE)


@pytest.mark.parametrize("licences", [["MIT", "GPL"], [], ["GPL"]])
def test_licences_are_compared_as_a_set(licences: list[str]) -> None:
    of_run = SMALL.choosing_rows(licences=["MIT", "BSD"])
    require_same_history("first", of_run, SMALL.choosing_rows(licences=["BSD", "MIT"]))
    wanted = of_run.model_copy(update={"data": of_run.data.model_copy(update={"licences": tuple(licences)})})
    with pytest.raises(UsageError, match=r"data\.licences is \[.MIT., .BSD.\] there"):
        require_same_history("first", of_run, wanted)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a run that has a checkpoint, as if its first two steps were taken."""
    folder = tmp_path_factory.mktemp("trained") / "workspace"
    storage = Storage(folder)
    write_two_sequences(storage)
    trainer = Trainer(OF_RUN, "cpu")
    trainer.step = 2
    trainer.training_step(pair_batches(open_pairs(storage, OF_RUN, "train"), [range(4)]))
    trainer.save(storage.url("runs/first"))
    return folder


@pytest.fixture
def storage(trained: Path, tmp_path: Path) -> Storage:
    """A copy of it."""
    return Storage(shutil.copytree(trained, tmp_path / "workspace"))


OF_RUN = (
    changed(SMALL, steps=9, learning_rate=1e-4)
    .choosing_rows("sharpness > 1", ["Apache-2.0"])
    .model_copy(update={"sampling": SamplingConfig(steps=1), "monitoring": MonitoringConfig(pictures=1)})
)


@pytest.fixture
def resume(storage: Storage, tmp_path: Path, run_command: Callable[..., CommandResult]) -> Callable[..., CommandResult]:
    """Run ``train`` with one line of settings in a file, and other words, and return its result."""

    def run(*words: object, config: str = "") -> CommandResult:
        (tmp_path / "config.toml").write_text(config)
        settings = ("--config", tmp_path / "config.toml") if config else ()
        return run_command("train", "-w", storage.url(), "--run", "first", "--gpus", "0", *words, *settings)

    return run


@pytest.mark.parametrize(
    ("words", "config", "named"),
    [
        (("--preset", "pixel-64"), "", "image_size"),
        (("--preset", "tiny"), "", "model.patch_size"),
        (("--where", "sharpness > 0"), "", "data.where"),
        (("--licence", "Apache-2.0,MIT"), "", "data.licences"),
        (("--dataset", "other"), "", "data.dataset"),
        (("--init", "other.pt"), "", "init"),
        ((), "[optimisation]\nbatch_size = 8", "optimisation.batch_size"),
        ((), "[optimisation]\nlearning_rate = 1e-3\nseed = 8", "optimisation.seed"),
        ((), "[data]\nlicences = []", "data.licences"),
        ((), "[alignment]\nblock = 1", "alignment"),
        ((), "[pairs.sources.synthetic]\nweight = 2", "pairs.sources.synthetic"),
    ],
)
def test_what_is_typed_beside_resume_is_compared(
    resume: Callable[..., CommandResult], words: tuple[str, ...], config: str, named: str
) -> None:
    result = resume("--resume", *words, config=config)
    assert (result.code, result.err.count("error:")) == (2, 1), result
    assert f"the run first cannot go on with other settings: {named} is " in result.err


def test_a_run_goes_on_with_its_own_settings_but_for_what_may_change(
    storage: Storage, resume: Callable[..., CommandResult]
) -> None:
    again = ("--where", "sharpness > 1", "--licence", "Apache-2.0", "--steps", "4")
    assert resume("--resume", *again, config="[optimisation]\nlearning_rate = 1e-3\n[model]\ndepth = 2").code == 0
    assert run_settings(storage, "first") == OF_RUN.model_copy(
        update={"optimisation": OF_RUN.optimisation.model_copy(update={"steps": 4, "learning_rate": 1e-3})}
    )
    result = resume("--resume")
    assert result.code == 0, result.err
    assert "nothing is left to do: the run first has taken 4 steps, and 4 are wanted" in result.err


def test_a_run_without_checkpoints_begins_with_its_own_settings(
    storage: Storage, run_command: Callable[..., CommandResult]
) -> None:
    wanted = changed(OF_RUN, steps=1)
    storage.write_bytes("runs/begun/settings.json", wanted.model_dump_json().encode())
    here = ("train", "-w", storage.url(), "--run", "begun", "--resume", "--gpus", "0")
    assert "data.where" in run_command(*here, "--where", "sharpness > 3").err
    result = run_command(*here)
    assert result.code == 0, result.err
    assert "the run begun has no checkpoint to go on from: it begins at step 0" in result.err
    assert run_settings(storage, "begun") == wanted


def test_a_fork_is_a_run_that_records_both(storage: Storage, resume: Callable[..., CommandResult]) -> None:
    before = weights(storage.describe("runs/first/checkpoints/step-00000003"))
    wider = ("--licence", "Apache-2.0,MIT", "--steps", "4")
    assert resume("--resume", *wider).code == 2
    result = resume("--resume", "--fork", *wider)
    assert result.code == 0, result.err
    name = "first-fork-00000003"
    assert name in result.err
    found = run_settings(storage, name)
    assert found is not None
    assert found.data.licences == ("Apache-2.0", "MIT")
    (origin,) = found.forked_from
    assert (origin.run, origin.step) == ("first", 3)
    assert Preset.model_validate(origin.settings) == OF_RUN
    start = weights(storage.describe(f"runs/{name}/checkpoints/step-00000003"))
    assert all(torch.equal(start[key], before[key]) for key in before)
    assert run_settings(storage, "first") == OF_RUN
    assert storage.list_folders("runs/first/checkpoints") == ["step-00000003"]
    # The same command goes on with the fork, another one begins another.
    assert resume("--fork", *wider).code == 0
    assert sorted(storage.list_folders("runs")) == ["first", name]
    with_seed, _ = fork(storage, "first", changed(OF_RUN, seed=5))
    assert with_seed == f"{name}-2"
    twice, settings = fork(storage, name, changed(found, seed=5))
    assert [of.run for of in settings.forked_from] == ["first", name]
    assert twice == f"{name}-fork-00000004"


def test_what_was_typed_last_counts_also_where_it_came_to_no_checkpoint(storage: Storage) -> None:
    slower = changed(OF_RUN, learning_rate=1e-6, steps=20)
    storage.write_bytes("runs/first/settings.json", slower.model_dump_json().encode())
    assert run_settings(storage, "first") == slower
    for no_settings in (changed(slower, seed=4).model_dump_json().encode(), b"{", b"\xff", b""):
        storage.write_bytes("runs/first/settings.json", no_settings)
        assert run_settings(storage, "first") == OF_RUN


def write_with_licences(storage: Storage, *licences: str) -> None:
    """Write a dataset with a source for each of some licences."""
    samples = [
        sample(f"wave{number}", frame, timestamp_s=frame / 10, license=license, source=f"source{number}")
        for number, license in enumerate(licences)
        for frame in range(6)
    ]
    write_dataset(storage, samples)


def test_a_run_meets_no_licences_that_came_to_the_dataset_later(tmp_path: Path) -> None:
    storage, later = Storage(tmp_path / "first"), Storage(tmp_path / "later")
    write_with_licences(storage, "MIT")
    train(SMALL, storage, "run", steps=1, device="cpu")
    write_with_licences(later, "MIT", "CC-BY-NC-4.0")
    shutil.copytree(tmp_path / "first" / "runs", tmp_path / "later" / "runs")
    with pytest.raises(
        UsageError, match=r"on rows under MIT; the dataset now has others, under CC-BY-NC-4\.0"
    ) as caught:
        train(SMALL, later, "run", steps=2, resume=True, device="cpu")
    assert "--fork" in caught.value.hint
    notes: list[str] = []
    for licences, steps in (((), 2), (("MIT", "BSD"), 3)):
        name, settings = fork(later, "run", changed(SMALL.choosing_rows(licences=licences), steps=steps))
        found = train(settings, later, name, resume=True, device="cpu", on_note=notes.append)
        assert found.steps == steps
    assert "no usable row is under BSD" in notes


def test_a_dataset_that_has_changed_is_said_to_have(tmp_path: Path) -> None:
    storage, later = Storage(tmp_path / "first"), Storage(tmp_path / "later")
    write_with_licences(storage, "MIT")
    train(SMALL, storage, "run", steps=1, device="cpu")
    write_with_licences(later, "MIT", "MIT")
    shutil.copytree(tmp_path / "first" / "runs", tmp_path / "later" / "runs")
    for folder, said in ((storage, False), (later, True)):
        notes: list[str] = []
        train(SMALL, folder, "run", steps=2, resume=True, device="cpu", on_note=notes.append)
        changed_note = "since step 1: targets were 6 of source0, and are 6 of source0, 6 of source1"
        assert any(changed_note in note for note in notes) == said


def test_a_fork_begins_at_the_last_sound_checkpoint(storage: Storage, tmp_path: Path) -> None:
    checkpoints = tmp_path / "workspace" / "runs" / "first" / "checkpoints"
    shutil.copytree(checkpoints / "step-00000003", checkpoints / "step-00000005")
    for name, place in (("model.safetensors", -40), ("state.pt", -200), ("ema.safetensors", 9)):
        whole = (checkpoints / "step-00000005" / name).read_bytes()
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (checkpoints / "step-00000005" / name).write_bytes(damaged)
        notes: list[str] = []
        forked, _ = fork(storage, "first", changed(OF_RUN, seed=5), notes.append)
        assert forked == "first-fork-00000003"
        assert [note for note in notes if "passed over the checkpoint" in note and "step-00000005" in note]
        (checkpoints / "step-00000005" / name).write_bytes(whole)


@pytest.mark.parametrize(
    "words",
    [
        *(("--licence", text) for text in ("", " ", ",", "MIT,", ",MIT", "MIT,,BSD")),
        *(("--where", text) for text in ("", " ", "\n")),
        *(("--run", text) for text in ("", ".", "..", "../x", "a/b", "/tmp/a", ".hidden", "-a", "a b", "a\n")),
    ],
)
@pytest.mark.parametrize("resumed", [(), ("--resume",)])
def test_what_names_nothing_is_no_choice(
    storage: Storage, run_command: Callable[..., CommandResult], words: tuple[str, str], resumed: tuple[str, ...]
) -> None:
    named = f"{words[0]}={words[1]}"
    run = () if words[0] == "--run" else ("--run", "first")
    result = run_command("train", "-w", storage.url(), "--gpus", "0", *run, named, *resumed)
    assert (result.code, result.err.count("error:")) == (2, 1), result
    assert words[0] in result.err
    assert storage.list_folders("runs") == ["first"]


@pytest.mark.parametrize(
    ("words", "config", "named"),
    [
        (("--init", "other.pt"), "", "init"),
        ((), "[model]\ndepth = 3", "model.depth"),
        ((), "[alignment]\nblock = 1", "alignment"),
    ],
)
def test_a_fork_keeps_what_its_weights_were_made_for(
    resume: Callable[..., CommandResult], words: tuple[str, ...], config: str, named: str
) -> None:
    result = resume("--fork", *words, config=config)
    assert (result.code, result.err.count("error:")) == (2, 1), result
    assert f"no fork of the run first can have other settings: {named} is " in result.err


def test_there_is_nothing_to_fork_without_a_run(storage: Storage, run_command: Callable[..., CommandResult]) -> None:
    result = run_command("train", "-w", storage.url(), "--run", "nobody", "--fork")
    assert (result.code, result.err.count("error:")) == (2, 1), result
    assert "no checkpoint to fork" in result.err


def test_wrong_values_and_damaged_heads_are_one_line(storage: Storage, resume: Callable[..., CommandResult]) -> None:
    assert "optimisation.seed" in resume("--resume", config="[optimisation]\nseed = 'a'").err
    head = storage.read_bytes("runs/first/checkpoints/step-00000003/ema.safetensors")
    for damaged in (
        b"\xff" * 8 + head[8:],
        head[:20] + b"?" * (len(head) - 20),
        head.replace(b"tiny", b"tini")[:8] * 9,
    ):
        storage.write_bytes("runs/first/checkpoints/step-00000003/ema.safetensors", damaged.ljust(len(head), b"?"))
        with pytest.raises(RunError):
            run_settings(storage, "first")
