"""Ask cuBLASLt which algorithm it takes for a shape: `mmabits record --choices`. Products are run if they are to be compared.

The library's own heuristic is called through ctypes, with the descriptors that are described here, on the GPU at hand. What it answers is a
file of choices (`mmabits.emulator.schedules.choices`), which `choice`, `emulate` and `invariance` take.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from mmabits.conformance.record.compared import DTYPES, Array, ComparedProduct, ProductMemory, compare_product
from mmabits.conformance.record.device import DeviceInfo
from mmabits.emulator.api import by_schedule
from mmabits.emulator.schedules import choice
from mmabits.emulator.schedules.choices import FILE_FORMAT, LIBRARIES, WORKSPACE
from mmabits.emulator.schedules.cublaslt import FP8, operand_types
from mmabits.isa import DeviceUnavailable, OperandError
from mmabits.isa.cublaslt import ATTRIBUTES
from mmabits.reports.pages import write

# Numbers of cublasLt.h and library_types.h, CUDA 12 and 13.
_R_32F: Final = 0
_TYPES: Final = {"f32": _R_32F, "f16": 2, "bf16": 14, "e4m3": 28, "e5m2": 29}
_COMPUTE_32F: Final = 68
_DESC_TRANSA: Final = 3
_DESC_A_SCALE, _DESC_B_SCALE = 17, 18
_DESC_FAST_ACCUM: Final = 25
_LAYOUT_ORDER: Final = 1
_ORDER_ROW: Final = 1
_PREF_WORKSPACE: Final = 1
_OP_T: Final = 1
_SIZES: Final = (4, 4, 4, 4, 4, 4, 4, 2, 2)
"""Bytes of each attribute of a configuration."""
_STATUS: Final = {
    1: "CUBLAS_STATUS_NOT_INITIALIZED", 3: "CUBLAS_STATUS_ALLOC_FAILED", 7: "CUBLAS_STATUS_INVALID_VALUE",
    8: "CUBLAS_STATUS_ARCH_MISMATCH", 14: "CUBLAS_STATUS_INTERNAL_ERROR", 15: "CUBLAS_STATUS_NOT_SUPPORTED",
}  # fmt: skip
_NOT_READ: Final = 1 << 20
"""Stands for the scales' device pointers, which a question about FP8 must hold and the heuristic does not follow."""

LAYOUTS: Final = {
    "source": "f16 and bf16: A, B and D row-major; FP8: A row-major, B column-major, D row-major, asked as columns (TN)",
    "torch": "as PyTorch asks cuBLAS: columns throughout, the product of the transposed matrices; FP8 as above",
}
"""How a question lays the matrices out. `source`: as the plans were compared."""
_SHAPE: Final = re.compile(r"(\d{1,9})x(\d{1,9})x(\d{1,9})(?::([\w,]+))?(?::(fast))?")


