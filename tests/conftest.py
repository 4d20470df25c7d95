"""Fixtures shared by all tests, and which tests run beside one another.

``make test`` runs two workers (pytest-xdist). The tests of a file stay together, since they share fixtures, and so do
all files that use the one Ray head of ``ray_cluster``. Tests with a head wait for it much of their time. They come
first, so that tests that only compute use the other core.
"""

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import ray
from hypothesis import settings
from moto.server import ThreadedMotoServer

from handdata.adapters.synthesis.dataset import write_dataset
from handdata.adapters.synthetic import SyntheticAdapter
from handdata.app import app
from handdata.console import errors_in_one_line
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.run.annotate import annotate
from handdata.pipeline.run.request import AnnotateRequest
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.storage import Dataset, Storage
from tests.fixtures.annotate_workers import AnnotateWorkers
from tests.fixtures.commands import CommandResult
from tests.fixtures.ingest_processes import IngestProcesses

# Busy machines are slow at times; a property is true or not, however long it takes.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_configure() -> None:
    """Let workers share two cores: one thread each, and the code is compiled once for the many processes of tests."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if "PYTEST_XDIST_WORKER" in os.environ:
        for library in ("OMP", "MKL", "OPENBLAS"):
            os.environ.setdefault(f"{library}_NUM_THREADS", "1")  # also for the processes that tests start


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the groups of tests with a Ray head come first, then those with slow tests."""
    turns: dict[str, int] = {}
    for item in items:
        group = group_of(item.nodeid)
        turn = 0 if group == "ray" or "head" in item.fixturenames else 1 if item.get_closest_marker("slow") else 2
        turns[group] = min(turn, turns.get(group, turn))
    items.sort(key=lambda item: turns[group_of(item.nodeid)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole groups of tests to workers, in the order of ``pytest_collection_modifyitems``."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


@cache
def group_of(nodeid: str) -> str:
    """Return the name of the tests that one worker runs: one name for all files that use the shared Ray head."""
    file = nodeid.split("::")[0]
    text = (Path(__file__).parents[1] / file).read_text()
    shares_the_head = any(name in text for name in ("ray_cluster", "annotated_synthetic"))
    return "ray" if shares_the_head else file


@pytest.fixture(scope="session", autouse=True)
def ingest_processes() -> Iterator[None]:
    """Let all calls of ``ingest`` and ``export dataset`` in this process share worker processes."""
    processes = IngestProcesses()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("handdata.pipeline.records.ingest.process_pool", processes.pool)
        patch.setattr("handdata.jobs.exports.export.process_pool", processes.pool)
        yield
    processes.close()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real images, small weights and reference tensors beside the checkout."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the shared folder of real images and reference tensors at {folder}")
    return folder


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic dataset: 4 identities, 6 sequences of 4 frames from 2 cameras, 128 px; 48 frames in all."""

    def write(root: Path) -> None:
        write_dataset(root, identities=4, sequences=6, frames=4, cameras=2, size=128, seed=7, processes=2)

    return made_once(tmp_path_factory, "synthetic", write)


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first worker to ask for it makes for all workers; tests leave it as it is."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / f"made-once-{name}"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(base / name)
            (base / name).rename(folder)
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray cluster of two CPUs for all tests that annotate in this process or train in several."""
    ray.init(
        "local",
        num_cpus=2,
        resources={"stand_in_gpu": 1},
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("handdata.pipeline.run.annotate.start_worker", AnnotateWorkers().start)
        yield
    ray.shutdown()


@pytest.fixture(scope="session")
def annotated_synthetic(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A workspace with the small synthetic dataset annotated; tests that change it work on a copy."""
    workspace = tmp_path_factory.mktemp("annotated") / "workspace"
    ingest(SyntheticAdapter, synthetic_root, Storage(workspace))
    annotate(AnnotateRequest(Dataset(Storage(workspace))), AnnotateSettings(masks="dataset", image_size=64))
    return workspace


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """Run ``handdata`` in this process and return what a shell would see."""

    def run(*arguments: object) -> CommandResult:
        capsys.readouterr()
        try:
            with errors_in_one_line():
                app([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        else:
            code = 0
        captured = capsys.readouterr()
        return CommandResult(int(code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """The URL of a new bucket on a server of this process; the environment points s3fs at it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        name = f"bucket-{uuid.uuid4().hex[:8]}"
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
        yield f"s3://{name}"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(tmp_path / "workspace")
    return Storage(f"{request.getfixturevalue('s3_bucket')}/{uuid.uuid4().hex[:8]}")
