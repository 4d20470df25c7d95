"""What a run does with images that cannot be read, gradients that are no numbers, and checkpoints that are damaged."""

import json
import math
import shutil
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import simplejpeg
import torch
from PIL import Image

from handdata.pipeline.shards import list_shards
from handdata.pipeline.storage import Dataset, Storage, blob_ranges
from handdata.schemas import DamagedWeightsError, EncodedImage, RunError, StorageError, UnreadableImageError, UsageError
from handdata.trainer.autoencoders import PixelAutoencoder
from handdata.trainer.checkpoints import load_for_sampling, validated_loss
from handdata.trainer.data.latents import encode
from handdata.trainer.data.pairs import MOST_IN_PLACE, PairDataset, open_pairs
from handdata.trainer.data.validation import validation_batches
from handdata.trainer.history import LossWatch, ReadingWatch, RunHistory
from handdata.trainer.loop import train
from handdata.trainer.presets import AugmentationConfig, AutoencoderConfig, DataConfig, MonitoringConfig, Preset
from handdata.trainer.trainer import Trainer
from tests.fixtures.jpegs import encoded
from tests.fixtures.samples import SIZE, sample, write_dataset
from tests.fixtures.training import SMALL, changed, train_by_gloo, weights, write_two_sequences

PNG = sample("wave", 0).image.bytes
UNREADABLE = {
    "empty": b"",
    "no image": b"\xff\xd8\xff no image",
    "cut off": PNG[:-20],
    "one bit wrong": PNG[:90] + bytes([PNG[90] ^ 1]) + PNG[91:],
    "another size": sample("wave", 0, size=40).image.bytes,
}


def every(**monitoring: Any) -> Preset:
    return SMALL.model_copy(update={"monitoring": MonitoringConfig(**monitoring)})


def metrics(storage: Storage, run: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in storage.read_bytes(f"runs/{run}/metrics.jsonl").splitlines()]


def same(first: str, second: str) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(tmp_path / "workspace")
    write_two_sequences(storage)
    return storage


def write_with_unreadable(storage: Storage, column: str, data: bytes, count: int = 1) -> None:
    """Write a sequence of 12 frames, the first ``count`` of which hold an image or mask that cannot be read."""
    samples = [sample("wave", frame, timestamp_s=frame / 10) for frame in range(12)]
    broken = [row.model_copy(update={column: EncodedImage(bytes=data)}) for row in samples[:count]]
    write_dataset(storage, [*broken, *samples[count:]])


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        *(("image", kind) for kind in UNREADABLE),
        # A mask of another size is resized, and one without bytes is none.
        *(("hand_mask", kind) for kind in UNREADABLE if kind not in ("another size", "empty")),
    ],
)
def test_an_unreadable_image_is_named_and_another_pair_takes_its_place(tmp_path: Path, column: str, kind: str) -> None:
    storage = Storage(tmp_path)
    write_with_unreadable(storage, column, UNREADABLE[kind])

    def pairs() -> PairDataset:
        return PairDataset(Dataset(storage), image_size=32, split="train")

    dataset = pairs()
    with pytest.raises(UnreadableImageError, match=r"unit-train.*\.parquet, row 0: the"):
        dataset.frame(0)
    positions = range(24)
    shows_it = [position for position in positions if 0 in dataset.rows_at(position)[:2]]
    whole = dataset.batch(positions)
    messages = dataset.take_unreadable(24)
    assert shows_it
    assert all(f"{tmp_path}" in message and "row 0: the" in message for message in messages)
    if column == "image":
        assert len(messages) >= len(shows_it)
    assert dataset.take_unreadable(24) == []
    parts = [pairs().batch(range(first, first + 4)) for first in range(0, 24, 4)]
    for name, field in zip(whole._fields, whole, strict=True):
        assert torch.equal(field, torch.cat([getattr(part, name) for part in parts]))


