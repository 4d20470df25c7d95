"""The page and the sheets show what the dataset holds, in one file that needs no network."""

import base64
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from handdata.adapters import Partition
from handdata.adapters.hagrid import HagridAdapter
from handdata.pictures.charts import chart_picture, chart_svg, histogram, loss_chart, read_losses
from handdata.pictures.drawing import MASK_COLOUR, SIDE_COLOURS
from handdata.pipeline.report import sheets
from handdata.pipeline.report.page import STYLE, ReportFiles, write_report
from handdata.pipeline.report.sheets import choose_samples, inspection_sheet, sample_contact_sheet
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards import read_row_group
from handdata.pipeline.shards.commit import write_unit
from handdata.pipeline.shards.lease import take_lease
from handdata.pipeline.shards.manifest import sum_manifest
from handdata.pipeline.shards.plan import PlannedUnit
from handdata.pipeline.shards.state import read_state, write_manifest
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import (
    AnnotatedSample,
    EncodedImage,
    HandRecord,
    Pair,
    Rejection,
    RejectReason,
    Split,
    UsageError,
    hand_states,
)
from tests.fixtures.hagrid import write_hagrid_v1

SIZE = 128
HOSTILE = '"><script>alert(1)</script>'


def encoded(image: Image.Image, kind: str) -> EncodedImage:
    stream = io.BytesIO()
    image.save(stream, kind)
    return EncodedImage(bytes=stream.getvalue())


def fan(centre_x: float, size: int = SIZE) -> NDArray[np.float32]:
    """A hand of 21 joints whose fingers point up."""
    angles = np.deg2rad([-150, -115, -95, -75, -55])
    reach = np.array([0.12, 0.2, 0.27, 0.33])
    hand = np.zeros((21, 2))
    hand[1:] = (reach[None, :, None] * np.stack([np.cos(angles), np.sin(angles)], 1)[:, None]).reshape(20, 2)
    return np.asarray((hand + np.array([centre_x, 0.75])) * size, dtype=np.float32)


def make_sample(
    source: str, sequence: str, frame: int, *, split: Split = "train", flags: tuple[str, ...] = (), mask: bool = True
) -> AnnotatedSample:
    """A sample of a drawn right hand; masks and numbers differ with the frame."""
    keypoints = np.zeros((42, 2), dtype=np.float32)
    keypoints[:21] = fan(0.5)
    crop = Image.new("RGB", (SIZE, SIZE), (40 + 5 * (frame % 8), 60, 90))
    silhouette = Image.new("L", (SIZE, SIZE), 0)
    for joint in keypoints[:21]:
        box = [*(joint - 7), *(joint + 7)]
        ImageDraw.Draw(crop).ellipse(box, fill=(214, 170, 140))
        ImageDraw.Draw(silhouette).ellipse(box, fill=255)
    identity = f"{source}/{split}/{sequence}/{frame:06d}-0"
    return AnnotatedSample(
        sample_id=identity,
        record_id=identity,
        unit_id="",
        source=source,
        split=split,
        sequence_id=sequence,
        frame_index=frame,
        camera_id="0",
        timestamp_s=None,
        subject_id=None,
        origin_id=None,
        viewpoint="exo",
        hand_state=("labelled", "absent"),
        image_uri="frame.jpg",
        video_frame=None,
        width=640,
        height=480,
        camera_model="pinhole",
        camera_dist=None,
        camera_t_world=None,
        license="CC BY-NC 4.0",
        image=encoded(crop, "JPEG"),
        hand_mask=encoded(silhouette, "PNG") if mask else None,
        keypoints_2d=keypoints,
        keypoints_valid=np.arange(42) < 21,
        keypoints_origin=("dataset", None),
        keypoints_score=Pair(1, 0),
        agreement_px=(None, None),
        hand_px=Pair(60 + 7 * frame, 0),
        mask_origin="grabcut" if mask else None,
        mask_extent="hand" if mask else None,
        mask_score=0.9 if mask else None,
        mask_spill=0.1 if mask else None,
        sharpness=20.0 + frame,
        phash=frame,
        crop_xyxy=(0, 0, SIZE, SIZE),
        pad_ltrb=(0, 0, 0, 0),
        crop_mode="frame",
        keypoints_3d=None,
        camera_k=None,
        flags=flags,
        annotator_hash="abc",
    )


