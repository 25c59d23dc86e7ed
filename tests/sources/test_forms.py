"""Forms of text files: separators, headers, comments, column names, renames by table, Hive
folders.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from recsys import schema
from recsys.config import (
    CanonicalSource,
    HetRecLastFmSource,
    RecBoleSource,
    Section,
    SequencesSource,
)
from recsys.errors import SourceError
from recsys.sources import open_source
from recsys.sources.base import read_all
from recsys.sources.files import input_file
from recsys.sources.first_rows import Form
from recsys.sources.table_heads import TableFiles
from recsys.sources.table_pieces import table_pieces

ROWS = [
    ("u1", "i7", "4", "1600000000"),
    ("u1", "i8", "3", "1600000001"),
    ("u2", "i7", "5", "1600000002"),
]
NAMES = ("user_id", "item_id", "value", "timestamp")


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def text(separator: str, header: bool = True, end: str = "\n") -> str:
    return "".join(separator.join(row) + end for row in ([NAMES, *ROWS] if header else ROWS))


def tables(source: Section) -> dict[str, pa.Table]:
    adapter = open_source(source)
    adapter.check()
    return {name: read_all(pieces) for name, pieces in adapter.pieces().items()}


def events(path: str, **options: Any) -> pa.Table:
    return tables(CanonicalSource(events=[path], **options))["events"]


def bad(table: pa.Table) -> list[tuple[int, str]]:
    rows = table.filter(pc.is_valid(table.column(schema.REASON))).to_pylist()
    return [(row[schema.ROW], row[schema.REASON]) for row in rows]


def ids(table: pa.Table) -> list[tuple[str, str]]:
    return list(
        zip(
            *(table.column(name).to_pylist() for name in (schema.USER_ID, schema.ITEM_ID)),
            strict=True,
        )
    )


def refused(source: Section) -> str:
    """The message of the check without rows, which is also the message of reading."""
    with pytest.raises(SourceError) as caught:
        open_source(source).check()
    with pytest.raises(SourceError) as again:
        open_source(source).pieces()
    assert str(caught.value) == str(again.value)
    return str(caught.value)


def is_whole(table: pa.Table) -> bool:
    return (
        bad(table) == []
        and ids(table) == [(user, item) for user, item, _, _ in ROWS]
        and table.column(schema.VALUE).to_pylist() == [4.0, 3.0, 5.0]
        and table.column(schema.TIMESTAMP).cast(pa.int64()).to_pylist()[2] == 1600000002000000
    )


# --------------------------------------------------------------------------------------- separators


@pytest.mark.parametrize("separator", [";", "|", "\t", "::", "~|~", "§", "^"])
@pytest.mark.parametrize("header", [True, False])
def test_any_separator_is_read(tmp_path: Path, separator: str, header: bool) -> None:
    path = write(tmp_path / "log.dat", text(separator, header))
    assert is_whole(events(path, separator=separator, columns=[] if header else NAMES))
    # a header with these names is not an event
    assert is_whole(events(path, separator=separator, columns=NAMES))


def test_repeated_blanks_are_one_separator(tmp_path: Path) -> None:
    content = "  user_id item_id   value\ttimestamp \r\n" + "".join(
        f" {'   '.join(row)}  \r\n" for row in ROWS
    )
    assert is_whole(events(write(tmp_path / "log.txt", content), separator=" "))


@pytest.mark.parametrize("chunk_bytes", [1, 20, 1000])
def test_rows_keep_their_numbers_with_long_separators_and_comments(
    tmp_path: Path, chunk_bytes: int
) -> None:
    content = "# about\nu1::i1::5\n# more\nu2::i2\n\nu3::i3::4\n"
    form = Form("::", ("user_id", "item_id", "value"), comment="#")
    file = input_file(write(tmp_path / "log.dat", content))
    table = read_all(
        table_pieces(TableFiles(schema.EVENTS, (file,), form=form, chunk_bytes=chunk_bytes))
    )
    assert bad(table) == [(3, "unreadable row: 2 cells, expected 3")]
    assert table.column(schema.ROW).to_pylist() == [1, 3, 5]
    assert table.column(schema.RAW).to_pylist() == [None, "u2::i2", None]


def test_control_characters_in_cells_survive_a_long_separator(tmp_path: Path) -> None:
    strange = "".join(chr(code) for code in (*range(1, 9), *range(14, 32)))
    content = f"user_id::item_id::note\nu1::i1::a\x1fb\nu2::i2::{strange}\n"
    table = events(write(tmp_path / "log.dat", content), separator="::")
    assert table.column("note").to_pylist() == ["a\x1fb", strange]


def test_quoted_cells_and_latin_letters_with_a_semicolon_are_read(tmp_path: Path) -> None:
    content = 'user_id;item_id;title\n"1";"2";"Käfer; ""Nr. 1"""\n'.encode("latin-1")
    table = events(write(tmp_path / "log.csv", content), separator=";", encoding="latin-1")
    assert table.column("title").to_pylist() == ['Käfer; "Nr. 1"']


