import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from handdata.api.datasets import open_dataset
from handdata.pipeline.report.page import write_report
from handdata.pipeline.shards import list_shards, read_index
from handdata.pipeline.storage import Dataset, Storage, table_to_parquet
from handdata.schemas import AnnotatedSample, EncodedImage, RunError, Split, UsageError
from handdata.schemas.sample import samples_to_table
from handdata.trainer.autoencoders import PixelAutoencoder
from handdata.trainer.conditioning import Task
from handdata.trainer.data.augment import resize
from handdata.trainer.data.candidates import STILL, VIDEO, VIEW
from handdata.trainer.data.loading import BATCHES_AHEAD, pair_batches
from handdata.trainer.data.pairs import PairDataset
from handdata.trainer.data.reading import EncodedFrame, images_of, labels_of, largest_reduction
from handdata.trainer.data.sample_index import all_of, parse_condition
from handdata.trainer.inputs import pair_conditions
from handdata.trainer.presets import AugmentationConfig, DataConfig, PairConfig
from tests.fixtures.samples import SIZE, make_older, sample, write_dataset


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Two videos by two cameras at 10 frames a second, one without time stamps, and three stills."""
    samples = [sample("wave", frame, camera, timestamp_s=frame / 10) for frame in range(20) for camera in "ab"]
    samples += [sample("untimed", frame, camera) for frame in range(0, 40, 2) for camera in "ab"]
    samples += [sample(f"still{number}", 0) for number in range(3)]
    samples += [sample("hidden", 0, flags=["unlabelled_hand"]), sample("black", 0, flags=["no_content"])]
    storage = Storage(tmp_path_factory.mktemp("workspace"))
    write_dataset(storage, samples)
    return storage


def dataset(storage: Storage, seed: int = 0, **weights: object) -> PairDataset:
    return PairDataset(
        Dataset(storage), image_size=32, split="train", pairs=PairConfig.model_validate(weights), seed=seed
    )


def rows_of(storage: Storage) -> list[dict[str, object]]:
    columns = ["sequence_id", "frame_index", "camera_id", "flags"]
    index = read_index(storage, list_shards(Dataset(storage)), columns)
    return [row for row in index.to_dicts() if not row["flags"]]


def test_each_row_is_a_target_once_an_epoch(storage: Storage) -> None:
    pairs = dataset(storage)
    for epoch in range(2):
        targets = [pairs.rows_at(epoch * len(pairs) + index)[0] for index in range(len(pairs))]
        assert sorted(targets) == list(range(83))


def test_epochs_and_seeds_have_their_own_order_and_equal_ones_agree(storage: Storage) -> None:
    def order(seed: int, epoch: int) -> list[tuple[int, int | None, int]]:
        pairs = dataset(storage, seed)
        return [pairs.rows_at(epoch * len(pairs) + index) for index in range(len(pairs))]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_references_are_another_moment_another_view_or_none(storage: Storage) -> None:
    pairs = dataset(storage, max_gap_s=0.5, max_gap_frames=6)
    rows = rows_of(storage)
    gaps: dict[str, set[int]] = {"wave": set(), "untimed": set()}
    for position in range(20 * len(pairs)):
        target, reference, kind = pairs.rows_at(position)
        if reference is None:
            assert kind == STILL
            continue
        one, other = rows[target], rows[reference]
        assert reference != target
        assert one["sequence_id"] == other["sequence_id"]
        gap = abs(one["frame_index"] - other["frame_index"])  # type: ignore[operator]
        if kind == VIDEO:
            assert one["camera_id"] == other["camera_id"]
            gaps[str(one["sequence_id"])].add(gap)
        else:
            assert kind == VIEW
            assert (gap, one["camera_id"] != other["camera_id"]) == (0, True)
    assert gaps["wave"] == {1, 2, 3, 4, 5}  # up to 0.5 s at 10 frames a second
    assert gaps["untimed"] == {2, 4, 6}  # up to 6 frames


def test_kinds_of_pairs_are_mixed_by_weight_where_a_row_has_them(storage: Storage) -> None:
    pairs = dataset(storage, video=0.5, view=0.25, still=0.25)
    rows = rows_of(storage)
    kinds: Counter[int] = Counter()
    for position in range(30 * len(pairs)):
        target, _, kind = pairs.rows_at(position)
        if str(rows[target]["sequence_id"]).startswith("still"):
            assert kind == STILL
        else:
            kinds[kind] += 1
    assert kinds[VIDEO] / kinds.total() == pytest.approx(0.5, abs=0.04)
    assert kinds[VIEW] / kinds.total() == pytest.approx(0.25, abs=0.04)


def test_rows_without_a_wanted_kind_of_pair_are_left_out(storage: Storage) -> None:
    assert len(dataset(storage, still=0.0)) == 80


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_give_the_batches_of_the_caller_alone_in_their_order(storage: Storage, threads: int) -> None:
    positions = [range(first, first + 8) for first in range(5, 53, 8)]
    alone = list(pair_batches(dataset(storage), positions))
    ahead = list(pair_batches(dataset(storage), positions, threads))
    assert len(alone) == len(ahead) == 6
    for one, other in zip(alone, ahead, strict=True):
        assert all(torch.equal(field, same) for field, same in zip(one, other, strict=True))
    single = dataset(storage)[5 + 9]
    assert all(torch.equal(field, same[1]) for field, same in zip(single, alone[1], strict=True))


def test_pairs_from_s3_are_those_of_the_disk_from_any_position(storage: Storage, s3_bucket: str) -> None:
    url = f"{s3_bucket}/pairs"
    fsspec.filesystem("s3").put(f"{storage.url()}/", url, recursive=True)
    epoch = len(dataset(storage))
    positions = [range(first, first + 8) for first in range(epoch // 2, epoch + 16, 8)]
    local = pair_batches(dataset(storage), positions)
    remote = pair_batches(dataset(Storage(url)), positions, 2)
    for one, other in zip(local, remote, strict=True):
        assert all(torch.equal(field, same) for field, same in zip(one, other, strict=True))


def test_threads_do_not_run_ahead_without_end_and_stop_with_the_caller(storage: Storage) -> None:
    drawn: list[int] = []

    def positions() -> Iterator[range]:
        for number in range(1000):
            drawn.append(number)
            yield range(4 * number, 4 * number + 4)

    batches = pair_batches(dataset(storage), positions(), 2)
    for _ in range(3):
        next(batches)
    batches.close()
    assert len(drawn) == 3 + 2 * BATCHES_AHEAD
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_an_image_that_cannot_be_decoded_stops_the_batches_with_one_line(tmp_path: Path) -> None:
    broken = {"image": EncodedImage(bytes=b"\xff\xd8\xff no image")}
    samples = [sample("wave", frame, timestamp_s=frame / 10).model_copy(update=broken) for frame in range(8)]
    write_dataset(Storage(tmp_path), samples)
    with pytest.raises(RunError, match="cannot be decoded"):
        list(pair_batches(dataset(Storage(tmp_path)), [range(8)], 2))


def test_a_still_has_an_empty_reference_condition(storage: Storage) -> None:
    pairs = dataset(storage, video=0, view=0, still=1)
    pair = pairs[0]
    assert bool(pair.reference_dropped)
    assert int(pair.task) == Task.POSE_CHANGE
    batch = type(pair)(*(field[None] for field in pair))
    target_cond, ref_cond, _ = pair_conditions(batch, PixelAutoencoder())
    assert target_cond[:, :21].abs().sum(dim=(2, 3)).min() > 0
    assert not ref_cond.any()


def test_keypoints_are_resized_with_their_image(storage: Storage) -> None:
    pairs = dataset(storage)
    row = pairs.find("synthetic/train/wave/000003-a")
    frame, stored = pairs.frame(row), sample("wave", 3, "a", timestamp_s=0.3)
    np.testing.assert_allclose(frame.keypoints[:21], (stored.keypoints_2d[:21] + 0.5) * (32 / SIZE) - 0.5, atol=1e-5)


def test_an_unknown_sample_is_named(storage: Storage) -> None:
    with pytest.raises(UsageError, match="no sample nobody"):
        dataset(storage).find("nobody")


def test_padding_outside_the_image_has_no_weight(tmp_path: Path) -> None:
    write_dataset(Storage(tmp_path), [sample("edge", 0, pad_ltrb=(6.0, 0.0, 0.0, 11.2))])
    pairs = PairDataset(Dataset(Storage(tmp_path)), image_size=SIZE, split="train")
    weight = pairs[0].target_weight[0]
    assert not weight[:, :6].any()
    assert not weight[-12:].any()
    assert (weight[:-12, 6:] == 255).all()


def test_augmented_pairs_are_the_same_for_the_same_position(storage: Storage) -> None:
    def made() -> PairDataset:
        return PairDataset(Dataset(storage), image_size=32, split="train", augmentation=AugmentationConfig(), seed=3)

    first, again = made()[17], made()[17]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first.target_image, made()[18].target_image)


def test_a_split_without_usable_rows_is_an_error(tmp_path: Path) -> None:
    write_dataset(Storage(tmp_path), [sample("hidden", 0, flags=["unlabelled_hand"])])
    with pytest.raises(UsageError, match="no usable pairs"):
        PairDataset(Dataset(Storage(tmp_path)), image_size=32, split="train")


def gaps_drawn(storage: Storage, **settings: object) -> np.ndarray:
    """Return the gaps (seconds) of many pairs whose target is the middle frame of a long video."""
    pairs = PairDataset(
        Dataset(storage),
        image_size=8,
        split="train",
        pairs=PairConfig.model_validate({"video": 1, "view": 0, "still": 0, **settings}),
    )
    rng = np.random.default_rng(0)
    target = pairs.find("synthetic/train/long/000100-0")
    drawn = [pairs._candidates.draw(target, rng)[1] for _ in range(4000)]
    return np.abs(np.array(drawn) - target) / 10


@pytest.fixture(scope="module")
def long_video(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = Storage(tmp_path_factory.mktemp("long"))
    write_dataset(storage, [sample("long", frame, timestamp_s=frame / 10, size=8) for frame in range(201)])
    return storage


@pytest.mark.parametrize(
    ("settings", "expected_mean_s"),
    [
        ({"gap": "uniform"}, 2.55),
        ({"gap": "log-uniform"}, 50 * 0.1 / sum(1 / step for step in range(1, 51))),
        ({"gap": "exponential", "mean_gap": 0.1}, 0.55),
    ],
)
def test_gaps_follow_the_configured_distribution(
    long_video: Storage, settings: dict[str, object], expected_mean_s: float
) -> None:
    gaps = gaps_drawn(long_video, max_gap_s=5.0, **settings)
    assert gaps.min() >= 0.1 - 1e-9
    assert gaps.max() <= 5.0 + 1e-9
    assert gaps.mean() == pytest.approx(expected_mean_s, rel=0.06)


def test_pairs_agree_on_which_hands_are_known(tmp_path: Path) -> None:
    """Frames in which nothing is known of the left hand are not paired with frames that know it."""
    known = [("labelled", "labelled"), ("labelled", "absent"), ("labelled", "unknown")]
    samples = [
        sample(
            "mixed",
            frame,
            camera,
            timestamp_s=frame / 10,
            hand_state=known[frame % 3],
            keypoints_origin=("dataset", "dataset" if frame % 3 == 0 or frame == 2 else None),
        )
        for frame in range(12)
        for camera in "ab"
    ]
    storage = Storage(tmp_path)
    write_dataset(storage, samples)
    pairs = dataset(storage, still=0)
    met = set()
    for position in range(20 * len(pairs)):
        target, reference, _ = pairs.rows_at(position)
        assert reference is not None
        # Frame 2 says nothing of the left hand, but the detector found it.
        unknown = [row // 2 % 3 == 2 and row // 2 != 2 for row in (target, reference)]
        assert unknown[0] == unknown[1]
        met.add((unknown[0], target // 2 % 3 == reference // 2 % 3))
    assert met == {(False, False), (False, True), (True, True)}


def test_hands_are_not_swapped_where_nothing_is_known_of_one(tmp_path: Path) -> None:
    always = AugmentationConfig(max_gamma=1, flip=0, hand_swap=1, smallest_crop=1)
    states = {"known": ("labelled", "absent"), "one": ("labelled", "unknown"), "other": ("unknown", "labelled")}
    samples = []
    for sequence, state in states.items():
        origin = tuple("dataset" if side == "labelled" else None for side in state)
        for frame in range(3):
            row = sample(sequence, frame, timestamp_s=frame / 10, hand_state=state, keypoints_origin=origin)
            rows = np.roll(row.keypoints_2d, 21 * (sequence == "other"), axis=0)
            samples.append(row.model_copy(update={"keypoints_2d": rows, "keypoints_valid": rows.any(axis=1)}))
    write_dataset(Storage(tmp_path), samples)
    pairs = PairDataset(
        Dataset(Storage(tmp_path)),
        image_size=SIZE,
        split="train",
        pairs=PairConfig(video=1, view=0, still=0),
        augmentation=always,
    )
    for position in range(len(pairs)):
        pair = pairs[position]
        sequence = pairs.sequence_id(pairs.rows_at(position)[0])
        swapped = not torch.equal(pair.target_valid, pair.reference_valid)
        assert swapped == (sequence == "known"), sequence


def test_rows_are_chosen_by_an_expression_over_their_columns(storage: Storage) -> None:
    def rows(where: str) -> int:
        data = DataConfig(where=where)
        return len(PairDataset(Dataset(storage), image_size=32, split="train", data=data))

    assert rows("sequence_id = 'wave' AND frame_index >= 10") == 20
    assert rows("camera_id IN ('b')") == 40
    assert rows("timestamp_s < 0.5") == 10  # null is not true
    assert rows("keypoints_score[1] > 0.5 AND NOT array_contains(flags, 'blurry')") == 83


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("sharpness >", "no SQL expression"),
        ("sharpnes > 3", "no column 'sharpnes'"),
        ("hand_mask IS NOT NULL", "no column 'hand_mask'"),
        ("sharpness", "not true or false"),
        ("flags > 3", "does not fit the columns"),
        ("sharpness > avg(sharpness)", "other rows by AVG;"),
        ("count(*) > 3", "other rows by COUNT;"),
        ("bool_or(sharpness > 3)", "other rows by BOOL_OR;"),
        ("row_number() OVER (ORDER BY sharpness) < 5", "other rows by ROW_NUMBER, OVER;"),
        ("rank() < 3", "other rows by RANK;"),
        ("first(source) = 'a'", "other rows by FIRST;"),
        ("unnest(flags) = 'a'", "other rows by UNNEST;"),
        ("sharpness > (SELECT max(sharpness) FROM self)", "other rows by SELECT, MAX;"),
        ("timestamp_s > 0 AND now() > '2026-01-01'", r"asks for the time by NOW"),
        ("CURRENT_DATE > DATE '2026-01-01'", r"asks for the time by CURRENT_DATE"),
        ("current_timestamp IS NOT NULL", r"asks for the time by CURRENT_TIMESTAMP"),
        ("extract(year FROM NOW ()) > 2000", r"asks for the time by NOW"),
        ("columns('sharp.*') > 3", "does not name its columns"),
        ("random() < 0.5", "no SQL expression"),
    ],
)
def test_a_wrong_expression_is_an_error_of_one_line(storage: Storage, where: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        PairDataset(Dataset(storage), image_size=32, split="train", data=DataConfig(where=where))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "where",
    [
        "array_mean(keypoints_score) > 0 AND 'blurry' != ANY(flags)",
        "array_reverse(flags)[1] = 'max (flags)' OR greatest(sharpness, 3) > 2 OR left(source, 2) = 'su'",
        "sequence_id IN ('count(*)', 'a') OR CASE WHEN sharpness > 1 THEN TRUE ELSE FALSE END",
        "sequence_id != 'now()' AND source != 'current_date'",
        all_of("sharpness > 1 -- sharp", "source = 'synthetic'"),
    ],
)
def test_functions_of_one_row_are_no_aggregates(where: str) -> None:
    parse_condition(where)


def test_flagged_rows_are_not_used_unless_asked_for(storage: Storage) -> None:
    data = DataConfig(unlabelled_hands=True)
    assert len(PairDataset(Dataset(storage), image_size=32, split="train", data=data)) == len(dataset(storage)) + 1


def many_sources() -> list[AnnotatedSample]:
    """A source of 30 stills, one of 10, and one that repacks frames of the first."""

    def row(source: str, split: Split, number: int, **changes: object) -> AnnotatedSample:
        name = f"{source}/{split}/{number}"
        ids = {"sample_id": name, "record_id": name, "source": source}
        return sample(f"s{number}", 0, split=split, **ids, **changes)

    rows = [row("dart", "train", number) for number in range(30)]
    rows += [row("dart", "test", number) for number in range(30, 34)]
    rows += [row("rhd", "train", number, license="MIT") for number in range(10)]
    # 20 to 29 are shown by dart, 30 to 33 are dart's test frames, 34 to 36 nobody else's.
    for number in range(20, 37):
        split = "train" if number < 30 or number > 33 else "test"
        rows.append(row("foundhand10m", "train", number, origin_id=f"dart/{split}/{number}"))
    rows.append(row("foundhand10m", "train", 136, origin_id="dart/train/36"))  # packed twice
    return rows


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    storage = Storage(tmp_path_factory.mktemp("sources"))
    write_dataset(storage, many_sources())
    return storage


def shown(pairs: PairDataset) -> set[str]:
    return {pairs.sequence_id(pairs.rows_at(position)[0]) for position in range(len(pairs))}


def test_no_physical_frame_is_trained_twice_or_across_splits(sources: Storage) -> None:
    pairs = dataset(sources)
    assert len(pairs) == 30 + 10 + 3
    with pytest.raises(UsageError, match="no sample foundhand10m/train/25"):
        pairs.find("foundhand10m/train/25")
    with pytest.raises(UsageError, match="no sample"):
        pairs.find("foundhand10m/train/31")
    pairs.find("foundhand10m/train/36")
    with pytest.raises(UsageError, match="no sample"):
        pairs.find("foundhand10m/train/136")


def test_licences_choose_rows(sources: Storage) -> None:
    pairs = PairDataset(Dataset(sources), image_size=32, split="train", data=DataConfig(licences=("MIT", "CC0")))
    assert shown(pairs) == {f"s{number}" for number in range(10)}
    with pytest.raises(UsageError, match="no usable pairs"):
        PairDataset(Dataset(sources), image_size=32, split="train", data=DataConfig(licences=("CC0",)))


def test_sources_and_kinds_are_mixed_by_weight_and_temperature(sources: Storage) -> None:
    by_size = dataset(sources)
    assert by_size.effective_epochs(len(by_size)) == {"dart": 1, "foundhand10m": 1, "rhd": 1}
    assert {by_size.rows_at(position)[2] for position in range(len(by_size))} == {STILL}
    pairs = dataset(sources, temperature=1e9, sources={"rhd": {"weight": 2}, "foundhand10m": {"weight": 0}})
    epoch = len(pairs)
    assert epoch == 40
    drawn = Counter(pairs.sequence_id(pairs.rows_at(position)[0]) for position in range(epoch))
    assert pairs.effective_epochs(epoch) == {"dart": pytest.approx(13 / 30), "rhd": pytest.approx(27 / 10)}
    assert sum(pairs.effective_epochs(epoch).values()) > 0
    assert len(drawn) <= 30


def test_kinds_of_pairs_have_their_own_weights_in_a_source(storage: Storage) -> None:
    pairs = dataset(storage, sources={"synthetic": {"video": 0, "view": 1, "still": 0}})
    assert {pairs.rows_at(position)[2] for position in range(len(pairs))} == {VIEW}


def test_each_source_draws_kinds_of_pairs_by_its_own_weights(tmp_path: Path) -> None:
    def row(source: str, frame: int, camera: str) -> AnnotatedSample:
        name = f"{source}/{frame}-{camera}"
        ids = {"sample_id": name, "record_id": name, "source": source}
        return sample(source, frame, camera, timestamp_s=frame / 10, **ids)

    storage = Storage(tmp_path)
    write_dataset(
        storage, [row(source, frame, camera) for source in ("dart", "rhd") for frame in range(20) for camera in "ab"]
    )
    weights = {"dart": {"video": 3, "view": 1, "still": 0}, "rhd": {"video": 1, "view": 2, "still": 2}}
    pairs = dataset(storage, sources=weights)
    kinds: dict[str, Counter[int]] = {source: Counter() for source in weights}
    for position in range(60 * len(pairs)):
        target, _, kind = pairs.rows_at(position)
        kinds[pairs.sequence_id(target)][kind] += 1
    for source, weight in weights.items():
        assert kinds[source].total() == 60 * len(pairs) / 2
        for kind, name in ((VIDEO, "video"), (VIEW, "view"), (STILL, "still")):
            share = kinds[source][kind] / kinds[source].total()
            assert share == pytest.approx(weight[name] / sum(weight.values()), abs=0.04)
        assert (kinds[source][STILL] == 0) == (weight["still"] == 0)


def test_a_weight_for_a_source_that_is_not_there_is_an_error(storage: Storage) -> None:
    with pytest.raises(UsageError, match="names hagrid"):
        dataset(storage, sources={"hagrid": {"weight": 2}})


def test_only_the_bytes_of_chosen_frames_are_read(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = dataset(storage)
    expected = [pairs[position] for position in range(6)]
    read: list[int] = []
    ranges = Storage.read_ranges

    def counted(self: Storage, wanted: list[tuple[str, int, int]]) -> list[bytes]:
        read.extend(length for _, _, length in wanted)
        return ranges(self, wanted)

    monkeypatch.setattr(Storage, "read_ranges", counted)
    again = dataset(storage).batch(range(6))
    for number, one in enumerate(expected):
        assert all(torch.equal(field, same[number]) for field, same in zip(one, again, strict=True))
    stored = 0
    for shard in list_shards(Dataset(storage), splits=["train"]):
        with storage.open_parquet(shard.name) as file:
            groups = range(file.metadata.num_row_groups)
            stored += sum(file.metadata.row_group(group).total_byte_size for group in groups)
    assert 0 < sum(read) < stored / 5


def test_shards_that_do_not_say_where_their_images_lie_are_read_too(storage: Storage, tmp_path: Path) -> None:
    """Rewritten by other software, a shard keeps its rows and loses our metadata."""
    shutil.copytree(storage.url(), tmp_path, dirs_exist_ok=True)
    other = Storage(tmp_path)
    for shard in list_shards(Dataset(other)):
        table = other.read_parquet(shard.name)
        pq.write_table(table, tmp_path / shard.name, row_group_size=10)
    for position in range(0, 80, 7):
        one, same = dataset(storage)[position], dataset(other)[position]
        assert all(torch.equal(field, copy) for field, copy in zip(one, same, strict=True))


@pytest.mark.parametrize(("size", "smallest_crop", "reduction"), [
    (256, 1.0, 2), (256, 0.85, 2), (256, 0.8, 1), (257, 1.0, 1), (64, 1.0, 8), (32, 0.9, 8), (512, 1.0, 1),
])  # fmt: skip
def test_images_are_decoded_no_larger_than_training_needs(size: int, smallest_crop: float, reduction: int) -> None:
    assert largest_reduction(512, size, smallest_crop) == reduction


def test_reduced_decoding_keeps_images_and_labels_in_place(tmp_path: Path) -> None:
    made = sample("large", 0, size=256, pad_ltrb=(10.0, 0.0, 0.0, 20.0))
    bgr = cv2.imdecode(np.frombuffer(made.image.bytes, np.uint8), cv2.IMREAD_COLOR)
    jpeg = EncodedImage(bytes=cv2.imencode(".jpg", bgr)[1].tobytes())
    made = made.model_copy(update={"image": jpeg})
    table = samples_to_table([made])
    image, mask = images_of(table, 0)
    labels = labels_of(table)
    encoded = EncodedFrame(image, mask, labels.keypoints[0], labels.valid[0], labels.pad_ltrb[0])
    small, full = encoded.decode(4), resize(encoded.decode(), 64)
    assert small.image.shape == (64, 64, 3)
    assert np.abs(small.image.astype(int) - full.image).mean() < 2
    assert np.abs(small.mask.astype(int) - full.mask).mean() < 2
    np.testing.assert_allclose(small.keypoints[:21], full.keypoints[:21], atol=1e-4)
    assert not small.known[:, :3].any()
    assert not small.known[-5:].any()


def jpeg_frame(size: int = 64) -> EncodedFrame:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    resized = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_CUBIC)
    made = sample("still", 0, size=size)
    jpeg = EncodedImage(bytes=cv2.imencode(".jpg", resized)[1].tobytes())
    table = samples_to_table([made.model_copy(update={"image": jpeg})])
    labels = labels_of(table)
    return EncodedFrame(*images_of(table, 0), labels.keypoints[0], labels.valid[0], labels.pad_ltrb[0])


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_an_image_is_decoded_into_its_place_as_opencv_would_decode_it(reduction: int) -> None:
    encoded, side = jpeg_frame(), 64 // reduction
    place = np.empty((3, side, side, 3), np.uint8)
    frame = encoded.decode(reduction, place[1])
    assert np.may_share_memory(frame.image, place)
    reduced = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
    flag = reduced.get(reduction, cv2.IMREAD_REDUCED_COLOR_8)
    expected = cv2.cvtColor(cv2.imdecode(np.frombuffer(encoded.image, np.uint8), flag), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(place[1], expected)
    np.testing.assert_array_equal(encoded.decode(reduction).image, expected)
    other_size = np.zeros((side + 1, side + 1, 3), np.uint8)
    np.testing.assert_array_equal(encoded.decode(reduction, other_size).image, expected)
    assert not other_size.any()


def test_an_image_whose_end_is_missing_is_not_shown_half_grey() -> None:
    whole = jpeg_frame()
    with pytest.raises(RunError, match="cannot be decoded"):
        replace(whole, image=whole.image[:-40]).decode()


def test_an_image_that_announces_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handdata.trainer.data.reading._MOST_PIXELS", 64 * 64 - 1)
    with pytest.raises(RunError, match="cannot be decoded"):
        jpeg_frame().decode()


def test_rows_that_were_dropped_meanwhile_are_not_mistaken_for_others(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_dataset(storage, [sample("wave", frame, timestamp_s=frame / 10) for frame in range(8)])
    pairs = dataset(storage)
    (shard,) = list_shards(Dataset(storage), splits=["train"])
    rows = storage.read_parquet(shard.name)
    storage.write_bytes(shard.name, table_to_parquet(rows.slice(1), 4))
    with pytest.raises(RunError, match="has changed since this run began") as caught:
        pairs.batch(range(8))
    assert "--resume" in caught.value.hint
    assert len(dataset(storage).batch(range(7)).task) == 7


def test_frames_that_show_nothing_are_left_out_unless_the_settings_take_them(tmp_path: Path) -> None:
    write_dataset(Storage(tmp_path), [sample("lit", 0), sample("black", 0, flags=["no_content"])])
    for data, rows in ((DataConfig(), 1), (DataConfig(no_content=True), 2)):
        assert len(PairDataset(Dataset(Storage(tmp_path)), image_size=32, split="train", data=data)) == rows


def test_hands_of_unknown_sides_are_left_out_unless_the_settings_take_them(tmp_path: Path) -> None:
    write_dataset(Storage(tmp_path), [sample("known", 0), sample("unknown", 0, flags=["side_unknown"])])
    for data, rows in ((DataConfig(), 1), (DataConfig(side_unknown=True), 2)):
        assert len(PairDataset(Dataset(Storage(tmp_path)), image_size=32, split="train", data=data)) == rows
    assert len(open_dataset(tmp_path)) == 2


def test_shards_of_the_first_version_have_rows_without_contrast(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_dataset(storage, [sample("wave", frame) for frame in range(4)])
    make_older(storage)
    for where, rows in ((None, 4), ("contrast IS NULL", 4), ("contrast IS NULL OR contrast > 5", 4)):
        data = DataConfig(where=where)
        pairs = PairDataset(Dataset(storage), image_size=32, split="train", data=data)
        assert len(pairs) == rows
    assert read_index(storage, list_shards(Dataset(storage)), ["contrast"])["contrast"].null_count() == 4
    write_report(Dataset(storage), tmp_path / "report")