def add_unit(storage: Storage, samples: list[AnnotatedSample], rejections: int = 0) -> None:
    first = samples[0]
    unit = PlannedUnit(
        unit_id=f"{first.source}-{first.sequence_id}",
        source=first.source,
        split=first.split,  # type: ignore[arg-type]
        rows=len(samples) + rejections,
        plan_file="",
        row_group=0,
    )
    rejected = [
        Rejection(record_id=f"r{n}", image_uri="x.jpg", reason=RejectReason.NO_HAND_FOUND, detail="")
        for n in range(rejections)
    ]
    write_unit(take_lease(Dataset(storage)), unit, samples, rejected, "abc")


def finish(storage: Storage, licenses: dict[str, str] | None = None) -> None:
    state = read_state(Dataset(storage))
    manifest = sum_manifest(
        state.manifest,
        state.markers,
        len(state.markers),
        image_size=SIZE,
        annotators={"abc": {"settings": AnnotateSettings().model_dump(mode="json"), "models": {}}},
        licenses=licenses or {"dexycb": "CC BY-NC 4.0"},
    )
    write_manifest(take_lease(Dataset(storage)), state, manifest)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Two sources, three sequences, flags, samples without a mask, three rejected rows."""
    storage = Storage(tmp_path_factory.mktemp("workspace"))
    add_unit(storage, [make_sample("dexycb", "a", frame, flags=("blurry",) * (frame == 0)) for frame in range(6)], 3)
    add_unit(storage, [make_sample("dexycb", "b", frame, split="val") for frame in range(4)])
    add_unit(storage, [make_sample("hagrid", "c", frame, mask=False) for frame in range(2)])
    finish(storage, {"dexycb": "CC BY-NC 4.0", "hagrid": "HaGRID <public> licence"})
    return storage


METRICS = [
    *({"step": step, "loss": 1 / (1 + step / 40), "samples_per_second": 30.0} for step in range(1, 301)),
    *({"step": step, "validation_loss": 0.2, "permuted_loss": 0.25} for step in (100, 200, 300)),
]
GRID = np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (32, 1, 3))


@pytest.fixture(scope="module")
def full(workspace: Storage, tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    """A report with all its sections."""
    return write_report(Dataset(workspace), tmp_path_factory.mktemp("report"), metrics=METRICS, generated=GRID)


class Page(HTMLParser):
    """The elements of a page, with the text of its visible part."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.lasttag != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def written(storage: Storage, tmp_path: Path, **choices: Any) -> Page:
    return Page(Path(write_report(Dataset(storage), tmp_path / "report", **choices).html).read_text())


def test_page_loads_nothing_from_anywhere(full: ReportFiles) -> None:
    page = Page(Path(full.html).read_text())

    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    loaded = [(tag, a) for tag, a in page.elements if {"src", "srcset", "poster", "data", "background"} & set(a)]
    assert loaded and all(tag == "img" and str(a["src"]).startswith("data:image/") for tag, a in loaded)
    assert all(str(link["href"]).startswith("https://") for link in page.all("a"))
    policy = next(meta for meta in page.all("meta") if "http-equiv" in meta)["content"]
    assert policy is not None and policy.startswith("default-src 'none'")
    styles = STYLE + " ".join(str(a.get("style", "")) for _, a in page.elements)
    assert "url(" not in styles and "@import" not in styles


def test_page_gives_the_numbers_of_the_manifest(full: ReportFiles) -> None:
    page = Page(Path(full.html).read_text())

    assert (
        "12 annotated samples from 15 records of 2 sources; 3 rejected; trained for 300 steps; "
        "true keypoints lower the validation loss by 20%."
    ) in page.text
    for expected in ("no hand found", "blurry", "8.3%", "CC BY-NC 4.0", "DexYCB"):
        assert expected in page.text
    assert "https://dex-ycb.github.io" in [link["href"] for link in page.all("a")]
    assert len(page.all("caption")) == 4


def test_sections_come_in_the_order_of_a_readers_questions(full: ReportFiles) -> None:
    page = Page(Path(full.html).read_text())

    names = [section["id"] for section in page.all("section")]
    assert names == ["numbers", "samples", "histograms", "loss", "generated"]


def test_sections_without_material_are_left_out(workspace: Storage, tmp_path: Path) -> None:
    page = written(workspace, tmp_path)

    assert [section["id"] for section in page.all("section")] == ["numbers", "samples", "histograms"]


