"""Which files hold the lists of which method: settings, seeds, and lists of the validation split.

The forms of a word of ``--lists``::

    NAME=FILE                a method
    NAME=GLOB                a method with one file per seed
    NAME/SETTING=GLOB        one of its settings; NAME/SETTING.valid=GLOB chooses among settings
    FOLDER                   NAME.parquet, NAME.seed1.parquet, NAME/SETTING.parquet,
                             NAME/SETTING.valid.parquet …
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from recsys.errors import ConfigError, SourceError
from recsys.referee.tables import ENDINGS

_VALID: Final = ".valid"
_SEED: Final = re.compile(r"\.seed\w+$")


@dataclass
class Setting:
    """One setting of a method: the files of its lists, one per seed."""

    name: str
    test: list[Path] = field(default_factory=list)
    valid: list[Path] = field(default_factory=list)


Methods = dict[str, list[Setting]]


def methods_of(words: Sequence[str]) -> Methods:
    """Method → its settings, from the words of ``--lists``.

    Raises
    ------
    SourceError
        There is no such file.
    ConfigError
        A word has another form, a name is given twice, or several settings lack validation lists.
    """
    files: dict[str, list[Path]] = {}
    for word in words:
        name, equals, pattern = word.partition("=")
        found = {name: _files(pattern)} if equals else _of_folder(Path(word))
        if equals and not (name and pattern):
            raise ConfigError(f"referee.lists: {word!r} is neither NAME=FILE nor a folder of lists")
        for key, paths in found.items():
            if key in files:
                raise ConfigError(
                    f"referee.lists: {key!r} is given twice; for several seeds, give one glob"
                )
            files[key] = paths
    methods: Methods = {}
    for key, paths in files.items():
        name, _, setting = key.removesuffix(_VALID).partition("/")
        settings = methods.setdefault(name, [])
        one = next((known for known in settings if known.name == setting), None)
        if one is None:
            settings.append(one := Setting(setting))
        (one.valid if key.endswith(_VALID) else one.test).extend(paths)
    for name, settings in methods.items():
        _check(name, settings)
    return methods


def _check(name: str, settings: list[Setting]) -> None:
    untested = [one.name for one in settings if not one.test]
    if untested:
        shown = "/".join(part for part in (name, untested[0]) if part)
        raise ConfigError(
            f"referee.lists: {shown} has only lists of the validation split; give {shown}=FILE for"
            " test too"
        )
    unchosen = [one.name or "(no setting)" for one in settings if not one.valid]
    if len(settings) > 1 and unchosen:
        raise ConfigError(
            f"referee.lists: {name} has {len(settings)} settings, but {', '.join(unchosen)} has no"
            " lists of the validation split, and a setting must not be chosen on test. Give"
            f" {name}/{unchosen[0]}.valid=FILE, or only the setting that you chose before"
        )


def _files(pattern: str) -> list[Path]:
    if Path(pattern).is_file():  # a name may have the characters of a pattern
        return [Path(pattern)]
    found = (
        sorted(Path(path) for path in glob.glob(pattern))
        if glob.has_magic(pattern)
        else [Path(pattern)]
    )
    found = [path for path in found if path.is_file()]
    if not found:
        raise SourceError(f"referee.lists: no file {pattern}")
    return found


def _of_folder(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise ConfigError(
            f"referee.lists: {str(folder)!r} is neither NAME=FILE nor a folder of lists"
        )
    found: dict[str, list[Path]] = {}
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
        if ending and path.is_file():
            key = _SEED.sub("", str(path.relative_to(folder)).removesuffix(ending))
            found.setdefault(key, []).append(path)
    if not found:
        raise SourceError(
            f"referee.lists: {folder} holds no lists; expected NAME.parquet or NAME/SETTING.parquet"
        )
    return found
