"""What was understood → a configuration with the reason of every line, without a section ``model``: that is chosen by
the run.
"""

from __future__ import annotations

import math
from typing import Any, Final

from recsys.config.sources import TABLES
from recsys.inspect.draft import Draft
from recsys.inspect.habits import Habits
from recsys.inspect.understood import Understood

_ACCEPTED_BAD: Final = 0.01  # what prepare accepts by default
_CLOSE_TO_IT: Final = 0.006


def draft_of(found: Understood, name: str, command: str) -> Draft:
    """The configuration.

    Parameters
    ----------
    found : Understood
        By a look at the files.
    name : str
        Of the run and the registered model.
    command : str
        That is writing it, for the head.
    """
    draft = Draft()
    seen = "a sample of the files" if found.is_sampled else "all rows of the files"
    draft.title = [
        f"Written by `{command}` from {seen}; every line says why.",
        "Next: recsys run --config THIS_FILE --budget 20m. Paths are relative to the folder that recsys is started in.",
        "There is no section model: the run chooses one for this data.",
    ]
    draft.section("run")
    draft.set("run.dir", f"runs/{name}", "everything that the run leaves")
    draft.set("run.name", name, "in MLflow")
    draft.section("data")
    draft.section("data.source")
    for setting in found.source:
        _set_deep(draft, "data.source", setting.key, setting.value, setting.why)
    if found.other_time_format:
        draft.other(
            "data.source.time_format", found.other_time_format, "fits every time as well: day and month are open"
        )
    _rules(draft, found)
    _split(draft, found)
    _echoes(draft, found)
    _text(draft, found)
    _facts(draft, found)
    _evaluation(draft, found)
    draft.section("registry")
    draft.set("registry.name", f"multigrain-{name}", "of the model that the run registers")
    return draft


def _set_deep(draft: Draft, path: str, key: str, value: Any, why: str) -> None:
    """A key of ``data.source``; the parts of a rename are sections, as a column's name may hold dots."""
    if "." in key:
        section, _, rest = key.partition(".")
        table, _, name = rest.partition(".")
        keys = [section, table, name] if name and table in TABLES else [section, rest]
        draft.put([*path.split("."), *keys], value, why)
        return
    if isinstance(value, dict) and len(value) > 1:
        for name, inner in value.items():
            draft.put([*path.split("."), key, name], inner, why)
        return
    draft.put([*path.split("."), key], value, why)


# ------------------------------------------------------------------------------------------------------------- rules


def _rules(draft: Draft, found: Understood) -> None:
    """Which events count, and which rows may be bad."""
    habits = found.habits
    draft.set("data.order", found.order, found.order_why)
    if found.order == "none" and found.event_text is None:
        draft.other("data.order", "file", "if the rows of a user are in order")
    if found.meaning.history:
        others = [kind for kind in habits.all_types if kind not in found.meaning.history]
        draft.set(
            "data.interactions", list(found.meaning.history), f"{', '.join(others)} say the contrary, or what was shown"
        )
    if found.meaning.targets:
        share = sum(habits.types.get(kind, 0) for kind in found.meaning.targets) / max(sum(habits.types.values()), 1)
        rest = [kind for kind in habits.types if kind not in found.meaning.targets]
        draft.set(
            "data.targets",
            list(found.meaning.targets),
            f"what is to be predicted, {share:.1%} of the events; the others are history: {', '.join(rest)}",
        )
        draft.other("data.targets", [], "to predict all types alike")
    elif len(habits.types) > 1 and found.event_text is None:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in list(habits.types.items())[:6])
        draft.other(
            "data.targets", [next(iter(habits.types))], f"all types count alike ({kinds}); this would predict one"
        )
    if found.min_value is not None:
        draft.set("data.min_value", found.min_value, found.min_value_why)
    elif found.is_rating and habits.num_values > 2:
        high = habits.low + 0.7 * (habits.high - habits.low)
        rounded = float(math.ceil(high)) if habits.high - habits.low >= 3 else round(high, 2)
        why = (
            f"every value of {found.value_name or 'the ratings'} counts as interest; this would leave the low ones out"
        )
        draft.other("data.min_value", rounded, why)
    if found.has_items and found.unknown_items > 0:
        unknown = f"{found.unknown_items:.1%}" if found.unknown_items >= 0.001 else "a few"
        draft.set("data.unknown_items", "keep", f"{unknown} of the events are of items that the table of items lacks")
    limits = {table: share for table, share in found.bad.items() if share > _CLOSE_TO_IT}
    for table, bad in limits.items():
        limit = min(1.0, round(bad * 1.25 + 0.01, 2))
        draft.put(
            ["data", "quarantine", "max_share", table],
            limit,
            f"{bad:.1%} of the rows cannot be used: {found.bad_why.get(table, '')}",
        )
    if found.context:
        names = [column.name for column in found.context]
        draft.other("data.context", names, "known at the moment of asking? then models may read them")


