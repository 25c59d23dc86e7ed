"""The keys of ``data.source`` for tables: files, separators, columns, renames, each with its
reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from recsys import schema
from recsys.inspect.column_uses import Attributes
from recsys.inspect.common_names import ITEM, words_of
from recsys.inspect.forms import SequenceForm, TextForm
from recsys.inspect.input_files import ArgumentContent, shown_path
from recsys.inspect.samples import Sample
from recsys.inspect.understood import Setting
from recsys.sources.guesses import DROP, NAMES
from recsys.sources.separators import BLANKS

ENTITIES: Final = "the item's entity in the triples"
_WORDS: Final = {"\t": "tab", BLANKS: "spaces"}


@dataclass
class TablePlan:
    """How to read one table."""

    role: str
    sample: Sample
    # column of the files → its new name; "" drops a cell of a file without header
    names: dict[str, str]
    reasons: dict[str, str] = field(default_factory=dict)  # column of the files → why
    numbers: list[str] = field(default_factory=list)
    constants: dict[str, str] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        """Whether the files are separated text."""
        return isinstance(self.sample.form, TextForm)

    @property
    def form(self) -> TextForm:
        """Form of the text files."""
        assert isinstance(self.sample.form, TextForm)
        return self.sample.form


def source_settings(looked: ArgumentContent, plans: Sequence[TablePlan]) -> list[Setting]:
    """Return the settings of a canonical source, in the order of the documentation."""
    found = [Setting("kind", "canonical", "tables with any column names")]
    for plan in plans:
        files = [shown_path(path) for path in looked.patterns(plan.sample)]
        count = f"{plan.sample.num_rows:,} rows"
        about = "" if plan.sample.is_whole else "about "
        found.append(Setting(plan.role, files, f"{about}{count}, {form_words(plan.sample)}"))
    if isinstance(lines := plans[0].sample.form, SequenceForm):
        found.append(Setting("format.events", "sequences", "lines of USER ITEM ITEM …"))
        if lines.separator:
            found.append(Setting("separator.events", lines.separator, "separates ids of a line"))
        if lines.comment:
            why = "lines that start with this are comments"
            found.append(Setting("comment.events", lines.comment, why))
    texts = [plan for plan in plans if plan.is_text]
    found += _separators(texts) + _columns(texts) + _by_table(texts)
    renames = {plan.role: _renamed(plan) for plan in plans if _renamed(plan)}
    found += _rename_settings(plans, renames)
    if constants := {plan.role: plan.constants for plan in plans if plan.constants}:
        found.append(Setting("constants", constants, "the file has no column for the relation"))
    if numbers := {plan.role: plan.numbers for plan in plans if plan.numbers}:
        found.append(Setting("numbers", numbers, "the files store these numbers as text"))
    return found


def form_words(sample: Sample) -> str:
    """Describe a file's form in words."""
    if sample.format == "parquet":
        words = "Parquet"
    elif sample.format == "jsonl":
        words = "JSON"
    elif isinstance(sample.form, TextForm):
        names = "with a header" if sample.form.has_header else "without a header"
        words = f"{NAMES.get(sample.form.separator, sample.form.separator)}-separated text {names}"
        words = words.replace("blanks-", "blank-").replace("two colons-", "'::'-")
    else:
        words = "one line per user"
    more = f", {len(sample.files):,} files" if len(sample.files) > 1 else ""
    folders = f", {', '.join(sample.folders)} from folder names" if sample.folders else ""
    return words + more + folders


def _separators(texts: Sequence[TablePlan]) -> list[Setting]:
    wanted = {
        plan.role: _WORDS.get(plan.form.separator, plan.form.separator)
        for plan in texts
        if not plan.form.is_usual
    }
    if not wanted:
        return []
    every = {_WORDS.get(plan.form.separator, plan.form.separator) for plan in texts}
    why = "gives all lines the same number of cells"
    return [Setting("separator", every.pop() if len(every) == 1 else wanted, why)]


