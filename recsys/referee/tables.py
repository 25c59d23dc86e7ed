"""Tables of the referee: Parquet, CSV or TSV; ids are always text."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from recsys.errors import SourceError

_IDS: Final = ("user_id", "item_id", "event_type", "window", "protocol", "command")
_TEXT: Final = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
ENDINGS: Final = (".parquet", *_TEXT)


def ending_of(path: Path) -> Path | None:
    """The existing file of this name with one of the endings, or None."""
    return next((found for ending in ENDINGS if (found := Path(f"{path}{ending}")).is_file()), None)


def write_table(table: pa.Table, path: Path) -> None:
    """Write Parquet or CSV, by the ending of the path; create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    for index, column in enumerate(table.columns):
        if pa.types.is_timestamp(column.type):  # Arrow cannot read the time zone that it writes
            table = table.set_column(index, table.column_names[index], column.cast(pa.int64()))
    pyarrow.csv.write_csv(table, path)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read a table that has exactly these columns.

    Raises
    ------
    SourceError
        A column is missing, or its values have another type.
    """
    table = read_any(path, schema)
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise SourceError(
            f"{path}: no column {', '.join(missing)}; got {', '.join(table.column_names)}"
        )
    columns = {}
    for one in schema:
        column = table.column(one.name)
        try:
            if pa.types.is_timestamp(one.type) and not pa.types.is_timestamp(column.type):
                column = column.cast(pa.int64())
            columns[one.name] = column.cast(one.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SourceError(
                f"{path}: column {one.name} does not hold {one.type}: {error}"
            ) from None
    return pa.table(columns, schema=schema)


def read_any(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """Read all columns of a file; ``user_id`` and ``item_id`` become text. The types of a schema
    hold for a text file, too, except those of times.

    Raises
    ------
    SourceError
        The file is missing, damaged, or of another format.
    """
    if not path.name.endswith(ENDINGS):
        raise SourceError(f"{path}: expected a file that ends in {', '.join(ENDINGS)}")
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path, partitioning=None)
        options = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(_IDS, pa.string()))
        if schema is not None:
            # Arrow guesses integers, which a float may not hold, and takes NaN as missing
            options.column_types |= {
                one.name: one.type for one in schema if not pa.types.is_timestamp(one.type)
            }
            options.null_values = [""]
        table = pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t" if ".tsv" in path.name else ","),
            convert_options=options,
        )
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        raise SourceError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    known = (*_IDS, "rank", "score", *(schema.names if schema else ()))
    twice = [name for name in known if table.column_names.count(name) > 1]
    if twice:
        raise SourceError(f"{path}: the header has {twice[0]} twice; leave one column out")
    return table
