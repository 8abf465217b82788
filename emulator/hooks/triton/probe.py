"""What Triton's compiler makes of one dot: run as a program of its own, it compiles what it is asked and says what came out.

One request a line on stdin, one answer a line on stdout, both JSON. A process of its own, because the compiler must not see the patches
with which the hook runs kernels. Nothing here needs a GPU, and the assembler is not run.
"""

from __future__ import annotations

import collections
import json
import re
import sys
from typing import Any

import triton
import triton.language as tl
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

_OPCODE = re.compile(r"^(?:@\S+\s+)?(mma\.\S+|wgmma\.mma_async\S+|tcgen05\.mma[.\w:]*|fma\.\S+|add(?:\.rn)?\.f(?:16x2|16|32|64)\b)")
_DOT = re.compile(r"\b(?:tt\.dot|tt\.dot_scaled|ttng\.\w*dot\w*|ttng\.tc_gen5_mma\w*)\s[^:]*:\s*(.*)")
_OPERAND = re.compile(r"x(\w+), #\w+\.dot_op<\{opIdx = \d, parent = #\w+, kWidth = (\d+)\}>")
_WORDS = ("arith.maxui", "math.fma", "arith.select", "arith.cmpf")
_TYPES = {
    "f16": "fp16", "bf16": "bf16", "f32": "fp32", "f64": "fp64", "e4m3": "fp8e4nv", "e5m2": "fp8e5", "s8": "i8", "u8": "u8",
    "s32": "i32",
}  # fmt: skip
_OUT = {"f16": tl.float16, "f32": tl.float32, "f64": tl.float64, "s32": tl.int32, "bf16": tl.bfloat16, "s8": tl.int8}
_JOINED = {8: tl.int8, 16: tl.float16, 32: tl.float32, 64: tl.float64}


