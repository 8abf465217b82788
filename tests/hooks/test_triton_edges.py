"""Triton at the edges: what a mask leaves out of a load, launches without programs, tensors without elements."""

from __future__ import annotations

import pytest

import mmabits

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from mmabits.emulator.hooks.triton.compiler import CannotAsk, Compiler  # noqa: E402


@pytest.fixture(autouse=True)
def not_asked(monkeypatch):
    """The table serves: asking Triton's compiler takes a second for each kind of dot."""

    def cannot(self, question):
        raise CannotAsk

    monkeypatch.setattr(Compiler, "ask", cannot)


@triton.jit
def without_other(x, y, n, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)
    tl.store(y + places, tl.load(x + places, mask=places < n))


@triton.jit
def with_other(x, y, n, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)
    tl.store(y + places, tl.load(x + places, mask=places < n, other=7.0))


@triton.jit
def product(x, y, out, m, k, SIZE: tl.constexpr):
    """`SIZE` x `SIZE`, rows of x past m and its columns past k left out."""
    rows, columns = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    a = tl.load(x + rows * SIZE + columns, mask=(rows < m) & (columns < k))
    b = tl.load(y + rows * SIZE + columns)
    tl.store(out + rows * SIZE + columns, tl.dot(a, b), mask=rows < m)


def emulated(**options):
    return mmabits.emulate("sm_90a", frameworks=["triton"], triton="interpreted", **options)


@pytest.mark.parametrize("filling", ["zero", "poison"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int32, torch.uint8]
)
def test_masked_loads_without_other(dtype, filling):
    x = torch.arange(1, 9).to(dtype)
    left_out, replaced, whole = (torch.zeros(8).to(dtype) for _ in range(3))
    with emulated(undefined=filling) as session:
        without_other[(2,)](x, left_out, 5, SIZE=8)
        without_other[(1,)](x, whole, 8, SIZE=8)
        with_other[(1,)](x, replaced, 5, SIZE=8)
    is_poisoned = filling == "poison" and dtype.is_floating_point
    assert torch.equal(left_out[:5].float(), x[:5].float()) and torch.equal(whole.float(), x.float())
    assert left_out[5:].float().isnan().all() if is_poisoned else not left_out[5:].float().any()
    assert replaced[5:].float().tolist() == [7, 7, 7]
    (line,) = session.report().undefined
    assert (line.operation, line.here, line.count) == ("tl.load", "poison" if is_poisoned else "zeros", 2)
    assert line.site.startswith("without_other, line ") and "without `other`" in line.what


def test_only_what_reaches_a_result_shows():
    """Rows that the store leaves out do no harm; a K that does not fill the tile does."""
    x, y, out = torch.ones(32, 32).half(), torch.ones(32, 32).half(), torch.zeros(32, 32)
    with emulated(undefined="poison"):
        product[(1,)](x, y, out, 20, 32, SIZE=32)
        assert (out[:20] == 32).all() and not out[20:].any()
        product[(1,)](x, y, out, 20, 31, SIZE=32)
        assert out[:20].isnan().all() and not out[20:].any()


@pytest.mark.parametrize("grid", [(0,), (0, 3), (2, 0, 1), lambda meta: (0 * meta["SIZE"],)], ids=["1", "2", "3", "callable"])
def test_a_grid_without_programs_does_nothing(grid):
    x, y = torch.ones(8), torch.zeros(8)
    with emulated() as session:
        without_other[grid](x, y, 8, SIZE=8)
    assert not y.any() and session.report().emulated == () == session.report().undefined


def test_tensors_without_elements():
    nothing = torch.empty(0)
    with emulated():
        without_other[(0,)](nothing, nothing, 0, SIZE=8)
        product[(0,)](nothing.half(), nothing.half(), nothing, 0, 0, SIZE=32)
