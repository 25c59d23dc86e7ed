"""The keys of ``data.source`` for tables: files, separators, columns, renames, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from recsys.inspect.arguments import Looked, shown_path
from recsys.inspect.attributes import Attributes
from recsys.inspect.forms import TextForm
from recsys.inspect.samples import Sample
from recsys.inspect.understood import Setting
from recsys.inspect.vocabulary import ITEM, parts
from recsys.sources.guesses import DROP, NAMES
from recsys.sources.separators import BLANKS

_WORDS: Final = {"\t": "tab", BLANKS: "spaces"}
_KNOWN_SUFFIXES: Final = (".csv", ".tsv", ".tab")


@dataclass
class TablePlan:
    """How one table is read."""

    role: str
    sample: Sample
    names: dict[str, str]  # column of the files → its name from then on; "" leaves a cell of a file without header out
    reasons: dict[str, str] = field(default_factory=dict)  # column of the files → why
    numbers: list[str] = field(default_factory=list)
    constants: dict[str, str] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        return isinstance(self.sample.form, TextForm)

    @property
    def form(self) -> TextForm:
        assert isinstance(self.sample.form, TextForm)
        return self.sample.form


def source_settings(looked: Looked, plans: Sequence[TablePlan]) -> list[Setting]:
    """The settings of a canonical source, in the order of the documentation."""
    found = [Setting("kind", "canonical", "tables of your own, whatever their columns are called")]
    for plan in plans:
        files = [shown_path(path) for path in looked.patterns(plan.sample)]
        count = f"{plan.sample.num_rows:,} rows"
        about = "" if plan.sample.is_whole else "about "
        found.append(Setting(plan.role, files, f"{about}{count}, {form_words(plan.sample)}"))
    texts = [plan for plan in plans if plan.is_text]
    found += _separators(texts) + _columns(texts) + _by_table(texts)
    renames = {plan.role: _renamed(plan) for plan in plans if _renamed(plan)}
    found += _rename_settings(plans, renames)
    if constants := {plan.role: plan.constants for plan in plans if plan.constants}:
        found.append(Setting("constants", constants, "the file has no column that says what its rows mean"))
    if numbers := {plan.role: plan.numbers for plan in plans if plan.numbers}:
        found.append(Setting("numbers", numbers, "their values are numbers, which the files write as text"))
    return found


def form_words(sample: Sample) -> str:
    """A file's form for people."""
    if sample.format == "parquet":
        words = "Parquet"
    elif sample.format == "jsonl":
        words = "JSON"
    elif isinstance(sample.form, TextForm):
        names = "with a header" if sample.form.has_header else "without a header"
        words = f"{NAMES.get(sample.form.separator, sample.form.separator)}-separated text {names}"
        words = words.replace("blanks-", "blank-").replace("two colons-", "'::'-")
    else:
        words = "a line a user"
    more = f", {len(sample.files):,} files" if len(sample.files) > 1 else ""
    folders = f", {', '.join(sample.folders)} in the names of folders" if sample.folders else ""
    return words + more + folders


def _separators(texts: Sequence[TablePlan]) -> list[Setting]:
    wanted = {
        plan.role: _WORDS.get(plan.form.separator, plan.form.separator) for plan in texts if not plan.form.is_usual
    }
    if not wanted:
        return []
    every = {_WORDS.get(plan.form.separator, plan.form.separator) for plan in texts}
    why = "gives the lines of the sample one number of cells"
    return [Setting("separator", every.pop() if len(every) == 1 else wanted, why)]


def _columns(texts: Sequence[TablePlan]) -> list[Setting]:
    """Names of the cells of files without a header."""
    found = []
    for plan in texts:
        if plan.form.has_header:
            continue
        own = [name for name in plan.sample.rows.column_names if name not in plan.sample.folders]
        told = dict.fromkeys(f"{plan.names.get(name)}: {plan.reasons[name]}" for name in own if name in plan.reasons)
        why = "no header" + (f"; {'; '.join(told)}" if told else "")
        found.append(Setting(f"columns.{plan.role}", [plan.names.get(name) or DROP for name in own], why))
    return found


def _by_table(texts: Sequence[TablePlan]) -> list[Setting]:
    """Comments and encodings."""
    found = []
    comments = {plan.role: plan.form.comment for plan in texts if plan.form.comment}
    if comments:
        found.append(Setting("comment", comments, "lines that begin so are no rows"))
    encodings = {plan.role: plan.form.encoding for plan in texts if plan.form.encoding != "utf-8"}
    if encodings:
        found.append(Setting("encoding", encodings, "bytes that are no UTF-8 are letters in it"))
    return found


def _renamed(plan: TablePlan) -> dict[str, str]:
    """Columns whose name changes; those of files without a header are named by ``columns``."""
    named = plan.names
    if plan.is_text and not plan.form.has_header:
        named = {name: to for name, to in named.items() if name in plan.sample.folders}
    return {name: to for name, to in named.items() if to and to != name}


def _rename_settings(plans: Sequence[TablePlan], renames: Mapping[str, dict[str, str]]) -> list[Setting]:
    found = []
    for plan in plans:
        for name, to in renames.get(plan.role, {}).items():
            found.append(Setting(f"rename.{plan.role}.{name}", to, plan.reasons.get(name, "by its values")))
    return found


def relation_of(sample: Sample, column: str) -> str:
    """What facts of two columns say: the name of the column, or a word of the file's name."""
    if sample.has_names:
        return column
    words = [word for word in parts(sample.name.split(".")[0]) if word not in ITEM and not word.isdigit()]
    return words[-1] if words and len(words[-1]) > 2 else "category"


def plan_of_attributes(
    role: str, sample: Sample, key: dict[str, str], found: Attributes, reserved: dict[str, str], why: str
) -> TablePlan:
    """The plan of a table of items or users."""
    names = {**reserved, **found.rename, **key}
    if not sample.has_names:
        named = {name: found.rename.get(name, "") for name in sample.rows.column_names}
        for idle in found.idle:
            named[idle] = ""
        names = {**named, **key}
    reasons = dict.fromkeys(key, why)
    reasons |= {name: "by its name and values" for name in found.rename}
    reasons |= {name: f"{name!r} would be taken for a column of the product's own" for name in reserved}
    if not sample.has_names:
        reasons = dict.fromkeys(key, why)
    return TablePlan(role, sample, names, reasons, list(found.numbers))
