"""How many evaluations of the network a sampler needs until more of them change nothing.

    handdata synth --out more/synthetic --identities 192 --sequences 192 --frames 8 --fps 5 --cameras 1 --size 128
    handdata ingest --source synthetic --root more/synthetic --workspace more/w
    handdata annotate --masks grabcut --image-size 64 --crop stable --workspace more/w
    handdata train --preset tiny --config benchmarks/sampling.toml --run sampling --gpus 0 --workspace more/w
    OMP_NUM_THREADS=1 python benchmarks/sampling.py more/w --run sampling

Draws the targets of held-out pairs that move, by each sampler in each number of steps, and scores them inside the
target's hand box. The peer is the published sampler: 250 steps of DDPM, with the learned variance where the network
predicts noise, as the published one does, else with the posterior's. An evaluation is one pass of one condition through
the network: a step takes one without guidance, two with a joint scale. diffusers' solvers visit evenly spaced
timesteps, or noise levels as Karras et al. 2022 space them. Any run will do that was not trained for a few steps alone;
``docs/results/sampling.md`` has the figures.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from handdata.jobs.figures import TRUTH, side_by_side
from handdata.pictures.png import encode_png
from handdata.pipeline.storage import Storage
from handdata.pipeline.storage.layout import run_folder
from handdata.schemas.arrays import ByteArray
from handdata.trainer import samplers
from handdata.trainer.data.pairs import open_pairs
from handdata.trainer.diffusion import Diffusion
from handdata.trainer.evaluation import LEAST_MOTION, MovedPair, interval, mean_motion
from handdata.trainer.metrics import hand_box, picture_marks
from handdata.trainer.presets import Preset, SamplerName, SamplingOptions
from handdata.trainer.tasks import Sampler, gesture_transfer, load_sampler

STEPS: Final = (5, 8, 12, 25)
EVEN, KARRAS = {"use_karras_sigmas": False}, {"use_karras_sigmas": True}
WAYS: Final[dict[str, tuple[SamplerName, dict[str, Any]]]] = {
    "ddpm": ("ddpm", {}),
    "ddim": ("ddim", {}),
    "dpm++, even": ("dpm++", EVEN),
    "dpm++, Karras": ("dpm++", KARRAS),
    "unipc, even": ("unipc", EVEN),
    "unipc, Karras": ("unipc", KARRAS),
}
"""Samplers, with changed settings of diffusers' solvers."""
PEER: Final = ("ddpm", 250)
SHOWN: Final = 8
AIM: Final = 0.02


def main() -> None:
    """Draw, score and print a table; the figures go beside it as JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", nargs="?", help="workspace of the dataset and the run")
    parser.add_argument("--run", default="sampling")
    parser.add_argument("--split", default="val")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.5], help="joint scales")
    parser.add_argument("--out", type=Path, default=Path("sampling"), help="folder of the figures")
    arguments = parser.parse_args()
    exact_spreads()
    if arguments.workspace is None:  # `make bench` runs all scripts
        print("\nfor pictures name a workspace with a run: the first lines of this file make one")
        return
    storage = Storage(arguments.workspace)
    sampler = load_sampler(storage.url(run_folder(arguments.run)), device="cpu")
    if sampler.preset.diffusion.prediction != "noise":
        # The error of a predicted clean image is many times the noise where there is little of that. A variance that
        # learns to explain it adds as much: 250 steps then end in noise.
        sampler = replace(sampler, network=WithoutVariance(sampler.network))
    pairs = moved_pairs(storage, sampler.preset, arguments.split, arguments.pairs)
    print(f"{len(pairs)} pairs of {len({pair.sequence for pair in pairs})} videos")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results, columns = [], {}
    for scale in arguments.guidance:
        rows = compare(sampler, pairs, scale)
        for row in rows:
            images = row.pop("images")
            results.append(row)
            if scale == arguments.guidance[0] and row["steps"] in (8, 250):
                columns[f"{row['way']}, {row['steps']}"] = images[:SHOWN]
        (arguments.out / "sampling.json").write_text(json.dumps(results, indent=1))
    shown = [(pair.reference, pair.target) for pair in pairs[:SHOWN]]
    figure = side_by_side(shown, {**columns, TRUTH: [target.image for _, target in shown]})
    (arguments.out / "sampling.png").write_bytes(encode_png(figure))


def moved_pairs(storage: Storage, preset: Preset, split: str, count: int) -> list[MovedPair]:
    """Return pairs of a split's videos that move ``LEAST_MOTION``, each once."""
    moving = preset.pairs.model_copy(update={"video": 1.0, "view": 0.0, "still": 0.0, "sources": {}})
    dataset = open_pairs(storage, preset, split, pairs=moving, seed=0)
    found: dict[tuple[int, int], MovedPair] = {}
    for position in range(200 * count):
        target, reference, _ = dataset.rows_at(position)
        if reference is not None and (target, reference) not in found and len(found) < count:
            frames = dataset.frame(reference), dataset.frame(target)
            motion = mean_motion(*frames)
            if motion >= LEAST_MOTION:
                found[target, reference] = MovedPair(dataset.sequence_id(target), motion, *frames)
    return list(found.values())


