"""Whatever is killed, stuck, full or away: every accepted record ends in the dataset once, every rejected one once."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults import FaultyS3, driver, install_poisoned_source, rejected_of, rows_of
from ray.cluster_utils import Cluster

from handdata.pipeline import plan
from handdata.pipeline.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass
class Head:
    """A running head with two cores, and a workspace on which nothing is annotated yet."""

    cluster: Cluster
    proxy: FaultyS3
    ingested: Path
    poison: Path
    undisturbed: dict[str, dict[str, Any]]

    def annotate(
        self, workspace: Path | str, *options: object, stuck_after_s: float = 600, address: str = ""
    ) -> "subprocess.Popen[str]":
        environment = {"HANDDATA_STUCK_AFTER_S": str(stuck_after_s), "AWS_ENDPOINT_URL": self.proxy.url}
        return driver(workspace, address or self.cluster.address, environment, *options)

    def finish(self, workspace: Path | str, *options: object, stuck_after_s: float = 600) -> dict[str, Any]:
        """Run the command to its end, and return its summary."""
        return self.finished(self.annotate(workspace, "--json", *options, stuck_after_s=stuck_after_s))

    def finished(self, started: "subprocess.Popen[str]") -> dict[str, Any]:
        out, err = started.communicate(timeout=900)
        assert started.returncode == 0, err
        summary: dict[str, Any] = json.loads(out)
        assert summary["dataset"]["complete"]
        return summary

    def new_workspace(self, folder: Path, poison: dict[str, str | float] | None = None) -> Path:
        self.poison.write_text(json.dumps(poison or {}))
        shutil.copytree(self.ingested, folder)
        return folder


@pytest.fixture(scope="module")
def head(synthetic_root: Path, s3_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    site = tmp_path_factory.mktemp("site")
    install_poisoned_source(site)
    poison = site / "poison.json"
    poison.write_text("{}")
    ingested = tmp_path_factory.mktemp("ingested") / "w"
    proxy = FaultyS3(os.environ["AWS_ENDPOINT_URL"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("POISON", str(poison))
        # A head of Cluster asks for no token, whatever `ray start` has left in the home folder.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.syspath_prepend(site)
        from handdata_poisoned import PoisonedAdapter

        from handdata.pipeline.ingest import ingest

        ingest(PoisonedAdapter, synthetic_root, Storage(ingested))
        patch.setattr(plan, "MIN_UNIT_ROWS", 2)
        assert len(plan.plan_source(Storage(ingested), "dataset", "poisoned", 64)) == 24
        with pytest.MonkeyPatch.context() as head_only:
            head_only.setenv("AWS_ENDPOINT_URL", proxy.url)
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        head = Head(cluster, proxy, ingested, poison, {})
        workspace = head.new_workspace(tmp_path_factory.mktemp("undisturbed") / "w")
        assert head.finish(workspace)["samples"] == 48
        head.undisturbed = rows_of(workspace)
        yield head
        cluster.shutdown()
    proxy.stop()


def test_records_that_crash_their_worker_are_refused_and_the_rest_goes_through(head: Head, tmp_path: Path) -> None:
    ids = sorted(head.undisturbed)
    poison = {ids[3]: "segfault", ids[20]: "error", ids[21]: "error", ids[40]: "stuck"}
    workspace = head.new_workspace(tmp_path / "w", poison)
    summary = head.finish(workspace, stuck_after_s=10)
    assert summary["rejected"] == {"worker_crashed": 4}
    assert rejected_of(workspace) == dict.fromkeys(poison, "worker_crashed")
    expected = {name: row for name, row in head.undisturbed.items() if name not in poison}
    assert rows_of(workspace) == expected
