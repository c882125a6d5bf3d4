"""What a search step costs beside a plain training step of the same full tables, at Criteo's shape.

Steps alternate within one process, with the product's own models, optimisers and step functions. The table gives
median and quartiles, and the median of the ratios to the plain step next to it.

    python -m benchmarks.steps --rounds 60
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from benchmarks import shapes
from stages import _model

CANDIDATES = [2, 8, 16, 24, 32]  # the paper's


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--values", type=int, default=1_086_810)
    parser.add_argument("--batch-size", type=int, default=2000)
    parser.add_argument("--backbone", default="deepfm")
    options = parser.parse_args()
    _model.tune()
    import torch

    from pipeline.budget import prices
    from pipeline.data import Batches, Split
    from pipeline.evidence import Evidence
    from pipeline.lit import LitCTR, LitSearch, Steps
    from pipeline.model import CTRModel, assemble
    from pipeline.plug import plug

    torch.manual_seed(0)
    schema, dim = shapes.criteo(options.values), CANDIDATES[-1]
    batches = shapes.batches(schema, options.batch_size, 24)
    rows = Split(tuple(ids.numpy() for ids, _ in batches), tuple(y.numpy().astype(np.uint8) for _, y in batches))
    autodim, full = plug("methods", "autodim"), plug("methods", "full")
    backbone = plug("backbones", options.backbone).Backbone
    candidates = [CANDIDATES] * len(schema)
    priced = prices(autodim.build, schema, candidates, dim)
    plain_model = assemble(
        schema, dim, full.derive(Evidence(schema, dim, tuple(map(tuple, candidates)), priced, 0)), full.build, backbone
    )
    plain = LitCTR(plain_model, rows, planned=1000)
    supernet = CTRModel(schema, autodim.search(schema, dim, candidates, priced), backbone)
    searched = LitSearch(
        supernet, rows, 1000, Batches(rows, options.batch_size, seed=1), Steps(), schema.names, candidates, priced
    )
    plain_optimizers, search_optimizers = plain.configure_optimizers(), searched.configure_optimizers()
    steps: dict[str, Callable[[int], None]] = {
        "plain step": lambda i: plain.weight_step(batches[i % len(batches)], plain_optimizers),
        "search step: weights": lambda i: searched.weight_step(batches[i % len(batches)], search_optimizers),
        "search step: architecture": lambda i: searched.arch_step(batches[i % len(batches)]),
    }
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(options.rounds + 5):
        for name, step in steps.items():
            began = time.perf_counter()
            step(i)
            if i >= 5:
                taken[name].append(1e3 * (time.perf_counter() - began))
    weights, arch = np.array(taken["search step: weights"]), np.array(taken["search step: architecture"])
    taken["weights + architecture / 10"] = (weights + arch / 10).tolist()
    touched = np.mean([len(np.unique(ids.numpy() + np.cumsum([0, *schema.cardinalities[:-1]]))) for ids, _ in batches])
    print(
        f"{len(schema)} fields, {schema.cardinalities.sum():,} values, D = {dim}, batch {options.batch_size:,} "
        f"({touched:,.0f} distinct rows), {options.backbone}, {torch.get_num_threads()} threads, "
        f"{options.rounds} rounds"
    )
    print(f"{'ms':28s} {'median':>8s} {'quartiles':>15s} {'ratio':>6s}")
    for name, values in taken.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        ratio = np.median(np.array(values) / taken["plain step"])
        print(f"{name:28s} {middle:8.1f} {low:7.1f} {high:7.1f} {ratio:6.2f}")


if __name__ == "__main__":
    main()
