"""Fine-tuning of the language model: pairs from training events only, a frozen base, and
reproducible adapters.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_prepare import MemorySource, config, event, rows_of

from recsys import schema
from recsys.config import TextConfig
from recsys.data.dataset import PreparedDataset
from recsys.data.histories import Histories
from recsys.encoders.adapter import Adapter, is_adapter, with_adapter
from recsys.encoders.text import (
    EncoderSettings,
    TextEncoder,
    language_model_fingerprint,
    load_language_model,
)
from recsys.errors import ConfigError
from recsys.preparation.finetune import _in_batch, pairs_of, retrieval, train_adapter
from recsys.preparation.prepare import prepare
from recsys.preparation.vector_cache import encode_texts

peft = pytest.importorskip("peft")

TOPICS = 8  # per vocabulary; topic n of one vocabulary is the same topic as n of the other
WORDS = [f"{kind}{topic}{letter}" for kind in "ab" for topic in range(TOPICS) for letter in "xyz"]


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with two layers over a vocabulary of made-up words, saved by transformers."""
    import tokenizers
    from tokenizers import models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    inner = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertModel(
        BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **shape)
    ).save_pretrained(folder)
    return folder


def settings(model: Path, cache: Path | str = "", **finetune: Any) -> TextConfig:
    options = {"enabled": True, "steps": 20, "batch_size": 8, "rank": 4, "lr": 0.02, **finetune}
    return TextConfig(
        model=str(model), max_tokens=16, dtype="float32", cache_dir=str(cache), finetune=options
    )  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------- pairs


def events(parts: list[str]) -> Histories:
    """Users whose event ``e`` has the item 20 · user + e and the split of the letter."""
    made = Histories.of_items(
        [[20 * user + place for place in range(len(row))] for user, row in enumerate(parts)]
    )
    splits = np.array(["tvx".index(letter) for row in parts for letter in row], dtype=np.uint8)
    return replace(made, splits_E=splits)


def test_pairs_are_neighbours_of_training_events() -> None:
    has_text = np.ones(80, dtype=bool)
    has_text[21] = False
    pairs, queries = pairs_of(events(["tttvx", "tttv", "vx", "t"]), has_text, True, 100, [0])
    assert pairs.tolist() == [[0, 1], [1, 2], [20, 22]], "an item without text is skipped"
    assert queries.tolist() == [[2, 3], [22, 23]]


@pytest.mark.parametrize("ordered", [True, False])
def test_planted_leak_is_in_no_pair(ordered: bool) -> None:
    """Validation and test events are between training events, as a given split may have them."""
    histories, has_text = events(["tvtxtt" * 3] * 2), np.ones(80, dtype=bool)
    later = set(histories.items_E[histories.splits_E > 0].tolist())
    test = set(histories.items_E[histories.splits_E == 2].tolist())
    pairs, queries = pairs_of(histories, has_text, ordered, 100, [1])
    assert len(pairs) == 2 * 11 and not set(pairs.ravel().tolist()) & later
    assert len(queries) == 2 and not set(queries.ravel().tolist()) & test
    assert set(queries[:, 1].tolist()) <= later


def test_pairs_are_limited_and_depend_on_the_seed() -> None:
    histories, has_text = events(["t" * 10] * 4), np.ones(80, dtype=bool)
    first, again, other = (
        pairs_of(histories, has_text, False, 7, [seed])[0].tolist() for seed in (3, 3, 4)
    )
    assert len(first) == 7 and first == again != other


