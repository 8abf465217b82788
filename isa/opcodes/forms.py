"""PTX opcodes that act on more than one lane: what moves data, waits, branches, shuffles and multiplies matrices.

A row is an opcode's beginning and the words that may follow; `form_of` finds that of a spelling. What they do is in the machine; the
products' own rows are in isa/instructions. `family_of` sorts every opcode, those of one lane as well, for reports.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from mmabits.isa.evidence import Evidence
from mmabits.isa.opcodes.spec import OpcodeKind

_TYPES: Final = (*(f"{sign}{bits}" for bits in (8, 16, 32, 64) for sign in "bus"), "f32", "f64", "b128")
_SCOPES: Final = ("cta", "cluster", "gpu", "sys")
_SHARED: Final = ("shared", "shared::cta", "shared::cluster")
_SPACES: Final = ("global", "local", "param", "param::entry", "param::func", "const", *_SHARED)
_ORDERS: Final = ("weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "mmio")
_CACHE: Final = (
    "ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc", "L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last",
    "L1::no_allocate", "L2::evict_normal", "L2::evict_first", "L2::evict_last", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B",
)  # fmt: skip
_VECTORS: Final = ("v2", "v4", "v8")
_INTEGERS: Final = ("add", "inc", "dec", "min", "max", "and", "or", "xor", "exch", "cas")
_FLOATS: Final = ("noftz", "f16", "f16x2", "bf16", "bf16x2")
_DIMENSIONS: Final = ("1d", "2d", "3d", "4d", "5d")
_GROUPS: Final = ("cta_group::1", "cta_group::2")
_BULK: Final = (
    "global", *_SHARED, "mbarrier::complete_tx::bytes", "bulk_group", "multicast::cluster", "L2::cache_hint", "tile", *_GROUPS,
)  # fmt: skip
_TENSOR_SHAPES: Final = ("16x64b", "16x128b", "16x256b", "32x32b", "16x32bx2")
_TIMES: Final = tuple(f"x{1 << power}" for power in range(8))
_ORDER_OF_SUMS: Final = "floating-point sums come in ascending order of programs here; a GPU's order is not defined"
_FLUSHED: Final = "f32 sums flush subnormal numbers in global memory and keep them in shared memory, as experiments on GPUs showed"


@dataclass(frozen=True, kw_only=True)
class Form:
    """Opcodes that begin alike.

    Attributes:
        name: the words that they begin with.
        kind: what they act on.
        family: the word for them in reports.
        section: anchor in the PTX manual.
        words: what may follow, in any order.
        needs: of each of these some word must be there.
        since: compute capability that the manual asks for: 90 of sm_90.
        evidence: how well it is known what they do.
        note: what is assumed.
    """

    name: str
    kind: OpcodeKind
    family: str
    section: str
    words: tuple[str, ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()
    since: int = 0
    evidence: Evidence = Evidence.PUBLISHED
    note: str = ""

    @property
    def is_defined(self) -> bool:
        """Whether the PTX manual says what they do to the last bit."""
        return self.evidence > Evidence.INFERRED

    def takes(self, opcode: str) -> bool:
        """Whether a spelling is one of these."""
        if opcode != self.name and not opcode.startswith(f"{self.name}."):
            return False
        rest = opcode[len(self.name) + 1 :].split(".") if opcode != self.name else []
        return all(word in self.words for word in rest) and all(any(word in rest for word in one) for one in self.needs)


def _memory() -> Iterator[Form]:
    kind, section = OpcodeKind.MEMORY, "data-movement-and-conversion-instructions-"
    common = (*_TYPES, *_SCOPES, *_SPACES, *_ORDERS, *_CACHE, *_VECTORS)
    for name, more in (("ld", ()), ("ldu", ()), ("st", ())):
        yield Form(name=name, kind=kind, family="memory", section=section + name, words=(*common, *more), needs=(_TYPES,))
    yield Form(
        name="st.async", kind=OpcodeKind.ASYNC, family="memory", section=section + "st-async", since=90,
        words=("weak", "release", *_SCOPES, *_SHARED, "global", "mmio", "mbarrier::complete_tx::bytes", *_VECTORS, *_TYPES),
    )  # fmt: skip
    note = f"{_ORDER_OF_SUMS}; {_FLUSHED}"
    section = "parallel-synchronization-and-communication-instructions-"
    for name in ("atom", "red"):
        words = (*_ORDERS, *_SCOPES, "global", *_SHARED, "L2::cache_hint", *_VECTORS, *_INTEGERS, *_FLOATS, *_TYPES)
        yield Form(name=name, kind=kind, family="atomics", section=section + name, words=words, needs=(_INTEGERS,), note=note)
    section = "warp-level-matrix-instructions-"
    small = ("b8", "b16", "b8x16.b6x16_p32", "b6x16_p32", "b4x16_p64", "b8x16")
    for name in ("ldmatrix", "stmatrix"):
        yield Form(
            name=f"{name}.sync.aligned", kind=OpcodeKind.WARP, family="matrices of shared memory", section=section + name,
            words=("m8n8", "m16n16", "m16n8", "m8n16", "x1", "x2", "x4", "trans", "shared", "shared::cta", *small),
            needs=(("x1", "x2", "x4"),), since=75 if name == "ldmatrix" else 90,
        )  # fmt: skip
    yield Form(
        name="movmatrix.sync.aligned.m8n8.trans.b16", kind=OpcodeKind.WARP, family="matrices of shared memory", since=75,
        section=section + "movmatrix",
    )  # fmt: skip
    section = "data-movement-and-conversion-instructions-"
    yield Form(
        name="cvta", kind=kind, family="addresses", section=section + "cvta",
        words=("to", "global", "local", "param", "const", *_SHARED, "u32", "u64"),
    )  # fmt: skip
    yield Form(name="isspacep", kind=kind, family="addresses", section=section + "isspacep", words=_SPACES, needs=(_SPACES,))
    yield Form(name="mapa", kind=kind, family="addresses", section=section + "mapa", words=("shared::cluster", "u32", "u64"), since=90)
    yield Form(
        name="getctarank", kind=kind, family="addresses", section=section + "getctarank", words=("shared::cluster", "u32", "u64"), since=90
    )


def _asynchronous() -> Iterator[Form]:
    kind, family, section = OpcodeKind.ASYNC, "asynchronous copies", "data-movement-and-conversion-instructions-"
    sizes = ("shared", "shared::cta", "global", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B")
    for name in ("cp.async.ca", "cp.async.cg"):
        yield Form(name=name, kind=kind, family=family, section=section + "cp-async", words=sizes, since=80)
    for name in ("cp.async.commit_group", "cp.async.wait_group", "cp.async.wait_all"):
        yield Form(name=name, kind=kind, family=family, section=name.replace(".", "-").replace("_", "-"), since=80)
    yield Form(
        name="cp.async.mbarrier.arrive", kind=kind, family="mbarriers", section="cp-async-mbarrier-arrive", since=80,
        words=("noinc", "shared", "shared::cta", "b64"),
    )  # fmt: skip
    yield Form(name="cp.async.bulk", kind=kind, family=family, section=section + "cp-async-bulk", words=_BULK, since=90)
    reductions = ("add", "min", "max", "inc", "dec", "and", "or", "xor")
    for name in ("cp.async.bulk.commit_group", "cp.async.bulk.wait_group"):
        yield Form(name=name, kind=kind, family=family, section=name.replace(".", "-").replace("_", "-"), words=("read",), since=90)
    yield Form(
        name="cp.async.bulk.prefetch", kind=OpcodeKind.HINT, family="hints", section="cp-async-bulk-prefetch", since=90,
        words=("L2", "tensor", *_DIMENSIONS, "global", "tile", "L2::cache_hint", "im2col"),
    )  # fmt: skip
    yield Form(
        name="cp.async.bulk.tensor", kind=kind, family=family, section=section + "cp-async-bulk-tensor", since=90, needs=(_DIMENSIONS,),
        words=(*_BULK, *_DIMENSIONS, "im2col", "im2col::w", "im2col::w::128", "tile::gather4", "tile::scatter4", "im2col_no_offs"),
    )  # fmt: skip
    note = f"{_ORDER_OF_SUMS}; f32 sums flush subnormal numbers, as atomics in global memory do; those of f16 and bf16 keep them"
    yield Form(
        name="cp.reduce.async.bulk", kind=kind, family=family, section=section + "cp-reduce-async-bulk", since=90,
        words=(*_BULK, *reductions, *_TYPES, *_FLOATS), evidence=Evidence.INFERRED, note=note,
    )  # fmt: skip
    yield Form(
        name="cp.reduce.async.bulk.tensor", kind=kind, family=family, section=section + "cp-reduce-async-bulk-tensor", since=90,
        words=(*_BULK, *_DIMENSIONS, *reductions, "im2col_no_offs"), needs=(_DIMENSIONS, reductions), evidence=Evidence.INFERRED, note=note,
    )  # fmt: skip
    fields = (
        "global_address", "rank", "box_dim", "global_dim", "global_stride", "element_stride", "elemtype", "interleave_layout",
        "swizzle_mode", "swizzle_atomicity", "fill_mode",
    )  # fmt: skip
    yield Form(
        name="tensormap.replace.tile", kind=OpcodeKind.MEMORY, family="tensor maps", section="tensormap-replace", since=90,
        words=(*fields, "global", "shared::cta", "b1024", "b32", "b64"), needs=(fields,),
    )  # fmt: skip
    yield Form(
        name="tensormap.cp_fenceproxy", kind=OpcodeKind.MEMORY, family="tensor maps", section="tensormap-cp-fenceproxy", since=90,
        words=("global", "shared::cta", "tensormap::generic", "release", *_SCOPES, "sync", "aligned"),
    )  # fmt: skip


def _synchronising() -> Iterator[Form]:
    kind, section = OpcodeKind.BARRIER, "parallel-synchronization-and-communication-instructions-"
    for name in ("bar", "barrier"):
        yield Form(
            name=name, kind=kind, family="barriers", section=section + "bar",
            words=("cta", "sync", "arrive", "red", "aligned", "popc", "and", "or", "u32", "pred"),
        )  # fmt: skip
    yield Form(name="bar.warp.sync", kind=OpcodeKind.WARP, family="barriers", section=section + "bar-warp-sync")
    yield Form(
        name="barrier.cluster", kind=kind, family="barriers", section=section + "barrier-cluster", since=90,
        words=("arrive", "wait", "release", "relaxed", "acquire", "aligned"),
    )  # fmt: skip
    words = (
        "init", "inval", "expect_tx", "complete_tx", "arrive", "arrive_drop", "test_wait", "try_wait", "pending_count", "parity",
        "noComplete",
        "shared", "shared::cta", "shared::cluster", "relaxed", "release", "acquire", *_SCOPES, "b64",
    )  # fmt: skip
    yield Form(name="mbarrier", kind=kind, family="mbarriers", section=section + "mbarrier", words=words, since=80)
    proxies = (
        "alias", "async", "async.global", "global", "shared::cta", "shared::cluster", "tensormap::generic", "async::generic",
        "sync_restrict::shared::cta", "sync_restrict::shared::cluster",
    )  # fmt: skip
    yield Form(
        name="fence", kind=OpcodeKind.HINT, family="fences", section=section + "membar",
        words=("sc", "acq_rel", "acquire", "release", *_SCOPES, "proxy", "mbarrier_init", *proxies),
    )  # fmt: skip
    yield Form(
        name="membar", kind=OpcodeKind.HINT, family="fences", section=section + "membar", words=("cta", "gl", "sys", "proxy", *proxies)
    )
    hints = ("prefetch", "prefetchu", "discard", "createpolicy", "applypriority")
    cached = (*_SPACES, *_CACHE, "L1", "L2", "tensormap", "fractional", "range", "cvt", "b64", "128")
    for name in hints:
        yield Form(name=name, kind=OpcodeKind.HINT, family="hints", section=name, words=cached)
    yield Form(
        name="setmaxnreg", kind=OpcodeKind.HINT, family="hints", section="miscellaneous-instructions-setmaxnreg", since=90,
        words=("inc", "dec", "sync", "aligned", "u32"),
    )  # fmt: skip
    for name in ("nanosleep", "pmevent", "griddepcontrol"):
        yield Form(name=name, kind=OpcodeKind.HINT, family="hints", section=name, words=("u32", "mask", "launch_dependents", "wait"))


def _warps() -> Iterator[Form]:
    kind, family, section = OpcodeKind.WARP, "lanes of a warp", "parallel-synchronization-and-communication-instructions-"
    modes = ("up", "down", "bfly", "idx")
    yield Form(
        name="shfl.sync", kind=kind, family=family, section="data-movement-and-conversion-instructions-shfl-sync", words=(*modes, "b32"),
        needs=(modes,), note="from a lane that does not run: what its register holds",
    )  # fmt: skip
    ways = ("all", "any", "uni", "ballot")
    yield Form(name="vote.sync", kind=kind, family=family, section=section + "vote-sync", words=(*ways, "pred", "b32"), needs=(ways,))
    yield Form(name="match", kind=kind, family=family, section=section + "match-sync", words=("any", "all", "sync", "b32", "b64"), since=70)
    yield Form(name="activemask.b32", kind=kind, family=family, section=section + "activemask")
    yield Form(
        name="redux.sync", kind=kind, family=family, section=section + "redux-sync", since=80,
        words=("add", "min", "max", "and", "or", "xor", "abs", "NaN", "s32", "u32", "b32", "f32"),
    )  # fmt: skip
    yield Form(name="elect.sync", kind=kind, family=family, section=section + "elect-sync", since=90, note="the lowest lane")


def _control() -> Iterator[Form]:
    kind, section = OpcodeKind.CONTROL, "control-flow-instructions-"
    for name in ("bra", "brx.idx", "call", "ret", "exit"):
        yield Form(name=name, kind=kind, family="branches", section=section + name.partition(".")[0], words=("uni",))
    for name in ("trap", "brkpt"):
        yield Form(name=name, kind=kind, family="branches", section=f"miscellaneous-instructions-{name}")


def _matrices() -> Iterator[Form]:
    kind, family = OpcodeKind.TENSOR, "tensor cores"
    yield Form(name="mma", kind=kind, family=family, section="warp-level-matrix-instructions-mma")
    yield Form(name="wgmma.mma_async", kind=kind, family=family, section="asynchronous-warpgroup-level-matrix-instructions", since=90)
    words = ("fence", "commit_group", "wait_group", "sync", "aligned")
    yield Form(
        name="wgmma", kind=OpcodeKind.BARRIER, family="waits of tensor cores", since=90, words=words,
        section="asynchronous-warpgroup-level-matrix-instructions",
    )  # fmt: skip
    section = "tensorcore-5th-generation-instructions-tcgen05-"
    yield Form(name="tcgen05.mma", kind=kind, family=family, section=section + "mma", since=100)
    allocating = (*_GROUPS, "sync", "aligned", "shared::cta", "b32")
    for name in ("alloc", "dealloc", "relinquish_alloc_permit"):
        yield Form(
            name=f"tcgen05.{name}", kind=OpcodeKind.MEMORY, family="tensor memory", section=section + "alloc", words=allocating, since=100
        )
    for name, more in (("ld", ("pack::16b", "red", "min", "max", "abs", "NaN", "f32", "u32", "s32")), ("st", ("unpack::16b",))):
        yield Form(
            name=f"tcgen05.{name}", kind=OpcodeKind.MEMORY, family="tensor memory", section=section + name, since=100,
            words=("sync", "aligned", *_TENSOR_SHAPES, *_TIMES, "b32", *more), needs=(_TENSOR_SHAPES,),
        )  # fmt: skip
    sizes = ("128x256b", "4x256b", "128x128b", "64x128b", "32x128b")
    yield Form(
        name="tcgen05.cp", kind=OpcodeKind.ASYNC, family="tensor memory", section=section + "cp", since=100, needs=(sizes,),
        words=(*_GROUPS, *sizes, "warpx2::02_13", "warpx2::01_23", "warpx4", "b8x16", "b6x16_p32", "b4x16_p64"),
    )  # fmt: skip
    yield Form(
        name="tcgen05.shift", kind=OpcodeKind.ASYNC, family="tensor memory", section=section + "shift", words=(*_GROUPS, "down"), since=100
    )
    for name in ("wait::ld", "wait::st", "fence::before_thread_sync", "fence::after_thread_sync"):
        yield Form(
            name=f"tcgen05.{name}", kind=OpcodeKind.BARRIER, family="waits of tensor cores", section=section + name.partition(":")[0],
            words=("sync", "aligned"), since=100,
        )  # fmt: skip
    yield Form(
        name="tcgen05.commit", kind=OpcodeKind.BARRIER, family="waits of tensor cores", section=section + "commit", since=100,
        words=(*_GROUPS, "mbarrier::arrive::one", "shared::cluster", "shared::cta", "multicast::cluster", "b64"),
    )  # fmt: skip


@lru_cache(maxsize=1)
def opcode_forms() -> dict[str, Form]:
    """The rows by their names."""
    table: dict[str, Form] = {}
    for make in (_memory, _asynchronous, _synchronising, _warps, _control, _matrices):
        for row in make():
            if row.name in table:
                raise ValueError(f"two rows are called {row.name}")
            table[row.name] = row
    return table


_FREE: Final = ("mma", "wgmma.mma_async", "tcgen05.mma")
"""Their words are those of the rows of isa/instructions."""


@lru_cache(maxsize=8192)
def form_of(opcode: str) -> Form | None:
    """The row of an opcode that acts on more than one lane: that with the longest name which takes it."""
    table = opcode_forms()
    parts = opcode.split(".")
    for count in range(len(parts), 0, -1):
        row = table.get(".".join(parts[:count]))
        if row is not None and (row.name in _FREE or row.takes(opcode)):
            return row
    return None


_SPECIAL: Final = ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos", "tanh")
_COMPARING: Final = ("setp", "set", "selp", "slct", "testp", "min", "max")
_SUMS: Final = ("add", "sub", "mul", "fma", "mad", "div", "abs", "neg", "copysign")


@lru_cache(maxsize=8192)
def family_of(opcode: str) -> str:
    """The word for an opcode in reports: `tensor cores`, `f32 arithmetic`, `conversions`."""
    form = form_of(opcode)
    if form is not None:
        if form.family == "memory":
            spaces = [word for word in opcode.split(".") if word in _SPACES]
            space = spaces[0].partition("::")[0] if spaces else "generic"
            return "parameters" if space == "param" else f"{space} memory"
        return form.family
    base, kind = opcode.partition(".")[0], opcode.rpartition(".")[2]
    if base == "cvt":
        return "conversions"
    if base in _COMPARING:
        return "comparisons and choices"
    if base in _SPECIAL or (base == "div" and kind.startswith("f")):
        return "divisions and functions"
    if base in _SUMS and kind.startswith(("f", "bf")):
        return f"{kind.removesuffix('x2')} arithmetic"
    return "moves" if base in ("mov", "prmt") else "integers and bits"
