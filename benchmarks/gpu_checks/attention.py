"""The sequence block over histories of skewed lengths: padded as the product does it, against what
torch offers for ragged rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu_checks.setting import Setting, attempt, median_seconds, ms, peak_mib
from recsys.granularities.evolution.model import Block
from recsys.granularities.evolution.section import EvolutionConfig

WIDTH, HEADS = 64, 2


def compared(setting: Setting) -> dict[str, Any]:
    """Forward and backward of one block over rows of up to 50 and of up to 500 events.

    Returns
    -------
    dict
        Milliseconds and peak memory, by longest row, way and precision.
    """
    found: dict[str, Any] = {}
    for longest in (50, 500) if setting.on_gpu else (12,):
        lengths_U = _lengths(setting.size(512, 6), longest)
        each = found[f"rows of up to {longest}"] = {
            "events": int(lengths_U.sum()),
            "padded_events": int(len(lengths_U) * lengths_U.max()),
        }
        for kind in ("fp32", "bf16") if setting.on_gpu else ("fp32",):
            for name, way in WAYS.items():
                each[f"{name}, {kind}"] = attempt(partial(_measured, setting, way, lengths_U, kind))
    return found


def _lengths(rows: int, longest: int) -> Tensor:
    drawn = np.random.default_rng(0).lognormal(np.log(longest / 4), 0.8, rows)
    lengths_U = torch.as_tensor(np.clip(drawn, 1, longest).astype(np.int64))
    lengths_U[0] = longest
    return lengths_U


def _measured(setting: Setting, way: Any, lengths_U: Tensor, kind: str) -> dict[str, Any]:
    torch.manual_seed(0)
    section = EvolutionConfig.model_validate({"heads": HEADS, "dropout": 0.0})
    block = Block(WIDTH, section).to(setting.device)
    forward = way(block, lengths_U.to(setting.device), setting)

    def work() -> None:
        block.zero_grad(set_to_none=True)
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=kind == "bf16"):
            found = forward()
        found.float().sum().backward()

    seconds = median_seconds(work, setting, share=0.06)
    return {"ms": ms(seconds), "peak_mib": peak_mib(work, setting.device)}


def _padded(block: Block, lengths_U: Tensor, setting: Setting) -> Any:
    """The product's block, with a bias of the causal mask."""
    length = int(lengths_U.max())
    states_ULD = torch.randn(len(lengths_U), length, WIDTH, device=lengths_U.device)
    later_LL = torch.ones(length, length, dtype=torch.bool, device=lengths_U.device).triu(1)
    bias_UHLL = torch.zeros(1, HEADS, length, length, device=lengths_U.device).masked_fill(
        later_LL, float("-inf")
    )
    return lambda: block(states_ULD, bias_UHLL)


def _padded_causal(block: Block, lengths_U: Tensor, setting: Setting) -> Any:
    """The same rows without a bias, so that torch may take its fastest kernel."""
    length = int(lengths_U.max())
    states_ULD = torch.randn(len(lengths_U), length, WIDTH, device=lengths_U.device)

    def attend(q: Tensor, k: Tensor, v: Tensor, _: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)

    block._attend = attend  # type: ignore[method-assign]
    return lambda: block(states_ULD, states_ULD)


def _nested(block: Block, lengths_U: Tensor, setting: Setting) -> Any:
    """Ragged rows as a nested tensor; no biases of lags and times."""
    rows = [torch.randn(int(n), WIDTH, device=lengths_U.device) for n in lengths_U]
    states = torch.nested.nested_tensor(rows, layout=torch.jagged)

    def forward() -> Tensor:
        q, k, v = block.qkv(block.norm_attention(states)).chunk(3, dim=-1)
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True)
        left: Tensor = block._leave(states, mixed.transpose(1, 2).flatten(2))
        return left.values()

    return forward


def _flex(block: Block, lengths_U: Tensor, setting: Setting) -> Any:
    """All events in one row; FlexAttention lets an event see the earlier ones of its own user."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    rows_E = torch.repeat_interleave(
        torch.arange(len(lengths_U), device=lengths_U.device), lengths_U
    )
    number = len(rows_E)
    bias_HL = nn.Parameter(torch.zeros(HEADS, int(lengths_U.max()), device=lengths_U.device))

    def sees(b: Any, h: Any, query: Any, key: Any) -> Any:
        return (rows_E[query] == rows_E[key]) & (query >= key)

    def biased(score: Any, b: Any, h: Any, query: Any, key: Any) -> Any:
        return score + bias_HL[h, (query - key).clamp(0, bias_HL.shape[1] - 1)]

    mask = create_block_mask(sees, None, None, number, number, device=str(lengths_U.device))
    attend: Any = torch.compile(flex_attention) if setting.on_gpu else flex_attention
    states_1ED = torch.randn(1, number, WIDTH, device=lengths_U.device)

    def forward() -> Tensor:
        q, k, v = block.qkv(block.norm_attention(states_1ED)).chunk(3, dim=-1)
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
        mixed = attend(q, k, v, score_mod=biased, block_mask=mask)
        left: Tensor = block._leave(states_1ED, mixed.transpose(1, 2).flatten(2))
        return left

    return forward


WAYS = {
    "ours, padded with biases": _padded,
    "possible: padded, causal without biases": _padded_causal,
    "possible: nested": _nested,
    "possible: FlexAttention with lag biases": _flex,
}