@pytest.mark.parametrize(
    ("name", "separator"), [("log.csv", ";"), ("log.csv", "\t"), ("log.tsv", ","), ("log.csv", "|")]
)
def test_clear_other_separator_is_used_with_a_note(
    tmp_path: Path, name: str, separator: str
) -> None:
    adapter = open_source(CanonicalSource(events=[write(tmp_path / name, text(separator))]))
    assert is_whole(read_all(adapter.pieces()["events"]))
    assert len(adapter.notes) == 1
    assert f"separated by {separator!r}" in adapter.notes[0]


def test_single_column_gives_no_other_separator(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", text(","))
    users = write(tmp_path / "users.csv", "user_id\na;b\nc;d\n")
    found = tables(CanonicalSource(events=[log], users=[users]))["users"]
    assert found.column(schema.USER_ID).to_pylist() == ["a;b", "c;d"]


@pytest.mark.parametrize("separator", ['"', "x", ".", "a\nb", None])
def test_impossible_separators_are_refused(separator: Any) -> None:
    with pytest.raises(ValidationError):
        CanonicalSource(events=["x"], separator=separator)


def test_words_for_separators_are_accepted() -> None:
    words = {"tab": "\t", "\\t": "\t", "   ": " ", "semicolon": ";"}
    assert {
        word: CanonicalSource(events=["x"], separator=word).separator for word in words
    } == words


# ------------------------------------------------------------------------------------------ headers


def test_columns_name_a_file_without_header(tmp_path: Path) -> None:
    path = write(tmp_path / "u.data", text("\t", header=False))
    assert is_whole(events(path, format="tsv", columns=NAMES))
    assert is_whole(events(path, format="tsv", columns={"events": NAMES}, header="no"))
    dropped = events(path, format="tsv", columns=["user_id", "item_id", "_", ""])
    assert ids(dropped) == [(user, item) for user, item, _, _ in ROWS]
    assert dropped.column(schema.VALUE).to_pylist() == [1.0] * 3


def test_columns_of_several_tables_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    log = write(tmp_path / "log.txt", "\ufeff" + text("\t", header=False))
    friends = write(tmp_path / "friends.txt", "\ufeffu1\tu2\nu2\tu1\n")
    columns = {"events": list(NAMES), "social": ["src_user_id", "dst_user_id"]}
    found = tables(
        CanonicalSource(events=[log], social=[friends], columns=columns, separator="tab")
    )
    assert is_whole(found["events"])
    assert found["social"].column(schema.SRC_USER_ID).to_pylist() == ["u1", "u2"]


def test_header_in_another_case_is_not_an_event(tmp_path: Path) -> None:
    path = write(
        tmp_path / "log.csv", "User ID,Item-ID,Value,TIMESTAMP\n" + text(",", header=False)
    )
    assert is_whole(events(path, columns=NAMES))
    assert "data.source.header" in refused(
        CanonicalSource(events=[path], columns=NAMES, header="no")
    )


@pytest.mark.parametrize("head", ["customer,article,stars,when", "userId,movieId,x,y"])
def test_header_below_given_columns_is_refused(tmp_path: Path, head: str) -> None:
    path = write(tmp_path / "log.csv", f"{head}\n" + text(",", header=False))
    message = refused(CanonicalSource(events=[path], columns=NAMES))
    assert "looks like a header" in message
    assert "data.source.header" in message
    assert is_whole(events(path, columns=NAMES, header=True))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "row",
    [
        "1\t19\t5\t1606513873",
        "u1\ti1\t2020-01-01\tx",
        "7\tU1\t11/11/2019 9:05:58 AM\tN1-0 N2-1",
        "a\ta\tb\tc",
    ],
)
def test_first_row_of_data_is_named(tmp_path: Path, row: str) -> None:
    path = write(tmp_path / "u.data", f"{row}\n{row}\n{row}x\n")
    message = refused(CanonicalSource(events=[path], format="tsv"))
    assert "first row looks like data" in message
    assert "data.source.columns" in message


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("1,19", "2,20"),
        ("u1,i1", "u1,i2"),
        ("2020-01-01,5", "2020-01-02,6"),
        ("N19,U1", "N20,U2"),
        ("anna,x7", "bert,x9"),
    ],
)
def test_rename_of_a_data_row_is_refused(tmp_path: Path, first: str, then: str) -> None:
    path = write(tmp_path / "log.csv", f"{first}\n{then}\n{then}\n")
    rename = dict(zip(first.split(","), ("user_id", "item_id"), strict=True))
    message = refused(CanonicalSource(events=[path], rename=rename))
    assert "looks like data" in message
    assert "data.source.columns" in message


