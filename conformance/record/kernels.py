"""CUDA C with inline PTX for one instruction, made from its row: the only place that writes device code.

A kernel computes independent tiles, one to a thread block (to a pair of them with cta_group::2). All kernels take the same
arguments, `PARAMETERS`; what an operand's words hold is the layout's business (isa/fragments.py), a kernel only moves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from mmabits.isa import lower
from mmabits.isa.errors import OperandError
from mmabits.isa.formats import FormatSpec
from mmabits.isa.fragments import (
    FIRST,
    LANES,
    LEADING_BYTES,
    STRIDE_BYTES,
    TMEM_LANES,
    Layout,
    ScaleSelectors,
    accumulator_columns,
    accumulator_layout,
    accumulator_registers,
    ctas,
    operand_layout,
    operand_registers,
    scale_columns,
    scale_layout,
)
from mmabits.isa.instructions import Family, Instruction

ENTRY: Final = "tile"
"""Name of every kernel."""
PARAMETERS: Final = ("a", "b", "c", "scale_a", "scale_b", "d", "idesc")
"""What a kernel takes, in order: pointers to words (scales null where there are none), and the instruction descriptor."""
_SIGNATURE: Final = (
    "const unsigned* a, const unsigned* b, const unsigned* c, const unsigned* scale_a, const unsigned* scale_b, unsigned* d, unsigned idesc"
)
_TRIES: Final = 1 << 22
"""Polls of a barrier before a kernel gives up: a wrong descriptor must not hang the GPU."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InstructionKernel:
    """A kernel and the layouts of its operands.

    Raises:
        UnsupportedInstruction: the architecture lacks the instruction, or it is not modelled.
    """

    instruction: Instruction
    arch: str
    chain: int = 1
    """Instructions one after another along K, each taking the result of the one before as its C."""
    selectors: ScaleSelectors = FIRST

    def __post_init__(self) -> None:
        if self.chain < 1:
            raise OperandError(f"chain must be at least 1, got {self.chain}")
        lower(self.instruction, self.arch)

    @cached_property
    def source(self) -> str:
        """CUDA C."""
        return _WRITERS[self.instruction.family](self)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return LANES if self.instruction.family is Family.MMA_SYNC else TMEM_LANES

    @property
    def blocks_per_tile(self) -> int:
        """Thread blocks that work on one tile."""
        return ctas(self.instruction)

    @property
    def idesc(self) -> int:
        """The instruction descriptor of tcgen05.mma; 0 for other families, which do not read it."""
        return instruction_descriptor(self.instruction) if self.instruction.family is Family.TCGEN05 else 0

    @cached_property
    def a(self) -> Layout:
        """M x K of the whole chain."""
        return operand_layout(self.instruction, side="a", chain=self.chain)

    @cached_property
    def b(self) -> Layout:
        """K x N."""
        return operand_layout(self.instruction, side="b", chain=self.chain)

    @cached_property
    def accumulator(self) -> Layout:
        """M x N, of C and of D."""
        return accumulator_layout(self.instruction)

    @cached_property
    def scales(self) -> tuple[Layout, Layout] | None:
        """Of A and of B; None without block scales."""
        if self.instruction.block is None:
            return None
        left, right = (scale_layout(self.instruction, side=side, chain=self.chain, selectors=self.selectors) for side in "ab")
        return left, right


# Descriptors ---------------------------------------------------------------------------------------------------------

_F8F6F4_CODES: Final = {"e4m3": 0, "e5m2": 1, "e2m3": 3, "e3m2": 4, "e2m1": 5}
_TYPE_CODES: Final[dict[str, dict[str, int]]] = {
    "f16": {"f16": 0, "bf16": 1},
    "tf32": {"tf32": 2},
    "i8": {"u8": 0, "s8": 1},
    "f8f6f4": _F8F6F4_CODES,
    "mxf8f6f4": _F8F6F4_CODES,
    "mxf4": {"e2m1": 1},
    "mxf4nvf4": {"e2m1": 1},
}
_D_CODES: Final = {"f16": 0, "f32": 1, "s32": 2}
_SCALE_CODES: Final = {"ue4m3": 0, "ue8m0": 1}


