"""tcgen05.mma in a kernel, of every kind and type, against `mmabits.gemm`: descriptors, majors, swizzles, scales, chains, waits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import operands
import pytest
from machine_values import finite_codes

import mmabits
from mmabits.conformance.record.kernels import instruction_descriptor as encoded
from mmabits.conformance.record.session import recordable, representatives
from mmabits.emulator.codecs import as_codes, from_codes
from mmabits.emulator.machine import descriptors
from mmabits.emulator.machine.descriptors import MatrixDescriptor, Swizzle, encode_tcgen05
from mmabits.emulator.machine.kernel import Kernel, KernelError
from mmabits.emulator.machine.warp import UnknownOpcode
from mmabits.isa import OperandError, parse
from mmabits.isa.fragments import accumulator_layout, scale_layout
from mmabits.isa.instructions import Instruction

ARCHITECTURES = ("sm_100a", "sm_103a")
IMAGE = 1 << 16
SWIZZLES = {each.name: each for each in descriptors.TCGEN05_SWIZZLES.values()}


def instructions(arch: str) -> list[Instruction]:
    return [each for each in recordable(arch, only="tcgen05.mma.cta_group::1") if each.k != 96]


def test_instruction_descriptors_are_read_as_the_recorder_writes_them() -> None:
    for arch in ARCHITECTURES:
        for instruction in recordable(arch, only="tcgen05.mma"):
            if instruction.k == 96 or not instruction.scale_d:
                continue
            said = descriptors.instruction_descriptor(
                encoded(instruction), instruction.kind or "", block=instruction.block or 0, group=instruction.cta_group or 1,
                shift=instruction.scale_input_d,
            )  # fmt: skip
            assert parse(said.ptx) == instruction and not said.a_mn_major and not said.b_mn_major


@pytest.mark.parametrize(("code", "kind", "message"), [
    (0x4110010 | 1 << 2, "f16", "sparse A"), (0x4110010 | 1, "f16", "sparse A"), (0x4110010 | 1 << 30, "f16", "a shift of B"),
    (0x4110010 | 1 << 6, "f16", "mean nothing"), (0x4110010 | 2 << 7, "f16", "types 2, 0 and 1"), (0x4110030, "f16", "types 0, 0 and 3"),
    (0x8A00000 | 1 << 31, "mxf8f6f4", "K = 96"), (0x8A00000 | 1 << 3, "mxf8f6f4", "mean nothing"),
])  # fmt: skip
def test_instruction_descriptors_that_are_refused(code: int, kind: str, message: str) -> None:
    with pytest.raises(OperandError, match=message):
        descriptors.instruction_descriptor(code, kind, block=32)


def described(swizzle: Swizzle, mn_major: bool, rows: int, start: int, bits: int, elements: int) -> MatrixDescriptor:
    """A descriptor of a matrix whose atoms lie close together."""
    span, lines = swizzle.span, swizzle.rows
    if not mn_major:
        return MatrixDescriptor(start, 128 if span == 16 else 0, 256 if span == 16 else 8 * span, swizzle)
    chunks = -(-rows // elements)
    if span == 16:
        return MatrixDescriptor(start, 128 * chunks, 128, swizzle)
    atoms = -(-chunks * 16 // span)
    return MatrixDescriptor(start, lines * span, lines * span * atoms, swizzle)


def put(memory: npt.NDArray[np.uint8], matrix: MatrixDescriptor, codes: npt.NDArray[Any], bits: int, elements: int, mn_major: bool) -> None:
    """Write (rows, K) codes where the descriptor has them."""
    for row in range(codes.shape[0]):
        for k in range(codes.shape[1]):
            at = matrix.element(row, k, bits=bits, elements=elements, mn_major=mn_major)
            word = int(codes[row, k]) << at % 8
            for place in range((at % 8 + bits + 7) // 8):
                memory[at // 8 + place] |= word >> 8 * place & 255


@dataclass
class Case:
    """A kernel of one CTA that multiplies `chain` times."""

    instruction: Instruction
    arch: str = "sm_100a"
    chain: int = 2
    swizzle_a: Swizzle = descriptors.NONE
    swizzle_b: Swizzle = descriptors.NONE
    a_mn: bool = False
    b_mn: bool = False
    a_in_cells: bool = False
    lane: int = 0
    """Of D and A, for M = 64."""
    adds: bool = True
    masks: tuple[int, ...] = ()
    copied_scales: bool = False
    codes: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = operands.generator("tcgen05", self.arch, self.instruction.ptx, self.chain)
        row = self.instruction
        k = row.k * self.chain
        self.codes = {"a": finite_codes(rng, (row.m, k), row.a_type), "b": finite_codes(rng, (k, row.n), row.b_type),
                      "c": finite_codes(rng, (row.m, row.n), row.d_type)}  # fmt: skip
        if row.scale_type is not None and row.block:
            self.codes["scale_a"] = finite_codes(rng, (row.m, k // row.block), row.scale_type)
            self.codes["scale_b"] = finite_codes(rng, (k // row.block, row.n), row.scale_type)

    @property
    def columns(self) -> dict[str, int]:
        """First columns of D, of A and of the scales of each step."""
        return {"c": 0, "a": 256, "scale_a": 384, "scale_b": 448}

    def image(self) -> tuple[npt.NDArray[np.uint8], list[int], list[int]]:
        """Shared memory, and the descriptors of A and B at each step."""
        row, memory = self.instruction, np.zeros(IMAGE, np.uint8)
        kind, at, found = descriptors.PRODUCT_KINDS[row.kind or ""], 0, ([], [])
        for step in range(self.chain):
            part = slice(step * row.k, (step + 1) * row.k)
            for side, spec, codes, swizzle, mn in ((0, row.a_type, self.codes["a"][:, part], self.swizzle_a, self.a_mn),
                                                   (1, row.b_type, self.codes["b"][part].T, self.swizzle_b, self.b_mn)):  # fmt: skip
                elements = descriptors.elements_of_chunk(kind, spec.code_bits)
                matrix = described(swizzle, mn, codes.shape[0], at, spec.code_bits, elements)
                put(memory, matrix, codes, spec.code_bits, elements, mn)
                found[side].append(encode_tcgen05(matrix))
                last = matrix.element(codes.shape[0] - 1, row.k - 1, bits=spec.code_bits, elements=elements, mn_major=mn) // 8
                at = max(last, int(np.flatnonzero(memory).max(initial=0))) // 1024 * 1024 + 1024
        assert at <= IMAGE
        return memory, *found

    def cells(self) -> npt.NDArray[np.uint32]:
        """Tensor memory at the start, (lanes, columns)."""
        row, cells = self.instruction, np.full((128, 512), 0x7FC12345, np.uint32)
        layout = accumulator_layout(row)
        given = layout.pack(self.codes["c"][None])[0].reshape(row.n, 128).T
        rows = np.flatnonzero(np.isin(np.arange(128), layout.starts[0] // 32 % 128))
        cells[rows + self.lane, : row.n] = given[rows]
        if self.a_in_cells:
            kind = descriptors.PRODUCT_KINDS[row.kind or ""]
            shift = 2 if kind.slot_bits == 8 and row.a_type.code_bits == 4 else 0
            per = 32 // kind.slot_bits
            codes = self.codes["a"].astype(np.uint64) & ((1 << row.a_type.code_bits) - 1)
            packed = sum((codes[:, place::per] << (kind.slot_bits * place + shift)) for place in range(per))
            lanes = rows + self.lane
            cells[lanes, self.columns["a"] : self.columns["a"] + packed.shape[1]] = packed
        for side in ("scale_a", "scale_b") if row.scale_type is not None else ():
            layout = scale_layout(row, side=side[-1], chain=self.chain)
            packed = layout.pack(self.codes[side][None])[0].reshape(-1, 128).T
            cells[:, self.columns[side] : self.columns[side] + packed.shape[1]] = packed
        return cells

    def scale_columns_of_step(self, layout: Any) -> int:
        """Columns of tensor memory that the scales of one instruction take."""
        return layout.bits // 32 // 128 // self.chain

    def text(self, extra: str = "", enable: str = "") -> str:
        row = self.instruction
        _, a, b = self.image()
        code = encoded(row) | self.a_mn << 15 | self.b_mn << 16
        lines = []
        for step in range(self.chain):
            scales = mask = shift = ""
            if row.scale_type is not None:
                columns = [self.scale_columns_of_step(scale_layout(row, side=side, chain=self.chain)) * step for side in "ab"]
                scales = "".join(
                    f", [%base+{self.columns[side] + column}]" for side, column in zip(("scale_a", "scale_b"), columns, strict=True)
                )
            if self.masks:
                mask = f", {{{', '.join(map(str, self.masks))}}}"
            if row.scale_input_d:
                shift = f", {row.scale_input_d}"
            block = f".block_scale.block{row.block}" if row.block else ""
            per_column = 32 // descriptors.PRODUCT_KINDS[row.kind or ""].slot_bits
            left = f"[%taddr+{self.columns['a'] + step * row.k // per_column}]" if self.a_in_cells else f"{a[step]}"
            adds = "%p3" if step or self.adds else "%p4"
            lines.append(
                f"@%p1 tcgen05.mma.cta_group::1.kind::{row.kind}{block} [%taddr], {left}, {b[step]}, %idesc{scales}{mask}, {adds}{shift};"
            )
        return f"""
