"""Images that were made smaller or larger after their labels were written: pixels of labels would be elsewhere."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from handdata.schemas import HandRecord, Rejection, RejectReason
from tests.adapters.test_joins import ingest
from tests.fixtures.arctic import write_arctic
from tests.fixtures.assemblyhands import EXO_SIZE, FRAMES, write_assemblyhands
from tests.fixtures.dart import write_dart
from tests.fixtures.dexycb import write_dexycb
from tests.fixtures.hoi4d import write_hoi4d
from tests.fixtures.interhand26m import write_interhand26m
from tests.fixtures.reinterhand import write_reinterhand
from tests.fixtures.renderih import write_renderih
from tests.fixtures.rhd import write_rhd
from tests.fixtures.wlasl import write_clip

IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "arctic": (write_arctic, "arctic_data/data/images/**/*.jpg"),
    "assemblyhands": (write_assemblyhands, "images/**/*.jpg"),
    "dexycb": (write_dexycb, "*/*/*/color_000000.jpg"),
    "interhand26m": (write_interhand26m, "images/**/*.jpg"),
    "reinterhand": (write_reinterhand, "m--*/*_cameras/*/images/**/*.png"),
    "renderih": (write_renderih, "train/color_img/*.jpg"),
    "rhd": (write_rhd, "*/color/*.png"),
}


@pytest.mark.parametrize(("source", "write", "pattern"), [(s, *rest) for s, rest in IMAGES.items()], ids=IMAGES)
def test_an_image_of_another_size_than_its_labels_are_for_is_rejected(
    tmp_path: Path, source: str, write: Callable[[Path], object], pattern: str
) -> None:
    write(tmp_path)
    records = {row.image_uri for row in ingest(source, tmp_path) if isinstance(row, HandRecord)}
    paths = sorted({str(path.resolve()) for path in tmp_path.glob(pattern)} & records)
    images = {paths[0]: 0.5, paths[-1]: 2.0}
    for path, scale in images.items():
        with Image.open(path) as image:
            other = image.resize((round(image.width * scale), round(image.height * scale)))
        other.save(path)
    after = ingest(source, tmp_path)
    rejected = {row.image_uri: row.reason for row in after if isinstance(row, Rejection)}
    assert {rejected.get(path) for path in images} == {RejectReason.IMAGE_SIZE_MISMATCH}


def test_an_image_of_dart_that_is_no_square_is_rejected(tmp_path: Path) -> None:
    write_dart(tmp_path)
    path = min(tmp_path.glob("*/*_wbg/*.png"))
    Image.new("RGB", (384, 300)).save(path)
    reasons = {row.image_uri: row.reason for row in ingest("dart", tmp_path) if isinstance(row, Rejection)}
    assert reasons[str(path.resolve())] == RejectReason.IMAGE_SIZE_MISMATCH


@pytest.mark.parametrize("scale", [Fraction(2, 3), Fraction(2)])
@pytest.mark.parametrize(
    ("source", "write", "pattern", "size", "frames"),
    [
        ("assemblyhands", write_assemblyhands, "videos/exo_videos_rectified/*/*.mp4", EXO_SIZE, len(FRAMES)),
        ("hoi4d", write_hoi4d, "HOI4D_release/**/image.mp4", (192, 108), 3),
    ],
)
def test_a_video_of_another_size_than_its_labels_are_for_is_rejected(
    tmp_path: Path,
    source: str,
    write: Callable[[Path], object],
    pattern: str,
    size: tuple[int, int],
    frames: int,
    scale: Fraction,
) -> None:
    write(tmp_path)
    path = min(tmp_path.glob(pattern))
    assert any(row.image_uri == str(path.resolve()) for row in ingest(source, tmp_path) if isinstance(row, HandRecord))
    width, height = (int(length * scale) // 2 * 2 for length in size)
    write_clip(path, frames, Fraction(30), (width, height))
    after = [row for row in ingest(source, tmp_path) if row.image_uri == str(path.resolve())]
    assert after and not any(isinstance(row, HandRecord) for row in after)
    assert RejectReason.IMAGE_SIZE_MISMATCH in {row.reason for row in after if isinstance(row, Rejection)}
