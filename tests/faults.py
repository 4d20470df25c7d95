"""Helpers of the fault tests: a source with poisoned records, drivers to kill, what readers see afterwards."""

import http.client
import os
import random
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

POISONED = '''
"""The synthetic source, some of whose records do to their worker what the file named by POISON says."""

import json
import os
import signal
import time

from handdata.adapters.synthetic import SyntheticAdapter


class PoisonedAdapter(SyntheticAdapter):
    card = SyntheticAdapter.card.model_copy(update={"name": "poisoned"})

    def records(self, root, partition):
        for row in super().records(root, partition):
            yield row.model_copy(update={"source": "poisoned"})

    def open_mask(self, record):
        with open(os.environ["POISON"]) as file:
            poison = json.load(file)
        deed = poison.get(record.record_id)
        if deed == "segfault":
            import ctypes
            ctypes.string_at(0)
        elif deed == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "stuck":
            time.sleep(10_000)
        elif deed == "memory":
            held = []
            while True:
                held.append(bytearray(os.urandom(1 << 20) * 32))
                time.sleep(0.01)
        elif deed == "error":
            raise ZeroDivisionError("a bug")
        time.sleep(poison.get("pause_s", 0))
        return super().open_mask(record)
'''


def install_poisoned_source(folder: Path) -> None:
    """Make the source available to every process that has the folder on its path."""
    (folder / "handdata_poisoned.py").write_text(POISONED)
    info = folder / "handdata_poisoned-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: handdata-poisoned\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[handdata.adapters]\npoisoned = handdata_poisoned:PoisonedAdapter\n")


def rows_of(workspace: Path, dataset: str = "dataset") -> dict[str, dict[str, Any]]:
    """All rows that any reader of the folder sees, by record; fails where one is there twice."""
    files = sorted((workspace / dataset / "data").rglob("*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    found = {row["record_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def rejected_of(workspace: Path) -> dict[str, str]:
    """The reason of each rejected record; fails where one is there twice."""
    rows = rejected_rows(workspace)
    found = {row["record_id"]: row["reason"] for row in rows}
    assert len(found) == len(rows)
    return found


def rejected_rows(workspace: Path) -> list[dict[str, Any]]:
    """All rows of the rejected records of annotation."""
    files = sorted((workspace / "rejected" / "annotate").rglob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def leftovers(workspace: Path) -> list[Path]:
    """Hidden files of writers that were killed."""
    return [path for path in workspace.rglob(".*") if path.is_file()]


def driver(workspace: Path | str, address: str, environment: dict[str, str], *options: object) -> subprocess.Popen[str]:
    """Start ``handdata annotate`` as a process of its own on a running head."""
    arguments = ["annotate", "-w", workspace, "--image-size", 64, "--masks", "dataset", "--address", address, *options]
    return subprocess.Popen(
        [sys.executable, "-m", "handdata", *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes(name: str) -> list[psutil.Process]:
    """The processes of a Ray actor class, on the heads and nodes that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if f"ray::{name}" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


class FaultyS3:
    """An HTTP proxy on loopback before an S3 server, that answers, fails or keeps silent as it is told.

    Args:
        endpoint: of the server behind.

    """

    def __init__(self, endpoint: str) -> None:
        self.failing = 0.0
        """Share of requests that get 500 or a closed connection instead of an answer; some of these are carried out."""
        self.silent = False
        """Whether requests get no answer at all."""
        self.faults = 0
        self._chance = random.Random(7)
        proxy = self
        host = endpoint.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if proxy.silent:
                    proxy.faults += 1
                    time.sleep(20)
                    self.close_connection = True
                    return
                fate = "answered"
                if proxy._chance.random() < proxy.failing:
                    proxy.faults += 1
                    fate = proxy._chance.choice(("refused", "refused", "dropped", "lost"))
                if fate == "refused":
                    self.send_response(500)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                if fate in ("refused", "dropped"):
                    self.close_connection = fate == "dropped"
                    return
                connection = http.client.HTTPConnection(host, timeout=60)
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                if fate == "lost":  # done, but the client does not know
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                length = answer.headers.get("Content-Length") if self.command == "HEAD" else str(len(data))
                for name, value in answer.headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A client that was killed is no error."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