def instruction_descriptor(instruction: Instruction) -> int:
    """The 32-bit instruction descriptor of a tcgen05.mma: K-major operands, scales from byte 0, no sparsity."""
    codes = _TYPE_CODES[instruction.kind or ""]
    word = codes[instruction.a_type.name] << 7 | codes[instruction.b_type.name] << 10
    word |= instruction.negate_a << 13 | instruction.negate_b << 14 | instruction.n >> 3 << 17 | instruction.m >> 4 << 24
    if instruction.scale_type is not None:
        return word | _SCALE_CODES[instruction.scale_type.name] << 23
    return word | instruction.satfinite << 3 | _D_CODES[instruction.d_type.name] << 4


_BLACKWELL_DESCRIPTOR: Final = 1 << 46


def _descriptor_constant(family: Family) -> int:
    """A shared-memory matrix descriptor without its address: K-major, no swizzling."""
    version = _BLACKWELL_DESCRIPTOR if family is Family.TCGEN05 else 0
    return LEADING_BYTES >> 4 << 16 | STRIDE_BYTES >> 4 << 32 | version


# Text ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CRegister:
    """How C names a register of an element type, and the letter inline PTX wants for it."""

    c_type: str
    letter: str


_WORD: Final = _CRegister("unsigned", "r")
_REGISTERS: Final = {"f32": _CRegister("float", "f"), "f64": _CRegister("double", "d")}


def _register(spec: FormatSpec) -> _CRegister:
    return _REGISTERS.get(spec.name, _WORD)


def _braced(first: int, count: int) -> str:
    return "{" + ", ".join(f"%{number}" for number in range(first, first + count)) + "}"


def _body(kernel: InstructionKernel, lines: Iterable[str]) -> str:
    cluster = f"__cluster_dims__({kernel.blocks_per_tile}, 1, 1) " if kernel.blocks_per_tile > 1 else ""
    head = f'extern "C" __global__ void {cluster}__launch_bounds__({kernel.threads}) {ENTRY}({_SIGNATURE})'
    return "\n".join([head, "{", *(f"  {line}" for line in lines), "}", ""])


def _to_tile(kernel: InstructionKernel) -> list[str]:
    """Move the pointers to this block's part of its tile."""
    layouts = {"a": kernel.a, "b": kernel.b, "c": kernel.accumulator, "d": kernel.accumulator}
    if kernel.scales is not None:
        layouts |= {"scale_a": kernel.scales[0], "scale_b": kernel.scales[1]}
    return [f"{name} += {layout.words // kernel.blocks_per_tile}ull * blockIdx.x;" for name, layout in layouts.items()]


def _spelled(instruction: Instruction) -> str:
    """The PTX without what is no part of its name: negation and the use of C are operands."""
    return replace(instruction, negate_a=False, negate_b=False, scale_d=True, scale_input_d=0).ptx


def _accumulator_moves(kernel: InstructionKernel) -> tuple[list[str], list[str]]:
    """Lines that load the accumulator registers d0, d1, ... and that store them."""
    register = _register(kernel.instruction.d_type)
    names = range(accumulator_registers(kernel.instruction))
    load = [f"{register.c_type} d{n} = ((const {register.c_type}*)c)[{n} * {kernel.threads} + thread];" for n in names]
    store = [f"(({register.c_type}*)d)[{n} * {kernel.threads} + thread] = d{n};" for n in names]
    return load, store


def _asm(text: str, outputs: Iterable[str], inputs: Iterable[str], *, memory: bool = False) -> list[str]:
    clobbers = ' : "memory"' if memory else ""
    return [f'asm volatile("{text}"', f"  : {', '.join(outputs)}", f"  : {', '.join(inputs)}{clobbers});"]


# mma.sync ------------------------------------------------------------------------------------------------------------


def _fragment_loads(name: str, spec: FormatSpec, registers: int) -> list[str]:
    register = _register(spec)
    letter, c_type = (register.letter, register.c_type) if register.letter == "d" else (_WORD.letter, _WORD.c_type)
    return [f'"{letter}"(((const {c_type}*){name})[(step * {registers} + {n}) * {LANES} + thread])' for n in range(registers)]


