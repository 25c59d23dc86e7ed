"""The proposed configuration with the reason of every setting, without a section ``model``, which
the run chooses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from recsys.config import TextConfig
from recsys.config.text_files import TABLES
from recsys.inspect.column_uses import Attributes
from recsys.inspect.draft import Draft
from recsys.inspect.event_statistics import EventStatistics
from recsys.inspect.row_order import SEEM_ORDERED
from recsys.inspect.type_choice import type_to_try
from recsys.inspect.understood import Understood, percent

_TOKENS_A_WORD: Final = 1.5
_TOKENS_A_MINUTE: Final = 360_000  # on two cores, by benchmarks.text_encoding
_MANY_TOKENS: Final = 2_000_000  # in all texts; with more, only the start of a text is read …
# … but at least this many tokens; if these are too many, the model does not read the texts
_LEAST_TOKENS: Final = 16
_CLOSE_TO_IT: Final = 0.006  # to the default limit of prepare, 0.01


def draft_of(found: Understood, name: str, command: str) -> Draft:
    """Return the configuration.

    Parameters
    ----------
    found : Understood
        Result of looking at the files.
    name : str
        Name of the run and the registered model.
    command : str
        Command that writes the file, for the head.
    """
    draft = Draft()
    names = ", ".join(found.sampled[:3]) + ", …" * (len(found.sampled) > 3)
    seen = "all rows of your files" + f", but only a sample of {names}" * bool(found.sampled)
    draft.title = [
        f"Written by `{command}` from {seen}; comments give the reasons.",
        (
            "Next: recsys run --config THIS_FILE --budget 20m. Start it in the same folder: paths"
            " are relative to it."
        ),
        "There is no section model: the run chooses a model for this data.",
    ]
    draft.section("run")
    draft.set("run.dir", f"runs/{name}", "folder for all results of the run")
    draft.set("run.name", name, "name in MLflow")
    draft.section("data")
    draft.section("data.source")
    for setting in found.source:
        _set_deep(draft, "data.source", setting.key, setting.value, setting.why)
    if found.unordered is not None:
        column, words = found.unordered
        draft.other(
            "data.source.values",
            {word: number for number, word in enumerate(words, 1)},
            f"if {column} is a rating: give each word its number, the best the highest, and add"
            f" {column}: value to the rename of the events; the order of the words is unknown",
        )
    if found.other_time_format:
        draft.other(
            "data.source.time_format",
            found.other_time_format,
            "also fits all times: use it if the month comes first or last, not as above",
        )
    _rules(draft, found)
    _split(draft, found)
    _echoes(draft, found)
    _text(draft, found)
    _triples(draft, found)
    _evaluation(draft, found)
    draft.section("registry")
    draft.set("registry.name", f"multigrain-{name}", "name of the registered model")
    return draft


def _set_deep(draft: Draft, path: str, key: str, value: Any, why: str) -> None:
    """Set a key of ``data.source``; renames are nested sections, because column names may contain
    dots.
    """
    if "." in key:
        section, _, rest = key.partition(".")
        table, _, name = rest.partition(".")
        keys = [section, table, name] if name and table in TABLES else [section, rest]
        draft.put([*path.split("."), *keys], value, why)
        return
    if isinstance(value, dict) and len(value) > 1 and key != "values":
        for name, inner in value.items():
            draft.put([*path.split("."), key, name], inner, why)
        return
    draft.put([*path.split("."), key], value, why)


# -------------------------------------------------------------------------------------------- rules


def _rules(draft: Draft, found: Understood) -> None:
    """Set which events count, and how many rows may be invalid."""
    statistics = found.statistics
    if found.has_email_ids:
        draft.other(
            "data.pseudonymise.key_env",
            "RECSYS_PSEUDONYM_KEY",
            "replaces user ids, which look like e-mail addresses, by keyed hashes; the environment"
            " variable of this name has the key",
        )
    draft.set("data.order", found.order, found.order_why)
    if found.order == "none" and found.event_text is None:
        draft.other("data.order", "file", "if the rows of each user are in order of time")
    if found.order_why == SEEM_ORDERED:
        draft.other("data.order", "none", "if they are not, together with split.kind: ratio")
    if found.meaning.history:
        others = [kind for kind in statistics.all_types if kind not in found.meaning.history]
        draft.set(
            "data.interactions",
            list(found.meaning.history),
            f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} left out:"
            f" {found.meaning.why or 'negative, or only shown to the user'}",
        )
    if found.meaning.targets:
        share = sum(statistics.types.get(kind, 0) for kind in found.meaning.targets) / max(
            sum(statistics.types.values()), 1
        )
        rest = [kind for kind in statistics.types if kind not in found.meaning.targets]
        draft.set(
            "data.targets",
            list(found.meaning.targets),
            f"the events to predict ({share:.1%}); the other types are input only:"
            f" {', '.join(rest)}",
        )
        draft.other("data.targets", [], "predicts all types")
    elif len(statistics.types) > 1 and found.event_text is None:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in list(statistics.types.items())[:6])
        proposed, why = type_to_try(statistics.types)
        if found.meaning.rare:
            why = (
                "too few users have three events of this type, which leave-last needs to test them"
            )
        draft.other(
            "data.targets",
            list(found.meaning.rare) or [proposed],
            f"now all types are predicted ({kinds}); {why}",
        )
    _values(draft, found)
    if found.has_items and found.unknown_items != 0:
        unknown = found.unknown_items
        draft.set(
            "data.unknown_items",
            "keep",
            "the table of items was not read whole, so some events may have an item that is not in"
            " it"
            if unknown is None
            else f"{percent(unknown)} of the events have an item that is not in the table of items",
        )
    limits = {table: share for table, share in found.bad.items() if share > _CLOSE_TO_IT}
    for table, bad in limits.items():
        # some room, because the share was measured on a sample
        limit = min(1.0, round(bad * 1.25 + 0.01, 2))
        draft.put(
            ["data", "quarantine", "max_share", table],
            limit,
            f"{percent(bad)} of the rows are invalid: {found.bad_why.get(table, '')}",
        )
    if found.context:
        names = [column.name for column in found.context]
        draft.other(
            "data.context",
            names,
            "set it if these are known when lists are requested; models then use them",
        )


def _values(draft: Draft, found: Understood) -> None:
    """Set the least value of an event that counts, or propose one for ratings."""
    statistics = found.statistics
    if found.min_value is not None:
        draft.set("data.min_value", found.min_value, found.min_value_why)
    elif found.is_rating and statistics.num_values > 1:
        # 0.7 of a scale from 1 to 5 is 3.8, so 4 and 5 count as interest; few people give a 1
        low = min(statistics.low, 1.0)
        high = low + 0.7 * (statistics.high - low)
        rounded = float(math.ceil(high)) if statistics.high - low >= 3 else round(high, 2)
        if statistics.num_values == 2:  # such as yes and no
            rounded = statistics.high
        why = (
            f"now every value of {found.value_name or 'the rating'} counts as interest; this drops"
            " low values"
        )
        draft.other("data.min_value", rounded, why)


def _split(draft: Draft, found: Understood) -> None:
    """Choose a split that tests the model like in production."""
    statistics = found.statistics
    draft.section("data.split")
    if found.split is not None:
        _given_split(draft, statistics, *found.split)
        return
    day = " (days)" if found.day_only else ""
    if statistics.temporal is not None:
        fit = statistics.temporal
        start = f"from {fit.test_from:%Y-%m-%d} on" if found.has_dates else "on the latest events"
        why = (
            f"events have times{day}: train on the past, test {start}, with"
            f" {fit.num_test_users:,} users known by then"
        )
        draft.set("data.split.kind", "temporal", why)
        draft.set("data.split.test", fit.share, "share of events, the latest")
        draft.set("data.split.valid", fit.share, "share of events, those before the test")
        # numbers that order the events have no unit, so their dates tell no period
        period = _period(statistics) if found.has_dates else "a long period"
        draft.other(
            "data.split.kind",
            "leave-last",
            f"tests the last event of each user; these events spread over {period}, so the model"
            " would know what became popular later",
        )
        return
    if _tests_baskets(found):
        draft.set(
            "data.split.kind",
            "leave-last-basket",
            f"tests each user's last basket, {_why_not_temporal(found)}; {statistics.same_time:.0%}"
            " of the events are at the time of the one before",
        )
        draft.other(
            "data.split.kind",
            "leave-last",
            "tests the last event alone, and the others of its basket are known",
        )
        return
    if found.order in ("time", "auto") and statistics.timed > 0.5:
        draft.set(
            "data.split.kind",
            "leave-last",
            f"tests each user's last event, {_why_not_temporal(found)}",
        )
        if statistics.has_times and found.has_clock:
            why = "one cut in time, like in production, but with few events to test"
            if found.meaning.targets and statistics.echoes_are_common:
                why += f"; {_echo_words(statistics)}: this tests before the first event of a visit"
            draft.other("data.split.kind", "temporal", why)
        return
    if found.order == "file":
        draft.set(
            "data.split.kind",
            "leave-last",
            "tests each user's last event; the one before it is validation",
        )
        return
    draft.set(
        "data.split.kind",
        "ratio",
        "the order is unknown: tests a random share of each user's events",
    )
    draft.set("data.split.valid", 0.1, "share of each user's events")
    draft.set("data.split.test", 0.2, "share of each user's events")
    draft.other("data.split.kind", "leave-last", "together with order: file")


def _tests_baskets(found: Understood) -> bool:
    """Whether the events of one time are baskets, which are tested together."""
    is_last = found.split is None and found.statistics.temporal is None
    return is_last and found.order == "time" and found.statistics.are_baskets


def _given_split(
    draft: Draft, statistics: EventStatistics, settings: Mapping[str, Any], why: str
) -> None:
    """Use the split of the files."""
    for key, value in settings.items():
        draft.set(
            f"data.split.{key}", value, why if key == "kind" else "the size of the test split"
        )
    if (
        "valid" not in statistics.splits
        and "valid" not in settings
        and statistics.splits.get("test")
    ):
        share = statistics.splits["test"] / max(sum(statistics.splits.values()), 1)
        draft.set(
            "data.split.valid",
            round(min(max(share, 0.05), 0.3), 2),
            "share of the training events, the size of the test split",
        )


def _echoes(draft: Draft, found: Understood) -> None:
    """Add alternatives if many last events repeat the item of the user's previous event, so that
    copying solves the test.
    """
    statistics = found.statistics
    if (
        found.split is not None
        or statistics.temporal is not None
        or found.order == "none"
        or not statistics.echoes_are_common
    ):
        return
    others = [
        kind
        for kind in found.meaning.history or statistics.types
        if kind not in statistics.echo_types
    ]
    if statistics.echo_types and others and not found.meaning.targets:
        kinds = ", ".join(statistics.echo_types)
        why = (
            f"{_echo_words(statistics)}, so repeating that item solves the test; this leaves out"
            f" {kinds}, most of which do so"
        )
        draft.other("data.interactions", others, why)


def _echo_words(statistics: EventStatistics) -> str:
    return (
        f"{statistics.echoes:.1%} of the last events directly follow one of the same user on the"
        " same item"
    )


def _why_not_temporal(found: Understood) -> str:
    if not found.has_clock:
        return "because the numbers count the events of each user and are no times"
    best, timed = found.statistics.best_temporal, found.statistics.timed
    if best is None and timed < 1:
        return f"because {percent(1 - timed)} of the events have no time, which a cut needs"
    return (
        "because one cut in time leaves"
        f" {'nothing between its parts' if best is None else best.why_not}"
    )


def _period(statistics: EventStatistics) -> str:
    if statistics.first is None or statistics.last is None:
        return "a long period"
    days = (statistics.last - statistics.first).days
    return (
        f"{days / 365:.1f} years"
        if days > 730
        else f"{days / 30:.0f} months"
        if days > 60
        else f"{days} days"
    )


# ----------------------------------------------------------------------------------- text, triples


def _text(draft: Draft, found: Understood) -> None:
    items = found.items
    draft.section("data.text")
    if found.event_text is not None:
        column, kind = found.event_text
        draft.set("data.text.fields", [], "none: tags of users are more predictive than names")
        draft.set("data.text.event_column", column, "words that users assign to items")
        draft.set(
            "data.text.event_types",
            [kind],
            "these events are text about items, not events to predict",
        )
        return
    if items is None or not items.text:
        draft.set("data.text.enabled", False, "no item column has text")
        return
    kinds = ", ".join(f"{name}: {items.kinds.get(name, 'text')}" for name in items.text)
    draft.set("data.text.fields", items.text, f"item texts ({kinds})")
    _tokens(draft, items)
    if items.html:
        draft.set("data.text.html", items.html, "tags are removed")


def _tokens(draft: Draft, items: Attributes) -> None:
    """Limit the tokens of a text where encoding whole texts would take long without a GPU."""
    tokens = min(items.words * _TOKENS_A_WORD, TextConfig().max_tokens)
    most = max(_MANY_TOKENS // max(items.owners, 1), _LEAST_TOKENS)
    if min(tokens, _LEAST_TOKENS) * items.owners > _MANY_TOKENS:
        whole = items.owners * tokens / _TOKENS_A_MINUTE
        draft.set(
            "data.text.encoder",
            "static",
            f"means of token vectors; the language model would read {items.owners:,} texts for"
            f" about {whole:,.0f} minutes on two cores without a GPU",
        )
        draft.other("data.text.encoder", "transformer", "the language model reads each text")
        return
    if tokens <= most:
        return
    whole, limited = (items.owners * number / _TOKENS_A_MINUTE for number in (tokens, most))
    draft.set(
        "data.text.max_tokens",
        most,
        f"the start of a text; whole texts of {items.owners:,} items would take about"
        f" {whole:,.0f} minutes on two cores without a GPU, these {limited:,.0f}",
    )


def _triples(draft: Draft, found: Understood) -> None:
    items = found.items
    if items is None:
        return
    if items.triples:
        draft.put(
            ["data", "knowledge", "item_columns"],
            items.triples,
            "values that items share, used as triples",
        )
        for name, mark in items.separators.items():
            draft.put(["data", "knowledge", "separators", name], mark, "separates several values")
    if items.vectors:
        for name in items.vectors:
            draft.put(
                ["data", "media", "columns", _plain(name)],
                name,
                "lists of numbers of equal length: item vectors",
            )
    for name in items.images:
        draft.comment(
            ["data", "media", "images"],
            {"column": name, "model": "FOLDER_OR_HUB_ID"},
            "paths of images; a vision model makes vectors from them",
        )


def _plain(name: str) -> str:
    return (
        "".join(
            character if character.isalnum() and character.isascii() else "_" for character in name
        )
        or "vectors"
    )


def _evaluation(draft: Draft, found: Understood) -> None:
    statistics = found.statistics
    last = found.split is None and statistics.temporal is None and found.order != "none"
    last = last and not _tests_baskets(found)
    draft.section("train")
    metric, why = (
        ("ndcg@10", "each user has one item to find")
        if last
        else ("ndcg@20", "users have several items to find")
    )
    draft.set("train.metric", metric, why)
    draft.section("evaluate")
    draft.set("evaluate.ks", [10, 20], "list lengths of the metrics")
    share = (
        f"{percent(statistics.repeats)} of the events to predict repeat an item of the user's"
        " history"
    )
    if statistics.repeats_are_common:
        draft.set("evaluate.exclude_seen", False, f"{share}, so lists include such items")
        if last and statistics.echoes_are_common:
            why = (
                "removes items of the history from lists and metrics, also that of the previous"
                " event"
            )
            draft.other("evaluate.exclude_seen", True, why)
    else:
        why = (
            f"{share}, so lists show new items only"
            if statistics.repeats >= 0.0005
            else "no user has an item twice"
        )
        draft.set("evaluate.exclude_seen", True, why)