def _split(draft: Draft, found: Understood) -> None:
    """Test a model as it will be used."""
    habits, given = found.habits, found.split
    draft.section("data.split")
    if given is not None:
        settings, why = given
        for key, value in settings.items():
            draft.set(f"data.split.{key}", value, why if key == "kind" else "as many as in test")
        if "valid" not in habits.parts and "valid" not in settings and habits.parts.get("test"):
            share = habits.parts["test"] / max(sum(habits.parts.values()), 1)
            draft.set(
                "data.split.valid", round(min(max(share, 0.05), 0.3), 2), "of the training events, as many as in test"
            )
        return
    day = ", by the day" if found.day_only else ""
    if habits.temporal is not None:
        fit = habits.temporal
        why = (
            f"real times{day}: trained on the past, tested from {fit.test_from:%Y-%m-%d} on, with "
            f"{fit.num_test_users:,} users known by then"
        )
        draft.set("data.split.kind", "temporal", why)
        draft.set("data.split.test", fit.share, "the latest events")
        draft.set("data.split.valid", fit.share, "the events before them")
        span = _span(habits)
        draft.other(
            "data.split.kind",
            "leave-last",
            f"each user's last event; over {span} it knows the popularity of later than it is asked",
        )
        return
    if found.order in ("time", "auto") and habits.timed > 0.5:
        draft.set("data.split.kind", "leave-last", f"each user's last event is test, {_why_not_temporal(habits)}")
        if habits.has_times:
            draft.other("data.split.kind", "temporal", "one cut in time, as in use")
        return
    if found.order == "file":
        draft.set("data.split.kind", "leave-last", "each user's last event is test, the one before it validation")
        return
    draft.set("data.split.kind", "ratio", "no order is known: a random share of each user's events is test")
    draft.set("data.split.valid", 0.1, "of each user's events")
    draft.set("data.split.test", 0.2, "of each user's events")
    draft.other("data.split.kind", "leave-last", "with order: file, if the rows of a user are in order")


def _echoes(draft: Draft, found: Understood) -> None:
    """What to do where the last events follow events of the same user on the same item, so that copying finds them."""
    habits = found.habits
    if found.split is not None or habits.temporal is not None or found.order == "none" or not habits.echoes_are_common:
        return
    said = f"{habits.echoes:.1%} of the last events come directly behind one of the same user on the same item"
    kept = [kind for kind in found.meaning.history or habits.types if kind not in habits.echo_types]
    if habits.echo_types and kept and not found.meaning.targets:
        kinds = ", ".join(habits.echo_types)
        why = f"{said}, and naming that item again finds them; this leaves out {kinds}, which mostly come so"
        draft.other("data.interactions", kept, why)
    elif found.meaning.targets and habits.has_times:
        why = f"{said}: this asks before the first event of the visit"
        draft.other("data.split.kind", "temporal", why)


def _why_not_temporal(habits: Habits) -> str:
    best = habits.best_temporal
    return f"as one cut in time leaves {'nothing between its parts' if best is None else best.why_not}"


def _span(habits: Habits) -> str:
    if habits.first is None or habits.last is None:
        return "a long period"
    days = (habits.last - habits.first).days
    return f"{days / 365:.1f} years" if days > 730 else f"{days / 30:.0f} months" if days > 60 else f"{days} days"


# -------------------------------------------------------------------------------------------------------- text, facts


def _text(draft: Draft, found: Understood) -> None:
    items = found.items
    draft.section("data.text")
    if found.event_text is not None:
        column, kind = found.event_text
        draft.set("data.text.fields", [], "names say little of taste; what people say of them does")
        draft.set("data.text.event_column", column, "words that users give to items")
        draft.set("data.text.event_types", [kind], "these events are text about items, and nothing to predict")
        return
    if items is None or not items.text:
        draft.set("data.text.enabled", False, "no column of items is a text")
        return
    told = ", ".join(f"{name}: {items.kinds.get(name, 'text')}" for name in items.text)
    draft.set("data.text.fields", items.text, told)
    if items.html:
        draft.set("data.text.html", items.html, "tags are taken out")


def _facts(draft: Draft, found: Understood) -> None:
    items = found.items
    if items is None:
        return
    if items.facts:
        draft.put(["data", "knowledge", "item_columns"], items.facts, "what items have in common, as facts")
        for name, mark in items.separators.items():
            draft.put(["data", "knowledge", "separators", name], mark, "between several values")
    if items.vectors:
        for name in items.vectors:
            draft.put(
                ["data", "media", "columns", _plain(name)], name, "lists of numbers of one length: vectors of the items"
            )
    for name in items.images:
        draft.comment(
            ["data", "media", "images"],
            {"column": name, "model": "FOLDER_OR_HUB_ID"},
            "paths of images: with a vision model they become vectors",
        )


def _plain(name: str) -> str:
    return "".join(character if character.isalnum() and character.isascii() else "_" for character in name) or "vectors"


def _evaluation(draft: Draft, found: Understood) -> None:
    habits = found.habits
    last = found.split is None and habits.temporal is None and found.order != "none"
    draft.section("train")
    metric, why = (
        ("ndcg@10", "one item a user is to be found") if last else ("ndcg@20", "several items a user are to be found")
    )
    draft.set("train.metric", metric, why)
    draft.section("evaluate")
    draft.set("evaluate.ks", [10, 20], "how long the lists are")
    share = f"{habits.repeats:.1%} of the events to predict are of an item that the user had before"
    if habits.repeats_are_common:
        draft.set("evaluate.exclude_seen", False, f"{share}: repeats are wanted")
        if last and habits.echoes_are_common:
            why = "leaves out of lists and figures what the user had before, so also the item of the event before"
            draft.other("evaluate.exclude_seen", True, why)
    else:
        why = f"{share}: new items are wanted" if habits.repeats >= 0.0005 else "nobody has an item again"
        draft.set("evaluate.exclude_seen", True, why)