def _mma_sync(kernel: InstructionKernel) -> str:
    instruction = kernel.instruction
    counts = accumulator_registers(instruction), operand_registers(instruction, side="a"), operand_registers(instruction, side="b")
    d, a, b = (_braced(sum(counts[:place]), count) for place, count in enumerate(counts))
    inputs = _fragment_loads("a", instruction.a_type, counts[1]) + _fragment_loads("b", instruction.b_type, counts[2])
    scales = ""
    if instruction.block is not None:
        inputs += [f'"r"({name}[step * {LANES} + thread])' for name in ("scale_a", "scale_b")]
        chosen, place = kernel.selectors, sum(counts)
        scales = f", {{%{place}}}, {{{chosen.byte_a}, {chosen.thread_a}}}, {{%{place + 1}}}, {{{chosen.byte_b}, {chosen.thread_b}}}"
    letter = _register(instruction.d_type).letter
    load, store = _accumulator_moves(kernel)
    body = _asm(
        f"{_spelled(instruction)} {d}, {a}, {b}, {d}{scales};", (f'"+{letter}"(d{n})' for n in range(counts[0])), inputs
    )  # fmt: skip
    loop = [f"for (unsigned step = 0; step < {kernel.chain}; ++step) {{", *(f"  {line}" for line in body), "}"]
    return _body(kernel, ["const unsigned thread = threadIdx.x;", *_to_tile(kernel), *load, *loop, *store])


# wgmma ---------------------------------------------------------------------------------------------------------------


def _shared_words(layout: Layout, kernel: InstructionKernel) -> int:
    return layout.words // kernel.blocks_per_tile // kernel.chain


def _shared_memory(kernel: InstructionKernel) -> list[str]:
    return [f"__shared__ __align__(128) unsigned shared_{name}[{_shared_words(getattr(kernel, name), kernel)}];" for name in "ab"]


def _copy_to_shared(kernel: InstructionKernel) -> list[str]:
    """This step's operands to shared memory, and make them visible to the tensor core's proxy."""
    copies = [
        f"for (unsigned i = thread; i < {words}; i += {kernel.threads}) shared_{name}[i] = {name}[step * {words} + i];"
        for name, words in ((name, _shared_words(getattr(kernel, name), kernel)) for name in "ab")
    ]
    return [*copies, 'asm volatile("fence.proxy.async.shared::cta;" ::: "memory");']


def _descriptors(kernel: InstructionKernel) -> list[str]:
    constant = _descriptor_constant(kernel.instruction.family)
    return [
        f"const unsigned long long desc_{name} = {constant:#x}ull | (((unsigned)__cvta_generic_to_shared(shared_{name}) & 0x3FFFF) >> 4);"
        for name in "ab"
    ]


_WGMMA_MAJOR: Final = {"f16": ", 0, 0", "bf16": ", 0, 0"}
"""Operands of wgmma that only 16-bit types have: both matrices K-major."""


def _wgmma(kernel: InstructionKernel) -> str:
    instruction = kernel.instruction
    count = accumulator_registers(instruction)
    signs = (-1 if instruction.negate_a else 1, -1 if instruction.negate_b else 1)
    immediates = "" if instruction.a_type.is_integer else f", {signs[0]}, {signs[1]}{_WGMMA_MAJOR.get(instruction.a_type.name, '')}"
    letter = _register(instruction.d_type).letter
    # One statement, so that no other instruction can touch the accumulators between the fence and the wait.
    text = (
        f"{{.reg .pred p; setp.ne.b32 p, %{count + 2}, 0; wgmma.fence.sync.aligned; {_spelled(instruction)} "
        f"{_braced(0, count)}, %{count}, %{count + 1}, p{immediates}; "
        "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;}"
    )
    use_c = "1" if instruction.scale_d else "step > 0"
    load, store = _accumulator_moves(kernel)
    body = [
        *_copy_to_shared(kernel),
        "__syncthreads();",
        *_asm(text, (f'"+{letter}"(d{n})' for n in range(count)), ('"l"(desc_a)', '"l"(desc_b)', f'"r"((unsigned)({use_c}))'), memory=True),
        "__syncthreads();",
    ]
    loop = [f"for (unsigned step = 0; step < {kernel.chain}; ++step) {{", *(f"  {line}" for line in body), "}"]
    start = ["const unsigned thread = threadIdx.x;", *_shared_memory(kernel), *_to_tile(kernel), *_descriptors(kernel)]
    return _body(kernel, [*start, *load, *loop, *store])


