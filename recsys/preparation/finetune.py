"""Fine-tune the language model: texts of items chosen together get similar vectors.

Why in ``prepare``: the text vectors are made there once, and training reads them. Contrastive
learning (SimCSE, Gao et al. 2021; CLIP, Radford et al. 2021) with low-rank adapters (LoRA) and
frozen base weights:

    loss = −log softmax_j( cos(x_a, x_j) / τ − log q_j )[b]

in both directions, over the pairs (a, b) of a batch, where x are the vectors of item texts, (a, b)
are neighbouring items in a user's training events (any two in data without order), and q_j is the
share of j among the pairs. The correction by q_j avoids a penalty on popular items.

**No leak**: pairs come from training events only. The gain is measured on validation events, which
are in no pair, by text only: the query is the user's last training item, the target the first
validation item. The adapted model is kept only if its NDCG is better. Test events are not used.

Legend: N items, P pairs, Q validation queries, B pairs of a step, T width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from recsys.config import FinetuneConfig, TextConfig
from recsys.data.histories import Array, Histories, Split
from recsys.data.history_table import histories_from_table
from recsys.encoders.adapter import CONFIG, WEIGHTS, Adapter, with_adapter
from recsys.encoders.text import (
    load_language_model,
    max_tokens_of,
    mean_pooled,
    usable_cores,
)
from recsys.preparation.blocks import cluster_resources, fetch, put, ray_task, task
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.vector_cache import encode_texts
from recsys.processor import choose_matrix_library

K: Final = 20
MAX_QUERIES: Final = 5000
_WARMUP: Final = 0.1
_CHUNK: Final = 512


def finetune(
    folder: Folder,
    shards: Sequence[str],
    texts: Sequence[str | None],
    ordered: bool,
    config: TextConfig,
    seed: int,
    progress: Callable[[str], None],
) -> tuple[Adapter | None, dict[str, Any]]:
    """Train an adapter, measure it, and write it to ``text/adapter`` if it is better.

    Parameters
    ----------
    folder : Folder
        Folder of the dataset; its histories are written already.
    shards : Sequence[str]
        Names of the shards.
    texts : Sequence[str | None]
        Texts of the items in dense order.
    ordered : bool
        Whether histories have an order.
    config : TextConfig
        The language model, and the section ``finetune``.
    seed : int
        Seed of pairs, batches and weights.
    progress : Callable[[str], None]
        Gets the gain as one line.

    Returns
    -------
    tuple[Adapter | None, dict[str, Any]]
        The adapter (None where the model is better without it), and its description for the
        manifest.

    Raises
    ------
    ConfigError
        Peft or the language model is missing.
    """
    pairs_P2, queries_Q2 = _pairs_of_shards(folder, shards, texts, ordered, config.finetune, seed)
    described: dict[str, Any] = {"kept": False, "pairs": len(pairs_P2), "queries": len(queries_Q2)}
    if len(pairs_P2) < 2 or not len(queries_Q2):
        progress(
            "fine-tuning: too few pairs of items with text, or no validation event to measure on;"
            " skipped"
        )
        return None, described
    gpus = int(cluster_resources().get("GPU", 0) > 0)
    trained: tuple[Adapter, list[float]] = fetch(
        ray_task(train_adapter, num_gpus=gpus).remote(list(texts), pairs_P2, config, seed, gpus > 0)
    )
    adapter, losses = trained
    queries_Q2 = np.random.default_rng(seed).permutation(queries_Q2)[:MAX_QUERIES]
    before, after = (
        retrieval(encode_texts(texts, config, with_)[0], queries_Q2) for with_ in (None, adapter)
    )
    is_better = after[f"ndcg@{K}"] > before[f"ndcg@{K}"]
    tail = max(len(losses) // 10, 1)
    described |= {
        "steps": len(losses),
        "before": before,
        "after": after,
        "kept": is_better,
        "adapter": adapter.digest,
        "loss_first": float(np.mean(losses[:tail])),
        "loss_last": float(np.mean(losses[-tail:])),
    }
    gains = ", ".join(f"{name} {before[name]:.4f} → {after[name]:.4f}" for name in before)
    progress(
        f"fine-tuning: text only on {len(queries_Q2):,} validation events: {gains};"
        f" {'kept' if is_better else 'not kept'}"
    )
    if not is_better:
        return None, described
    folder.write_text(f"text/adapter/{CONFIG}", adapter.config)
    folder.write_bytes(f"text/adapter/{WEIGHTS}", adapter.weights)
    return adapter, described


def _pairs_of_shards(
    folder: Folder,
    shards: Sequence[str],
    texts: Sequence[str | None],
    ordered: bool,
    options: FinetuneConfig,
    seed: int,
) -> tuple[Array, Array]:
    """:func:`pairs_of` for all histories, in a task for each shard."""
    has_text_N = put(np.array([text is not None for text in texts]))
    finder = task(shard_pairs, 2)
    limit = -(-options.max_pairs // len(shards))
    refs = [
        finder.remote(folder, name, has_text_N, ordered, limit, [seed, i])
        for i, name in enumerate(shards)
    ]
    pairs_P2, queries_Q2 = (np.concatenate(fetch([ref[kind] for ref in refs])) for kind in (0, 1))
    return pairs_P2, queries_Q2


def shard_pairs(
    folder: Folder, name: str, has_text_N: Array, ordered: bool, limit: int, seed: Sequence[int]
) -> tuple[Array, Array]:
    """:func:`pairs_of` for the histories of one shard; runs in a task.

    Parameters
    ----------
    folder : Folder
        Folder of the dataset.
    name : str
        File name of the shard.
    has_text_N : Array, [N] bool
        Which items have a text.
    ordered : bool
        Whether histories have an order; else neighbours are random.
    limit : int
        Largest number of pairs.
    seed : Sequence[int]
        Seed of the sample.

    Returns
    -------
    array, [P, 2]
        Pairs of items.
    array, [Q, 2]
        The last training item and the first validation item of each user.
    """
    table = pq.read_table(f"{folder.path}/histories/{name}", filesystem=folder.filesystem)
    return pairs_of(histories_from_table(table), has_text_N, ordered, limit, seed)


def pairs_of(
    histories: Histories, has_text_N: Array, ordered: bool, limit: int, seed: Sequence[int]
) -> tuple[Array, Array]:
    """Pairs of items with a text that are neighbours in training, at most ``limit``: [P, 2]; and
    validation queries: each user's last training item and first validation item, [Q, 2].

    Parameters
    ----------
    histories : Histories
        The histories of some users.
    has_text_N : array, [N] bool
        Which items have a text.
    ordered : bool
        Whether histories have an order; else neighbours are random.
    limit : int
        Largest number of pairs.
    seed : Sequence[int]
        Seed of the sample.
    """
    random = np.random.default_rng(seed)
    with_text = histories.where(has_text_N[histories.items_E])
    train, valid = (
        with_text.where(with_text.splits_E == split) for split in (Split.TRAIN, Split.VALID)
    )
    users_E = np.repeat(np.arange(len(train)), train.lengths_U)
    items_E = train.items_E
    if not ordered:  # random neighbours
        items_E = items_E[np.lexsort((random.random(len(users_E)), users_E))]
    neighbours = (
        np.flatnonzero((users_E[1:] == users_E[:-1]) & (items_E[1:] != items_E[:-1]))
        if len(items_E)
        else users_E
    )
    chosen = np.sort(random.permutation(neighbours)[:limit])
    pairs_P2 = (
        np.stack([items_E[chosen], items_E[chosen + 1]], axis=1)
        if len(chosen)
        else np.zeros((0, 2), np.int32)
    )
    rows = np.flatnonzero((train.lengths_U > 0) & (valid.lengths_U > 0))
    last, first = items_E[train.offsets_U1[rows + 1] - 1], valid.items_E[valid.offsets_U1[rows]]
    return pairs_P2, np.stack([last, first], axis=1)[last != first]


def train_adapter(
    texts: Sequence[str | None],
    pairs_P2: Array,
    config: TextConfig,
    seed: int,
    gpu: bool,
    threads: int = 0,
) -> tuple[Adapter, list[float]]:
    """Train a new adapter by contrastive learning, in a task; returns it and the losses.

    Parameters
    ----------
    texts : Sequence[str or None]
        Texts of the items in dense order, [N].
    pairs_P2 : array, [P, 2] int
        The pairs of items, all with a text.
    config : TextConfig
        The language model, and the section ``finetune``.
    seed : int
        Seed of batches and weights.
    gpu : bool
        Whether to use a GPU if there is one.
    threads : int
        Number of CPU threads; 0: all usable cores.
    """
    import torch

    torch.set_num_threads(threads or usable_cores())
    choose_matrix_library()
    torch.manual_seed(seed)
    options, random = config.finetune, np.random.default_rng(seed)
    device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
    tokenizer, base = load_language_model(config.model, config.allow_download)
    model = with_adapter(base, options.rank, config.model).to(device).train()
    items_used = np.unique(pairs_P2)
    tokens = tokenizer(
        [texts[item] for item in items_used],
        truncation=True,
        max_length=max_tokens_of(base, config.max_tokens),
    )
    places_P2 = np.searchsorted(items_used, pairs_P2)
    log_q_2N = [
        np.log(np.bincount(places_P2[:, side], minlength=len(items_used)).clip(1) / len(pairs_P2))
        for side in (0, 1)
    ]
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=options.lr, weight_decay=0.01)
    losses = []
    for step, rows in enumerate(_batches(len(pairs_P2), options, random)):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * _lr_share(step, options.steps)
        sides = [_embed(model, tokenizer, tokens, places_P2[rows, side], device) for side in (0, 1)]
        logits_BB = sides[0] @ sides[1].T / options.temperature
        loss = sum(
            _in_batch(logits, places_P2[rows, side], log_q_2N[side]) / 2
            for logits, side in ((logits_BB, 1), (logits_BB.T, 0))
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return Adapter.of(model, config.model), losses


def _batches(num_pairs: int, options: FinetuneConfig, random: np.random.Generator) -> Any:
    """Yield the rows of every step; the pairs are shuffled again after each pass."""
    size, done = min(options.batch_size, num_pairs), 0
    while True:
        order = random.permutation(num_pairs)
        for start in range(0, num_pairs - size + 1, size):
            if done == options.steps:
                return
            done += 1
            yield order[start : start + size]


def _lr_share(step: int, steps: int) -> float:
    """Linear warm-up, then linear decay to zero."""
    warm = max(int(_WARMUP * steps), 1)
    return (step + 1) / warm if step < warm else (steps - step) / max(steps - warm, 1)


def _embed(model: Any, tokenizer: Any, tokens: Any, rows: Array, device: Any) -> Any:
    batch = {name: [values[row] for row in rows] for name, values in tokens.items()}
    padded = tokenizer.pad(batch, return_tensors="pt").to(device)
    return mean_pooled(model(**padded).last_hidden_state, padded["attention_mask"])


def _in_batch(logits_BB: Any, columns_B: Array, log_q_N: Array) -> Any:
    """Log-Q-corrected cross-entropy of the diagonal; the target's item is never a negative."""
    import torch

    items_B = torch.as_tensor(columns_B, device=logits_BB.device)
    same_BB = (items_B[:, None] == items_B[None, :]) & ~torch.eye(
        len(items_B), dtype=torch.bool, device=items_B.device
    )
    log_q_B = torch.as_tensor(log_q_N[columns_B], dtype=logits_BB.dtype, device=logits_BB.device)
    scores_BB = (logits_BB - log_q_B).masked_fill(same_BB, -torch.inf)
    return torch.nn.functional.cross_entropy(
        scores_BB, torch.arange(len(items_B), device=items_B.device)
    )


def retrieval(vectors_NT: Array, queries_Q2: Array) -> dict[str, float]:
    """recall@20 and ndcg@20 of the ranking of items by cosine with each query's first item; the
    target is its second item, and the first is not ranked.
    """
    unit_NT = vectors_NT.astype(np.float32)
    has_text_N = unit_NT.any(axis=1)
    ranks = []
    for start in range(0, len(queries_Q2), _CHUNK):
        sources, targets = queries_Q2[start : start + _CHUNK].T
        rows = np.arange(len(sources))
        scores_QN = np.where(has_text_N, unit_NT[sources] @ unit_NT.T, -np.inf)
        scores_QN[rows, sources] = -np.inf
        own_Q = scores_QN[rows, targets]
        ranks.append(
            (scores_QN > own_Q[:, None]).sum(1) + ((scores_QN == own_Q[:, None]).sum(1) - 1) / 2
        )
    rank_Q = np.concatenate(ranks)
    found_Q = rank_Q < K
    gain_Q = np.where(found_Q, 1 / np.log2(rank_Q + 2), 0.0)
    return {f"recall@{K}": float(found_Q.mean()), f"ndcg@{K}": float(gain_Q.mean())}
