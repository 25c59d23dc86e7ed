"""A shop's first month: the commands of docs/first-month.md, day by day, against a real server."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.plumbing.arguments import parse
from pipelines.stages import VERBS
from recsys.bundle.layout import Bundle
from recsys.config import build_config, parse_value, parse_yaml, set_path
from recsys.data.dataset import PreparedDataset
from recsys.privacy.proof import is_signed
from recsys.serving.bundles import read_bundle

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/first-month.md").read_text(encoding="utf-8")
CUSTOMER = "customer-495"
_WAIT = 900.0  # seconds for one command on a busy machine


@dataclass(frozen=True)
class Step:
    """A command of the page, with the output lines that the page shows."""

    command: str
    shown: tuple[str, ...]


def parts() -> dict[str, list[Step]]:
    """Heading → its commands; headings without commands are left out."""
    found: dict[str, list[Step]] = {}
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
            for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, *shown = step.splitlines()
                found.setdefault(heading, []).append(
                    Step(command, tuple(line for line in shown if line != "…"))
                )
    return found


def configuration() -> str:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    return str(text)


def without_numbers(line: str) -> str:
    """Mask the figures of a line that differ between machines; keep versions and exit codes.

    >>> without_numbers("00:01.2  promote    shop version 1 is champion now: 0.25")
    '#  promote    shop version 1 is champion now: #'
    """
    return re.sub(r"\d[\d.,:]*[.,:]\d+|(?<!version )(?<!code )(?<!shop/)\b\d{2,}\b", "#", line)


class Shop:
    """A shell in the shop's folder, and queries of its files and its server."""

    def __init__(self, folder: Path, shell: subprocess.Popen[str], port: int) -> None:
        self.folder, self.shell, self.port, self.number = folder, shell, port, 0

    def run(self, step: Step) -> str:
        """Run a command of the page and return its output; it must end with 0 and print what the
        page shows."""
        self.number += 1
        output_file, code = (self.folder / f"{name}-{self.number}" for name in ("output", "code"))
        command = step.command.replace("8000", str(self.port))
        assert self.shell.stdin is not None
        self.shell.stdin.write(
            f"{{ {command}\n}} > {output_file} 2>&1; echo $? > {code}.writing;"
            f" mv {code}.writing {code}\n"
        )
        self.shell.stdin.flush()
        deadline = time.monotonic() + _WAIT
        while not code.exists():
            assert time.monotonic() < deadline and self.shell.poll() is None, (
                f"{command}\n{output_file.read_text()}"
            )
            time.sleep(0.1)
        output = output_file.read_text(encoding="utf-8")
        assert code.read_text().strip() == "0", f"{command}\n{output}\n{self.log()}"
        printed = {without_numbers(line) for line in output.splitlines()}
        for line in step.shown:
            assert without_numbers(line) in printed, (
                f"{command}\nshows on the page: {line}\n{output}"
            )
        return output

    def log(self) -> str:
        path = self.folder / "serve.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def bundle(self, day: str) -> Bundle:
        return read_bundle(self.folder / "runs" / day / "bundle")

    def events(self, day: str) -> int:
        return int(self.bundle(day).info.dataset["counts"]["events"])

    def rows(self, *days: int) -> int:
        """Rows in the files of these days of March."""
        return sum(len(self.table(f"days/2026-03-{day:02d}.csv")) for day in days)

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.folder / "shop" / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def promotion(self, day: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            (self.folder / "runs" / day / "promotion.json").read_text(encoding="utf-8")
        )
        return found


def same(one: str, other: str) -> bool:
    """Whether two answers have the same items with the same scores, up to the last digits of
    float32."""
    left, right = json.loads(one), json.loads(other)
    return bool(
        left["item_ids"] == right["item_ids"]
        and left["scores"] == pytest.approx(right["scores"], rel=1e-5)
    )


# --------------------------------------------------------------------------- what each day promises

Outputs = dict[str, list[str]]  # heading → what its commands printed


def first_model(shop: Shop, outputs: Outputs, now: list[str]) -> None:
    assert shop.events("03-14") == shop.rows(*range(1, 15))
    metrics = json.loads((shop.folder / "runs/03-14/metrics.json").read_text(encoding="utf-8"))
    assert all(found["low"] > 0 for found in metrics["comparison"]["against"].values())
    assert shop.promotion("03-14")["decision"] == "promoted"