def exact_spreads() -> None:
    """Print how much spread samplers keep of what a perfect network knows: data of mean 0.7 and deviation 0.2.

    The mean of what may be there has a high PSNR, too: this tells a sampler that converges fast from one that blurs.
    """
    process, mean, deviation = Diffusion(), 0.7, 0.2
    noise = torch.randn((256, 3, 4, 4), generator=torch.Generator().manual_seed(0))

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        signal, level = (table[t].view(-1, 1, 1, 1) for table in (process.signal, process.noise))
        share = signal * deviation**2 / (signal**2 * deviation**2 + level**2)
        return process.predict_noise(x_t, mean + share * (x_t - signal * mean), t)

    print("deviation as a share of the true one, of a perfect network\n| steps | " + " | ".join(WAYS) + " |")
    for steps in (*STEPS, 50, PEER[1]):
        found = []
        for name, changes in WAYS.values():
            with patch.object(samplers, "_solver", changed_solver(changes)):
                draws = torch.Generator().manual_seed(1)
                latents = samplers.denoise(predict, noise, scheduler=name, steps=steps, generator=draws)
            found.append(f"{float(latents.std()) / deviation:.2f}")
        print(f"| {steps} | {' | '.join(found)} |", flush=True)


class WithoutVariance(nn.Module):
    """A network without its learned variance, for which DDPM takes the posterior's."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, *conditions: Tensor) -> Tensor:
        """Return the first half of the output."""
        output: Tensor = self.network(x_t, *conditions)
        return output[:, : x_t.shape[1]]


def compare(sampler: Sampler, pairs: Sequence[MovedPair], scale: float) -> list[dict[str, Any]]:
    """Print and return a row for each way to sample: scores, and how far they are from the peer's."""
    print(f"\nguidance {scale:g}\n| sampler | steps | evaluations | PSNR, dB | SSIM | detail | of the peer | CPU s |")
    print("| --- " * 8 + "|")
    references, targets = [pair.reference for pair in pairs], [pair.target for pair in pairs]
    groups, rows = [pair.sequence for pair in pairs], list[dict[str, Any]]()
    for way, steps in (PEER, *((way, steps) for way in WAYS for steps in STEPS)):
        name, changes = WAYS[way]
        chosen = SamplingOptions(sampler=name, steps=steps, guidance_scale=scale)
        started = time.process_time()
        with patch.object(samplers, "_solver", changed_solver(changes)):
            images = list(gesture_transfer(sampler, references, targets, chosen, batch_size=len(pairs)))
        seconds = time.process_time() - started
        marks = [picture_marks(image, target) for image, target in zip(images, targets, strict=True)]
        row: dict[str, Any] = {
            "way": way,
            "steps": steps,
            "guidance": scale,
            "evaluations": steps * (1 if scale == 1 else 2),
            "cpu_s": seconds,
            "detail": float(np.mean([detail(image, pair) for image, pair in zip(images, pairs, strict=True)])),
        }
        for score in ("psnr", "ssim"):
            of_all = interval([mark[f"{score}_box"] for mark in marks], groups)
            row[score] = [of_all.mean, of_all.low, of_all.high]
        rows.append(row | {"images": images})
        shares = [row[score][0] / rows[0][score][0] - 1 for score in ("psnr", "ssim")]
        met = "" if min(shares) < -AIM else "**"
        print(
            f"| {way} | {row['steps']} | {row['evaluations']} | {spread(row['psnr'], 2)} | {spread(row['ssim'], 3)} "
            f"| {row['detail']:.2f} | {met}{shares[0]:+.1%}, {shares[1]:+.1%}{met} | {seconds:.1f} |",
            flush=True,
        )
    return rows


def changed_solver(changes: dict[str, Any]) -> Any:
    """Return what makes a solver of diffusers with other settings."""
    made = samplers._solver

    def solver(*arguments: Any) -> Any:
        ours: Any = made(*arguments)
        return type(ours).from_config(ours.config, **changes) if changes else ours

    return solver


def detail(image: ByteArray, pair: MovedPair) -> float:
    """Return how large differences between neighbouring pixels are in the hand box, as a share of the truth's."""
    box = hand_box(pair.target)
    drawn, true = (pixels[box].astype(np.float64) for pixels in (image, pair.target.image))
    sizes = [float(np.mean([np.abs(np.diff(each, axis=axis)).mean() for axis in (0, 1)])) for each in (drawn, true)]
    return sizes[0] / sizes[1]


def spread(found: Sequence[float], digits: int) -> str:
    """Return a mean with its interval."""
    mean, low, high = (f"{value:.{digits}f}" for value in found)
    return f"{mean} ({low} to {high})"


if __name__ == "__main__":
    main()
