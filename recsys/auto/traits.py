"""The properties of a prepared dataset that the choice of a model depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from recsys.auto.candidate_members import CANDIDATES, Tree, fed
from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Split
from recsys.data.loader import can_train
from recsys.data.look_ahead import default_look_ahead
from recsys.data.ties import tied_share
from recsys.training.step import sees_many_items

_MANY_TIED: Final = 0.1  # share of validation queries
_SIGNALS: Final = {  # candidate → its signal in words
    "repeat": "repeats",
    "content": "item text",
    "social": "friends",
    "knowledge": "triples",
    "profile": "user attributes",
    "place": "coordinates or quantities of items",
}


@dataclass(frozen=True)
class Traits:
    """Sizes and available signals."""

    users: int
    items: int
    events: int  # in the training and validation splits
    ordered: bool
    timed: bool
    trainable: bool = True  # whether there are events to train on
    # whether many validation targets have the time of the event before them
    tied: bool = False
    # the default of train.look_ahead; None where the split is not temporal
    look_ahead: int | None = None
    # whether the softmax leaves out seen items by default; None where lists hold them, or in sets
    leaves_out_seen: bool | None = None
    idle: Mapping[str, str] = field(default_factory=dict)  # unsupported candidates → reason
    # candidates with the keys that they propose for the data
    sections: Tree = field(default_factory=lambda: CANDIDATES)

    @property
    def length(self) -> float:
        """Mean number of events per user."""
        return self.events / max(self.users, 1)

    @property
    def text(self) -> bool:
        """Whether texts distinguish items."""
        return "content" not in self.idle

    @property
    def friends(self) -> bool:
        """Whether users have friends with events."""
        return "social" not in self.idle

    def describe(self) -> str:
        """Return one line for people.

        >>> idle = dict.fromkeys(_SIGNALS, "no")
        >>> Traits(1200, 80, 9000, ordered=True, timed=False, idle=idle).describe()
        '1,200 users, 80 items, 9,000 events; with order'
        """
        found = ["order"] * self.ordered + ["times"] * self.timed
        found += [word for name, word in _SIGNALS.items() if name not in self.idle]
        sizes = (("user", self.users), ("item", self.items), ("event", self.events))
        counted = ", ".join(f"{number:,} {noun}{'s' * (number != 1)}" for noun, number in sizes)
        return f"{counted}; with {', '.join(found) or 'ids only'}"

    @staticmethod
    def of(dataset: PreparedDataset, config: Config) -> Traits:
        """Read the manifest and check the candidates."""
        candidates = fed(config, dataset)
        manifest, counts = dataset.manifest, dataset.manifest.counts
        sample = dataset.shard(manifest.shards[0])  # users are distributed by hash
        return Traits(
            users=dataset.num_users,
            items=dataset.num_items,
            events=counts.get("train", 0) + counts.get("valid", 0),
            ordered=manifest.ordered,
            timed=manifest.timed,
            trainable=can_train(dataset, Split.TRAIN, config.train.num_workers),
            tied=manifest.has_free_ties and tied_share(sample) >= _MANY_TIED,
            look_ahead=default_look_ahead(dataset),
            leaves_out_seen=sees_many_items(dataset)
            if manifest.ordered and config.evaluate.exclude_seen
            else None,
            idle=candidates.idle,
            sections=candidates.sections,
        )
