"""The command line: fixed verbs, help without slow imports, dry run, exit codes, one run per
folder.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import get_args

import pytest
import yaml

from pipelines import cli
from pipelines.cli import main
from pipelines.command_line.dry_run import plan
from pipelines.plumbing.arguments import _WORDS, Arguments, UsageError, parse
from pipelines.plumbing.progress import Progress
from pipelines.plumbing.run_folder import RunFolder, open_run, write_atomically
from pipelines.plumbing.session import keep_token_elsewhere
from pipelines.plumbing.user_message import user_message
from pipelines.stages import FOLLOW, SEARCHES, STAGES, UPDATES, VERBS
from recsys.config import Config, UpdateConfig, build_config, load_config
from recsys.errors import ArtifactError, ConfigError, DataError, Refusal
from recsys.registry.mlflow_client import client, sqlite_path, tracking_uri
from recsys.retrieval.rules import Explained
from recsys.serving.requests import Request

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "pipelines" / "configs" / "demo.yaml")
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return build_config(
        {
            "model": {"granularities": {"evolution": {"enabled": True}}},
            "run": {"dir": str(tmp_path / "run")},
        }
    )


def test_verbs_are_fixed() -> None:
    """Scripts use them: a new verb is fine, a renamed one breaks them."""
    known = (
        "init run prepare train evaluate register recommend similar update forget serve tune submit"
        " doctor promote compare pull export ui referee"
    )
    assert list(VERBS) == known.split()
    assert VERBS["run"].stages == ("prepare", "train", "evaluate", "register")


def test_every_verb_names_an_existing_function() -> None:
    for verb in (*VERBS.values(), *UPDATES.values(), *SEARCHES.values(), FOLLOW):
        module, name = verb.target.split(":")
        path = ROOT / (module.replace(".", "/") + ".py")
        takes = r"words: Sequence\[str\]" if verb.usage else r"config: Config,\s+folder: RunFolder"
        assert re.search(rf"def {name}\(\s*{takes}[,)]", path.read_text(encoding="utf-8"))
        assert set(verb.stages) <= set(STAGES)


def test_help_lists_every_verb(capsys: Captured) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)
    assert "exit codes" in shown


def test_help_is_fast() -> None:
    """Help imports no slow module."""
    program = (
        "import sys; from pipelines.cli import main; main(['--help']); print(*sys.modules,"
        " file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    heavy = {"ray", "torch", "mlflow", "pydantic", "yaml", "numpy", "pyarrow", "pandas", "polars"}
    assert "pipelines.cli" in done.stderr.split() and not heavy & set(done.stderr.split())


def test_help_of_a_verb_lists_keys_types_defaults_and_meanings(capsys: Captured) -> None:
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--train.lr" in shown and "number > 0, default 0.001" in shown
    assert "--train.schedule" in shown and "constant|cosine|linear" in shown
    assert "users in a step, on average, over all workers" in shown
    assert "data.source" in shown and "by kind: canonical, recbole" in shown
    assert "--train.loss.kind" not in shown, "recsys help train.loss has it"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_only_its_own_keys(verb: str, capsys: Captured) -> None:
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    sections = set(re.findall(r"^  --(\w+)", shown, re.MULTILINE))
    options = {word.split()[0].lstrip("-") for word, _ in VERBS[verb].options}
    assert sections - options == set(VERBS[verb].sections)
    assert all(meaning in shown for _, meaning in VERBS[verb].options)
    assert main(["help", verb]) == 0
    assert capsys.readouterr().out == shown


def test_every_one_word_option_is_in_the_help_of_a_verb(capsys: Captured) -> None:
    options = {word.split()[0].lstrip("-") for verb in VERBS.values() for word, _ in verb.options}
    assert set(_WORDS) - {"config", "dry-run", "help"} <= options
    assert main(["update", "--help"]) == 0
    assert "usage: recsys update [--config FILE] [--update.model MODEL]" in capsys.readouterr().out


def test_help_has_the_keys_of_a_separately_trained_model(capsys: Captured) -> None:
    assert main(["help", "all"]) == 0
    assert "--model.granularities.NAME.seed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "lines"), [("pull", 35), ("similar", 35), ("compare", 60), ("serve", 90), ("run", 150)]
)
def test_help_of_a_verb_is_short(verb: str, lines: int, capsys: Captured) -> None:
    assert main([verb, "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) < lines


def test_every_key_is_in_the_help_of_its_section(capsys: Captured) -> None:
    assert main(["help", "all"]) == 0
    everything = capsys.readouterr().out
    assert (
        "data.source with kind recbole" in everything
        and "--model.granularities.evolution.cell" in everything
    )
    assert main(["help", "data.source"]) == 0
    of_source = capsys.readouterr().out
    assert "data.source with kind recbole" in of_source and "--train.lr" not in of_source
    assert main(["help", "train.los"]) == 2
    assert "no section 'los'; did you mean train.loss? Expected one of" in capsys.readouterr().err
    assert main(["help", "evolution"]) == 2
    assert "did you mean model.granularities.evolution?" in capsys.readouterr().err


def test_help_has_no_python_types(capsys: Captured) -> None:
    assert main(["help", "all"]) == 0
    keys = re.findall(r"^  --\S+ +(.*?)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
    assert len(keys) > 300
    python = re.compile(r"\b(NoneType|None|bool|int|float|str|dict|Any|True|False)\b|\{'")
    assert [key for key in keys if python.search(key) and "default [NaN" not in key] == []


def test_help_names_every_field_of_requests_and_rules(capsys: Captured) -> None:
    assert main(["help", "recommend"]) == 0
    keys = dict(re.findall(r"^  --(\S+) +(.*)$", capsys.readouterr().out, re.MULTILINE))
    rules, own = {*Explained.model_fields} - {"k"}, {*Request.model_fields}
    assert rules <= {*re.findall(r"\w+", keys["recommend.rules"])}
    named = {*re.findall(r"\w+", keys["recommend.requests"])}
    assert own - rules <= named and "recommend.rules" in keys["recommend.requests"]


def test_version_is_printed(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("multigrain ")


def test_dry_run_prints_a_valid_configuration_and_the_stages(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--config", DEMO, "--run.dir", "here", "--train.lr=3e-4", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    (tmp_path / "merged.yaml").write_text(shown, encoding="utf-8")
    merged = load_config(tmp_path / "merged.yaml")
    assert (merged.train.lr, merged.run.dir) == (3e-4, "here")
    stages = [
        line.strip("# ")
        for line in shown.splitlines()
        if line.startswith("#   ") and line[4] != " "
    ]
    assert stages == ["prepare", "train", "evaluate", "register"]
    assert "writes  here/metrics.json" in shown
    assert list(tmp_path.iterdir()) == [tmp_path / "merged.yaml"], "a dry run writes nothing"


def test_verb_inside_a_ray_job_connects_to_its_cluster(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main(["run", "--config", DEMO, "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["ray"]["address"] == "auto"
    assert main(["run", "--config", DEMO, "--ray.address", "local", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["ray"]["address"] == "local"
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert main(["run", "--config", DEMO, "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["ray"]["address"] == "local"


def test_each_kind_of_update_plans_its_own_stages(config: Config) -> None:
    """UPDATES has one entry for each kind, and the configuration knows the same kinds."""
    assert get_args(UpdateConfig.model_fields["only"].annotation) == tuple(UPDATES)
    shown = plan("update", config)
    assert (
        "reads   models:/multigrain@champion" in shown and "evaluate" in shown.split("would run")[1]
    )
    config.update = UpdateConfig(only="fusion", model="models:/a/3", feedback=["f.csv"])
    shown = plan("update", config).split("would run")[1]
    assert "reads   models:/a/3" in shown and "reads   f.csv" in shown and "evaluate" not in shown


def test_options_have_two_forms_and_the_last_one_wins() -> None:
    found = parse(["--config=a.yaml", "--seed", "-1", "--train.lr=1e-3", "--run.name", "a=b"])
    assert found == Arguments(
        "a.yaml", [("seed", "-1"), ("train.lr", "1e-3"), ("run.name", "a=b")], False, False
    )


@pytest.mark.parametrize(
    "words", [["--train.lr"], ["--train.lr", "--dry-run"], ["stray"], ["--"], ["--dry-run=1"]]
)
def test_invalid_arguments_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse(words)


def _fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(verb: str, config: Config) -> None:
        raise error

    monkeypatch.setattr(cli, "_run", fail)


@pytest.mark.parametrize("verb", ["prepare", "similar"])
def test_first_line_comes_once_and_before_slow_imports(verb: str, tmp_path: Path) -> None:
    program = (
        "import sys; from pipelines import cli; from pipelines.plumbing import run_folder\n"
        "def stop(*args, **kwargs):\n"
        "    sys.exit(str([name for name in ('ray', 'torch', 'mlflow') if name in sys.modules]))\n"
        "run_folder.open_run = stop; cli.main(sys.argv[1:])"
    )
    words = [verb, "--config", DEMO, "--run.dir", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True
    )
    first, second = done.stderr.splitlines()
    assert first.startswith(f"00:00.0  {verb:<9}  starting") and second == "[]"
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ["init", "events.csv"],
        ["pull", "models:/shop/1", "DIR"],
        ["export", "models:/shop/1", "--to", "parquet", "--out", "DIR"],
    ],
)
def test_verb_without_a_run_folder_says_that_it_starts_before_slow_imports(
    words: list[str], tmp_path: Path
) -> None:
    program = (
        "import sys; from pipelines import cli; from pipelines.plumbing import progress\n"
        "def stop(verb):\n"
        "    names = [name for name in ('ray', 'torch', 'mlflow') if name in sys.modules]\n"
        "    sys.exit(f'{verb} {names}')\n"
        "progress.say_starting = stop; cli.main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == f"{words[0]} []\n"


def test_user_error_gives_one_message_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    _fail_with(monkeypatch, DataError("too many bad rows"))
    assert main(["run", "--config", DEMO]) == 2
    captured = capsys.readouterr()
    assert captured.err == "recsys: too many bad rows\n"


def test_other_error_gives_a_traceback_and_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    _fail_with(monkeypatch, ZeroDivisionError("ours"))
    assert main(["run", "--config", DEMO]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_gives_code_130(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    _fail_with(monkeypatch, KeyboardInterrupt())
    assert main(["run", "--config", DEMO]) == 130
    assert "Traceback" not in capsys.readouterr().err


class _TaskError(Exception):
    """An error as Ray wraps what a task raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"remote traceback of {cause}")
        self.cause = cause