def test_column_numbers_written_by_pandas_are_names(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "0,1,2\nu1,i1,x\nu2,i2,y\n")
    assert ids(events(path, rename={"0": "user_id", "1": "item_id"})) == [
        ("u1", "i1"),
        ("u2", "i2"),
    ]


def test_separator_line_of_a_spreadsheet_is_not_a_row(tmp_path: Path) -> None:
    content = "\ufeffsep=;\r\n" + text(";", end="\r\n").replace(";4;", ";4,0;")
    assert is_whole(events(write(tmp_path / "log.csv", content), decimal=","))
    assert is_whole(events(write(tmp_path / "log.csv", content), separator=";", decimal=","))


def test_single_row_without_a_header_names_the_key_to_set(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "1,2\n")
    assert "data.source.columns" in refused(CanonicalSource(events=[path]))
    assert ids(events(path, columns=["user_id", "item_id"])) == [("1", "2")]


def test_header_of_numbers_is_read_with_header_yes(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "1,2\nu1,i1\nu2,i2\n")
    table = events(path, rename={"1": "user_id", "2": "item_id"}, header="yes")
    assert ids(table) == [("u1", "i1"), ("u2", "i2")]


def test_two_separate_faults_are_in_one_message(tmp_path: Path) -> None:
    path = write(tmp_path / "ratings.dat", text("::", header=False))
    message = refused(CanonicalSource(events=[path], format="csv"))
    for part in ("'::'", "data.source.separator", "data.source.columns", "first row"):
        assert part in message


