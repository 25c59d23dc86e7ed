"""Media of items (images, sound): vectors from columns of the items table and image files.

An invalid cell (numbers that are not finite, another width, an unreadable image) goes to the
quarantine under the table ``media``, with the file and row of its item. The item and its events
stay, without that medium. An empty cell, a vector of zeros and a missing image file mean that the
item has no such medium; missing files are counted and noted.

Legend: R rows of the items table, N items (dense), M width of a medium.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from recsys import schema
from recsys.config import ImagesConfig, ItemMediaConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Array
from recsys.encoders.images import image_model_identity
from recsys.errors import ConfigError, choices, valid_instead
from recsys.preparation.blocks import read_table
from recsys.preparation.dataset_writer import Folder
from recsys.preparation.image_vectors import MISSING, UNREADABLE, encode_images, kept_vectors
from recsys.preparation.quarantine import QUARANTINE_SCHEMA
from recsys.preparation.record import Record
from recsys.sources.base import SourceAdapter
from recsys.storage.filesystems import filesystem_of
from recsys.values.arrow_types import is_list, is_plain_number, is_string

WRONG_WIDTH: Final = "vector of another width"
NOT_FINITE: Final = "vector with cells that are not finite numbers"
TOO_LARGE: Final = "vector with numbers beyond float16 (65504)"
BAD_IMAGE: Final = "image that cannot be read"
_RAW_LIMIT: Final = 200
_INFO_PATHS: Final = 10_000  # paths per request


@dataclass
class Medium:
    """One medium, by row of the items table."""

    vectors_RM: Array  # float16, zero rows where there is none
    read: int  # number of cells that are not empty
    bad: pa.Table  # of QUARANTINE_SCHEMA
    described: dict[str, Any]  # for the manifest

    @property
    def has_R(self) -> Array:
        """Which rows have a vector: [R] bool."""
        return np.asarray(self.vectors_RM.any(axis=1))


def media_columns(config: ItemMediaConfig) -> list[str]:
    """The item columns that are media, and therefore not text."""
    return [*config.columns.values(), *([config.images.column] if config.images.column else [])]


def folders_of(source: SourceAdapter) -> dict[str, str]:
    """The folder of every file of a source, by the file's name in the provenance; the first one for
    repeated names.
    """
    folders: dict[str, str] = {}
    for file in source.files():
        body, mark, query = file.path.partition("?") if "://" in file.path else (file.path, "", "")
        folders.setdefault(file.name, f"{body.rpartition('/')[0] or '.'}{mark}{query}")
    return folders


def read_media(
    items: pa.Table | None,
    config: ItemMediaConfig,
    folders: Mapping[str, str],
    earlier: PreparedDataset | None = None,
) -> dict[str, Medium]:
    """Read all media of the items table, by name.

    Parameters
    ----------
    items : pa.Table | None
        Good rows of the items table, with provenance.
    config : ItemMediaConfig
        Columns and images of the configuration.
    folders : Mapping[str, str]
        Name of a source file in the provenance → its folder, where relative paths start.
    earlier : PreparedDataset | None
        The dataset that items without provenance are from.

    Raises
    ------
    ConfigError
        A column does not exist or has no vectors or paths, no item has the medium, or there is no
        vision model.
    """
    columns = [] if items is None else items.column_names
    for name in media_columns(config):
        if name not in columns:
            raise ConfigError(
                f"data.media names the column {name!r}, which items lack;"
                f" {valid_instead(name, columns, 'columns')}"
            )
    if items is None:
        return {}
    found = {name: vector_medium(items, name, column) for name, column in config.columns.items()}
    if config.images.column:
        found[config.images.name] = _image_medium(items, config.images, folders, earlier)
    return found


def write_media(
    folder: Folder,
    found: Mapping[str, Medium],
    items: pa.Table | None,
    item_ids: pa.Array,
    record: Record,
) -> dict[str, dict[str, Any]]:
    """Write ``items/media.parquet``; returns the descriptions of the media for the manifest.

    Parameters
    ----------
    folder : Folder
        Folder of the dataset.
    found : Mapping[str, Medium]
        Result of :func:`read_media`.
    items : pa.Table | None
        The items table that the media are from, or None.
    item_ids : pa.Array
        All external item ids in dense order.
    record : Record
        Gets the bad cells and the notes.
    """
    if not found or items is None:
        return {}
    read = sum(medium.read for medium in found.values())
    record.add_bad_rows("media", read, (medium.bad for medium in found.values()))
    vectors = {name: aligned(medium, items, item_ids) for name, medium in found.items()}
    folder.write_table("items/media.parquet", media_table(vectors))
    for name, medium in found.items():
        if missing := medium.described.get("missing_files"):
            record.notes.append(
                f"{missing:,} files of the medium {name} do not exist; their items have no"
                f" {name} vector"
            )
        if lost := medium.described.get("lost_images"):
            record.note(
                f"{lost:,} items that today's table lacks have no {name} vector, as their paths"
                " start at the folder of an earlier file; set data.media.images.root"
            )
        record.progress(
            f"{name}: {medium.described['items']:,} items, {medium.described['dimension']}"
            " numbers each"
        )
    return {name: medium.described for name, medium in found.items()}


def media_table(media: Mapping[str, Array]) -> pa.Table:
    """``items/media.parquet``: for every medium (vectors [N, M] in dense order) its column and
    ``has_NAME``.
    """
    columns: dict[str, pa.Array] = {}
    for name, vectors_NM in media.items():
        flat = pa.array(np.ascontiguousarray(vectors_NM, dtype=np.float16).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, vectors_NM.shape[1])
        columns[f"has_{name}"] = pa.array(vectors_NM.any(axis=1))
    return pa.table(columns)


def aligned(medium: Medium, items: pa.Table, item_ids: pa.Array) -> Array:
    """The vectors in dense order: [N, M] float16, zero rows for items that the table lacks.

    Parameters
    ----------
    medium : Medium
        The vectors of the rows of the items table, [R, M].
    items : pa.Table
        The items table, [R].
    item_ids : pa.Array
        External item ids in dense order, [N].
    """
    rows_N = np.asarray(pc.index_in(item_ids, value_set=items.column(schema.ITEM_ID)).fill_null(-1))
    vectors_NM = np.zeros((len(rows_N), medium.vectors_RM.shape[1]), dtype=np.float16)
    vectors_NM[rows_N >= 0] = medium.vectors_RM[rows_N[rows_N >= 0]]
    return vectors_NM


# ------------------------------------------------------------------------------------------ vectors


def vector_medium(items: pa.Table, name: str, column: str) -> Medium:
    """A medium from a column of vectors: lists of numbers, or texts of numbers separated by spaces
    or commas.

    The most frequent width is the right one.

    Parameters
    ----------
    items : pa.Table
        The items table, [R].
    name : str
        Name of the medium.
    column : str
        Name of the column.

    Returns
    -------
    Medium
        The vectors, [R, M] float16, and the bad cells.

    Raises
    ------
    ConfigError
        The column has other values, or no vectors.
    """
    lengths_R, values_V = _numbers(
        items.column(column), f"data.media.columns.{name}: the column {column!r}"
    )
    starts_R = np.cumsum(lengths_R) - lengths_R
    given_R = lengths_R > 0
    if not given_R.any():
        raise ConfigError(
            f"data.media.columns.{name}: no item has a vector in the column {column!r}; remove"
            " the key"
        )
    width = int(np.bincount(lengths_R[given_R]).argmax())
    right = np.flatnonzero(lengths_R == width)
    wide_XM = values_V[starts_R[right][:, None] + np.arange(width)]
    with np.errstate(over="ignore"):
        half_XM = wide_XM.astype(np.float16)
    reasons = np.full(len(lengths_R), "", dtype=object)
    reasons[given_R & (lengths_R != width)] = WRONG_WIDTH
    reasons[right[~np.isfinite(half_XM).all(axis=1)]] = TOO_LARGE
    reasons[right[~np.isfinite(wide_XM).all(axis=1)]] = NOT_FINITE
    vectors_RM = np.zeros((len(lengths_R), width), dtype=np.float16)
    good = reasons[right] == ""
    vectors_RM[right[good]] = half_XM[good]
    medium = Medium(
        vectors_RM, int(given_R.sum()), _bad(items, name, column, reasons), {"column": column}
    )
    medium.described |= {"dimension": width, "items": int(medium.has_R.sum())}
    return medium


def _numbers(column: pa.ChunkedArray, where: str) -> tuple[Array, Array]:
    """The length of every cell ([R], 0 where it is missing), and all numbers concatenated, NaN for
    invalid ones.

    Raises
    ------
    ConfigError
        The column holds something other than lists of numbers.
    """
    array = column.combine_chunks()
    kind = array.type
    if is_string(kind):
        texts = (
            pl.Series(pl.from_arrow(array)).str.replace_all(r"[\[\](),;]", " ").str.strip_chars()
        )
        lists = (
            texts.str.replace_all(r"\s+", " ")
            .str.split(" ")
            .list.eval(pl.element().filter(pl.element() != ""))
        )
        array = lists.to_arrow()
        kind = array.type
    has_lists = is_list(kind)
    inner = kind.value_type if has_lists else kind
    is_text = is_string(inner) or pa.types.is_string_view(inner)
    if not has_lists or not (is_text or is_plain_number(inner)):
        raise ConfigError(f"{where} has the type {kind}, expected lists of numbers")
    lengths = pc.fill_null(pc.list_value_length(array), 0)
    flat = array.flatten()
    if is_text:
        flat = pl.Series(pl.from_arrow(flat)).cast(pl.Float64, strict=False).to_arrow()
    values = pc.fill_null(flat.cast(pa.float64()), float("nan"))
    return np.asarray(lengths).astype(np.int64), np.asarray(values)


def _bad(items: pa.Table, name: str, column: str, reasons_R: Array) -> pa.Table:
    """The cells with a reason, in the format of the quarantine."""
    rows = np.flatnonzero(reasons_R != "")
    bad = items.select([schema.FILE, schema.ROW, schema.ITEM_ID, column]).take(pa.array(rows))
    cells = [
        f"{schema.ITEM_ID}={row[schema.ITEM_ID]}, {column}={row[column]}"[:_RAW_LIMIT]
        for row in bad.to_pylist()
    ]
    columns = {
        "file": bad.column(schema.FILE),
        "row": bad.column(schema.ROW),
        "reason": pa.array([f"{name}: {reason}" for reason in reasons_R[rows]], pa.string()),
        "raw": pa.array(cells, pa.string()),
    }
    return pa.table(columns).cast(QUARANTINE_SCHEMA)


# ------------------------------------------------------------------------------------------- images


def _image_medium(
    items: pa.Table,
    config: ImagesConfig,
    folders: Mapping[str, str],
    earlier: PreparedDataset | None,
) -> Medium:
    paths_R = image_paths(items, config, folders)
    old_R = np.asarray(items.column(schema.FILE).is_null())
    kept_RM, lost = kept_vectors(items, old_R, config, earlier), 0
    for row in np.flatnonzero(old_R):
        path = paths_R[row]
        if kept_RM is None and path and not (config.root or _is_absolute(path)):
            lost += 1
        elif kept_RM is None:
            continue
        paths_R[row] = None
    rows = np.array([row for row, path in enumerate(paths_R) if path], dtype=np.int64)
    vectors_XM, problems, numbers = encode_images([paths_R[row] or "" for row in rows], config)
    missing = problems.count(MISSING)
    if missing == len(rows) and kept_RM is None:
        first = f"; the first path is {paths_R[rows[0]]}" if len(rows) else ""
        raise ConfigError(
            f"data.media.images: none of the {len(rows):,} images of the column {config.column!r}"
            f" exists{first}; set data.media.images.root to the folder where relative paths start"
        )
    width = vectors_XM.shape[1] if kept_RM is None else kept_RM.shape[1]
    vectors_RM = np.zeros((len(paths_R), width), np.float16) if kept_RM is None else kept_RM
    if vectors_XM.any():  # without an image, their width is unknown
        vectors_RM[rows] = vectors_XM
    reasons = np.full(len(paths_R), "", dtype=object)
    reasons[rows[[problem == UNREADABLE for problem in problems]]] = BAD_IMAGE
    medium = Medium(
        vectors_RM,
        len(rows),
        _bad(items, config.name, config.column, reasons),
        {"column": config.column},
    )
    medium.described |= {
        "dimension": width,
        "items": int(medium.has_R.sum()),
        "model": config.model,
        "identity": image_model_identity(config),
        "missing_files": missing,
    }
    medium.described |= numbers | ({"lost_images": lost} if lost else {})
    return medium


def image_paths(
    items: pa.Table, config: ImagesConfig, folders: Mapping[str, str]
) -> list[str | None]:
    """Path or URI of every row's image, None without one; relative paths start at the configured
    root or at the folder of the row's file.

    Parameters
    ----------
    items : pa.Table
        The items table, [R].
    config : ImagesConfig
        The section ``data.media.images``.
    folders : Mapping of str to str
        The folder of each file of the source, by the name of the file.

    Raises
    ------
    ConfigError
        The column does not exist or has no texts.
    """
    kind = items.schema.field(config.column).type if config.column in items.column_names else None
    if kind is None or not is_string(kind):
        raise ConfigError(
            f"data.media.images.column {config.column!r}:"
            f" {'has the type ' + str(kind) if kind else 'items lack it'}, expected a column of"
            f" paths; columns: {choices(items.column_names)}"
        )
    texts = pc.utf8_trim_whitespace(items.column(config.column)).to_pylist()
    files = items.column(schema.FILE).to_pylist()
    return [
        _resolve(text, config.root or folders.get(file or "", "")) if text else None
        for text, file in zip(texts, files, strict=True)
    ]


def _resolve(path: str, root: str) -> str:
    if _is_absolute(path) or not root:
        return path
    base, mark, query = root.partition("?") if "://" in root else (root, "", "")
    return f"{base.rstrip('/')}/{path}{mark}{query}"


def _is_absolute(path: str) -> bool:
    return "://" in path or path.startswith("/")


def image_fingerprint(source: SourceAdapter, config: ImagesConfig) -> str:
    """A hash of the paths, sizes and modification times of a source's images: a changed image gives
    another dataset.

    Why not their content: a second ``prepare`` without changes should not read a million files.
    """
    pieces = source.pieces()
    items = read_table(pieces["items"]) if "items" in pieces else None
    good = items.filter(pc.is_null(items.column(schema.REASON))) if items is not None else None
    digest = hashlib.sha256()
    paths = (
        []
        if good is None
        else sorted({path for path in image_paths(good, config, folders_of(source)) if path})
    )
    for start in range(0, len(paths), _INFO_PATHS):
        for path, info in _infos(paths[start : start + _INFO_PATHS]):
            digest.update(f"{path} {info.type.name} {info.size} {info.mtime_ns}\n".encode())
    return digest.hexdigest()


def _infos(paths: list[str]) -> Iterable[tuple[str, pyarrow.fs.FileInfo]]:
    local = [path for path in paths if "://" not in path]
    yield from zip(local, pyarrow.fs.LocalFileSystem().get_file_info(local), strict=True)
    for path in paths:
        if "://" in path:
            try:
                filesystem, inner = filesystem_of(path)
                yield path, filesystem.get_file_info(inner)
            except (OSError, pa.ArrowException):
                continue  # encode_images reports it as unreadable