def test_every_picture_and_chart_has_a_description(full: ReportFiles) -> None:
    page = Page(Path(full.html).read_text())

    assert len(page.all("img")) == 13
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("svg")) == 5
    assert all(chart["aria-label"] and chart["role"] == "img" for chart in page.all("svg"))


def test_text_from_data_cannot_become_markup(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "workspace")
    add_unit(storage, [make_sample("dexycb", "x", 0, flags=(HOSTILE,)).model_copy(update={"sample_id": HOSTILE})])
    finish(storage, {f"dexycb{HOSTILE}": HOSTILE})

    page = written(storage, tmp_path, title=HOSTILE)

    assert not page.all("script")
    assert HOSTILE in page.text
    assert str(page.all("img")[0]["alt"]).count(HOSTILE) == 2


def test_picture_on_the_page_has_keypoints_mask_and_side_drawn(full: ReportFiles) -> None:
    page = Page(Path(full.html).read_text())

    data = base64.b64decode(str(page.all("img")[0]["src"]).partition(",")[2])
    pixels = np.array(Image.open(io.BytesIO(data)), dtype=int)
    for colour in (MASK_COLOUR, SIDE_COLOURS["right"]):
        assert (np.abs(pixels - colour).max(axis=2) < 40).sum() > 20


def test_contact_sheet_shows_samples_losses_and_generated_hands(
    workspace: Storage, full: ReportFiles, tmp_path: Path
) -> None:
    alone = write_report(Dataset(workspace), tmp_path)

    with Image.open(alone.png) as sheet, Image.open(full.png) as larger:
        assert sheet.mode == "RGB" and sheet.width >= 5 * 192
        assert larger.height > sheet.height + 300


def test_generated_hands_may_come_from_a_file(workspace: Storage, tmp_path: Path) -> None:
    Image.fromarray(GRID).save(tmp_path / "grid.png")

    page = written(workspace, tmp_path, generated=tmp_path / "grid.png")

    data = base64.b64decode(str(page.all("img")[-1]["src"]).partition(",")[2])
    assert np.array_equal(np.array(Image.open(io.BytesIO(data))), GRID)


def test_report_of_a_dataset_whose_records_were_all_rejected_says_so(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "workspace")
    unit = PlannedUnit("u", "dexycb", "train", 1, "", 0)
    rejected = Rejection(record_id="r", image_uri="x", reason=RejectReason.FRAME_MISSING, detail="")
    write_unit(take_lease(Dataset(storage)), unit, [], [rejected], "abc")
    finish(storage)

    page = written(storage, tmp_path)

    assert "0 annotated samples from 1 record of 1 source; 1 rejected." in page.text
    assert "No record became a sample" in page.text
    assert (tmp_path / "report" / "contact-sheet.png").exists()


def test_report_without_a_dataset_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="handdata annotate"):
        write_report(Dataset(Storage(tmp_path)), tmp_path / "report")


def test_same_dataset_gives_the_same_page(workspace: Storage, full: ReportFiles, tmp_path: Path) -> None:
    again = write_report(Dataset(workspace), tmp_path, metrics=METRICS, generated=GRID)

    assert Path(again.html).read_bytes() == Path(full.html).read_bytes()
    assert Path(again.png).read_bytes() == Path(full.png).read_bytes()


def test_chosen_samples_spread_over_sources_and_sequences(workspace: Storage) -> None:
    chosen = choose_samples(Dataset(workspace), 4, seed=3)

    assert Counter(row["source"] for row in chosen) == {"dexycb": 2, "hagrid": 2}
    assert {row["sequence_id"] for row in chosen} == {"a", "b", "c"}
    assert len({row["sample_id"] for row in chosen}) == 4
    assert len(choose_samples(Dataset(workspace), 100, seed=3)) == 12


def test_seed_decides_which_samples_are_chosen(workspace: Storage) -> None:
    def ids(seed: int) -> list[str]:
        return [row["sample_id"] for row in choose_samples(Dataset(workspace), 3, seed)]

    assert ids(1) == ids(1)
    assert len({tuple(ids(seed)) for seed in range(8)}) > 1


def test_only_row_groups_of_chosen_samples_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(tmp_path)
    long_sequence = [make_sample("dexycb", "a", 0)] * 128 + [make_sample("dexycb", "a", 1)] * 128
    add_unit(storage, [*long_sequence, *[make_sample("dexycb", "a", 2)] * 128])
    finish(storage)
    read: list[int] = []

    def counted(storage: Storage, shard: Any, row_group: int, columns: Any) -> Any:
        read.append(row_group)
        return read_row_group(storage, shard, row_group, columns)

    monkeypatch.setattr(sheets, "read_row_group", counted)
    choose_samples(Dataset(storage), 1, seed=0)

    assert len(read) == 1