def _columns(texts: Sequence[TablePlan]) -> list[Setting]:
    """Names for the cells of files without a header."""
    found = []
    for plan in texts:
        if plan.form.has_header:
            continue
        own = [name for name in plan.sample.rows.column_names if name not in plan.sample.folders]
        stated = dict.fromkeys(
            f"{plan.names.get(name)}: {plan.reasons[name]}" for name in own if name in plan.reasons
        )
        why = "no header" + (f"; {'; '.join(stated)}" if stated else "")
        found.append(
            Setting(f"columns.{plan.role}", [plan.names.get(name) or DROP for name in own], why)
        )
    return found


def _by_table(texts: Sequence[TablePlan]) -> list[Setting]:
    """Settings of comments and encodings."""
    found = []
    comments = {plan.role: plan.form.comment for plan in texts if plan.form.comment}
    if comments:
        found.append(Setting("comment", comments, "lines that start with this are comments"))
    encodings = {plan.role: plan.form.encoding for plan in texts if plan.form.encoding != "utf-8"}
    if encodings:
        why = f"not UTF-8; found from the letters, so check: {_shown_words(texts)}"
        found.append(Setting("encoding", encodings, why))
    return found


def _shown_words(texts: Sequence[TablePlan]) -> str:
    """A text of each table that is not UTF-8, as its encoding reads it."""
    found = []
    for plan in texts:
        encoded = plan.form.encoded
        if encoded.name != "utf-8":
            other = f" (or {encoded.other}, which fits nearly as well)" if encoded.other else ""
            found.append(f"{plan.role} have {encoded.example!r}{other}")
    return "; ".join(found)


def _renamed(plan: TablePlan) -> dict[str, str]:
    """Renamed columns; ``columns`` names those of files without a header."""
    named = plan.names
    if isinstance(plan.sample.form, SequenceForm):
        return {}
    if plan.is_text and not plan.form.has_header:
        named = {name: to for name, to in named.items() if name in plan.sample.folders}
    return {name: to for name, to in named.items() if to and to != name}


def _rename_settings(
    plans: Sequence[TablePlan], renames: Mapping[str, dict[str, str]]
) -> list[Setting]:
    found = []
    for plan in plans:
        for name, to in renames.get(plan.role, {}).items():
            found.append(
                Setting(f"rename.{plan.role}.{name}", to, plan.reasons.get(name, "from its values"))
            )
    return found


def relation_of(sample: Sample, column: str) -> str:
    """The relation of triples with two columns: the name of the column, or a word of the file's
    name.
    """
    if sample.has_names:
        return column
    words = [
        word
        for word in words_of(sample.name.split(".")[0])
        if word not in ITEM and not word.isdigit()
    ]
    return words[-1] if words and len(words[-1]) > 2 else "category"


def plan_of_attributes(
    role: str,
    sample: Sample,
    key: dict[str, str],
    found: Attributes,
    reserved: dict[str, str],
    why: str,
) -> TablePlan:
    """Plan how to read a table of items or users.

    Parameters
    ----------
    role : str
        ``items`` or ``users``.
    sample : Sample
        The sample of the table.
    key : dict[str, str]
        Column of the files → canonical column, for the ids.
    found : Attributes
        The uses of the other columns.
    reserved : dict[str, str]
        New names for columns whose names have a reserved meaning.
    why : str
        The reason for the key column.

    Returns
    -------
    TablePlan
        The final names of the columns, each with its reason.
    """
    names = {**reserved, **found.rename, **key}
    if not sample.has_names:
        named = {name: found.rename.get(name, "") for name in sample.rows.column_names}
        for idle in found.idle:
            named[idle] = ""
        names = {**named, **key}
    reasons = {name: ENTITIES if to == schema.ENTITY_ID else why for name, to in key.items()}
    if sample.has_names:
        reasons |= {name: "from its name and values" for name in found.rename}
        reasons |= {name: f"renamed, because {name!r} has a reserved meaning" for name in reserved}
    return TablePlan(role, sample, names, reasons, list(found.numbers))
