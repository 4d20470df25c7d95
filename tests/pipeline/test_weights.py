"""Model files are found in a fixed order, downloaded in as many goes as it takes, and kept only if they are right."""

import hashlib
import io
import random
import re
import resource
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download

from handdata.pipeline import weights as model_files
from handdata.pipeline.weights import (
    WEIGHTS,
    WeightsFile,
    cache_folder,
    fault_of,
    find_weights,
    named_weights,
    require_weights,
    sha256_of,
)
from handdata.schemas import WeightsError
from tests.fixtures.commands import CommandResult

CONTENT = bytes(range(256)) * 4096


def pytorch_file(size: int) -> bytes:
    """Return an archive with the layout that PyTorch writes, of about so many bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data/0", random.Random(0).randbytes(size))
    return out.getvalue()


PARTIAL = ".model.bin.partial"


class Server:
    """A web server on loopback that publishes ``files`` and keeps count of what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.cut_after: int | None = None
        """The connection ends after so many bytes of an answer."""
        self.cuts = 0
        self.page_after_cut: bytes | None = None
        """What is published from then on, whatever range is asked for."""
        self.knows_ranges = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.command == "GET":
                    server.ranges.append(self.headers["Range"])
                content = server.files.get(self.path)
                if content is None:
                    self.send_response(404)
                    self.send_header("Content-Length", "0")
                    self.send_header("Connection", "close")
                    self.end_headers()
                    return
                first = 0
                if server.knows_ranges and (asked := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")):
                    first = int(asked[1])
                    if first >= len(content):
                        self.send_response(416)
                        self.send_header("Content-Length", "0")
                        self.end_headers()
                        return
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
                else:
                    self.send_response(200)
                digest = hashlib.sha256(content).hexdigest()
                self.send_header("ETag", f'"{digest}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("Connection", "close")
                self.send_header("Content-Length", str(len(content) - first))
                self.end_headers()
                if self.command == "HEAD":
                    return
                end = len(content)
                if server.cut_after is not None and server.cuts:
                    server.cuts -= 1
                    end = first + server.cut_after
                    self.close_connection = True
                self.wfile.write(content[first:end])
                if end < len(content) and server.page_after_cut is not None:
                    server.files[self.path], server.knows_ranges = server.page_after_cut, False

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.files["/model.bin"] = CONTENT
    yield server
    server.stop()


@pytest.fixture
def model(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsFile:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HANDDATA_WEIGHTS", raising=False)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    digest = hashlib.sha256(CONTENT).hexdigest()
    file = WeightsFile("model", "model.bin", f"{server.url}/model.bin", len(CONTENT), digest, "testing")
    monkeypatch.setitem(WEIGHTS, "model", file)
    return file


def test_the_users_folder_comes_first(model: WeightsFile, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.bin").write_bytes(b"my own")
    assert require_weights("model", tmp_path / "mine") == tmp_path / "mine" / "model.bin"


def test_the_hand_model_of_this_installation_is_found() -> None:
    found = find_weights("hand_landmarker")
    assert found is not None
    assert sha256_of(found) == WEIGHTS["hand_landmarker"].sha256


def test_a_download_is_checked_and_kept_with_its_licence(model: WeightsFile) -> None:
    seen: list[tuple[int, int | None]] = []
    path = require_weights("model", on_progress=lambda done, total: seen.append((done, total)))
    assert path == cache_folder() / "model.bin"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert find_weights("model") == path
    assert "Apache-2.0" in (cache_folder() / "model.bin.licence.txt").read_text()
    assert sorted(file.name for file in cache_folder().iterdir()) == ["model.bin", "model.bin.licence.txt"]


def test_a_connection_that_is_cut_is_taken_up_where_it_ended(
    model: WeightsFile, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # 10 MB: what is lost of a cut connection
    server.cut_after, server.cuts = 300_000, 3
    assert require_weights("model").read_bytes() == CONTENT
    assert server.ranges[0] is None and len(server.ranges) == 4
    starts = [int(asked[6:-1]) for asked in server.ranges[1:] if asked]
    assert starts == sorted(starts) and starts[0] > 0


def test_what_an_interrupted_download_left_is_not_fetched_again(model: WeightsFile, server: Server) -> None:
    cache_folder().mkdir(parents=True)
    (cache_folder() / PARTIAL).write_bytes(CONTENT[:700_000])
    assert require_weights("model").read_bytes() == CONTENT
    assert server.ranges == ["bytes=700000-"]
    (cache_folder() / "model.bin").rename(cache_folder() / PARTIAL)  # killed right before it got its name
    assert require_weights("model").read_bytes() == CONTENT
    assert server.ranges == ["bytes=700000-"]


@pytest.mark.parametrize("left", [b"of another version " * 9000, bytes(len(CONTENT)), bytes(len(CONTENT) + 5)])
@pytest.mark.parametrize("knows_ranges", [True, False])
def test_what_was_left_of_another_file_is_fetched_anew(
    model: WeightsFile, server: Server, left: bytes, knows_ranges: bool
) -> None:
    server.knows_ranges = knows_ranges
    cache_folder().mkdir(parents=True)
    (cache_folder() / PARTIAL).write_bytes(left)
    assert require_weights("model").read_bytes() == CONTENT


def test_a_download_of_something_else_is_not_kept(model: WeightsFile, server: Server) -> None:
    for other in (b"a proxy's login page", CONTENT[:-1] + b"?", b""):
        server.files["/model.bin"] = other
        with pytest.raises(WeightsError, match="nothing was kept"):
            require_weights("model")
        assert list(cache_folder().iterdir()) == []


def test_without_a_published_hash_a_page_is_not_taken_for_weights(
    model: WeightsFile, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(WEIGHTS, "model", replace(model, sha256=None, size_bytes=None))
    with pytest.raises(WeightsError, match="it is no PyTorch file"):
        require_weights("model")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("data.pkl", "")
    server.files["/model.bin"] = (tmp_path / "a.zip").read_bytes()
    assert require_weights("model").read_bytes() == server.files["/model.bin"]


def test_what_a_proxy_answers_to_a_cut_download_does_not_become_its_beginning(
    model: WeightsFile, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    content = pytorch_file(400_000)
    server.files["/model.bin"] = content
    monkeypatch.setitem(WEIGHTS, "model", replace(model, sha256=None, size_bytes=None))
    server.cut_after, server.cuts = 100_000, 1
    server.page_after_cut = b"<html>Please log in.</html>"
    with pytest.raises(WeightsError, match="cannot be downloaded: Consistency check failed"):
        require_weights("model")
    assert not (cache_folder() / PARTIAL).exists()
    server.files["/model.bin"], server.knows_ranges = content, True
    assert require_weights("model").read_bytes() == content


def test_a_file_without_a_published_hash_is_checked_to_its_last_byte(
    model: WeightsFile, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = bytearray(pytorch_file(400_000))
    content[200_000] ^= 1
    server.files["/model.bin"] = bytes(content)
    monkeypatch.setitem(WEIGHTS, "model", replace(model, sha256=None, size_bytes=None))
    with pytest.raises(WeightsError, match="no PyTorch file, or not a whole one"):
        require_weights("model")
    (tmp_path / "model.bin").write_bytes(content)
    assert fault_of("model", tmp_path / "model.bin") == "it is no PyTorch file, or not a whole one"


def test_without_a_network_the_error_says_which_file_to_put_where(
    model: WeightsFile, server: Server, tmp_path: Path
) -> None:
    del server.files["/model.bin"]
    for reason in ("the server answers 404", "refused"):
        with pytest.raises(WeightsError) as caught:
            require_weights("model", tmp_path / "mine")
        assert reason in caught.value.message and "\n" not in str(caught.value)
        assert f"put it at {tmp_path}/mine/model.bin" in str(caught.value)
        assert "HANDDATA_WEIGHTS" in str(caught.value)
        assert list(cache_folder().iterdir()) == []
        if reason != "refused":
            server.stop()


def test_a_full_disk_keeps_what_is_there_and_the_same_command_continues(
    model: WeightsFile, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(WeightsError, match=r"cannot write model.bin to .*the same command continues"):
            require_weights("model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (cache_folder() / PARTIAL).stat().st_size == 500_000
    with monkeypatch.context() as patch:
        usage = model_files.shutil.disk_usage(cache_folder())._replace(free=500_000)
        patch.setattr(model_files.shutil, "disk_usage", lambda place: usage)
        with pytest.raises(WeightsError, match="548,576 bytes are missing, and 500,000 are free"):
            require_weights("model")
    assert require_weights("model").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=500000-"]


def test_a_folder_that_cannot_be_written_is_named(model: WeightsFile, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(WeightsError, match=f"cannot write model.bin to {tmp_path}/cache/handdata/weights"):
        require_weights("model")


def test_two_processes_at_once_fetch_a_file_once(model: WeightsFile, server: Server) -> None:
    done: list[Path] = []
    threads = [threading.Thread(target=lambda: done.append(require_weights("model"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(done) == 3 and len(server.ranges) == 1
    assert not (cache_folder() / PARTIAL).exists()


def test_files_of_the_hub_go_where_the_libraries_look_for_them(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: Callable[..., CommandResult]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    where = "/some/vae/resolve/main"
    server.files[f"{where}/config.json"] = b"{}"
    server.files[f"{where}/weights.safetensors"] = CONTENT
    digest = hashlib.sha256(CONTENT).hexdigest()
    file = replace(WEIGHTS["sd_vae"], repository="some/vae", filename="weights.safetensors", sha256=digest)
    monkeypatch.setitem(WEIGHTS, "sd_vae", file)
    server.files[f"{where}/weights.safetensors"] = b"another"
    with pytest.raises(WeightsError, match=r"gave another weights.safetensors than expected"):
        require_weights("sd_vae")
    assert find_weights("sd_vae") is None
    server.files[f"{where}/weights.safetensors"] = CONTENT
    fetched = run_command("weights", "fetch", "sd_vae")
    assert fetched.code == 0 and "licence of sd_vae: MIT" in fetched.out, fetched.err
    found = find_weights("sd_vae")
    assert found is not None and found.read_bytes() == CONTENT and (found.parent / "config.json").is_file()
    assert f"sd_vae: ok ({found})" in run_command("weights", "verify").out
    found.resolve().write_bytes(b"damaged")
    assert "sd_vae: NOT the published file" in run_command("weights", "verify").out


def test_what_only_a_browser_can_fetch_is_told_with_link_name_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: Callable[..., CommandResult]
) -> None:
    monkeypatch.setenv("HANDDATA_WEIGHTS", str(tmp_path / "mine"))
    file = WEIGHTS["foundhand"]
    result = run_command("weights", "fetch", "foundhand")
    assert result.code == 1 and result.err.count("\n") == 2, result.err
    assert "licence of foundhand: CC-BY-NC-4.0" in result.out.splitlines()[0]
    for fact in (file.url, file.filename, str(tmp_path / "mine")):
        assert fact in result.out and fact in result.err
    licence = (tmp_path / "mine" / f"{file.filename}.licence.txt").read_text()
    assert "https://creativecommons.org/licenses/by-nc/4.0/" in licence
    with pytest.raises(WeightsError, match="run `handdata weights fetch foundhand`"):
        named_weights("foundhand", tmp_path / "mine")
    place = tmp_path / "mine" / file.filename
    place.write_text("<!DOCTYPE html><title>Google Drive - Virus scan warning</title>")
    page = run_command("weights", "fetch", "foundhand")
    assert page.code == 1 and "it is no PyTorch file" in page.err
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("data.pkl", "")
    assert run_command("weights", "fetch", "foundhand").out == f"foundhand: {place}\n"
    assert "foundhand: ok, as far as can be told" in run_command("weights", "verify").out
    assert named_weights("foundhand", tmp_path / "mine") == str(place)
    assert named_weights("elsewhere.pt") == "elsewhere.pt"


def test_every_model_file_has_a_licence_and_what_it_takes_to_check_it(
    run_command: Callable[..., CommandResult],
) -> None:
    listed = run_command("weights", "list").out
    for name, file in WEIGHTS.items():
        assert file.licence and file.url.startswith("https://") and name in listed
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}|[0-9a-f]{8}", file.sha256)
        assert file.sha256 or file.by_hand or file.repository or file.filename.endswith(".pt")


def test_verify_finds_a_file_that_is_not_the_published_one(tmp_path: Path, monkeypatch, run_command) -> None:
    (tmp_path / WEIGHTS["sam_vit_b"].filename).write_bytes(b"damaged")
    monkeypatch.setenv("HANDDATA_WEIGHTS", str(tmp_path))
    result = run_command("weights", "verify")
    assert result.code == 1
    assert "sam_vit_b: NOT the published file" in result.out
    assert "hand_landmarker: ok" in result.out


def test_fetch_does_not_pass_a_damaged_file_for_the_published_one(tmp_path: Path, monkeypatch, run_command) -> None:
    (tmp_path / WEIGHTS["sam_vit_b"].filename).write_bytes(b"half of it")
    monkeypatch.setenv("HANDDATA_WEIGHTS", str(tmp_path))
    result = run_command("weights", "fetch", "sam_vit_b")
    assert result.code == 1 and "is not the file of sam_vit_b: its SHA-256 is not ec2df62732" in result.err
    assert "remove it, and call this again" in result.err


def test_fetching_an_unknown_file_is_wrong_usage(run_command) -> None:
    result = run_command("weights", "fetch", "nosuch")
    assert result.code == 2
    assert "unknown model file 'nosuch'" in result.err
    assert "did you mean sam_vit_h?" in run_command("weights", "fetch", "sam_vith").err