def test_user_error_wrapped_by_ray_is_found() -> None:
    class WorkerGroup(Exception):
        worker_failures = {0: _TaskError(DataError("no rows"))}

    assert user_message(_TaskError(ConfigError("bad key"))) == "bad key"
    assert user_message(WorkerGroup()) == "no rows"
    assert user_message(ValueError("ours")) is None
    # Ray's wrapper is also an instance of the class of the cause; its text is the remote traceback
    double = type("RayTaskError", (_TaskError, DataError), {})(DataError("clean"))
    assert user_message(double) == "clean"


def test_stages_run_as_modules(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "pipelines.train",
        "--config",
        DEMO,
        "--run.dir",
        str(tmp_path),
        "--dry-run",
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        f"writes  {tmp_path}/model/" in done.stdout
        and "evaluate\n" not in done.stdout.split("would run")[1]
    )


# --------------------------------------------------------------------------------------- run folder


def test_run_folder_is_locked_during_a_run(config: Config) -> None:
    in_use = pytest.raises(ArtifactError, match=r"in use by `recsys train`, process \d+")
    with open_run(config, "train"), in_use, open_run(config, "evaluate"):
        pass
    with open_run(config, "evaluate"):
        pass  # the end of the first run releases the lock


def in_folder(config: Config, folder: Path) -> Config:
    return config.model_copy(update={"run": config.run.model_copy(update={"dir": str(folder)})})


