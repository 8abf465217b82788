"""What a kernel's text loads and stores, against the fragments, core matrices and tensor-memory layouts of the PTX documentation.

Nothing here uses the package's formulas: the addresses are read out of the CUDA text and evaluated, and each element is then put where
PTX says it belongs, element by element of a fragment. The matrices must come out whole.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmabits.conformance.record.kernels import InstructionKernel, instruction_descriptor
from mmabits.conformance.record.session import TARGETS, recordable, representatives
from mmabits.isa import parse
from mmabits.isa.fragments import ScaleSelectors
from mmabits.isa.instructions import Family

Codes = np.ndarray[Any, Any]
Place = Callable[[int, int, int], tuple[int, int]]
"""(g, t, i) to row and column: PTX's groupID, threadID_in_group and the number of the element in the fragment."""

# The fragments as PTX prints them, by width of an element in a register and shape.
A_PLACES: dict[tuple[int, str], Place] = {
    (16, "m16n8k8"): lambda g, t, i: (g if i < 2 else g + 8, 2 * t + (i & 1)),
    (16, "m16n8k16"): lambda g, t, i: (g if i in (0, 1, 4, 5) else g + 8, 2 * t + (i & 1) + (8 if i >= 4 else 0)),
    (32, "m16n8k4"): lambda g, t, i: (g if i == 0 else g + 8, t),
    (32, "m16n8k8"): lambda g, t, i: (g if i in (0, 2) else g + 8, t if i in (0, 1) else t + 4),
    (64, "m8n8k4"): lambda g, t, i: (g, t),
    (64, "m16n8k4"): lambda g, t, i: (g if i == 0 else g + 8, t),
    (64, "m16n8k8"): lambda g, t, i: (g if i in (0, 2) else g + 8, t if i in (0, 1) else t + 4),
    (64, "m16n8k16"): lambda g, t, i: (g if i % 2 == 0 else g + 8, (2 * i if i % 2 == 0 else 2 * i - 2) + t),
    (8, "m8n8k16"): lambda g, t, i: (g, 4 * t + i),
    (8, "m16n8k16"): lambda g, t, i: (g if i < 4 else g + 8, 4 * t + (i & 3)),
    (8, "m16n8k32"): lambda g, t, i: (g if i < 4 or 8 <= i < 12 else g + 8, 4 * t + (i & 3) + (16 if i >= 8 else 0)),
    (4, "m8n8k32"): lambda g, t, i: (g, 8 * t + (i & 7)),
    (4, "m16n8k32"): lambda g, t, i: (g if i < 8 else g + 8, 8 * t + (i & 7)),
    (4, "m16n8k64"): lambda g, t, i: (g if i < 8 or 16 <= i < 24 else g + 8, 8 * t + (i & 7) + (32 if i >= 16 else 0)),
}
B_PLACES: dict[tuple[int, str], Place] = {
    (16, "m16n8k8"): lambda g, t, i: (2 * t + i, g),
    (16, "m16n8k16"): lambda g, t, i: (2 * t + (i & 1) + (8 if i >= 2 else 0), g),
    (32, "m16n8k4"): lambda g, t, i: (t, g),
    (32, "m16n8k8"): lambda g, t, i: (t if i == 0 else t + 4, g),
    (64, "m8n8k4"): lambda g, t, i: (t, g),
    (64, "m16n8k4"): lambda g, t, i: (t, g),
    (64, "m16n8k8"): lambda g, t, i: (t + 4 * i, g),
    (64, "m16n8k16"): lambda g, t, i: (t + 4 * i, g),
    (8, "m8n8k16"): lambda g, t, i: (4 * t + i, g),
    (8, "m16n8k16"): lambda g, t, i: (4 * t + i, g),
    (8, "m16n8k32"): lambda g, t, i: (4 * t + (i & 3) + (16 if i >= 4 else 0), g),
    (4, "m8n8k32"): lambda g, t, i: (8 * t + i, g),
    (4, "m16n8k32"): lambda g, t, i: (8 * t + i, g),
    (4, "m16n8k64"): lambda g, t, i: (8 * t + (i & 7) + (32 if i >= 8 else 0), g),
}
SLOTS = {"f64": 64, "tf32": 32, "f16": 16, "bf16": 16, "e4m3": 8, "e5m2": 8, "e3m2": 8, "e2m3": 8, "s8": 8, "u8": 8, "s4": 4, "u4": 4}
WIDTHS = {**SLOTS, "e3m2": 6, "e2m3": 6, "e2m1": 4}