def test_sample_sheet_has_a_tile_for_every_sample(workspace: Storage) -> None:
    rows = choose_samples(Dataset(workspace), 5, seed=0)

    sheet = sample_contact_sheet(rows, columns=3, tile_px=96)

    assert sheet.shape[1] == 3 * 96 + 4 * 10
    assert sheet.shape[0] > 2 * 96
    assert sample_contact_sheet([]).ndim == 3


def make_record(valid: NDArray[np.bool_], keypoints: NDArray[np.float32]) -> HandRecord:
    return HandRecord(
        source="dexycb",
        split="train",
        sequence_id="s",
        frame_index=1,
        image_uri="frame.jpg",
        width=640,
        height=480,
        viewpoint="exo",
        keypoints_2d=keypoints,
        keypoints_valid=valid,
        hand_state=hand_states(valid, "unknown"),
    )


def test_inspected_frame_is_cut_to_its_hands_with_labels_in_place() -> None:
    keypoints = np.zeros((42, 2), dtype=np.float32)
    keypoints[21:] = fan(0.5, 100) + np.array([400, 200], dtype=np.float32)
    image = np.full((480, 640, 3), 90, dtype=np.uint8)
    image[283:289, 415:421] = (255, 0, 255)  # beside the hand
    mask = np.zeros((480, 640), dtype=bool)
    mask[230:280, 420:480] = True

    sheet = inspection_sheet([(make_record(np.arange(42) >= 21, keypoints), image, mask)], columns=1, tile_px=320)

    tile = sheet[10:330, 10:330].astype(int)
    magenta = (tile[..., 0] > 200) & (tile[..., 1] < 60) & (tile[..., 2] > 200)
    blue = (tile[..., 2] > tile[..., 0] + 60) & (tile[..., 2] > 150)
    assert magenta.sum() > 150, "the frame was not enlarged to its hand"
    assert (np.abs(tile - MASK_COLOUR).max(axis=2) < 40).sum() > 100
    assert (np.abs(tile - SIDE_COLOURS["left"]).max(axis=2) < 30).sum() > 50
    assert blue.sum() > 300


@pytest.mark.parametrize("far", [-5000.0, 5000.0])
def test_inspected_frame_whose_labels_are_off_is_shown_whole(far: float) -> None:
    image = np.zeros((480, 640, 3), dtype=np.uint8)
    image[:8] = image[-8:] = 255
    keypoints = np.full((42, 2), far, dtype=np.float32)

    sheet = inspection_sheet([(make_record(np.arange(42) < 21, keypoints), image, None)], columns=1, tile_px=320)

    assert (sheet[10:330, 10:330] == 255).all(axis=2).sum() > 2 * 320 * 3


def test_inspected_frame_without_labels_is_shown_whole() -> None:
    image = np.full((480, 640, 3), 90, dtype=np.uint8)
    nothing = make_record(np.zeros(42, dtype=bool), np.zeros((42, 2), dtype=np.float32))

    sheet = inspection_sheet([(nothing, image, None)] * 3, columns=2, tile_px=160)

    assert sheet.shape[1] == 2 * 160 + 30
    assert (sheet == 90).all(axis=2).sum() == 3 * 160 * 120


def test_losses_are_read_from_whatever_keys_are_there() -> None:
    rows: list[dict[str, object]] = [
        {"step": 2, "loss": 0.5, "lr": 1},
        {"step": 1, "loss": 0.7},
        {"step": 2, "validation_loss": 0.4},
        {"note": "x"},
    ]
    rows += [{"step": 3, "loss": float("nan")}, {"step": 2, "permuted_loss": 0.5}]

    curves = read_losses(rows)

    assert curves.train == [(1, 0.7), (2, 0.5)]
    assert curves.condition_gain == pytest.approx(0.2)
    assert curves.last_step == 2
    assert read_losses([]).last_step == 0 and read_losses([]).condition_gain is None


