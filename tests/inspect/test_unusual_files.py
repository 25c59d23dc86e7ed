"""`recsys init`: files of shops, boards and apps that follow no known export; one property each."""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys import schema
from recsys.config import CanonicalSource
from recsys.errors import SourceError
from recsys.inspect.columns import OBJECTS, column_of
from recsys.inspect.look import look
from recsys.inspect.terminal_summary import summary_of
from recsys.sources import open_source
from recsys.sources.base import read_all
from recsys.sources.encodings import encoding_of
from recsys.sources.validate import CellRules

START = 1_700_000_000
NUM_USERS, NUM_ITEMS, NUM_EVENTS = 60, 40, 1500


def pairs(seed: int = 0) -> list[tuple[int, int, int]]:
    """Users, items and times (seconds) in order of time."""
    random = np.random.default_rng(seed)
    users = random.integers(0, NUM_USERS, NUM_EVENTS).tolist()
    items = (random.pareto(1.2, NUM_EVENTS) * 6 % NUM_ITEMS).astype(int).tolist()
    times = (START + np.sort(random.integers(0, 90 * 86_400, NUM_EVENTS))).tolist()
    return list(zip(users, items, times, strict=True))


def write(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]], mark: str = ",", **how: Any
) -> Path:
    text = io.StringIO()
    csv.writer(text, delimiter=mark, lineterminator="\n").writerows([header, *rows])
    path.write_bytes(text.getvalue().encode(how.get("encoding", "utf-8")))
    return path


