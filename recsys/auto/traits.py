"""What a prepared dataset is like, as far as the choice of a model depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from recsys import schema
from recsys.config import Config
from recsys.data.dataset import PreparedDataset
from recsys.data.items import TEXT
from recsys.granularities.place.columns import found_columns

_OWN: Final = {schema.USER_ID, schema.ITEM_ID, schema.ENTITY_ID, TEXT}


@dataclass(frozen=True)
class Traits:
    """Sizes, and which signals there are."""

    users: int
    items: int
    events: int  # of training and validation
    ordered: bool
    timed: bool
    repeats: bool  # whether items that a user had are asked for again
    text: bool
    user_text: bool
    friends: bool
    facts: bool
    user_attributes: bool
    item_attributes: bool
    coordinates: bool
    media: bool

    @property
    def length(self) -> float:
        """Mean events of a user."""
        return self.events / max(self.users, 1)

    def describe(self) -> str:
        """One line for people."""
        signals = {
            "order": self.ordered,
            "times": self.timed,
            "repeats": self.repeats,
            "item text": self.text,
            "friends": self.friends,
            "facts": self.facts,
            "user attributes": self.user_attributes,
            "item attributes": self.item_attributes,
            "coordinates": self.coordinates,
            "media": self.media,
        }
        there = ", ".join(name for name, is_there in signals.items() if is_there) or "nothing but ids"
        return f"{self.users:,} users, {self.items:,} items, {self.events:,} events; with {there}"

    @staticmethod
    def of(dataset: PreparedDataset, config: Config) -> Traits:
        """Read the manifest and the columns of the features."""
        manifest, counts = dataset.manifest, dataset.manifest.counts
        item_columns = [name for name in dataset.features.column_names if name not in _OWN]
        user_columns = [name for name in dataset.user_features.column_names if name not in _OWN]
        return Traits(
            users=dataset.num_users,
            items=dataset.num_items,
            events=counts.get("train", 0) + counts.get("valid", 0),
            ordered=manifest.ordered,
            timed=manifest.timed,
            repeats=not config.evaluate.exclude_seen,
            text=bool(manifest.text.get("dimension")) and bool(dataset.has_text_N.any()),
            user_text=bool(dataset.user_text_width),
            friends=bool(counts.get("social_edges")),
            facts=bool(counts.get("facts")),
            user_attributes=_any_usable(dataset.user_features, user_columns),
            item_attributes=_any_usable(dataset.features, item_columns),
            coordinates=has_coordinates(item_columns),
            media=bool(dataset.media_names),
        )


def has_coordinates(columns: list[str]) -> bool:
    """Whether there is a column of latitudes and one of longitudes.

    >>> has_coordinates(["Latitude", "lng"]), has_coordinates(["lat"])
    (True, False)
    """
    return bool(found_columns(columns, (), ())[0])


def _any_usable(table: pa.Table, columns: list[str]) -> bool:
    """Whether any column has values."""
    return any(table.column(name).null_count < len(table) for name in columns)
