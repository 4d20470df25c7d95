"""Seconds of a forward and backward pass of the S/2 network beside the published module, in one run.

    python benchmarks/model.py --published PATH [--batch 8] [--rounds 5] [--threads 2]

PATH is a checkout of the public FoundHand repository (GPL-3, hence not part of this project). Both networks get the
same weights and inputs and must give the same loss. Without PATH ours is timed alone. The variants take turns, so that
a busy machine slows all of them; the table shows medians.
"""

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from handdata.console import print_table
from handdata.trainer.checkpoints import export_foundhand
from handdata.trainer.model import DiT
from handdata.trainer.presets import PRESETS

VARIANTS = {"fp32": (False, False), "fp32, compiled": (True, False), "bf16 autocast, compiled": (True, True)}


def published_network(checkout: Path, ours: DiT) -> nn.Module:
    """Build the published module of the same sizes, with our weights."""
    sys.path.insert(0, str(checkout))
    sizes = PRESETS["foundhand-s"].model
    network: nn.Module = importlib.import_module("models.vit").DiT(
        hidden_size=sizes.hidden_size, depth=sizes.depth, num_heads=sizes.num_heads
    )
    network.load_state_dict(export_foundhand(ours.state_dict()))
    return network


def pass_of(network: nn.Module, batch: int, compiled: bool, bfloat16: bool) -> Callable[[], float]:
    """Return a function that runs one forward and backward pass and returns the loss."""
    draws = torch.Generator().manual_seed(1)
    x, target, reference = (torch.randn(batch, channels, 32, 32, generator=draws) for channels in (4, 43, 47))
    noise = torch.randn(batch, 4, 32, 32, generator=draws)
    t, task = torch.randint(1000, (batch,), generator=draws), torch.randint(3, (batch,), generator=draws)
    forward = torch.compile(network) if compiled else network

    def run() -> float:
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            output = forward(x, t, target, reference, task)
        loss = (output[:, :4].float() - noise).square().mean()
        loss.backward()
        return float(loss.detach())

    return run


def main() -> None:
    """Time all variants in turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    ours = DiT(**PRESETS["foundhand-s"].model.model_dump())
    for parameter in ours.parameters():  # a new network predicts zero; this one computes
        nn.init.normal_(parameter, std=0.02)
    networks = {"published": published_network(options.published, ours)} if options.published else {}
    networks["handdata"] = ours
    passes = {
        f"{name}, {variant}": pass_of(network, options.batch, *settings)
        for name, network in networks.items()
        for variant, settings in VARIANTS.items()
    }
    losses = {name: [run(), run()][-1] for name, run in passes.items()}  # the first call compiles
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(options.rounds):
        for name, run in passes.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    peer = next(iter(medians.values()))
    rows = [
        (name, f"{median:.2f}", f"{min(seconds[name]):.2f}", f"{peer / median:.2f}", f"{losses[name]:.5f}")
        for name, median in medians.items()
    ]
    print_table(
        f"S/2, batch of {options.batch}, {options.threads} threads",
        rows,
        header=("", "s a pass (median)", "least", "speed beside the first", "loss"),
    )


if __name__ == "__main__":
    main()
