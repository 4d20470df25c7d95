"""The check of ``gpu.py``: is a GPU's answer right, and how fast are training, sampling, SAM and the loader there?

Each part runs in a process. All prepare at the same time, since compilation takes processors and not the GPU; then they
measure one after the other. What is not ready in time, fails or hangs ends as one line, and stops nothing else.
"""

import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from handdata.adapters.synthesis.dataset import (
    noise_generator,
    plan_sequences,
    sample_planned_sequence,
    sequence_labels,
)
from handdata.schemas import KEYPOINT_COUNT
from handdata.trainer.conditioning import CONDITION_CHANNELS, reference_condition, target_condition
from handdata.trainer.devices import TrainedPrecision, autocast, choose_device
from handdata.trainer.model import DiT
from handdata.trainer.presets import PRESETS, ModelConfig, OptimisationConfig, SamplingConfig
from handdata.trainer.samplers import sample

PEAK_TFLOPS: Final = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "4090": 165}
"""Dense bfloat16 rates by NVIDIA's data sheets, by a part of the GPU's name; the first that matches."""

PREPARATION_SHARE: Final = 0.6
"""Share of the check's time after which its parts must be ready to measure."""
SPENT_SHARE: Final = 0.6
"""Share of a part's time after which it begins nothing new."""
GAIN: Final = 1.03
"""A larger micro batch must be so many times as fast, or the search ends."""

Found = dict[str, Any]
"""Figures of a part by what they say; or ``failed`` or ``skipped`` with one line."""
Measure = Callable[[float], Found]
"""Measures for about so many seconds."""


@dataclass(frozen=True)
class CheckOptions:
    """What all parts of the check are told."""

    smallest: bool
    peer: Path | None = None
    peak_tflops: float | None = None


