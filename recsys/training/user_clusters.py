"""User clusters (strata): choose their number on validation before training, and refit them in a
trained model.

The refit fits them to newer events; nothing else in the model changes.

Legend: B queries, P validation targets, K strata, N items, T width of the vectors, D model width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds
from torch import Tensor
from torch.nn.functional import normalize

from recsys.config import ModelConfig, TrainConfig
from recsys.data.batches import Batch, every_position, whole_history
from recsys.data.dataset import PreparedDataset
from recsys.data.first_touch import asks_before_first_touch, with_first_touches
from recsys.data.hidden import Hidden
from recsys.data.histories import Array, Histories, Split
from recsys.data.whitening import whiten
from recsys.errors import ConfigError
from recsys.granularities.base import Graphs, ModelSizes
from recsys.granularities.event_matrix import EventMatrix
from recsys.granularities.stratum.clustering import (
    UserClusters,
    UserVectors,
    choices_counts,
    fit_user_clusters,
)
from recsys.granularities.stratum.model import Stratum
from recsys.model import FrozenModel
from recsys.softmax import full_softmax, sampled_softmax
from recsys.training.context import TrainContext
from recsys.training.fresh_model import build_graphs

STRATA: Final = "strata"
_STEPS, _LR = 100, 0.05  # of the re-estimation of the prototypes
_MAX_ROWS, _ROWS = 4096, 64  # users that it reads, in all and per step
_RIDGE: Final = 0.1  # penalty in nats for moving every prototype by its own size


def choose_user_clusters(
    model: ModelConfig, seed: int, dataset: PreparedDataset, context: TrainContext
) -> dict[str, Any]:
    """Choose the number of clusters with the highest likelihood of the validation events.

    For each candidate K, clusters are fitted on training events; each gets the item distribution of
    its users,

        q_k(i) = (Σ_u p(k|u) c_ui + N π(i)) / (Σ_iu p(k|u) c_ui + N),    π: popularity,

    and the score is the mean of log Σ_k p(k|u) q_k(i) over the validation targets (u, i). Nothing
    is trained, so the choice takes seconds and sees no test event. Users are compared as the
    granularity does; without text by a singular value decomposition of the training choices, since
    item vectors are not learned yet.

    Returns ``{chosen, score, candidates: {K: score}, popularity: score}``; a single candidate is
    used without a search.

    Parameters
    ----------
    model : ModelConfig
        The section ``model``.
    seed : int
        Seed of the clustering.
    dataset : PreparedDataset
        The dataset; clusters are fitted on training events, scored on validation events.
    context : TrainContext
        All workers take the choice of the first one.

    Raises
    ------
    ConfigError
        Every candidate has more clusters than there are users.
    """
    section = model.granularities.stratum
    candidates = sorted(set(section.num_strata))
    if len(candidates) == 1:
        return {"chosen": candidates[0], "candidates": {}}
    graphs = build_graphs(dataset, Split.TRAIN, context=context)
    users = UserVectors(EventMatrix.of(graphs), _unit_vectors(model, seed, dataset, graphs))
    possible = [number for number in candidates if number <= len(users)]
    if not possible:
        raise ConfigError(
            f"model.granularities.stratum.num_strata {candidates}: only {len(users)} users have a"
            " training event with a vector; set a smaller number, or disable stratum"
        )
    users_P, items_P = _targets(dataset, users)
    popularity_N = graphs.degree_N.double().numpy() + 1
    popularity_N /= popularity_N.sum()
    scores = {}
    for number in possible:
        clusters = fit_user_clusters(users, number, section.method, seed)
        scores[number] = _log_likelihood(
            clusters, users, popularity_N, section.temperature, (users_P, items_P)
        )
    best = max(scores, key=lambda number: (scores[number], -number))
    chosen = int(context.from_first(torch.tensor(best)))  # rounding must not make workers differ
    baseline = float(np.log(popularity_N[items_P]).mean()) if len(items_P) else 0.0
    return {
        "chosen": chosen,
        "score": "mean log-likelihood of the validation targets",
        "candidates": {str(number): score for number, score in scores.items()},
        "popularity": baseline,
    }


def _unit_vectors(model: ModelConfig, seed: int, dataset: PreparedDataset, graphs: Graphs) -> Array:
    """Unit vectors of the items, by which users are compared before training: [N, T]."""
    text_NT = torch.as_tensor(dataset.text_vectors_NT().astype(np.float32))
    if model.granularities.stratum.input == "text" and text_NT.shape[1]:
        return normalize(whiten(text_NT, model.item.text_whiten), dim=1).numpy()
    events_VN = EventMatrix.of(graphs, lambda users_E, items_E, at: np.ones(len(items_E)))
    rank = max(1, min(model.width, min(events_VN.shape) - 1))
    operator = LinearOperator(
        events_VN.shape,
        matvec=lambda x_N: np.concatenate([part @ x_N for _, part in events_VN.blocks()]),
        rmatvec=lambda x_V: sum(part.T @ x_V[rows] for rows, part in events_VN.blocks()),
        dtype=np.float64,
    )
    _, strength_T, items_TN = svds(operator, k=rank, rng=np.random.default_rng(seed))
    return normalize(torch.as_tensor((items_TN * strength_T[:, None]).T.copy()), dim=1).numpy()


def _targets(dataset: PreparedDataset, users: UserVectors) -> tuple[Array, Array]:
    """User and item of every validation target whose user has a vector."""
    found_users, found_items = [], []
    for shard in dataset.shards():
        queries = shard.queries(Split.VALID)
        found_users.append(queries.histories.users_U[queries.target_rows()].astype(np.int64))
        found_items.append(queries.target_items.astype(np.int64))
    users_P, items_P = np.concatenate(found_users), np.concatenate(found_items)
    kept_P = np.isin(users_P, users.active_U)
    return users_P[kept_P], items_P[kept_P]


def _log_likelihood(
    clusters: UserClusters,
    users: UserVectors,
    popularity_N: Array,
    temperature: float,
    targets: tuple[Array, Array],
) -> float:
    users_P, items_P = targets
    mass = len(popularity_N)
    counts_KN = choices_counts(clusters, users, temperature)
    q_KN = (counts_KN + mass * popularity_N) / (counts_KN.sum(axis=1, keepdims=True) + mass)
    total = 0.0
    for piece in np.array_split(np.arange(len(users_P)), max(1, len(users_P) // 8192)):
        p_PK = clusters.memberships(users.of(users_P[piece]), temperature)
        total += float(np.log(np.einsum("pk,kp->p", p_PK, q_KN[:, items_P[piece]])).sum())
    return total / max(len(users_P), 1)


def refit_user_clusters(
    max_history: int,
    train: TrainConfig,
    seed: int,
    dataset: PreparedDataset,
    frozen: FrozenModel,
    through: Split = Split.VALID,
) -> FrozenModel:
    """A copy of a trained model whose strata are fitted on the events of ``dataset`` through
    ``through``.

    Centroids are fitted again and numbered as before, so that prototypes keep their meaning. The
    prototypes are then trained for a few steps of the softmax loss with the new memberships, with a
    penalty for moving. No other weight changes. The first items of ``dataset`` must be those of the
    model, in its order; it may have newer events and more users. Events on newer items are left
    out.

    Parameters
    ----------
    max_history : int
        Most events of a history in a batch (``model.max_history``).
    train : TrainConfig
        The loss.
    seed : int
        Seed of the fit and of the steps.
    dataset : PreparedDataset
        The dataset with the newer events.
    frozen : FrozenModel
        The trained model; it is not changed.
    through : Split
        The last split whose events are read.

    Raises
    ------
    ConfigError
        The model has no granularity stratum, or the dataset has fewer items than the model.
    """
    if "stratum" not in frozen.names:
        raise ConfigError(
            "the model has no granularity stratum to fit again; train a model with stratum enabled"
        )
    if dataset.num_items < frozen.sizes.num_items:
        raise ConfigError(
            f"the dataset has {dataset.num_items} items, the model {frozen.sizes.num_items}: it is"
            " not the data of the model plus newer events; prepare it with the ids of the model,"
            " or run `recsys train`"
        )
    encoders = copy.deepcopy(frozen.encoders)
    rest = frozen.items, frozen.states, frozen.popularity_N, frozen.rating_head
    renewed = FrozenModel(frozen.config, frozen.sizes, encoders, *rest)
    module = stratum_module(renewed)
    assert module is not None
    num_items = frozen.sizes.num_items
    graphs = build_graphs(dataset, through).where(lambda _, items_E: items_E < num_items)
    graphs = replace(graphs, num_items=num_items)
    module.refit(graphs, frozen.items, seed)
    _reestimate(max_history, train, seed, dataset, renewed, module, through)
    return renewed


def stratum_module(model: FrozenModel) -> Stratum | None:
    """The module of the granularity stratum; None if the model does not have it."""
    return next(
        (module for _, module in model.encoders.each() if isinstance(module, Stratum)), None
    )


def _reestimate(
    max_history: int,
    train: TrainConfig,
    seed: int,
    dataset: PreparedDataset,
    model: FrozenModel,
    module: Stratum,
    through: Split,
) -> None:
    """Train only the prototypes and the scale of the scores, with
    some steps of the softmax loss.
    """
    model.encoders.eval()
    before_KD = module.prototypes_KD.detach().clone()
    size = before_KD.square().mean().sqrt().clamp(min=1e-6)
    moved_KD = torch.zeros_like(before_KD, requires_grad=True)  # in units of the prototypes' size
    log_scale = torch.tensor(-math.log(train.loss.temperature), requires_grad=True)
    optimizer = torch.optim.Adam([moved_KD, log_scale], lr=_LR)
    draws = torch.Generator().manual_seed(seed)
    for _, batch in zip(
        range(_STEPS), _batches(max_history, seed, dataset, through, model.sizes), strict=False
    ):
        rest_BD, own_B1, p_BK = _frozen_scores(model, module, batch)
        z_BD = p_BK @ (before_KD + size * moved_KD)
        z_BD = normalize(z_BD, dim=1) if model.encoders.unit_vectors else z_BD
        loss = _loss(
            train,
            (rest_BD + own_B1 * z_BD) * log_scale.exp(),
            model.items.vectors_SD,
            batch,
            draws,
        )
        loss = loss / max(len(batch.pairs_P), 1) + _RIDGE * moved_KD.square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        module.prototypes_KD.copy_(before_KD + size * moved_KD)


@torch.no_grad()
def _frozen_scores(
    model: FrozenModel, module: Stratum, batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ λ z of the other granularities [B, D], λ of the stratum [B,
    1] and the memberships [B, K].
    """
    z_BKD, present_BK = model.encoders.encode(batch, model.items, model.states)
    _, weights_BK = model.encoders.fusion(z_BKD, present_BK)
    k = model.names.index("stratum")
    own_B1 = weights_BK[:, [k]].clone()
    weights_BK = weights_BK.index_fill(1, torch.tensor([k]), 0.0)
    rest_BD = torch.einsum("bk,bkd->bd", weights_BK, z_BKD)
    return rest_BD, own_B1, module.memberships(batch, model.items)[0]