def test_repeated_header_is_not_an_event(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user_id,item_id\nu,i\nuser_id,item_id\nu,j\n")
    table = events(path)
    assert bad(table) == [(2, "repeated header")]
    assert [pair for pair in ids(table) if pair[0]] == [("u", "i"), ("u", "j")]


@pytest.mark.parametrize(
    ("options", "content", "message"),
    [
        ({"header": "no"}, text(","), "set data.source.columns"),
        (
            {"columns": ["user_id", "item_id"]},
            text(",", header=False),
            "names 2 cells of events, but its rows have 4",
        ),
        (
            {"columns": [*NAMES, "x"]},
            text(",", header=False),
            "names 5 cells of events, but its rows have 4",
        ),
        ({"columns": NAMES}, "# a file\n" + text(",", header=False), "data.source.comment to '#'"),
        ({"columns": {"items": ["item_id"]}}, text(","), "data.source.items lists no file"),
        ({}, "# Directed graph\n# Nodes: 2\n" + text(","), "data.source.comment to '#'"),
        ({}, "% bip weighted\n" + text(","), "data.source.comment to '%'"),
        ({"comment": "#"}, "# only\n\n# comments\n", "only blank lines and comments"),
        ({}, text(",").replace("\n", "\r"), "lone carriage return"),
        ({}, text(",").replace("\n", "\n---,---,---,---\n", 1), "line of dashes"),
        ({}, "My export\n" + text(","), "data.source.comment skips a title"),
        (
            {"columns": NAMES, "header": "yes"},
            "My export\n" + text(","),
            "has the names of data.source.columns",
        ),
        (
            {"columns": ["user_id", "x", "y", "z"], "header": "no"},
            text(",", header=False),
            "names the cells user_id, x, y, z",
        ),
        (
            {},
            "user_id,item_id\n1,2,3\n1,2,3\n",
            "the header names 2 cells ('user_id', 'item_id'), but the rows below have 3",
        ),
    ],
)
def test_contradictions_give_one_message(
    tmp_path: Path, options: Any, content: str, message: str
) -> None:
    text_of_it = refused(CanonicalSource(events=[write(tmp_path / "log.csv", content)], **options))
    assert message in text_of_it
    assert "log.csv" in text_of_it or "lists no file" in text_of_it


def test_comments_and_blank_lines_before_and_among_rows_are_skipped(tmp_path: Path) -> None:
    lines = text(",").splitlines()
    content = '\n# begin, "here\n' + "\r\n".join(
        [lines[0], "#", *lines[1:3], "# x,y,z,w", lines[3], "# end"]
    )
    assert is_whole(events(write(tmp_path / "log.csv", content), comment="#"))


def test_index_and_empty_columns_without_name_are_skipped(tmp_path: Path) -> None:
    lines = text(",").splitlines()
    index = "\n".join(f"{'' if n == 0 else n - 1},{line}" for n, line in enumerate(lines))
    trailing = "\n".join(f"{line},," for line in lines)
    ended = "\n".join(line if n == 0 else f"{line}," for n, line in enumerate(lines))
    for content in (index, trailing, ended):
        adapter = open_source(CanonicalSource(events=[write(tmp_path / "log.csv", content)]))
        table = read_all(adapter.pieces()["events"])
        assert is_whole(table)
        assert "" not in table.column_names
        assert adapter.notes == []
    noted = "\n".join(f"{line},{'' if n == 0 else 'kept?'}" for n, line in enumerate(lines))
    adapter = open_source(CanonicalSource(events=[write(tmp_path / "log.csv", noted)]))
    assert is_whole(read_all(adapter.pieces()["events"]))
    assert adapter.notes == ["log.csv: column 5 has no name in the header and is skipped"]


def test_reasons_of_rows_of_wrong_size_stay_few(tmp_path: Path) -> None:
    rows = ["u,i,1"] * 3 + ["u,i" + ",x" * size for size in range(2, 200)]
    path = write(tmp_path / "log.csv", "user_id,item_id,value\n" + "\n".join(rows) + "\n")
    reasons = {reason for _, reason in bad(events(path))}
    assert "unreadable row: 4 cells, expected 3" in reasons
    assert "unreadable row: over 11 cells, expected 3" in reasons
    assert len(reasons) == 9


# -------------------------------------------------------------------------------- names and renames


def test_names_differ_in_case_and_blanks(tmp_path: Path) -> None:
    path = write(
        tmp_path / "log.csv", "USER_ID, Item Id ,Value,Timestamp\n" + text(",", header=False)
    )
    assert is_whole(events(path))
    pq.write_table(
        pa.table({"User_ID": ["u"], "ITEM-ID": ["i"], "Note": ["n"]}), tmp_path / "log.parquet"
    )
    table = events(str(tmp_path / "log.parquet"))
    assert ids(table) == [("u", "i")]
    assert table.column("Note").to_pylist() == ["n"]


def test_match_by_case_must_be_unique(tmp_path: Path) -> None:
    exact = events(write(tmp_path / "a.csv", "user_id,User_ID,item_id\nu,x,i\n"))
    assert ids(exact) == [("u", "i")]
    assert exact.column("User_ID").to_pylist() == ["x"]
    assert "lacks 'user_id'" in refused(
        CanonicalSource(events=[write(tmp_path / "b.csv", "USER_ID,User_ID,item_id\nu,x,i\n")])
    )
    renamed = events(
        write(tmp_path / "c.csv", "User_ID,cust,item_id\nx,u,i\n"), rename={"CUST": "user_id"}
    )
    assert ids(renamed) == [("u", "i")]
    assert renamed.column("User_ID").to_pylist() == ["x"]


def test_rename_applies_to_one_table(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", text(","))
    friends = write(tmp_path / "friends.csv", "user_id,friend\nu1,u2\n")
    own: dict[str, Any] = {"social": {"user_id": "src_user_id", "friend": "dst_user_id"}}
    found = tables(CanonicalSource(events=[log], social=[friends], rename=own))
    assert is_whole(found["events"])
    assert found["social"].column(schema.DST_USER_ID).to_pylist() == ["u2"]
    message = refused(CanonicalSource(events=[log], social=[friends], rename=own["social"]))
    assert "rename: {social: {user_id: src_user_id}}" in message


def test_two_names_of_one_column_in_two_tables_and_a_swap_are_renamed(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "film,user_id\ni1,u1\n")
    items = write(tmp_path / "items.csv", "id,title\ni1,One\n")
    found = tables(
        CanonicalSource(events=[log], items=[items], rename={"film": "item_id", "id": "item_id"})
    )
    assert ids(found["events"]) == [("u1", "i1")]
    swapped = write(tmp_path / "swap.csv", "item_id,user_id\nu1,i1\n")
    assert ids(events(swapped, rename={"item_id": "user_id", "user_id": "item_id"})) == [
        ("u1", "i1")
    ]
    both = write(tmp_path / "both.csv", "film,id,user_id\ni1,7,u1\n")
    message = refused(CanonicalSource(events=[both], rename={"film": "item_id", "id": "item_id"}))
    assert "from 'film', 'id'" in message


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"social": {"user_id": "src_user_id"}}, "does not have; it has: events"),
        (
            {"events": {"usr": "user_id"}},
            "data.source.rename.events names 'usr', which no file of events has",
        ),
        ({"usr": "user_id"}, "data.source.rename names 'usr', which no file has"),
    ],
)
def test_renames_without_a_column_are_named(tmp_path: Path, rename: Any, message: str) -> None:
    assert message in refused(
        CanonicalSource(events=[write(tmp_path / "log.csv", text(","))], rename=rename)
    )


