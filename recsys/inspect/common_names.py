"""Common names of columns, files and event types; all lists are in lower case.

Why a second list besides :data:`recsys.sources.names.WORDS`: that one serves suggestions, this one
decides, so the position of a word matters: ``customer_id`` identifies a customer, ``customer_city``
describes one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final

USER: Final = (
    "user", "member", "customer", "person", "people", "visitor", "reviewer", "client", "uid",
    "kd", "kdnr", "debitor",
    "account", "buyer", "shopper", "player", "viewer", "reader", "listener", "subscriber", "guest",
    "consumer", "household", "patient", "student", "learner", "rater", "cust", "usr", "kunde",
    "kunden", "usuario", "utilisateur", "email", "traveller", "passenger", "borrower", "steamid",
    "login", "username", "nick", "cookie", "device", "author", "candidate", "applicant", "handle",
    "neighbour", "neighbor", "who", "employee", "participant", "donor", "borrower", "msisdn",
    # other languages
    "kundin", "nutzer", "benutzer", "mitglied", "cliente", "clientes", "comprador", "acheteur",
    "klant", "gebruiker", "utente", "klient", "użytkownik", "kullanıcı", "müşteri", "пользователь",
    "клиент", "покупатель", "مستخدم", "عميل", "用户", "客户", "会员", "买家", "用戶", "客戶",
    "會員", "ユーザー", "顧客", "会員", "사용자", "고객", "회원",
)  # fmt: skip
_ITEM: Final = (
    "item", "product", "article", "content", "movie", "film", "book", "isbn", "sku", "stock",
    "artist", "track", "song", "asin", "place", "business", "iid", "poi", "venue", "location",
    "restaurant", "hotel", "course", "game", "app", "recipe", "job", "ad", "news", "video", "show",
    "anime", "story", "doc", "document", "artikel", "produkt", "merchandise", "listing", "beer",
    "post", "repo", "attraction", "stockcode", "gtin", "ean", "upc", "podcast", "episode", "tconst",
    "parent_asin", "material", "good", "goods", "offer", "plu", "vacancy", "wine",
    "artnr", "artno", "pin",
)  # fmt: skip
ITEM_FILES: Final = (*(word for word in _ITEM if len(word) > 2), "meta", "catalog", "katalog")
ITEM: Final = (
    *_ITEM, "thread", "lesson", "link", "url", "page", "package", "tool", "service", "question",
    "exercise", "subreddit",
    # other languages
    "buch", "producto", "produto", "artículo", "articulo", "produit", "livre", "libro",
    "prodotto", "articolo", "produkty", "towar", "ürün", "товар", "артикул", "منتج", "商品", "产品",
    "物品", "课程", "电影", "文章", "產品", "作品", "상품", "제품",
)  # fmt: skip
SESSION: Final = (
    "session",
    "visit",
    "basket",
    "order",
    "invoice",
    "cart",
    "transaction",
    "receipt",
    "bon",
    "beleg",
    "bestellung",
    "rechnung",
    "pedido",
    "commande",
    "заказ",
    "订单",
    "訂單",
    "注文",
    "주문",
)
TIME: Final = (
    "time", "timestamp", "date", "datetime", "ts", "at", "epoch", "day", "created", "updated",
    "when", "unixtime", "datum", "zeit", "fecha", "reviewtime", "unixreviewtime", "utc", "on",
    "hora", "heure", "tarih", "дата", "время", "تاريخ", "时间", "日期", "時間", "日時", "날짜",
    "시간",
)  # fmt: skip
VALUE: Final = (
    "rating", "stars", "star", "score", "overall", "value", "quantity", "qty", "count", "plays",
    "playcount", "weight", "rate", "grade", "note", "hours", "playtime", "listens", "frequency",
    "menge", "anzahl", "times", "watch_ratio", "feedback", "preference", "units", "stars_given",
    "nb", "num_plays", "dwell", "watch_time", "play_time", "cantidad", "quantité", "количество",
    "оценка", "评分", "数量", "評価", "평점", "수량",
)  # fmt: skip
RATING: Final = (
    "rating", "ratings", "stars", "star", "score", "overall", "rate", "grade", "preference",
    "feedback", "rated", "satisfaction", "opinion", "sentiment", "vote", "reaction", "liked",
    "thumb", "thumbs", "verdict", "review_rating", "recommend", "recommended", "evaluation",
    # other languages
    "bewertung", "sterne", "note", "avis", "évaluation", "puntuación", "puntuacion", "calificación",
    "calificacion", "valoración", "valoracion", "avaliação", "avaliacao", "nota", "valutazione",
    "voto", "waardering", "beoordeling", "ocena", "hodnocení", "hodnoceni", "betyg", "vurdering",
    "értékelés", "puan", "оценка", "рейтинг", "отзыв", "评分", "評価", "평점", "تقييم",
)  # fmt: skip
"""Names of columns whose texts may be ratings."""
EVENT_TYPE: Final = (
    "event", "eventtype", "type", "action", "behavior", "behaviour", "activity", "verb",
    "interaction", "kind", "event_name", "operation", "swipe", "decision", "行为", "行为类型",
    "操作", "行動",
)  # fmt: skip
SPLIT: Final = ("split", "fold", "subset", "part", "partition", "set", "phase")
FRIEND: Final = (
    "friend", "follower", "followee", "follows", "followed", "following", "trust", "trusts",
    "truster", "trustee", "trustor", "trusted", "src", "dst", "source", "target", "from", "to",
    "friends", "fan", "contact", "buddy", "other", "neighbour", "neighbor", "peer", "colleague",
    "mate", "knows", "likes_user",
)  # fmt: skip
LATITUDE: Final = ("lat", "latitude", "breitengrad", "y_coord", "geo_lat")
LONGITUDE: Final = (
    "lon",
    "lng",
    "long",
    "longitude",
    "laengengrad",
    "x_coord",
    "geo_lon",
    "geo_lng",
)
RELATION: Final = ("relation", "predicate", "property", "rel", "edge", "relationship")
HEAD: Final = ("head", "subject", "h")
TAIL: Final = ("tail", "object", "t")
TEXT: Final = (
    "title",
    "name",
    "description",
    "text",
    "summary",
    "abstract",
    "body",
    "headline",
    "plot",
    "desc",
)

ADDRESS: Final = (
    "address",
    "street",
    "phone",
    "telephone",
    "fax",
    "mobile",
    "email",
    "mail",
    "iban",
)

CODED: Final = (
    "category", "cat", "class", "subclass", "subcategory", "department", "group", "segment",
    "kategorie", "warengruppe", "genre", "type", "tag", "brand", "manufacturer", "vendor",
    "supplier", "seller", "publisher",
)  # fmt: skip
"""Last words in the names of columns whose numbers are codes."""
CLICKED: Final = ("click", "clicked", "isclick", "clk")
"""Words in the name of a flag that tells a click from what was only shown."""
ANSWERS: Final = ("label", "target", "recommend", "recommended", "interested", "outcome")
"""Words in the name of a flag that tells interest from none."""
EVENT_FILES: Final = (
    "event", "interaction", "rating", "review", "order", "transaction", "purchase", "click", "log",
    "view", "checkin", "check_in", "check-in", "listen", "history", "play", "sales", "retail",
    "invoice", "behavior", "behaviour", "watch", "loan", "visit", "u.data", "inter", "feedback",
    "activity",
)  # fmt: skip
SOCIAL_FILES: Final = (
    "friend",
    "follow",
    "trust",
    "social",
    "network",
    "contact",
    "buddy",
    "edges",
)
USER_FILES: Final = (
    "user",
    "customer",
    "member",
    "people",
    "client",
    "person",
    "reader",
    "account",
)

STRONG: Final = (
    "purchase", "buy", "bought", "order", "transaction", "checkout", "paid", "payment",
    "conversion", "subscribe", "booking", "book", "rent", "install", "sale", "sold", "convert",
    "apply", "application", "applied", "enroll", "enrol", "enrolment", "enrollment", "donate",
    "donation", "kauf", "compra", "achat", "购买", "下单", "支付", "購入", "구매", "покупка",
)  # fmt: skip
"""Event types to predict if weaker types are present too."""
NO_GOAL: Final = ("coupon", "voucher", "promo", "discount", "filter", "sort", "status")
"""Words that make a type with a word of ``STRONG`` no goal: ``apply_coupon``, ``sort order``."""
WEAK: Final = (
    "view", "pv", "click", "cart", "addtocart", "add_to_cart", "basket", "detail", "impression",
    "wishlist", "fav", "favorite", "favourite", "browse", "search", "visit", "page_view",
    "pageview", "product_view", "collect", "ansicht", "浏览", "点击", "收藏", "加购", "閲覧",
    "조회", "просмотр",
)  # fmt: skip
_SHOWN: Final = ("impression", "shown", "exposure", "display", "served", "inview")
SHOWN: Final = (*_SHOWN, "show", "in_view")
"""Event types for what a user was shown, not what they did."""
SHOWN_LISTS: Final = (
    *_SHOWN, "exposed", "displayed", "presented", "candidate", "slate", "recommended",
    "recommendation",
)  # fmt: skip
"""Words in the name of a list of what a user was shown; a show may be one of a theatre."""
NEGATIVE: Final = (
    "remove", "dislike", "skip", "unlike", "return", "refund", "cancel", "unfollow", "block",
    "hide", "delete", "downvote", "unsubscribe", "storno", "dismiss", "reject", "ignore",
    "decline", "mute", "discard", "nope", "unfavorite", "unfavourite", "unsave", "unbookmark",
    "unstar", "uninstall", "swipe_left", "swiped_left", "left_swipe", "swipeleft",
    "not_interested", "notinterested", "not_for_me", "show_less", "see_less", "less_like_this",
    "thumbs_down", "thumbsdown", "thumb_down", "opt_out", "hate", "spam",
    "removed", "disliked", "skipped", "unliked", "cancelled", "hidden", "deleted", "downvoted",
    "unsubscribed", "ignored", "declined", "muted", "canceled", "cancellation", "canceling",
    "cancelling", "refunded", "returned", "rejected", "denied", "fail", "failed", "failure",
    "error", "abandon", "abandoned", "aborted", "expired",
)  # fmt: skip

CANCELED: Final = (
    "canceled", "cancelled", "refunded", "returned", "deleted", "void", "voided", "fraud",
    "skipped", "hate", "fraudulent", "spam", "bot", "storno", "storniert", "annulé", "annulée",
    "cancelado", "cancelada", "anulado", "annullato", "geannuleerd", "anulowane", "отменен",
    "отменён", "已取消", "キャンセル", "취소",
)  # fmt: skip
"""Words in the name of a flag that marks an event as not real."""
CANCELED_STATES: Final = (
    *CANCELED, "cancel", "refund", "return", "declined", "failed", "rejected", "chargeback",
    "stornierung", "retourniert", "remboursé", "remboursée", "annulation", "devuelto",
    "reembolsado", "rechazado", "rimborsato", "возврат", "отмена", "отменено", "已退款", "退款",
    "取消", "返品", "환불", "반품",
)  # fmt: skip
"""States of an order that was not carried out or was undone."""
STATUS: Final = (
    "status", "state", "zustand", "estado", "statut", "stato", "статус", "состояние", "状态",
    "狀態", "ステータス", "状態", "상태",
)  # fmt: skip

CURRENCIES: Final = (
    "AED", "AFN", "ALL", "AMD", "ANG", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT",
    "BGN", "BHD", "BIF", "BMD", "BND", "BOB", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD",
    "CDF", "CHF", "CLP", "CNY", "COP", "CRC", "CUP", "CVE", "CZK", "DJF", "DKK", "DOP", "DZD",
    "EGP", "ERN", "ETB", "EUR", "FJD", "FKP", "GBP", "GEL", "GHS", "GIP", "GMD", "GNF", "GTQ",
    "GYD", "HKD", "HNL", "HRK", "HTG", "HUF", "IDR", "ILS", "INR", "IQD", "IRR", "ISK", "JMD",
    "JOD", "JPY", "KES", "KGS", "KHR", "KMF", "KPW", "KRW", "KWD", "KYD", "KZT", "LAK", "LBP",
    "LKR", "LRD", "LSL", "LYD", "MAD", "MDL", "MGA", "MKD", "MMK", "MNT", "MOP", "MRU", "MUR",
    "MVR", "MWK", "MXN", "MYR", "MZN", "NAD", "NGN", "NIO", "NOK", "NPR", "NZD", "OMR", "PAB",
    "PEN", "PGK", "PHP", "PKR", "PLN", "PYG", "QAR", "RON", "RSD", "RUB", "RWF", "SAR", "SBD",
    "SCR", "SDG", "SEK", "SGD", "SHP", "SLE", "SLL", "SOS", "SRD", "SSP", "STN", "SVC", "SYP",
    "SZL", "THB", "TJS", "TMT", "TND", "TOP", "TRY", "TTD", "TWD", "TZS", "UAH", "UGX", "USD",
    "UYU", "UZS", "VES", "VND", "VUV", "WST", "XAF", "XCD", "XOF", "XPF", "YER", "ZAR", "ZMW",
    "ZWL",
)  # fmt: skip
"""Codes of currencies (ISO 4217); other three letters before a number are the start of an id."""

_PARTS: Final = re.compile(r"[^\W_]+")
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
IDS: Final = (
    "id",
    "ids",
    "key",
    "code",
    "no",
    "nr",
    "number",
    "num",
    "index",
    "idx",
    "hash",
    "uuid",
    "sk",
    "pk",
    "nummer",
    "uri",
)
_COUNTS: Final = ("num", "nb", "n", "number", "count", "total")

_NUMBERED: Final = ("isbn", "issn", "gtin", "asin", "ean13", "upc")  # goods by number


_ENDINGS: Final = (
    *(
        "id",
        "code",
        "no",
        "key",
        "nummer",
        "nr",
        "编号",
        "编码",
        "代码",
        "号",
        "編號",
        "番号",
        "コード",
    ),
    *("번호", "코드"),
)
"""What ends the name of an id in one word, as in Kundennummer."""


def words_of(name: str) -> list[str]:
    """Return the words of a name.

    >>> words_of("unixReviewTime"), words_of("CustomerID"), words_of("user_id:token")
    (['unix', 'review', 'time'], ['customer', 'id'], ['user', 'id'])
    """
    name = name.partition(":")[0] if name.count(":") == 1 else name
    return [word.lower() for word in _PARTS.findall(_CAMEL.sub("_", name))]


def singular(word: str) -> str:
    """A word without the s of the plural."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def similarity(name: str, words: tuple[str, ...]) -> float:
    """Similarity of a column's name to the words, from 0 to 1: 1 for the word itself, alone or
    before ``id``.

    >>> [similarity(name, USER) for name in ("CustomerID", "customer_email", "customer_city")]
    [1.0, 0.8, 0.4]
    >>> similarity("num_users", USER)
    0.0
    """
    found = words_of(name)
    if not found:
        return 0.0
    joined, plain = "".join(found), [singular(word) for word in found]
    known = {singular(word.replace("_", "")) for word in words}
    if singular(joined) in known:
        return 1.0
    if found[0] in _COUNTS and plain[-1] != found[-1]:
        return 0.0  # how many there are
    core = [word for word in plain if word not in IDS]
    has_id = len(core) < len(plain)
    if core and "".join(core) in known:
        return 1.0
    for ending in _ENDINGS:
        if joined.endswith(ending) and singular(joined.removesuffix(ending)) in known:
            return 1.0
    if core and core[-1] in known:
        return 0.9 if has_id else 0.8
    if core and core[0] in known:
        return 1.0 if core[-1] == "email" and words is USER else 0.7 if has_id else 0.4
    return 0.3 if any(word in known for word in core) else 0.0


