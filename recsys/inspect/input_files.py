"""From arguments (files, folders and globs) to tables as samples, folders of known releases, and
ignored files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from recsys.errors import EmptyFile, SourceError, StorageError, first_line
from recsys.inspect.common_names import words_of
from recsys.inspect.samples import WHOLE_BYTES, Sample, sample_of, together
from recsys.sources.files import InputFile, find
from recsys.sources.recbole import base_name
from recsys.storage.uris import expanded, is_remote

# files of one table that are looked into if together they are large; the rest are assumed to have
# the same form
_MANY_FILES: Final = 12
_MOST_FILES: Final = 2_000  # the same, if together they are small
_PACKED: Final = 8  # bytes of text in a byte of a compressed file
_HETREC: Final = (
    "user_artists.dat",
    "user_taggedartists.dat",
    "tags.dat",
    "artists.dat",
    "user_friends.dat",
)
_ATOMIC: Final = (".inter", ".item", ".user", ".kg", ".link", ".net")


@dataclass
class ArgumentContent:
    """The content of the arguments."""

    tables: list[Sample] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)  # path → reason
    empty: dict[str, str] = field(default_factory=dict)  # path → how it is empty
    hetrec: str = ""  # folder of the HetRec 2011 Last.fm release
    recbole: tuple[str, str] | None = None  # folder and name of atomic files
    found: dict[str, list[str]] = field(default_factory=dict)  # argument → paths

    def patterns(self, sample: Sample) -> list[str]:
        """Return what a configuration lists to read the files of a table and no others.

        This is the argument if it names exactly these files; a glob if they are all files of one
        suffix; else the files.
        """
        mine = {file.path for file in sample.files}
        of_argument = set(self.found.get(sample.given, ()))
        if mine and mine == of_argument and (len(mine) > 1 or sample.given not in mine):
            return [sample.given]
        suffix = sample.files[0].suffix
        alike = {path for path in of_argument if path.lower().endswith(suffix)}
        is_folder = len(of_argument) > 1 and not set(sample.given) & set("*?[")
        if len(mine) > _MANY_FILES and mine == alike and suffix and is_folder:
            return [f"{sample.given.rstrip('/')}/**/*{suffix}"]
        return sorted(mine)


def look_at(arguments: Sequence[str]) -> ArgumentContent:
    """Find and sample the files.

    Raises
    ------
    SourceError
        There is no argument, or none names a file.
    EmptyFile
        The only argument names an empty file.
    StorageError
        The only argument is remote and cannot be reached.
    """
    if not arguments:
        raise SourceError(
            "no file is given; pass the files, folders or globs of your data: recsys init FILE…"
        )
    looked = ArgumentContent()
    files: dict[str, tuple[InputFile, str]] = {}
    for argument in arguments:
        try:
            found = find([argument], "the argument FILE")
            looked.found[argument] = [file.path for file in found]
            for file in found:
                # a file's own argument wins over that of its folder
                if file.path == expanded(argument):
                    files[file.path] = (file, argument)
                files.setdefault(file.path, (file, argument))
        except EmptyFile as error:
            if len(arguments) == 1:
                raise
            looked.empty[argument] = first_line(error).removeprefix(f"{expanded(argument)} ")
        except (SourceError, StorageError) as error:
            is_missing = (
                not is_remote(argument)
                and not set(argument) & set("*?[")
                and not Path(expanded(argument)).exists()
            )
            if is_missing:  # a mistyped name must not silently drop a table
                is_relative = not Path(expanded(argument)).is_absolute()
                folder = f" in {Path.cwd()}" if is_relative else ""
                raise SourceError(
                    f"{argument} does not exist{folder}; expected a file, folder or glob of your"
                    " data: check the path"
                ) from None
            if len(arguments) == 1:
                raise
            looked.ignored[argument] = first_line(error)
    files = _without_releases(files, looked)
    by_stem: dict[tuple[str, str], list[tuple[InputFile, str]]] = {}
    for file, argument in files.values():
        by_stem.setdefault((argument, _pattern(file)), []).append((file, argument))
    samples: list[Sample] = []
    for alike in by_stem.values():
        samples += _sampled(alike, looked)
    looked.tables = _joined(samples)
    if not (looked.tables or looked.hetrec or looked.recbole):
        reasons = _reasons({**looked.empty, **looked.ignored})
        raise SourceError(
            f"no file can be read as a table ({reasons}); expected Parquet, CSV, TSV, JSON or text"
            " tables"
        )
    return looked


def _reasons(why: Mapping[str, str]) -> str:
    """The reasons of files, each once with the files that have it.

    >>> _reasons({"1.txt": "has 3 rows", "2.txt": "has 4 rows", "a.pdf": "is no table"})
    '1.txt and 1 more file: has 3 rows; a.pdf: is no table'
    """
    alike: dict[str, list[str]] = {}
    for path, reason in why.items():
        alike.setdefault(re.sub(r"\d+", "0", reason), []).append(path)
    shown = []
    for first, *others in list(alike.values())[:5]:
        files = "files" if len(others) > 1 else "file"
        more = f" and {len(others)} more {files}" if others else ""
        shown.append(f"{first}{more}: {why[first]}")
    return "; ".join(shown)


def _pattern(file: InputFile) -> str:
    """Key of a file: files of one folder tree whose names differ only in digits are parts of one
    table, as from Spark.
    """
    stem = "".join("0" if character.isdigit() else character for character in file.name.lower())
    is_shard = stem.startswith("part-") or "=" in file.path
    if is_shard:
        outside = file.path.split("=")[0].rpartition("/")[0]
        return f"{outside}/part{file.suffix}"
    return file.path


def _text_bytes(file: InputFile) -> int:
    """About how many bytes a file would have as text that is not compressed."""
    is_packed = file.compressed or file.suffix in (".parquet", ".pq")
    return file.size * (_PACKED if is_packed else 1)


def _sampled(alike: list[tuple[InputFile, str]], looked: ArgumentContent) -> list[Sample]:
    """Sample files that are parts of one table, or a single file."""
    # without some days, the histories of users have holes, and items seem to repeat less
    is_small = (
        sum(_text_bytes(file) for file, _ in alike) <= WHOLE_BYTES and len(alike) <= _MOST_FILES
    )
    step = 1 if is_small else max(1, -(-len(alike) // _MANY_FILES))
    looked_into = {
        index for index in range(len(alike)) if index % step == 0 or index == len(alike) - 1
    }
    found: list[Sample] = []
    skipped: list[InputFile] = []
    for index, (file, argument) in enumerate(alike):
        if index not in looked_into:
            skipped.append(file)
            continue
        try:
            found.append(sample_of(file, argument))
        except EmptyFile as error:
            looked.empty[file.path] = first_line(error).removeprefix(f"{file.path} ")
        except (SourceError, StorageError) as error:
            looked.ignored[file.path] = (
                first_line(error).removeprefix(f"{file.path}: ").removeprefix(f"{file.path} ")
            )
    if skipped and found:
        factor = len(alike) / len(found)
        whole = together([sample for sample in found if sample.signature == found[0].signature])
        others = [sample for sample in found if sample.signature != found[0].signature]
        from dataclasses import replace

        files = (*whole.files, *skipped)
        found = [
            replace(whole, files=files, is_whole=False, num_rows=int(whole.num_rows * factor)),
            *others,
        ]
    return found


def _joined(samples: Sequence[Sample]) -> list[Sample]:
    """Combine files of the same form and columns into one table if their folder or names say so."""
    groups: list[list[Sample]] = []
    for sample in samples:
        group = next((group for group in groups if _is_part(sample, group)), None)
        if group is None:
            groups.append([sample])
        else:
            group.append(sample)
    return [together(group) for group in groups]


def _is_part(sample: Sample, group: Sequence[Sample]) -> bool:
    """Whether a sample belongs to the table of a group."""
    first = group[0]
    if sample.format == "sequences":
        return False
    are_in_one_tree = bool(sample.folders and first.folders) and _root(sample) == _root(first)
    if _family(sample) != _family(first) and not are_in_one_tree:
        return False
    if sample.signature == first.signature:
        return True
    # other columns are those of another table if the files are in folders of two tables
    return _root(sample) == _root(first) and all(sample.is_part_with(one) for one in group)


def _root(sample: Sample) -> str:
    """The folder of a file, above the folders ``column=value``."""
    return sample.files[0].path.split("=")[0].rpartition("/")[0]


def _family(sample: Sample) -> object:
    """What files must share besides their form: the folder argument, or a name that differs only in
    digits.
    """
    if sample.folders:
        return sample.given
    letters = [
        word for word in words_of(sample.name) if not any(character.isdigit() for character in word)
    ]
    return sample.files[0].path.rpartition("/")[0], tuple(letters)


def _without_releases(
    files: dict[str, tuple[InputFile, str]], looked: ArgumentContent
) -> dict[str, tuple[InputFile, str]]:
    """Return the files without those of known releases, which have their own adapters."""
    folders: dict[str, list[InputFile]] = {}
    for file, _ in files.values():
        folders.setdefault(file.path.rpartition("/")[0], []).append(file)
    for folder, inside in folders.items():
        names = {file.name for file in inside}
        if not looked.hetrec and set(_HETREC) <= names:
            looked.hetrec = folder or "."
        for file in inside:
            if (
                file.suffix == ".inter"
                and not file.compressed
                and looked.recbole is None
                and _is_atomic(file)
            ):
                base = base_name(file.name)
                whole = {f"{base}.inter", f"{base}.train.inter"} & names
                looked.recbole = folder or ".", base if whole else file.name.removesuffix(".inter")
    taken: dict[str, tuple[InputFile, str]] = {}
    for path, (file, argument) in files.items():
        folder = file.path.rpartition("/")[0] or "."
        inside_release = looked.hetrec and (
            folder == looked.hetrec or folder == f"{looked.hetrec}/knowledge"
        )
        if inside_release and (file.name in _HETREC or folder.endswith("/knowledge")):
            continue
        by_folder = (
            looked.hetrec
            and folder.startswith(f"{looked.hetrec}/")
            and argument.rstrip("/") == looked.hetrec
        )
        if by_folder:
            looked.ignored[file.path] = (
                "is inside a release folder, which is read as published; pass the file itself to"
                " use it"
            )
            continue
        if looked.recbole and folder == looked.recbole[0] and file.suffix in _ATOMIC:
            name = looked.recbole[1]
            is_whole = f"{folder}/{name}.inter" in files or f"{name}.inter" in files
            if file.name.removesuffix(file.suffix) == name:
                continue
            if base_name(file.name) != name:
                looked.ignored[file.path] = f"a second data set next to {name}.inter"
            elif is_whole:
                looked.ignored[file.path] = f"a part of {name}.inter"
            continue
        taken[path] = (file, argument)
    return taken


def _is_atomic(file: InputFile) -> bool:
    with file.stream() as stream:
        first = bytes(stream.read(4096)).split(b"\n")[0]
    return b":token" in first or b":float" in first


def shown_path(path: str) -> str:
    """Return a path as a configuration needs it: dollar signs doubled."""
    return path if is_remote(path) else path.replace("$", "$$")


def data_name(file: InputFile) -> str:
    """Return a short name for the data: that of its folder, or of the file if there is no telling
    folder.

    >>> data_name(InputFile("shop/events.csv", 1)), data_name(InputFile("events.csv", 1))
    ('shop', 'events')
    """
    folders = [
        part for part in file.path.split("://")[-1].split("?")[0].split("/")[:-1] if "=" not in part
    ]
    word = (
        folders[-1]
        if folders and folders[-1] not in ("", ".", "..", "~", "data")
        else file.name.split(".")[0]
    )
    plain = "-".join(words_of(word)) or "data"
    return plain[:40]