def test_settings_with_unknown_tables_or_repeated_names_are_refused() -> None:
    with pytest.raises(
        ValidationError, match="'friends' is not a table; expected one of: events, items"
    ):
        CanonicalSource(events=["x"], rename={"friends": {"a": "b"}})
    with pytest.raises(ValidationError, match="'logs' is not a table"):
        CanonicalSource(events=["x"], columns={"logs": ["a"]})
    with pytest.raises(ValidationError, match="'user_id' is given twice"):
        CanonicalSource(events=["x"], columns=["user_id", "user_id"])
    with pytest.raises(ValidationError, match="comment: '#'"):
        CanonicalSource.model_validate({"events": ["x"], "comment": None})


def test_suggested_renames_are_those_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "CustomerID,StockCode\nu,i\n")
    message = refused(CanonicalSource(events=[path]))
    assert "{CustomerID: user_id, StockCode: item_id}" in message


def test_constants_fill_a_column_that_a_table_lacks(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", text(","))
    facts = write(tmp_path / "facts.csv", "head,tail\ni7,red\n")
    source = {
        "events": [log],
        "knowledge": [facts],
        "constants": {"knowledge": {"relation": "colour"}},
    }
    assert tables(CanonicalSource.model_validate(source))["knowledge"].column(
        "relation"
    ).to_pylist() == ["colour"]
    source["constants"] = {"events": {"value": "2"}, "knowledge": {"relation": "colour"}}
    assert "has a column 'value', and data.source.constants" in refused(
        CanonicalSource.model_validate(source)
    )


def test_settings_for_text_are_refused_if_no_file_is_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"]}), tmp_path / "log.parquet")
    path = str(tmp_path / "log.parquet")
    assert "use data.source.rename" in refused(
        CanonicalSource(events=[path], columns=["user_id", "item_id"])
    )
    assert "data.source.separator is for text files" in refused(
        CanonicalSource(events=[path], separator=";")
    )


# ------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_folders_give_columns(tmp_path: Path, kind: str) -> None:
    for event_type, day in (
        ("add%20to cart", "2020-11-27"),
        ("view", "__HIVE_DEFAULT_PARTITION__"),
    ):
        path = tmp_path / f"event_type={event_type}" / f"date={day}" / f"part-0.{kind}"
        path.parent.mkdir(parents=True)
        if kind == "parquet":
            pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"]}), path)
        else:
            path.write_text(
                "user_id,item_id\nu,i\n" if kind == "csv" else '{"user_id": "u", "item_id": "i"}\n'
            )
    table = events(str(tmp_path), rename={"date": "timestamp"})
    assert bad(table) == []
    assert table.column(schema.EVENT_TYPE).to_pylist() == ["add to cart", "view"]
    days = [
        None if day is None else str(day.date())
        for day in table.column(schema.TIMESTAMP).to_pylist()
    ]
    assert days == ["2020-11-27", None]


def test_folder_must_agree_with_the_column_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "split=train" / "x=1" / "log.csv"
    write(path, "user_id,item_id,split\nu,i,train\nu,j,train\n")
    table = events(str(tmp_path))
    assert table.column(schema.SPLIT).to_pylist() == ["train", "train"]
    assert table.column("x").to_pylist() == ["1", "1"]
    write(path, "user_id,item_id,split\nu,i,train\nu,j,test\n")
    with pytest.raises(SourceError, match="row 2 has split 'test', but its folder says 'train'"):
        events(str(tmp_path))


# ----------------------------------------------------------------------------------- other adapters


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_recbole_with_other_separators_is_read(tmp_path: Path, separator: str, mark: str) -> None:
    rows = [
        ("user_id:token", "item_id:token", "rating:float"),
        ("u1", "i1", "4"),
        ("u1", "i2", "2"),
    ]
    write(
        tmp_path / "toy" / "toy.inter", mark + "".join(separator.join(row) + "\r\n" for row in rows)
    )
    titles = f"item_id:token{separator}title:token_seq\r\ni1{separator}One\r\n"
    write(tmp_path / "toy" / "toy.item", mark + titles)
    for given in ("", separator):
        found = tables(RecBoleSource(folder=str(tmp_path / "toy"), separator=given))
        assert found["events"].column(schema.VALUE).to_pylist() == [4.0, 2.0]
        assert found["items"].column("title").to_pylist() == ["One"]
    own: dict[str, Any] = {"items": {"title": "name"}}
    assert tables(RecBoleSource(folder=str(tmp_path / "toy"), rename=own))["items"].column(
        "name"
    ).to_pylist() == ["One"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_sequences_with_marks_tabs_comments_and_separators_are_read(
    tmp_path: Path, end: str
) -> None:
    plain = end.join(["\ufeffu1 a\tb", "", "u2   c "])
    expected = [("u1", "a"), ("u1", "b"), ("u2", "c")]
    path = write(tmp_path / "seq.txt", plain)
    assert ids(tables(SequencesSource(events=path))["events"]) == expected
    path = write(tmp_path / "seq.txt", end.join(["\ufeff# users", "u1,a,b", "#", "u2,c"]))
    table = tables(SequencesSource(events=path, separator=",", comment="#"))["events"]
    assert ids(table) == expected
    assert table.column(schema.ROW).to_pylist() == [2, 2, 4]
    path = write(tmp_path / "seq.txt.gz", gzip.compress(("\ufeff" + plain[1:]).encode()))
    assert ids(tables(SequencesSource(events=path))["events"]) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("# two users\nu1 a b\n", "data.source.comment to '#'"),
        ("user_id item_id\nu1 a\n", "looks like a header"),
        ("u1,a,b\nu2,c\n", "separated by ',', set data.source.separator"),
        ("u1 a b\ru2 c\r", "lone carriage return"),
    ],
)
def test_invalid_sequence_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    assert message in refused(SequencesSource(events=write(tmp_path / "seq.txt", content)))


