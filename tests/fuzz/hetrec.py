"""HetRec Last.fm: the bytes are one of the files, the others are good."""

from __future__ import annotations

from recsys.config import HetRecLastFmSource
from tests.fuzz.reading import place, tables_of, write

GOOD = {
    "user_artists.dat": b"userID\tartistID\tweight\r\n2\t51\t13883\r\n2\t52\t11690\r\n3\t51\t1\r\n",
    "user_taggedartists.dat": (
        b"userID\tartistID\ttagID\tday\tmonth\tyear\r\n2\t52\t13\t1\t4\t2009\r\n"
    ),
    "tags.dat": b"tagID\ttagValue\r\n13\tm\xe9tal\r\n14\t\r\n",
    "artists.dat": (
        b'id\tname\turl\tpictureURL\n51\tDuran "Duran\thttp://x\thttp://y\n52\tMo\xc3\xa9\t\t\n'
    ),
    "user_friends.dat": b"userID\tfriendID\r\n2\t3\r\n3\t3\r\n",
    "pairs.dat": b"userID\tartistID\n2\t51\n2\t99\n",
    "knowledge/kg.txt": b"1\tr\t2\n2\tr\t3\n",
    "knowledge/item_index2entity_id.txt": b"51\t1\n52\t2\n",
}
NAMES = tuple(GOOD)
SEEDS = [bytes([number]) + content for number, content in enumerate(GOOD.values())]


def run(data: bytes) -> None:
    if not data:
        return
    spoilt = NAMES[data[0] % len(NAMES)]
    for name, content in GOOD.items():
        write(f"hetrec/{name}", data[1:] if name == spoilt else content)
    folder = str(place() / "hetrec")
    tables_of(HetRecLastFmSource(folder=folder, test_pairs=f"{folder}/pairs.dat"))