def at(time: int, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    return datetime.fromtimestamp(time, UTC).strftime(form)


def source_of(*files: Path) -> CanonicalSource:
    source = look([str(file) for file in files]).config.data.source
    assert isinstance(source, CanonicalSource)
    return source


def columns_of_events(source: CanonicalSource) -> dict[str, str]:
    return {name: to for name, to in source.rename["events"].items() if isinstance(to, str)}  # type: ignore[union-attr]


def test_customer_and_not_the_receipt_is_the_user(tmp_path: Path) -> None:
    rows = [
        (f"B{t // 86_400}{u}", f"{u:06}", f"{i:05}", "1,5", at(t, "%d.%m.%Y %H:%M"))
        for u, i, t in pairs()
    ]
    path = write(
        tmp_path / "kasse.csv",
        ["Bon-Nr", "Kundennummer", "Artikelnummer", "Menge", "Datum"],
        rows,
        ";",
    )
    assert columns_of_events(source_of(path)) | {"Menge": ""} == {
        "Kundennummer": "user_id",
        "Artikelnummer": "item_id",
        "Menge": "",
        "Datum": "timestamp",
    }


def test_yearly_files_with_columns_in_another_order_are_one_table(tmp_path: Path) -> None:
    rows = [(f"m{u}", f"b{i}", at(t, "%d-%b-%Y"), "") for u, i, t in pairs()]
    one = write(tmp_path / "loans_2023.csv", ["member", "book", "loaned", "returned"], rows[:700])
    other = write(
        tmp_path / "loans_2024.csv",
        ["book", "returned", "member", "loaned"],
        [(b, end, m, begin) for m, b, begin, end in rows[700:]],
    )
    source = source_of(one, other)
    read = read_all(open_source(source).pieces()["events"])
    assert read.num_rows == NUM_EVENTS and read.column(schema.REASON).null_count == NUM_EVENTS


def test_files_of_event_types_may_have_other_columns(tmp_path: Path) -> None:
    events = pairs()
    views = [(f"c{u}", f"j{i}", at(t), "mail") for u, i, t in events]
    done = [(n, f"c{u}", f"j{i}", at(t + 60), "open") for n, (u, i, t) in enumerate(events[::9])]
    found = look(
        [
            str(write(tmp_path / "job_views.csv", ["person", "job", "viewed_at", "via"], views)),
            str(
                write(
                    tmp_path / "applications.csv",
                    ["application_id", "person", "job", "applied_at", "status"],
                    done,
                )
            ),
        ]
    )
    source = found.config.data.source
    assert isinstance(source, CanonicalSource)
    assert set(source.type_files) == {"view", "application"}
    assert found.config.data.targets == ["application"]
    read = read_all(open_source(source).pieces()["events"])
    assert read.num_rows == len(views) + len(done)
    assert read.column(schema.TIMESTAMP).null_count == 0


@pytest.mark.parametrize(
    ("names", "types"),
    [
        (("views", "purchases"), {"view", "purchase"}),
        (("listens", "likes"), {"listen", "like"}),
        (("transactions", "orders"), set()),
        (("events", "purchases"), set()),
    ],
)
@pytest.mark.parametrize("is_timed", [True, False])
def test_events_of_one_type_on_the_day_of_another_are_no_extract(
    names: tuple[str, str], types: set[str], is_timed: bool, tmp_path: Path
) -> None:
    header = ["customer_id", "product_id", "date"][: 2 + is_timed]
    rows = [(u + 5000, f"P{i}", at(t, "%Y-%m-%d"))[: 2 + is_timed] for u, i, t in pairs()]
    paths = [
        write(tmp_path / f"{name}.csv", header, some)
        for name, some in zip(names, (rows, rows[::3]), strict=True)
    ]
    found = look([str(path) for path in paths])
    assert {*source_of(*paths).type_files} == types
    assert ("an extract" in summary_of(found.found)) is (not types)
    data = found.config.data
    if "purchase" in types:
        assert [*data.targets, *data.interactions] == ["purchase"]


def test_event_types_with_numbers_for_times_may_have_other_columns(tmp_path: Path) -> None:
    rows = [(u, i, (t - START) // 5 + 7, n % 90) for n, (u, i, t) in enumerate(pairs())]
    listens = write(tmp_path / "listens.csv", ["uid", "item_id", "timestamp", "ratio"], rows)
    likes = [(u, t + 3, i) for u, i, t, _ in rows[::5]]
    path = write(tmp_path / "likes.csv", ["uid", "timestamp", "item_id"], likes)
    assert {*source_of(listens, path).type_files} == {"listen", "like"}


def test_time_of_the_event_is_before_the_times_that_it_is_about(tmp_path: Path) -> None:
    rows = [
        (f"g{u}", f"h{i}", at(t + 9 * 86_400, "%m/%d/%Y"), at(t, "%m/%d/%Y"), 9)
        for u, i, t in pairs()
    ]
    path = write(
        tmp_path / "bookings.csv", ["guest", "hotel", "check_in", "booked_on", "lead_time"], rows
    )
    assert columns_of_events(source_of(path)) == {
        "guest": "user_id",
        "hotel": "item_id",
        "booked_on": "timestamp",
    }


def test_channel_is_no_event_type(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"i{i}", at(t), ["search", "mail", "home"][t % 3]) for u, i, t in pairs()]
    path = write(tmp_path / "views.csv", ["user", "item", "time", "source"], rows)
    assert "event_type" not in columns_of_events(source_of(path)).values()


@pytest.mark.parametrize("prefix", ["interactions.", "challenge_2017_device_export."])
def test_name_of_the_table_before_each_column_hides_no_event_type(
    prefix: str, tmp_path: Path
) -> None:
    names = [f"{prefix}{name}" for name in ("user_id", "item_id", "interaction_type", "created_at")]
    rows = [(u, i, (0, 0, 1, 4)[t % 4], t) for u, i, t in pairs()]
    found = columns_of_events(source_of(write(tmp_path / "log.csv", names, rows)))
    assert found[f"{prefix}interaction_type"] == "event_type"


def test_times_of_two_systems_in_one_column_are_read(tmp_path: Path) -> None:
    rows = [
        (f"u{u}", f"i{i}", t * 1000 if u % 2 else at(t, "%Y-%m-%dT%H:%M:%SZ"))
        for u, i, t in pairs()
    ]
    source = source_of(write(tmp_path / "log.csv", ["user", "item", "saved"], rows))
    assert columns_of_events(source)["saved"] == "timestamp"
    times = read_all(open_source(source).pieces()["events"]).column(schema.TIMESTAMP)
    assert [moment.timestamp() for moment in times.to_pylist()] == [t for _, _, t in pairs()]


@pytest.mark.parametrize("mark", [".", ","])
def test_serial_dates_of_spreadsheets_are_read(mark: str, tmp_path: Path) -> None:
    rows = [
        (f"Flat {u}", f"tool {i}", f"{t / 86_400 + 25_569:.6f}".replace(".", mark))
        for u, i, t in pairs()
    ]
    source = source_of(write(tmp_path / "lent.csv", ["Who", "Tool", "Borrowed on"], rows, ";"))
    assert source.time_format == "serial"
    times = read_all(open_source(source).pieces()["events"]).column(schema.TIMESTAMP)
    apart = [
        moment.timestamp() - t for moment, (_, _, t) in zip(times.to_pylist(), pairs(), strict=True)
    ]
    assert max(map(abs, apart)) <= 1


def test_chinese_files_in_their_usual_encoding_are_read(tmp_path: Path) -> None:
    rows = [
        (10_000 + u, f"SP{i:05}", ["浏览", "购买"][t % 5 == 0], at(t, "%Y年%m月%d日 %H:%M"))
        for u, i, t in pairs()
    ]
    items = [
        (
            f"SP{i:05}",
            f"园艺烤箱{'机器人拼图娃娃'[i % 7]}种子{'花盆土壤'[i % 4]}{'春夏秋冬风'[i % 5]}",
            f"类{i % 4}",
        )
        for i in range(NUM_ITEMS)
    ]
    names = ["用户编号", "商品编号", "行为类型", "时间"]
    found = look(
        [
            str(write(tmp_path / "日志.csv", names, rows, encoding="gb18030")),
            str(
                write(
                    tmp_path / "商品.csv", ["商品编号", "名称", "类别"], items, encoding="gb18030"
                )
            ),
        ]
    )
    data = found.config.data
    assert isinstance(data.source, CanonicalSource)
    canonical = ["user_id", "item_id", "event_type", "timestamp"]
    assert columns_of_events(data.source) == dict(zip(names, canonical, strict=True))
    assert data.targets == ["购买"] and data.text.fields == ["名称"]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("shift_jis", "顧客番号,ロボットのパズル,ギターとピアノ"),
        ("euc_jp", "顧客番号,ロボットのパズル,ギターとピアノ"),
        ("euc_kr", "고객번호,로봇 퍼즐 인형,음악"),
        ("big5", "用戶編號,小說詩歌漫畫日記,購買時間"),
        ("koi8_r", "покупатель,Робот пазл кукла"),
        ("cp1251", "покупатель,Робот пазл кукла"),
        ("cp1252", "élève,à l’école"),
        ("latin-1", "Käufer,Größe,Öl"),
    ],
)
def test_encoding_is_found_from_the_letters(encoding: str, text: str) -> None:
    assert encoding_of(f"{text}\n1,a,2\n".encode(encoding)) == encoding


