"""Pools of processes, from whatever kind of program."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
print("once")
from handdata.adapters.processes import process_pool

with process_pool(1) as pool:
    print(pool.submit(abs, -1).result())
"""


def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for how in ([script], ["-m", "script"]):
        done = subprocess.run([sys.executable, *how], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert (done.stdout, done.stderr) == ("once\n1\n", "")
