"""The learning run of ``gpu.py``: it renders hands while it trains on them, and ends, annealed, by the clock."""

import json
import math
import os
import secrets
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import safetensors.torch
import torch
from gpu_check import compile_parts, in_one_line, processors
from gpu_render import Video, be_quiet, render_videos
from safetensors import safe_open
from torch import Tensor, nn

from handdata.adapters.processes import process_pool
from handdata.adapters.synthesis.dataset import SequencePlan, plan_sequences
from handdata.jobs.figures import CARRIED, TRUTH, side_by_side
from handdata.pictures.png import encode_png
from handdata.schemas import FLIP_PERMUTATION, KEYPOINT_COUNT, RunError
from handdata.trainer.autoencoders import load_autoencoder
from handdata.trainer.conditioning import Task
from handdata.trainer.data.batch import FramePair
from handdata.trainer.devices import TrainedPrecision, choose_device
from handdata.trainer.evaluation import (
    LEAST_MOTION,
    Interval,
    MovedPair,
    carried_references,
    interval,
    mean_motion,
)
from handdata.trainer.metrics import picture_marks
from handdata.trainer.model import DiT
from handdata.trainer.presets import AugmentationConfig, Preset, SamplingOptions
from handdata.trainer.tasks import Sampler, gesture_transfer
from handdata.trainer.trainer import Trainer

FRAMES_PER_SECOND: Final = 5
RESERVED_SHARE: Final = 0.08
"""Share of the run's time that is left for weights, samples and scores."""
LEAST_RESERVED_S: Final = 2.0
STEPS: Final = (1, 2, 4)
"""Numbers of denoising steps that the held-out pairs are drawn with."""
LOGGED_EVERY_S: Final = 2.0
PRINTED_EVERY: Final = 10
"""One line of the curve in so many is printed."""
PART_BYTES: Final = 15 * 2**20
"""Most bytes of weights in one file."""


@dataclass(frozen=True)
class Rendered:
    """What is rendered while the network learns.

    Args:
        identities: People; a tenth is held out, more than any run gets to.
        videos: Videos of each.
        frames: Frames of a video, ``FRAMES_PER_SECOND``.
        kept: Videos that the GPU holds; then the oldest are replaced.
        wanted: Videos that training waits for.
        held_out: Held-out people that pairs are taken from.
        pairs: Held-out pairs, one a video.

    """

    identities: int
    videos: int
    frames: int
    kept: int
    wanted: int
    held_out: int
    pairs: int


FULL: Final = Rendered(identities=8000, videos=4, frames=8, kept=16_000, wanted=128, held_out=64, pairs=128)
SMALLEST: Final = Rendered(identities=3, videos=2, frames=4, kept=4, wanted=2, held_out=1, pairs=2)


def learning_preset(smallest: bool) -> Preset:
    """Return the settings of the learning run: 27 M parameters, or as few as work."""
    size, hidden_size, depth, heads = (32, 32, 2, 2) if smallest else (128, 384, 9, 6)
    settings = {
        "image_size": size,
        "autoencoder": {"kind": "pixel"},
        "model": {
            "input_size": size, "patch_size": 8, "latent_channels": 3, "learn_sigma": False,
            "hidden_size": hidden_size, "depth": depth, "num_heads": heads,
            "geometry": {"limbs": True, "reference_at_target": True, "residual": "carried", "head": "conv"},
        },
        "diffusion": {"prediction": "clean", "loss": "l1+gradient"},
        "dropout": {"reference": 0.05, "target_keypoints": 0.05, "reference_mask": 0.1, "both": 0.0},
        "augmentation": {"max_gamma": 1.3, "hand_swap": 0.0, "smallest_crop": 1.0},
        "optimisation": {
            "steps": 100_000,  # the clock ends the run
            "batch_size": 4 if smallest else 256, "learning_rate": 3e-3 if smallest else 6e-4,
            "warmup_steps": 5 if smallest else 200, "decay": "cosine", "weight_decay": 0.01, "adam_beta2": 0.95,
            "ema_decay": 0.9 if smallest else 0.998, "precision": "bfloat16",
        },
        "sampling": {"scheduler": "ddim", "steps": 1, "guidance_scale": 1.0, "clip_x0": 1.0},
    }  # fmt: skip
    return Preset.model_validate(settings)


