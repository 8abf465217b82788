"""The slow reference against MMA-Sim (`mmasim_peer.py`): every kind of instruction that it models, bit for bit, on adversarial operands."""

from __future__ import annotations

from typing import Any

import operands
import pytest
import slow_reference
from mmasim_peer import CASES, Case, draw, load_peer, peer_results

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def peer() -> Any:
    return load_peer()


def our_results(case: Case, drawn: operands.Operands) -> list[int]:
    """Result codes of the slow reference."""
    results = []
    for i in range(len(drawn.c)):
        scales: dict[str, Any] = {}
        if drawn.scale_a is not None and drawn.scale_b is not None:
            scales = {"scale_a": drawn.scale_a[i].tolist(), "scale_b": drawn.scale_b[i].tolist()}
            scales |= {"scale_type": case.scale_type, "block": case.block}
        types = (case.a_type, case.b_type, case.acc_type)
        rows = drawn.a[i].tolist(), drawn.b[i].tolist(), int(drawn.c[i])
        results.append(slow_reference.dot(case.arch, case.family, *types, *rows, k_instruction=case.k, **scales))
    return results


def check(peer: Any, case: Case, n: int) -> None:
    """Compare n dot products of every distribution; f64 NaNs compare equal (the page gives no NaN code for them)."""
    for kind in operands.KINDS:
        drawn = draw(case, kind, n)
        for i, (got, want) in enumerate(zip(our_results(case, drawn), peer_results(peer, case, drawn), strict=True)):
            both_nan = case.acc_type == "f64" and slow_reference.is_nan("f64", got) and slow_reference.is_nan("f64", want)
            where = f"{case} {kind} row {i}: a {drawn.a[i].tolist()} b {drawn.b[i].tolist()} c {int(drawn.c[i]):#x}"
            scales = f" scales {[s[i].tolist() for s in (drawn.scale_a, drawn.scale_b) if s is not None]}"
            assert got == want or both_nan, f"{where}{scales}: reference {got:#x}, mmasim {want:#x}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_mmasim_on_a_few_dots_of_every_distribution(case: Case, peer: Any) -> None:
    check(peer, case, 15)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_mmasim_on_ten_thousand_dots(case: Case, peer: Any) -> None:
    check(peer, case, 10_000 // len(operands.KINDS) + 1)


def test_a_changed_constant_would_be_noticed(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: one fraction bit more differs from mmasim."""
    case = next(case for case in CASES if str(case) == "sm_100a-tcgen05-m64n8k16.kind::f16.f32.bf16.bf16")
    key = (case.arch, case.family, "bf16", "f32")
    monkeypatch.setitem(slow_reference.UNITS, key, slow_reference.Unit(F=26, L=16, e_zero=-133, out="f32 rz 23"))
    with pytest.raises(AssertionError, match="mmasim 0x"):
        check(peer, case, 100)
