"""Files of requests and JSON of requests: valid ones are read, others are refused with file and
line.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from recsys.errors import RequestError
from recsys.serving.json_text import read_json
from recsys.serving.request_files import read_requests

ROWS: list[dict[str, Any]] = [{"user_id": "7", "k": 2}, {"user_id": "ü\u2028x", "history": ["a"]}]
LINES = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]


@pytest.mark.parametrize(
    "content",
    [
        b"\n".join(LINES),
        b"\xef\xbb\xbf" + b"\r\n".join([*LINES, b"", b""]),
        b"\n\n  \n" + b"\n \t\n".join(LINES) + b"\n",
        gzip.compress(b"\xef\xbb\xbf" + b"\n".join(LINES)),
    ],
    ids=["plain", "BOM, CRLF, empty line", "empty lines", "gzip"],
)
def test_equivalent_file_formats_give_the_same_requests(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "asked.jsonl").write_bytes(content)
    found = read_requests(str(tmp_path / "asked.jsonl"))
    assert list(found.values()) == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"user_id": "a"}\n{"user_id": 7}',
            r"line 2: user_id: got 7 \(int\), expected a string .* quotes",
        ),
        (
            b'{"user_id": "a"}\n\n{"user_id": "b", "exclude_sen": true}',
            "line 3: exclude_sen: unknown field",
        ),
        (b'{"user_id": "a"}\n{"user_id": "b"', "line 2 is not valid JSON"),
        (b'{"user_id": "a", "k": NaN}', "line 1 is not valid JSON .NaN is not a JSON number"),
        (
            b'{"user_id": "a", "attributes": {"x": 1e999}}',
            "line 1 is not valid JSON .the number 1e999 is too large",
        ),
        (b'{"user_id": "a", "k": ' + b"9" * 5000 + b"}", "line 1 is not valid JSON .*digits"),
        (
            b'{"user_id": "a", "user_id": "b"}',
            "line 1 is not valid JSON .the key 'user_id' appears twice",
        ),
        (b'{"user_id": "\\ud800"}', "line 1 is not valid JSON .a string holds half a character"),
        (b'{"user_id": "\xff"}', "line 1 is not valid JSON .byte 13 is not valid UTF-8"),
        (b'{"a":' * 100_000, "line 1 is not valid JSON .nested too deeply"),
        (b'{"user_id": "a", "context": ' + b'{"a":' * 500 + b"1" + b"}" * 501, ""),
        (
            b'[\n{"user_id": "a"}\n]',
            "line 1 is not valid JSON .*; the file holds a JSON list, expected one request a line",
        ),
        (b'[{"user_id": "a"}]', "line 1: expected an object .* expected one request a line"),
        (b"\xff\xfe{\x00}\x00", "is encoded as UTF-16; convert it to UTF-8"),
        (b"\n  \r\n", "has no requests"),
        (gzip.compress(b"x" * 100, mtime=0)[:20], "cannot be read"),
        (gzip.compress(b" " * 50_000_000), "decompresses to more than 200 times its size"),
    ],
)
def test_invalid_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_bytes(content)
    if (
        not message
    ):  # JSON of this depth is read; the recommender, which knows the columns, refuses it
        assert len(read_requests(str(path))) == 1
        return
    with pytest.raises(RequestError, match=rf"^recommend\.requests: {path}.*{message}") as found:
        read_requests(str(path))
    assert "\n" not in str(found.value) and len(str(found.value)) < 600


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="nowhere.jsonl cannot be read"):
        read_requests(str(tmp_path / "nowhere.jsonl"))


def test_json_values_are_read_unchanged() -> None:
    assert read_json(b'\xef\xbb\xbf{"a": [1, 2.5, "\\u00fc", null, true]}') == {
        "a": [1, 2.5, "ü", None, True]
    }
    assert read_json(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}, (
        "a pair of surrogates is a character"
    )
    for content in (b"", b"{", b"{}{}", b"[1,]", b"-Infinity", b'{"a": 1, "\\u0061": 2}'):
        with pytest.raises(ValueError, match="."):
            read_json(content)
