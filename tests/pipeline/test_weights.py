"""Model files are found in a fixed order, and a download is kept only if it is the published file."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from handdata.pipeline.weights import WEIGHTS, WeightsFile, cache_folder, find_weights, require_weights, sha256_of
from handdata.schemas import WeightsError

CONTENT = b"the published weights"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server on loopback that publishes ``model.bin``."""
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "model.bin").write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture
def model(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsFile:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digest = hashlib.sha256(CONTENT).hexdigest()
    file = WeightsFile("model", "model.bin", f"{server}/model.bin", len(CONTENT), digest, "testing")
    monkeypatch.setitem(WEIGHTS, "model", file)
    return file


def test_the_users_folder_comes_first(model: WeightsFile, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.bin").write_bytes(b"my own")
    assert require_weights("model", tmp_path / "mine") == tmp_path / "mine" / "model.bin"


def test_a_package_that_ships_the_hand_model_is_found() -> None:
    found = find_weights("hand_landmarker")
    assert found is not None
    assert sha256_of(found) == WEIGHTS["hand_landmarker"].sha256


def test_a_download_is_checked_and_kept(model: WeightsFile) -> None:
    seen: list[tuple[int, int]] = []
    path = require_weights("model", on_progress=lambda done, total: seen.append((done, total)))
    assert path == cache_folder() / "model.bin"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert find_weights("model") == path


def test_a_download_of_something_else_is_not_kept(
    model: WeightsFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "published" / "model.bin").write_bytes(b"a proxy's login page")
    with pytest.raises(WeightsError, match="nothing was kept"):
        require_weights("model")
    assert list(cache_folder().iterdir()) == []


def test_without_a_network_the_error_says_which_file_to_put_where(
    model: WeightsFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "published" / "model.bin").unlink()
    with pytest.raises(WeightsError) as caught:
        require_weights("model", tmp_path / "mine")
    assert f"put it at {tmp_path}/mine/model.bin" in str(caught.value)
    assert "HANDDATA_WEIGHTS" in str(caught.value)


def test_verify_finds_a_file_that_is_not_the_published_one(tmp_path: Path, monkeypatch, run_command) -> None:
    (tmp_path / WEIGHTS["sam_vit_b"].filename).write_bytes(b"damaged")
    monkeypatch.setenv("HANDDATA_WEIGHTS", str(tmp_path))
    result = run_command("weights", "verify")
    assert result.code == 1
    assert "sam_vit_b: NOT the published file" in result.out
    assert "hand_landmarker: ok" in result.out


def test_fetching_an_unknown_file_is_wrong_usage(run_command) -> None:
    result = run_command("weights", "fetch", "nosuch")
    assert result.code == 2
    assert "unknown model file 'nosuch'" in result.err
