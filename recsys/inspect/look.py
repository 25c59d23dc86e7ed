"""One look at files: what they hold, and the configuration that fits them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recsys.config import Config, build_config
from recsys.config.yaml_reader import parse_yaml
from recsys.errors import SourceError
from recsys.inspect.arguments import Looked, look_at
from recsys.inspect.canonical import understand
from recsys.inspect.draft import Draft
from recsys.inspect.proposal import draft_of
from recsys.inspect.releases import understand_hetrec, understand_recbole
from recsys.inspect.understood import Setting, Understood
from recsys.sources import open_source

_HEADERS = ("yes", "no")


@dataclass(frozen=True)
class Look:
    """The result of a look."""

    found: Understood
    draft: Draft
    name: str

    @property
    def config(self) -> Config:
        """The proposed configuration."""
        return build_config(self.draft.tree, "the proposed configuration")


def look(arguments: Sequence[str], name: str = "", command: str = "recsys init") -> Look:
    """Look at files and propose a configuration that their readers accept.

    Parameters
    ----------
    arguments : Sequence[str]
        Files, folders, globs; local or remote.
    name : str
        Of run and model; empty: of the data's folder.
    command : str
        For the head of the configuration.

    Raises
    ------
    SourceError
        Nothing can be read, nothing has events, or no setting makes the readers accept the files.
    """
    looked = look_at(arguments)
    try:
        found = _understood(looked)
    except SourceError as error:
        empty = "; ".join(f"{path} {why}" for path, why in looked.empty.items())
        raise SourceError(f"{error}; {empty}" if empty else str(error)) from None
    found.warnings = looked.empty
    name = name or found.name
    return Look(found, _accepted(found, name, command), name)


def _understood(looked: Looked) -> Understood:
    if looked.recbole is not None:
        return understand_recbole(looked)
    return understand_hetrec(looked) if looked.hetrec else understand(looked)


def _accepted(found: Understood, name: str, command: str) -> Draft:
    """The draft that the readers of the source accept: as it is, or with a word on headers.

    Raises
    ------
    SourceError
        With what they say.
    """
    draft = draft_of(found, name, command)
    try:
        _check(draft)
        return draft
    except SourceError as error:
        first = error
    if "header" in str(first) and found.source[0].value == "canonical":
        for word in _HEADERS:
            why = "the first row holds names" if word == "yes" else "the first row is a row of data"
            source = [*found.source, Setting("header", word, why)]
            found.source, before = source, found.source
            draft = draft_of(found, name, command)
            try:
                _check(draft)
                return draft
            except SourceError:
                found.source = before
    raise SourceError(f"the files cannot be read as proposed: {first}") from None


def _check(draft: Draft) -> Config:
    """Read the text back, and look at the files as a dry run does.

    Raises
    ------
    SourceError
        A file is not what the draft says.
    """
    text = draft.text()
    config = build_config(parse_yaml(text, "the proposed configuration"), "the proposed configuration")
    open_source(config.data.source).check()
    return config