def rules(shop: Shop, outputs: Outputs, now: list[str]) -> None:
    plain, ruled = json.loads(now[3]), json.loads(now[4])
    items = {row["item_id"]: row for row in shop.table("items.csv")}
    allowed = {
        item
        for item, row in items.items()
        if row["category"] == "Lighting" and float(row["price"]) < 20 and row["brand"] != "Acme"
    }
    had = {
        row["item_id"]
        for day in range(1, 15)
        for row in shop.table(f"days/2026-03-{day:02d}.csv")
        if row["user_id"] == CUSTOMER
    }
    assert (
        len(plain["item_ids"]) == 10
        and not had & set(plain["item_ids"])
        and plain["source"] == "model"
    )
    assert (
        set(ruled["item_ids"]) <= allowed - had
        and len(ruled["item_ids"]) == min(10, len(allowed - had)) > 0
    )
    assert not set(plain["item_ids"]) <= allowed, "the rule has excluded something"
    for place, (score, explained) in enumerate(
        zip(ruled["scores"], ruled["explanations"], strict=True)
    ):
        assert sum(shares[place] for shares in ruled["shares"].values()) == pytest.approx(
            score, rel=1e-4
        )
        assert explained["sentence"] and {one["item_id"] for one in explained["items"]} <= had


def sold_out(shop: Shop, outputs: Outputs, now: list[str]) -> None:
    similar, before, reply, after = (json.loads(answer) for answer in now)
    assert len(similar["item_ids"]) == 3 and "p-062" not in similar["item_ids"]
    assert len(before["item_ids"]) == 150 and "p-015" in before["item_ids"]
    assert reply["out"] == 1 and reply["unknown"] == 0
    assert after["item_ids"] == [item for item in before["item_ids"] if item != "p-015"]


def a_day_more(shop: Shop, outputs: Outputs, now: list[str]) -> None:
    assert shop.events("03-15") == shop.events("03-14") + shop.rows(15)
    dataset = PreparedDataset(str(shop.folder / "runs/03-15/dataset"))
    assert [file["name"] for file in dataset.manifest.store["readings"][-1]["files"]] == [
        "2026-03-15.csv"
    ]
    drift = shop.bundle("03-15").info.extra["drift"]
    assert (
        drift["events"] == shop.rows(15)
        and drift["unknown_items"] == 0
        and drift["popularity_shift"] < 0.25
    )
    record = shop.promotion("03-15")
    assert record["decision"] == "promoted" and all(check["passed"] for check in record["checks"])
    assert {"drift", "not_worse", "segments", "baselines"} <= {
        check["name"] for check in record["checks"]
    }
    answer = json.loads(now[-1])
    assert len(answer["item_ids"]) == 10 and "p-015" not in answer["item_ids"], (
        "the stock stays when a new version is served"
    )


def other_ids(shop: Shop, outputs: Outputs, now: list[str]) -> None:
    assert (
        "unknown item" in now[1] and "2026-03-16.csv, row 2" in now[1] and "Traceback" not in now[1]
    )
    assert (
        not (shop.folder / "runs/03-16/dataset").exists()
        and not (shop.folder / "runs/03-16/bundle").exists()
    )
    quarantine = pq.read_table(shop.folder / "runs/03-16/dataset.quarantine/events.parquet")
    assert quarantine.num_rows == sum(
        row["item_id"].startswith("SKU") for row in shop.table("days/2026-03-16.csv")
    )
    assert same(now[-1], outputs["15 March: one more day"][-1]), "the champion keeps serving"


def bots(shop: Shop, outputs: Outputs, now: list[str]) -> None:
    drift = shop.bundle("03-17").info.extra["drift"]
    assert drift["popularity_shift"] > 0.5 and drift["unknown_items"] == 0
    record = shop.promotion("03-17")
    assert record["decision"] == "refused" and record["champion"]["version"] == "2"
    assert any(check["name"] == "drift" and not check["passed"] for check in record["checks"])
    assert "Traceback" not in now[2] and same(now[-1], outputs["15 March: one more day"][-1])


def corrected(shop: Shop, outputs: Outputs, now: list[str]) -> None:
    assert shop.events("03-18") == shop.events("03-15") + shop.rows(16, 17, 18)
    bundle = shop.bundle("03-18")
    assert (
        bundle.info.extra["parent"]["uri"] == "models:/shop/2"
        and bundle.info.extra["drift"]["popularity_shift"] < 0.25
    )
    assert bundle.info.extra["config"]["train"]["lr"] == 0.01, (
        "an update does not shorten the next one"
    )
    record = shop.promotion("03-18")
    assert (
        record["decision"] == "promoted"
        and record["comparison"]["low"] > -0.05 * record["comparison"]["champion"]
    )
    assert not same(now[-1], outputs["15 March: one more day"][-1]), (
        "three days have changed the list"
    )


