"""From a prepared dataset to a fresh model and its graphs, of the events through a split and no later ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys import schema
from recsys.config import Config
from recsys.data.attributes import FieldFitter, ProfileEncoding, Profiles, encode_table
from recsys.data.bounded import fitted_histories
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array, Histories, Split
from recsys.data.items import TEXT
from recsys.data.neighbours import Neighbours
from recsys.data.whitening import Whitening, whitened_width
from recsys.errors import ConfigError, choices
from recsys.granularities.base import Facts, Graphs, MediaVectors, ModelSizes, UserTextVectors
from recsys.granularities.collaborative.model import Collaborative
from recsys.granularities.profile.section import ProfileConfig
from recsys.model import MultigrainModel


@dataclass(frozen=True)
class Start:
    """Where a training begins instead of at random: weights, and how the model behind them reads attributes."""

    weights: dict[str, Tensor]
    profile: ProfileEncoding | None = None
    num_strata: int = 0
    names: tuple[str, ...] = ()  # the trained granularities, in the order of the weights' λ

    def whitening(self) -> list[Whitening] | None:
        """The text axes that the projections were trained on, by group; None for a model without text."""
        if "model.tower.text_axes_GTW" not in self.weights:
            return None
        kept = (self.weights[f"model.tower.text_{name}"].cpu() for name in ("mean_GT", "axes_GTW"))
        return [Whitening(mean_T, axes_TW) for mean_T, axes_TW in zip(*kept, strict=True)]


def model_sizes(
    config: Config, dataset: PreparedDataset, through: Split, num_strata: int = 0, start: Start | None = None
) -> ModelSizes:
    """The shape of a model for a dataset, as the events through a split fix it; ``num_strata`` as chosen, 0 for the
    most that the configuration allows."""
    group_width = int(dataset.manifest.text.get("dimension", 0)) // len(dataset.text_groups)
    section = config.model.granularities.profile
    profile = start.profile if start else None
    if section.enabled and profile is None:
        profile = profile_encoding(section, dataset, through)
    return ModelSizes(
        width=config.model.width,
        max_history=config.model.max_history,
        num_users=dataset.num_users,
        num_items=dataset.num_items,
        num_types=len(dataset.manifest.event_types),
        text_width=whitened_width(config.model.item.text_whiten, group_width) * len(dataset.text_groups),
        ordered=dataset.manifest.ordered,
        timed=dataset.manifest.timed,
        profile=profile if section.enabled else None,
        num_entities=dataset.manifest.counts.get("entities", 0),
        num_relations=dataset.manifest.counts.get("relations", 0),
        context=tuple((column.name, column.num_codes) for column in dataset.context),
        num_strata=num_strata,
        user_text_width=dataset.user_text_width,
        media=media_widths(dataset) if config.model.granularities.media.enabled else (),
    )


def build_model(
    config: Config, dataset: PreparedDataset, through: Split, num_strata: int = 0, start: Start | None = None
) -> MultigrainModel:
    """A fresh model, which reads texts and attributes as that of ``start`` does; ``num_strata`` as in the sizes.

    Items without events through ``through`` have no id part.
    """
    text_NT = torch.as_tensor(dataset.text_vectors_NT().astype(np.float32))
    trained_N = torch.as_tensor(dataset.item_counts_N(through) > 0)
    sizes = model_sizes(config, dataset, through, num_strata, start)
    whitening = start.whitening() if start else None
    model = MultigrainModel(config.model, sizes, text_NT, trained_N, len(dataset.text_groups), whitening)
    collaborative = model.encoders.granularities["collaborative"] if "collaborative" in model.encoders.names else None
    if isinstance(collaborative, Collaborative) and collaborative.users_VD is None:
        counts = dataset.manifest.counts
        num_edges = counts.get("train", 0) + counts.get("valid", 0)  # of both phases: they compute alike
        collaborative.is_sampled = num_edges > config.model.granularities.collaborative.max_edges
        collaborative.reads_events = not collaborative.is_sampled
    return model


def profile_encoding(config: ProfileConfig, dataset: PreparedDataset, through: Split) -> ProfileEncoding:
    """How attributes are read: vocabularies and statistics of the users and items that have events through ``through``.

    Raises:
        ConfigError: a field that the configuration names is not there, or cannot be read as it says.
    """
    users = FieldFitter(
        dataset.user_features, dataset.active_users_V(through), config, "user_fields", (schema.USER_ID,)
    )
    items = FieldFitter(
        dataset.features,
        dataset.item_counts_N(through) > 0,
        config,
        "item_fields",
        (schema.ITEM_ID, schema.ENTITY_ID, TEXT),
    )
    strays = sorted({*config.numeric, *config.categorical} - {*users.columns, *items.columns})
    if strays:
        raise ConfigError(
            f"model.granularities.profile: numeric and categorical name {', '.join(strays)}; columns of users: "
            f"{choices(users.columns) or 'none'}; of items: {choices(items.columns) or 'none'}"
        )
    return ProfileEncoding(users.fit(), items.fit())


def build_graphs(
    dataset: PreparedDataset,
    through: Split,
    profile: ProfileEncoding | None = None,
    with_facts: bool = False,
    with_media: bool = False,
    model: MultigrainModel | None = None,
    config: Config | None = None,
) -> Graphs:
    """The user–item events through ``through``, each item of a user once, the friendships, and, where asked for, the
    facts, the media and the attributes, which ``profile`` says how to read.

    The events are as ``model`` needs them: as a table, as lists in files, or counted; without a model, a table. So are
    the friendships: there or not.

    The histories in order, with repeats and times, are held only where a granularity of ``model`` reads them: those
    that baselines are fitted on, an even sample of users with about ``evaluate.max_fit_events`` events of ``config``,
    or all without a configuration. They cost 27 bytes an event.
    """
    edges, edge_values, counted_N, neighbours = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32), None, None
    if model is None or model.reads_events:
        edges, edge_values = _edges(dataset, through)
    if model is not None and model.is_sampled:
        neighbours = Neighbours.of_dataset(dataset, through)
    if model is not None and not model.reads_events:
        counted_N = _users_of_items(dataset, through) if neighbours is None else neighbours.users_of_N.degree_X
    no_friends = model is not None and "social" not in model.encoders.names
    src, dst, weight = (np.zeros(0),) * 3 if no_friends else dataset.social_edges()
    return Graphs(
        dataset.num_users,
        dataset.num_items,
        torch.as_tensor(edges // dataset.num_items),
        torch.as_tensor(edges % dataset.num_items),
        torch.as_tensor(src.astype(np.int64)),
        torch.as_tensor(dst.astype(np.int64)),
        torch.as_tensor(weight.astype(np.float32)),
        profiles=None
        if profile is None
        else Profiles(
            encode_table(dataset.user_features, profile.users), encode_table(dataset.features, profile.items)
        ),
        facts=build_facts(dataset) if with_facts else None,
        user_texts=_user_texts(dataset, through),
        values_E=torch.as_tensor(edge_values),
        media=build_media(dataset) if with_media else None,
        neighbours=neighbours,
        counted_N=None if counted_N is None else torch.as_tensor(counted_N).float(),
        histories=_histories(dataset, through, config) if model is not None and model.reads_histories else None,
    )


def _histories(dataset: PreparedDataset, through: Split, config: Config | None) -> Histories:
    found = dataset.histories() if config is None else fitted_histories(dataset, config)
    return found.through(through)


def _edges(dataset: PreparedDataset, through: Split) -> tuple[Array, Array]:
    """User and item of every edge as one number, in order, and its value: that of its last event."""
    found, values = [], []
    for shard in dataset.shards():
        seen = shard.through(through)
        users_E = np.repeat(seen.users_U, seen.lengths_U).astype(np.int64)
        pairs, pair_of = np.unique(users_E * dataset.num_items + seen.items_E, return_inverse=True)
        value_of = np.zeros(len(pairs), dtype=np.float32)
        value_of[pair_of] = seen.values_E
        found.append(pairs)
        values.append(value_of)
    edges = np.concatenate(found)  # no user is in two shards
    order = np.argsort(edges, kind="stable")
    return edges[order], np.concatenate(values)[order]


def _users_of_items(dataset: PreparedDataset, through: Split) -> Array:
    """How many users have each item, shard by shard: [N]."""
    counted_N = np.zeros(dataset.num_items, dtype=np.int64)
    for shard in dataset.shards():
        seen = shard.through(through)
        rows_E = np.repeat(np.arange(len(seen)), seen.lengths_U)
        pairs = np.unique(rows_E * dataset.num_items + seen.items_E)
        counted_N += np.bincount(pairs % dataset.num_items, minlength=dataset.num_items)
    return counted_N


def build_facts(dataset: PreparedDataset) -> Facts | None:
    """The knowledge graph, which no split cuts: facts are no events. None where there are no facts."""
    head, relation, tail = (torch.as_tensor(part.astype(np.int64)) for part in dataset.facts())
    if not len(head):
        return None
    counts = dataset.manifest.counts
    entities = torch.as_tensor(dataset.item_entities())
    return Facts(counts["entities"], counts["relations"], head, relation, tail, entities)


def media_widths(dataset: PreparedDataset) -> tuple[tuple[str, int], ...]:
    """Name and width of every medium, by name."""
    return tuple((name, int(dataset.manifest.media[name]["dimension"])) for name in sorted(dataset.media_names))


def build_media(dataset: PreparedDataset) -> MediaVectors:
    """The media in the order of the sizes; they are of the catalogue, which no split cuts."""
    return MediaVectors(
        tuple(torch.from_numpy(dataset.media_vectors(name).copy()) for name, _ in media_widths(dataset))
    )


def _user_texts(dataset: PreparedDataset, through: Split) -> UserTextVectors | None:
    """The texts of the events through ``through``; their mean and spread are those of the users' whole texts."""
    texts = dataset.user_texts(through)
    if texts is None:
        return None
    whole_V = texts.whole(np.arange(dataset.num_users))
    used_RT = texts.vectors_RT[np.unique(whole_V[whole_V >= 0])].astype(np.float32)
    spread_T = used_RT.std(axis=0) if len(used_RT) else np.ones(texts.vectors_RT.shape[1])
    return UserTextVectors(
        torch.from_numpy(texts.vectors_RT.copy()),
        torch.as_tensor(whole_V),
        torch.as_tensor(used_RT.mean(axis=0) if len(used_RT) else np.zeros_like(spread_T)).float(),
        torch.as_tensor(1 / np.maximum(spread_T, 1e-4)).float(),
    )
