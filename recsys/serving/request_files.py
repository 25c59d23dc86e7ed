"""Files of requests: JSON lines with one request per line."""

from __future__ import annotations

import gzip
import io
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from recsys.errors import RequestError
from recsys.serving.json_text import read_json
from recsys.serving.request_parsing import parse_request
from recsys.storage.filesystems import read_bytes
from recsys.storage.uris import is_remote

KEY: Final = "recommend.requests"
_GZIP: Final = b"\x1f\x8b"
_UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
_MAX_BYTES: Final = 4 << 30
_PIECE: Final = 1 << 20


def read_requests(path: str, key: str = KEY) -> dict[str, dict[str, Any]]:
    """The requests of a file of JSON lines in UTF-8, plain or compressed with gzip, by the place
    (file and line) that messages name. ``key`` is the setting that names the file.

    A byte-order mark, CRLF line ends and empty lines are ignored. Ids are strings, as over HTTP.

    Raises
    ------
    RequestError
        The file does not exist or is empty, or a line is not a request; names the file and line.
    """
    found: dict[str, dict[str, Any]] = {}
    # not ``splitlines``, which also breaks lines at a lone carriage return
    for number, line in enumerate(_content(path, key).split(b"\n"), start=1):
        line = line.strip(b" \t\r")
        if not line:
            continue
        place = f"{key}: {path}, line {number}"
        try:
            row = read_json(line)
            # parsed here only for the message with the line; the caller parses it again
            parse_request(row, place)
        except ValueError as error:
            hint = (
                "; the file holds a JSON list, expected one request a line"
                if number == 1 and line == b"["
                else ""
            )
            raise RequestError(f"{place} is not valid JSON ({error}){hint}") from None
        except RequestError as error:
            hint = "; expected one request a line" if isinstance(row, list) else ""
            raise RequestError(f"{error}{hint}") from None
        found[place] = row
    if not found:
        raise RequestError(
            f'{key}: {path} has no requests; expected JSON lines such as {{"user_id": "7"}}'
        )
    return found


def _content(path: str, key: str) -> bytes:
    try:
        content = read_bytes(path) if is_remote(path) else Path(path).expanduser().read_bytes()
        if content.startswith(_GZIP):
            content = b"".join(_unpacked(path, content, key))
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(
            f"{key}: {path} cannot be read ({error}); give a file of JSON lines"
        ) from None
    if content.startswith(_UTF16):
        raise RequestError(f"{key}: {path} is encoded as UTF-16; convert it to UTF-8")
    return content.removeprefix(BOM_UTF8)


def _unpacked(path: str, content: bytes, key: str) -> Iterator[bytes]:
    """Decompress gzip in pieces, up to the largest size of a request file."""
    total = 0
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        while piece := file.read(_PIECE):
            total += len(piece)
            # a small file may decompress to all of the memory
            if total > max(_PIECE, min(_MAX_BYTES, 200 * len(content))):
                raise RequestError(
                    f"{key}: {path} decompresses to more than 200 times its size; give the"
                    " decompressed file"
                )
            yield piece
