"""The doctor finds what is broken on a machine, says how to mend it, and never fails itself."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import s3fs

from handdata.jobs import doctor
from handdata.jobs.doctor import Finding
from handdata.pipeline.weights import WEIGHTS
from tests.commands.test_extras import COMMAND, run_blocked
from tests.fixtures.commands import CommandResult

DOCTOR = ("doctor", "--workspace", "w")


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.name: finding.state for finding in findings}


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_the_machine_of_the_tests_is_sound(
    run_command: Callable[..., CommandResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    result = run_command("doctor", "-w", tmp_path / "w", "--json")
    document = json.loads(result.out)
    assert result.code == 0 and document["broken"] == [], result.out
    found = {finding["name"]: finding for finding in document["findings"]}
    assert found["MediaPipe"]["found"].endswith("looks for hands")
    assert found["model hand_landmarker"]["state"] == found["torch"]["state"] == found["Ray"]["state"] == "ok"
    assert all(finding["mend"] for finding in document["findings"] if finding["state"] != "ok")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("packages", ["torch,mediapipe,ray", "fsspec,cv2,polars,packaging,psutil"])
def test_without_packages_each_check_is_still_one_line(packages: str, tmp_path: Path) -> None:
    done = run_blocked(COMMAND, packages, *DOCTOR, folder=tmp_path)
    assert "Traceback" not in done.stderr + done.stdout
    lines = done.stdout.splitlines()
    assert len(lines) > 10 and any(line.startswith("ok     Python") for line in lines)
    assert done.returncode == any(line.startswith("broken") for line in lines)
    assert all(line.startswith(("ok ", "absent ", "broken ", "Nothing ")) for line in lines), done.stdout


@pytest.mark.parametrize("package", ["typer", "rich", "pyarrow"])
def test_without_what_the_command_line_is_made_of_one_line_names_it(package: str, tmp_path: Path) -> None:
    done = run_blocked(COMMAND, package, *DOCTOR, folder=tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr == f"error: this needs the package {package}, which is not installed\nhint: pip install handdata\n"
    )


def test_a_package_that_is_installed_and_cannot_be_imported_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "polars.py").write_text("raise ImportError('no AVX2\\nhere')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    found = next(doctor._packages())
    assert found.state == "broken" and found.found == "polars cannot be imported: no AVX2 here" and found.mend
    (tmp_path / "polars.py").write_text("import os\nos.abort()")
    assert "SIGABRT" in next(doctor._packages()).found


def test_a_damaged_model_file_is_found(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS["hand_landmarker"].filename).write_bytes(b"half of it")
    found = {finding.name: finding for finding in doctor._weights(tmp_path)}["model hand_landmarker"]
    assert found.state == "broken" and "SHA-256" in found.found and "weights fetch hand_landmarker" in found.mend


def test_a_broken_setting_is_a_finding(
    run_command: Callable[..., CommandResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "handdata.toml").write_text("stuck_after_s = -1\n")
    monkeypatch.setattr(doctor, "examine", lambda machine: iter(()))
    result = run_command("doctor")
    assert result.code == 1 and "broken settings: setting stuck_after_s" in result.out


def test_a_library_that_crashes_or_hangs_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PROBE_S", 1.0)
    assert doctor._probe("import os; os.kill(os.getpid(), 11)") == "its process died of SIGSEGV"
    assert doctor._probe("import time; time.sleep(9)") == "it does not come back within 1 s"
    assert doctor._probe("raise ImportError('libGL.so.1: cannot open\\n it')") == "it"
    assert doctor._probe("print('noise'); tell(a=1)") == {"a": 1}


def test_an_object_store_is_tried(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(list(doctor._workspace(f"{s3_bucket}/w"))).state == "ok"
    missing = only(list(doctor._workspace("s3://nobodys-bucket/w")))
    assert missing.state == "broken" and "does the bucket exist" in missing.mend
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()  # a process keeps the first endpoint
    away = only(list(doctor._workspace(f"{s3_bucket}/w")))
    s3fs.S3FileSystem.clear_instance_cache()
    assert away.state == "broken" and "reachable" in away.mend


def test_a_workspace_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert only(list(doctor._workspace(str(tmp_path / "file" / "w")))).state == "broken"
    assert only(list(doctor._workspace(str(tmp_path / "new" / "w")))).found.endswith("can be made")


def test_a_cluster_that_does_not_answer_is_found() -> None:
    found = {finding.name: finding for finding in doctor._ray("127.0.0.1:9")}["Ray"]
    assert found.state == "broken" and "no Ray cluster answers at 127.0.0.1:9" in found.found and found.mend


def test_the_token_is_found_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "token"
    assert doctor._token({})[0].startswith("none")
    assert doctor._token({"RAY_AUTH_TOKEN": "secret"}) == ("in RAY_AUTH_TOKEN", "")
    assert doctor._token({"RAY_AUTH_TOKEN_PATH": str(file)})[1]
    file.touch()
    assert doctor._token({"RAY_AUTH_TOKEN_PATH": str(file)}) == (f"{file} is empty", "put the cluster's token there")
    file.write_text("secret")
    assert doctor._token({"RAY_AUTH_TOKEN_PATH": str(file)}) == (f"in {file}", "")