@dataclass(frozen=True, kw_only=True)
class ShapeQuestion:
    """A product whose algorithm is asked for."""

    m: int
    n: int
    k: int
    types: tuple[str, str, str] = ("f16", "f16", "f16")
    fast_accum: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the library says."""

    question: ShapeQuestion
    config: tuple[int, ...] | None
    """The nine attributes; None: it has no algorithm."""
    workspace: int = 0
    """Bytes that the algorithm takes."""
    status: str = ""
    compared: ComparedProduct | None = None
    """None: the product was not run."""

    @property
    def row(self) -> dict[str, Any]:
        """For the file."""
        asked = self.question
        return {
            "m": asked.m, "n": asked.n, "k": asked.k, "types": list(asked.types), "fast_accum": asked.fast_accum,
            "config": None if self.config is None else list(self.config), "workspace": self.workspace,
            **({"status": self.status} if self.status else {}),
            **({} if self.compared is None else {"compared": self.compared.row}),
        }  # fmt: skip


def questions(texts: Iterable[str]) -> list[ShapeQuestion]:
    """Shapes as MxNxK, MxNxK:f16, MxNxK:e4m3,e4m3,bf16 or MxNxK:e4m3:fast; or files with one on each line.

    Raises:
        OperandError: a text that is neither, types that are not asked about here.
    """
    found = []
    for text in texts:
        for line in _lines(text):
            match = _SHAPE.fullmatch(line)
            if match is None or 0 in (m_n_k := [int(each) for each in match.group(1, 2, 3)]):
                raise OperandError(f"a shape is MxNxK, MxNxK:TYPES or MxNxK:TYPES:fast, or a file of such lines; got {line!r}")
            types = operand_types((match[4] or "f16").split(","))
            if not set(types) <= set(_TYPES) or (types[0] in FP8) != (types[1] in FP8):
                raise OperandError(f"{line}: cuBLASLt is asked about {', '.join(_TYPES)}, FP8 by FP8, got {' x '.join(types)}")
            if match[5] and types[0] not in FP8:
                raise OperandError(f"{line}: fast accumulation is for FP8")
            found.append(ShapeQuestion(m=m_n_k[0], n=m_n_k[1], k=m_n_k[2], types=types, fast_accum=bool(match[5])))
    if not found:
        raise OperandError("no shapes to ask about")
    return list(dict.fromkeys(found))


def _lines(text: str) -> Iterator[str]:
    if _SHAPE.fullmatch(text) or not Path(text).is_file():
        yield text
        return
    for line in Path(text).read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].strip()
        if words:
            yield words


class _Result(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algo", ctypes.c_uint64 * 8), ("workspace", ctypes.c_size_t), ("state", ctypes.c_int), ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]  # fmt: skip


class CublasLtLibrary:
    """cuBLASLt, loaded; a CUDA context must be current.

    Raises:
        DeviceUnavailable: no library, or it does not start.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path, self._lib = _loaded(path)
        try:
            for name in ("cublasLtGetVersion", "cublasLtGetCudartVersion"):
                getattr(self._lib, name).restype = ctypes.c_size_t
            self.version: int = int(self._lib.cublasLtGetVersion())
        except AttributeError as error:
            raise DeviceUnavailable(f"{self.path} is no cuBLASLt: {error}") from None
        self._handle = ctypes.c_void_p()
        self._call("cublasLtCreate", ctypes.byref(self._handle))

    @property
    def version_words(self) -> str:
        """`13.1.1` of 130101, `12.8.5` of 120805."""
        return f"{self.version // 10000}.{self.version // 100 % 100}.{self.version % 100}"

    @property
    def name(self) -> str:
        """`cublaslt-13.1`."""
        return f"cublaslt-{self.version // 10000}.{self.version // 100 % 100}"

    def _call(self, name: str, *arguments: Any) -> None:
        status = int(getattr(self._lib, name)(*arguments))
        if status:
            raise DeviceUnavailable(f"cuBLASLt {self.version_words}: {name} says {_STATUS.get(status, f'status {status}')}")

    def _set(self, setter: str, what: Any, attribute: int, value: Any) -> None:
        self._call(setter, what, ctypes.c_int(attribute), ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))

    def ask(self, asked: ShapeQuestion, *, workspace: int = WORKSPACE, layout: str = "source") -> Answer:
        """The first answer of the heuristic.

        Args:
            asked: the product.
            workspace: bytes that the library may use.
            layout: one of LAYOUTS.

        Raises:
            DeviceUnavailable: a descriptor is refused.
            OperandError: unknown layout.
        """
        with ExitStack() as undo:
            answer, _ = self._asked(undo, self._described(undo, asked, layout, _NOT_READ), asked, workspace)
            return answer

    def multiply(
        self, asked: ShapeQuestion, a: Array, b: Array, memory: ProductMemory, *, workspace: int = WORKSPACE, layout: str = "source"
    ) -> Array:
        """A product by the first answer of the heuristic; FP8 with scales of one.

        Args:
            asked: the product.
            a: (M, K).
            b: (K, N).
            memory: where the library's operands lie.
            workspace: bytes that the library may use.
            layout: one of LAYOUTS.

        Raises:
            DeviceUnavailable: a descriptor or the product is refused, or there is no algorithm.
            OperandError: unknown layout.
        """
        is_fp8, d = asked.types[0] in FP8, np.zeros((asked.m, asked.n), DTYPES[asked.types[2]])
        with ExitStack() as undo:

            def held(data: Array) -> ctypes.c_void_p:
                address = memory.put(data)
                undo.callback(memory.free, address)
                return ctypes.c_void_p(address)

            scale = held(np.ones(1, np.float32))
            described = self._described(undo, asked, layout, int(scale.value or 0))
            answer, result = self._asked(undo, described, asked, workspace)
            if answer.config is None:
                raise DeviceUnavailable(f"cuBLASLt {self.version_words}: {answer.status}")
            desc, left, right, c, matrix_d = described
            matrices = [held(b.T if is_fp8 else b), held(a)]
            if not is_fp8 and layout == "source":
                matrices.reverse()
            out, room = held(d), held(np.zeros(max(1, answer.workspace), np.uint8))
            one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
            self._call(
                "cublasLtMatmul", self._handle, desc, ctypes.byref(one), matrices[0], left, matrices[1], right, ctypes.byref(zero), out, c,
                out, matrix_d, ctypes.byref(result, 0), room, ctypes.c_size_t(answer.workspace), ctypes.c_void_p(None),
            )  # fmt: skip
            memory.take(int(out.value or 0), d)
        return d

    def _described(self, undo: ExitStack, asked: ShapeQuestion, layout: str, scale: int) -> tuple[ctypes.c_void_p, ...]:
        """Descriptors of the product and of the library's A, B, C and D."""
        if layout not in LAYOUTS:
            raise OperandError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
        desc = self._made(undo, "MatmulDesc", ctypes.c_int(_COMPUTE_32F), ctypes.c_int(_R_32F))
        return desc, *self._matrices(undo, desc, asked, layout, scale)

    def _asked(
        self, undo: ExitStack, described: tuple[ctypes.c_void_p, ...], asked: ShapeQuestion, workspace: int
    ) -> tuple[Answer, _Result]:
        """The heuristic's first answer, and as the library holds it."""
        preference = self._made(undo, "MatmulPreference")
        self._set("cublasLtMatmulPreferenceSetAttribute", preference, _PREF_WORKSPACE, ctypes.c_uint64(workspace))
        result, count = _Result(), ctypes.c_int()
        status = int(
            self._lib.cublasLtMatmulAlgoGetHeuristic(
                self._handle, *described, preference, ctypes.c_int(1), ctypes.byref(result), ctypes.byref(count)
            )
        )
        status = status or int(result.state)
        if status or count.value < 1:
            words = _STATUS.get(status, f"status {status}") if status else "no algorithm"
            return Answer(question=asked, config=None, status=words), result
        return Answer(question=asked, config=self._config(result), workspace=int(result.workspace)), result

    def _made(self, undo: ExitStack, kind: str, *arguments: Any) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        self._call(f"cublasLt{kind}Create", ctypes.byref(made), *arguments)
        undo.callback(getattr(self._lib, f"cublasLt{kind}Destroy"), made)
        return made

    def _layout(self, undo: ExitStack, form: str, rows: int, columns: int, lead: int, *, by_rows: bool = False) -> ctypes.c_void_p:
        made = self._made(
            undo, "MatrixLayout", ctypes.c_int(_TYPES[form]), ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(lead)
        )
        if by_rows:
            self._set("cublasLtMatrixLayoutSetAttribute", made, _LAYOUT_ORDER, ctypes.c_int32(_ORDER_ROW))
        return made

    def _matrices(
        self, undo: ExitStack, desc: ctypes.c_void_p, asked: ShapeQuestion, layout: str, scale: int
    ) -> tuple[ctypes.c_void_p, ...]:
        """Layouts of the library's A, B, C and D."""
        m, n, k = asked.m, asked.n, asked.k
        a, b, d = asked.types
        if a in FP8:  # D by columns is the product of B's rows (transposed) and A's: the only way in which FP8 is multiplied
            self._set("cublasLtMatmulDescSetAttribute", desc, _DESC_TRANSA, ctypes.c_int32(_OP_T))
            self._set("cublasLtMatmulDescSetAttribute", desc, _DESC_FAST_ACCUM, ctypes.c_int8(asked.fast_accum))
            for attribute in (_DESC_A_SCALE, _DESC_B_SCALE):
                self._set("cublasLtMatmulDescSetAttribute", desc, attribute, ctypes.c_void_p(scale))
            left, right = self._layout(undo, b, k, n, k), self._layout(undo, a, k, m, k)
            result = self._layout(undo, d, n, m, n)
            return left, right, result, result
        if layout == "torch":
            left, right = self._layout(undo, b, n, k, n), self._layout(undo, a, k, m, k)
            result = self._layout(undo, d, n, m, n)
            return left, right, result, result
        left, right = self._layout(undo, a, m, k, k, by_rows=True), self._layout(undo, b, k, n, n, by_rows=True)
        result = self._layout(undo, d, m, n, n, by_rows=True)
        return left, right, result, result

    def _config(self, result: _Result) -> tuple[int, ...]:
        found = []
        for attribute, size in enumerate(_SIZES):
            value, written = (ctypes.c_uint8 * 4)(), ctypes.c_size_t()
            self._call(
                "cublasLtMatmulAlgoConfigGetAttribute", ctypes.byref(result, 0), ctypes.c_int(attribute), ctypes.byref(value),
                ctypes.c_size_t(size), ctypes.byref(written),
            )  # fmt: skip
            found.append(int.from_bytes(bytes(value)[:size], "little", signed=attribute in (0, 2)))
        return tuple(found)


