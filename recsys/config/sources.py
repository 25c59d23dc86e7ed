"""``data.source``: one section for each kind of source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, ValidatorFunctionWrapHandler

from recsys.config.canonical import CanonicalSource
from recsys.config.outside import SOURCES, load, offers, resolve
from recsys.config.section import Section
from recsys.config.text_files import TABLES, CellSource, Comment, Rename, Separator
from recsys.errors import valid_instead


class RecBoleSource(CellSource):
    """RecBole atomic files: FOLDER/NAME.inter, .user, .item, .kg, .link, .net."""

    places: ClassVar[tuple[str, ...]] = ("folder", "name")

    kind: Literal["recbole"] = Field("recbole", description="RecBole atomic files")
    folder: str = Field(description="folder of the atomic files")
    name: str = Field(
        "", description="name of the files without ending; empty: the name of the folder"
    )
    rename: Rename = Field(
        {},
        description=(
            "atomic field → canonical column, e.g. rating → value; {TABLE: {…}} for single tables"
        ),
    )
    separator: Separator = Field(
        "", description="separator of fields; empty: a tab, or the one found in the file"
    )


class HetRecLastFmSource(CellSource):
    """The HetRec 2011 Last.fm-2k folder as published; listens are events, tag assignments are
    ``tag`` events.
    """

    places: ClassVar[tuple[str, ...]] = ("folder", "test_pairs")

    kind: Literal["hetrec-lastfm"] = Field(
        "hetrec-lastfm", description="the HetRec 2011 Last.fm-2k release"
    )
    folder: str = Field(description="folder of the release")
    absent: list[str] = Field(
        [],
        description=(
            "texts that mean a missing value; default none, as an artist or tag may be called None"
        ),
    )
    test_pairs: str = Field(
        "", description="file of held-out (userID, artistID) pairs, read as the given split"
    )


class SequencesSource(CellSource):
    """Text files with one user in each line: ``user item item …`` in order; optionally a table of
    items.
    """

    places: ClassVar[tuple[str, ...]] = ("events", "items")

    kind: Literal["sequences"] = Field(
        "sequences", description="text files with one user in each line"
    )
    events: str = Field(description="file of sequences")
    items: list[str] = Field(
        [], description="files, folders or globs of items and their attributes"
    )
    rename: Rename = Field({}, description="column of the items' files → canonical column")
    numbers: list[str] = Field(
        [],
        description=(
            "columns of the items that are read as numbers, also if a file has them as text"
        ),
    )
    separator: Separator = Field(
        "", description="separator of user and items in a line; empty: blanks"
    )
    comment: Comment = Field(
        "", description="lines that start with this text are skipped, e.g. '#'"
    )


class SyntheticSource(Section):
    """Generated data with planted signals. The strength of each signal is in [0, 1]: how much it
    decides events.
    """

    kind: Literal["synthetic"] = Field(
        "synthetic", description="generated data with planted signals"
    )
    num_users: int = Field(1000, ge=10, description="number of users")
    num_items: int = Field(600, ge=20, description="number of items")
    events_per_user: float = Field(24.0, gt=3, description="events of a user, on average")
    num_topics: int = Field(
        12, ge=2, description="number of latent topics of items, friends and interest drift"
    )
    num_partitions: int = Field(
        4, ge=1, description="parts that are generated in parallel; rows do not depend on it"
    )
    seed: int = Field(0, description="seed of the generator")
    text: float = Field(0.7, ge=0, le=1, description="strength of item text as a sign of the topic")
    evolution: float = Field(
        0.7, ge=0, le=1, description="strength of the order of events as a sign of the next item"
    )
    collaborative: float = Field(
        0.7,
        ge=0,
        le=1,
        description="strength of hidden communities that share items independent of text",
    )
    social: float = Field(0.7, ge=0, le=1, description="strength of the taste that friends share")
    knowledge: float = Field(
        0.7,
        ge=0,
        le=1,
        description=(
            "strength of the preference for items whose makers belong to the owner that the user"
            " likes; the triples name makers and owners"
        ),
    )
    stratum: float = Field(
        0.7,
        ge=0,
        le=1,
        description="strength of the preference for the favourites of a user cluster",
    )
    profile: float = Field(
        0.7,
        ge=0,
        le=1,
        description="strength of crosses of user attributes as a sign of the kind of items",
    )
    media: float = Field(
        0.7, ge=0, le=1, description="strength of the preference for a style, which images show"
    )
    short_history: float = Field(0.2, ge=0, le=1, description="share of users with very few events")
    cold_items: float = Field(
        0.05, ge=0, le=0.5, description="share of items that appear only at the end of the period"
    )
    bad_rows: float = Field(
        0.002, ge=0, le=0.2, description="share of broken rows, for the quarantine"
    )


Source = Annotated[
    CanonicalSource | RecBoleSource | HetRecLastFmSource | SequencesSource | SyntheticSource,
    Field(discriminator="kind"),
]


class OutsideSource(Section):
    """Base of the section of a source of another package, with the keys that it needs.

    A subclass names its adapter, a :class:`~recsys.sources.base.SourceAdapter`, as
    ``module:Class``. ``places`` names its keys that are paths or URIs: a dataset is identified by
    the content there, not by the spelling of the path.
    """

    adapter: ClassVar[str] = ""
    places: ClassVar[tuple[str, ...]] = ()

    kind: str = Field(description="module:Class, or the name that an installed package offers")


def open_kind(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Validate a source of another package by its kind, and every other source by its own
    section.

    Raises
    ------
    ValueError
        No installed package offers the kind, or a key is unknown.
    """
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if isinstance(value, OutsideSource) or not isinstance(kind, str) or kind in SOURCE_KINDS:
        return value if isinstance(value, OutsideSource) else handler(value)
    offer = resolve(SOURCES, kind)
    if offer is None:
        known = valid_instead(kind, [*SOURCE_KINDS, *offers(SOURCES)])
        raise ValueError(f"kind: got {kind!r}; {known}, or module:Class")
    cls = load(offer, OutsideSource)
    if unknown := sorted({*value} - {*cls.model_fields}):
        raise ValueError(
            f"unknown key {', '.join(unknown)};"
            f" {valid_instead(unknown[0], cls.model_fields, 'valid keys here')}"
        )
    return cls.model_validate(value)


def source_settings(source: Section) -> dict[str, Any]:
    """The settings of a source that decide how files are read. Of its paths, only which side tables
    exist.

    >>> one = CanonicalSource(events=["logs/a.csv"])
    >>> other = CanonicalSource(events=["/data/logs/a.csv"])
    >>> source_settings(one) == source_settings(other), source_settings(one)["items"]
    (True, False)
    """
    dumped = source.model_dump(mode="json")
    for key in getattr(source, "places", ()):
        given = dumped.pop(key)
        if key in TABLES[1:] and (given or key != "links"):  # a later key: absent in older datasets
            dumped[key] = bool(given)
    return dumped


def map_paths(value: Any, change: Callable[[str], str]) -> Any:
    """The value of a key of paths with every path changed: one path, a list of paths, or lists by
    name.
    """
    if isinstance(value, dict):
        return {key: map_paths(inner, change) for key, inner in value.items()}
    return [change(path) for path in value] if isinstance(value, list) else change(value)


def path_keys_of_source(source: Section | type[Section]) -> list[str]:
    """The keys of a source that hold paths; ``name`` of RecBole is the first part of file names."""
    return [key for key in getattr(source, "places", ()) if key != "name"]


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
