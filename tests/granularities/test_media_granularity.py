"""Media as a granularity: results by hand, tensors saved with a model, and warm starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import Config, GranularitiesConfig, build_config
from recsys.data.batches import last_position
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Queries, Split
from recsys.data.whitening import whiten
from recsys.errors import ArtifactError, ConfigError
from recsys.evaluation.validation import Validator
from recsys.granularities import granularity_class
from recsys.granularities.base import Graphs, ItemView, ModelSizes
from recsys.granularities.media.model import Media, MediaVectors
from recsys.granularities.media.section import MediaConfig
from recsys.model import dump_sizes, load_sizes
from recsys.preparation.media import media_table
from recsys.serving.bundles import read_bundle, write_bundle
from recsys.training.context import TrainContext
from recsys.training.fresh_model import build_graphs, build_model, model_sizes
from recsys.training.phases import fit
from recsys.training.warm_start import Earlier, warm_start
from tests.handmade import ITEMS, small_world

SIZES = ModelSizes(
    2, 4, 1, 4, 1, 0, ordered=False, timed=False, inputs={"media": [["audio", 2], ["image", 2]]}
)
NOTHING = torch.zeros(0, dtype=torch.int64)


def with_media(dataset: PreparedDataset, media: dict[str, Array]) -> PreparedDataset:
    """The dataset with media vectors."""
    root = Path(dataset.root)
    pq.write_table(media_table(media), root / "items/media.parquet")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["media"] = {name: {"dimension": vectors.shape[1]} for name, vectors in media.items()}
    (root / "manifest.json").write_text(json.dumps(manifest))
    return PreparedDataset(dataset.root)


def vectors(width: int, items: int = ITEMS, seed: int = 0) -> Array:
    made = np.random.default_rng(seed).normal(size=(items, width)).astype(np.float16)
    made[3] = 0
    return made


def config(**train: float) -> Config:
    granularities = {name: {"enabled": True} for name in ("evolution", "media")}
    return build_config(
        {
            "model": {"width": 8, "max_history": 6, "granularities": granularities},
            "train": {
                "epochs": 3,
                "batch_size": 8,
                "lr": 0.01,
                "metric": "ndcg@5",
                "warmup": 0.0,
                **train,
            },
            "evaluate": {"ks": [5]},
        }
    )


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return with_media(
        small_world(tmp_path / "dataset"), {"image": vectors(4), "audio": vectors(3, seed=1)}
    )


def ask(*histories: list[int]) -> Queries:
    nothing = np.zeros(0, dtype=np.int32)
    return Queries(
        Histories.of_items(list(histories)), np.zeros(len(histories) + 1, dtype=np.int64), nothing
    )


def test_sums_and_pooling_equal_those_by_hand() -> None:
    """Two media along the axes: white is ±1 around the mean; w P white are summed, missing ones add
    nothing.
    """
    audio = torch.tensor(
        [[3.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    ).half()  # mean (2, 0): white ±1
    image = torch.tensor(
        [[0.0, 0.0], [5.0, 1.0], [5.0, 3.0], [0.0, 0.0]]
    ).half()  # mean (5, 2): white ∓1 in the second
    graphs = Graphs(1, 4, NOTHING, NOTHING, inputs={"media": MediaVectors((audio, image))})
    module = Media(MediaConfig(enabled=True, whiten=0, dropout=0.0), SIZES).eval()
    module.refit(graphs, ItemView(torch.zeros(4, 2), torch.zeros(4, 0)), 0)
    assert module.looks is not None
    with torch.no_grad():
        module.looks.weight_K.copy_(torch.tensor([2.0, 0.5]))
        module.looks.projections[0].weight.copy_(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))  # type: ignore[operator]
        module.looks.projections[1].weight.copy_(torch.tensor([[0.0, 4.0], [0.0, 2.0]]))  # type: ignore[operator]
    base = torch.full((4, 2), 10.0)
    refined = module.refine_items(base, graphs)
    media_part = torch.tensor([[2.0, 6.0], [-2.0 - 2.0, -6.0 - 1.0], [2.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(refined - base, media_part)
    items = ItemView(refined, torch.zeros(4, 0))
    state = module.state(items, graphs)
    torch.testing.assert_close(state["looks_ND"], media_part * 2**0.5)
    z, present = module(last_position(ask([0], [3, 2], [3], [2]), 4), items, state)
    assert present.tolist() == [True, True, False, True] and not z[2].any()
    torch.testing.assert_close(z[0], module.pool.norm(module.pool.value(state["looks_ND"][0])))
    torch.testing.assert_close(z[1], z[3])  # an item without media is left out
    apart = Media(MediaConfig(enabled=True, refine=False), SIZES)
    assert apart.refine_items(base, graphs) is base


def test_each_medium_is_whitened_as_text_is(dataset: PreparedDataset) -> None:
    sizes = model_sizes(config().model, dataset, Split.TRAIN)
    module = Media(MediaConfig(whiten=2), sizes)
    media = Media.build_input(MediaConfig(), sizes, dataset, Split.TRAIN)
    assert module.looks is not None and module.refit_due(0)
    module.looks.whiten(media)
    for found, name in zip(module.looks.white(media), ("audio", "image"), strict=True):
        torch.testing.assert_close(
            found, whiten(torch.from_numpy(dataset.media_vectors(name).copy()), 2)
        )
        assert not found[3].any() and found.shape == (ITEMS, 2)
    assert not module.refit_due(0), "earlier axes stay"


def test_media_are_read_only_if_the_granularity_is_enabled(dataset: PreparedDataset) -> None:
    settings = config()
    sizes = model_sizes(settings.model, dataset, Split.TRAIN)
    assert sizes.inputs == {"media": [["audio", 3], ["image", 4]]}
    assert load_sizes(json.loads(json.dumps(dump_sizes(sizes)))) == sizes
    assert (
        "media"
        in build_graphs(
            dataset, Split.TRAIN, build_model(settings.model, settings.train, dataset, Split.TRAIN)
        ).inputs
    )
    settings.model.granularities.media.enabled = False
    assert model_sizes(settings.model, dataset, Split.TRAIN).inputs == {}
    assert (
        build_graphs(
            dataset, Split.TRAIN, build_model(settings.model, settings.train, dataset, Split.TRAIN)
        ).inputs
        == {}
    )


def test_data_without_media_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"media needs media vectors.*has none; disable it, or name.*data\.media\.columns",
    ):
        settings = config()
        build_model(settings.model, settings.train, small_world(tmp_path / "dataset"), Split.TRAIN)
    with pytest.raises(ConfigError, match="media.heads 3 does not divide model.width 2"):
        granularity_class("media")(
            GranularitiesConfig().media.model_copy(update={"heads": 3}), SIZES
        )


def test_bundle_works_without_media_files(
    dataset: PreparedDataset, tmp_path: Path, one_thread: None
) -> None:
    settings = config()
    frozen = fit(
        settings, dataset, Validator.of(settings.train, settings.evaluate), TrainContext()
    ).frozen
    write_bundle(tmp_path / "bundle", frozen, dataset, {})
    read = read_bundle(tmp_path / "bundle").model
    assert (
        not [name for name in read.tensors() if "looks." in name]
        and "state.media.looks_ND" in read.tensors()
    )
    queries = ask([0, 1, 2], [3], [], [5, 3])
    assert read.encode(queries)[1][:, read.names.index("media")].tolist() == [
        True,
        False,
        False,
        True,
    ]
    torch.testing.assert_close(read.scores(queries), frozen.scores(queries), rtol=1e-4, atol=1e-4)


def test_warm_start_keeps_the_axes(
    dataset: PreparedDataset, tmp_path: Path, one_thread: None
) -> None:
    """Also if other vectors would rotate them; different media are refused, and media may be added
    later.
    """
    settings = config()
    first = fit(settings, dataset, Validator.of(settings.train, settings.evaluate), TrainContext())
    earlier = Earlier(first.weights, first.frozen.sizes)
    start, added = warm_start(settings.model, settings.train, settings.seed, dataset, earlier)
    again = fit(
        config(lr=1e-12),
        dataset,
        Validator.of(settings.train, settings.evaluate),
        TrainContext(),
        start=start,
    )
    assert added == []
    for name, tensor in first.frozen.tensors().items():
        torch.testing.assert_close(again.frozen.tensors()[name], tensor, rtol=1e-4, atol=1e-5)
    turned = with_media(
        small_world(tmp_path / "turned"),
        {"image": 2 * vectors(4, seed=5), "audio": vectors(3, seed=6)},
    )
    start, _ = warm_start(settings.model, settings.train, settings.seed, turned, earlier)
    later = fit(
        settings,
        turned,
        Validator.of(settings.train, settings.evaluate),
        TrainContext(),
        start=start,
    )
    axes = [name for name in first.weights if "looks.axes" in name or "looks.mean" in name]
    assert len(axes) == 4
    assert all(
        torch.equal(later.weights[name], first.weights[name]) and first.weights[name].any()
        for name in axes
    )
    other = with_media(small_world(tmp_path / "other"), {"image": vectors(4)})
    with pytest.raises(
        ArtifactError, match=r"media audio \(3\), image \(4\), this dataset has image \(4\)"
    ):
        warm_start(settings.model, settings.train, settings.seed, other, earlier)
    blind = Earlier(
        {name: tensor for name, tensor in first.weights.items() if ".media." not in name},
        replace(first.frozen.sizes, inputs={}),
    )
    start, added = warm_start(settings.model, settings.train, settings.seed, dataset, blind)
    assert added and all(".media." in name for name in added)
    seeing = fit(
        settings,
        dataset,
        Validator.of(settings.train, settings.evaluate),
        TrainContext(),
        start=start,
    )
    assert seeing.best_epoch == 0 or all(seeing.weights[name].any() for name in axes)
