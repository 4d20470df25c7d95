"""Time of a training step of the S/2 network, compared with the published module, and the sizes of all presets.

    python benchmarks/model.py --published PATH [--batch 8] [--rounds 5] [--threads 1]

PATH is a checkout of the public FoundHand repository (GPL-3, hence not part of this project). Both networks get the
same weights and inputs and must give the same loss. Without PATH only ours is timed. The variants take turns, so that a
busy machine slows all of them. The table shows the least time of each; speeds are ratios of the least CPU times, which
other processes disturb least. "Pass" is forward and backward, "step" includes the optimiser: AdamW with PyTorch's
defaults for the published module, fused for ours, as in ``handdata train``. As there, ours keeps freed memory. Each
network has a process of its own.
"""

import argparse
import importlib
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from handdata.console import print_table
from handdata.trainer.conditioning import CONDITION_CHANNELS, Task
from handdata.trainer.data.loading import keep_freed_memory
from handdata.trainer.model import DiT
from handdata.trainer.presets import PRESETS, ModelConfig
from handdata.trainer.weights import export_foundhand

VARIANTS = {"fp32": (False, False), "fp32, compiled": (True, False), "bf16 autocast, compiled": (True, True)}
TIMED_PARAMETERS = 200e6
"""Most parameters of a network that is timed: larger ones take minutes a step on a CPU."""
BYTES_A_PARAMETER = 4 + 4 + 8 + 4
"""Bytes of float32 weight, gradient, AdamW's two moments and moving average."""


class Times(NamedTuple):
    """Wall and CPU seconds of a pass and of a step, and the loss."""

    pass_s: float
    pass_cpu_s: float
    step_s: float
    step_cpu_s: float
    loss: float


def published_network(checkout: Path, ours: DiT) -> nn.Module:
    """Build the published module with the same sizes and with our weights."""
    sys.path.insert(0, str(checkout))
    sizes = PRESETS["foundhand-s"].model
    network: nn.Module = importlib.import_module("models.vit").DiT(
        hidden_size=sizes.hidden_size, depth=sizes.depth, num_heads=sizes.num_heads
    )
    network.load_state_dict(export_foundhand(ours.state_dict()))
    return network


def random_inputs(sizes: ModelConfig, batch: int) -> tuple[Tensor, ...]:
    """Draw the five inputs of a network."""
    draws, side, latent = torch.Generator().manual_seed(1), sizes.input_size, sizes.latent_channels
    channels = (latent, CONDITION_CHANNELS, latent + CONDITION_CHANNELS)
    x, target, reference = (torch.randn(batch, count, side, side, generator=draws) for count in channels)
    t, task = torch.randint(1000, (batch,), generator=draws), torch.randint(len(Task), (batch,), generator=draws)
    return x, t, target, reference, task


def step_of(
    network: nn.Module, sizes: ModelConfig, batch: int, compiled: bool, bfloat16: bool, fused: bool
) -> Callable[[], Times]:
    """Return a function that takes and times one training step. The learning rate is zero, so the weights stay."""
    inputs = random_inputs(sizes, batch)
    noise = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0, fused=fused)
    forward = torch.compile(network) if compiled else network

    def run() -> Times:
        optimizer.zero_grad(set_to_none=True)
        began, began_cpu = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            output = forward(*inputs)
        loss = (output[:, : noise.shape[1]].float() - noise).square().mean()
        loss.backward()
        passed, passed_cpu = time.perf_counter(), time.process_time()
        optimizer.step()
        stepped, stepped_cpu = time.perf_counter(), time.process_time()
        return Times(
            passed - began, passed_cpu - began_cpu, stepped - began, stepped_cpu - began_cpu, float(loss.detach())
        )

    return run


_STEPS: dict[str, Callable[[], Times]] = {}
"""Training steps of this process's network, by variant."""


def prepare(published: Path | None, batch: int, threads: int) -> None:
    """Build the published network, or ours, in this process, and warm up all variants."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    sizes = PRESETS["foundhand-s"].model
    ours = DiT(**sizes.model_dump())
    for parameter in ours.parameters():  # a new network predicts zero
        nn.init.normal_(parameter, std=0.02)
    network = published_network(published, ours) if published else ours
    if not published:
        keep_freed_memory()
    for variant, settings in VARIANTS.items():
        _STEPS[variant] = step_of(network, sizes, batch, *settings, fused=network is ours)
        _STEPS[variant]()  # the first call compiles


def take_step(variant: str) -> Times:
    """Take a step of this process's network."""
    return _STEPS[variant]()


def compare(published: Path | None, batch: int, rounds: int, threads: int) -> None:
    """Time all variants of both networks in turns, and print the table."""
    networks = {"published": published, "handdata": None} if published else {"handdata": None}
    spawn = multiprocessing.get_context("spawn")
    times: dict[str, list[Times]] = {}
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(ProcessPoolExecutor(1, spawn, prepare, (path, batch, threads)))
            for name, path in networks.items()
        }
        for process in processes.values():  # ready once it has answered
            process.submit(take_step, next(iter(VARIANTS))).result()
        for _ in range(rounds):
            for variant in VARIANTS:
                for name, process in processes.items():
                    times.setdefault(f"{name}, {variant}", []).append(process.submit(take_step, variant).result())
    least = {name: Times(*map(min, zip(*taken, strict=True))) for name, taken in times.items()}
    first = next(iter(least.values()))
    rows = [
        (
            name,
            f"{best.pass_s:.2f}",
            f"{best.pass_cpu_s:.2f}",
            f"{first.pass_cpu_s / best.pass_cpu_s:.2f}",
            f"{best.step_cpu_s:.2f}",
            f"{first.step_cpu_s / best.step_cpu_s:.2f}",
            f"{best.loss:.5f}",
        )
        for name, best in least.items()
    ]
    print_table(
        f"S/2, batch of {batch}, {threads} threads, least of {rounds} rounds",
        rows,
        header=("", "pass, s", "CPU s", "relative speed", "step, CPU s", "relative speed", "loss"),
    )


def activation_bytes(sizes: ModelConfig) -> int:
    """Estimate the bytes that a pair's forward pass keeps for the backward pass, in float32, without compilation.

    They are counted in networks of 2 and 3 blocks, and extrapolated to the preset's depth.
    """

    def kept_bytes(depth: int) -> int:
        network = DiT(**sizes.model_copy(update={"depth": depth}).model_dump())
        parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = network(*random_inputs(sizes, 1))  # holds the graph, and so all that is kept
        return sum(kept.values()) if output.requires_grad else 0

    two, three = kept_bytes(2), kept_bytes(3)
    return two + (three - two) * (sizes.depth - 2)


def print_sizes() -> None:
    """Print parameters, memory and the time of a step of one pair, for each preset."""
    rows = []
    for name, preset in PRESETS.items():
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in DiT(**preset.model.model_dump()).parameters())
        seconds = "-"
        if count < TIMED_PARAMETERS:
            step = step_of(DiT(**preset.model.model_dump()), preset.model, 1, False, False, fused=True)
            seconds = f"{min(step().step_cpu_s for _ in range(3)):.2f}"
        held, activations = count * BYTES_A_PARAMETER / 2**30, activation_bytes(preset.model) / 2**30
        rows.append((name, f"{count / 1e6:.1f}", f"{held:.2f}", f"{activations:.3f}", seconds))
    print_table(
        "Presets",
        rows,
        header=("", "parameters, M", "memory, GiB", "activations a pair, GiB (estimate)", "step of one pair, CPU s"),
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print_sizes()
    compare(options.published, options.batch, options.rounds, options.threads)


if __name__ == "__main__":
    main()