def flip(path: Path, column: str, place: int) -> None:
    """Flip a byte of the first value of a binary column."""
    with pq.ParquetFile(path) as file:
        ranges = blob_ranges(file, column)
    assert ranges is not None
    data = bytearray(path.read_bytes())
    data[int(ranges[0][0]) + place] ^= 0x10
    path.write_bytes(data)


def test_a_flipped_byte_of_a_jpeg_that_decodes_all_the_same_is_noticed(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    jpegs = [encoded(Image.effect_noise((SIZE, SIZE), 20 + frame).convert("RGB")) for frame in range(4)]
    frames = [
        sample("wave", frame, timestamp_s=frame / 10).model_copy(update={"image": EncodedImage(bytes=jpeg)})
        for frame, jpeg in enumerate(jpegs)
    ]
    write_dataset(storage, frames)
    jpeg = jpegs[0]
    (shard,) = list_shards(Dataset(storage))
    whole = (tmp_path / shard.name).read_bytes()
    decoded = 0
    for place in range(len(jpeg) // 2, len(jpeg) - 2, 37):
        (tmp_path / shard.name).write_bytes(whole)
        flip(tmp_path / shard.name, "image", place)
        changed = bytearray(jpeg)
        changed[place] ^= 0x10
        with suppress(ValueError):
            simplejpeg.decode_jpeg(bytes(changed))
            decoded += 1
        with pytest.raises(UnreadableImageError, match=r"\.parquet, row 0: the image is damaged: its checksum differs"):
            PairDataset(Dataset(storage), image_size=32, split="train").frame(0)
    assert decoded


def test_a_run_counts_pairs_that_cannot_be_read_and_says_which(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_with_unreadable(storage, "image", b"no image")
    notes: list[str] = []
    first = train(SMALL, storage, "run", steps=3, device="cpu", on_note=notes.append)
    assert 0 < first.unreadable <= 10
    assert [line["unreadable"] for line in metrics(storage, "run") if "loss" in line] == [first.unreadable]
    assert any("row 0: the image cannot be decoded" in note and "another pair took its place" in note for note in notes)
    parts = train(changed(SMALL, micro_batch_size=4), storage, "parts", steps=2, device="cpu")
    resumed = train(SMALL, storage, "parts", steps=3, resume=True, device="cpu")
    assert (resumed.unreadable, parts.unreadable <= first.unreadable) == (first.unreadable, True)
    assert same(first.checkpoint_url, resumed.checkpoint_url)


@pytest.mark.soak
@pytest.mark.parametrize("processes", [2, 3])
def test_pairs_that_cannot_be_read_are_replaced_alike_in_several_processes(tmp_path: Path, processes: int) -> None:
    storage = Storage(tmp_path)
    write_two_sequences(storage, unreadable=1)
    preset = changed(every(checkpoint_every=2), batch_size=6)
    alone = train(preset, storage, "alone", steps=6, device="cpu")
    train_by_gloo(preset, storage, "together", processes, steps=3)
    train_by_gloo(preset, storage, "together", processes, steps=6)
    counts = [metrics(storage, run)[-1] for run in ("alone", "together")]
    assert alone.unreadable > 0
    assert [line["unreadable"] for line in metrics(storage, "together") if "loss" in line][-1] == alone.unreadable
    assert counts[1]["validation_loss"] == pytest.approx(counts[0]["validation_loss"], rel=1e-4)
    expected, found = weights(alone.checkpoint_url), weights(storage.url("runs/together/checkpoints/step-00000006"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.soak
def test_gradients_that_are_no_numbers_in_one_process_skip_the_step_in_all(storage: Storage) -> None:
    preset = changed(every(checkpoint_every=2), micro_batch_size=1)
    train_by_gloo(preset, storage, "run", 2, steps=3, spoilt=[2, 3])
    train_by_gloo(preset, storage, "run", 2, steps=6, spoilt=[5])
    assert [line["skipped"] for line in metrics(storage, "run") if "loss" in line] == [2, 3]
    found = weights(storage.url("runs/run/checkpoints/step-00000006"))
    assert all(tensor.isfinite().all() for tensor in found.values())


def test_a_dataset_without_readable_images_stops_a_run_with_one_of_them(tmp_path: Path) -> None:
    write_with_unreadable(Storage(tmp_path), "image", b"no image", count=12)
    dataset = PairDataset(Dataset(Storage(tmp_path)), image_size=32, split="train")
    with pytest.raises(UnreadableImageError, match=r"\.parquet, row \d+: the image cannot be decoded"):
        dataset.batch([0])
    assert len(dataset.take_unreadable(1)) == MOST_IN_PLACE + 1


def test_more_than_ten_and_more_than_one_in_a_thousand_unreadable_pairs_stop_a_run() -> None:
    watch = ReadingWatch()
    watch.add(["a, row 1"] * 10, pairs=10)
    watch.add(["b, row 2"], pairs=11_000)
    with pytest.raises(RunError, match=r"12 of 11999 pairs .* could not be read, the last one of c, row 3"):
        watch.add(["c, row 3"], pairs=11_999)


def test_an_image_that_was_unreadable_when_latents_were_stored_is_passed_over(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    write_with_unreadable(storage, "image", b"no image")
    summary = encode(Dataset(storage), PixelAutoencoder(), AutoencoderConfig(kind="pixel"), 32, variants=2)
    assert len(summary.unreadable) == 1
    assert "row 0: the image cannot be decoded" in summary.unreadable[0]
    preset = SMALL.model_copy(update={"data": DataConfig(latents=True)})
    found = train(preset, storage, "run", steps=3, device="cpu")
    assert found.unreadable > 0
    assert found.loss is not None
    assert math.isfinite(found.loss)


def spoil(monkeypatch: pytest.MonkeyPatch, steps: Sequence[int], value: float = math.nan) -> None:
    """Let the loss of some steps have a gradient that is not finite; its own value stays."""
    kept = Trainer.losses

    def losses(trainer: Trainer, *arguments: Any, **options: Any) -> torch.Tensor:
        found = kept(trainer, *arguments, **options)
        if trainer.step + 1 in steps and options.get("drops"):
            found.register_hook(lambda gradient: gradient * value)
        return found

    monkeypatch.setattr(Trainer, "losses", losses)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    spoil(monkeypatch, [1, 3, 4], value)
    straight = train(SMALL, storage, "straight", steps=6, device="cpu")
    assert straight.skipped == 3
    assert [line["skipped"] for line in metrics(storage, "straight") if "loss" in line] == [3]
    assert all(tensor.isfinite().all() for tensor in weights(straight.checkpoint_url).values())
    train(SMALL, storage, "halted", steps=3, device="cpu")
    resumed = train(SMALL, storage, "halted", steps=6, resume=True, device="cpu")
    assert resumed.skipped == 3
    assert same(straight.checkpoint_url, resumed.checkpoint_url)


def test_float16s_scale_is_halved_by_skipped_steps_and_goes_on_from_a_checkpoint(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scaled() -> Trainer:
        trainer = Trainer(changed(SMALL, precision="float16"), "cpu")
        monkeypatch.setattr(trainer, "_scaler", torch.amp.GradScaler("cpu", init_scale=1024))
        return trainer

    spoil(monkeypatch, [1, 3, 4], math.inf)
    batch = open_pairs(storage, SMALL, "train").batch(range(4))
    trainer = scaled()
    scales = []
    for _ in range(5):
        trainer.training_step([batch])
        scales.append(trainer._scaler.get_scale())
    assert (scales, trainer.skipped) == ([512, 512, 256, 128, 128], 3)
    resumed = scaled()
    resumed.load(trainer.save(str(tmp_path / "run")))
    assert resumed._scaler.get_scale() == 128


def test_ten_such_steps_in_a_row_stop_a_run_and_leave_the_checkpoints_before_them(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, range(4, 40))
    preset = every(checkpoint_every=1, keep_last=2)
    with pytest.raises(RunError, match=r"at step 13; the gradients of 10 steps in a row are not finite.*step-00000003"):
        train(preset, storage, "run", steps=40, device="cpu")
    assert storage.list_folders("runs/run/checkpoints") == ["step-00000002", "step-00000003"]


def test_steps_in_a_row_are_counted_over_a_resume(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, range(2, 40))
    train(SMALL, storage, "run", steps=6, device="cpu")
    with pytest.raises(RunError, match="at step 11; the gradients of 10 steps in a row"):
        train(SMALL, storage, "run", steps=40, resume=True, device="cpu")


def test_weights_that_are_not_finite_end_a_run_and_are_never_saved(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="step 1 has left weights that are not finite"):
        train(changed(SMALL, learning_rate=1e39, warmup_steps=0), storage, "run", steps=2, device="cpu")
    trainer = Trainer(SMALL, "cpu")
    with torch.no_grad():
        next(trainer.averaged_model.parameters()).view(-1)[0] = math.nan
    with pytest.raises(DamagedWeightsError, match=r"step 0 of .* holds numbers that are not finite"):
        trainer.save(str(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


def test_a_resumed_run_remembers_its_lowest_loss() -> None:
    watch = LossWatch(divergence=5)
    for step in range(150):
        watch.add(step, 0.1, None)
    resumed = LossWatch(5, json.loads(json.dumps(watch.state())))
    with pytest.raises(RunError, match="training diverges"):
        for step in range(150, 300):
            resumed.add(step, 1.0, None)


def poison(file: Path) -> None:
    """Put a NaN into a file of weights, whose size stays, as if it had been written so."""
    tensors = safetensors.torch.load_file(file)
    with safetensors.safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = math.nan
    safetensors.torch.save_file(tensors, file, metadata)
    marker = json.loads((file.parent / "complete.json").read_text())
    marker["crc32"][file.name] = zlib.crc32(file.read_bytes())
    (file.parent / "complete.json").write_text(json.dumps(marker))


def overwrite(file: Path) -> None:
    """Overwrite a file with zeros, whose size stays."""
    file.write_bytes(bytes(file.stat().st_size))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", poison),
        ("ema.safetensors", poison),
        ("model.safetensors", overwrite),
        ("state.pt", overwrite),
        ("state.pt", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_counts_no_more(
    storage: Storage, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    train(every(checkpoint_every=1), storage, "run", steps=2, device="cpu")
    checkpoints = tmp_path / "workspace" / "runs" / "run" / "checkpoints"
    damage(checkpoints / "step-00000002" / name)
    if name == "ema.safetensors":
        with pytest.raises(DamagedWeightsError, match="holds numbers that are not finite"):
            load_for_sampling(storage.url("runs/run"))
    notes: list[str] = []
    resumed = train(every(keep_last=1), storage, "run", steps=3, resume=True, device="cpu", on_note=notes.append)
    assert any("step-00000002" in note for note in notes)
    straight = train(SMALL, storage, "straight", steps=3, device="cpu")
    assert same(straight.checkpoint_url, resumed.checkpoint_url)
    shutil.rmtree(checkpoints / "step-00000002", ignore_errors=True)
    for folder in checkpoints.iterdir():
        overwrite(folder / "model.safetensors")
    with pytest.raises(DamagedWeightsError, match=r"step-00000003.*model\.safetensors is damaged"):
        train(SMALL, storage, "run", steps=4, resume=True, device="cpu")


def test_a_checkpoint_is_there_before_its_step_is_validated(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Trainer.validate

    def fail(*_: object) -> None:
        raise MemoryError("the GPU's")

    monkeypatch.setattr(Trainer, "validate", fail)
    with pytest.raises(MemoryError):
        train(SMALL, storage, "run", steps=2, device="cpu")
    url = storage.url("runs/run/checkpoints/step-00000002")
    assert validated_loss(url) is None
    monkeypatch.setattr(Trainer, "validate", kept)
    resumed = train(SMALL, storage, "run", steps=2, resume=True, device="cpu")
    assert resumed.validation is not None
    assert resumed.validation.true_loss == validated_loss(url)
    straight = train(SMALL, storage, "straight", steps=2, device="cpu")
    assert straight.validation == resumed.validation


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("micro", [None, 1, 2])
def test_validation_goes_through_the_network_in_micro_batches_with_the_same_result(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, micro: int | None, processes: int
) -> None:
    trainer = Trainer(SMALL, "cpu")
    whole = trainer.validate(validation_batches(storage, SMALL, None))
    preset = changed(SMALL, micro_batch_size=micro)
    parts = Trainer(preset, "cpu")
    monkeypatch.setattr(parts, "process", type(parts.process)(0, processes))
    sizes: list[int] = []
    kept = parts.losses
    monkeypatch.setattr(
        parts, "losses", lambda model, batch, *rest: (sizes.append(len(batch.task)), kept(model, batch, *rest))[1]
    )
    found = parts.validate(validation_batches(storage, preset, None))
    assert max(sizes) == (micro or 4 // processes)
    assert found.true_loss == pytest.approx(whole.true_loss, rel=1e-6)
    assert found.permuted_loss == pytest.approx(whole.permuted_loss, rel=1e-6)


def test_a_batch_of_one_pair_is_validated_and_a_split_of_one_is_said_not_to_be(
    storage: Storage, tmp_path: Path
) -> None:
    alone = train(changed(SMALL, batch_size=1), storage, "alone", steps=1, device="cpu")
    assert alone.validation is not None
    lonely = Storage(tmp_path / "lonely")
    write_dataset(lonely, [*(sample("wave", frame) for frame in range(4)), sample("held-out", 0, split="val")])
    notes: list[str] = []
    summary = train(SMALL, lonely, "run", steps=1, device="cpu", on_note=notes.append)
    assert summary.validation is None
    assert [note for note in notes if "the run is not validated" in note and "one usable pair in split val" in note]


def test_validation_shards_without_latents_are_an_error_before_training(storage: Storage, tmp_path: Path) -> None:
    encode(Dataset(storage), PixelAutoencoder(), AutoencoderConfig(kind="pixel"), 32, augmentation=AugmentationConfig())
    for file in (tmp_path / "workspace").glob("dataset/latents/*/source=synthetic/split=val/*.parquet"):
        file.unlink()
    preset = SMALL.model_copy(update={"data": DataConfig(latents=True)})
    with pytest.raises(UsageError, match="1 of 1 shards have no latents"):
        train(preset, storage, "run", steps=1, device="cpu")


def test_a_disk_that_is_full_for_the_curves_does_not_hide_why_a_run_ended(
    tmp_path: Path,
) -> None:
    (tmp_path / "runs" / "run" / "metrics.jsonl").mkdir(parents=True)  # nothing can be written in its place
    with pytest.raises(ZeroDivisionError, match="a bug"), RunHistory(Storage(tmp_path), "run", 0, {}):
        raise ZeroDivisionError("a bug")
    with (
        pytest.raises(StorageError, match=r"cannot write .*metrics\.jsonl"),
        RunHistory(Storage(tmp_path), "run", 0, {}),
    ):
        pass


def test_float16_on_a_cpu_is_said_to_be_float32_there(storage: Storage) -> None:
    notes: list[str] = []
    train(changed(SMALL, precision="float16"), storage, "run", steps=1, device="cpu", on_note=notes.append)
    assert notes == ["the CPU computes in float32: optimisation.precision float16 is for GPUs"]