# tcgen05 -------------------------------------------------------------------------------------------------------------

_COLUMNS_AT_ONCE: Final = 8
_CLUSTER_SYNC: Final = 'asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");'
_SMALLEST_ALLOCATION: Final = 32
_SCALE_ALIGNMENT: Final = 4


@dataclass(frozen=True)
class _TmemColumns:
    """Columns of tensor memory: D from 0, then the scales."""

    scale_a: int
    scale_b: int
    allocated: int


def _tensor_memory(kernel: InstructionKernel) -> _TmemColumns:
    scale_a = -(-accumulator_columns(kernel.instruction) // _SCALE_ALIGNMENT) * _SCALE_ALIGNMENT
    if kernel.scales is None:
        scale_b = used = scale_a
    else:
        scale_b = scale_a + -(-scale_columns(kernel.instruction, side="a") // _SCALE_ALIGNMENT) * _SCALE_ALIGNMENT
        used = scale_b + scale_columns(kernel.instruction, side="b")
    return _TmemColumns(scale_a, scale_b, max(_SMALLEST_ALLOCATION, 1 << (used - 1).bit_length()))


def _columns_loop(columns: int, to_tmem: bool) -> list[str]:
    """Move the accumulator between its words and tensor memory, eight columns at a time."""
    words = [f"w{n}" for n in range(_COLUMNS_AT_ONCE)]
    places = [f"[(column + {n}) * {TMEM_LANES} + thread]" for n in range(_COLUMNS_AT_ONCE)]
    if to_tmem:
        move = [f"const unsigned {', '.join(f'{w} = c{p}' for w, p in zip(words, places, strict=True))};"]
        text = f"tcgen05.st.sync.aligned.32x32b.x{_COLUMNS_AT_ONCE}.b32 [%0], {_braced(1, _COLUMNS_AT_ONCE)};"
        move += _asm(text, (), ('"r"(lanes + column)', *(f'"r"({word})' for word in words)), memory=True)
    else:
        text = (
            f"tcgen05.ld.sync.aligned.32x32b.x{_COLUMNS_AT_ONCE}.b32 {_braced(0, _COLUMNS_AT_ONCE)}, [%{_COLUMNS_AT_ONCE}]; "
            "tcgen05.wait::ld.sync.aligned;"
        )
        move = [f"unsigned {', '.join(words)};"]
        move += _asm(text, (f'"=r"({word})' for word in words), ('"r"(lanes + column)',), memory=True)
        move += [f"d{place} = {word};" for word, place in zip(words, places, strict=True)]
    return [f"for (unsigned column = 0; column < {columns}; column += {_COLUMNS_AT_ONCE}) {{", *(f"  {line}" for line in move), "}"]


def _scales_to_tmem(kernel: InstructionKernel, tmem: _TmemColumns) -> list[str]:
    if kernel.scales is None:
        return []
    lines = []
    for side, start in (("a", tmem.scale_a), ("b", tmem.scale_b)):
        columns = scale_columns(kernel.instruction, side=side)
        word = f"scale_{side}[(step * {columns} + column) * {TMEM_LANES} + thread]"
        store = _asm(
            "tcgen05.st.sync.aligned.32x32b.x1.b32 [%0], {%1};", (), (f'"r"(lanes + {start} + column)', f'"r"({word})'), memory=True
        )
        lines += [f"for (unsigned column = 0; column < {columns}; ++column) {{", *(f"  {line}" for line in store), "}"]
    return lines


def _tcgen05_multiply(kernel: InstructionKernel, tmem: _TmemColumns) -> list[str]:
    """The instruction itself, by one thread, and the arrival at the barrier once it is done."""
    instruction = kernel.instruction
    group = f"cta_group::{instruction.cta_group}"
    name = f"tcgen05.mma.{group}.kind::{instruction.kind}"
    inputs = ['"r"(tmem)', '"l"(desc_a)', '"l"(desc_b)', '"r"(idesc)', f'"r"((unsigned)({"1" if instruction.scale_d else "step > 0"}))']
    scales = scale_input = ""
    if instruction.block is not None:
        name += f".block_scale.scale_vec::{instruction.k // instruction.block}X"
        scales = " [%5], [%6],"
        inputs += [f'"r"(tmem + {tmem.scale_a})', f'"r"(tmem + {tmem.scale_b})']
    if instruction.scale_input_d:
        scale_input = f", {instruction.scale_input_d}"
    multiply = f"{{.reg .pred p; setp.ne.b32 p, %4, 0; {name} [%0], %1, %2, %3,{scales} p{scale_input};}}"
    commit = f"tcgen05.commit.{group}.mbarrier::arrive::one.shared::cluster"
    arrive = f"{commit}.multicast::cluster.b64 [%0], %1;" if kernel.blocks_per_tile > 1 else f"{commit}.b64 [%0];"
    to = ('"r"(barrier)', '"h"((unsigned short)3)') if kernel.blocks_per_tile > 1 else ('"r"(barrier)',)
    body = [*_asm(multiply, (), inputs, memory=True), *_asm(arrive, (), to, memory=True)]
    condition = "thread == 0 && blockIdx.x % 2 == 0" if kernel.blocks_per_tile > 1 else "thread == 0"
    return [f"if ({condition}) {{", *(f"  {line}" for line in body), "}"]


def _wait(kernel: InstructionKernel) -> list[str]:
    """Poll the barrier, and trap rather than hang."""
    test = _asm(
        "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}",
        ('"=r"(done)',), ('"r"(barrier)', '"r"(step & 1)'), memory=True,
    )  # fmt: skip
    return [
        "unsigned done = 0;",
        f"for (unsigned tries = 0; !done && tries < {_TRIES}; ++tries) {{",
        *(f"  {line}" for line in test),
        "}",
        'if (!done) asm volatile("trap;");',
        "__syncthreads();",
    ]


def _tcgen05(kernel: InstructionKernel) -> str:
    tmem = _tensor_memory(kernel)
    group = f"cta_group::{kernel.instruction.cta_group}"
    together = _CLUSTER_SYNC if kernel.blocks_per_tile > 1 else "__syncthreads();"
    before, after = (f'asm volatile("tcgen05.fence::{side}_thread_sync;" ::: "memory");' for side in ("before", "after"))
    columns = accumulator_columns(kernel.instruction)
    start = [
        "const unsigned thread = threadIdx.x;",
        *_shared_memory(kernel),
        "__shared__ unsigned tmem_base;",
        "__shared__ __align__(8) unsigned long long mbarrier;",
        *_to_tile(kernel),
        *_descriptors(kernel),
        "const unsigned barrier = (unsigned)__cvta_generic_to_shared(&mbarrier);",
        "if (thread < 32) {",
        f'  asm volatile("tcgen05.alloc.{group}.sync.aligned.shared::cta.b32 [%0], {tmem.allocated};"',
        '    :: "r"((unsigned)__cvta_generic_to_shared(&tmem_base)) : "memory");',
        f'  asm volatile("tcgen05.relinquish_alloc_permit.{group}.sync.aligned;");',
        "}",
        'if (thread == 0) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1; fence.mbarrier_init.release.cluster;" '
        ':: "r"(barrier) : "memory");',
        before,
        together,
        after,
        "const unsigned tmem = tmem_base;",
        "const unsigned lanes = tmem + (thread / 32 << 21);",
        *_columns_loop(columns, to_tmem=True),
    ]
    body = [
        *_copy_to_shared(kernel),
        *_scales_to_tmem(kernel, tmem),
        'asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory");',
        before,
        together,
        after,
        *_tcgen05_multiply(kernel, tmem),
        *_wait(kernel),
        after,
    ]
    end = [
        *_columns_loop(columns, to_tmem=False),
        before,
        together,
        f'if (thread < 32) asm volatile("tcgen05.dealloc.{group}.sync.aligned.b32 %0, {tmem.allocated};" :: "r"(tmem));',
    ]
    loop = [f"for (unsigned step = 0; step < {kernel.chain}; ++step) {{", *(f"  {line}" for line in body), "}"]
    return _body(kernel, [*start, *loop, *end])


_WRITERS: Final[dict[Family, Callable[[InstructionKernel], str]]] = {
    Family.MMA_SYNC: _mma_sync,
    Family.WGMMA: _wgmma,
    Family.TCGEN05: _tcgen05,
}
