"""What every field of requests and answers means, in the words of the description of the server."""

from __future__ import annotations

from typing import Final

_RULES: Final = {
    "k": "Items per list.",
    "offset": "Rank of the first item, from 0: the page begins there.",
    "candidates": "Only these items may be listed.",
    "exclude": "None of these items may be listed.",
    "filters": "Conditions on attributes of items; all must hold.",
    "boost": "Factors that raise or lower items: one object, or a list of them.",
    "diversify": "How much the items of the list must differ.",
}
_LIST: Final = {
    "item_ids": "The items, best first; fewer than `k` only if no more items are allowed.",
    "titles": "Their titles, in the same order.",
    "scores": "Their scores, in the same order.",
    "boosts": "The factor of every item, 1 without a boost; only if the request boosts.",
    "unknown_in_rules": "Ids in rules that the model does not know; they are skipped.",
}
# class → field → description; the field "" is the class itself
DESCRIPTIONS: Final[dict[str, dict[str, str]]] = {
    "Request": {
        "": "A request for recommendations. It needs at least one of `user_id`, `history`,"
        " `friends` and `attributes`; every other field is optional. An unknown field is refused.",
        "user_id": "A known or a new user. Ids are text: put numbers in quotes.",
        "history": "Events, oldest first: item ids or objects. For a known user they are newer than"
        " the stored events.",
        "friends": "Ids of users. Those that the model knows replace the stored friends.",
        "attributes": "Attributes of the user; they replace the stored ones.",
        "context": "The situation of the request: context column → value.",
        "exclude_seen": "Whether to leave out items that the user had already; null: as the model"
        " was evaluated.",
        "horizon": "1 predicts the next item, 2 the item after it, and so on.",
        "at": "The time for which the answer is computed; null: now.",
        "per_user_limit": "Largest number of items over all pages: with `k` 10 and a limit of 25,"
        " the pages at `offset` 0 and 10 have ten items, that at 20 has five, later ones none;"
        " null: no limit.",
        "explain": "Whether to explain every item; costs one query per past item and friend.",
        **_RULES,
    },
    "SimilarRequest": {
        "": "A request for items that are similar to an item. An unknown field is refused.",
        "item_id": "The item; the model must know it.",
        "by": "`vectors`: item vectors of the model; `use`: users who had both items; `text`: texts"
        " of the items; `auto`: vectors, or texts for an item without events.",
        **_RULES,
    },
    "HistoryEvent": {
        "": "One event of a history.",
        "item_id": "The item; an item that the model does not know is skipped.",
        "event_type": "A type that the model knows; null: its most frequent type.",
        "timestamp": "When it happened; null: unknown.",
        "context": "The situation of the event: context column → value.",
    },
    "Boost": {
        "": "A factor for named `items`, or for items that match `filters`.",
        "factor": "Above 1 raises, below 1 lowers; the factors of an item multiply.",
        "items": "The items.",
        "filters": "Conditions on attributes of items; all must hold.",
    },
    "Diversify": {
        "": "The diversity of a list: `strength`, or `attribute` with `most`, or all three.",
        "strength": "0 changes nothing; 1 looks only at differences between the items.",
        "pool": "Number of best items that `strength` reorders.",
        "attribute": "An attribute with categories.",
        "most": "Largest number of items with one value of `attribute` on a page of `k`; `offset`"
        " must then be a multiple of `k`.",
    },
    "StockChange": {
        "": "Either the whole list (`out`), or changes to it (`add`, `remove`).",
        "out": "All items that are out of stock.",
        "add": "Items that are out of stock from now on.",
        "remove": "Items that are back in stock.",
    },
    "Answer": {
        "": "Recommendations for one request.",
        "user_id": "The user of the request.",
        **_LIST,
        "shares": "Granularity → its contribution to the score of every item, `boost` among them;"
        " the shares of an item sum to its score.",
        "source": "`popularity` if nothing is known about the user.",
        "unknown_items": "Items of the history that the model does not know; they are skipped.",
        "unknown_friends": "Friends that the model does not know; they are skipped.",
        "explanations": "Why each item is listed; only with `explain`.",
        "propensities": "The probability of every item at its position; only for a list in random"
        " order (serve.explore).",
        "version": "The version that answered; only with two versions (serve.ab).",
        "side": "Its side, `a` or `b`, or `ab` for a list merged from both; only with two versions"
        " (serve.ab).",
        "teams": "The side that picked each item; only for a list merged from both"
        " (serve.ab.interleave).",
        "answer_id": "The id of the answer in the log; only with serve.log.",
    },
    "SimilarAnswer": {
        "": "Items that are similar to an item.",
        "item_id": "The item of the request.",
        "by": "What was compared.",
        "why": "Why that was compared.",
        **_LIST,
    },
}