def test_title_with_commas_is_no_list_and_short_texts_that_repeat_are_categories(
    tmp_path: Path,
) -> None:
    events = write(
        tmp_path / "stays.csv",
        ["guest", "hotel", "day"],
        [(f"g{u}", f"h{i}", at(t)) for u, i, t in pairs()],
    )
    hotels = [
        (
            f"h{i}",
            f"{('rose', 'lake', 'hill', 'park')[i % 4]} {i}, Inn",
            ["New York", "San Jose"][i % 2],
        )
        for i in range(NUM_ITEMS)
    ]
    found = look(
        [str(events), str(write(tmp_path / "hotels.csv", ["hotel", "name", "city"], hotels))]
    )
    assert found.config.data.knowledge.item_columns == ["city"]
    assert found.config.data.text.fields == ["name", "city"]


def test_items_that_never_repeat_are_no_items(tmp_path: Path) -> None:
    rows = [(n, f"u{u}", at(t), "x") for n, (u, _, t) in enumerate(pairs())]
    path = write(tmp_path / "orders.csv", ["order", "customer", "placed", "state"], rows)
    with pytest.raises(SourceError, match="with repeated values"):
        look([str(path)])


def test_articles_in_the_cell_of_an_order_are_events(tmp_path: Path) -> None:
    rows = [
        (
            n,
            f"u{u}",
            at(t, "%b %d, %Y"),
            ", ".join(f"A{(i + k) % NUM_ITEMS}" for k in range(1 + u % 3)),
        )
        for n, (u, i, t) in enumerate(pairs())
    ]
    source = source_of(
        write(tmp_path / "orders.csv", ["Order", "Customer", "Placed", "Articles"], rows)
    )
    assert source.lists == {"Articles": ", "}
    read = read_all(open_source(source).pieces()["events"])
    assert read.num_rows == sum(1 + u % 3 for u, _, _ in pairs())


