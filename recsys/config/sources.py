"""``data.source``: one section a kind of source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from recsys.config.outside import SOURCES, load, offers, one_of, resolve
from recsys.config.section import Section, as_word

ABSENT_TEXTS: Final = (
    *("NaN", "nan", "NAN", "Nan", "-nan", "-NaN", "None", "none", "NONE", "null", "NULL", "Null", "(null)", "<null>"),
    *("NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaT", "nil", "\\N"),
)
"""Texts that programs write where a value is missing; an empty cell is always missing."""

_PROBE: Final = datetime(2021, 11, 25, 13, 14, 15, 167_000, UTC)


TABLES: Final = ("events", "items", "users", "social", "knowledge")
_WORDS: Final = {"\\t": "\t", "tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " ", "spaces": " "}


def _separator(value: Any) -> Any:
    """Words and ``\\t`` as the characters they mean."""
    if value is None:
        raise ValueError("in YAML it needs quotes, e.g. separator: ';' or separator: '|'")
    if not isinstance(value, str):
        return value
    separator = _WORDS.get(value.casefold(), value)
    if separator.strip(" ") == "" and separator:
        return " "
    if any(character in separator for character in '"\n\r\0\ufeff'):
        raise ValueError("a quote, a line end or a null character cannot stand between cells")
    if separator and (separator.isalnum() or separator == "."):
        raise ValueError("letters, digits and dots are part of cells; expected ';', '|', '::', ' ', tab and the like")
    return separator


def _comment(value: Any) -> Any:
    if value is None:
        raise ValueError("in YAML it needs quotes: comment: '#'")
    if isinstance(value, str) and any(character in value for character in '\n\r"'):
        raise ValueError("expected what comment lines begin with, e.g. '#'")
    return value


def _without_nulls(value: Any) -> Any:
    """A cell without a name may be written ``null`` or ``~``."""
    if isinstance(value, dict):
        return {name: _without_nulls(names) for name, names in value.items()}
    return ["" if name is None else name for name in value] if isinstance(value, list) else value


def check_tables(key: str, names: set[str]) -> None:
    """Check the names of tables in a setting.

    Raises
    ------
    ValueError
        one is no table.
    """
    if unknown := sorted(names - set(TABLES)):
        raise ValueError(f"{key}: {unknown[0]!r} is no table; the tables are {', '.join(TABLES)}")


Separator = Annotated[str, BeforeValidator(_separator)]
Comment = Annotated[
    str, BeforeValidator(_comment), Field(description="lines of text files that begin with this are skipped, e.g. '#'")
]

Encoding = Annotated[str, Field(min_length=1)]


def _of_known_tables(rename: dict[str, str | dict[str, str]]) -> dict[str, str | dict[str, str]]:
    check_tables("rename", {name for name, to in rename.items() if not isinstance(to, str)})
    return rename


Rename = Annotated[dict[str, str | dict[str, str]], AfterValidator(_of_known_tables)]
"""Column in the files → canonical column, or table → those of this table only."""


class CellSource(Section):
    """What every source of files has: how the text of a cell is understood."""

    absent: list[str] = Field(
        list(ABSENT_TEXTS),
        description="texts that mean a missing value in every table, beside an empty cell; [] keeps them all as values",
    )
    time_format: str = Field(
        "", description="strptime form of text timestamps, e.g. %d/%m/%Y; empty: epoch numbers, ISO 8601, YYYYMMDD …"
    )
    decimal: Literal[".", ","] = Field(".", description="decimal mark of numbers in text files")

    @field_validator("time_format")
    @classmethod
    def _is_a_time_format(cls, form: str) -> str:
        """A form that strptime knows and that gives a year; empty is none."""
        if not form.strip():
            return ""
        expected = "expected a strptime form with a year, e.g. '%d/%m/%Y %H:%M' for 27/11/2020 21:51"
        try:
            read = datetime.strptime(_PROBE.strftime(form), form)
        except ValueError as error:
            raise ValueError(f"{form!r} is no form of times ({error}); {expected}") from None
        if read.year != _PROBE.year:
            raise ValueError(f"{form!r} gives no year; {expected}")
        return form


class CanonicalSource(CellSource):
    """Parquet, CSV/TSV or JSONL files that already have the canonical column names (``rename`` maps others)."""

    places: ClassVar[tuple[str, ...]] = (*TABLES, "split_files", "type_files")

    kind: Literal["canonical"] = "canonical"
    events: list[str] = Field(min_length=1, description="files, folders or globs")
    items: list[str] = []
    users: list[str] = []
    social: list[str] = []
    knowledge: list[str] = []
    rename: Rename = Field(
        {}, description="column in the files → canonical column; {TABLE: {column: canonical column}} for one table only"
    )
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl"] = "auto"
    separator: Separator | dict[str, Separator] = Field(
        "",
        description="between cells of text tables, e.g. ';', '|', '::', tab; ' ' is any run of blanks; empty: by "
        "format, or the one that the file plainly has; {TABLE: separator} for single tables",
    )
    columns: Annotated[list[str] | dict[str, list[str]], BeforeValidator(_without_nulls)] = Field(
        [],
        description="column names of text files without a header: a list for the events, or {TABLE: [names]}; _ leaves "
        "a cell out",
    )
    header: Annotated[Literal["auto", "yes", "no"], BeforeValidator(as_word)] = Field(
        "auto", description="whether text files begin with column names; auto: yes, unless columns are given"
    )
    comment: Comment | dict[str, Comment] = Field(
        "",
        description="lines of text files that begin with this are skipped, e.g. '#'; {TABLE: '#'} for single tables",
    )
    constants: dict[str, dict[str, str]] = Field(
        {}, description="{TABLE: {column: value}}: columns that the files lack and that hold one value in every row"
    )
    encoding: Encoding | dict[str, Encoding] = Field(
        "utf-8", description="of CSV and TSV files, e.g. latin-1; {TABLE: encoding} for single tables, others are utf-8"
    )
    numbers: dict[str, list[str]] = Field(
        {},
        description="{TABLE: [columns]}: further columns that are numbers, also where a text file has them as text or "
        "with a currency ($12.99); cells that are none are missing",
    )
    item_columns: list[str] = Field(
        [],
        description="columns of the events that tell of the item, where there is no table of items: of an item's "
        "texts the most frequent one, of its numbers the median",
    )
    user_columns: list[str] = Field([], description="the same of the user, where there is no table of users")
    split_files: dict[Literal["train", "valid", "test"], list[str]] = Field(
        {}, description="event files by split, instead of a split column"
    )

    type_files: dict[str, list[str]] = Field({}, description="event files by event type, instead of a column")

    @model_validator(mode="after")
    def _tables_are_known(self) -> CanonicalSource:
        columns = self.columns if isinstance(self.columns, dict) else {"events": self.columns}
        check_tables("columns", set(columns))
        check_tables("constants", set(self.constants))
        check_tables("numbers", set(self.numbers))
        for table, columns_of, given_files in (
            ("items", self.item_columns, self.items),
            ("users", self.user_columns, self.users),
        ):
            if columns_of and given_files:
                raise ValueError(
                    f"{table.rstrip('s')}_columns make the table of {table} of the events, and {table} names files of "
                    "it; give one of them"
                )
        for key in ("separator", "comment", "encoding"):
            given = getattr(self, key)
            check_tables(key, set(given) if isinstance(given, dict) else set())
        for table, names in columns.items():
            given = [name.strip() for name in names if name.strip() not in ("", "_")]
            if twice := sorted({name for name in given if given.count(name) > 1}):
                raise ValueError(
                    f"columns: {twice[0]!r} stands twice for {table}; a column has one name, _ leaves it out"
                )
        return self


class RecBoleSource(CellSource):
    """RecBole atomic files: FOLDER/NAME.inter, .user, .item, .kg, .link, .net."""

    places: ClassVar[tuple[str, ...]] = ("folder", "name")

    kind: Literal["recbole"] = "recbole"
    folder: str
    name: str = ""
    rename: Rename = Field(
        {}, description="atomic field → canonical column, e.g. rating → value; {TABLE: {…}} for one table only"
    )
    separator: Separator = Field("", description="between fields; empty: a tab, or the one that the file plainly has")


class HetRecLastFmSource(CellSource):
    """The HetRec 2011 Last.fm-2k folder as published; listens are events, tag assignments are ``tag`` events."""

    places: ClassVar[tuple[str, ...]] = ("folder", "test_pairs")

    kind: Literal["hetrec-lastfm"] = "hetrec-lastfm"
    folder: str
    absent: list[str] = Field(
        [], description="texts that mean a missing value; the release has none, and an artist or tag may be called None"
    )
    test_pairs: str = Field("", description="file of held-out (userID, artistID) pairs, read as the given split")


class SequencesSource(CellSource):
    """Plain text, one line a user: ``user item item …`` in order; optionally a table of items."""

    places: ClassVar[tuple[str, ...]] = ("events", "items")

    kind: Literal["sequences"] = "sequences"
    events: str
    items: list[str] = []
    rename: Rename = {}
    numbers: list[str] = Field(
        [], description="columns of the items that are numbers, also where a file has them as text"
    )
    separator: Separator = Field("", description="between user and items of a line; empty: blanks")
    comment: Comment = ""


class SyntheticSource(Section):
    """A generated world with planted signals; each knob in [0, 1] is how much that signal decides what comes next."""

    kind: Literal["synthetic"] = "synthetic"
    num_users: int = Field(1000, ge=10)
    num_items: int = Field(600, ge=20)
    events_per_user: float = Field(24.0, gt=3)
    num_topics: int = Field(12, ge=2, description="latent topics that text, friends and drift speak about")
    num_partitions: int = Field(4, ge=1)
    seed: int = 0
    text: float = Field(0.7, ge=0, le=1, description="item text tells the topic")
    evolution: float = Field(0.7, ge=0, le=1, description="the order of events tells the next item")
    collaborative: float = Field(0.7, ge=0, le=1, description="hidden communities share items that no text tells")
    social: float = Field(0.7, ge=0, le=1, description="friends share taste")
    knowledge: float = Field(0.7, ge=0, le=1, description="facts tell the owner of an item's maker, whom a user likes")
    stratum: float = Field(0.7, ge=0, le=1, description="the mix of topics tells the stratum, which has its favourites")
    profile: float = Field(0.7, ge=0, le=1, description="crosses of user attributes tell the kind of items")
    media: float = Field(0.7, ge=0, le=1, description="images tell the style of an item, of which a user likes one")
    short_history: float = Field(0.2, ge=0, le=1, description="share of users with very few events")
    cold_items: float = Field(0.05, ge=0, le=0.5, description="share of items that appear only at the end of time")
    bad_rows: float = Field(0.002, ge=0, le=0.2, description="share of broken rows planted for the quarantine")


Source = Annotated[
    CanonicalSource | RecBoleSource | HetRecLastFmSource | SequencesSource | SyntheticSource,
    Field(discriminator="kind"),
]


class OutsideSource(Section):
    """Base of the section of a source from outside this package, with the keys that it needs.

    A subclass names its adapter, a :class:`~recsys.sources.base.SourceAdapter`, as ``module:Class``, and in ``places``
    its keys that are paths or URIs: a dataset is known by what stands there, however that is spelled.
    """

    adapter: ClassVar[str] = ""
    places: ClassVar[tuple[str, ...]] = ()

    kind: str


def open_kind(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """A source from outside by its kind; every other one by its own section."""
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if isinstance(value, OutsideSource) or not isinstance(kind, str) or kind in SOURCE_KINDS:
        return value if isinstance(value, OutsideSource) else handler(value)
    offer = resolve(SOURCES, kind)
    if offer is None:
        raise ValueError(f"kind: expected {one_of([*SOURCE_KINDS, *offers(SOURCES)])}, or module:Class (got {kind!r})")
    cls = load(offer, OutsideSource)
    if strays := sorted({*value} - {*cls.model_fields}):
        raise ValueError(f"unknown key {', '.join(strays)}; valid keys here: {', '.join(sorted(cls.model_fields))}")
    return cls.model_validate(value)


def source_settings(source: Section) -> dict[str, Any]:
    """What a source says of how files are read; of places only which side tables there are.

    >>> one, other = (CanonicalSource(events=[place]) for place in ("logs/a.csv", "/data/logs/a.csv"))
    >>> source_settings(one) == source_settings(other), source_settings(one)["items"]
    (True, False)
    """
    dumped = source.model_dump(mode="json")
    for key in getattr(source, "places", ()):
        given = dumped.pop(key)
        if key in TABLES[1:]:
            dumped[key] = bool(given)
    return dumped


def one_place(value: Any, change: Callable[[str], str]) -> Any:
    """A value of a place with every path in it changed: one path, a list of them, or lists by name."""
    if isinstance(value, dict):
        return {key: one_place(inner, change) for key, inner in value.items()}
    return [change(place) for place in value] if isinstance(value, list) else change(value)


SOURCE_KINDS: Final = ("canonical", "recbole", "hetrec-lastfm", "sequences", "synthetic")


def source_class(kind: str) -> type[Section]:
    """The configuration class of a source kind."""
    classes: tuple[type[Section], ...] = (
        CanonicalSource,
        RecBoleSource,
        HetRecLastFmSource,
        SequencesSource,
        SyntheticSource,
    )
    return {cls.model_fields["kind"].default: cls for cls in classes}[kind]