def test_sequences_of_hashtags_are_not_comments(tmp_path: Path) -> None:
    table = tables(SequencesSource(events=write(tmp_path / "seq.txt", "#love a b\n#hate c\n")))[
        "events"
    ]
    assert ids(table) == [("#love", "a"), ("#love", "b"), ("#hate", "c")]


def test_hetrec_with_byte_order_marks_and_other_line_ends_is_read(tmp_path: Path) -> None:
    files = {
        "user_artists.dat": "userID\tartistID\tweight\n1\t10\t5\n",
        "user_taggedartists.dat": (
            "userID\tartistID\ttagID\tday\tmonth\tyear\n1\t10\t100\t1\t4\t2009\n"
        ),
        "tags.dat": "tagID\ttagValue\n100\tmetal\n",
        "artists.dat": "id\tname\turl\tpictureURL\n10\tMoe\tx\ty\n",
        "user_friends.dat": "userID\tfriendID\n1\t2\n",
        "knowledge/kg.txt": "1\tr\t2\n",
        "knowledge/item_index2entity_id.txt": "10\t1\n",
    }
    for name, content in files.items():
        write(tmp_path / name, ("\ufeff" + content.replace("\n", "\r\n")).encode())
    found = tables(HetRecLastFmSource(folder=str(tmp_path)))
    assert found["knowledge"].column(schema.HEAD).to_pylist() == ["1"]
    assert found["items"].column("entity_id").to_pylist() == ["1"]
    assert all(bad(table) == [] for table in found.values())