def check(options: CheckOptions, out: Path, began: float, seconds: float, only: Sequence[str] | None) -> int:
    """Run the parts, write what they find into ``check.json`` and ``check.md`` after each one; return the exit code.

    Args:
        options: What the parts are told.
        out: Folder of the results.
        began: When the command began, by ``time.monotonic``.
        seconds: Time from then on.
        only: Names of the parts to run; None: all.

    """
    out.mkdir(parents=True, exist_ok=True)
    if unknown := [name for name in only or () if name not in PARTS]:
        raise SystemExit(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    names = only or [name for name in PARTS if options.peer or not name.startswith("published")]
    found: dict[str, Found] = {}
    children = {name: PartProcess(name, options) for name in names}
    ready = []
    for name, child in children.items():
        answer = child.answer(began + PREPARATION_SHARE * seconds)
        if answer:
            found[name] = answer
            write_check(out, found)
        else:
            ready.append(name)
    for position, name in enumerate(ready):
        now = time.monotonic()
        limit = max(began + seconds - now, 0) / (len(ready) - position)
        found[name] = children[name].measure(SPENT_SHARE * limit, now + limit)
        write_check(out, found)
    return int(any("failed" in answer for answer in found.values()))


def write_check(out: Path, found: Mapping[str, Found]) -> None:
    """Write what is known so far, and print the last part's line."""
    lines = {
        name: "; ".join(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}" for key, value in it)
        for name, it in ((name, answer.items()) for name, answer in found.items())
    }
    (out / "check.json").write_text(json.dumps(found, indent=2))
    rows = "".join(f"| {name} | {line.replace('|', '/')} |\n" for name, line in lines.items())
    (out / "check.md").write_text(f"| part | found |\n| --- | --- |\n{rows}")
    print(*list(lines.items())[-1], sep=": ", flush=True)


class PartProcess:
    """One part in a process: its crash, or its hang, is an answer like any other."""

    def __init__(self, name: str, options: CheckOptions) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=run_part, args=(name, options, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def answer(self, until: float) -> Found:
        """Return the next answer: empty once the part is prepared, what it has found once it has measured."""
        if not self._pipe.poll(max(until - time.monotonic(), 0)):
            self._process.kill()
            self._process.join()
            return {"failed": "not done in its time"}
        try:
            answer: Found = self._pipe.recv()
        except EOFError:
            self._process.join()
            return {"failed": f"its process ended with {self._process.exitcode}"}
        return answer

    def measure(self, seconds: float, until: float) -> Found:
        """Let the prepared part measure for about so many seconds, and return what it finds."""
        with suppress(BrokenPipeError):  # it has died; the answer says so
            self._pipe.send(seconds)
        return self.answer(until)


def run_part(name: str, options: CheckOptions, pipe: Connection) -> None:
    """Prepare a part, say so, wait for its turn, and measure: what its process runs."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")  # all parts compile at once
    try:
        measure = PARTS[name](options)
        pipe.send({})
        pipe.send(measure(pipe.recv()))
    except ModuleNotFoundError as error:
        pipe.send({"skipped": f"{error.name} is not installed"})
    except Exception as error:  # whatever it is, it is what the check has found
        traceback.print_exc()
        pipe.send({"failed": in_one_line(error)})


def in_one_line(error: BaseException) -> str:
    """Return an error as one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def prepare_device(options: CheckOptions) -> Measure:
    """Compare a network's output on the device with the CPU's, and time a product of matrices."""
    device = choose_device()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    geometry = {"limbs": True, "reference_at_target": True, "residual": "carried", "head": "conv"}
    sizes = ModelConfig.model_validate(
        {
            "input_size": 32, "patch_size": 8, "latent_channels": 3, "learn_sigma": False,
            "hidden_size": 64, "depth": 2, "num_heads": 2, "geometry": geometry,
        }
    )  # fmt: skip
    network = DiT(**sizes.model_dump())
    for parameter in network.parameters():  # a new network predicts zero
        nn.init.normal_(parameter, std=0.05)
    inputs = posed_inputs(sizes, 4)
    with torch.no_grad():
        expected = network(*inputs)
    on_device = network.to(device)
    compile_parts(on_device, device)

    def apart(precision: str) -> float:
        with torch.no_grad(), autocast(device, precision, on_cpu=True):
            output = on_device(*(part.to(device) for part in inputs)).float().cpu()
        return float((output - expected).norm() / expected.norm())

    most_apart = {"float32": 1e-2, "bfloat16": 1e-1}
    errors = {precision: apart(precision) for precision in most_apart}
    for precision, error in errors.items():
        if not error < most_apart[precision]:
            raise AssertionError(f"in {precision} the network's output is {error:.2g} apart from the CPU's")

    def measure(seconds: float) -> Found:
        side = 256 if options.smallest else 8192
        a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
        rate = 2 * side**3 / seconds_of(lambda: a @ b, device, seconds)
        name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        relative = {f"apart from the CPU, {precision}": error for precision, error in errors.items()}
        return {"device": name, "torch": torch.__version__, **relative, "bf16 matrix product, TFLOP/s": rate / 1e12}

    return measure


def prepare_training(options: CheckOptions, name: str, published: bool = False) -> Measure:
    """Time training steps of a network, ours or the published one, with the micro batch that is fastest."""
    device = choose_device()
    sizes = sizes_of(name, options)
    network: nn.Module
    if published:
        sys.path.insert(0, str(options.peer))
        module = importlib.import_module("models.vit")
        network = module.DiT(hidden_size=sizes.hidden_size, depth=sizes.depth, num_heads=sizes.num_heads)
    else:
        network = DiT(**sizes.model_dump())
    network = network.to(device).train()
    if not published:
        compile_parts(network, device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=not published)
    flops = step_flops(sizes)

    def take_step(inputs: Sequence[Tensor], noise: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, "bfloat16", on_cpu=True):
            output = network(*inputs)
        (output[:, : noise.shape[1]].float() - noise).square().mean().backward()
        optimizer.step()

    def steps_of(batch: int) -> Callable[[], None]:
        inputs = random_inputs(sizes, batch, device)
        return partial(take_step, inputs, torch.randn_like(inputs[0]))

    for batch in (2, 4):  # the second size lets compiled parts leave it open
        steps_of(batch)()

    def measure(seconds: float) -> Found:
        ends = time.monotonic() + seconds
        rates: dict[int, float] = {}
        batch = 2 if options.smallest else 8
        while True:
            try:
                rates[batch] = batch / seconds_of(steps_of(batch), device, seconds / 6)
            except torch.OutOfMemoryError:
                break
            grows = rates[batch] > GAIN * rates.get(batch // 2, 0)
            if not grows or time.monotonic() > ends:
                break
            batch *= 2
        if not rates:
            raise RuntimeError(f"no memory for a micro batch of {batch}")
        best = max(rates, key=rates.__getitem__)
        found: Found = {"pairs/s": rates[best], "micro batch": best, "TFLOP a pair": flops / 1e12}
        found["TFLOP/s"] = rates[best] * flops / 1e12
        if peak := peak_tflops(options, device):
            found["share of the bf16 peak"] = found["TFLOP/s"] / peak
        if device.type == "cuda":
            found["memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
        return found

    return measure


def prepare_sampling(options: CheckOptions) -> Measure:
    """Time guided samples of the largest network."""
    device = choose_device()
    sizes = sizes_of("foundhand-xl", options)
    network = DiT(**sizes.model_dump()).to(device).eval()
    compile_parts(network, device)
    precise = TrainedPrecision(network, OptimisationConfig(steps=1, batch_size=1, precision="bfloat16"))
    count, steps = (2, 2) if options.smallest else (64, 10)
    config = SamplingConfig(scheduler="ddim", steps=steps, guidance_scale=2.5)
    _, _, *conditions = random_inputs(sizes, count, device)

    def draw() -> None:
        sample(precise, *conditions, config)

    sample(precise, *conditions, config.model_copy(update={"steps": 1}))

    def measure(seconds: float) -> Found:
        rate = count / seconds_of(draw, device, seconds)
        return {f"images/s, {steps} guided steps": rate, "guided evaluations/s": rate * steps, "batch": count}

    return measure


def prepare_sam(options: CheckOptions) -> Measure:
    """Time SAM's masks in batches, as ``handdata annotate`` makes them, beside ``SamPredictor`` in a loop."""
    from sam import in_batches, one_by_one
    from segment_anything import sam_model_registry

    from handdata.pipeline.annotation.masks import sam_prompts
    from handdata.pipeline.annotation.sam import SamSegmenter

    device = choose_device()
    if options.smallest:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from tests.fixtures.sam import build_small_sam as build
    else:
        build = sam_model_registry["vit_h"]
    torch.manual_seed(0)
    theirs = build().eval().to(device)
    ours = SamSegmenter(deepcopy(theirs), str(device))
    count, batch = (2, 2) if options.smallest else (16, 8)
    asked = []
    for plan in plan_sequences(count, count, 1, 1, 64 if options.smallest else 512, seed=0):
        video = sample_planned_sequence(plan)
        labels = sequence_labels(plan, video)
        prompts = sam_prompts(labels["keypoints_2d"][0, 0].astype(np.float32), labels["keypoints_valid"].astype(bool))
        asked.append((video.render(video.scene(0), 0, noise_generator(plan, 0, 0)).image, prompts))
    in_batches(ours, asked[:batch], batch)
    one_by_one(theirs, asked[:1])

    def measure(seconds: float) -> Found:
        expected, got = one_by_one(theirs, asked), in_batches(ours, asked, batch)
        alike = np.mean([((a > 0) == (b > 0)).mean() for a, b in zip(expected, got, strict=True)])
        loop_s = seconds_of(lambda: one_by_one(theirs, asked), device, seconds / 4)
        ours_s = seconds_of(lambda: in_batches(ours, asked, batch), device, seconds / 4)
        rates = {f"images/s, batches of {batch}": count / ours_s, "images/s, SamPredictor": count / loop_s}
        return {**rates, "ratio": loop_s / ours_s, "pixels of masks alike": float(alike)}

    return measure


def prepare_loader(options: CheckOptions) -> Measure:
    """Time the loader's pairs of 256 px from shards into the GPU, by all processors."""
    from loader import FRAMES_A_BATCH, encoded_frames, write_shards

    from handdata.pipeline.storage import Dataset, Storage
    from handdata.trainer.data.loading import pair_batches
    from handdata.trainer.data.pairs import PairDataset
    from handdata.trainer.presets import PairConfig

    device = choose_device()
    folder = tempfile.TemporaryDirectory(prefix="handdata-gpu-")
    images, masks = encoded_frames(16 if options.smallest else 2048)
    write_shards(Path(folder.name), list(zip(images, masks, strict=True)))
    moving = PairConfig(video=1, view=0, still=0)
    dataset = PairDataset(Dataset(Storage(Path(folder.name) / "ours")), image_size=256, split="train", pairs=moving)
    pairs, threads = FRAMES_A_BATCH // 2, processors()
    positions = [range(start, start + pairs) for start in range(0, 10**6, pairs)]

    def measure(seconds: float) -> Found:
        batches = pair_batches(dataset, positions, threads, pinned=device.type == "cuda")

        def take(count: int) -> None:
            for _ in range(count):
                for field in next(batches):
                    field.to(device, non_blocking=True)

        ahead = 2 * threads  # what is decoded before the clock starts would count for nothing
        take(ahead)
        began, taken = time.perf_counter(), 0
        while time.perf_counter() - began < seconds or not taken:
            take(ahead)
            taken += ahead
        if device.type == "cuda":
            torch.cuda.synchronize()
        rate = pairs * taken / (time.perf_counter() - began)
        folder.cleanup()
        return {"pairs/s, 256 px": rate, "threads": threads}

    return measure


SIZES: Final = ("foundhand-s", "foundhand-b", "foundhand-l", "foundhand-xl")
PARTS: Final[dict[str, Callable[[CheckOptions], Measure]]] = {
    "device": prepare_device,
    **{name: partial(prepare_training, name=name) for name in SIZES},
    **{f"published {name}": partial(prepare_training, name=name, published=True) for name in SIZES},
    "sampling": prepare_sampling,
    "sam": prepare_sam,
    "loader": prepare_loader,
}
"""What the check consists of, in the order of its table."""


def compile_parts(network: nn.Module, device: torch.device) -> None:
    """Compile each block of a network, and its convolutional head, on a GPU.

    Blocks share one compilation: seconds, where the network as a whole takes a minute of the little time there is.
    """
    if device.type != "cuda":
        return
    for module in (*network.get_submodule("blocks").children(), getattr(network, "detail_head", None)):
        if module is not None:
            module.compile()


def sizes_of(name: str, options: CheckOptions) -> ModelConfig:
    """Return the sizes of a preset's network, or of one for a CPU."""
    sizes = PRESETS[name].model
    return sizes.model_copy(update={"hidden_size": 48, "depth": 2, "num_heads": 2}) if options.smallest else sizes


def random_inputs(sizes: ModelConfig, batch: int, device: torch.device | str) -> tuple[Tensor, ...]:
    """Draw the five inputs of a network."""
    side, latent = sizes.input_size, sizes.latent_channels
    channels = (latent, CONDITION_CHANNELS, latent + CONDITION_CHANNELS)
    x, target, reference = (torch.randn(batch, count, side, side, device=device) for count in channels)
    t, task = torch.randint(1000, (batch,), device=device), torch.zeros(batch, dtype=torch.long, device=device)
    return x, t, target, reference, task


def posed_inputs(sizes: ModelConfig, batch: int) -> tuple[Tensor, ...]:
    """Draw the five inputs of a network from random keypoints, which its geometry reads."""
    side = sizes.input_size
    x, t, _, reference, task = random_inputs(sizes, batch, "cpu")
    places = torch.rand(2, batch, KEYPOINT_COUNT, 2) * (side - 4) + 2
    valid = torch.ones(batch, KEYPOINT_COUNT, dtype=torch.bool)
    mask = F.pad(torch.ones(batch, 1, side // 2, side // 2), [side // 4] * 4)
    conditions = (
        target_condition(places[0], valid, (side, side)),
        reference_condition(reference[:, : sizes.latent_channels], places[1], valid, mask),
    )
    return x, t, *conditions, task


def step_flops(sizes: ModelConfig) -> int:
    """Count the floating-point operations of one pair's training step, forward and backward."""
    with torch.device("meta"):
        network = DiT(**sizes.model_dump())
    with FlopCounterMode(display=False) as counter:
        network(*random_inputs(sizes, 1, "meta")).sum().backward()
    return int(counter.get_total_flops())


def peak_tflops(options: CheckOptions, device: torch.device) -> float | None:
    """Return the GPU's dense bfloat16 rate by its data sheet; None where it is not known."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    return options.peak_tflops or next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def seconds_of(work: Callable[[], object], device: torch.device, seconds: float, most: int = 20) -> float:
    """Return how long some work takes: the mean of up to ``most`` times within about ``seconds``, after a first one."""

    def timed(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    timed(1)  # warms up
    times = max(1, min(most, int(seconds / timed(1))))
    return timed(times) / times


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))
