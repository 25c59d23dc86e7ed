"""Secrets are not saved or shown: run folder, MLflow, console, dry run, errors and job package."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import cli
from pipelines.plumbing.job_package import job_config
from pipelines.plumbing.run_folder import open_run, write_atomically
from pipelines.plumbing.session import keep_token_private
from recsys.config import Config, build_config, dump_config, redact, redacted
from recsys.config.redaction import is_secret_name, redacted_tree
from recsys.errors import ConfigError
from recsys.registry.markdown import shown_as_text
from recsys.registry.tracking import Tracker
from tests.handmade import small_world

WORD = "s3cr3tW0rd"
SECRETS = [
    f"postgresql://me:{WORD}@host/db",
    f"mysql+pymysql://u:a@{WORD}/x@h:3306/d?charset=utf8",
    f"https://{WORD}@github.com/x",
    f"redis://:{WORD}@h:6379/0",
    f"oracle://u:{WORD}'q@h",
    f"mssql+pyodbc:///?odbc_connect=Driver%3D%7BODBC%7D%3BUID%3Dme%3BPWD%3D{WORD}%3BServer%3Dx",
    f"DRIVER%3d%7bx%7d%3bpwd%3d{WORD}",
    f"Driver={{ODBC Driver 17 for SQL Server}};Server=h;UID=me;PWD={WORD};Encrypt=yes",
    f"DRIVER=x;PWD={{a;{WORD}}};x=1",
    f"DRIVER=x;PWD=se {WORD};x=1",
    f"PWD={WORD}",
    f"host=h user=u password='a b {WORD}' dbname=d",
    f"jdbc:postgresql://h/db?user=u&password={WORD}",
    f"https://h/a?sig={WORD}&se=1",
    f"https://h/a?x=1&key={WORD}",
    f"https://h/?passwd={WORD}",
    f"https://h/?pass={WORD}",
    f"https://h?AWSAccessKeyId={WORD}",
    f"https://h?X-Amz-Security-Token={WORD}",
    f"X-Amz-Credential={WORD}%2F2020",
    f"gs://b/k?access_token={WORD}",
    f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={WORD}==;EndpointSuffix=core",
    f"SharedAccessSignature=sv=2020&sig={WORD}",
    f"Authorization: Bearer {WORD}",
    f"{{'Authorization': 'Basic {WORD}=='}}",
    f"authorization: Token {WORD}",
    f"Bearer {WORD}abc",
    f"aws_secret_access_key = {WORD}/ab+c",
    f"PGPASSWORD={WORD} psql",
    f"dbpass={WORD}",
    f"accessToken={WORD}",
    f'{{"password": "{WORD}"}}',
    f'"api_key": "{WORD}"',
    f"{{user: a, pwd: {WORD}}}",
    f"x: 1\ndb:\n  db_passwd: '{WORD}'\n",
    f"x-api-key: {WORD}",
    f"--tracking.token {WORD}",
    f"--password={WORD}",
    f"client_secret={WORD}",
    f"-----BEGIN RSA PRIVATE KEY-----\n{WORD}\n-----END RSA PRIVATE KEY-----",
    f"got 'postgresql://me:{WORD}@h/d', expected another",
]
PLAIN = [
    "max_tokens: 128",
    "token_env: TOKEN_NAME",
    "--serve.token_env NAME",
    "data.source.path=/a/b",
    "sort key=4, partition_key=x, primary_key = id",
    "unknown key: foo; valid keys here: a, b",
    (
        "bypass=1 compass=3 passes: 3 of 4 signal=4 design=x keyword=x tokenizer=bert monkey=banana"
        " secretary=bob"
    ),
    "s3://bucket/me@home:1",
    "abfss://container@account.dfs.core.windows.net/x",
    "models:/x@champion me@host.com file:///a/b@c",
    "http://h:5000/#/experiments/1",
    "serve.token_env: the environment variable X has 3 characters, expected a token of 16 or more",
    "give them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE)",
    "https://h/a?page_token_size=3",
    "token: null",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secret_is_found_in_every_form(text: str) -> None:
    found = redact(text)
    assert WORD not in found and "***" in found
    assert redact(found) == found, "redacted text stays unchanged"


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_names_and_uris_stay(text: str) -> None:
    assert redact(text) == text


def test_known_forms_of_keys_are_found() -> None:
    jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.SflKxwRJSM"
    for key in (
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1" * 18,
        "hf_" + "aB" * 17,
        jwt,
        "dapi" + "0a" * 16,
    ):
        assert redact(f"got {key} there") == "got *** there"


def test_values_of_secret_variables_are_found_at_any_position(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "horse-battery-9")
    monkeypatch.setenv("SERVE_MAX_TOKENS", "4096000")
    monkeypatch.setenv("PWD", "/no/such/folder")  # the working folder of a shell
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/proc/self/environ")
    assert (
        redact("in /no/such/folder and /proc/self/environ")
        == "in /no/such/folder and /proc/self/environ"
    )
    assert redact("nobody takes horse-battery-9 for 4096000") == "nobody takes *** for 4096000"


def test_secret_key_of_a_tree_hides_its_text() -> None:
    assert redacted_tree(
        {"db": {"password": "x", "name": "y", "key": "z", "tokens": ["t"]}, "n": 3}
    ) == {
        "db": {"password": "***", "name": "y", "key": "z", "tokens": ["t"]},
        "n": 3,
    }
    assert is_secret_name("A_SECRET") and not is_secret_name("SECRET_NAME")


def test_long_texts_are_redacted_fast() -> None:
    """Linear time: 200 KB of the worst text for the patterns, faster than any quadratic search."""
    for text in (
        "a" * 200_000 + "token",
        "x://" * 20_000,
        "password" * 20_000,
        "'" * 30_000 + "password:",
    ):
        redact(text)


# -------------------------------------------------------------------------------------- all outputs


def secret_config(folder: Path) -> Config:
    source = {"kind": "canonical", "events": [f"https://u:{WORD}@host/events.csv?sig={WORD}"]}
    return build_config(
        {
            "run": {"dir": str(folder / "run")},
            "data": {"source": source},
            "model": {"granularities": {"evolution": {"enabled": True}}},
            "registry": {"intended_use": f"for the owner of host=h;PWD={WORD};"},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        }
    )


def fails(error: Exception) -> Callable[..., int]:
    def command(words: Any) -> int:
        raise error

    return command


def test_run_saves_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = secret_config(tmp_path)
    text = f"cannot connect to mssql://me:{WORD}@host (Authorization: Bearer {WORD})"
    with (
        open_run(config, "run") as folder,
        pytest.raises(OSError),
        Tracker(config, folder=folder.root) as tracker,
    ):
        folder.progress(text)
        folder.progress.plain(text)
        tracker.log_params(
            {"extra": {"password": WORD, "uri": f"mysql://a:{WORD}@h"}, "text": text}
        )
        tracker.set_tags({"note": text})
        tracker.log_dataset(small_world(tmp_path / "dataset").manifest, f"https://h/d?token={WORD}")
        raise OSError(text)
    printed = capsys.readouterr()
    assert WORD not in printed.out + printed.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "history.jsonl", "run.log", "mlflow.db"} <= {path.name for path in files}
    assert [path for path in files if WORD.encode() in path.read_bytes()] == []


def test_command_shows_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"cannot connect to mssql://me:{WORD}@host (Authorization: Bearer {WORD})"
    for error in (ConfigError(text), RuntimeError(text)):  # a message, and a traceback
        monkeypatch.setattr(cli, "_command", fails(error))
        assert cli.main([]) in (1, 2)
    monkeypatch.undo()
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(secret_config(tmp_path).model_dump(mode="json")))
    cli.main(["evaluate", "--config", str(path), "--dry-run"])
    printed = capsys.readouterr()
    assert (
        "cannot connect to mssql://***@host" in printed.err
        and WORD not in printed.out + printed.err
    )


@pytest.mark.parametrize("key", ["registry.intended_use", "data.source.events"])
def test_job_package_has_no_secret(tmp_path: Path, key: str) -> None:
    tree = secret_config(tmp_path).model_dump(mode="json")
    other = {
        "registry.intended_use": ("data", "source"),
        "data.source.events": ("registry", "intended_use"),
    }[key]
    del tree[other[0]][other[1]]
    with pytest.raises(ConfigError, match=f"{key}: .*must not be sent to a cluster") as error:
        job_config(tree)
    assert WORD not in str(error.value)


def test_configuration_without_secrets_stays_the_same(tmp_path: Path) -> None:
    config = build_config({"model": {"granularities": {"evolution": {"enabled": True}}}})
    assert redacted(config) == config and dump_config(redacted(config)) == dump_config(config)


# -------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_renamed_files_have_the_mode_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "metrics.json", "{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "metrics.json").stat().st_mode) == mode
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_only_the_owner_can_read_the_token_of_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray/auth_token"
    keep_token_private()
    made = token.read_text()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(made) >= 32
    token.chmod(0o644)  # as Ray writes it
    keep_token_private()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and token.read_text() == made
    token.unlink()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    keep_token_private()
    assert not token.exists()


def test_model_card_has_no_html() -> None:
    card = shown_as_text(f"# <script>alert(1)</script> & co, https://u:{WORD}@h")
    assert card == "# &lt;script&gt;alert(1)&lt;/script&gt; &amp; co, https://***@h"
    assert shown_as_text(card) == card