def test_target_item_is_no_negative_and_popularity_is_corrected() -> None:
    """Columns of items 5, 6, 5: the third column is not a negative of the first row; log q in the
    softmax by hand.
    """
    logits = torch.tensor([[1.0, 2.0, 9.0], [0.0, 3.0, 1.0], [9.0, 1.0, 2.0]])
    log_q = np.log(np.array([0, 0, 0, 0, 0, 2 / 3, 1 / 3]).clip(1e-9))
    found = _in_batch(logits, np.array([5, 6, 5]), log_q)
    scores = logits.double().numpy() - np.log([2 / 3, 1 / 3, 2 / 3])
    rows = [(scores[0, [0, 1]], 0), (scores[1], 1), (scores[2, [1, 2]], 1)]
    expected = np.mean([np.log(np.exp(row).sum()) - row[right] for row, right in rows])
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_retrieval_metric_equals_the_value_by_hand() -> None:
    """The target is first for one query and third for another: ndcg 1 and 1/2."""
    vectors = np.array([[1, 0], [0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0, 0]], dtype=np.float16)
    found = retrieval(vectors, np.array([[0, 1], [0, 3]]))
    assert found == {"recall@20": 1.0, "ndcg@20": pytest.approx(0.75)}


# ----------------------------------------------------------------------------------------- adapters


def trained(model: Path, seed: int = 0) -> tuple[Adapter, list[float]]:
    texts = [f"a{topic}x a{topic}y" for topic in range(TOPICS)] + [
        f"b{topic}x b{topic}z" for topic in range(TOPICS)
    ]
    pairs = np.array([[topic, TOPICS + topic] for topic in range(TOPICS)] * 4)
    return train_adapter(texts, pairs, settings(model), seed, gpu=False, threads=1)


def test_training_changes_only_the_adapter(tiny_bert: Path, one_thread: None) -> None:
    before = {path.name: path.read_bytes() for path in tiny_bert.iterdir()}
    adapter, losses = trained(tiny_bert)
    assert np.mean(losses[-3:]) < 0.85 * np.mean(losses[:3]), losses
    assert {path.name: path.read_bytes() for path in tiny_bert.iterdir()} == before
    _, base = load_language_model(str(tiny_bert), False)
    model = with_adapter(base, 4, "tiny")
    learning = [name for name, part in model.named_parameters() if part.requires_grad]
    assert len(learning) == 2 * 2 * 3 and all("lora_" in name for name in learning), (
        "two layers of query, key, value"
    )
    frozen = {
        name.replace(".base_layer", ""): part
        for name, part in model.named_parameters()
        if "lora_" not in name
    }
    _, untouched = load_language_model(str(tiny_bert), False)
    for name, part in untouched.named_parameters():
        assert torch.equal(frozen[f"base_model.model.{name}"], part)
    assert trained(tiny_bert)[0].digest == adapter.digest != trained(tiny_bert, seed=1)[0].digest


def test_saved_adapter_gives_equal_vectors(
    tiny_bert: Path, tmp_path: Path, one_thread: None
) -> None:
    """As bytes in the settings, as a folder in data.text.model, and loaded by peft."""
    adapter, _ = trained(tiny_bert)
    (tmp_path / "adapter_config.json").write_text(adapter.config)
    (tmp_path / "adapter_model.safetensors").write_bytes(adapter.weights)
    texts = ["a0x b1y", "b3z", "a5x a5y a5z"]
    plain = EncoderSettings(str(tiny_bert), dtype="float32", threads=1)
    adapted = TextEncoder(replace(plain, adapter=adapter)).encode(texts)
    named = TextEncoder(replace(plain, model=str(tmp_path))).encode(texts)
    np.testing.assert_array_equal(adapted, named)
    assert np.abs(adapted - TextEncoder(plain).encode(texts)).max() > 0.05
    assert is_adapter(tmp_path) and not is_adapter(tiny_bert)
    assert language_model_fingerprint(str(tmp_path)) != language_model_fingerprint(str(tiny_bert))
    tokenizer, base = load_language_model(str(tiny_bert), False)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.inference_mode():
        hidden = theirs(**tokenizer(texts[2:], return_tensors="pt")).last_hidden_state[0].mean(0)
    np.testing.assert_allclose((hidden / hidden.norm()).numpy(), adapted[2], atol=2e-3)


