"""Photographs and videos of the user's own: upright, by person, split without leaks, and nothing lost in silence."""

import os
import re
import shutil
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import ExifTags, Image

from handdata.adapters import AdapterOptions, folder
from handdata.adapters.folder import FolderAdapter
from handdata.adapters.registry import registered_adapters
from handdata.adapters.rhd import RhdAdapter
from handdata.adapters.roots import find_root
from handdata.pipeline.annotation.frames import open_frames
from handdata.pipeline.records.ingest import ingest
from handdata.pipeline.run.annotate import annotate
from handdata.pipeline.run.request import AnnotateRequest
from handdata.pipeline.settings import AnnotateSettings
from handdata.pipeline.shards.outdated import outdated_records
from handdata.pipeline.shards.plan import plan_source, planned_otherwise
from handdata.pipeline.storage import Dataset, Storage
from handdata.schemas import (
    DatasetReadError,
    HandRecord,
    LayoutError,
    RecordError,
    Rejection,
    RejectReason,
    UsageError,
)
from handdata.schemas.arrays import ByteArray
from tests.fixtures.photographs import (
    CORNERS,
    HEIGHT,
    TURNS,
    WIDTH,
    encoded,
    photograph,
    write_folder,
    write_photograph,
)
from tests.fixtures.videos import write_detailed_video
from tests.fixtures.wlasl import write_clip


def read(root: Path, **own: Any) -> list[HandRecord | Rejection]:
    adapter = FolderAdapter(AdapterOptions(**own))
    root = find_root(FolderAdapter, root)
    return [row for partition in adapter.partitions(root) for row in adapter.records(root, partition)]


def records(root: Path, **own: Any) -> list[HandRecord]:
    rows = read(root, **own)
    assert all(isinstance(row, HandRecord) for row in rows), rows
    return [row for row in rows if isinstance(row, HandRecord)]


def warnings(root: Path, **own: Any) -> list[str]:
    adapter = FolderAdapter(AdapterOptions(**own))
    list(adapter.partitions(root))
    return list(adapter.warnings(root))


def pixels(found: list[HandRecord]) -> list[ByteArray]:
    images = [image for _, image in open_frames(found)]
    assert not [image for image in images if isinstance(image, RecordError)], images
    return [image for image in images if not isinstance(image, RecordError)]


ALONE = ["--limit", 100]
"""More records than there are: with a limit no other process is started."""


def people(root: Path, count: int) -> None:
    for number in range(count):
        write_photograph(root / f"person-{number:02d}/a.jpg", number)


# ---------------------------------------------------------------------------------------------------- photographs


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_photograph_stands_upright_however_the_camera_was_held(tmp_path: Path, format: str, orientation: int) -> None:
    write_photograph(tmp_path / "a.jpg", 0, format, orientation)
    found = records(tmp_path)
    assert [(record.width, record.height) for record in found] == [(WIDTH, HEIGHT)]
    (image,) = pixels(found)
    corners = [image[y, x] for y in (8, HEIGHT - 9) for x in (8, WIDTH - 9)]
    assert np.abs(np.array(corners).astype(int) - CORNERS).max() < 40