def _loaded(path: str | Path | None) -> tuple[str, Any]:
    tried = []
    for place in [str(path)] if path is not None else _places():
        try:
            return place, ctypes.CDLL(place)
        except OSError as error:
            tried.append(f"{place}: {' '.join(str(error).split())}")
    raise DeviceUnavailable(f"no cuBLASLt here ({tried[0]}); it comes with PyTorch for CUDA, with the CUDA toolkit or as nvidia-cublas")


def _places() -> Iterator[str]:
    """That of the installed PyTorch first: its packages hold it."""
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations or [] if found is not None else []:
        yield from map(str, sorted(Path(folder).glob("*/lib/libcublasLt.so.*"), reverse=True))
    yield from ("libcublasLt.so.13", "libcublasLt.so.12")


class RulesLibrary:
    """The rules behind the same interface, for rehearsals: its answers are no library's."""

    name, version_words, path = "cublaslt-13.1", "13.1", "the rules of mmabits.choice"

    def __init__(self, arch: str) -> None:
        self._arch = arch

    def ask(self, asked: ShapeQuestion, *, workspace: int = WORKSPACE, layout: str = "source") -> Answer:
        """What `mmabits.choice` holds best."""
        known = choice(
            asked.m, asked.n, asked.k, asked.types, arch=self._arch, workspace=workspace, fast_accum=asked.fast_accum
        )  # fmt: skip
        planned = known.best.planned
        if planned is None:
            return Answer(question=asked, config=None, status="no rule")
        return Answer(question=asked, config=tuple(0 if value is None else value for value in planned.config))

    def multiply(
        self, asked: ShapeQuestion, a: Array, b: Array, memory: ProductMemory, *, workspace: int = WORKSPACE, layout: str = "source"
    ) -> Array:
        """What `mmabits.gemm` gives by the best schedule."""
        known = choice(
            asked.m, asked.n, asked.k, asked.types, arch=self._arch, workspace=workspace, fast_accum=asked.fast_accum
        )  # fmt: skip
        return by_schedule(a, b, known.best, arch=self._arch, bugs=True)