def shared_prefix(names: Sequence[str]) -> str:
    """What all names have up to a point: the table, as Hive writes it before its columns.

    >>> shared_prefix(["log.user_id", "log.type"]), shared_prefix(["user.id", "item.id"])
    ('log.', '')
    """
    start, point, _ = os.path.commonprefix(names).rpartition(".")
    return start + point if len(names) > 1 else ""


def named_like(stem: str, words: tuple[str, ...]) -> bool:
    """Whether a file's name contains one of the words.

    >>> named_like("u.data", EVENT_FILES), named_like("Yelp_social_relations.txt", SOCIAL_FILES)
    (True, True)
    """
    lowered = stem.lower()
    return any(word in lowered for word in words)


def has_id(name: str) -> bool:
    """Whether a name denotes an id."""
    found = words_of(name)
    return bool(found) and (
        found[-1] in IDS or "".join(found).endswith("id") or found[-1].startswith(_NUMBERED)
    )


def is_code(name: str) -> bool:
    """Whether a name says that its numbers are ids, or codes such as a product class or a seller.

    >>> [is_code(name) for name in ("customer_id", "PRODUCT_CLASS", "customer", "customers")]
    [True, True, True, False]
    """
    return has_id(name) or any(word in (*CODED, *USER) for word in words_of(name)[-1:])


def lists_codes(name: str) -> bool:
    """Whether a name says that lists of numbers are lists of codes, such as tags or labels.

    >>> [lists_codes(name) for name in ("genre_ids", "labels", "Tags", "scores")]
    [True, True, True, False]
    """
    return is_code(name) or any(
        singular(word) in (*CODED, "label", "topic") for word in words_of(name)
    )


def is_known_name(cell: str) -> bool:
    """Whether a cell is a common column name."""
    groups = (
        USER,
        ITEM,
        TIME,
        VALUE,
        EVENT_TYPE,
        SPLIT,
        FRIEND,
        LATITUDE,
        LONGITUDE,
        RELATION,
        TEXT,
    )
    return (
        bool(cell) and len(cell) <= 40 and any(similarity(cell, words) >= 0.7 for words in groups)
    )
