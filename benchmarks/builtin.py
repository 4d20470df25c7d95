"""Make the network that the package has, ``handdata/trainer/builtin.safetensors``, of a training run.

    make learn
    cd learning-run
    handdata train --preset carried-128 --config ../benchmarks/builtin.toml --run builtin --gpus 0 \\
        --init workspace/runs/learn/checkpoints/step-00005000/ema.safetensors
    python ../benchmarks/builtin.py workspace/runs/builtin

Its weights are the run's averaged ones in float16, its head has the run's settings. Commit it seldom: the repository
keeps every version. ``handdata/trainer/builtin.md`` is its card.
"""

import argparse
import hashlib
import json

import torch
from safetensors.torch import save

from handdata.trainer.checkpoints import builtin_file, load_for_sampling

LARGEST_BYTES = 6_000_000


def main() -> None:
    """Write the file, and print its size and SHA-256."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run's or a checkpoint's folder")
    network, settings = load_for_sampling(parser.parse_args().run)
    weights = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise SystemExit("a weight is too large for float16")
    if 2 * sum(map(torch.numel, weights.values())) > LARGEST_BYTES:
        raise SystemExit(f"more than {LARGEST_BYTES / 1e6:.0f} MB: too large for the package")
    head = {"format": "pt", "config": json.dumps(settings), "license": "Apache-2.0"}
    content = save(weights, head)
    builtin_file().write_bytes(content)
    print(f"{builtin_file()}: {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
