"""A server or disk that is away is tried again and then stops the run; only what is known to be missing is rejected."""

import errno
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import s3fs
from PIL import Image

from handdata.adapters.reading import listing
from handdata.pipeline.annotation import frames
from handdata.pipeline.annotation.frames import open_frames, read_image_file
from handdata.pipeline.storage import Storage, store
from handdata.schemas import HandRecord, RecordError, RejectReason, StorageError
from tests.fixtures.faults import FaultyS3
from tests.fixtures.image_server import ImageServer, serving
from tests.fixtures.jpegs import encoded
from tests.fixtures.videos import DETAIL, WITHOUT_B_FRAMES, write_detailed_video

CONTENT = encoded(Image.new("RGB", (40, 30), "red"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ImageServer]:
    monkeypatch.setattr(store, "RETRY_WAITS_S", (0.01, 0.02, 0.03))
    monkeypatch.setattr(store, "HTTP_TIMEOUTS_S", {"total": 5, "sock_connect": 0.5, "sock_read": 0.3})
    with serving(CONTENT) as server:
        yield server


AWAY = [500, 502, 503, 504, 429, 408, "hang", "drop", "half"]


@pytest.mark.parametrize("deed", AWAY)
def test_an_image_server_that_is_away_is_one_error_that_says_so(server: ImageServer, deed: int | str) -> None:
    server.deed = deed
    with pytest.raises(StorageError, match=f"cannot read {server.url}/a.jpg: .*the same command continues") as caught:
        read_image_file(f"{server.url}/a.jpg")
    assert caught.value.transient
    assert server.requests >= 4
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("deed", AWAY)
def test_an_image_server_that_comes_back_costs_no_record(server: ImageServer, deed: int | str) -> None:
    server.deed, server.well_after = deed, 2
    assert read_image_file(f"{server.url}/a.jpg") == CONTENT


def test_a_refused_connection_is_a_server_that_is_away(server: ImageServer) -> None:
    server.stop()
    with pytest.raises(StorageError) as caught:
        read_image_file(f"{server.url}/a.jpg")
    assert caught.value.transient


@pytest.mark.parametrize("cache", ["simplecache", "filecache", "blockcache"])
def test_a_cache_before_a_server_that_is_away_hides_nothing(server: ImageServer, cache: str) -> None:
    uri = f"{cache}::{server.url}/a.jpg"
    assert read_image_file(uri) == CONTENT
    server.deed = 503
    with pytest.raises(StorageError, match="answers 503") as caught:
        read_image_file(uri)
    assert caught.value.transient


@pytest.mark.parametrize("number", [socket.EAI_AGAIN, socket.EAI_NONAME])
def test_a_name_server_that_is_away_is_a_server_that_is_away(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    asked = []

    def look_up(*host: object, **options: object) -> list[object]:
        asked.append(host)
        raise socket.gaierror(number, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(StorageError, match="is the server reachable") as caught:
        read_image_file("http://images.example/a.jpg")
    assert caught.value.transient
    assert len(asked) == 4


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("deed", [500, 503, 429, "hang", "drop"])
@pytest.mark.parametrize("seconds", [10, 3600])
def test_with_the_real_waits_ten_seconds_cost_nothing_and_more_ends_within_minutes(
    deed: int | str, seconds: int
) -> None:
    with serving(CONTENT) as server:
        server.deed, started = deed, time.monotonic()
        server.well_at = started + seconds
        if seconds == 10:
            assert read_image_file(f"{server.url}/a.jpg") == CONTENT
        else:
            with pytest.raises(StorageError, match="the same command continues"):
                read_image_file(f"{server.url}/a.jpg")
            assert time.monotonic() - started < 150


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        (404, RejectReason.IMAGE_MISSING),
        (410, RejectReason.IMAGE_MISSING),
        (400, RejectReason.FRAME_MISSING),
        (451, RejectReason.FRAME_MISSING),
    ],
)
def test_what_a_server_does_not_have_is_one_rejected_record(
    server: ImageServer, deed: int, reason: RejectReason
) -> None:
    server.deed = deed
    with pytest.raises(RecordError) as caught:
        read_image_file(f"{server.url}/a.jpg")
    assert caught.value.reason is reason
    assert server.requests == 1


@pytest.mark.parametrize("deed", [401, 403, 407])
def test_an_image_that_we_may_not_read_stops_the_run_at_once(server: ImageServer, deed: int) -> None:
    server.deed = deed
    with pytest.raises(StorageError, match=r"answers 40\d .*credentials or signed URLs still valid") as caught:
        read_image_file(f"{server.url}/a.jpg")
    assert not caught.value.transient
    assert server.requests == 1


@pytest.mark.parametrize(
    "uri",
    [
        "/data/a\0.jpg", "a" * 5000, "nosuch://host/a.jpg", "://a.jpg", "http://", "http:///a.jpg", "http://[::1/a.jpg",
        "http://localhost:99999/a.jpg", "http://a\0b/c.jpg", "file:///data/a\0.jpg", "file:///no/such/file.jpg",
        "http://" + "a" * 300 + "/a.jpg", "s3://", "s3://a", "memory://no/such/file", "/dev/null/a.jpg",
    ],
)  # fmt: skip
def test_a_name_that_nothing_can_have_is_one_rejected_record(uri: str, server: ImageServer, s3_bucket: str) -> None:
    with pytest.raises(RecordError) as caught:
        read_image_file(uri)
    assert caught.value.reason is RejectReason.IMAGE_MISSING


def test_what_is_no_file_is_one_rejected_record_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "large.jpg").write_bytes(bytes(11))
    monkeypatch.setattr(frames, "MAX_IMAGE_BYTES", 10)
    for path in (tmp_path, tmp_path / "pipe.jpg", tmp_path / "large.jpg", f"file://{tmp_path}/pipe.jpg"):
        with pytest.raises(RecordError) as caught:
            read_image_file(str(path))
        assert caught.value.reason is RejectReason.FRAME_MISSING


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ETIMEDOUT, errno.EIO, errno.EHOSTDOWN, errno.ENOTCONN])
@pytest.mark.parametrize("failures", [2, 1000])
def test_a_network_disk_that_is_away_makes_no_image_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, failures: int
) -> None:
    monkeypatch.setattr(store, "RETRY_WAITS_S", (0.01, 0.02, 0.03))
    (tmp_path / "a.jpg").write_bytes(CONTENT)
    really, left = Path.read_bytes, [failures]

    def read(path: Path) -> bytes:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, os.strerror(number), str(path))
        return really(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    if failures == 2:
        assert read_image_file(str(tmp_path / "a.jpg")) == CONTENT
        return
    with pytest.raises(StorageError, match="the same command continues") as caught:
        read_image_file(str(tmp_path / "a.jpg"))
    assert caught.value.transient


@pytest.fixture
def faulty_s3(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    proxy = FaultyS3(os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(store, "RETRY_WAITS_S", (0.1,) * 3)
    s3fs.S3FileSystem.clear_instance_cache()
    yield proxy
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.stop()


def test_images_on_s3_are_missing_only_where_s3_says_so(faulty_s3: FaultyS3, s3_bucket: str) -> None:
    folder = f"{s3_bucket}/{uuid.uuid4().hex[:8]}"
    Storage(folder).write_bytes("a.jpg", CONTENT)
    assert read_image_file(f"{folder}/a.jpg") == CONTENT
    with pytest.raises(RecordError, match="does not exist"):
        read_image_file(f"{folder}/b.jpg")
    with pytest.raises(StorageError, match="no such bucket"):
        read_image_file("s3://no-such-bucket/b.jpg")
    faulty_s3.failing = 1
    for name in ("a.jpg", "b.jpg"):
        with pytest.raises(StorageError, match="the same command continues") as caught:
            read_image_file(f"{folder}/{name}")
        assert caught.value.transient


def video_record(uri: str, frame: int) -> HandRecord:
    return HandRecord(
        source="wlasl",
        split="train",
        sequence_id="clip",
        frame_index=frame,
        video_frame=frame,
        image_uri=uri,
        width=DETAIL.shape[1],
        height=DETAIL.shape[0],
        viewpoint="exo",
        hand_state=("unknown", "unknown"),
        keypoints_valid=np.zeros(42, dtype=np.bool_),
        keypoints_2d=np.zeros((42, 2)),
    )


def test_a_video_is_read_from_a_url_like_from_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_detailed_video(tmp_path / "clip.mp4", WITHOUT_B_FRAMES)
    monkeypatch.setattr(store, "RETRY_WAITS_S", (0.01, 0.02, 0.03))
    with serving(path.read_bytes()) as server:
        server.deed, server.well_after = 503, 2
        uri = f"{server.url}/clip.mp4"
        by_url = [image for _, image in open_frames([video_record(uri, frame) for frame in range(3)])]
        by_path = [image for _, image in open_frames([video_record(str(path), frame) for frame in range(3)])]
        np.testing.assert_array_equal(by_url, by_path)
        server.deed, server.well_after = 404, 1 << 30
        rows = list(open_frames([video_record(uri, frame) for frame in range(2)]))
        assert [image.reason for _, image in rows if isinstance(image, RecordError)] == [RejectReason.IMAGE_MISSING] * 2
        server.deed = 503
        with pytest.raises(StorageError, match=uri):
            list(open_frames([video_record(uri, 0)]))


def test_a_disk_that_goes_away_while_a_video_is_read_damages_no_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_detailed_video(tmp_path / "clip.mp4", WITHOUT_B_FRAMES)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)  # what a lost disk looks like
    path.write_bytes(data)
    records = [video_record(str(path), frame) for frame in range(20)]
    assert any(isinstance(image, RecordError) for _, image in open_frames(records))

    def read(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(listing, "WAITS_S", [])
    monkeypatch.setattr(listing.DatasetFile, "readinto", lambda file, _: listing._retried(file.path, read))
    with pytest.raises(StorageError, match="the same command continues") as caught, suppress(RecordError):
        list(open_frames(records))
    assert caught.value.transient
