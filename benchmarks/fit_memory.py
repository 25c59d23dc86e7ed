"""Measure the anonymous memory of one granularity: its graphs, then its fit.

    python -m benchmarks.fit_memory --dataset runs/scale/dataset item_cf form=factors rank=64

``--dataset`` is a prepared dataset, as ``python -m benchmarks.scale --folder FOLDER`` leaves one in
FOLDER. Pages of mapped files do not count. Memory is that above a process that has imported the
libraries and built the model.
"""

from __future__ import annotations

import argparse
import gc
from pathlib import Path

import torch

from benchmarks.in_turns import say
from benchmarks.peak_memory import Watch
from recsys.config import build_config
from recsys.config.yaml_reader import parse_yaml
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.granularities.base import Graphs, ItemView
from recsys.model import MultigrainModel
from recsys.training.fresh_model import build_graphs, build_model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="folder of a prepared dataset")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("granularity")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keys = dict(pair.split("=", 1) for pair in options.settings)
    values = {key: parse_yaml(text, f"cannot read {text!r}") for key, text in keys.items()}
    section = {"enabled": True, **values}
    tree = {"width": options.width, "granularities": {options.granularity: section}}
    config = build_config({"model": tree})
    dataset = PreparedDataset(options.dataset)
    _import_libraries()
    model = build_model(config.model, config.train, dataset, Split.TRAIN)
    gc.collect()
    before = anonymous_mib()
    with _watch() as building:
        graphs = build_graphs(dataset, Split.TRAIN, model, config.evaluate, config.seed)
    held = anonymous_mib()
    with _watch() as fitting:
        fit(model, graphs, options.width)
    say(
        f"memory of {options.granularity} in MiB",
        settings=keys,
        events=dataset.manifest.counts["train"],
        building=round(building.peak_mib - before),
        graphs=round(held - before),
        fit=round(fitting.peak_mib - before),
    )


def fit(model: MultigrainModel, graphs: Graphs, width: int) -> None:
    """Fit a closed form or strata, or take one step of a graph convolution."""
    items = ItemView(torch.randn(graphs.num_items, width), torch.zeros(graphs.num_items, 0))
    for _, module in model.encoders.each(closed_form=True):
        module.state(items, graphs)
    for _, module in model.encoders.each():
        if module.refit_due(0):
            module.refit(graphs, items, 0)
            continue
        base_ND = items.vectors_SD.requires_grad_()
        refined = ItemView(module.refine_items(base_ND, graphs), items.text_ST)
        state = module.state(refined, graphs).values()
        torch.stack([part.sum() for part in state if part.requires_grad]).sum().backward()


def _watch() -> Watch:
    """The anonymous memory of this process, read a hundred times a second."""
    return Watch(anonymous_mib, pause_s=0.01)


def anonymous_mib() -> float:
    """Anonymous memory of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def _import_libraries() -> None:
    import implicit.cpu.als
    import scipy.sparse.linalg
    import sklearn.cluster
    import torch_geometric

    del implicit, scipy, sklearn, torch_geometric


if __name__ == "__main__":
    main()