def slot_of(instruction: Any, name: str) -> tuple[int, int]:
    """Width of an element in its register, and the bit at which its code starts there: e2m1 in bits 2 to 5 outside the packed kinds."""
    if name == "e2m1":
        return (4, 0) if instruction.kind in ("mxf4", "mxf4nvf4") else (8, 2)
    return SLOTS[name], 0


def evaluated(expression: str, **names: int) -> int:
    """An index expression of C, which Python reads alike."""
    return int(eval(expression, {}, names))


def random_codes(rng: np.random.Generator, layout: Any, tiles: int) -> Codes:
    spec = layout.spec
    return rng.integers(0, spec.codes - 1, (tiles, *layout.shape), dtype=np.uint64, endpoint=True).astype(f"uint{spec.container_bits}")


def words_of(words: Codes, bits: int) -> Codes:
    return np.ascontiguousarray(words).view(f"uint{bits}")


def bits_at(words: Codes, start: int, width: int) -> int:
    """Bits of a row of 32-bit words, wherever they start."""
    whole = int.from_bytes(words[start // 32 : (start + width + 31) // 32].tobytes(), "little")
    return whole >> start % 32 & ((1 << width) - 1)


def mma_instructions() -> list[tuple[str, str]]:
    """One spelling for each combination of shape and types that mma.sync has on some target."""
    seen: dict[Any, tuple[str, str]] = {}
    for arch in TARGETS:
        for row in recordable(arch, only="mma.sync"):
            seen.setdefault((row.shape, row.kind, row.a_type, row.b_type, row.d_type, row.block), (arch, row.ptx))
    return list(seen.values())


def read_fragments(
    kernel: InstructionKernel, name: str, words: Codes, places: dict[tuple[int, str], Place], shape: tuple[int, int]
) -> Codes:
    """The matrix that the tensor core sees when the kernel's loads run over one tile's words."""
    instruction = kernel.instruction
    spec = instruction.a_type if name == "a" else instruction.b_type
    slot, shift = slot_of(instruction, spec.name)
    loads = re.findall(rf'"[rd]"\(\(\(const (unsigned|double)\s?\*\){name}\)\[([^\]]+)\]\)', kernel.source)
    register_bits = 64 if slot == 64 else 32
    assert loads and {"unsigned": 32, "double": 64}[loads[0][0]] == register_bits
    registers, per_register = words_of(words, register_bits), register_bits // slot
    matrix = np.full(shape, -1, dtype=object)
    for step in range(kernel.chain):
        for lane in range(32):
            for number, (_, address) in enumerate(loads):
                register = int(registers[evaluated(address, step=step, thread=lane)])
                for element in range(per_register):
                    row, column = places[slot, instruction.shape](lane >> 2, lane & 3, number * per_register + element)
                    code = register >> (element * slot + shift) & ((1 << WIDTHS[spec.name]) - 1)
                    row, column = (row, column + step * instruction.k) if name == "a" else (row + step * instruction.k, column)
                    assert matrix[row, column] == -1, "two registers hold one element"
                    matrix[row, column] = code
    return matrix


@pytest.mark.parametrize(("arch", "ptx"), mma_instructions())
def test_fragments_of_mma_sync(arch: str, ptx: str) -> None:
    rng = np.random.default_rng(1)
    kernel = InstructionKernel(instruction=parse(ptx), arch=arch, chain=2)
    for name, layout, places in (("a", kernel.a, A_PLACES), ("b", kernel.b, B_PLACES)):
        codes = random_codes(rng, layout, 1)
        assert (read_fragments(kernel, name, layout.pack(codes)[0], places, layout.shape) == codes[0]).all()


def accumulator_place(instruction: Any, thread: int, i: int) -> tuple[int, int]:
    g, t = (thread & 31) >> 2, thread & 3
    if instruction.m == 8:
        return g, 2 * t + i
    return 16 * (thread >> 5) + (g if i % 4 < 2 else g + 8), 8 * (i // 4) + 2 * t + (i & 1)


@pytest.mark.parametrize(
    ("arch", "ptx"),
    [
        ("sm_80", "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"),
        ("sm_80", "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"),
        ("sm_80", "mma.sync.aligned.m8n8k4.row.col.rn.f64.f64.f64.f64"),
        ("sm_90a", "mma.sync.aligned.m16n8k8.row.col.rn.f64.f64.f64.f64"),
        ("sm_80", "mma.sync.aligned.m8n8k16.row.col.s32.s8.u8.s32"),
        ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e5m2"),
        ("sm_90a", "wgmma.mma_async.sync.aligned.m64n24k16.f16.f16.f16"),
        ("sm_90a", "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.u8"),
    ],
)
def test_accumulators_in_registers(arch: str, ptx: str) -> None:
    kernel = InstructionKernel(instruction=parse(ptx), arch=arch)
    layout, d_bits = kernel.accumulator, kernel.instruction.d_type.container_bits
    register_bits = max(32, d_bits)
    codes = random_codes(np.random.default_rng(2), layout, 1)
    packed = words_of(layout.pack(codes)[0], register_bits)
    loads = re.findall(r"\bd(\d+) = \(\(const \w+\s?\*\)c\)\[([^\]]+)\];", kernel.source)
    stores = re.findall(r"\(\(\w+\s?\*\)d\)\[([^\]]+)\] = d(\d+);", kernel.source)
    assert [number for number, _ in loads] == [number for _, number in stores]
    assert [address for _, address in loads] == [address for address, _ in stores]
    asm = re.search(r'asm volatile\("[^"]*?\{?(?:wgmma\.mma_async|mma\.sync)[^"]*"\s*: ([^\n]*)', kernel.source)
    assert asm is not None
    assert re.findall(r"\(d(\d+)\)", asm[1]) == [str(number) for number in range(len(loads))]
    matrix = np.full(layout.shape, -1, dtype=object)
    per_register = register_bits // d_bits
    for thread in range(kernel.threads):
        for number, address in loads:
            register = int(packed[evaluated(address, thread=thread)])
            for element in range(per_register):
                place = accumulator_place(kernel.instruction, thread, int(number) * per_register + element)
                assert matrix[place] == -1
                matrix[place] = register >> element * d_bits & ((1 << d_bits) - 1)
    assert (matrix == codes[0]).all()
    assert (layout.unpack(layout.pack(codes)) == codes).all()


@pytest.mark.parametrize("selectors", [ScaleSelectors(), ScaleSelectors(2, 1, 2, 3)])
@pytest.mark.parametrize(
    "ptx",
    [
        "mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e4m3.e2m1.f32.ue8m0",
        "mma.sync.aligned.m16n8k64.row.col.kind::mxf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0",
        "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3",
    ],
)
def test_scales_of_mma_sync_come_from_the_provider_lanes(ptx: str, selectors: ScaleSelectors) -> None:
    instruction = parse(ptx)
    blocks = instruction.k // instruction.block
    if blocks == 4:
        selectors = selectors._replace(byte_a=0, byte_b=0)  # 4X takes the whole register
    kernel = InstructionKernel(instruction=instruction, arch="sm_120a", chain=2, selectors=selectors)
    numbers = re.search(r"\{%(\d+)\}, \{(\d), (\d)\}, \{%(\d+)\}, \{(\d), (\d)\};", kernel.source)
    assert numbers is not None
    (byte_a, thread_a), (byte_b, thread_b) = ((int(numbers[n]), int(numbers[n + 1])) for n in (2, 5))
    assert (byte_a, thread_a, byte_b, thread_b) == selectors
    rng = np.random.default_rng(3)
    for side, layout in zip("ab", kernel.scales, strict=True):
        codes = random_codes(rng, layout, 1)
        words = layout.pack(codes)[0]
        address = re.search(rf'"r"\(scale_{side}\[([^\]]+)\]\)', kernel.source)
        assert address is not None
        for step in range(2):
            for row in range(16 if side == "a" else 8):
                lane = 4 * (row % 8) + 2 * thread_a + row // 8 if side == "a" else 4 * row + thread_b
                register = int(words[evaluated(address[1], step=step, thread=lane)])
                for block in range(blocks):
                    byte = (byte_a if side == "a" else byte_b) + block
                    place = (row, step * blocks + block) if side == "a" else (step * blocks + block, row)
                    assert register >> 8 * byte & 0xFF == codes[0][place]


def fields(word: int, **places: tuple[int, int]) -> dict[str, int]:
    """Bit fields, each given by its first bit and its width."""
    return {name: word >> start & ((1 << width) - 1) for name, (start, width) in places.items()}


def read_shared(kernel: InstructionKernel, side: str, image: Codes, row: int, k: int) -> int:
    """The code of an element, found as the hardware finds it: canonical K-major layout without swizzling, by the descriptor's strides."""
    instruction = kernel.instruction
    spec = instruction.a_type if side == "a" else instruction.b_type
    constant = re.search(rf"desc_{side} =\s*(0x[0-9a-f]+)ull", kernel.source)
    assert constant is not None
    descriptor = fields(int(constant[1], 16), address=(0, 14), leading=(16, 14), stride=(32, 14), version=(46, 3), swizzle=(61, 3))
    assert (descriptor["address"], descriptor["swizzle"]) == (0, 0)
    assert descriptor["version"] == (1 if instruction.family is Family.TCGEN05 else 0)
    padded = instruction.kind in ("f8f6f4", "mxf8f6f4")
    width = WIDTHS[spec.name]
    # Sixteen bytes hold sixteen elements of the f8f6f4 kinds, packed from the first bit; else as many as fit.
    in_chunk = 16 if padded else 128 // width
    start = (row // 8 * descriptor["stride"] + row % 8 + k // in_chunk * descriptor["leading"]) * 16 * 8 + k % in_chunk * width
    return bits_at(image, start, width)


SHARED = [
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16"),
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32"),
    ("sm_90a", "wgmma.mma_async.sync.aligned.m64n24k32.f16.e4m3.e5m2"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::f16.m64n16k16.f32.f16.f16"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::f8f6f4.m128n16k32.f32.e2m1.e3m2"),
    ("sm_100a", "tcgen05.mma.cta_group::2.kind::f8f6f4.m256n32k32.f16.e2m3.e4m3"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::i8.m128n16k32.s32.u8.s8"),
    ("sm_100a", "tcgen05.mma.cta_group::2.kind::tf32.m128n32k8.f32.tf32.tf32"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n16k64.f32.e2m1.e2m1.ue8m0"),
    ("sm_100a", "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n48k32.f32.e3m2.e2m1.ue8m0"),
]


@pytest.mark.parametrize(("arch", "ptx"), SHARED)
def test_operands_in_shared_memory(arch: str, ptx: str) -> None:
    kernel = InstructionKernel(instruction=parse(ptx), arch=arch, chain=2)
    instruction, rng = kernel.instruction, np.random.default_rng(4)
    for side, layout in (("a", kernel.a), ("b", kernel.b)):
        codes = random_codes(rng, layout, 1)[0]
        words = layout.pack(codes[None])[0].reshape(kernel.blocks_per_tile, -1)
        size = re.search(rf"shared_{side}\[(\d+)\];", kernel.source)
        copy = re.search(rf"i < (\d+); i \+= (\d+)\)\s*shared_{side}\[i\] = {side}\[([^\]]+)\];", kernel.source)
        move = re.search(rf"\b{side} \+= (\d+)ull \* blockIdx\.x;", kernel.source)
        assert size and copy and move and size[1] == copy[1] and int(copy[2]) == kernel.threads and int(move[1]) == words.shape[1]
        matrix = codes if side == "a" else codes.T
        rows = len(matrix) // kernel.blocks_per_tile
        for row, column in np.ndindex(matrix.shape):
            step, k = divmod(column, instruction.k)
            start = evaluated(copy[3], step=step, i=0)
            assert read_shared(kernel, side, words[row // rows][start : start + int(size[1])], row % rows, k) == matrix[row, column]


def tensor_memory_place(instruction: Any, row: int, column: int) -> tuple[int, int, int]:
    """Thread block, lane and column of an element of D: PTX's data path layouts D, F (cta_group::1), A and B (cta_group::2)."""
    match instruction.cta_group, instruction.m:
        case 1, 128:
            return 0, row, column
        case 1, 64:
            return 0, 32 * (row // 16) + row % 16, column
        case 2, 256:
            return row // 128, row % 128, column
        case 2, 128:
            half = instruction.n // 2
            return row // 64, row % 64 + (64 if column >= half else 0), column % half
    raise AssertionError


@pytest.mark.parametrize("ptx", [
    "tcgen05.mma.cta_group::1.kind::f16.m64n16k16.f32.f16.f16", "tcgen05.mma.cta_group::1.kind::f16.m128n24k16.f16.f16.f16",
    "tcgen05.mma.cta_group::2.kind::f16.m256n32k16.f32.bf16.bf16", "tcgen05.mma.cta_group::2.kind::f8f6f4.m128n32k32.f16.e4m3.e4m3",
])  # fmt: skip
def test_accumulators_in_tensor_memory(ptx: str) -> None:
    kernel = InstructionKernel(instruction=parse(ptx), arch="sm_100a")
    layout = kernel.accumulator
    codes = random_codes(np.random.default_rng(5), layout, 1)
    blocks = layout.pack(codes)[0].reshape(kernel.blocks_per_tile, -1)
    loads = re.findall(r"w(\d) = c\[([^\]]+)\]", kernel.source)
    assert len(loads) == 8 and [int(number) for number, _ in loads] == list(range(8))
    assert re.findall(r"d\[([^\]]+)\] = w\d;", kernel.source) == [address for _, address in loads]
    assert set(re.findall(r"column < (\d+); column \+= 8", kernel.source)) == {str(layout.words // kernel.blocks_per_tile // 128)}
    for row, column in np.ndindex(layout.shape):
        block, lane, cell = tensor_memory_place(kernel.instruction, row, column)
        # 32x32b: register n of thread t of a warpgroup is lane t of the n-th column.
        word = int(blocks[block][evaluated(loads[cell % 8][1], column=cell // 8 * 8, thread=lane)])
        assert word & ((1 << layout.spec.container_bits) - 1) == codes[0, row, column], "an f16 is the low half of its cell"
    assert (layout.unpack(layout.pack(codes)) == codes).all()


@pytest.mark.parametrize(("ptx", "a_columns", "b_columns"), [
    ("tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n48k32.f32.e4m3.e4m3.ue8m0", 4, 2),
    ("tcgen05.mma.cta_group::1.kind::mxf4.block_scale.block32.m128n128k64.f32.e2m1.e2m1.ue8m0", 4, 4),
    ("tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale.block16.m128n256k64.f32.e2m1.e2m1.ue4m3", 4, 8),
    ("tcgen05.mma.cta_group::2.kind::mxf4nvf4.block_scale.block16.m256n64k64.f32.e2m1.e2m1.ue4m3", 4, 2),
    ("tcgen05.mma.cta_group::2.kind::mxf8f6f4.block_scale.block32.m128n128k32.f32.e4m3.e4m3.ue8m0", 2, 2),
])  # fmt: skip
def test_scales_in_tensor_memory(ptx: str, a_columns: int, b_columns: int) -> None:
    """The 128x4 atom: row r of 32 lanes r mod 32, 32-bit column r / 32, a byte a block; every quarter of the lanes alike."""
    kernel = InstructionKernel(instruction=parse(ptx), arch="sm_100a", chain=2)
    instruction, rng, blocks = kernel.instruction, np.random.default_rng(6), kernel.instruction.k // kernel.instruction.block
    folded = instruction.cta_group == 2 and instruction.m == 128
    for side, layout, columns in (("a", kernel.scales[0], a_columns), ("b", kernel.scales[1], b_columns)):
        codes = random_codes(rng, layout, 1)
        images = layout.pack(codes)[0].reshape(kernel.blocks_per_tile, -1)
        loop = re.search(rf"column < (\d+); \+\+column[^;]*;[^;]*?scale_{side}\[([^\]]+)\]", kernel.source, re.S)
        assert loop is not None and int(loop[1]) == columns
        matrix = codes[0] if side == "a" else codes[0].T
        own = len(matrix) // kernel.blocks_per_tile
        for block in range(kernel.blocks_per_tile):
            for lane in range(128):
                for column in range(columns):
                    row = 32 * column + lane % 32
                    if side == "a":
                        here, most = row + block * own, (block + 1) * own
                    elif folded:
                        here, most = row + (own if lane >= 64 else 0), own * (2 if lane >= 64 else 1)
                    else:
                        here, most = row, len(matrix)
                    for step in range(2 if here < most else 0):
                        word = int(images[block][evaluated(loop[2], step=step, column=column, thread=lane)])
                        for number in range(blocks):
                            assert word >> 8 * number & 0xFF == matrix[here, step * blocks + number]
        assert (layout.unpack(layout.pack(codes)) == codes).all()


def test_instruction_descriptors() -> None:
    dense = {"saturate": (3, 1), "d": (4, 2), "a": (7, 3), "b": (10, 3), "negate": (13, 2), "major": (15, 2), "n": (17, 6), "m": (24, 5)}
    found = fields(instruction_descriptor(parse("tcgen05.mma.cta_group::1.kind::f8f6f4.m64n240k32.f16.e2m3.e3m2.negB")), **dense)
    assert found == {"saturate": 0, "d": 0, "a": 3, "b": 4, "negate": 2, "major": 0, "n": 30, "m": 4}
    assert instruction_descriptor(parse("tcgen05.mma.cta_group::1.kind::f16.m128n256k16.f32.bf16.bf16")) == 0x08400490
    found = fields(instruction_descriptor(parse("tcgen05.mma.cta_group::1.kind::i8.m128n16k32.s32.u8.s8.satfinite")), **dense)
    assert (found["saturate"], found["d"], found["a"], found["b"]) == (1, 2, 0, 1)
    scaled = {"b_id": (4, 2), "a": (7, 3), "b": (10, 3), "n": (17, 6), "scale": (23, 1), "m": (24, 5), "a_id": (29, 2), "k96": (31, 1)}
    row = parse("tcgen05.mma.cta_group::2.kind::mxf4nvf4.block_scale.block16.m256n256k64.f32.e2m1.e2m1.ue4m3")
    assert fields(instruction_descriptor(row), **scaled) == {"b_id": 0, "a": 1, "b": 1, "n": 32, "scale": 0, "m": 16, "a_id": 0, "k96": 0}
    row = parse("tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.block32.m128n8k32.f32.e5m2.e2m1.ue8m0")
    assert fields(instruction_descriptor(row), **scaled) == {"b_id": 0, "a": 1, "b": 5, "n": 1, "scale": 1, "m": 8, "a_id": 0, "k96": 0}


@pytest.mark.parametrize("arch", TARGETS)
def test_every_layout_keeps_every_element_apart(arch: str) -> None:
    for instruction in representatives(arch):
        kernel = InstructionKernel(instruction=instruction, arch=arch)
        for layout in (kernel.a, kernel.b, kernel.accumulator, *(kernel.scales or ())):
            starts = np.sort(layout.starts.reshape(-1))
            assert (np.diff(starts) >= layout.spec.code_bits).all() and starts[0] >= 0, instruction
            assert starts[-1] + layout.spec.code_bits <= layout.bits and layout.bits % 64 == 0, instruction
