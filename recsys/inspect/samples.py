"""Samples of files: small files whole; of larger ones the head and further pieces, read as the
adapters read them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.errors import SourceError, first_line
from recsys.inspect.common_names import EVENT_TYPE, ITEM, TIME, USER, similarity
from recsys.inspect.forms import SequenceForm, TextForm, form_of
from recsys.inspect.other_files import refuse_map, why_unread
from recsys.sources.byte_ranges import ByteRange, Dialect, byte_ranges
from recsys.sources.delimited import translated
from recsys.sources.files import InputFile, folder_values
from recsys.sources.first_rows import Form, dialect_of, first_byte
from recsys.sources.headers import read_header
from recsys.sources.ids import typed_ids
from recsys.sources.json_sequence import elements, is_read_by_element
from recsys.sources.json_values import column, kinds_of, parse_object, type_of
from recsys.sources.limits import check_column_count
from recsys.sources.nested import flat_batch, value_at
from recsys.sources.parquet import plain_type, read_footer
from recsys.sources.text_checks import check_encoding
from recsys.sources.validate import CellRules
from recsys.values.arrow_types import is_bytes

WHOLE_BYTES: Final = 48 << 20  # of decompressed text; larger files are sampled
_HEAD_BYTES: Final = 1 << 20
_BLOCK: Final = 8 << 20
_PIECES: Final = 24  # pieces of a large file, evenly spaced after its head
_PIECE_BYTES: Final = 1 << 20
_JSON_BYTES: Final = 24 << 20
_JSON_ROWS: Final = 200_000
_PARQUET_ROWS: Final = 1_500_000
_BATCH: Final = 65_536
_SAYS: Final = 0.8  # similarity from which a name says the use of a column
_FORMATS: Final = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
}
_SHEETS: Final = (".xlsx", ".xlsm", ".xls", ".ods")
_TO_JSON: Final = (
    "python -c 'import ast, json, sys; [print(json.dumps(ast.literal_eval(line))) for line in"
    " sys.stdin]' < FILE > FILE.jsonl"
)
_NEVER: Final = (
    ".py", ".ipynb", ".md", ".rst", ".pdf", ".docx", ".xlsx", ".xls", ".png", ".jpg", ".jpeg",
    ".gif", ".html", ".htm", ".sh", ".pl", ".yaml", ".yml", ".toml",
    ".bin", ".xml", ".log.md", ".tex", ".sql",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """Rows of one file, or of several files of one form, with the column names of the files."""

    files: tuple[InputFile, ...]
    format: str  # parquet, csv, tsv, jsonl, sequences
    rows: pa.Table = field(compare=False, repr=False)
    is_whole: bool
    num_rows: int  # approximate number of rows of the files
    form: TextForm | SequenceForm | None = None
    folders: tuple[str, ...] = ()  # columns from folder names
    given: str = ""  # the argument that named the files
    num_broken: int = 0  # rows of the sample that could not be parsed

    @property
    def name(self) -> str:
        """File name of the sample."""
        return self.files[0].name

    @property
    def has_names(self) -> bool:
        """Whether the columns have names in the file."""
        return not isinstance(self.form, TextForm) or self.form.has_header

    @property
    def signature(self) -> tuple[Any, ...]:
        """Key of the form: files with the same signature make one table."""
        form = (
            self.form
            if self.form is None
            else replace(self.form, doubt="")
            if isinstance(self.form, TextForm)
            else self.form
        )
        names = self.rows.column_names
        # columns with names may come in another order
        return (
            self.format,
            tuple(sorted(names) if self.has_names else names),
            form,
            self.has_names or self.shape,
        )

    def is_part_with(self, other: Sample) -> bool:
        """Whether two samples have one form and the columns of one table.

        Columns may be missing in one of them, such as an optional key of JSON, if their names say
        that the common ones hold the user, the item, the time and the type of events.
        """
        mine, theirs = self.signature, other.signature
        if mine == theirs:
            return True
        if (mine[0], *mine[2:]) != (theirs[0], *theirs[2:]) or not self.has_names:
            return False
        try:
            pa.unify_schemas([self.rows.schema, other.rows.schema], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return False
        every = {*self.rows.column_names, *other.rows.column_names}
        common = {*self.rows.column_names} & {*other.rows.column_names}

        def has(names: set[str], words: tuple[str, ...]) -> bool:
            return any(similarity(name, words) >= _SAYS for name in names)

        return all(has(common, words) for words in (USER, ITEM)) and all(
            has(common, words) or not has(every, words) for words in (TIME, EVENT_TYPE)
        )

    @property
    def shape(self) -> tuple[str, ...]:
        """For a file without names: the kinds of its cells, so that two different tables are not
        mixed up.
        """
        head = self.rows.slice(0, 200)
        return tuple("n" if _is_numbers(head.column(name)) else "t" for name in head.column_names)


def _is_numbers(cells: pa.ChunkedArray) -> bool:
    def is_number(text: str) -> bool:
        try:
            float(text)
        except ValueError:
            return False
        return True

    known = [cell for cell in cells.to_pylist() if isinstance(cell, str) and cell.strip()]
    return bool(known) and sum(map(is_number, known)) > 0.5 * len(known)


def sample_of(file: InputFile, given: str = "") -> Sample:
    """Sample one file.

    Raises
    ------
    SourceError
        The file is not a table; the message says why.
    """
    suffix = file.suffix
    if suffix in _SHEETS:
        raise SourceError("a spreadsheet; save its table as CSV or Parquet")
    if why := why_unread(file):
        raise SourceError(why)
    if suffix in _NEVER and not file.compressed:
        raise SourceError(
            f"{suffix} files are not supported; if it holds a table, save it as CSV or Parquet"
        )
    folders = folder_values(file.path)
    if _FORMATS.get(suffix) == "parquet" or _is_parquet(file):
        found = _of_parquet(file)
    else:
        with file.stream() as stream:
            head = bytes(stream.read(_HEAD_BYTES))
        found = _of_json(file, head) if _is_json(head, suffix) else _of_text(file, head, suffix)
    names = tuple(name for name in folders if name not in found.rows.column_names)
    for name in names:
        value = pa.scalar(folders[name] or None, pa.string())
        found = replace(
            found, rows=found.rows.append_column(name, pa.repeat(value, found.rows.num_rows))
        )
    return replace(found, folders=names, given=given)


def together(samples: Sequence[Sample]) -> Sample:
    """Combine the samples of files with the same signature."""
    if len(samples) == 1:
        return samples[0]
    rows = pa.concat_tables([sample.rows for sample in samples], promote_options="permissive")
    return replace(
        samples[0],
        files=tuple(file for sample in samples for file in sample.files),
        rows=rows.combine_chunks(),
        is_whole=all(sample.is_whole for sample in samples),
        num_rows=sum(sample.num_rows for sample in samples),
        num_broken=sum(sample.num_broken for sample in samples),
    )


# --------------------------------------------------------------------------------------------- text


def _of_text(file: InputFile, head: bytes, suffix: str) -> Sample:
    if head.startswith(b"<?xml") or head.lstrip()[:1] == b"<":
        raise SourceError("XML or HTML, not a table; save its table as CSV or Parquet")
    try:
        check_encoding(file, head, "latin-1")  # which decodes all bytes
    except SourceError as error:
        said = str(error).removeprefix(f"{file.path} is ").removeprefix(f"{file.path}: ")
        raise SourceError(said.replace("expected latin-1: ", "")) from None
    form = form_of(head, suffix, file.name)
    if isinstance(form, SequenceForm):
        return _of_sequences(file, form)
    dialect = dialect_of(
        form.kind, Form(form.separator, comment=form.comment, encoding=form.encoding)
    )
    names, begin = _names(file, form, dialect, head)
    pieces = [
        piece for piece in _text_pieces(file, begin, dialect, len(names)) if piece[0].num_rows
    ]
    tables = [table for table, _, _ in pieces]
    if not tables:
        raise SourceError(
            f"no row has {len(names)} cells, the number of its columns; check the separator and the"
            " quotes of the file, and save it again"
        )
    rows = pa.concat_tables(tables).combine_chunks()
    used = [index for index, name in enumerate(names) if name]
    rows = pa.table({names[index]: rows.column(index) for index in used})
    read, broken = sum(count for _, count, _ in pieces), sum(count for _, _, count in pieces)
    is_whole = (
        file.compressed and read < WHOLE_BYTES or not file.compressed and file.size <= WHOLE_BYTES
    )
    # from rows per byte of the sample
    total = rows.num_rows if is_whole else int(rows.num_rows / max(read, 1) * file.size)
    return Sample((file,), form.kind, rows, bool(is_whole), total, form, num_broken=broken)


def _names(file: InputFile, form: TextForm, dialect: Dialect, head: bytes) -> tuple[list[str], int]:
    """Names of the columns, numbered if there is no header, and the byte offset of the first
    row.

    Raises
    ------
    SourceError
        The header contains a name twice.
    """
    settings = Form(
        form.separator,
        header="yes" if form.has_header else "auto",
        comment=form.comment,
        encoding=form.encoding,
    )
    if form.has_header:
        header = read_header(file, dialect, settings)
        names = list(header.columns)
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise SourceError(
                    f"the header contains the name {name!r} twice; rename one of the two columns"
                )
            seen |= {name} if name else set()
        return names, header.end
    count = _usual_cells(head, dialect)
    header = read_header(
        file,
        dialect,
        replace(settings, header="no", columns=tuple(f"column_{i + 1}" for i in range(count))),
    )
    return [f"column_{index + 1}" for index in range(len(header.columns))], header.end


def _usual_cells(head: bytes, dialect: Dialect) -> int:
    """The most common number of cells in the first rows."""
    from recsys.sources.guesses import cells_of

    text = head.decode(dialect.encoding, errors="replace").removeprefix("\ufeff")
    lines = [line.rstrip("\r") for line in text.split("\n")[:200] if line.strip()]
    lines = [line for line in lines if not (dialect.comment and line.startswith(dialect.comment))]
    sizes = [len(cells_of(line, dialect)) for line in lines]
    return max(set(sizes), key=sizes.count)


def _text_pieces(
    file: InputFile, begin: int, dialect: Dialect, num_columns: int
) -> Iterator[tuple[pa.Table, int, int]]:
    """All pieces of a small file; the head and some later pieces of a large one.

    Yields
    ------
    tuple of (Table, int, int)
        Parsed cells, number of bytes, and number of broken rows.
    """
    is_sampled = not file.compressed and file.size > WHOLE_BYTES
    limit, read = (_BLOCK if is_sampled else WHOLE_BYTES), 0
    for byte_range, data in byte_ranges(file, begin, dialect, _BLOCK, num_columns):
        cells = translated(data, byte_range, num_columns, dialect)
        yield cells.table, len(data), len(cells.broken_rows)
        read += len(data)
        if read >= limit:
            break
    for data in _later_pieces(file, begin + read) if is_sampled else ():
        byte_range = ByteRange(0, len(data), 1, data.count(b"\n"), True)
        # not counted: a row may begin inside quotes
        yield translated(data, byte_range, num_columns, dialect).table, len(data), 0


def _later_pieces(file: InputFile, begin: int) -> Iterator[bytes]:
    """Whole lines from evenly spaced positions after the head, including the end."""
    for start in (
        np.linspace(begin, max(file.size - _PIECE_BYTES, begin), _PIECES).astype(int).tolist()
    ):
        data = file.read(start, min(_PIECE_BYTES, file.size - start))
        first, last = data.find(b"\n") + 1, data.rfind(b"\n") + 1
        if last > first:
            yield data[first:last]


def _of_sequences(file: InputFile, form: SequenceForm) -> Sample:
    """Events of a sequence file: user, item, and position in the line."""
    users, items, read = [], [], 0
    with file.stream() as stream:
        text = bytes(stream.read(WHOLE_BYTES)).decode("utf-8", errors="replace")
    lines = text.removeprefix("\ufeff").split("\n")
    for line in lines[:-1] if len(text) >= WHOLE_BYTES - 8 else lines:
        if form.comment and line.startswith(form.comment):
            continue
        words = [word for word in line.split(form.separator or None) if word.strip()]
        read += len(line) + 1
        users += [words[0]] * (len(words) - 1) if words else []
        items += words[1:]
    rows = pa.table({"user": pa.array(users, pa.string()), "item": pa.array(items, pa.string())})
    is_whole = len(text) < WHOLE_BYTES - 8
    total = rows.num_rows if is_whole else int(rows.num_rows * file.size / max(read, 1))
    return Sample((file,), "sequences", rows, is_whole, total, form)


# --------------------------------------------------------------------------------------------- JSON


def _is_json(head: bytes, suffix: str) -> bool:
    start = first_byte(head)
    return start in (b"{", b"[") and (
        _FORMATS.get(suffix) == "jsonl"
        or any(map(parse_object, head.split(b"\n")[:5]))
        or start == b"["
    )


def _of_json(file: InputFile, head: bytes) -> Sample:
    lines = [line for line in head.split(b"\n") if line.strip()]
    by_element = is_read_by_element(head, 20)
    if any(map(parse_object, lines[:20])) and not by_element:
        objects, read, is_whole = _json_lines(file)
    elif by_element:
        limit = _JSON_ROWS
        texts = islice(elements(file), limit + 1)
        found = [parse_object(text.encode(errors="surrogatepass")) for text in texts]
        objects = [value for value in found if value is not None]
        is_whole, read = len(found) <= limit, file.size
    else:
        is_python = re.match(rb"\s*\[?\s*\{\s*u?'", head) is not None
        cure = f"; the lines are Python literals, so write them as JSON: {_TO_JSON}" * is_python
        raise SourceError(f"no JSON objects; expected one per line, or all in one array{cure}")
    if not objects:
        raise SourceError("has no JSON object; expected one object per row")
    refuse_map(objects)
    kinds = kinds_of(objects)
    check_column_count(len(kinds), file.path)
    absent = CellRules().absent
    columns = {
        key: _json_column([value_at(value, key) for value in objects], seen, absent)
        for key, seen in kinds.items()
        if key
    }
    if not columns:
        raise SourceError("the JSON objects have no keys; expected the names of columns as keys")
    rows = pa.table(columns)
    total = len(objects) if is_whole else int(len(objects) * file.size / max(read, 1))
    return Sample((file,), "jsonl", rows, is_whole, total)


def _json_column(values: list[Any], seen: set[str], absent: Sequence[str]) -> pa.Array:
    if "object" in seen:  # too many keys for columns: marked, so that it is left out
        return pa.array([{"object": "x"} if isinstance(value, dict) else None for value in values])
    return column(values, type_of(seen - {"null"}), absent)[0]


def _json_lines(file: InputFile) -> tuple[list[dict[str, Any]], int, bool]:
    objects: list[dict[str, Any]] = []
    read, is_whole = 0, True
    with file.stream() as stream:
        rest = b""
        while block := bytes(stream.read(_PIECE_BYTES)):
            *lines, rest = (rest + block).split(b"\n")
            objects += [value for value in map(parse_object, lines) if value is not None]
            read += len(block)
            if read >= _JSON_BYTES or len(objects) >= _JSON_ROWS:
                is_whole = read >= file.size and not file.compressed
                break
        else:
            last = parse_object(rest) if rest.strip() else None
            objects += [last] if last is not None else []
    if not is_whole and not file.compressed:
        for data in islice(_later_pieces(file, read), _PIECES):
            objects += [
                value for value in map(parse_object, data.split(b"\n")) if value is not None
            ]
            read += len(data)
    return objects, read, is_whole


# ------------------------------------------------------------------------------------------ Parquet


def _is_parquet(file: InputFile) -> bool:
    return file.size >= 8 and file.read(0, 4) == b"PAR1"


def _of_parquet(file: InputFile) -> Sample:
    kinds, groups = read_footer(file)
    chosen = _chosen_groups(groups)
    try:
        with file.opened() as source:
            parquet = pq.ParquetFile(source)
            batches: list[pa.RecordBatch] = []
            read = 0
            for group in chosen:
                for batch in parquet.iter_batches(_BATCH, row_groups=[group], use_threads=False):
                    batches.append(flat_batch(batch))
                    read += batch.num_rows
                    if read >= _PARQUET_ROWS:
                        break
            table = pa.Table.from_batches(batches)  # read_footer refuses files without rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot be read: {first_line(error)}") from None
    columns = {name: _plain(table.column(name)) for name in table.column_names}
    rows = pa.table(columns).combine_chunks()
    return Sample((file,), "parquet", rows, rows.num_rows == sum(groups), sum(groups))


def _plain(cells: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """A column in the type of its blocks; bytes are text if they are UTF-8, as in ``prepare``."""
    try:
        if is_bytes(cells.type) or isinstance(cells.type, pa.BaseExtensionType):
            return typed_ids(cells.combine_chunks(), "", 1)
        return cells.cast(plain_type(cells.type))
    except (SourceError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return cells


def _chosen_groups(groups: Sequence[int]) -> list[int]:
    """Choose row groups with about as many rows as are sampled: all, or evenly spaced ones
    including the last.
    """
    if sum(groups) <= _PARQUET_ROWS:
        return list(range(len(groups)))
    count = max(2, int(_PARQUET_ROWS * len(groups) / sum(groups)))
    return sorted(set(np.linspace(0, len(groups) - 1, count).astype(int).tolist()))
