"""YAML of users: content that plain YAML loses or inflates silently is an error with file, key and
line.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from recsys.config import Config, build_config, dump_config, load_config
from recsys.config.yaml_reader import MAX_BYTES, Loader, parse_yaml
from recsys.errors import ConfigError

MODEL = "model: {granularities: {evolution: {enabled: true}}}\n"


def _load(text: str | bytes, tmp_path: Path) -> Config:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path)


def _refused(text: str | bytes, tmp_path: Path, *expected: str) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        _load(text, tmp_path)
    message = str(caught.value)
    assert "mine.yaml" in message and all(part in message for part in expected), message
    assert time.monotonic() - started < 30, "the limit must be found before the expansion"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "train:\n  epochs: 1\n  lr: 0.1\n  epochs: 2\n",
            ["train.epochs occurs twice", "line 3", "line 5"],
        ),
        (
            "train: {epochs: 1}\ndata: {}\ntrain: {lr: 1}\n",
            ["train occurs twice", "line 2", "line 4"],
        ),
        ("data:\n  split:\n    kind: ratio\n    kind: ratio\n", ["data.split.kind occurs twice"]),
        ("update: {rewards: {'1': 2, 1: 3, 1.0: 4}}\n", ["update.rewards.1.0 occurs twice"]),
        ("train:\n  <<: {epochs: 7}\n  lr: 1\n  lr: 2\n", ["train.lr occurs twice"]),
    ],
)
def test_repeated_key_gives_a_message_with_both_lines(
    text: str, expected: list[str], tmp_path: Path
) -> None:
    _refused(MODEL + text, tmp_path, *expected)


def test_search_space_refuses_a_repeated_key_as_well() -> None:
    with pytest.raises(ConfigError, match=r"train\.lr occurs twice, in line 1 and in line 2"):
        parse_yaml("train.lr: 1\ntrain.lr: 2\n", "space.yaml", Loader)


def test_merged_keys_are_not_repeated_keys_and_own_keys_win(tmp_path: Path) -> None:
    config = _load(MODEL + "train:\n  <<: {epochs: 7, lr: 0.5}\n  lr: 0.25\n", tmp_path)
    assert (config.train.epochs, config.train.lr) == (7, 0.25)
    shared = "tune: {fusion: &all {settings: 9}}\n"
    again = _load(MODEL + shared + "update: {rewards: {a: 1}}\n", tmp_path)
    assert again.tune.fusion.settings == 9


def _bomb(width: int, depth: int) -> str:
    lines = ["a0: &a0 [" + ", ".join(["x"] * width) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * width) + "]" for n in range(1, depth)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        _bomb(10, 12),
        _bomb(2, 60),
        "a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 1000) + "]\n",
        "a: &a {k: 1}\n"
        + "".join(
            f"b{n}: &b{n} {{l: *{'a' if not n else f'b{n - 1}'}, r: *a}}\n" for n in range(40)
        )
        + "c: ["
        + ", ".join(["*b39"] * 2000)
        + "]\n",
    ],
)
def test_aliases_are_bounded_before_they_are_expanded(text: str, tmp_path: Path) -> None:
    _refused(MODEL + text, tmp_path, "aliases", "expanded")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &a [*a]\n", "contains itself"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "nested more than"),
        ("".join(" " * n + "a:\n" for n in range(200)), "nested more than"),
        ("# " + "x" * MAX_BYTES, "expected at most"),
        ("train:\n\tepochs: 1\n", "takes no tabs"),
        ("---\nseed: 1\n", "single document"),
        ("data: {split: {kind: temporal, test_from: 2020-13-45}}\n", "'2020-13-45'"),
        ("run: {name: \0}\n", "special characters"),
        ("data: !!python/object/apply:os.system [x]\n", "constructor"),
    ],
)
def test_other_content_than_a_configuration_gives_one_message(
    text: str, expected: str, tmp_path: Path
) -> None:
    _refused(MODEL + text, tmp_path, expected)


def test_file_of_another_encoding_gives_a_message_with_the_line(tmp_path: Path) -> None:
    _refused((MODEL + "run: {name: café}\n").encode("latin-1"), tmp_path, "line 2", "UTF-8")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks_and_line_ends_of_windows_are_read(encoding: str, tmp_path: Path) -> None:
    text = (MODEL + "run: {name: café}\nseed: 3\n").replace("\n", "\r\n")
    config = _load(text.encode(encoding), tmp_path)
    assert (config.run.name, config.seed) == ("café", 3)


def test_numbers_in_an_unusual_form_stay_the_written_text(tmp_path: Path) -> None:
    text = (
        "data: {interactions: [010, 12:30, 1.10, 7, 1e5]}\nseed: 010\ntrain: {batch_size: 1_000,"
        " lr: 0.10}\n"
    )
    config = _load(MODEL + text, tmp_path)
    assert config.data.interactions == ["010", "12:30", "1.10", "7", "1e5"]
    assert (config.seed, config.train.batch_size, config.train.lr) == (10, 1000, 0.1)


@pytest.mark.parametrize(
    "section",
    [
        "evaluate:",
        "train:\n  loss:",
        "data:\n  split:\n  text:\n    users:",
        "tune:\n  fusion:",
        "tracking: ~",
    ],
)
def test_empty_section_has_its_defaults(section: str, tmp_path: Path) -> None:
    assert _load(f"{MODEL}{section}\n", tmp_path) == _load(MODEL, tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data:\n  source:\n", "data.source: the section is empty"),
        ("evaluate:\n  ks:\n", "evaluate.ks: is empty"),
        ("evaluate:\n  baselines:\n    -\n", "evaluate.baselines.0: is empty"),
        ("evaluate: 5\n", "evaluate: expected a section with keys such as ablate"),
        ("data: {source: canonical}\n", "data.source: expected a section"),
        ("data: {source: {events: [a]}}\n", "data.source.kind: missing"),
    ],
)
def test_empty_value_is_named_without_names_of_classes(
    text: str, expected: str, tmp_path: Path
) -> None:
    _refused(MODEL + text, tmp_path, expected)
    with pytest.raises(ConfigError) as caught:
        _load(MODEL + text, tmp_path)
    assert "instance of" not in str(caught.value) and "Config" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "data: {interactions: [on, off]}",
        "data: {interactions: on}",
        "data: {context: [yes]}",
        "data: {source: {kind: canonical, events: [a.csv], rename: {on: type}}}",
        "data: {source: {kind: canonical, events: [a.csv], rename: {events: {a: on}}}}",
        "data: {source: {kind: canonical, events: [a.csv], split_files: {test: [off]}}}",
        "data: {text: {groups: {a: [no]}}}",
        "run: {name: off}",
        "evaluate: {ablation: off}",
        "update: {rewards: {on: 1}}",
        "model: {granularities: {profile: {crosses: [[on]]}}}",
    ],
)
def test_message_on_a_word_read_as_true_recommends_quotes(text: str, tmp_path: Path) -> None:
    _refused(
        (MODEL if "model" not in text else "") + text + "\n", tmp_path, "in quotes", "YAML reads on"
    )


@pytest.mark.parametrize(
    "text", ["train: {epochs: on}", "train: {lr: yes}", "data: {quarantine: {max_share: on}}"]
)
def test_true_is_not_a_number(text: str, tmp_path: Path) -> None:
    _refused(MODEL + text + "\n", tmp_path, "expected a number, got true")


def test_true_and_its_words_are_accepted_for_booleans(tmp_path: Path) -> None:
    text = (
        "train: {use_gpu: no, refit: off}\ndata: {source: {kind: canonical, events: [a.csv],"
        " header: yes}}\n"
    )
    config = _load(MODEL + text, tmp_path)
    assert (
        config.train.use_gpu,
        config.train.refit,
        config.data.source.model_dump()["header"],
    ) == ("no", False, "yes")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$A_B", "p$WORD"),
        ("${A_B}x", "p$WORDx"),
        ("$$A_B", "$A_B"),
        ("$${A_B}", "${A_B}"),
        ("5$ and $$", "5$ and $$"),
    ],
)
def test_variables_are_expanded_once(
    text: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dump of a value with a dollar sign reads back equal and is not expanded again."""
    monkeypatch.setenv("A_B", "p$WORD")
    config = _load(f"{MODEL}run: {{name: '{text}'}}\n", tmp_path)
    assert config.run.name == value
    assert _load(dump_config(config), tmp_path).run.name == value
    assert build_config(config.model_dump(mode="json"), expand=False) == config


def test_variable_without_a_closing_brace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.name.*without a"):
        _load(MODEL + "run: {name: '${A_B'}\n", tmp_path)


def test_number_of_more_than_63_bits_is_refused(tmp_path: Path) -> None:
    _refused(MODEL + f"seed: {10**30}\n", tmp_path, "seed", "is too large")


@pytest.mark.parametrize("text", ["", "seed: 1\n", "model:\n", "model: auto\n"])
def test_missing_or_empty_model_stays_unset(text: str, tmp_path: Path) -> None:
    config = _load(text, tmp_path)
    assert not config.has_model and "model" not in config.model_dump()
    assert Config.model_validate(config.model_dump(mode="json")) == config