def test_exif_behind_the_pixels_of_a_png_counts(tmp_path: Path) -> None:
    data = encoded(photograph(), "PNG", 6)
    at = data.index(b"eXIf") - 4
    chunk = data[at : at + 12 + int.from_bytes(data[at : at + 4], "big")]
    end = data.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(data[:at] + data[at + len(chunk) : end] + chunk + data[end:])
    (record,) = records(tmp_path)
    assert (record.width, record.height) == pixels([record])[0].shape[1::-1] == (WIDTH, HEIGHT)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_turns_nothing(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph().save(tmp_path / "a.jpg", exif=exif)
    assert pixels(records(tmp_path))[0].shape == (HEIGHT, WIDTH, 3)


def test_heic_is_read_where_its_package_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    for orientation in range(1, 9):  # as iPhones write it: the item is turned, and EXIF says so once more
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        stored = photograph(orientation)
        for turn in TURNS[orientation]:
            stored = stored.transpose(turn)
        heif.from_pillow(stored).save(tmp_path / f"{orientation}.jpg", exif=exif.tobytes(), quality=95)
    found = records(tmp_path)
    assert {(record.width, record.height) for record in found} == {(WIDTH, HEIGHT)}
    for image in pixels(found):
        assert np.abs(image[8, 8].astype(int) - CORNERS[0]).max() < 40
        assert np.abs(image[8, WIDTH - 8].astype(int) - CORNERS[1]).max() < 40


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(200)


def test_heic_without_its_package_is_an_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: Callable[..., Any]
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    write_photograph(tmp_path / "d/a.jpg")
    (tmp_path / "d/IMG_1.HEIC").write_bytes(HEIC)
    done = run_command("ingest", "--source", "folder", "--root", tmp_path / "d", "-w", tmp_path / "w")
    assert done.code == 2
    assert 'pip install "handdata[heic]"' in done.err and "Traceback" not in done.err
    assert not list((tmp_path / "w").rglob("*.parquet"))


def test_unreadable_photographs_are_rejected_by_name_and_what_is_none_is_passed_over(tmp_path: Path) -> None:
    write_photograph(tmp_path / "ann/good.jpg")
    bad = {
        "empty.jpg": (b"", RejectReason.IMAGE_EMPTY),
        "cut.heic": (b"\xff\xd8\xff", RejectReason.IMAGE_CORRUPT),
        "page.png": (b"<!DOCTYPE html>", RejectReason.IMAGE_CORRUPT),
        "moving.gif": (b"GIF89a", RejectReason.IMAGE_CORRUPT),
        "raw.DNG": (encoded(photograph(), "TIFF"), RejectReason.IMAGE_CORRUPT),
        "empty.mov": (b"", RejectReason.FRAME_MISSING),
        "other.wmv": (b"0&\xb2u", RejectReason.FRAME_MISSING),
    }
    for name, (content, _) in bad.items():
        (tmp_path / "ann" / name).write_bytes(content)
    for name in ("notes.txt", "IMG_1.AAE", "._good.jpg", ".good.jpg", "@eaDir/good.jpg", "Thumbs.db", "README"):
        (tmp_path / "ann" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "ann" / name).write_bytes(b"\0\5\26\7")
    rows = read(tmp_path)
    rejected = {row.record_id: row.reason for row in rows if isinstance(row, Rejection)}
    assert rejected == {f"folder/train/ann/{name}/000000-0": reason for name, (_, reason) in bad.items()}
    assert [row.sequence_id for row in rows if isinstance(row, HandRecord)] == ["ann/good.jpg"]


def test_bytes_decide_not_names(tmp_path: Path) -> None:
    write_photograph(tmp_path / "photo.jpg", 1, "WEBP")
    write_photograph(tmp_path / "photo.mp4", 2)
    write_photograph(tmp_path / "download", 3, "PNG")
    write_clip(tmp_path / "clip.mp4").rename(tmp_path / "clip.jpg")
    found = records(tmp_path)
    assert [record.sequence_id for record in found] == [*["clip.jpg"] * 3, "download", "photo.jpg", "photo.mp4"]
    assert len(pixels(found)) == 6


def test_phones_and_browsers_give_names_that_say_nothing(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=1)
    clip.rename(tmp_path / "PXL_20230101_120000000.MP")
    for number, name in enumerate(["photo.jpg_large", "IMG_2020.10.11", "photo (1)", "DSC_1.JPG ", "a.jpeg!large"]):
        write_photograph(tmp_path / name, number)
    for name in ("notes.txt", "voice.m4a", "DSC_1.jpg_original", "GX01.LRV"):  # copies and companions
        (tmp_path / name).write_bytes((tmp_path / "PXL_20230101_120000000.MP").read_bytes())
    (tmp_path / "IMG_1.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    photograph().save(tmp_path / "dance.gif")
    rows = read(tmp_path)
    assert sum(isinstance(row, HandRecord) for row in rows) == 6
    rejected = {Path(row.image_uri).name: row for row in rows if isinstance(row, Rejection)}
    assert {*rejected} == {"IMG_1.jxl", "dance.gif"}
    assert all("no image of AVIF, BMP, JPEG" in row.detail for row in rejected.values())


def test_many_files_of_one_size_are_each_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photograph(), "BMP")
    for number in range(60):
        (tmp_path / f"{number:02d}.bmp").write_bytes(data[:-1] + bytes([number % 50]))
    opened: list[Path] = []
    real = folder._digest
    monkeypatch.setattr(folder, "_digest", lambda path, *rest: (opened.append(path), real(path, *rest))[1])
    rows = read(tmp_path)
    assert sum(isinstance(row, Rejection) for row in rows) == 10
    assert len(opened) <= 2 * 60


def test_one_picture_in_the_folders_of_two_people_is_said_and_trained_on_once(tmp_path: Path) -> None:
    write_photograph(tmp_path / "train/ann/party.jpg", 1)
    write_photograph(tmp_path / "val/bob/IMG_7.JPG", 1)
    write_photograph(tmp_path / "train/ann/alone.jpg", 2)
    clip = write_clip(tmp_path / "train/ann/clip.mp4")
    (tmp_path / "test").mkdir()
    shutil.copy(clip, tmp_path / "test/received.mp4")
    size = (tmp_path / "train/ann/alone.jpg").stat().st_size
    (tmp_path / "val/bob/other.jpg").write_bytes(encoded(photograph(3), "JPEG").ljust(size, b"\0"))
    found = records(tmp_path)
    origins: dict[str | None, list[str]] = {}
    for record in found:
        origins.setdefault(record.origin_id, []).append(record.split)
    assert sorted(origins.pop(None)) == ["train", "val"]
    assert sorted(origins.values()) == [["test", "train"]] * 3 + [["train", "val"]]
    said = " | ".join(warnings(tmp_path))
    assert "in several people's folders, byte for byte, and counted once in training: 4 files, " in said
    assert "val/bob/IMG_7.JPG" in said and "alone.jpg" not in said


def test_a_copy_of_a_photograph_is_rejected_and_a_namesake_is_not(tmp_path: Path) -> None:
    write_photograph(tmp_path / "ann/IMG_1.jpg", 1)
    write_photograph(tmp_path / "ann/later/IMG_1 (1).jpg", 1)
    write_photograph(tmp_path / "ann/later/IMG_1.jpg", 2)
    rows = read(tmp_path)
    (copy,) = (row for row in rows if isinstance(row, Rejection))
    assert (copy.record_id, copy.reason) == (
        "folder/train/ann/later/IMG_1 (1).jpg/000000-0",
        RejectReason.IMAGE_DUPLICATE,
    )
    assert "ann/IMG_1.jpg" in copy.detail and len(rows) == 3


# ---------------------------------------------------------------------------------------------------- people, splits


def test_the_first_folder_below_the_splits_is_the_person(tmp_path: Path) -> None:
    write_folder(tmp_path)
    found = [row for row in read(tmp_path) if isinstance(row, HandRecord)]
    assert {(record.split, record.subject_id, record.sequence_id) for record in found} == {
        ("train", None, "IMG_4.jpg"),
        ("train", "ann", "ann/IMG_1.jpg"),
        ("train", "ann", "ann/trip/IMG_2.JPG"),
        ("train", "bob", "bob/IMG_3.png"),
        ("val", "cleo", "cleo/IMG_5.tif"),
        ("test", "dan", "dan/IMG_6.jpg"),
        ("test", "dan", "dan/clip.mp4"),
    }


def test_a_tenth_of_ten_people_and_more_is_held_out_whoever_they_are(tmp_path: Path) -> None:
    people(tmp_path, 20)
    write_photograph(tmp_path / "person-00/b.jpg", 30)
    found = records(tmp_path)
    held = {record.subject_id for record in found if record.split == "val"}
    assert len(held) == 2
    assert not held & {record.subject_id for record in found if record.split == "train"}
    (line,) = warnings(tmp_path)
    assert all(str(person) in line for person in held)
    shutil.move(tmp_path, tmp_path.with_name("elsewhere"))
    moved = records(tmp_path.with_name("elsewhere"))
    assert {record.subject_id for record in moved if record.split == "val"} == held


def test_of_fewer_people_none_is_held_out_unasked_and_the_summary_says_so(
    tmp_path: Path, run_command: Callable[..., Any]
) -> None:
    people(tmp_path / "d", 3)
    assert {record.split for record in records(tmp_path / "d")} == {"train"}
    done = run_command("ingest", "--source", "folder", "--root", tmp_path / "d", "-w", tmp_path / "w", *ALONE)
    assert done.code == 0 and "nothing is held out: there are 3 people" in done.out
    assert [record.split for record in records(tmp_path / "d", val_share=0.4)].count("val") == 1
    assert warnings(tmp_path / "d", val_share=0.4)[0].startswith("held out, of 3 people")


@pytest.mark.parametrize("person", ["", "ann"])
def test_files_of_one_person_are_shared_out_and_a_live_photo_stays_whole(tmp_path: Path, person: str) -> None:
    for number in range(8):
        write_photograph(tmp_path / person / f"IMG_{number}.jpg", number)
        write_clip(tmp_path / person / f"img_{number}.MOV.mp4", frames=1, size=(64 + 2 * number, 48)).rename(
            tmp_path / person / f"img_{number}.MOV"
        )
    assert {record.split for record in records(tmp_path)} == {"train"}
    found = records(tmp_path, val_share=0.25)
    assert {record.subject_id for record in found} == {person or None}
    splits: dict[str, set[str]] = {}
    for record in found:
        splits.setdefault(record.sequence_id.split(".")[0].casefold(), set()).add(record.split)
    assert sorted(map(sorted, splits.values())) == [*[["train"]] * 6, *[["val"]] * 2]
    assert len(found) == len(records(tmp_path))
    assert "held out: 2 files" in warnings(tmp_path, val_share=0.25)[0]


def test_of_copies_of_one_person_none_is_trained_on_and_held_out(tmp_path: Path) -> None:
    for number in range(8):
        write_photograph(tmp_path / f"holiday-{number}.jpg", number)
        shutil.copy(tmp_path / f"holiday-{number}.jpg", tmp_path / f"from-the-chat-{number}.jpg")
    rows = read(tmp_path, val_share=0.5)
    kept = [row for row in rows if isinstance(row, HandRecord)]
    assert sorted(row.sequence_id for row in kept) == [f"holiday-{number}.jpg" for number in range(8)]
    assert {row.split for row in kept} == {"train", "val"}
    assert {row.reason for row in rows if isinstance(row, Rejection)} == {RejectReason.IMAGE_DUPLICATE}
    assert len(rows) == 16


@pytest.mark.parametrize(
    "name", ["validation", "Training", "valid", "train_images", "val set", "TEST2017", "test-photos"]
)
def test_a_folder_that_is_nearly_named_as_a_split_is_an_error(tmp_path: Path, name: str) -> None:
    write_photograph(tmp_path / name / "a.jpg")
    write_photograph(tmp_path / "bob/b.jpg", 1)
    with pytest.raises(LayoutError, match="would be taken as the folder of a person"):
        records(tmp_path)


@pytest.mark.parametrize("name", ["tester", "valentina", "test 1", "trainer_photos", "ann_test"])
def test_a_person_whose_name_holds_a_split_s_is_a_person(tmp_path: Path, name: str) -> None:
    write_photograph(tmp_path / name / "a.jpg")
    assert [record.subject_id for record in records(tmp_path)] == [name]


SHOTS = (
    ("IMG_0001.HEIC.jpg", "img_0001.MOV", "IMG_E0001.JPG", "IMG_0001(1).jpg", "IMG_0001-edited.png"),
    ("PXL_20230101_120000123.MP.jpg", "PXL_20230101_120000123.MP", "PXL_20230101_120000123~2.jpg"),
    ("00000IMG_00000_BURST20200101120000000_COVER.jpg", "00001IMG_00001_BURST20200101120000000.jpg"),
    ("20210101_120000.jpg", "20210101_120000(0).jpg", "20210101_120000_001.jpg"),
    ("hand.jpg", "hand (1).jpg", "hand copy.jpg"),
    *((f"right ({number}).jpg",) for number in range(10)),
    *((f"IMG-20230101-WA{number:04d}.jpg",) for number in range(10)),
)
"""Names of the files of each shot; Windows numbers the files of a folder as it numbers copies."""


def test_files_of_one_shot_are_held_out_together(tmp_path: Path) -> None:
    shade = 0
    for names in SHOTS:
        for name in names:
            write_photograph(tmp_path / name, shade := shade + 1)
    for share in (0.2, 0.4, 0.6, 0.8):
        found = {record.sequence_id: record.split for record in records(tmp_path, val_share=share)}
        assert len(found) == shade
        shots = [{found[name] for name in names} for names in SHOTS]
        assert all(len(splits) == 1 for splits in shots)
        assert shots.count({"val"}) == round(share * len(SHOTS))


def test_people_of_several_splits_are_said(tmp_path: Path) -> None:
    for number, place in enumerate(["train/ann", "train/bob", "val/ann", "val/cleo"]):
        write_photograph(tmp_path / place / "a.jpg", number)
    said = warnings(tmp_path)
    assert "people by split: train 2, val 2" in said
    assert any("tested on people it has seen: ann" in line for line in said)


@pytest.mark.parametrize(("first", "second"), [("Jos\xe9", "Jose\u0301"), ("Ann", "ann"), ("ann", "ann ")])
def test_a_person_whose_name_another_system_spelt_is_said(tmp_path: Path, first: str, second: str) -> None:
    for number, place in enumerate([f"train/{first}", "train/bob", f"val/{second}"]):
        write_photograph(tmp_path / "divided" / place / "a.jpg", number)
        write_photograph(tmp_path / "whole" / place.partition("/")[2] / "a.jpg", number)
    both = ", ".join(sorted([first, second]))
    assert any(line.endswith(f"tested on people it has seen: {both}") for line in warnings(tmp_path / "divided"))
    assert any(line.endswith(f"some may be held out: {both}") for line in warnings(tmp_path / "whole"))


def test_splits_in_any_case_are_splits_and_say_what_is_held_out(tmp_path: Path) -> None:
    write_photograph(tmp_path / "Train/ann/a.jpg")
    write_photograph(tmp_path / "VAL/bob/a.jpg", 1)
    assert {record.split for record in records(tmp_path)} == {"train", "val"}
    with pytest.raises(UsageError, match="has folders of splits"):
        records(tmp_path, val_share=0.5)


def test_a_person_who_moves_to_another_split_is_not_annotated_in_both(tmp_path: Path) -> None:
    people(tmp_path / "d", 9)
    storage = Storage(tmp_path / "w")
    ingest(FolderAdapter, tmp_path / "d", storage, limit=100)
    dataset = Dataset(storage, "dataset")
    assert sum(unit.rows for unit in plan_source(dataset, "folder", 64)) == 9
    write_photograph(tmp_path / "d/person-00/more.jpg", 40)
    ingest(FolderAdapter, tmp_path / "d", storage, limit=100)
    assert sum(unit.rows for unit in plan_source(dataset, "folder", 64)) == 10
    people(tmp_path / "d", 10)  # a tenth is held out from now on
    ingest(FolderAdapter, tmp_path / "d", storage, limit=100, force=True)
    with pytest.raises(
        UsageError, match=r"were of another split in an earlier ingest, such as folder/val/person-"
    ) as caught:
        plan_source(dataset, "folder", 64)
    assert "--overwrite" in caught.value.hint


def test_of_photographs_that_were_replaced_or_renamed_annotate_says_what_the_samples_are_of(tmp_path: Path) -> None:
    root, storage = tmp_path / "d", Storage(tmp_path / "w")
    for number in range(3):
        write_photograph(root / f"ann/{number}.jpg", number)
    dataset = Dataset(storage)

    def said() -> list[str]:
        ingest(FolderAdapter, root, storage, force=True)
        return list(outdated_records(dataset, "folder", plan_source(dataset, "folder", 64)))

    assert said() == []
    assert said() == []  # the same files, once more
    write_photograph(root / "ann/more.jpg", 9)
    assert said() == []
    write_photograph(root / "ann/1.jpg", 120, "PNG")
    (replaced,) = said()
    assert re.search(r"labels of 1 records .* such as folder/train/ann/1.jpg/.*--overwrite", replaced)
    (root / "ann/2.jpg").rename(root / "ann/renamed.jpg")
    assert len(said()) == 2
    assert re.search(r"has 1 of the planned records no more, .* such as folder/train/ann/2.jpg/", said()[1])
    ingest(FolderAdapter, root, storage, limit=1, force=True)  # a part of them: none is missed
    assert list(outdated_records(dataset, "folder", plan_source(dataset, "folder", 64))) == []

    ingest(FolderAdapter, root, storage)
    summary = annotate(AnnotateRequest(dataset), AnnotateSettings(masks="none", image_size=64))
    assert summary.warnings == tuple(said())
    assert {*summary.warnings} < {*summary.manifest.warnings["folder"]}
    summary = annotate(AnnotateRequest(dataset, overwrite=True), AnnotateSettings(masks="none", image_size=64))
    assert summary.warnings == ()


def test_a_photograph_that_may_not_be_read_ends_the_ingest_and_no_folder_is_taken_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photograph(tmp_path / "a.jpg")
    people(tmp_path, 1)

    def refused(path: str | Path, size: int) -> bytes:
        raise DatasetReadError(f"{path} cannot be read: Permission denied")

    monkeypatch.setattr("handdata.adapters.folder.read_head", refused)
    assert find_root(FolderAdapter, tmp_path) == tmp_path
    with pytest.raises(DatasetReadError, match=r"a\.jpg cannot be read"):
        read(tmp_path)


def test_a_name_that_cannot_be_stored_costs_its_file_alone(tmp_path: Path) -> None:
    people(tmp_path, 1)
    write_clip(tmp_path / "person-00/b.mp4").rename(os.fsdecode(bytes(tmp_path / "person-00") + b"/b\xff.mp4"))
    write_photograph(tmp_path / "person-00/c.jpg", 1)
    rows = read(tmp_path)
    assert sorted(type(row).__name__ for row in rows) == ["HandRecord", "HandRecord", "Rejection"]


def test_what_is_not_taken_or_taken_otherwise_is_said(tmp_path: Path) -> None:
    write_photograph(tmp_path / "train/ann/a.jpg")
    write_photograph(tmp_path / "train/ann/ann/b.jpg", 1)
    write_photograph(tmp_path / "train/bob/test/b.jpg", 2)
    write_photograph(tmp_path / "stray.jpg", 3)
    write_photograph(tmp_path / "cleo/a.jpg", 4)
    (tmp_path / "more.zip").write_bytes(b"PK")
    said = " | ".join(warnings(tmp_path))
    assert "not taken: stray.jpg, cleo" in said
    assert "lie too deep: train/bob/test" in said
    assert "unpacked twice?): train/ann/ann" in said
    assert "not looked into: more.zip" in said


def test_a_folder_that_is_there_twice_by_a_link_is_an_error_and_a_loop_is_not(tmp_path: Path) -> None:
    people(tmp_path, 2)
    (tmp_path / "person-00/loop").symlink_to(tmp_path)
    assert len(records(tmp_path)) == 2
    (tmp_path / "again").symlink_to(tmp_path / "person-01")
    with pytest.raises(LayoutError, match="are one folder, by a link"):
        records(tmp_path)


def test_a_folder_that_nobody_named_so_is_not_proposed_as_this_source(tmp_path: Path) -> None:
    write_photograph(tmp_path / "a.jpg")
    with pytest.raises(LayoutError) as caught:
        find_root(RhdAdapter, tmp_path)
    assert "folder" not in caught.value.hint.replace("folders", "")


def test_of_two_datasets_with_splits_none_is_taken(tmp_path: Path) -> None:
    write_folder(tmp_path / "one")
    assert find_root(FolderAdapter, tmp_path) == tmp_path / "one"
    write_folder(tmp_path / "two")
    with pytest.raises(LayoutError, match="holds folder more than once: one, two"):
        find_root(FolderAdapter, tmp_path)


# ---------------------------------------------------------------------------------------------------- videos


@pytest.mark.parametrize("suffix", ["mov", "mp4", "mkv", "webm"])
def test_every_frame_of_a_video_is_a_record_with_its_time(tmp_path: Path, suffix: str) -> None:
    codec = "libvpx" if suffix == "webm" else "libx264"
    with av.open(str(tmp_path / f"clip.{suffix}"), "w") as container:
        stream = container.add_stream(codec, rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 30 * index, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = records(tmp_path)
    assert [(record.frame_index, record.video_frame) for record in found] == [(index, index) for index in range(6)]
    assert [record.timestamp_s for record in found] == pytest.approx([index / 20 for index in range(6)], abs=2e-3)
    assert [float(image.mean()) for image in pixels(found)] == pytest.approx([30 * i for i in range(6)], abs=8)


def test_a_phone_s_video_of_ten_bits_and_uneven_times_stands_upright(tmp_path: Path) -> None:
    times = [0, 1, 2, 4, 9, 10]
    with av.open(str(tmp_path / "IMG_1.MOV"), "w", format="mov") as container:
        stream = container.add_stream("libx265", rate=30, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p10le"
        stream.time_base = Fraction(1, 30)
        stream.set_display_rotation(-90)
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 20 * time, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 30)
            container.mux(stream.encode(frame.reformat(format="yuv420p10le")))
        container.mux(stream.encode())
    found = records(tmp_path)
    assert {(record.width, record.height) for record in found} == {(64, 96)}
    assert [record.timestamp_s for record in found] == pytest.approx([time / 30 for time in times], abs=1e-3)
    assert [float(image.mean()) for image in pixels(found)] == pytest.approx([20 * time for time in times], abs=8)
    assert [record.frame_index for record in records(tmp_path, fps=10)] == [0, 3, 4]


def test_fps_and_stride_thin_videos_and_leave_photographs(tmp_path: Path, run_command: Callable[..., Any]) -> None:
    write_photograph(tmp_path / "d/a.jpg")
    write_detailed_video(tmp_path / "d/clip.mp4", {})  # 40 frames, 25 a second
    ingested = ["ingest", "--source", "folder", "--root", tmp_path / "d", "-w", tmp_path / "w", *ALONE]
    assert len(records(tmp_path / "d", fps=5)) == 1 + 8
    assert len(records(tmp_path / "d", fps=25)) == 1 + 40
    assert run_command(*ingested, "--stride", 10).code == 0
    assert sum(len(Storage(tmp_path / "w").read_parquet(name)) for name in record_files(tmp_path / "w")) == 1 + 4
    both = run_command(*ingested, "--stride", 10, "--fps", 5)
    assert both.code == 2 and "--stride and --fps" in both.err


def record_files(workspace: Path) -> list[str]:
    return [str(path.relative_to(workspace)) for path in sorted((workspace / "records").rglob("*.parquet"))]


@pytest.mark.parametrize("folder", ["", "ann/IMG_1087"])
def test_a_folder_of_numbered_frames_is_a_video_on_request(tmp_path: Path, folder: str) -> None:
    for number in (3, 4, 7, 10):
        write_photograph(tmp_path / folder / f"frame_{number:04d}.jpg", 0)
    assert len({record.sequence_id for record in read(tmp_path) if isinstance(record, HandRecord)}) == 1  # copies
    found = records(tmp_path, frames_as_video=30)
    assert {record.sequence_id for record in found} == {folder or tmp_path.name}
    assert [record.frame_index for record in found] == [3, 4, 7, 10]
    assert [record.timestamp_s for record in found] == pytest.approx([0, 1 / 30, 4 / 30, 7 / 30])
    assert [record.frame_index for record in records(tmp_path, frames_as_video=30, fps=10)] == [3, 7, 10]


def test_photographs_that_are_not_all_numbered_are_no_video(tmp_path: Path) -> None:
    for number, name in enumerate(["1.jpg", "1_mask.jpg", "2.jpg"]):
        write_photograph(tmp_path / name, number)
    assert {record.frame_index for record in records(tmp_path, frames_as_video=30)} == {0}
    assert any("--frames-as-video" in line for line in warnings(tmp_path, frames_as_video=30))


def test_folders_that_are_no_videos_among_others_that_are_say_so(tmp_path: Path) -> None:
    for number in range(3):
        write_photograph(tmp_path / f"ann/clip/{number:04d}.jpg", number)
        write_photograph(tmp_path / f"ann/clip-2/{number:04d}.jpg", 10 + number)
    write_photograph(tmp_path / "ann/clip-2/cover.jpg", 20)
    said = " | ".join(warnings(tmp_path, frames_as_video=30))
    assert "these are no videos: ann/clip-2" in said


# ---------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "option", [["--mirrored"], ["--licence", "CC0-1.0"], ["--val-share", 0.1], ["--fps", 5], ["--frames-as-video", 9]]
)
def test_options_of_this_source_are_errors_elsewhere(
    tmp_path: Path, run_command: Callable[..., Any], option: list[Any]
) -> None:
    done = run_command("ingest", "--source", "rhd", "--root", tmp_path, "-w", tmp_path / "w", *option)
    assert done.code == 2 and f"{option[0]} is no option of the source rhd" in done.err


@pytest.mark.parametrize("option", ["--val-share=1", "--val-share=nan", "--fps=0", "--fps=inf", "--frames-as-video=-1"])
def test_a_share_or_rate_that_is_none_is_an_error(run_command: Callable[..., Any], tmp_path: Path, option: str) -> None:
    done = run_command("ingest", "--source", "folder", "--root", tmp_path, option)
    assert done.code == 2 and option.partition("=")[0] in done.err and "Traceback" not in done.err


def test_the_licence_is_that_of_the_option(tmp_path: Path) -> None:
    people(tmp_path / "d", 1)
    adapter = registered_adapters()["folder"]
    assert ingest(adapter, tmp_path / "d", Storage(tmp_path / "w")).license == "LicenseRef-own"
    options = AdapterOptions(licence="CC-BY-4.0")
    assert ingest(adapter, tmp_path / "d", Storage(tmp_path / "w"), options=options).license == "CC-BY-4.0"


def test_pictures_that_are_mirrored_say_so_to_the_annotation(tmp_path: Path) -> None:
    write_photograph(tmp_path / "a.jpg")
    write_clip(tmp_path / "b.mp4", frames=1)
    assert [record.is_mirrored for record in records(tmp_path)] == [False, False]
    found = records(tmp_path, mirrored=True)
    assert [(record.is_mirrored, record.is_upright) for record in found] == [(True, True), (True, False)]


@pytest.mark.parametrize("option", [{"mirrored": True}, {"frames_as_video": 30.0}])
def test_records_that_another_option_made_are_not_mixed_with_planned_ones(
    tmp_path: Path, option: dict[str, Any]
) -> None:
    write_photograph(tmp_path / "d/1.jpg")
    write_photograph(tmp_path / "d/2.jpg", 1)
    storage = Storage(tmp_path / "w")
    dataset = Dataset(storage)

    def again(**own: Any) -> None:
        ingest(FolderAdapter, tmp_path / "d", storage, limit=100, options=AdapterOptions(**own), force=True)

    again(**option, val_share=0)
    plan_source(dataset, "folder", 64)
    again(**option, licence="CC-BY-4.0")
    assert planned_otherwise(dataset, "folder") == []
    again()
    (name,) = option
    with pytest.raises(
        UsageError, match=f"ingested with other options: {name.replace('_', '-')} .* -> unset"
    ) as caught:
        annotate(AnnotateRequest(dataset), AnnotateSettings(masks="none"))
    assert "--overwrite annotates folder again" in caught.value.hint