@pytest.mark.parametrize(
    "metrics",
    [
        [{"step": 1, "loss": 0.5}],
        [{"step": 0, "loss": 0.5}],
        [{"step": 5, "validation_loss": 0.3}],
        [{"step": 1, "loss": -0.5}, {"step": 2, "loss": 0.0}],
        [{"step": step, "loss": 0.3} for step in range(5000)],
        [{"step": step, "loss": 10.0**-step} for step in range(9)],
    ],
)
def test_loss_chart_stays_inside_its_frame_and_small(metrics: list[dict[str, float]]) -> None:
    chart = loss_chart(read_losses(metrics))

    svg = chart_svg(chart)
    assert len(svg) < 40_000
    assert "nan" not in svg and "inf" not in svg
    for points in re.findall(r' points="([^"]*)"', svg):
        placed = np.array([pair.split(",") for pair in points.split()], dtype=float)
        assert ((placed >= 0) & (placed <= [chart.width, chart.height])).all()
    assert chart_picture(chart, 300).shape == (173, 300, 3)


def test_histogram_counts_every_finite_value_once() -> None:
    values = np.array([0.0, 0.1, 0.5, 1.0, 1.7, -3.0, np.nan])

    svg = chart_svg(histogram("x", {"x": values}, limits=(0, 1), flagged=("below", 0.6)))

    heights = [float(height) for height in re.findall(r'<rect[^>]* height="([\d.]+)"', svg)]
    assert sum(heights) == pytest.approx(6 * max(heights) / 2, rel=0.01)  # the highest bars hold two
    assert "flagged below 0.6" in svg


@pytest.mark.parametrize("values", [[], [3.0], [3.0, 3.0], [0.0], [1e-3, 1e5]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_histogram_of_any_data_can_be_drawn(values: list[float], logarithmic: bool) -> None:
    svg = chart_svg(histogram("x", {"x": np.array(values)}, logarithmic=logarithmic))

    assert "nan" not in svg and "inf" not in svg


CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
OFFLINE_FLAGS = ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"]


def browse(tmp_path: Path, page: Path, *flags: str) -> str:
    """Open a local page in Chromium without a network; return what it prints."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    profile = tmp_path / "profile"
    command = [chromium, *CHROMIUM_FLAGS, *OFFLINE_FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode()


PROBE = """<script>
addEventListener("load", () => {
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify({
    widths: [...document.images].map(image => image.naturalWidth),
    loaded: performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("data:")),
    overflow: document.documentElement.scrollWidth - innerWidth,
  });
  document.body.append(result);
});
</script></body>"""


def test_browser_without_a_network_shows_every_picture(full: ReportFiles, tmp_path: Path) -> None:
    page = Path(full.html)
    html = page.read_text()
    # A copy that may run one script, ours; the page itself may run none.
    probed = html.replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    copy = tmp_path / "probed.html"
    copy.write_text(probed.replace("</body>", PROBE))

    dom = browse(tmp_path, copy, "--window-size=390,844", "--dump-dom")

    found = json.loads(re.findall(r'<pre id="probe">(.*?)</pre>', dom)[0])
    assert len(found["widths"]) == 13 and all(width > 0 for width in found["widths"])
    assert found["loaded"] == []
    assert found["overflow"] <= 0, "the page is wider than a phone"


def test_browser_paints_the_page(full: ReportFiles, tmp_path: Path) -> None:
    page = Path(full.html)
    shot = tmp_path / "shot.png"

    browse(tmp_path, page, "--window-size=1200,1600", f"--screenshot={shot}")

    pixels = np.array(Image.open(shot).convert("RGB"), dtype=int)
    assert pixels.shape == (1600, 1200, 3)
    assert (np.abs(pixels - MASK_COLOUR).max(axis=2) < 40).sum() > 200, "no annotated sample is visible"


def test_inspect_warns_as_ingest_does(tmp_path: Path, run_command, monkeypatch: pytest.MonkeyPatch) -> None:
    read = HagridAdapter.records

    def read_two(self: HagridAdapter, root: Path, partition: Partition) -> Iterator[HandRecord | Rejection]:
        yield from islice(read(self, root, partition), 1)
        raise KeyError("bboxes")

    write_hagrid_v1(tmp_path / "hagrid")
    monkeypatch.setattr(HagridAdapter, "records", read_two)
    monkeypatch.setattr(HagridAdapter, "warnings", lambda self, root: iter(["subject [1] has 99 sequences"]))
    result = run_command("inspect", "-s", "hagrid", "--root", tmp_path / "hagrid", "--out", tmp_path / "sheet.png")
    assert result.code == 0
    assert "subject [1] has 99 sequences" in result.out
    assert "adapter_failed: " in result.out
    assert (tmp_path / "sheet.png").is_file()
