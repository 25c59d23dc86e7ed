"""Look at files: find out what they contain, and propose a configuration for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recsys.config import Config, build_config
from recsys.config.yaml_reader import parse_yaml
from recsys.errors import SourceError
from recsys.inspect.canonical import understand
from recsys.inspect.draft import Draft
from recsys.inspect.input_files import ArgumentContent, look_at
from recsys.inspect.proposal import draft_of
from recsys.inspect.releases import understand_hetrec, understand_recbole
from recsys.inspect.understood import Setting, Understood
from recsys.sources import open_source

_HEADERS = ("yes", "no")


@dataclass(frozen=True)
class Look:
    """What was found in the files, and the proposed configuration."""

    found: Understood
    draft: Draft
    name: str

    @property
    def config(self) -> Config:
        """The proposed configuration."""
        return build_config(self.draft.tree, "the proposed configuration")


def look(
    arguments: Sequence[str],
    name: str = "",
    command: str = "recsys init",
    stated: Mapping[str, str] | None = None,
) -> Look:
    """Look at files and propose a configuration that their readers accept.

    Parameters
    ----------
    arguments : Sequence[str]
        Files, folders, globs; local or remote.
    name : str
        Name of run and model; empty: that of the data's folder.
    command : str
        Command line, for the head of the configuration.
    stated : Mapping[str, str] | None
        Roles that the user stated, by argument; the others are found from the content.

    Raises
    ------
    SourceError
        Nothing can be read, no file has events, or the readers refuse the files with every setting.
    """
    looked = look_at(arguments)
    try:
        found = _understood(looked, stated or {})
    except SourceError as error:
        unread = [f"{path} {why}" for path, why in looked.empty.items()]
        unread += [f"{path} is ignored: {why}" for path, why in looked.ignored.items()]
        raise SourceError("; ".join([str(error), *unread])) from None
    found.warnings = looked.empty
    name = name or found.name
    return Look(found, _accepted(found, name, command), name)


def _understood(looked: ArgumentContent, stated: Mapping[str, str]) -> Understood:
    if looked.recbole is not None:
        return understand_recbole(looked)
    return understand_hetrec(looked) if looked.hetrec else understand(looked, stated)


def _accepted(found: Understood, name: str, command: str) -> Draft:
    """Return a draft that the readers of the source accept, with a setting for headers if needed.

    Raises
    ------
    SourceError
        The readers refuse the files; the message says why.
    """
    draft = draft_of(found, name, command)
    try:
        _check(draft)
        return draft
    except SourceError as error:
        first = error
    if "header" in str(first) and found.source[0].value == "canonical":
        for word in _HEADERS:
            why = (
                "the first row has the column names"
                if word == "yes"
                else "the first row is a row of data"
            )
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
    """Parse the draft, and check the files as a dry run does.

    Raises
    ------
    SourceError
        A file does not match the draft.
    """
    text = draft.text()
    config = build_config(
        parse_yaml(text, "the proposed configuration"), "the proposed configuration"
    )
    open_source(config.data.source).check()
    return config