@pytest.mark.parametrize(
    ("verb", "locks"), [("prepare", True), ("recommend", True), ("similar", False)]
)
def test_refused_command_removes_the_run_folder_that_it_made(
    config: Config, tmp_path: Path, verb: str, locks: bool
) -> None:
    new = in_folder(config, tmp_path / "runs/new")
    with pytest.raises(ConfigError), open_run(new, verb, locks=locks) as folder:
        (folder.root / "trials").mkdir()
        if verb == "recommend":
            folder.progress("the model is read before the rules are checked")
        raise ConfigError("wrong")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ConfigError), open_run(new, verb, locks=locks) as folder:
        (tmp_path / "runs/mlflow.db").touch()  # of another command
        raise ConfigError("wrong")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize(("other", "locks"), [("run", True), ("serve", False)])
def test_refused_command_keeps_the_run_folder_in_which_another_one_works(
    config: Config, tmp_path: Path, other: str, locks: bool
) -> None:
    new = in_folder(config, tmp_path / "runs/new")
    with ExitStack() as working:
        with pytest.raises(ConfigError), open_run(new, "similar", locks=False):
            folder = working.enter_context(open_run(new, other, locks=locks))
            raise ConfigError("wrong")
        folder.progress("goes on")
    assert "goes on" in (tmp_path / "runs/new/run.log").read_text()


