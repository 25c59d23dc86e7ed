"""A prepared dataset that is written again without some users.

Legend: U users before.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.fs

from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array
from recsys.data.manifest import Manifest
from recsys.data.renumber import Renumbering
from recsys.preparation.dataset_writer import MANIFEST, Folder


class Rewrite:
    """The old dataset, the folder of the new one, and what has been rewritten so far.

    Parameters
    ----------
    source : PreparedDataset
        The old dataset.
    gone : Array
        Dense ids of the users who are removed, sorted.
    numbering : Renumbering
        Dense ids before and after.
    folder : Folder
        Folder of the new dataset.
    """

    def __init__(
        self, source: PreparedDataset, gone: Array, numbering: Renumbering, folder: Folder
    ) -> None:
        self.source, self.gone, self.numbering, self.folder = source, gone, numbering, folder
        self.manifest = Manifest.parse(source.manifest.dump())
        self.rows: Counter[str] = Counter()  # file → number of deleted rows
        self.left: list[str] = []  # what remains of the users
        self.done: set[str] = {MANIFEST}

    def write(self, name: str, table: pa.Table) -> None:
        """Write a table; the file is then done."""
        self.done.add(name)
        self.folder.write_table(name, table)

    def names(self) -> list[str]:
        """Names of all files of the dataset."""
        base = self.source._base.rstrip("/")
        selector = pyarrow.fs.FileSelector(base, recursive=True)
        found = self.source.filesystem.get_file_info(selector)
        return sorted(
            info.path[len(base) + 1 :] for info in found if info.type == pyarrow.fs.FileType.File
        )

    def without_gone(self, table: pa.Table, column: str) -> pa.Table:
        """The rows whose dense user id in ``column`` stays."""
        return table.filter(pa.array(~np.isin(np.asarray(table.column(column)), self.gone)))

    def renumbered(self, table: pa.Table, column: str) -> pa.Table:
        """The table with the new dense ids of users in ``column``."""
        number_X = self.numbering.number_U[np.asarray(table.column(column))]
        field = table.schema.field(column)
        position = table.schema.get_field_index(column)
        return table.set_column(position, field, pa.array(number_X).cast(field.type))


def with_used_texts(table: pa.Table) -> pa.Table:
    """Drop unused texts from dictionaries; a filtered table keeps the texts of deleted rows."""
    for position, field_ in enumerate(table.schema):
        if pa.types.is_dictionary(field_.type):
            column = (
                table.column(position)
                .cast(field_.type.value_type)
                .dictionary_encode()
                .cast(field_.type)
            )
            table = table.set_column(position, field_, column)
    return table
