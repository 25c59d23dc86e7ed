"""The encoding of files that are not UTF-8, found from their letters."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.config import CanonicalSource
from recsys.errors import SourceError
from recsys.inspect import forms
from recsys.inspect.look import look
from recsys.sources import open_source
from recsys.sources.encodings import FoundEncoding, found_encoding

TEXTS = {
    "Die Straße führt über die Brücke, schöne Grüße": "latin-1 cp850 mac_roman",
    "L’été dernier à la forêt, garçon déjà vu": "cp1252",
    "El niño pequeño comió mañana según él": "latin-1 cp850",
    "Não há ninguém à mesa, coração e ação": "latin-1",
    "Það er gott að sjá þig í gær, þú ert frábær": "latin-1",
    "Wiedźmin, Pan Tadeusz i Książę, gorące źródło": "cp1250 iso8859_2 cp852",
    "Osudy dobrého vojáka Švejka, žluťoučký kůň": "cp1250 iso8859_2 cp852",
    "Árvíztűrő tükörfúrógép, Az ember tragédiája, hű őrző": "cp1250 iso8859_2 cp852",
    "Pădurea spânzuraţilor, Moromeţii, ţară": "cp1250 iso8859_2 cp852",
    "Çalıkuşu, İnce Memed, Şu Çılgın Türkler": "cp1254 iso8859_9 cp857",
    "Baltaragio malūnas, Žmogus ir žuvų šokis": "cp1257 iso8859_13",
    "Собачье сердце, Анна Каренина": "cp1251 koi8_r cp866",
    "Ο Χριστός ξανασταυρώνεται, Το νούμερο": "cp1253",
    "סיפור על אהבה וחושך, שלום": "cp1255",
    "موسم الهجرة إلى الشمال، رواية": "cp1256",
    "สี่แผ่นดิน ข้างหลังภาพ": "cp874",
    "ノルウェイの森、雪国": "shift_jis euc_jp",
    "围城 活着 平凡的世界": "gb18030",
    "城南舊事 孽子 台北人": "big5",
    "채식주의자 엄마를 부탁해": "euc_kr",
}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(text, encoding) for text, encodings in TEXTS.items() for encoding in encodings.split()],
)
def test_titles_are_read_as_they_were_written(text: str, encoding: str) -> None:
    data = text.encode(encoding)
    assert data.decode(found_encoding(data).name, errors="replace") == text


def _events(folder: Path) -> Path:
    rows = [f"u{n % 50},i{n * 7 % 40},{1_700_000_000 + n}" for n in range(1000)]
    path = folder / "events.csv"
    path.write_text("user,item,time\n" + "\n".join(rows) + "\n")
    return path


def _items(folder: Path, data: bytes) -> Path:
    path = folder / "items.csv"
    path.write_bytes(b"item,title\n" + b"".join(b"i%d,%s %d\n" % (n, data, n) for n in range(40)))
    return path


@pytest.mark.parametrize("encoding", ["cp1250", "cp866"])
def test_init_writes_the_encoding_and_a_text_to_check(encoding: str, tmp_path: Path) -> None:
    text = "Мастер и Маргарита" if encoding == "cp866" else "Zażółć gęślą jaźń"
    items = _items(tmp_path, text.encode(encoding))
    found = look([str(_events(tmp_path)), str(items)])
    source = found.config.data.source
    assert isinstance(source, CanonicalSource)
    assert source.encoding == {"items": encoding} and f"items have '{text} 0'" in found.draft.text()


def test_text_of_an_unknown_encoding_is_refused_with_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unknown = FoundEncoding("cp852", "▒▒", is_known=False)
    monkeypatch.setattr(forms, "found_encoding", lambda head: unknown)
    with pytest.raises(SourceError, match=r"encoding is unknown.*▒▒.*data\.source\.encoding"):
        forms.form_of(b"a,b\n1,2\n", ".csv")


def test_a_run_with_the_wrong_encoding_names_the_likely_one(tmp_path: Path) -> None:
    items = _items(tmp_path, "Zażółć gęślą jaźń".encode("cp1250"))
    config = CanonicalSource(
        events=[str(_events(tmp_path))],
        items=[str(items)],
        rename={"user": "user_id", "item": "item_id", "time": "timestamp"},
    )
    with pytest.raises(SourceError, match=r"looks like cp1250.*jaźń.*data\.source\.encoding"):
        open_source(config).check()


@pytest.mark.parametrize("text", ["Rohr Ø 20 mm ± 1", "5 µm", "it’s 20 °C", "½ litre ©", "3 m³"])
def test_single_marks_are_western(text: str) -> None:
    found = found_encoding(text.encode("cp1252"))
    assert found.is_known and text.encode("cp1252").decode(found.name) == text