def test_run_folder_stays_after_a_failure_of_work_and_if_it_was_there(
    config: Config, tmp_path: Path
) -> None:
    (tmp_path / "before").mkdir()
    errors: dict[str, Exception] = {
        "before": ConfigError("wrong"),
        "said": DataError("too many bad rows"),
        "wrote": DataError("too many bad rows"),
        "refused": Refusal("not better"),
        "failed": ZeroDivisionError(),
    }
    for name, error in errors.items():
        with (
            pytest.raises(type(error)),
            open_run(in_folder(config, tmp_path / name), "train") as folder,
        ):
            if name == "said":
                folder.progress("epoch 1")
            if name == "wrote":
                folder.write_json(folder.metrics, {})
            raise error
        assert (tmp_path / name / "history.jsonl").is_file(), name


@pytest.mark.parametrize(
    "words",
    [
        ["similar"],
        ["similar", "--item", "x"],
        ["recommend"],
        ["promote"],
        ["register"],
        ["forget", "--user", "nobody"],
    ],
)
def test_verb_that_is_refused_leaves_nothing(
    words: list[str], tmp_path: Path, capsys: Captured
) -> None:
    folder = tmp_path / "runs/new"
    assert main([*words, "--config", DEMO, "--run.dir", str(folder)]) == 2
    assert not folder.parent.exists() and capsys.readouterr().out == ""


@pytest.mark.parametrize("has_worked", [False, True])
def test_mlflow_run_of_a_refused_command_is_deleted(
    config: Config, tmp_path: Path, has_worked: bool
) -> None:
    from pipelines.plumbing.run_tracking import tracked

    config = in_folder(config, tmp_path / "new")
    client(tracking_uri(config.tracking, config.run.dir), writes=True)  # the store is there before
    with (
        pytest.raises(DataError),
        open_run(config, "run") as folder,
        tracked(config, folder) as tracker,
    ):
        if has_worked:
            folder.progress("epoch 1")
        raise DataError("wrong")
    found = client(tracker.uri).get_run(tracker.run_id).info
    stage = "active" if has_worked else "deleted"
    assert (found.status, found.lifecycle_stage) == ("FAILED", stage)
    assert (tmp_path / "new").exists() == has_worked


def test_refused_command_removes_the_store_that_it_made(config: Config, tmp_path: Path) -> None:
    from pipelines.plumbing.run_tracking import tracked

    config = in_folder(config, tmp_path / "runs/new")
    with pytest.raises(DataError), open_run(config, "run") as folder, tracked(config, folder):
        raise DataError("wrong")
    assert list(tmp_path.iterdir()) == []
    with open_run(config, "run") as folder, tracked(config, folder) as tracker:
        folder.progress("the same process uses the new store, not the removed one")
    path = sqlite_path(tracker.uri)
    assert path is not None
    with closing(sqlite3.connect(path)) as store:
        assert store.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]


def test_configuration_and_its_changes_are_recorded(config: Config, capsys: Captured) -> None:
    with open_run(config, "prepare") as folder:
        assert load_config(folder.config) == config
    changed = config.model_copy(update={"train": config.train.model_copy(update={"lr": 0.5})})
    with open_run(changed, "train") as folder:
        assert load_config(folder.config) == changed
        lines = [
            json.loads(line) for line in (folder.root / "history.jsonl").read_text().splitlines()
        ]
    assert [line["verb"] for line in lines] == ["prepare", "train"]
    assert lines[0]["changed"] == {} and lines[1]["changed"] == {
        "train.lr": {"before": 0.001, "after": 0.5}
    }
    assert "train.lr: 0.001 → 0.5" in capsys.readouterr().out