def _loss(
    train: TrainConfig, users_BD: Tensor, items_ND: Tensor, batch: Batch, draws: torch.Generator
) -> Tensor:
    """The summed softmax loss, over all items or, where they are many, over evenly drawn ones."""
    pairs = (users_BD, items_ND, batch.pairs_P, batch.targets_P, torch.ones(len(batch.pairs_P)))
    num_items, settings = len(items_ND), train.loss
    if num_items <= settings.max_full_items:
        return full_softmax(*pairs)
    negatives_M = torch.randint(num_items, (settings.num_negatives,), generator=draws)
    log_q_M = torch.full((settings.num_negatives,), math.log(settings.num_negatives / num_items))
    return sampled_softmax(*pairs, negatives_M=negatives_M, log_q_M=log_q_M)


def _batches(
    max_history: int, seed: int, dataset: PreparedDataset, through: Split, sizes: ModelSizes
) -> Iterator[Batch]:
    """Yield batches of users with their newest events, without end; a sample of the users if there
    are many.

    Yields
    ------
    Batch
        A random batch, drawn with the seed of the configuration.
    """
    least, shards, left = 2 if dataset.manifest.ordered else 1, [], _MAX_ROWS
    for shard in dataset.shards():
        seen = shard.through(through)
        seen = seen.where(seen.items_E < sizes.num_items)
        newer_U = seen.users_U >= sizes.num_users  # unknown users for the other granularities
        seen = replace(seen, users_U=np.where(newer_U, -1, seen.users_U).astype(np.int32))
        shards.append(seen.take(np.flatnonzero(seen.lengths_U >= least)[:left]))
        left -= len(shards[-1])
    sample, random = Histories.concat(shards), np.random.default_rng(seed)
    sample = with_first_touches(sample) if asks_before_first_touch(dataset) else sample
    while len(sample):
        rows = random.choice(len(sample), min(_ROWS, len(sample)), replace=False)
        if dataset.manifest.ordered:
            yield every_position(sample, max_history, rows)
        else:
            yield whole_history(sample, max_history, rows, Hidden(0.0, 0))
