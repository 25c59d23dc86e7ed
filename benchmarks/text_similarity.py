"""How well the texts of items alone rank: ndcg@20 on validation of the items whose text vectors are
most similar to the mean of a user's history, for prepared datasets. Prints one JSON line.

    recsys prepare --config beauty --data.dir data/transformer
    recsys prepare --config beauty --data.dir data/static --data.text.encoder static
    python -m benchmarks.text_similarity data/transformer data/static

Vectors are whitened as a model does it. Items of the history are left out, and no test is read.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn.functional import embedding_bag, normalize

from benchmarks.in_turns import say
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Queries, Split
from recsys.data.whitening import whiten
from recsys.evaluation.validation import Validator

_METRIC = "ndcg@20"


class Texts:
    """Cosine between an item's text and the mean of the texts of a history."""

    def __init__(self, dataset: PreparedDataset, num_directions: int) -> None:
        text_NT = torch.tensor(dataset.text_vectors_NT(), dtype=torch.float32)
        self.items_NW = normalize(whiten(text_NT, num_directions), dim=-1)

    def scores(self, queries: Queries) -> torch.Tensor:
        """The cosine of every item: [B, N]."""
        histories = queries.histories
        items_E = torch.from_numpy(histories.items_E).long()
        begins_B = torch.from_numpy(histories.offsets_U1[:-1])
        means_BW = embedding_bag(items_E, self.items_NW, begins_B, mode="mean")
        return normalize(means_BW, dim=-1) @ self.items_NW.T


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help="folder of recsys prepare")
    parser.add_argument("--directions", type=int, default=256, help="of the whitening; 0: none")
    options = parser.parse_args()
    validator, found = Validator(_METRIC, exclude_seen=True, chunk_users=512), {}
    for folder in options.datasets:
        dataset = PreparedDataset(folder)
        queries = dataset.histories().queries(Split.VALID)
        values_B = validator(Texts(dataset, options.directions), queries)
        found[folder] = {_METRIC: float(values_B.mean()), "users": len(values_B)}
    say("ranking by the similarity of texts alone", datasets=found)


if __name__ == "__main__":
    main()
