"""An address at which no head answers ends a command in one line, soon, whatever is there instead."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

from handdata.jobs.submit import Cluster
from handdata.pipeline.run import address, cluster
from handdata.pipeline.run.address import find_head
from handdata.schemas import HandDataError, RunError, UsageError
from tests.fixtures.commands import clean_environment


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a listener that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def website() -> Iterator[str]:
    """The address of an HTTP server that has a page for everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_ANSWER_S", 0.5)
    monkeypatch.setattr("handdata.jobs.submit.PROBE_S", 0.5)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("127.0.0.1:9", RunError, "no Ray cluster answers at 127.0.0.1:9: .*refused"),
        ("ray://127.0.0.1:9", RunError, "no Ray cluster answers at ray://127.0.0.1:9: .*refused"),
        ("no-such-host.invalid:6379", RunError, "no Ray cluster answers at no-such-host.invalid:6379"),
        ("127.0.0.1:99999", UsageError, "is not the address of a Ray cluster"),
        ("127.0.0.1", UsageError, "is not the address of a Ray cluster"),
        ("user:password@127.0.0.1:6379", UsageError, "is not the address of a Ray cluster"),
        ("[::1:6379", UsageError, "is not the address of a Ray cluster"),
        ("nonsense", UsageError, "is not the address of a Ray cluster"),
        ("", UsageError, "is not the address of a Ray cluster"),
        ("http://127.0.0.1:8265", UsageError, "is the address of a dashboard"),
    ],
)
def test_an_address_where_nothing_is_or_that_is_none_is_an_error(
    given: str, error: type[HandDataError], message: str
) -> None:
    with pytest.raises(error, match=message):
        find_head(given)


def test_who_accepts_and_is_silent_and_who_is_another_server_is_no_head(silent: str, website: str) -> None:
    for there in (silent, website):
        said: list[str] = []
        with pytest.raises(RunError, match=f"no Ray cluster answers at {there}: something accepts connections there"):
            find_head(there, said.append)
        assert said == [there]


def test_the_heads_own_port_is_not_that_of_the_server_of_clients(ray_cluster: None) -> None:
    head = ray.get_runtime_context().gcs_address
    assert find_head(head) == head
    with pytest.raises(UsageError, match="the head's own port, which is given without ray://"):
        find_head(f"ray://{head}")


def test_a_driver_needs_a_node_of_the_cluster_on_its_machine(ray_cluster: None, monkeypatch) -> None:
    head = ray.get_runtime_context().gcs_address
    cluster._require_node_here(head)
    monkeypatch.setattr(cluster, "_NODE_S", 1)
    monkeypatch.setattr("ray._private.services.find_node_ids", list)  # processes of raylets on this machine
    with pytest.raises(RunError, match=f"no node of the Ray cluster at {head} answers on this machine"):
        cluster._require_node_here(head)


def test_auto_means_the_cluster_of_the_variable_and_says_which_it_is(silent: str, monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", silent)
    said: list[str] = []
    with pytest.raises(RunError, match="no Ray cluster answers at"):
        find_head("auto", said.append)
    assert said == [f"{silent}, which the address auto means here"]


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "PROBE_S", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))
    with pytest.raises(RunError, match=r"no answer within 0\.2 s"):
        find_head("slow.example:6379")


@pytest.mark.parametrize("there", ["127.0.0.1:9", "no-such-host.invalid:8265", "127.0.0.1:99999"])
def test_no_dashboard_is_an_error_for_jobs(there: str) -> None:
    with pytest.raises(RunError, match=f"no Ray dashboard answers at http://{there}"):
        Cluster(f"http://{there}")


def test_a_dashboard_that_is_silent_or_another_server_is_an_error_for_jobs(silent: str, website: str) -> None:
    with pytest.raises(RunError, match=r"no Ray dashboard answers at .*(no answer within|timed out)"):
        Cluster(f"http://{silent}")
    with pytest.raises(RunError, match="what answers there is something else"):
        Cluster(f"http://{website}")


def test_a_dashboard_that_falls_silent_ends_the_following_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "version" not in self.path:
                time.sleep(5)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f'{{"ray_version": "{ray.__version__}"}}'.encode())

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr("handdata.jobs.submit._ANSWER_S", 0.5)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        jobs = Cluster(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(RunError, match=r"does not answer for 0\.5 s"):
            jobs.follow("some-job", print, print)
        server.shutdown()


@pytest.mark.soak
@pytest.mark.parametrize(
    "arguments",
    [
        ("annotate", "--keypoints", "dataset", "--masks", "none"),
        ("annotate", "--keypoints", "dataset", "--masks", "none", "--plan"),
        ("train", "--preset", "pixel-64", "--gpus", "2"),
        ("submit", "train", "--", "--gpus", "2"),
    ],
    ids=lambda arguments: " ".join(arguments[:1] + arguments[-1:]),
)
def test_every_command_fails_within_20_seconds_at_every_dead_address(
    arguments: tuple[str, ...], silent: str, website: str, annotated_synthetic, tmp_path
) -> None:
    import shutil

    workspace = shutil.copytree(annotated_synthetic, tmp_path / "w")
    shutil.rmtree(workspace / "dataset") if arguments[0] == "annotate" else None
    addresses = ["127.0.0.1:9", silent, website, "no-such-host.invalid:6379", "127.0.0.1:99999", "garbage"]
    if arguments[0] == "submit":
        addresses += [f"http://{there}" for there in addresses[:-1]]
    for there in addresses:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "handdata", *arguments, "-w", str(workspace)],
            env=clean_environment(RAY_ADDRESS=there),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert time.monotonic() - started < 20, (there, done.stderr)
        assert done.returncode in (1, 2)
        assert there in done.stderr
        assert "Traceback" not in done.stderr