def record_choices(
    library: CublasLtLibrary | RulesLibrary, info: DeviceInfo, asked: Sequence[ShapeQuestion], out: Path, *, workspace: int = WORKSPACE,
    layout: str = "source", command: str = "", advance: Callable[[], None] = lambda: None, memory: ProductMemory | None = None,
) -> list[Answer]:  # fmt: skip
    """Ask about every shape and write the file of choices; it is written once all are answered.

    Args:
        library: what is asked.
        info: the GPU.
        asked: the shapes.
        out: the file (.json).
        workspace: bytes that the library may use.
        layout: one of LAYOUTS.
        command: for the file.
        advance: called after each.
        memory: where to run the products and compare them with the schedules of the answers; None: they are not run.

    Raises:
        DeviceUnavailable: the library refuses a descriptor or a product.
        DeviceFailed: the GPU does.
        OperandError: a version of the library that no rule is known of, unknown layout.
    """
    if library.name not in LIBRARIES:
        raise OperandError(f"{library.path} is cuBLASLt {library.version_words}; plans are known of {', '.join(LIBRARIES)}")
    answers = []
    for question in asked:
        answer = library.ask(question, workspace=workspace, layout=layout)
        if memory is not None and answer.config is not None:
            multiply = partial(library.multiply, question, memory=memory, workspace=workspace, layout=layout)
            compared = compare_product(
                question, answer.config, multiply, arch=info.arch, library=library.name, workspace=workspace
            )  # fmt: skip
            answer = replace(answer, compared=compared)
        answers.append(answer)
        advance()
    data = {
        "format": FILE_FORMAT, "arch": info.arch, "library": library.name, "version": library.version_words, "gpu": info.name,
        "kind": info.kind, "driver": info.driver, "workspace": workspace, "layout": LAYOUTS[layout], "attributes": list(ATTRIBUTES),
        "date": datetime.now(UTC).date().isoformat(), "command": command, "answers": [answer.row for answer in answers],
    }  # fmt: skip
    write(out, json.dumps(data, indent=1) + "\n")
    return answers