def test_damaged_adapter_folders_are_refused(tmp_path: Path, tiny_bert: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ConfigError, match=r"no adapter_model\.safetensors"):
        language_model_fingerprint(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="names no base_model_name_or_path"):
        load_language_model(str(tmp_path), False)
    with pytest.raises(ConfigError, match="no attention projection"):
        with_adapter(torch.nn.Sequential(torch.nn.Linear(2, 2)), 2, "tiny")
    other = tmp_path / "model"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot be loaded as a language model"):
        load_language_model(str(other), False)


@pytest.mark.slow
def test_cache_separates_adapters(ray_local: None, tiny_bert: Path, tmp_path: Path) -> None:
    adapter, chosen = trained(tiny_bert)[0], settings(tiny_bert, tmp_path)
    plain, numbers = encode_texts(["a0x b1y"], chosen)
    adapted, more = encode_texts(["a0x b1y"], chosen, adapter)
    assert numbers == more == {"encoded": 1, "cached": 0} and (plain != adapted).any()
    assert encode_texts(["a0x b1y"], chosen, adapter)[1] == {"encoded": 0, "cached": 1}


# ------------------------------------------------------------------------------------------ prepare


def planted(users: int, items_a_topic: int) -> tuple[pa.Table, pa.Table]:
    """Users stay in a topic whose item texts use one of two vocabularies; no word is in both."""
    random = np.random.default_rng(5)
    rows, texts = [], {}
    for topic in range(TOPICS):
        for number in range(items_a_topic):
            kind = "ab"[number % 2]
            words = [
                f"{kind}{topic}{letter}"
                for letter in random.permutation(list("xyz"))[: 1 + number % 3]
            ]
            texts[f"i{topic}-{number}"] = " ".join([*words, str(random.choice(WORDS))])
    for user in range(users):
        mine = random.permutation(items_a_topic)[:8]
        rows += [
            event(f"u{user}", f"i{user % TOPICS}-{number}", second)
            for second, number in enumerate(mine)
        ]
    items = [{schema.ITEM_ID: item, "title": text} for item, text in texts.items()]
    return rows_of("events", rows), rows_of("items", items, title=pa.string())


def run(
    folder: Path, model: Path, lines: list[str], users: int, items: int, **finetune: Any
) -> PreparedDataset:
    tables = dict(zip(("events", "items"), planted(users, items), strict=True))
    chosen = config(folder, text=settings(model, folder / "cache", **finetune).model_dump())
    return prepare(chosen, lines.append, MemorySource(**tables))


def test_model_without_gain_is_not_kept(ray_local: None, tiny_bert: Path, tmp_path: Path) -> None:
    """A learning rate near zero improves no rank."""
    lines: list[str] = []
    dataset = run(tmp_path, tiny_bert, lines, 24, 12, steps=1, lr=1e-12)
    described = dataset.manifest.text["finetune"]
    assert (
        not described["kept"]
        and described["before"] == described["after"]
        and described["queries"] == 24
    )
    assert not (Path(dataset.root) / "text").exists() and any("not kept" in line for line in lines)


@pytest.mark.slow
def test_fine_tuning_gains_on_a_planted_world(
    ray_local: None, tiny_bert: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    dataset = run(tmp_path, tiny_bert, lines, 400, 24, steps=300, batch_size=64)
    described = dataset.manifest.text["finetune"]
    assert (
        described["kept"] and described["after"]["ndcg@20"] > 1.3 * described["before"]["ndcg@20"]
    ), described
    assert described["loss_last"] < described["loss_first"] and any(
        "fine-tuning: text only" in line for line in lines
    )
    adapter = Adapter.read(Path(dataset.root) / "text/adapter")
    assert adapter.digest == described["adapter"]
    texts = dataset.features.column("text").to_pylist()[:5]
    exact = TextEncoder(
        EncoderSettings(str(tiny_bert), 16, dtype="float32", threads=1, adapter=adapter)
    ).encode(texts)
    np.testing.assert_allclose(dataset.text_vectors_NT()[:5], exact, atol=2e-3)