def test_settings_without_effect_on_data_and_model_are_no_difference(
    config: Config, capsys: Captured
) -> None:
    with open_run(
        config.model_copy(update={"run": config.run.model_copy(update={"budget": "5m"})}), "prepare"
    ):
        pass
    recommend = config.recommend.model_copy(update={"k": 3})
    with open_run(config.model_copy(update={"recommend": recommend}), "recommend") as folder:
        lines = [
            json.loads(line) for line in (folder.root / "history.jsonl").read_text().splitlines()
        ]
    assert "differs" not in capsys.readouterr().out
    assert set(lines[1]["changed"]) == {"run.budget", "recommend.k"}, "the history records them"


def test_stages_after_training_do_not_overwrite_the_configuration(config: Config) -> None:
    with open_run(config, "train"):
        pass
    other = config.model_copy(update={"recommend": config.recommend.model_copy(update={"k": 3})})
    for verb in ("register", "recommend"):
        with open_run(other, verb) as folder:
            assert load_config(folder.config) == config


def test_credentials_are_never_written(config: Config, capsys: Captured) -> None:
    for password in ("first", "se@co/nd"):
        config.tracking.uri = f"postgresql://me:{password}@host/db"
        with open_run(config, "train") as folder:
            written = folder.config.read_text()
    assert written.startswith("# secrets are shown as ***")
    assert load_config(folder.config).tracking.uri == "postgresql://***@host/db"
    everything = [path.read_text() for path in folder.root.iterdir()]
    shown = capsys.readouterr().out + plan("register", config)
    assert not any("://me" in text for text in (*everything, shown)) and "differs" not in shown


def test_token_of_ray_is_in_a_private_file_outside_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    keep_token_elsewhere()
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600 and token.parent.stat().st_mode & 0o777 == 0o700
    assert len(token.read_text()) == 64
    keep_token_elsewhere()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(token), "a path that is already set stays"


def test_failed_atomic_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "old")

    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_damaged_json_file_gives_a_message_with_a_cure(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, Progress(None))
    folder.metrics.write_text("{")
    with pytest.raises(ArtifactError, match=r"metrics\.json is damaged .*run `recsys evaluate`"):
        folder.read_json(folder.metrics, "run `recsys evaluate`")


def test_progress_lines_are_equal_in_the_log_file(tmp_path: Path, capsys: Captured) -> None:
    progress = Progress(sys.stdout, tmp_path / "run.log")
    with progress.stage("train"):
        progress("epoch 1\nepoch 2")
    shown = capsys.readouterr().out
    assert shown == (tmp_path / "run.log").read_text()
    assert [line.split("  ", 1)[1] for line in shown.splitlines()[:2]] == [
        "train      epoch 1",
        "train      epoch 2",
    ]
    assert "\x1b" not in shown and "\r" not in shown


KNOBS = ("text", "evolution", "collaborative", "social", "knowledge", "stratum", "profile", "media")


def test_demo_configuration_uses_every_granularity_that_its_data_support() -> None:
    demo = yaml.safe_load(Path(DEMO).read_text(encoding="utf-8"))
    source, granularities = demo["data"]["source"], set(demo["model"]["granularities"])
    fed = {
        {"text": "behaviour"}.get(knob, knob)
        for knob, value in source.items()
        if knob in KNOBS and value
    }
    assert granularities == fed | {"item_cf"}


def test_new_section_model_is_one_line_of_changes(tmp_path: Path) -> None:
    base = [("run.dir", str(tmp_path)), ("data.source.kind", "synthetic")]
    given = ("model.granularities.als.enabled", "true")
    for more in ([], [given], [given, ("model.width", "32")]):
        with open_run(load_config(None, [*base, *more]), "train"):
            pass
    log = (tmp_path / "run.log").read_text()
    assert log.count("model: not given → given") == 1 and "model.width: 64 → 32" in log
    assert log.count("model.granularities.als") == 0
