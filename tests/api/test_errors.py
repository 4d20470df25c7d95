"""Errors of the Python API name arguments and the runs that there are, as a script needs it."""

import doctest
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import handdata
from handdata.api import errors
from handdata.api.errors import in_python
from handdata.schemas import HandDataError, StorageError, UsageError
from handdata.trainer.presets import SamplingOptions
from handdata.trainer.trainer import Trainer
from handdata.trainer.weights import export_foundhand
from tests.fixtures.training import SMALL


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--overwrite annotates x; --dataset NAME keeps both", "overwrite=True annotates x; dataset NAME keeps both"),
        ("pass it as --root, or set HANDDATA_SOURCES_ROOT", "pass it as root, or set HANDDATA_SOURCES_ROOT"),
        ("run `handdata ingest --source rhd --mano /m`", "run `handdata.ingest(source='rhd', mano_dir='/m')`"),
        ("run `handdata weights fetch foundhand`", "run `handdata weights fetch foundhand`"),
        ("a well-known one -- no flag", "a well-known one -- no flag"),
        ("an `odd quote's` end ` alone", "an `odd quote's` end ` alone"),
        ("name another --run or --checkpoint, such", "name another model, such"),
        ("", ""),
    ],
)
def test_flags_become_arguments(text: str, expected: str) -> None:
    assert in_python(text) == expected


def test_the_example_of_the_module_runs() -> None:
    assert doctest.testmod(errors).failed == 0


def test_an_error_stays_what_it_is() -> None:
    @errors.names_arguments
    def fails() -> None:
        raise StorageError("no --workspace", "try --force", transient=True)

    with pytest.raises(StorageError) as caught:
        fails()
    assert (caught.value.message, caught.value.hint, caught.value.transient) == ("no workspace", "try force=True", True)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.transient) == ("no workspace (try force=True)", True)


def test_a_model_that_is_not_there_is_answered_with_the_runs_that_are(tmp_path: Path) -> None:
    for run in ("mine", "default"):
        (tmp_path / "runs" / run).mkdir(parents=True)
    with pytest.raises(UsageError, match=r"has no run nosuch.*there are default, mine, builtin"):
        handdata.load_model("nosuch", workspace=tmp_path)
    with pytest.raises(UsageError, match=r"did you mean mine\?"):
        handdata.load_model("mnie", workspace=tmp_path)
    with pytest.raises(UsageError, match=r"has no run .*weights.pt"):
        handdata.load_model(tmp_path / "weights.pt", workspace=tmp_path)


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainer(SMALL, "cpu").save(str(tmp_path / "run"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert handdata.load_model("~/run", workspace=tmp_path / "w").image_size == 32


def test_no_error_names_a_flag(tmp_path: Path) -> None:
    state = export_foundhand(Trainer(SMALL, "cpu").model.state_dict())
    torch.save({"ema_state_dict": state}, tmp_path / "foundhand.pt")
    checkpoint = Trainer(SMALL, "cpu").save(str(tmp_path / "runs" / "default"))
    np.save(tmp_path / "pose.npy", np.full((42, 2), 500.0))
    model = handdata.load_model(checkpoint)
    calls: list[Callable[[], object]] = [
        lambda: handdata.load_model(tmp_path / "foundhand.pt"),
        lambda: handdata.load_model(tmp_path / "foundhand.pt", preset="tiny"),
        lambda: handdata.load_model(checkpoint, preset="foundhand-xl"),
        lambda: handdata.load_model("default", "cuda:7", workspace=tmp_path),
        lambda: handdata.load_model("foundhand", workspace=tmp_path),
        lambda: model.unconditional(1, steps=10_000),
        lambda: model.gesture_transfer(tmp_path / "no.png", tmp_path / "pose.npy"),
        lambda: handdata.ingest("rhd", tmp_path, tmp_path / "w"),
        lambda: handdata.ingest("rhd", tmp_path / "none", tmp_path / "w"),
        lambda: handdata.ingest("folder", tmp_path, tmp_path / "w", stride=2, fps=3),
        lambda: handdata.ingest("folder", tmp_path, tmp_path / "w", val_share=2),
        lambda: handdata.open_dataset(tmp_path, dataset="runs"),
        lambda: handdata.open_dataset(tmp_path / "w"),
    ]
    for call in calls:
        with pytest.raises(HandDataError) as caught:
            call()
        assert "--" not in str(caught.value), str(caught.value)


@pytest.mark.parametrize("guidance", [-1.0, "2", True])
def test_guidance_that_commands_would_not_take_is_named(guidance: object) -> None:
    with pytest.raises(UsageError, match=r"--guidance-scale is .* a number from 0 on"):
        SamplingOptions(guidance_scale=guidance)  # type: ignore[arg-type]
    assert SamplingOptions(guidance_scale=np.float32(1.5), steps=None).guidance_scale == 1.5


def test_the_poses_of_a_video_may_be_one_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = handdata.load_model(Trainer(SMALL, "cpu").save(str(tmp_path / "run")))
    pose = model._pose(np.full((42, 2), 9.0))
    monkeypatch.setattr(type(model), "_frame", lambda self, reference: pose)  # no photograph is looked at
    poses = np.full((2, 42, 2), 9.0)
    assert len(model.video("photo.jpg", poses, steps=1)) == 2  # type: ignore[arg-type]
    for nothing in (poses[:0], [], ""):
        with pytest.raises(UsageError, match="a target for each of its frames"):
            model.video("photo.jpg", nothing, steps=1)  # type: ignore[arg-type]
    for missing in ("poses.npy", tmp_path / "poses.npy"):
        with pytest.raises(UsageError, match=r"cannot read keypoints from .*poses.npy"):
            model.video("photo.jpg", missing, steps=1)


def test_the_options_of_sampling_that_commands_have_are_taken_in_python(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, "cpu")
    for parameter in trainer.averaged_model.parameters():  # some start at zero, and let no condition through
        torch.nn.init.normal_(parameter, std=0.1)
    model = handdata.load_model(trainer.save(str(tmp_path / "run")), "cpu")
    pose = np.random.default_rng(0).uniform(4, 28, (42, 2))
    drawn = [
        np.asarray(model.keypoints_only(pose, steps=2, guidance=2.0, **further))
        for further in ({}, {"sampler": "unipc"}, {"pose_guidance": 4.0}, {"guided_channels": 1})
    ]
    assert len({image.tobytes() for image in drawn}) == 4
    with pytest.raises(UsageError, match=r"^sampler is 'dpm', and no such sampler is known"):
        model.unconditional(sampler="dpm")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^pose_guidance is -1"):
        model.keypoints_only(pose, pose_guidance=-1)