@triton.jit
def plain_dot(  # type: ignore[no-untyped-def]
    a_ptr, b_ptr, c_ptr, BATCH: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    OUT: tl.constexpr, PRECISION: tl.constexpr, IMPRECISE: tl.constexpr, JOIN_A: tl.constexpr, JOIN_B: tl.constexpr,
):  # fmt: skip
    """A dot of two tiles as loaded, or cast first, or joined of two halves of another type."""
    i = tl.arange(0, M)
    j = tl.arange(0, N)
    k = tl.arange(0, K)
    if BATCH > 0:
        z = tl.arange(0, BATCH)[:, None, None]
        a = tl.load(a_ptr + z * M * K + i[None, :, None] * K + k[None, None, :])
        b = tl.load(b_ptr + z * K * N + k[None, :, None] * N + j[None, None, :])
        at = c_ptr + z * M * N + i[None, :, None] * N + j[None, None, :]
    else:
        half = tl.arange(0, K // 2)
        if JOIN_A is not None:
            a_at = a_ptr + i[:, None] * K + half[None, :]
            a = tl.reshape(tl.join(tl.load(a_at).to(JOIN_A), tl.load(a_at + K // 2).to(JOIN_A)), (M, K))
        else:
            a = tl.load(a_ptr + i[:, None] * K + k[None, :])
        if JOIN_B is not None:
            b_at = b_ptr + half[:, None] * N + j[None, :]
            b = tl.join(tl.load(b_at).to(JOIN_B), tl.load(b_at + K // 2 * N).to(JOIN_B))
            b = tl.reshape(tl.permute(b, (0, 2, 1)), (K, N))
        else:
            b = tl.load(b_ptr + k[:, None] * N + j[None, :])
        at = c_ptr + i[:, None] * N + j[None, :]
    c = tl.load(at)
    d = tl.dot(a.to(A), b.to(B), c, out_dtype=OUT, input_precision=PRECISION, max_num_imprecise_acc=IMPRECISE)
    tl.store(at, d)


@triton.jit
def scaled_dot(  # type: ignore[no-untyped-def]
    a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, A_ALONG_K: tl.constexpr, B_ALONG_K: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """A block-scaled dot; a block of 0 means that the operand has no scales."""
    rows: tl.constexpr = M if (A != "e2m1" or A_ALONG_K) else M // 2
    across: tl.constexpr = K if (A != "e2m1" or not A_ALONG_K) else K // 2
    down: tl.constexpr = K if (B != "e2m1" or not B_ALONG_K) else K // 2
    columns: tl.constexpr = N if (B != "e2m1" or B_ALONG_K) else N // 2
    a = tl.load(a_ptr + tl.arange(0, rows)[:, None] * across + tl.arange(0, across)[None, :])
    b = tl.load(b_ptr + tl.arange(0, down)[:, None] * columns + tl.arange(0, columns)[None, :])
    i = tl.arange(0, M)
    j = tl.arange(0, N)
    at = c_ptr + i[:, None] * N + j[None, :]
    c = tl.load(at)
    scale_a = None
    scale_b = None
    if BLOCK_A > 0:
        scale_a = tl.load(a_scale_ptr + i[:, None] * (K // BLOCK_A) + tl.arange(0, K // BLOCK_A)[None, :])
    if BLOCK_B > 0:
        scale_b = tl.load(b_scale_ptr + j[:, None] * (K // BLOCK_B) + tl.arange(0, K // BLOCK_B)[None, :])
    d = tl.dot_scaled(a, scale_a, A, b, scale_b, B, acc=c, fast_math=FAST, lhs_k_pack=A_ALONG_K, rhs_k_pack=B_ALONG_K)
    tl.store(at, d)


def _source(kernel: Any, pointers: dict[str, str], constants: list[Any]) -> ASTSource:
    names = [parameter.name for parameter in kernel.params]
    signature = {name: pointers.get(name, "constexpr") for name in names}
    first = len(pointers)
    values = {(first + index,): value for index, value in enumerate(constants)}
    return ASTSource(kernel, signature, values, {(index,): [["tt.divisibility", 16]] for index in range(first)})


def _plain(ask: dict[str, Any]) -> ASTSource:
    pointers = {"a_ptr": f"*{_TYPES[ask['a_loaded']]}", "b_ptr": f"*{_TYPES[ask['b_loaded']]}", "c_ptr": f"*{_TYPES[ask['acc']]}"}
    out = {**_OUT, "e4m3": tl.float8e4nv, "e5m2": tl.float8e5}
    imprecise = ask["imprecise"] if ask["a"] in ("e4m3", "e5m2") and ask["imprecise"] <= ask["k"] else None
    joined = [_JOINED.get(ask[name]) for name in ("a_joined", "b_joined")]
    types = [out[ask["a"]], out[ask["b"]], out[ask["acc"]]]
    shape = [ask[name] for name in ("batch", "m", "n", "k")]
    return _source(plain_dot, pointers, [*shape, *types, ask["precision"], imprecise, *joined])


def _scaled(ask: dict[str, Any]) -> ASTSource:
    loaded = {"e2m1": "u8", "fp16": "fp16", "bf16": "bf16", "e4m3": "fp8e4nv", "e5m2": "fp8e5"}
    scale = {"ue8m0": "u8", "ue4m3": "fp8e4nv", "": "u8"}
    pointers = {
        "a_ptr": f"*{loaded[ask['a']]}", "a_scale_ptr": f"*{scale[ask['a_scale']]}",
        "b_ptr": f"*{loaded[ask['b']]}", "b_scale_ptr": f"*{scale[ask['b_scale']]}", "c_ptr": "*fp32",
    }  # fmt: skip
    names = ("m", "n", "k", "a", "b", "a_block", "b_block", "a_along_k", "b_along_k", "fast")
    return _source(scaled_dot, pointers, [ask[name] for name in names])


def _stages(source: ASTSource, ask: dict[str, Any]) -> dict[str, str]:
    """The texts of every stage up to PTX."""
    target = GPUTarget("cuda", ask["capability"], 32)
    backend = make_backend(target)
    options = backend.parse_options({"num_warps": ask["warps"], "num_ctas": ask["ctas"], "enable_fp_fusion": True})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    functions = (options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
    module = source.make_ir(target, *functions)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    metadata = {"target": target, **options.__dict__}
    texts: dict[str, str] = {}
    for name, stage in stages.items():
        if name == "cubin":
            break
        module = stage(module, metadata)
        texts[name] = str(module)
    return texts


def _facts(texts: dict[str, str]) -> dict[str, Any]:
    opcodes: collections.Counter[str] = collections.Counter()
    for line in texts["ptx"].splitlines():
        found = _OPCODE.match(line.strip())
        if found:
            opcodes[found.group(1).rstrip(";")] += 1
    widths = set()
    for line in texts["ttgir"].splitlines():
        dot = _DOT.search(line)
        if dot:
            widths |= {(kind, int(width)) for kind, width in _OPERAND.findall(dot.group(1))}
    words = {word: texts["ttgir"].count(word) for word in _WORDS}
    return {"opcodes": dict(opcodes), "widths": sorted(widths), "words": words}


def answer(ask: dict[str, Any]) -> dict[str, Any]:
    """What the compiler does with one dot, or its error."""
    try:
        return _facts(_stages(_scaled(ask) if ask["scaled"] else _plain(ask), ask))
    except Exception as error:  # whatever the compiler raises is the answer
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        return {"error": f"{type(cause).__name__}: {lines[-1] if lines else ''}"[:500]}


def main() -> None:
    """Answer until stdin ends; the first line says which Triton answers."""
    print(json.dumps({"triton": triton.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