def learn(out: Path, began: float, seconds: float, resume: Sequence[Path] | None, smallest: bool, seed: int) -> None:
    """Train for a time on frames that are rendered meanwhile, then write weights, scores, picture and curve.

    Args:
        out: Folder of the results.
        began: When the command began, by ``time.monotonic``.
        seconds: Time from then on; the last of it is for what is written.
        resume: Files of weights that an earlier run has left; their settings are this run's.
        smallest: Train a tiny network on few videos.
        seed: Seed of the rendered people and of what training draws.

    """
    ends = began + seconds - max(RESERVED_SHARE * seconds, LEAST_RESERVED_S)
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that render
    rendered = SMALLEST if smallest else FULL
    resumed = read_parts(resume) if resume else None
    preset = learning_preset(smallest) if resumed is None else resumed.preset
    device = choose_device()
    draws = torch.Generator(device).manual_seed(seed)
    training_began: float | None = None

    def share_done() -> float:
        return 0.0 if training_began is None else (time.monotonic() - training_began) / (ends - training_began)

    def new_trainer(compiled: bool, preset: Preset) -> Trainer:
        trainer = Trainer(preset, str(device), share_done=share_done)
        if resumed is not None:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "resumed.safetensors"
                file.write_bytes(safetensors.torch.save(resumed.weights))
                trainer.start_from(str(file))
        if compiled:
            compile_parts(trainer.model, device)
        return trainer

    workers = 2 if smallest else max(1, processors() - 2)
    with process_pool(workers, be_quiet) as pool:
        renderer = Renderer(pool, rendered, preset.image_size, seed, ahead=2 * workers)
        trainer = new_trainer(True, preset)
        videos = VideoBuffer(rendered.kept, rendered.frames, preset.image_size, device)
        curve = Curve(out / "curve.jsonl", began, preset.optimisation.batch_size)

        def take_step() -> float:
            settings = trainer.preset.optimisation
            micro = settings.micro_batch_size or settings.batch_size
            batches = (videos.pairs(micro, preset.augmentation, draws) for _ in range(settings.batch_size // micro))
            return trainer.training_step(batches, draws)

        while videos.seen < rendered.wanted:
            renderer.collect(videos)
            if time.monotonic() > ends or renderer.broken:
                raise SystemExit(f"only {videos.seen} videos were rendered in {time.monotonic() - began:.0f} s")
            time.sleep(0.05)
        print(f"training begins after {time.monotonic() - began:.1f} s with {videos.seen} videos", flush=True)
        training_began = time.monotonic()
        try:
            take_step()
        except Exception as error:  # the loan shall not be lost for a compiler's error, or for memory
            print(f"without compilation, in quarters of a batch, since the first step failed: {in_one_line(error)}")
            quarters = {"micro_batch_size": max(1, preset.optimisation.batch_size // 4)}
            smaller = preset.optimisation.model_copy(update=quarters)
            trainer = new_trainer(False, preset.model_copy(update={"optimisation": smaller}))
        try:
            while time.monotonic() < ends:
                renderer.collect(videos)
                curve.add(trainer.step, take_step(), videos.seen)
        except RunError as error:  # the averaged weights are those before
            print(f"training ends early: {error.message}", flush=True)
        held_out = renderer.held_out_pairs()
        parts = write_parts(out, trainer.averaged_model, preset, trainer.step)
    print(f"{trainer.step} steps, {videos.seen} videos; {len(parts)} files of weights; scoring", flush=True)
    about = {
        "command": " ".join(sys.argv[1:]), "device": str(device), "torch": torch.__version__, "seed": seed,
        "seconds": seconds, "trained_s": round(ends - training_began, 1), "processes": workers,
        "steps": trainer.step, "skipped": trainer.skipped, "videos": videos.seen, "frames_a_video": rendered.frames,
        "resumed": [str(path) for path in resume or ()],
        "settings": preset.model_dump(mode="json"),
    }  # fmt: skip
    (out / "learned.json").write_text(json.dumps(about, indent=2))
    if held_out:
        scores = score(read_parts(parts), device, held_out, out / "learned.png")
        (out / "learned.json").write_text(json.dumps({"scores": scores, **about}, indent=2))
    else:
        print(f"not scored: no held-out pair moves {LEAST_MOTION} hand lengths")
    print(f"{time.monotonic() - began:.0f} s in all")


class Renderer:
    """Lets a pool of processes render one person after the other, and keeps what is held out."""

    def __init__(self, pool: ProcessPoolExecutor, rendered: Rendered, size: int, seed: int, ahead: int) -> None:
        self.broken = False
        self.held_out: list[Video] = []
        self._pool, self._rendered = pool, rendered
        self._people = self._in_turn(size, seed, ahead)
        self._running: deque[Future[list[Video]]] = deque()
        self._submit(ahead)

    def _in_turn(self, size: int, seed: int, first: int) -> Iterator[list[SequencePlan]]:
        """Give each person's videos: some to begin training with, those held out, then all others."""
        of, people = self._rendered, self._rendered.identities
        plans = plan_sequences(
            people, people * of.videos, of.frames, 1, size, seed, frames_per_second=FRAMES_PER_SECOND
        )
        videos = [plans[person::people] for person in range(people)]
        trained = [of_person for of_person in videos if of_person[0].split == "train"]
        held_out = [of_person for of_person in videos if of_person[0].split == "val"][: of.held_out]
        return chain(trained[:first], held_out, trained[first:])

    def _submit(self, count: int) -> None:
        for plans in (next(self._people, None) for _ in range(count)):
            if plans is not None:
                self._running.append(self._pool.submit(render_videos, plans))

    def collect(self, buffer: "VideoBuffer") -> None:
        """Take what has been rendered, and have as many people more rendered."""
        done = [future for future in self._running if future.done()]
        try:
            for future in done:
                self._running.remove(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                if error is not None:
                    print(f"a person is left out: {in_one_line(error)}", flush=True)
                for video in () if error else future.result():
                    if video.held_out:
                        self.held_out.append(video)
                    else:
                        buffer.add(video)
            self._submit(len(done))
        except BrokenProcessPool as error:
            self.broken = True
            self._running.clear()
            print(f"no more videos are rendered: {in_one_line(error)}", flush=True)

    def held_out_pairs(self) -> list[MovedPair]:
        """Return one pair of each held-out video that moves far enough, up to the number wanted."""
        rng = np.random.default_rng(0)
        found = []
        for video in self.held_out:
            frames = [video.frame(number) for number in range(len(video.images))]
            moving = [
                MovedPair(video.name, motion, reference, target)
                for target in frames
                for reference in frames
                if (motion := mean_motion(reference, target)) >= LEAST_MOTION
            ]
            if moving:
                found.append(moving[int(rng.integers(len(moving)))])
        return found[: self._rendered.pairs]


class VideoBuffer:
    """The videos that are trained on, in the device's memory; when it is full, each new one replaces the oldest."""

    def __init__(self, count: int, frames: int, size: int, device: torch.device) -> None:
        shape = (count, frames)
        self.seen = 0
        self._images = torch.empty(*shape, 3, size, size, dtype=torch.uint8, device=device)
        self._masks = torch.empty(*shape, 1, size, size, dtype=torch.uint8, device=device)
        self._keypoints = torch.empty(*shape, KEYPOINT_COUNT, 2, device=device)
        self._valid = torch.empty(*shape, KEYPOINT_COUNT, dtype=torch.bool, device=device)
        self._mirrored = torch.tensor(FLIP_PERMUTATION.tolist(), device=device)

    def add(self, video: Video) -> None:
        """Copy a video to the device."""
        place = self.seen % len(self._images)
        for kept, new in (
            (self._images, video.images),
            (self._masks, video.masks),
            (self._keypoints, video.keypoints),
            (self._valid, video.valid),
        ):
            kept[place] = torch.from_numpy(new).to(kept.device)
        self.seen += 1

    def pairs(self, count: int, augmentation: AugmentationConfig, draws: torch.Generator) -> FramePair:
        """Draw pairs of two moments of one video, with the flip and the gamma of ``augment_pair``."""
        device, frames = self._images.device, self._images.shape[1]

        def drawn(below: int) -> Tensor:
            return torch.randint(below, (count,), generator=draws, device=device)

        def share() -> Tensor:
            return torch.rand(count, generator=draws, device=device)

        video, target = drawn(min(self.seen, len(self._images))), drawn(frames)
        reference = (target + 1 + drawn(frames - 1)) % frames
        flips = share() < augmentation.flip
        gamma = torch.exp((2 * share() - 1) * math.log(augmentation.max_gamma)).view(-1, 1, 1, 1)

        def flipped(planes: Tensor) -> Tensor:
            return torch.where(flips.view(-1, 1, 1, 1), planes.flip(-1), planes)

        def image(frame: Tensor) -> Tensor:
            brightness = flipped(self._images[video, frame]).float() / 255
            return (255 * brightness**gamma).round().byte()

        def joints(frame: Tensor) -> tuple[Tensor, Tensor]:
            keypoints, valid = self._keypoints[video, frame], self._valid[video, frame]
            mirrored = keypoints[:, self._mirrored]
            mirrored = torch.stack([self._images.shape[-1] - 1 - mirrored[..., 0], mirrored[..., 1]], dim=-1)
            return (
                torch.where(flips.view(-1, 1, 1), mirrored, keypoints),
                torch.where(flips.view(-1, 1), valid[:, self._mirrored], valid),
            )

        target_keypoints, target_valid = joints(target)
        reference_keypoints, reference_valid = joints(reference)
        return FramePair(
            target_image=image(target),
            target_weight=torch.full_like(self._masks[video, target], 255),
            target_keypoints=target_keypoints,
            target_valid=target_valid,
            reference_image=image(reference),
            reference_mask=flipped(self._masks[video, reference]),
            reference_keypoints=reference_keypoints,
            reference_valid=reference_valid,
            reference_dropped=torch.zeros(count, dtype=torch.bool, device=device),
            task=torch.full((count,), Task.POSE_CHANGE, device=device),
        )


class Curve:
    """The loss over time, a line of JSON every ``LOGGED_EVERY_S``, so that a run that is killed leaves it, too."""

    def __init__(self, file: Path, began: float, batch: int) -> None:
        self._file, self._began, self._batch = file, began, batch
        self._losses: list[float] = []
        self._last, self._lines = time.monotonic(), 0
        file.write_text("")

    def add(self, step: int, loss: float, videos: int) -> None:
        """Add a step."""
        self._losses.append(loss)
        now = time.monotonic()
        if now - self._last < LOGGED_EVERY_S:
            return
        line = {
            "step": step, "seconds": round(now - self._began, 1), "loss": round(float(np.mean(self._losses)), 5),
            "pairs_per_s": round(len(self._losses) * self._batch / (now - self._last), 1), "videos": videos,
        }  # fmt: skip
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._lines % PRINTED_EVERY == 0:
            print(json.dumps(line), flush=True)
        self._losses, self._last, self._lines = [], now, self._lines + 1


def score(learned: "Learned", device: torch.device, pairs: Sequence[MovedPair], picture: Path) -> dict[str, Any]:
    """Score what was written on held-out pairs, beside the copied and the carried reference, and draw some."""
    preset = learned.preset
    network = DiT(**preset.model.model_dump())
    network.load_state_dict(learned.weights)
    precise = TrainedPrecision(network.to(device).eval(), preset.optimisation)
    sampler = Sampler(precise, load_autoencoder(preset.autoencoder, device), preset)
    references, targets = [pair.reference for pair in pairs], [pair.target for pair in pairs]
    drawn = {
        f"{steps} step{'s' * (steps > 1)}": list(
            gesture_transfer(sampler, references, targets, SamplingOptions(steps=steps))
        )
        for steps in STEPS
    }
    frames = list(zip(references, targets, strict=True))
    carried = carried_references(frames)
    columns = {CARRIED: carried, **drawn, TRUTH: [target.image for target in targets]}
    every = max(1, len(pairs) // 12)
    shown = side_by_side(frames[::every], {title: images[::every] for title, images in columns.items()})
    picture.write_bytes(encode_png(shown))

    images = {
        **drawn,
        "copied reference": [frame.image for frame in references],
        CARRIED: carried,
        "carried reference, hand left in": carried_references(frames, painted_out=False),
    }
    marks = {
        way: [picture_marks(image, target) for image, target in zip(made, targets, strict=True)]
        for way, made in images.items()
    }
    groups = [pair.sequence for pair in pairs]
    best = marks[CARRIED]
    scores: dict[str, Any] = {"pairs": len(pairs)}
    for way, of_way in marks.items():
        scores[way] = {name: rounded(interval([mark[name] for mark in of_way], groups)) for name in best[0]}
        scores[way]["above carried"] = {
            name: rounded(
                interval([mark[name] - other[name] for mark, other in zip(of_way, best, strict=True)], groups)
            )
            for name in best[0]
        }
        print(f"{way:34}" + ", ".join(f"{name} {scores[way][name]}" for name in best[0]), flush=True)
    return scores


def rounded(found: Interval) -> list[float]:
    """Return an interval as mean, low and high."""
    return [round(value, 4) for value in (found.mean, found.low, found.high)]


class Learned(NamedTuple):
    """What a learning run has left."""

    weights: dict[str, Tensor]
    """float32, as the network takes them."""
    preset: Preset
    step: int


def write_parts(out: Path, network: nn.Module, preset: Preset, step: int) -> list[Path]:
    """Write a network's weights in float16, its settings in the head of each file; return the files."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in network.state_dict().items():
        half = tensor.detach().half().cpu().contiguous()
        if not half.isfinite().all():
            raise RuntimeError(f"{name} holds numbers that are not finite in float16")
        if size + half.nbytes > PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = half
        size += half.nbytes
    run = secrets.token_hex(8)
    files = []
    for number, part in enumerate(parts, start=1):
        head = {"config": preset.model_dump_json(), "step": str(step), "run": run, "part": f"{number}/{len(parts)}"}
        file = out / f"weights-{number}-of-{len(parts)}.safetensors"
        file.write_bytes(safetensors.torch.save(part, {"format": "pt", **head}))
        files.append(file)
    return files


def read_parts(files: Sequence[Path]) -> Learned:
    """Return the weights of the files that one run has left, all of them, in any order."""
    weights: dict[str, Tensor] = {}
    heads = []
    for file in files:
        with safe_open(file, framework="pt") as opened:
            heads.append(opened.metadata())
            weights |= {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118 (no mapping)
    count = int(heads[0]["part"].split("/")[1])
    found = sorted(head["part"] for head in heads)
    if len({head["run"] for head in heads}) > 1 or found != sorted(f"{n}/{count}" for n in range(1, count + 1)):
        raise SystemExit(f"{', '.join(map(str, files))} are not the {count} files of one run, each once")
    return Learned(weights, Preset.model_validate_json(heads[0]["config"]), int(heads[0]["step"]))


def write_joined(files: Sequence[Path], out: Path) -> None:
    """Write the files of a run as one checkpoint."""
    if out.suffix != ".safetensors":
        raise SystemExit(f"{out} does not end in .safetensors")
    learned = read_parts(files)
    head = {"format": "pt", "config": learned.preset.model_dump_json(), "step": str(learned.step)}
    out.write_bytes(safetensors.torch.save(learned.weights, head))
    print(f"handdata sample transfer --checkpoint {out} opens it")