def back_again(shop: Shop, outputs: Outputs, now: list[str]) -> None:
    assert same(now[-1], outputs["15 March: one more day"][-1]), (
        "the former version gives the same answer as before"
    )
    assert shop.promotion("03-18")["decision"] == "rolled back"


def forgotten(shop: Shop, outputs: Outputs, now: list[str]) -> None:
    assert "nothing found" in now[1] and CUSTOMER not in now[1]
    (path,) = (shop.folder / "runs/03-15/forgotten").glob("proof-*.json")
    proof = json.loads(path.read_text(encoding="utf-8"))
    assert (
        is_signed(proof)
        and proof["result"] == "nothing found"
        and proof["looked_for"]["stretches_of_history"] > 0
    )
    assert proof["source_files_with_them"], "source files belong to the shop and are only listed"
    searched = {one["path"] for one in proof["searched"]}
    assert {"dataset/manifest.json", "bundle/users.parquet"} <= searched and any(
        "mlflow.db" in one for one in searched
    )
    assert holding(shop.folder / "runs", CUSTOMER) == []
    assert CUSTOMER not in shop.bundle("03-15").user_ids
    assert json.loads(now[-1])["source"] == "popularity", "the server has no data of this user"


def life_continues(shop: Shop, outputs: Outputs, now: list[str]) -> None:
    days = [row for day in range(16, 21) for row in shop.table(f"days/2026-03-{day:02d}.csv")]
    num_of_customer = sum(row["user_id"] == CUSTOMER for row in days)
    assert num_of_customer > 0, "the files name the customer"
    assert shop.events("03-20") == shop.events("03-15") + len(days) - num_of_customer
    assert holding(shop.folder / "runs", CUSTOMER) == []
    assert shop.promotion("03-20")["decision"] == "promoted"


CHECKS: dict[str, Callable[[Shop, Outputs, list[str]], None]] = {
    "14 March: the first model": first_model,
    "14 March, evening: requests with rules": rules,
    "14 March, night: sold out": sold_out,
    "15 March: one more day": a_day_more,
    "16 March: half of the ids are from another system": other_ids,
    "17 March: bots": bots,
    "18 March: the corrected days": corrected,
    "18 March, evening: rollback": back_again,
    "19 March: a customer wants to be forgotten": forgotten,
    "20 March: back to normal": life_continues,
}


def holding(root: Path, word: str) -> list[str]:
    """Files that contain a word, found without the code of the proof: in bytes and in printed rows
    of tables."""
    found = []
    for path in sorted(one for one in root.rglob("*") if one.is_file()):
        text = path.read_bytes()
        if path.suffix == ".parquet":
            text += str(pq.read_table(path).to_pydict()).encode()
        elif path.suffix == ".arrow":
            with pa.ipc.open_file(str(path)) as reader:
                text += str(reader.read_all().to_pydict()).encode()
        if word.encode() in text:
            found.append(path.relative_to(root).as_posix())
    return found


@contextmanager
def shop_in(folder: Path) -> Iterator[Shop]:
    """Open a shell; end all processes that the story started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    private = {name: str(folder / name.lower()) for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    environment = {
        **os.environ,
        **private,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    shell = subprocess.Popen(
        ["bash", "--norc"],
        stdin=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )
    try:
        yield Shop(folder, shell, port)
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait()


def test_every_section_of_the_page_has_a_check_and_valid_commands() -> None:
    """Every section of the page has a check, and every option exists in this release."""
    assert list(parts()) == list(CHECKS)
    commands = [
        step.command
        for steps in parts().values()
        for step in steps
        if step.command.startswith("recsys ")
    ]
    assert {command.split()[1] for command in commands} == {
        "run",
        "promote",
        "serve",
        "update",
        "forget",
    }
    for command in commands:
        _, verb, *words = shlex.split(re.split(r"; | > ", command)[0])
        assert verb in VERBS
        tree: Any = parse_yaml(configuration().encode(), "the page")
        for dotted, text in parse(words).overrides:
            set_path(tree, dotted, parse_value(dotted, text))
        build_config(tree)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_first_month_of_a_shop_runs_as_the_page_says(tmp_path: Path) -> None:
    """Train, serve, rules, stock, update, two damaged days, a rollback, and a customer who is
    forgotten."""
    (tmp_path / "shop.yaml").write_text(configuration(), encoding="utf-8")
    outputs: Outputs = {}
    with shop_in(tmp_path) as shop:
        for heading, steps in parts().items():
            outputs[heading] = [shop.run(step) for step in steps]
            CHECKS[heading](shop, outputs, outputs[heading])
