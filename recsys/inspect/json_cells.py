"""Columns whose cells are JSON objects as text, such as the messages in a dump of Kafka.

Why: the ids are inside the text, where the readers of tables do not look. One command writes the
rows as JSON lines, whose nested objects are columns.
"""

from __future__ import annotations

import json
from contextlib import suppress

from recsys.inspect.columns import Column
from recsys.inspect.forms import TextForm
from recsys.inspect.sampled_tables import Table

_ROWS = {"jsonl": "map(json.loads, open({}))", "parquet": "pq.read_table({}).to_pylist()"}
_LOOKED_AT = 20


def cure_of_json_cells(table: Table) -> str:
    """The command that writes a table with columns of JSON as JSON lines; "" without them."""
    keys = {column.name: of_cells for column in table.columns if (of_cells := _keys_of(column))}
    if not keys:
        return ""
    form = table.sample.form
    mark = f", delimiter={json.dumps(form.separator)}" if isinstance(form, TextForm) else ""
    csv = "csv.DictReader(open({})" + f"{mark})"
    rows = _ROWS.get(table.sample.format, csv).format(json.dumps(table.sample.name))
    cells = [f'{name}: json.loads(r[{name}] or "null")' for name in map(json.dumps, keys)]
    line = f"{{**r, {', '.join(cells)}}}"
    paths = [f"{name}.{key}" for name, of_cells in keys.items() for key in of_cells]
    return (
        f"the cells of {' and '.join(keys)} are JSON; {', '.join(paths[:9])} are columns if you"
        " write JSON lines: python -c 'import csv, json, pyarrow.parquet as pq;"
        f" [print(json.dumps({line}, default=str)) for r in {rows}]' > events.jsonl; then pass"
        " events.jsonl"
    )


def _keys_of(column: Column) -> list[str]:
    """The keys of the JSON objects in the first cells; none if the cells are something else."""
    if column.kind != "object":
        return []
    found: dict[str, None] = {}
    for cell in column.values.drop_null()[:_LOOKED_AT].to_pylist():
        with suppress(ValueError):
            # quotes around a cell are characters of it in TSV
            value = json.loads(cell[1:-1].replace('""', '"') if cell[0] == '"' else cell)
            found |= dict.fromkeys(value) if isinstance(value, dict) else {}
    return list(found)
