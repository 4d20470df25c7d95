"""What is sent to the Hugging Face Hub. The Hub is a stand-in (``tests/fixtures/hub.py``), its client the real one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from handdata.pipeline.storage import Storage
from handdata.schemas.licences import as_license_id
from tests.fixtures.commands import CommandResult
from tests.fixtures.hub import Hub
from tests.fixtures.samples import sample, write_dataset

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # huggingface_hub's own

Push = Callable[..., CommandResult]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    yield hub
    hub.stop()


@pytest.fixture
def push(tmp_path: Path, run_command: Callable[..., CommandResult]) -> Push:
    def run(*options: str, to: str = "me/hands", out: str = "out") -> CommandResult:
        where = ("-w", tmp_path / "w", "--format", "huggingface", "--out", tmp_path / out)
        return run_command("export", "dataset", *where, "--push-to", to, *options)

    return run


def write(workspace: Path, *frames: int, licence: str = "Apache-2.0") -> None:
    samples = [sample("s", frame, license=licence, license_id=as_license_id(licence)) for frame in frames]
    write_dataset(Storage(workspace), samples)


def test_the_folder_goes_to_a_private_dataset_without_what_the_export_keeps(
    hub: Hub, push: Push, tmp_path: Path
) -> None:
    write(tmp_path / "w", 0, 1)
    result = push()
    assert result.code == 0, result.err
    assert f"Pushed: {hub.url}/datasets/me/hands" in result.out
    local = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file() and ".handdata" not in path.parts
    }
    assert hub.files == local and len(local) == 3
    assert (hub.created[0]["visibility"], hub.created[0]["type"]) == ("private", "dataset")


def test_a_second_push_sends_nothing_again_and_removes_what_has_gone(hub: Hub, push: Push, tmp_path: Path) -> None:
    write(tmp_path / "w", 0, 1)
    push()
    hub.files["data/train/gone.parquet"] = hub.files["about.txt"] = b"of others"
    sent = list(hub.sent)
    assert push().code == 0
    assert hub.sent == sent
    assert "data/train/gone.parquet" not in hub.files and "about.txt" in hub.files


def test_a_public_dataset_gets_no_source_that_may_not_be_passed_on(hub: Hub, push: Push, tmp_path: Path) -> None:
    hub.is_private = False
    write(tmp_path / "w", 0)
    assert push().code == 0
    Storage(tmp_path / "w").remove("")
    write(tmp_path / "w", 0, licence="my own terms")
    before = dict(hub.files)
    result = push(out="other")
    assert result.code == 2
    assert "me/hands is public" in result.err and "synthetic (unconfirmed)" in result.err
    assert hub.files == before


@pytest.mark.parametrize("refused", ["/", "/lfs/", "/commit/"])
def test_a_hub_that_does_not_let_us_in_is_one_line_and_the_export_stays(
    refused: str, hub: Hub, push: Push, tmp_path: Path
) -> None:
    hub.refused = refused
    write(tmp_path / "w", 0)
    result = push()
    assert result.code == 1
    assert "cannot upload to me/hands" in result.err and "hf auth login" in result.err
    assert "Traceback" not in result.err
    assert (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize("name", ["hands", "a/b/c", "me/ha nds"])
def test_a_name_that_no_dataset_can_have_is_told_before_the_export(
    name: str, hub: Hub, push: Push, tmp_path: Path
) -> None:
    write(tmp_path / "w", 0)
    result = push(to=name)
    assert result.code == 2 and "USER/NAME" in result.err
    assert not (tmp_path / "out").exists()
