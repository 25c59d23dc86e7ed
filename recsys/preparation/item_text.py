"""Item texts by group of fields, and their concatenated vectors (S5).

Why concatenated: a linear projection of the row is a sum of one linear function per group, and the
item tower splits the row where a group needs a nonlinear function. One group is the usual case of
one text.

Legend: N items, G groups, T width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.config import TextConfig
from recsys.encoders.adapter import Adapter
from recsys.encoders.text import vector_identity
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.items import compose_text
from recsys.preparation.quarantine import join_present
from recsys.preparation.vector_cache import encode_texts


@dataclass(frozen=True)
class ItemText:
    """The texts of items in dense order, null where a group or an item has none."""

    groups: dict[str, list[str]]  # group → its columns
    texts: dict[str, pa.Array]  # group → [N]

    @property
    def whole(self) -> pa.Array:
        """The joined texts of all groups of every item: [N]."""
        return join_present(list(self.texts.values()), ". ")

    @property
    def num_items(self) -> int:
        """Number of items with a text."""
        return len(self.whole) - int(self.whole.null_count)

    def describe(self) -> str:
        """The columns for the console, by group if there are several."""
        if len(self.groups) == 1:
            return f"fields {', '.join(*self.groups.values())}"
        return "; ".join(f"{group}: {', '.join(columns)}" for group, columns in self.groups.items())


def compose_groups(
    features: pa.Table, groups: Mapping[str, list[str]], terms: pa.Table | None, event_column: str
) -> ItemText:
    """Compose the text of every group from its columns of ``features`` and, if it names the event
    column, from the items' terms.

    Parameters
    ----------
    features : pa.Table
        Table of the items, in dense order.
    groups : Mapping[str, list[str]]
        Group → its columns.
    terms : pa.Table | None
        Columns ``item`` (dense id) and ``terms``; None: no terms.
    event_column : str
        The event column that the terms come from.

    Returns
    -------
    ItemText
        One text per group and item, null where there is none.
    """
    texts = {
        group: compose_text(
            features,
            [name for name in columns if name != event_column],
            terms if event_column in columns else None,
            event_column,
        )
        for group, columns in groups.items()
    }
    return ItemText({group: list(columns) for group, columns in groups.items()}, texts)


def write_vectors(
    folder: Folder, text: ItemText, config: TextConfig, adapter: Adapter | None = None
) -> dict[str, Any]:
    """Write ``items/text_vectors.parquet``: ``vector`` (G·T float16 numbers, zero where a group has
    no text) and ``has_text``.

    Parameters
    ----------
    folder : Folder
        Folder of the dataset.
    text : ItemText
        Texts of the items.
    config : TextConfig
        The language model and the cache.
    adapter : Adapter | None
        Adapter of a fine-tuned language model.

    Returns
    -------
    dict[str, Any]
        Description of the vectors for the manifest.
    """
    num_groups, num_items = len(text.groups), len(text.whole)
    cells = [cell for texts in text.texts.values() for cell in texts.to_pylist()]
    vectors_XT, numbers = encode_texts(cells, config, adapter)
    dimension = num_groups * vectors_XT.shape[1]
    vectors_NT = vectors_XT.reshape(num_groups, num_items, -1).transpose(1, 0, 2).reshape(-1)
    column = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(vectors_NT)), dimension
    )
    table = pa.table({"vector": column, "has_text": pc.is_valid(text.whole)})
    folder.write_table("items/text_vectors.parquet", table)
    groups = {"groups": text.groups} if num_groups > 1 else {}
    described = {
        "model": config.model,
        "identity": vector_identity(config, adapter),
        "dimension": dimension,
    }
    return numbers | groups | described
