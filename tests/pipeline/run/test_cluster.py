"""A process is the driver of a cluster that it reaches or starts."""

import subprocess
import sys
from pathlib import Path

import handdata
from tests.fixtures.commands import clean_environment


def test_a_process_that_has_imported_ray_still_starts_clusters_of_its_own(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a-token-of-this-test-0123456789abcdef")
    code = (
        "import ray\nfrom handdata.pipeline.run.cluster import offer_token, start_local\n"
        "offer_token()\nstart_local(1)\nassert ray.cluster_resources()['CPU'] == 1"
    )
    root = str(Path(handdata.__file__).parent.parent)
    environment = clean_environment(HOME=str(tmp_path), PYTHONPATH=root)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
