"""The choice of the library that multiplies matrices: its rule, and the precision of its result."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from recsys import processor
from recsys.encoders.text import resolve_dtype
from recsys.processor import _products, choose_matrix_library, cpu_flags

PRODUCTS = _products()
EPYC = ("AuthenticAMD", frozenset({"avx2", "avx512f", "avx512_bf16"}))
OLD_EPYC = ("AuthenticAMD", frozenset({"avx2"}))
XEON = ("GenuineIntel", frozenset({"avx2", "avx512f", "avx512_bf16"}))
LARGE_XEON = ("GenuineIntel", frozenset({"avx512f", "avx512_bf16", "amx_tile", "amx_bf16"}))
LATER_AMD = ("AuthenticAMD", LARGE_XEON[1])
ARM = ("", frozenset({"asimd", "bf16"}))


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = PRODUCTS.fp32_precision
    PRODUCTS.fp32_precision = "none"
    yield
    PRODUCTS.fp32_precision = before


def _is(described: tuple[str, frozenset[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_described", lambda: described)


@pytest.mark.parametrize("described", [OLD_EPYC, XEON, LARGE_XEON, LATER_AMD, ARM])
def test_other_processors_keep_the_library(
    described: tuple[str, frozenset[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _is(described, monkeypatch)
    choose_matrix_library()
    assert PRODUCTS.fp32_precision == "none"


def test_products_have_the_error_of_float32_after_the_choice() -> None:
    choose_matrix_library()  # for the processor of this machine
    draws = torch.Generator().manual_seed(0)
    for rows, inner, columns in ((64, 64, 64), (700, 384, 300), (1, 128, 2000)):
        one, two = (
            torch.randn(shape, generator=draws) for shape in ((rows, inner), (inner, columns))
        )
        exact = one.double() @ two.double()
        error = ((one @ two).double() - exact).abs().max() / exact.abs().max()
        assert error < 1e-5  # of bfloat16: 4e-3


def test_choice_is_undone_where_products_are_less_precise(monkeypatch: pytest.MonkeyPatch) -> None:
    _is(EPYC, monkeypatch)
    product = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: product(a.bfloat16(), b.bfloat16()).float()
    )
    choose_matrix_library()
    assert PRODUCTS.fp32_precision == "none"


@pytest.mark.parametrize(
    ("described", "dtype"),
    [
        (EPYC, "bfloat16"),
        (LARGE_XEON, "bfloat16"),
        (ARM, "bfloat16"),
        (XEON, "float32"),
        (OLD_EPYC, "float32"),
    ],
)
def test_texts_are_encoded_in_the_faster_precision(
    described: tuple[str, frozenset[str]], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _is(described, monkeypatch)
    assert resolve_dtype("auto", gpu=False) == dtype
    assert resolve_dtype("float32", gpu=False) == "float32"


def test_kernel_and_torch_name_the_same_fast_instructions() -> None:
    named = {name for name, has in torch.cpu.get_capabilities().items() if has is True}
    fast = {"amx_bf16", "amx_tile", "bf16", "avx512_bf16"}
    assert cpu_flags() & fast == named & fast


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_that_was_freed_is_not_requested_again() -> None:
    """In a process of its own, as the limits are for the whole process."""
    program = """
import resource
import numpy as np
from recsys.processor import keep_freed_memory

keep_freed_memory()

def fill():
    parts = [np.empty(2**17) for _ in range(16)]
    for part in parts:
        part.fill(1.0)

fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # 16 MB are 4096 pages, which by default are new in each of the ten rounds
    assert int(done.stdout) < 4096
