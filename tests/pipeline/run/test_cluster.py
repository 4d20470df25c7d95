"""A process is the driver of a cluster that it reaches or starts, in any folder and with any token at home."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

import handdata
from handdata.pipeline.run import cluster
from tests.fixtures.commands import clean_environment

STARTS_A_CLUSTER = """
import json
import ray
import handdata.schemas
from handdata.pipeline.run.cluster import offer_token, start_local

offer_token()
start_local(1)

@ray.remote
def count():
    from handdata.schemas import KEYPOINT_COUNT
    import handdata.pipeline.run.annotate
    return KEYPOINT_COUNT

print(json.dumps({"cpus": ray.cluster_resources()["CPU"], "keypoints": ray.get(count.remote())}))
"""


LEAVES_A_CLUSTER = """
import os, signal
from handdata.pipeline.run.cluster import connected

place = "within"
signal.signal(signal.SIGTERM, lambda *_: print(place))
with connected(cpus=1):
    os.kill(os.getpid(), signal.SIGTERM)
place = "after"
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process says of the cluster that it has started; this takes seconds, and serves all tests of this file."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("a-token-of-this-test-0123456789abcdef")
    for name in ("schemas", "pipeline", "adapters", "trainer", "jobs"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    done = subprocess.run(
        [sys.executable, "-c", STARTS_A_CLUSTER],
        env=clean_environment(HOME=str(folder), PYTHONPATH=str(Path(handdata.__file__).parent.parent)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_process_that_has_imported_ray_still_starts_clusters_of_its_own(started: dict[str, Any]) -> None:
    assert started["cpus"] == 1


def test_a_process_keeps_its_handler_of_sigterm_when_it_leaves_a_cluster() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVES_A_CLUSTER], env=clean_environment(), capture_output=True)
    assert done.stdout.split() == [b"within", b"after"], done.stderr


def test_a_folder_with_its_own_schemas_package_does_not_disturb(started: dict[str, Any]) -> None:
    assert started["keypoints"] == 42


@pytest.mark.skipif(sys.platform != "linux", reason="orphans go to init elsewhere")
@pytest.mark.parametrize("start_fails", [True, False])
def test_no_process_outlives_the_cluster_though_its_parent_has_ended(
    monkeypatch: pytest.MonkeyPatch, start_fails: bool
) -> None:
    orphans: list[psutil.Process] = []
    others: list[psutil.Process] = []

    def start(_: int | None) -> None:
        """Start what a raylet that is killed leaves: an agent of which it was the parent; and a user's own process."""
        for started, program in ((orphans, Path(ray.__file__).with_name("agent.py")), (others, "mine.py")):
            sleeps = f"setsid {sys.executable} -c 'import time; time.sleep(600)' {program} >&- & echo $!"
            started.append(psutil.Process(int(subprocess.check_output(["sh", "-c", sleeps]))))
        if start_fails:
            raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "start_local", start)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    try:
        with cluster.connected():
            assert all(orphan.is_running() for orphan in orphans)
    except KeyboardInterrupt:
        assert start_fails
    assert len(orphans) == len(others) == 1
    assert not orphans[0].is_running()
    assert others[0].is_running()
    others[0].kill()