.version 8.8
.target sm_100a
.address_size 64
.visible .entry k(.param .u64 k_0, .param .u64 k_1, .param .u64 k_2) .reqntid 128 {{
	.shared .align 1024 .b8 image[{IMAGE}];
	.shared .align 16 .b8 place[16];
	.shared .align 8 .b8 bar[8];
	.reg .pred %p<9>; .reg .b32 %r<99>; .reg .b64 %rd<9>; .reg .b32 %warp, %base, %mine, %taddr, %idesc; .reg .b32 %v<32>;
	ld.param.b64 %rd1, [k_0]; ld.param.b64 %rd2, [k_1]; ld.param.b64 %rd3, [k_2];
	mov.u32 %r1, %tid.x; shr.u32 %warp, %r1, 5;
	setp.eq.b32 %p1, %r1, 0; setp.lt.u32 %p2, %r1, 32; mov.pred %p3, -1; mov.pred %p4, 0;
	@%p2 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [place], 512;
	@%p1 mbarrier.init.shared::cta.b64 [bar], 1;
	mov.b32 %idesc, {code};
	mov.b32 %r2, 0; shl.b32 %r3, %r1, 2; cvt.u64.u32 %rd4, %r3; add.s64 %rd5, %rd1, %rd4; mov.b32 %r4, image; add.s32 %r4, %r4, %r3;
$L_image:
	ld.global.b32 %r5, [%rd5]; st.shared.b32 [%r4], %r5;
	add.s64 %rd5, %rd5, 512; add.s32 %r4, %r4, 512; add.s32 %r2, %r2, 1;
	setp.lt.u32 %p5, %r2, {IMAGE // 512};
	@%p5 bra $L_image;
	bar.sync 0;
	ld.shared.b32 %base, [place];
	shl.b32 %r6, %warp, 21; add.s32 %mine, %base, %r6; add.s32 %taddr, %base, {self.lane << 16};
	mul.wide.u32 %rd6, %r1, 2048; add.s64 %rd7, %rd2, %rd6; mov.b32 %r2, 0; mov.b32 %r7, %mine;
$L_cells:
	{"".join(f"ld.global.b32 %v{place}, [%rd7+{4 * place}];" for place in range(32))}
	tcgen05.st.sync.aligned.32x32b.x32.b32 [%r7], {{{", ".join(f"%v{place}" for place in range(32))}}};
	add.s64 %rd7, %rd7, 128; add.s32 %r7, %r7, 32; add.s32 %r2, %r2, 1;
	setp.lt.u32 %p5, %r2, 16;
	@%p5 bra $L_cells;
	tcgen05.wait::st.sync.aligned;
	tcgen05.fence::before_thread_sync;
	fence.proxy.async.shared::cta;
	bar.sync 0;
	tcgen05.fence::after_thread_sync;
	{enable}
	{chr(10).join(lines)}
	@%p1 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [bar];
	{extra}
$L_wait:
	mbarrier.try_wait.parity.shared::cta.b64 %p5, [bar], 0;
	@!%p5 bra $L_wait;
	bar.sync 0;
	mul.wide.u32 %rd6, %r1, 2048; add.s64 %rd7, %rd3, %rd6; mov.b32 %r2, 0; mov.b32 %r7, %mine;
$L_out:
	tcgen05.ld.sync.aligned.32x32b.x32.b32 {{{", ".join(f"%v{place}" for place in range(32))}}}, [%r7];
	tcgen05.wait::ld.sync.aligned;
	{"".join(f"st.global.b32 [%rd7+{4 * place}], %v{place};" for place in range(32))}
	add.s64 %rd7, %rd7, 128; add.s32 %r7, %r7, 32; add.s32 %r2, %r2, 1;
	setp.lt.u32 %p5, %r2, 16;
	@%p5 bra $L_out;
	bar.sync 0;
	@%p2 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %base, 512;
	ret;
}}"""

    def run(self, **parts: str) -> npt.NDArray[np.uint32]:
        """Tensor memory after it."""
        image, cells, out = self.image()[0], self.cells(), np.zeros((128, 512), np.uint32)
        arrays = (image, cells, out)
        self.kernel = Kernel(self.text(**parts), arch=self.arch)
        self.executed = self.kernel.launch(
            (1,), [each.ctypes.data for each in arrays], [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in arrays]
        )
        return out

    def d(self, cells: npt.NDArray[np.uint32]) -> npt.NDArray[Any]:
        """Codes of D in tensor memory."""
        layout = accumulator_layout(self.instruction)
        lanes = np.roll(cells, -self.lane, axis=0)[:, : self.instruction.n]
        return layout.unpack(np.ascontiguousarray(lanes.T).reshape(1, -1))[0]

    def wanted(self) -> npt.NDArray[Any]:
        row = self.instruction

        def values(name: str, spec: Any) -> Any:
            return from_codes(self.codes[name], spec)

        scales = {name: values(name, row.scale_type) for name in ("scale_a", "scale_b") if row.scale_type is not None}
        c = values("c", row.d_type) if self.adds else None
        found = mmabits.gemm(values("a", row.a_type), values("b", row.b_type), c, instruction=row, arch=self.arch, **scales)
        return as_codes(found, row.d_type)

    def check(self, **parts: str) -> None:
        cells, before = self.run(**parts), self.cells()
        assert np.array_equal(self.d(cells), self.wanted())
        lanes = accumulator_layout(self.instruction).starts[0] // 32 % 128 + self.lane
        untouched = np.ones((128, 512), bool)
        untouched[np.unique(lanes), : self.instruction.n] = False
        assert np.array_equal(cells[untouched], before[untouched])
        assert self.executed == {self.instruction: self.chain}


class Pair(Case):
    """The same by two CTAs of a cluster: rank 0 asks, both have half of A and of B, and both are told."""

    def halves(self, name: str) -> list[npt.NDArray[Any]]:
        codes = self.codes[name]
        return np.split(codes, 2, axis=0) if name == "a" else np.split(codes, 2, axis=1)

    def image(self) -> tuple[npt.NDArray[np.uint8], list[int], list[int]]:
        whole = dict(self.codes)
        found = []
        for half in range(2):
            self.codes = {**whole, "a": self.halves("a")[half], "b": self.halves("b")[half]}
            found.append(Case.image(self))
            self.codes = whole
        assert found[0][1:] == found[1][1:]
        return np.stack([each[0] for each in found]), *found[0][1:]

    def cells(self) -> npt.NDArray[np.uint32]:
        row, cells = self.instruction, np.full((2, 128, 512), 0x7FC12345, np.uint32)
        given = accumulator_layout(row).pack(self.codes["c"][None])[0].reshape(2, -1, 128).swapaxes(1, 2)
        used = np.zeros((2, given.shape[2], 128), bool).reshape(-1)
        used[accumulator_layout(row).starts[0] // 32] = True
        np.copyto(cells[:, :, : given.shape[2]], given, where=used.reshape(2, -1, 128).swapaxes(1, 2))
        if self.a_in_cells:
            kind = descriptors.PRODUCT_KINDS[row.kind or ""]
            per = 32 // kind.slot_bits
            for half, codes in enumerate(self.halves("a")):
                packed = sum(codes[:, place::per].astype(np.uint64) << kind.slot_bits * place for place in range(per))
                cells[half, : len(codes), self.columns["a"] : self.columns["a"] + packed.shape[1]] = packed
        for side in ("scale_a", "scale_b") if row.scale_type is not None else ():
            layout = scale_layout(row, side=side[-1], chain=self.chain)
            packed = layout.pack(self.codes[side][None])[0].reshape(2, -1, 128).swapaxes(1, 2)
            cells[:, :, self.columns[side] : self.columns[side] + packed.shape[2]] = packed
        return cells

    def scale_columns_of_step(self, layout: Any) -> int:
        return layout.bits // 32 // 128 // self.chain // 2

    def text(self, extra: str = "", enable: str = "") -> str:
        found = Case.text(self, extra, enable).replace("cta_group::1", "cta_group::2")
        found = found.replace(".reqntid 128", ".reqntid 128 .reqnctapercluster 2").replace("@%p1 tcgen05", "@%p6 tcgen05")
        found = found.replace("shared::cluster.b64 [bar];", "shared::cluster.multicast::cluster.b64 [bar], %mask;")
        found = found.replace(
            "mov.u32 %r1, %tid.x;",
            f"""mov.u32 %r1, %tid.x; .reg .b32 %rank; .reg .b16 %mask; mov.b16 %mask, 3;
	mov.u32 %rank, %cluster_ctarank; mad.wide.u32 %rd1, %rank, {IMAGE}, %rd1;
	mad.wide.u32 %rd2, %rank, {128 * 2048}, %rd2; mad.wide.u32 %rd3, %rank, {128 * 2048}, %rd3;""",
            1,
        )
        found = found.replace("mov.pred %p4, 0;", "mov.pred %p4, 0; setp.eq.b32 %p7, %rank, 0; and.pred %p6, %p1, %p7;", 1)
        both = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"
        return found.replace("tcgen05.fence::after_thread_sync;", f"{both} tcgen05.fence::after_thread_sync;", 1)

    def run(self, **parts: str) -> npt.NDArray[np.uint32]:
        image, cells, out = self.image()[0], self.cells(), np.zeros((2, 128, 512), np.uint32)
        arrays = (image, cells, out)
        self.kernel = Kernel(self.text(**parts), arch=self.arch)
        self.executed = self.kernel.launch(
            (2,), [each.ctypes.data for each in arrays], [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in arrays]
        )
        return out

    def d(self, cells: npt.NDArray[np.uint32]) -> npt.NDArray[Any]:
        layout = accumulator_layout(self.instruction)
        columns = layout.bits // 32 // 256
        return layout.unpack(np.ascontiguousarray(cells[:, :, :columns].swapaxes(1, 2)).reshape(1, -1))[0]

    def check(self, **parts: str) -> None:
        cells, before = self.run(**parts), self.cells()
        assert np.array_equal(self.d(cells), self.wanted())
        columns = accumulator_layout(self.instruction).bits // 32 // 256
        assert np.array_equal(cells[:, :, columns:], before[:, :, columns:])
        assert self.executed == {self.instruction: self.chain}


def pairs() -> list[object]:
    found = []
    for arch in ARCHITECTURES:
        for instruction in recordable(arch, only="tcgen05.mma.cta_group::2"):
            if instruction.k != 96 and not instruction.scale_input_d and instruction.scale_d:
                quick = arch == "sm_100a" and instruction.n in (64, 32) and instruction.d_type.name != "f16"
                found.append(pytest.param(arch, instruction, marks=() if quick else pytest.mark.slow, id=f"{arch}-{instruction.ptx}"))
    return found


@pytest.mark.parametrize(("arch", "instruction"), pairs())
def test_a_chain_of_every_instruction_of_two_ctas(arch: str, instruction: Instruction) -> None:
    Pair(instruction, arch=arch).check()


@pytest.mark.parametrize("m", [128, 256])
def test_two_ctas_with_a_in_tensor_memory(m: int) -> None:
    Pair(parse(f"tcgen05.mma.cta_group::2.kind::f16.m{m}n64k16.f32.f16.f16"), a_in_cells=True).check()


def test_two_ctas_with_swizzles_and_majors() -> None:
    name = "tcgen05.mma.cta_group::2.kind::f16.m256n128k16.f32.bf16.bf16"
    Pair(parse(name), swizzle_a=descriptors.SPAN_128, swizzle_b=descriptors.SPAN_64, b_mn=True).check()


def test_two_ctas_need_a_cluster() -> None:
    case = Case(parse(F16))
    with pytest.raises(UnknownOpcode, match="in clusters of 1 CTAs"):
        Kernel(case.text().replace("cta_group::1", "cta_group::2"), arch="sm_100a")


def every() -> list[object]:
    found = []
    for arch in ARCHITECTURES:
        for instruction in instructions(arch):
            quick = instruction in representatives(arch) and arch == "sm_100a"
            marks = () if quick else pytest.mark.slow
            found.append(pytest.param(arch, instruction, marks=marks, id=f"{arch}-{instruction.ptx}"))
    return found


@pytest.mark.parametrize(("arch", "instruction"), every())
def test_a_chain_of_every_instruction(arch: str, instruction: Instruction) -> None:
    case = Case(instruction, arch=arch, chain=1 if instruction.scale_input_d else 2)
    case.adds = instruction.scale_d
    case.check()
    assert case.kernel.matrices == (instruction,)


F16 = "tcgen05.mma.cta_group::1.kind::f16.m64n24k16.f32.f16.f16"
MAJORS = {
    "f16": F16, "tf32": "tcgen05.mma.cta_group::1.kind::tf32.m64n40k8.f32.tf32.tf32",
    "e4m3": "tcgen05.mma.cta_group::1.kind::f8f6f4.m64n24k32.f32.e4m3.e5m2", "s8": "tcgen05.mma.cta_group::1.kind::i8.m64n16k32.s32.s8.u8",
}  # fmt: skip


@pytest.mark.parametrize("swizzle", SWIZZLES)
@pytest.mark.parametrize("b_mn", [False, True], ids=["b-k-major", "b-mn-major"])
@pytest.mark.parametrize("a_mn", [False, True], ids=["a-k-major", "a-mn-major"])
@pytest.mark.parametrize("name", MAJORS)
def test_majors_and_swizzles(name: str, a_mn: bool, b_mn: bool, swizzle: str) -> None:
    if SWIZZLES[swizzle].unit == 32 and not (a_mn and b_mn):
        pytest.skip("atoms of 32 bytes are for MN-major matrices")
    Case(parse(MAJORS[name]), swizzle_a=SWIZZLES[swizzle], swizzle_b=SWIZZLES[swizzle], a_mn=a_mn, b_mn=b_mn).check()


IN_CELLS = (
    F16, "tcgen05.mma.cta_group::1.kind::f16.m128n16k16.f32.bf16.bf16", "tcgen05.mma.cta_group::1.kind::tf32.m128n8k8.f32.tf32.tf32",
    "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n16k32.f16.e2m1.e3m2", "tcgen05.mma.cta_group::1.kind::f8f6f4.m64n16k32.f32.e2m3.e4m3",
    "tcgen05.mma.cta_group::1.kind::i8.m128n16k32.s32.s8.s8",
    "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n16k32.f32.e5m2.e2m1.ue8m0",
    "tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n16k64.f32.e2m1.e2m1.ue8m0",
)  # fmt: skip


@pytest.mark.parametrize("name", IN_CELLS)
def test_a_in_tensor_memory(name: str) -> None:
    Case(parse(name), a_in_cells=True).check()


def test_m_64_in_the_upper_half_of_the_quarters() -> None:
    Case(parse(F16), lane=16).check()
    Case(parse(F16), lane=16, a_in_cells=True).check()


def test_without_d_it_is_not_read() -> None:
    case = Case(parse(F16), adds=False)
    case.codes["c"][:] = 0x7FC00000
    case.check()


def test_lanes_that_are_not_written() -> None:
    masks = (0xFFFFFFFF, 0, 0x0F0F0F0F, 1 << 31 | 1)
    case = Case(parse(F16.replace("m64", "m128")), masks=masks)
    found, before = case.run(), case.cells()
    kept = np.array([masks[lane // 32] >> lane % 32 & 1 for lane in range(128)], bool)
    assert np.array_equal(found[kept], before[kept])
    assert np.array_equal(case.d(found)[~kept], case.wanted()[~kept])


def test_a_descriptor_that_is_only_known_at_run_time() -> None:
    case = Case(parse(F16))
    case.check(enable="add.s32 %idesc, %idesc, %r2; sub.s32 %idesc, %idesc, %r2;")
    case = Case(parse(F16))
    with pytest.raises(KernelError, match=r"the instruction descriptor 0x\w+, refused, .*sparse A"):
        case.run(enable="or.b32 %idesc, %idesc, 4;")


def test_a_constant_descriptor_is_checked_before_the_launch() -> None:
    case = Case(parse(F16))
    with pytest.raises(UnknownOpcode, match=r"k: tcgen05\.mma\.cta_group::1\.kind::f16 \(.*sparse A.*line \d+"):
        Kernel(
            case.text().replace(f"mov.b32 %idesc, {encoded(case.instruction)}", f"mov.b32 %idesc, {encoded(case.instruction) | 4}"),
            arch="sm_100a",
        )
    with pytest.raises(UnknownOpcode, match="is not emulated"):
        Kernel(case.text(), arch="sm_90a")
    integers = Case(parse(MAJORS["s8"]))
    with pytest.raises(UnknownOpcode, match="sm_103a"):
        Kernel(integers.text(), arch="sm_103a")


@pytest.mark.parametrize(("old", "new", "message"), [
    ("mma.cta_group::1.kind::f16", "mma.ws.cta_group::1.kind::f16", "tcgen05.mma.ws"),
    ("mma.cta_group::1.kind::f16", "mma.sp.cta_group::1.kind::f16", "tcgen05.mma.sp"),
    ("mma.cta_group::1.kind::f16", "mma.cta_group::1.kind::f16.ashift", "ashift"),
    ("mma.cta_group::1.kind::f16", "mma.cta_group::1.kind::f17", "kind::f17"),
])  # fmt: skip
def test_forms_that_are_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(UnknownOpcode, match=message):
        Kernel(Case(parse(F16)).text().replace(old, new), arch="sm_100a")


def test_collector_hints_change_nothing() -> None:
    case = Case(parse(F16))
    kernel = Kernel(case.text().replace("kind::f16 ", "kind::f16.collector::a::fill "), arch="sm_100a")
    assert kernel.matrices == (case.instruction,)


def test_products_wait_until_somebody_waits_for_them() -> None:
    """Shared memory is overwritten after the products were asked for and before the wait: a race, which shows."""
    case = Case(parse(F16))
    spoiled = "bar.sync 0; mov.b32 %r20, 0; mov.b32 %r21, image; st.shared.b32 [%r21], %r20; bar.sync 0;"
    found = case.run(extra=spoiled)
    case.codes["a"][0, :2] = 0
    assert np.array_equal(case.d(found), case.wanted())


def unpacked(row: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """16 codes at the beginning of 16 bytes, a byte each; those of 4 bits in bits 2 to 5."""
    whole = int.from_bytes(row.tobytes(), "little")
    return np.array([(whole >> bits * place & (1 << bits) - 1) << (2 if bits == 4 else 0) for place in range(16)], np.uint8)


LANES_OF = {
    "128x256b": [[row] for row in range(128)], "128x128b": [[row] for row in range(128)], "4x256b": [[32 * row] for row in range(4)],
    "64x128b.warpx2::02_13": [[row, row + 64] for row in range(64)],
    "64x128b.warpx2::01_23": [[row + 32 * (row // 32), row + 32 * (row // 32) + 32] for row in range(64)],
    "32x128b.warpx4": [[row, row + 32, row + 64, row + 96] for row in range(32)],
}  # fmt: skip
"""Lanes of tensor memory that get each row of tcgen05.cp."""


@pytest.mark.parametrize("packed", ["", ".b8x16.b6x16_p32", ".b8x16.b4x16_p64"])
@pytest.mark.parametrize("shape", LANES_OF)
@pytest.mark.parametrize("swizzle", ["none", "128B"])
def test_copies_into_tensor_memory(shape: str, packed: str, swizzle: str) -> None:
    """Of every shape, to columns 8 and on, in front of a product that reads none of it."""
    case = Case(parse(F16), chain=1)
    words = ".".join(reversed(shape.split(".")))
    chunks = 2 if "256b" in shape else 1
    lanes, lane0 = LANES_OF[shape], 31 if shape == "4x256b" else 0
    rng = operands.generator("tcgen05.cp", shape, packed, swizzle)
    image = rng.integers(0, 256, IMAGE).astype(np.uint8)
    matrix = described(SWIZZLES[swizzle], False, len(lanes), 4096, 8, 16)
    text = case.text()
    start = text.index("@%p1 tcgen05.mma")
    text = text[:start] + (
        f"@%p1 tcgen05.cp.cta_group::1.{words}{packed} [%base+{(lane0 << 16) + 8}], {encode_tcgen05(matrix)};"
    ) + text[text.index("\n", start) :]  # fmt: skip
    cells, out = case.cells(), np.zeros((128, 512), np.uint32)
    arrays = (image, cells, out)
    Kernel(text, arch="sm_100a").launch(
        (1,), [each.ctypes.data for each in arrays], [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in arrays]
    )
    wanted = cells.copy()
    for row, targets in enumerate(lanes):
        for chunk in range(chunks):
            at = matrix.element(row, 16 * chunk, bits=8, elements=16, mn_major=False) // 8
            octets = image[at : at + 16]
            if packed:
                octets = unpacked(octets, 6 if "b6x16" in packed else 4)
            for lane in targets:
                wanted[lane0 + lane, 8 + 4 * chunk : 12 + 4 * chunk] = octets.view(np.uint32)
    assert np.array_equal(out, wanted)


def test_scales_that_differ_between_the_quarters_are_an_error() -> None:
    """Every quarter of tensor memory reads its own copy; here they are one."""
    case = Case(parse("tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n16k64.f32.e2m1.e2m1.ue8m0"))
    cells, image, out = case.cells(), case.image()[0], np.zeros((128, 512), np.uint32)
    cells[64, case.columns["scale_b"]] ^= 1
    arrays = (image, cells, out)
    with pytest.raises(KernelError, match="not the same in all four quarters"):
        Kernel(case.text(), arch="sm_100a").launch(
            (1,), [each.ctypes.data for each in arrays], [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in arrays]
        )


def test_scales_of_another_byte() -> None:
    """SFA_ID and SFB_ID choose where in their column scales begin; one that does not fit is an error."""
    name = "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n16k32.f32.e4m3.e4m3.ue8m0"
    for step, (left, right) in enumerate(((1, 3), (2, 0), (3, 2))):
        case = Case(parse(name), chain=1)
        cells, image, out = case.cells(), case.image()[0], np.zeros((128, 512), np.uint32)
        for side, byte in (("scale_a", left), ("scale_b", right)):
            columns = slice(case.columns[side], case.columns[side] + 4)
            cells[:, columns] = cells[:, columns] << 8 * byte | (0x55 >> step if byte else 0x5500)
        code = encoded(case.instruction)
        arrays = (image, cells, out)
        Kernel(case.text().replace(f"%idesc, {code};", f"%idesc, {code | left << 29 | right << 4};"), arch="sm_100a").launch(
            (1,), [each.ctypes.data for each in arrays], [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in arrays]
        )
        assert np.array_equal(case.d(out), case.wanted())
    case = Case(parse("tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n16k64.f32.e2m1.e2m1.ue8m0"), chain=1)
    with pytest.raises(KernelError, match="a byte of scales that there is not: 0x1"):
        case.run(enable="or.b32 %idesc, %idesc, 16;")


def test_commits_come_in_their_order() -> None:
    """A wait for the second barrier tells the first one too: products are done in the order in which they were asked for."""
    case = Case(parse(F16))
    first = "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [first];"
    text = case.text().replace(".shared .align 8 .b8 bar[8];", ".shared .align 8 .b8 bar[8]; .shared .align 8 .b8 first[8];")
    text = text.replace("@%p1 mbarrier.init.shared::cta.b64 [bar], 1;", "@%p1 mbarrier.init.shared::cta.b64 [bar], 1; "
                        "@%p1 mbarrier.init.shared::cta.b64 [first], 1;")  # fmt: skip
    text = text.replace("@%p1 tcgen05.commit", f"@%p1 {first} @%p1 tcgen05.commit", 1)
    text = text.replace("@!%p5 bra $L_wait;", "@!%p5 bra $L_wait; bar.sync 0; @%p1 mbarrier.inval.shared::cta.b64 [first];")
    image, cells, out = case.image()[0], case.cells(), np.zeros((128, 512), np.uint32)
    arrays = (image, cells, out)
    Kernel(text, arch="sm_100a").launch(
        (1,), [each.ctypes.data for each in arrays], [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in arrays]
    )
    assert np.array_equal(case.d(out), case.wanted())


def test_matrices_outside_of_shared_memory() -> None:
    case = Case(parse(F16))
    far = encode_tcgen05(MatrixDescriptor(0x3F000, 128, 256, descriptors.NONE))
    near = case.image()[1][0]
    with pytest.raises(KernelError, match=r"a matrix .* outside shared memory, .* at `@%p1 tcgen05\.mma"):
        case_text = case.text().replace(f"[%taddr], {near},", f"[%taddr], {far},", 1)
        image, cells, out = case.image()[0], case.cells(), np.zeros((128, 512), np.uint32)
        arrays = (image, cells, out)
        Kernel(case_text, arch="sm_100a").launch(
            (1,), [each.ctypes.data for each in arrays], [(each.ctypes.data, each.ctypes.data + each.nbytes) for each in arrays]
        )