def test_lists_of_events_inside_users_are_events(tmp_path: Path) -> None:
    by_user: dict[int, list[dict[str, Any]]] = {}
    for u, i, t in pairs():
        by_user.setdefault(u, []).append({"lesson": {"$oid": f"{i:024x}"}, "at": at(t)})
    path = tmp_path / "progress.json"
    path.write_text(
        "".join(f"{json.dumps({'user': f'u{u}', 'done': done})}\n" for u, done in by_user.items())
    )
    source = source_of(path)
    assert columns_of_events(source) == {
        "user": "user_id",
        "done.lesson": "item_id",
        "done.at": "timestamp",
    }
    read = read_all(open_source(source).pieces()["events"])
    assert read.num_rows == NUM_EVENTS and read.column(schema.REASON).null_count == NUM_EVENTS


def test_matrix_of_users_and_items_has_its_own_message(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [(f"R{n}", *random.choice(["", "1", "4", "5"], 30)) for n in range(80)]
    path = write(tmp_path / "votes.csv", ["voter", *(f"Film {n}" for n in range(30))], rows)
    with pytest.raises(SourceError, match="looks like a matrix.*melt"):
        look([str(path)])


@pytest.mark.parametrize("key", ["order_id", "id"])
def test_lines_of_orders_get_the_customer_of_their_order(key: str, tmp_path: Path) -> None:
    orders: dict[tuple[int, int], int] = {}
    lines = [
        (orders.setdefault((u, t // 600_000), len(orders) + 1), f"p{i}") for u, i, t in pairs()
    ]
    heads = [(n, f"c{u}", at(t * 600_000), t % 24) for (u, t), n in orders.items()]
    found = look(
        [
            str(write(tmp_path / "order_lines.csv", ["order_id", "product"], lines)),
            str(
                write(tmp_path / "orders.csv", [key, "customer", "ordered_at", "order_hour"], heads)
            ),
        ]
    )
    source = found.config.data.source
    assert isinstance(source, CanonicalSource)
    column = "order_id" if key == "order_id" else "order_id = id"
    assert source.lookup == {column: [str(tmp_path / "orders.csv")]}
    assert columns_of_events(source) == {
        "customer": "user_id",
        "product": "item_id",
        "ordered_at": "timestamp",
    }
    read = read_all(open_source(source).pieces()["events"])
    assert len(set(read.column(schema.USER_ID).to_pylist())) == NUM_USERS
    assert read.column(schema.REASON).null_count == read.num_rows == NUM_EVENTS


@pytest.mark.parametrize(
    ("column", "states", "dropped"),
    [
        (
            "order_status",
            ["Completed", "Shipped", "Cancelled", "Refunded"],
            ["cancelled", "refunded"],
        ),
        ("is_canceled", ["0", "0", "0", "1"], ["1"]),
        ("Fraudulent", ["false", "false", "false", "true"], ["true"]),
        ("Bestellstatus", ["bezahlt", "neu", "versandt", "storniert"], ["storniert"]),
    ],
)
def test_canceled_orders_are_left_out(
    column: str, states: list[str], dropped: list[str], tmp_path: Path
) -> None:
    rows = [(f"c{u}", f"p{i}", at(t), states[n % 4]) for n, (u, i, t) in enumerate(pairs())]
    names = ["customer", "product", "ordered_at", column]
    source = source_of(write(tmp_path / "orders.csv", names, rows))
    assert source.drop == {column: dropped}
    read = read_all(open_source(source).pieces()["events"])
    assert read.num_rows == sum(row[3].lower() not in dropped for row in rows)


def test_lines_of_canceled_orders_are_left_out(tmp_path: Path) -> None:
    lines = [(n // 2, f"p{i}") for n, (_, i, _) in enumerate(pairs())]
    orders = [
        (n // 2, f"c{u}", at(t), ["packed", "sent", "refunded"][n % 3])
        for n, (u, _, t) in enumerate(pairs())
        if n % 2 == 0
    ]
    source = source_of(
        write(tmp_path / "order_lines.csv", ["order_id", "product"], lines),
        write(tmp_path / "orders.csv", ["order_id", "customer", "ordered_at", "status"], orders),
    )
    assert list(source.lookup) == ["order_id"] and source.drop == {"status": ["refunded"]}
    read = read_all(open_source(source).pieces()["events"])
    assert read.num_rows == NUM_EVENTS - 2 * sum(state == "refunded" for *_, state in orders)


def test_columns_with_states_of_the_customer_drop_no_events(tmp_path: Path) -> None:
    rows = [
        (f"c{u}", f"p{i}", at(t), ["active", "canceled"][u % 2], ["yes", "yes", "no"][n % 3])
        for n, (u, i, t) in enumerate(pairs())
    ]
    names = ["borrower", "book", "lent_at", "membership_status", "returned"]
    assert source_of(write(tmp_path / "loans.csv", names, rows)).drop == {}


@pytest.mark.parametrize(
    ("day", "clock"), [("%Y-%m-%d", "%H:%M:%S"), ("%d.%m.%Y", "%H:%M"), ("%Y-%m-%d", "%I:%M %p")]
)
def test_day_and_time_of_day_in_two_columns_are_one_time(
    day: str, clock: str, tmp_path: Path
) -> None:
    rows = [(at(t, day), at(t, clock), f"L{u:04}", f"{i:04}", 1) for u, i, t in pairs()]
    names = ["date", "time", "loyalty_card_user", "article", "pieces"]
    source = source_of(write(tmp_path / "sales.csv", names, rows))
    assert source.clock == "time"
    times = read_all(open_source(source).pieces()["events"]).column(schema.TIMESTAMP)
    step = 1 if "S" in clock else 60
    seconds = [moment.timestamp() for moment in times.to_pylist()]
    assert seconds == [t // step * step for _, _, t in pairs()]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("shop.db", b"SQLite format 3\0....", "an SQLite database; export its tables"),
        ("trn_mat.pkl", b"\x80\x04\x95....", "pickle of Python.*a line per cell"),
        ("trn_buy", b"\x80\x03csc\0ipy", "pickle of Python.*a line per cell"),
        ("train.npz", b"PK\3\4........", "arrays of NumPy.*scipy.sparse.load_npz"),
        ("image_feat.npy", b"\x93NUMPY\1\0v\0", "an id and a list of numbers per item"),
        (
            "datamaps.json",
            b'{"item2id": {' + b", ".join(b'"B%d": "%d"' % (n, n) for n in range(40)) + b"}}",
            r"maps \(item2id\), not rows.*a row per pair",
        ),
        ("rating.mat", b"MATLAB 5.0 MAT-file\0", "arrays of MATLAB.*scipy.io.loadmat"),
        ("a.txt", "u\ti\nv\tj\n".encode("utf-16"), "Unicode text.*save it as UTF-8"),
        (
            "report.csv",
            b"Sales\nMay\n\nuser,item,day\n" + b"u1,i1,2024-05-01\n" * 60,
            "without the first 2 lines they are a table",
        ),
    ],
)
def test_file_of_another_kind_has_a_message_with_the_cure(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        look([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("name", "content", "cure"),
    [
        ("page.html", "<html></html>", "save it as CSV or Parquet"),
        ("page.txt", "<a>b</a>", "save its table as CSV or Parquet"),
        ("twice.csv", "user_id,item_id,item_id\nu1,a,1\n", "rename one of the two columns"),
        ("numbers.json", "[1, 2]", "expected one per line, or all in one array"),
    ],
)
def test_message_about_an_unreadable_file_names_the_file_and_the_cure(
    tmp_path: Path, name: str, content: str, cure: str
) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SourceError) as caught:
        look([str(path)])
    assert f"{path}: " in str(caught.value) and cure in str(caught.value)


def test_repeated_name_of_an_amount_does_not_hide_the_file(tmp_path: Path) -> None:
    """Spreadsheets export 'Menge' of the order and 'Menge' of the delivery."""
    rows = [(f"k{u}", f"a{i}", 1, 2, at(t)) for u, i, t in pairs()]
    path = write(tmp_path / "orders.csv", ["Kunde", "Artikel", "Menge", "Menge", "Datum"], rows)
    assert columns_of_events(source_of(path)) == {
        "Kunde": "user_id",
        "Artikel": "item_id",
        "Datum": "timestamp",
    }


def test_ignored_file_is_named_if_no_file_has_events(tmp_path: Path) -> None:
    rows = [(f"k{u}", f"a{i}", f"b{i}") for u, i, _ in pairs()]
    events = write(tmp_path / "orders.csv", ["user_id", "item_id", "item_id"], rows)
    items = write(tmp_path / "items.csv", ["Artikel", "Preis"], [(f"a{n}", n) for n in range(40)])
    with pytest.raises(SourceError) as caught:
        look([str(events), str(items)])
    assert "orders.csv is ignored: the header contains the name 'item_id' twice" in str(
        caught.value
    )


def test_notes_name_ids_in_two_forms_and_e_mail_addresses(tmp_path: Path) -> None:
    rows = [
        (f"user{u}@x.org" if t % 2 else f"User{u}@x.org", f"a{i}", at(t)) for u, i, t in pairs()
    ]
    found = look([str(write(tmp_path / "e.csv", ["who", "what", "when"], rows))])
    notes = " ".join(found.found.notes)
    assert "users have ids in several forms" in notes and "upper and lower case differ" in notes
    assert "data.pseudonymise.key_env" in notes
    assert "\n  # pseudonymise:\n    # key_env: RECSYS_PSEUDONYM_KEY" in found.draft.text()
    plain = [(f"user{u}", f"a{i}", at(t)) for u, i, t in pairs()]
    without = look([str(write(tmp_path / "p.csv", ["who", "what", "when"], plain))])
    assert not without.found.notes and "pseudonymise" not in without.draft.text()


@pytest.mark.parametrize(
    ("num_items", "limit", "encoder"),
    [(40, None, "transformer"), (60_000, 33, "transformer"), (130_000, None, "static")],
)
def test_long_texts_of_many_items_are_read_in_part_or_not_by_the_model(
    tmp_path: Path, num_items: int, limit: int | None, encoder: str
) -> None:
    events = write(
        tmp_path / "events.csv",
        ["user_id", "item_id", "time"],
        [(f"u{u}", f"a{i}", at(t)) for u, i, t in pairs()],
    )
    words = ["quiet", "river", "story", "winter", "garden", "letter", "island", "bridge"]
    texts = [
        (f"a{n}", " ".join(words[(n + k * k) % 8] for k in range(90))) for n in range(num_items)
    ]
    items = write(tmp_path / "items.csv", ["item_id", "description"], texts)
    text = look([str(events), str(items)]).config.data.text
    assert text.enabled and text.max_tokens == (limit or type(text)().max_tokens)
    assert text.encoder == encoder


def test_lists_of_whole_numbers_are_codes_if_their_name_says_so(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{item}", time) for user, item, time in pairs()]
    log = write(tmp_path / "log.csv", ("user_id", "item_id", "timestamp"), rows)
    lists = [[item % 5, 5 + item % 3][: 1 + item % 2] for item in range(NUM_ITEMS)]
    columns = {"item_id": [f"i{item}" for item in range(NUM_ITEMS)], "labels": lists}
    pq.write_table(pa.table({**columns, "counts": lists}), tmp_path / "items.parquet")
    found = look([str(log), str(tmp_path / "items.parquet")])
    assert found.config.data.knowledge.item_columns == ["labels"]
    assert found.found.items is not None
    assert "lists of numbers" in found.found.items.idle["counts"]


@pytest.mark.parametrize(
    ("user", "item", "names"),
    [
        ("USR{}", "PRD{}", ("customer", "product", "ordered_at")),
        ("u{}", "MAT{}", ("student", "course", "time")),
        # the lek (ALL) and the real of Brazil are currencies, but not those of a member or an item
        ("ALL{}", "BRL{}", ("member", "item_code", "time")),
    ],
)
def test_ids_of_three_letters_and_digits_are_not_prices(
    user: str, item: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    rows = [(user.format(1000 + u), item.format(100 + i), at(t)) for u, i, t in pairs()]
    found = columns_of_events(source_of(write(tmp_path / "events.csv", names, rows)))
    assert found == dict(zip(names, ("user_id", "item_id", "timestamp"), strict=True))


@pytest.mark.parametrize("text", ["EUR 12.50", "12,50 CHF", "$12", "9.99USD", "+US$ 1,200.00"])
def test_numbers_with_a_currency_are_prices(text: str) -> None:
    cells = pa.array([text, text.replace("9", "8").replace("1", "3")])
    assert column_of("paid", 0, cells, CellRules()).kind == "price"


def test_letters_that_are_no_currency_make_no_price() -> None:
    cells = pa.array([f"XYZ{number}" for number in range(9)])
    assert column_of("paid", 0, cells, CellRules()).kind == "token"


def parquet(path: Path, **more: Any) -> Path:
    """Events with further columns, whose cells repeat."""
    users, items, times = zip(*pairs(), strict=True)
    columns = {
        "user": [f"u{u}" for u in users],
        "item": [f"p{i}" for i in items],
        "ts": pa.array(times, pa.timestamp("s")),
    }
    pq.write_table(pa.table(columns | more), path)
    return path


def test_ids_as_bytes_are_text(tmp_path: Path) -> None:
    users, items, _ = zip(*pairs(), strict=True)
    path = parquet(
        tmp_path / "e.parquet",
        user=pa.array([f"u{u}".encode() for u in users]),
        item=pa.array([f"p{i:03}".encode() for i in items], pa.binary(4)),
        device=pa.array([uuid.UUID(int=u % 3).bytes for u in users], pa.uuid()),
    )
    found = look([str(path)])
    assert columns_of_events(source_of(path)) == {
        "user": "user_id",
        "item": "item_id",
        "ts": "timestamp",
    }
    assert found.found.statistics.num_items == len(set(items))


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([b"\xff\x01\x80"] * NUM_EVENTS),
        pa.array([b"\xff\x01"] * NUM_EVENTS, pa.binary(2)),
        pa.array([[b"\xff\x01", b"\xfe"]] * NUM_EVENTS),
        pa.array([[[1.0, 2.0], [3.0, 4.0]]] * NUM_EVENTS),
        pa.array([[{"key": "a", "values": ["x", "y"]}]] * NUM_EVENTS),
        pa.array([[("a", 1)]] * NUM_EVENTS, pa.map_(pa.string(), pa.int64())),
        pa.array([[[("a", 1)]]] * NUM_EVENTS, pa.list_(pa.map_(pa.string(), pa.int64()))),
    ],
    ids=lambda cells: str(cells.type),
)
def test_bytes_and_nested_lists_are_left_out_with_a_reason(cells: pa.Array, tmp_path: Path) -> None:
    found = look([str(parquet(tmp_path / "e.parquet", payload=cells))])
    assert found.found.idle["payload"] == OBJECTS
    source = found.config.data.source
    assert isinstance(source, CanonicalSource)
    assert read_all(open_source(source).pieces()["events"]).num_rows == NUM_EVENTS


def test_ids_that_are_objects_are_named_in_the_message(tmp_path: Path) -> None:
    users = pa.array([bytes([200 + u % 50, 1]) for u, _, _ in pairs()], pa.binary(2))
    with pytest.raises(SourceError, match=r"user \(nested objects .* bytes that are no text\)"):
        look([str(parquet(tmp_path / "e.parquet", user=users))])


def tracked(path: Path, most: int) -> Path:
    """Events of Google Analytics: parameters in each, and items, at most so many, in few."""
    lines = []
    for number, (user, item, time) in enumerate(pairs()):
        items = [{"item_id": f"SKU{(item + step) % NUM_ITEMS}"} for step in range(most)]
        event = {
            "event_timestamp": str(time * 1_000_000),
            "event_name": ("purchase", "view_item", "page_view", "scroll")[number % 4],
            "event_params": [
                {"key": "ga_session_id", "value": {"int_value": str(time)}},
                {"key": "page_location", "value": {"string_value": f"https://a.example/{item}"}},
            ],
            "user_pseudo_id": f"{user}.{START}",
            "items": items[: 1 + number % 3] if number % 4 < 2 else [],
        }
        lines.append(json.dumps(event))
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("most", [1, 2])
def test_items_of_few_events_win_over_parameters_of_all_events(tmp_path: Path, most: int) -> None:
    source = source_of(tracked(tmp_path / "events.json", most))
    assert columns_of_events(source) == {
        "user_pseudo_id": "user_id",
        "items.item_id": "item_id",
        "event_timestamp": "timestamp",
        "event_name": "event_type",
    }


def test_two_names_of_parameters_are_no_items(tmp_path: Path) -> None:
    source = source_of(tracked(tmp_path / "events.json", 0))
    assert columns_of_events(source)["event_params.value.string_value"] == "item_id", "the pages"


GOODS = ("Flat White", "Carrot Cake", "Espresso", "Green Tea", "Bagel", "Orange Juice", "Muffin")
LONG = tuple(f"The very long name of the {name} in our shop" for name in GOODS)
PAGES = tuple(f"https://shop.example/p/{number}" for number in range(7))


def baskets(names: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """The user, the time and one to three things of each order."""
    return [
        (f"m{u}", at(t), [names[(i + step) % len(names)] for step in range(1 + i % 3)])
        for u, i, t in pairs()
    ]


@pytest.mark.parametrize("names", [LONG, PAGES, GOODS], ids=["long", "pages", "short"])
def test_lists_of_long_titles_and_addresses_are_opened(
    names: Sequence[str], tmp_path: Path
) -> None:
    path = tmp_path / "orders.jsonl"
    orders = baskets(names)
    keys = ("customer", "created_at", "products")
    path.write_text("\n".join(json.dumps(dict(zip(keys, order, strict=True))) for order in orders))
    events = read_all(open_source(source_of(path)).pieces()["events"])
    assert {*events.column(schema.ITEM_ID).to_pylist()} == {*names}
    assert events.num_rows == sum(len(things) for _, _, things in orders)


@pytest.mark.parametrize(
    ("names", "mark", "least"),
    [
        (GOODS, ", ", 1),
        *((GOODS, mark, least) for mark in ("; ", "|") for least in (1, 2)),
        *((PAGES, mark, least) for mark in (" ", ",", "; ") for least in (1, 2)),
    ],
)
def test_cells_with_several_names_are_opened(
    names: Sequence[str], mark: str, least: int, tmp_path: Path
) -> None:
    orders = [order for order in baskets(names) if len(order[2]) >= least]
    rows = [(user, time, mark.join(things)) for user, time, things in orders]
    path = write(tmp_path / "receipts.csv", ["member", "date", "things"], rows)
    events = read_all(open_source(source_of(path)).pieces()["events"])
    assert {*events.column(schema.ITEM_ID).to_pylist()} == {*names}
    assert events.num_rows == sum(len(things) for _, _, things in orders)


def test_titles_with_commas_are_one_item_each(tmp_path: Path) -> None:
    names = [f"{name}, The" for name in GOODS]
    rows = [(f"m{u}", at(t), names[i % len(names)]) for u, i, t in pairs()]
    source = source_of(write(tmp_path / "views.csv", ["member", "date", "film"], rows))
    assert not source.lists and columns_of_events(source)["film"] == "item_id"


@pytest.mark.parametrize("num_rows", [60, 400])
def test_export_of_one_person_has_no_users(num_rows: int, tmp_path: Path) -> None:
    rows = [
        (at(t, "%Y-%m-%d"), f"Old Film {i}", 1980 + i, f"https://boxd.it/{i * 997:x}", 1 + u % 5)
        for u, i, t in pairs()[:num_rows]
    ]
    names = ["Date", "Name", "Year", "Letterboxd URI", "Rating"]
    with pytest.raises(SourceError, match="no table has events, that is, a column of user ids"):
        look([str(write(tmp_path / "ratings.csv", names, rows))])
