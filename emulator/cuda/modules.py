"""Modules of PTX and their kernels: `mmabits.compile_cuda`, `mmabits.load_ptx`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mmabits.emulator.cuda.arguments import KernelParameter, PassedArray, described, given, is_array, scalar_bytes
from mmabits.emulator.cuda.maps import ArrayMap
from mmabits.emulator.cuda.names import demangled, short_names
from mmabits.emulator.cuda.nvrtc import CompilerRefused, compile_program, header_folders, standard_headers
from mmabits.emulator.interop import to_numpy
from mmabits.emulator.machine.checkrecords import check_names
from mmabits.emulator.machine.checks import KernelFinding
from mmabits.emulator.machine.kernel import Kernel, ModuleMemory
from mmabits.emulator.machine.ptx import Entry, Module, PtxError, read_ptx, shown
from mmabits.emulator.machine.tensormaps import BYTES
from mmabits.emulator.machine.workorder import WorkSchedule
from mmabits.isa import OperandError, OperandTypeError, architecture
from mmabits.isa.architectures import ARCHITECTURES
from mmabits.isa.errors import nearest
from mmabits.isa.memories import CTA

_PATHS: Final = (".cu", ".cuh", ".ptx", ".cpp", ".h", ".hpp", ".txt")
_UNFUSED: Final = ("--fmad=false", "-fmad=false")
_WHICH_RUN: Final = "sm_80 runs on sm_80 and later ones, sm_90a on sm_90a alone, sm_100f on those of its generation"
_DTYPES: Final = {"f32": "f4", "f64": "f8", "f16": "f2"}

WATCH: Final[ContextVar[Any]] = ContextVar("watch", default=None)
"""What launches of the running code tell of their steps: a mmabits.research.follow.Watch."""
ORDER: Final[ContextVar[WorkSchedule | None]] = ContextVar("order", default=None)
"""The order of work of launches of the running code that name none."""

Size = int | Sequence[int]


def compile_cuda(
    source: str | Path,
    *,
    arch: str,
    options: Sequence[str] = (),
    include: Sequence[str | Path] = (),
    names: Sequence[str] = (),
) -> PtxModule:
    """Compile CUDA C++ with NVRTC, to run on this machine's CPU as a GPU of an architecture runs it.

    Args:
        source: CUDA C++, or the path of a file of it (its folder is searched for headers).
        arch: architecture, or a GPU of it: `"sm_90a"`, `"h100"`.
        options: of NVRTC: `"-DTILE=64"`, `"--std=c++20"`, `"--fmad=false"`.
        include: folders that are searched for headers, before CUDA's own.
        names: instances of templates that are wanted: `"gemm<128, 64>"`.

    Raises:
        DeviceUnavailable: NVRTC is not installed: pip install 'mmabits[nvrtc]'.
        CompilerRefused: NVRTC does not take the text or an option; `log` of the error has all that it said.
        PtxError: the PTX is not understood.
        OperandError: no such file.
        UnknownArchitecture: `arch`.

    Examples:
        >>> module = compile_cuda('extern "C" __global__ void twice(float *x) { x[threadIdx.x] *= 2; }', arch="sm_90a")  # doctest: +SKIP
        >>> module["twice"](1, 32, x)  # doctest: +SKIP
    """
    target = architecture(arch)
    text, path = _text_of(source)
    folders = [str(path.parent)] if path is not None else []
    folders += [os.fspath(each) for each in _texts(include, "include", str | os.PathLike)]
    options, names = _texts(options, "options", str), _texts(names, "names", str)
    given_options = ["-lineinfo", *options, *(f"--include-path={each}" for each in (*folders, *header_folders()))]
    file = str(path.resolve()) if path is not None else "source.cu"
    made = compile_program(
        text, file, f"compute_{target.target.removeprefix('sm_')}", given_options, names=names, headers=standard_headers()
    )
    ptx = made.outputs["PTX"].decode(errors="replace").rstrip("\0 \n") + "\n"
    if not ptx.strip():
        raise CompilerRefused(f"NVRTC makes no PTX with the options {' '.join(options)}")
    if path is None:  # NVRTC puts the working directory before the name: the same text is the same PTX everywhere
        ptx = ptx.replace(f'"{Path.cwd() / file}"', f'"{file}"')
    return PtxModule(ptx, target.name, contracts=not set(options) & set(_UNFUSED), names=made.names, log=made.log)


def load_ptx(source: str | Path, *, arch: str | None = None, fuses: bool = True) -> PtxModule:
    """Take PTX from any compiler, to run on this machine's CPU as a GPU of an architecture runs it.

    Args:
        source: PTX, or the path of a file of it.
        arch: architecture, or a GPU of it; if None the `.target` of the text, or that with an `a` where there is only such a one.
        fuses: whether products and sums are fused as ptxas does by default; not so with its `--fmad=false`.

    Raises:
        PtxError: the text is not understood.
        OperandError: no such file, or an architecture that does not run the text's target.
        UnknownArchitecture: `arch`, or the target of the text.
    """
    text, _ = _text_of(source)
    module = read_ptx(text)
    if arch is None and not module.target:
        raise PtxError("the PTX has no .target; arch= says what it runs as")
    name = arch_of(module.target) if arch is None else architecture(arch).name
    if module.target and not runs_on(module.target, name):
        raise OperandError(f"the PTX has .target {shown(module.target)}, and {name} does not run it: {_WHICH_RUN}")
    return PtxModule(text, name, contracts=fuses, module=module)


def runs_on(target: str, arch: str) -> bool:
    """Whether an architecture runs PTX of a `.target`, by the manual's rules; other spellings than its are left to what they name."""
    found = re.fullmatch(r"sm_(\d+)(\d)([af]?)", target)
    if found is None:
        return True
    wanted, row = (int(found[1]), int(found[2])), architecture(arch)
    if found[3] == "a":
        return row.target == target
    return row.capability >= wanted and (not found[3] or row.capability[0] == wanted[0])


def arch_of(target: str) -> str:
    """The architecture of a `.target`: text for sm_90 runs as sm_90a, which has all that sm_90 has, and so does text for sm_100f."""
    names = [each for each in (target, f"{target.removesuffix('f')}a") if each in ARCHITECTURES]
    return architecture(names[0] if names else target).name


def _text_of(source: str | Path) -> tuple[str, Path | None]:
    """The text, and its file if it comes from one."""
    if not isinstance(source, str | os.PathLike):
        raise OperandTypeError(f"the source must be text or a path, got {type(source).__name__}")
    if isinstance(source, str) and ("\n" in source or not source.endswith(_PATHS)):
        return source, None
    path = Path(source)
    if "\0" in str(path):
        raise OperandError(f"{str(path)!r:.80} cannot be the path of a file")
    try:
        return path.read_text(encoding="utf-8", errors="replace"), path
    except OSError as error:
        raise OperandError(f"{path} cannot be read: {error.strerror}") from None


def _texts(values: Any, name: str, kinds: Any) -> list[Any]:
    """Several texts or paths; one alone would be taken letter by letter."""
    if isinstance(values, str | bytes | os.PathLike) or not isinstance(values, Iterable):
        raise OperandTypeError(f"{name} must be a list, got {values!r:.60}")
    found = list(values)
    for each in found:
        if not isinstance(each, kinds):
            raise OperandTypeError(f"{name} must be a list of text{' or paths' if kinds is not str else ''}, got {each!r:.60} in it")
    return found


class PtxModule(Mapping[str, "CudaKernel"]):
    """The kernels and variables of a PTX text. `list(module)` has the kernels' names, `module["name"]` is one.

    A kernel goes by its C++ name, by any part of it that is its own (`scale<7>`, `scale`), and by its name in the PTX.

    Attributes:
        ptx: the text.
        arch: what it runs as.
        globals: `__device__` and `__constant__` variables.
        log: what the compiler warned of.
        keeper: writes each launch into a file, where it is one of `mmabits.conformance.diff.runs.Keeper`.
        session: where it is one of `mmabits.emulate`, its report has what the kernels multiplied.
    """

    keeper: Any = None
    session: Any = None

    def __init__(
        self, ptx: str, arch: str, *, contracts: bool = True, names: Mapping[str, str] | None = None, log: str = "",
        module: Module | None = None,
    ) -> None:  # fmt: skip
        self.ptx, self.arch, self.contracts, self.log = ptx, arch, contracts, log
        self.module = read_ptx(ptx) if module is None else module
        entries = [each for each in self.module.entries.values() if each.is_kernel]
        own = [variable for entry in entries for variable in entry.variables.values() if variable.space in ("global", "const")]
        self.memory = ModuleMemory([*self.module.variables.values(), *own])
        self.globals = ModuleGlobals(self.memory)
        self._kernels = {each.name: CudaKernel(self, each) for each in entries}
        self._expressions = dict(names or {})

    def __repr__(self) -> str:
        return f"<module for {self.arch}: {', '.join(self) or 'no kernels'}>"

    def __iter__(self) -> Iterator[str]:
        return (each.name for each in self._kernels.values())

    def __len__(self) -> int:
        return len(self._kernels)

    def __getitem__(self, name: str) -> CudaKernel:
        """A kernel.

        Raises:
            OperandError: none is called so, or several are.
        """
        exact = self._kernels.get(self._expressions.get(name, name))
        found = [exact] if exact is not None else [each for each in self._kernels.values() if name in each.names]
        if len(found) == 1:
            return found[0]
        if found:
            raise OperandError(f"{len(found)} kernels are called {name!r}: {'; '.join(each.name for each in found)}")
        raise NoSuchKernel(f"no kernel is called {name!r}{nearest(str(name), list(self))}; there are: {'; '.join(self) or 'none'}")


class NoSuchKernel(OperandError, KeyError):
    """A module has no kernel of that name."""


class ModuleGlobals(Mapping[str, npt.NDArray[Any]]):
    """Variables of a module: `module.globals["gain"]` is an array of the variable's memory, to read and to write.

    Where PTX does not say what a variable holds (arrays and structures) the array is of bytes: `.view(numpy.int32)`.
    """

    def __init__(self, memory: ModuleMemory) -> None:
        self._memory = memory
        self._names = {demangled(each): each for each in memory.variables}

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._names if not name.startswith(("$", "__unnamed_")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _name(self, name: str) -> str:
        found = self._names.get(name, name)
        if found not in self._memory.variables:
            raise NoSuchVariable(f"no variable is called {name!r}{nearest(str(name), list(self))}; there are: {', '.join(self) or 'none'}")
        return found

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """A variable's memory.

        Raises:
            NoSuchVariable: none is called so.
        """
        found = self._name(name)
        kind = self._memory.variables[found].kind
        dtype = np.dtype(_DTYPES.get(kind, f"{'i' if kind[0] == 's' else 'u'}{max(8, int(kind[1:])) // 8}"))
        return self._memory.bytes_of(found).view(dtype)

    def __setitem__(self, name: str, value: Any) -> None:
        """Write a whole variable: a number of its type, bytes, or an array of as many bytes.

        Raises:
            NoSuchVariable: none is called so.
            OperandError: another size.
        """
        held, kind = self[name], self._memory.variables[self._name(name)].kind
        unit = KernelParameter(name, kind, held.itemsize, held.itemsize)
        if isinstance(value, bytes | bytearray | np.void):
            data = value.tobytes() if isinstance(value, np.void) else bytes(value)
        elif is_array(value):
            array = to_numpy(value, name)[0]
            data = array.tobytes() if array.ndim else _one(array[()], unit)
        elif isinstance(value, list | tuple):
            data = b"".join(_one(each, unit) for each in value)
        else:
            data = _one(value, unit)
        if len(data) != held.nbytes:
            raise OperandError(f"{name} has {held.nbytes} bytes, got {len(data)}")
        held.view(np.uint8)[:] = np.frombuffer(data, np.uint8)


def _one(value: Any, unit: KernelParameter) -> bytes:
    """A number as a variable's type has it."""
    return scalar_bytes(value, unit, f"variable {unit.name}, {unit.kind},")


class NoSuchVariable(OperandError, KeyError):
    """A module has no variable of that name."""


class CudaKernel:
    """A kernel of a module. Calling it launches it, and returns when it has run.

    Attributes:
        name: in C++, with its parameters.
        ptx_name: in the PTX.
        parameters: what PTX knows of its parameters.
    """

    def __init__(self, module: PtxModule, entry: Entry) -> None:
        self.module, self._entry = module, entry
        self.ptx_name = entry.name
        self.name = demangled(entry.name)
        self.names = {self.name, self.ptx_name, *short_names(self.name)}
        self.parameters: tuple[KernelParameter, ...] = tuple(map(described, entry.parameters))
        self._made: dict[tuple[Any, ...], Kernel] = {}

    def __repr__(self) -> str:
        return f"<kernel {self.name} for {self.module.arch}>"

    def __call__(
        self,
        grid: Size,
        block: Size,
        *arguments: Any,
        shared: int = 0,
        cluster: Size | None = None,
        memory: Sequence[Any] = (),
        check: str | Sequence[str] = (),
        report: bool = False,
        schedule: str | int | None = None,
    ) -> tuple[KernelFinding, ...]:
        """Launch the kernel.

        Args:
            grid: CTAs along x, y and z.
            block: threads of a CTA, likewise.
            *arguments: one for each parameter. Arrays (NumPy, torch, JAX) are passed by their address, numbers as the type that the
                PTX says, structures as bytes or numpy.void, a map as `mmabits.tensor_map` made it. An array that must not change (of
                JAX, or read-only) is copied for the kernel; writing to it is an error when the kernel has run.
            shared: bytes of dynamic shared memory.
            cluster: CTAs of a cluster, where the text does not say.
            memory: arrays that the kernel reaches in another way: by addresses in structures or in other arrays.
            check: what to look for while it runs, out of `"memory"`, `"init"`, `"races"` and `"sync"` (docs/checks.md).
            report: return what the checks found; otherwise that is an error, when the kernel has run.
            schedule: one order out of those that a GPU may take, of asynchronous work, warps and CTAs: `"usual"`, `"latest"`,
                `"earliest"`, or the number of one by chance.

        Returns:
            With `report` what was found; else nothing.

        Raises:
            OperandError, OperandTypeError: sizes that no GPU takes, arguments that do not fit.
            PtxError, UnknownOpcode: the kernel cannot be run; before anything has run.
            KernelError: the kernel did what a GPU ends it for; what it wrote stays written.
            KernelCheckError: the checks found something, and `report` is not given; all of it is in its `findings`.
        """
        if report and not check:
            raise OperandError(f"{self.name}: report returns what checks find; name them in check=")
        order = ORDER.get() if schedule is None else WorkSchedule.of(schedule)
        findings: list[KernelFinding] | None = [] if report else None
        grid_size, block_size = _three(grid, "grid", CTA.grid), _three(block, "block", (CTA.threads, CTA.threads, 64))
        cluster_size = None if cluster is None else _three(cluster, "cluster", (CTA.cluster,) * 3)
        self._check_block(block_size)
        if not isinstance(shared, int | np.integer) or isinstance(shared, bool) or shared < 0:
            raise OperandError(f"{self.name}: {shared!r} bytes of dynamic shared memory")
        if isinstance(memory, str | bytes | dict) or is_array(memory) or not isinstance(memory, Iterable):
            raise OperandTypeError(f"{self.name}: memory must be a list of arrays, got {type(memory).__name__}")
        shared = int(shared)
        launched = self.kernel(block_size, shared, cluster_size, check)
        values, arrays = self._values(arguments)
        for place, each in enumerate(memory):
            if not is_array(each):
                raise OperandTypeError(f"{self.name}: memory[{place}] must be an array, got {type(each).__name__}")
            arrays.append((f"memory[{place}]", given(each, f"{self.name}: memory[{place}]")))
        ranges, keeper, finish = [(each.first, each.last) for _, each in arrays], self.module.keeper, None
        if keeper is not None:
            finish = keeper.begin(launched, self.module.ptx, grid_size, values, ranges, ())
        watch, trace = WATCH.get(), None
        if watch is not None:
            if watch.arch != self.module.arch:
                raise OperandError(f"{self.name} is compiled for {self.module.arch}, and looked at for {watch.arch}")
            if check:
                raise OperandError(f"{self.name}: a launch that is followed back runs without checks; leave check= out")
            watched = [(f"argument {place + 1}", each) for place, each in enumerate(arguments) if is_array(each)]
            launched, trace = watch.begin(launched, self.module.ptx, watched)
        session = self.module.session
        if session is not None:  # refuses, before the launch, what is known less well than it requires
            for matrix in launched.matrices:
                session.ready(self.name, matrix)
        executed = launched.launch(
            grid_size, values, ranges, check=None if session is None else lambda matrix: session.ready(self.name, matrix),
            trace=trace, findings=findings, schedule=order,
        )  # fmt: skip
        if session is not None:
            for matrix, count in executed.items():
                session.ready(self.name, matrix).count(matrix.m, matrix.n, matrix.k, count=count)
        if finish is not None:
            finish()
        for name, each in arrays:
            if each.unchanged is not None and not each.unchanged():
                raise OperandError(f"{self.name} wrote to {name}, {each.what}, which cannot change: pass what numpy.array() makes of it")
        return tuple(findings or ())

    def kernel(self, block: Size, shared: int = 0, cluster: Size | None = None, check: str | Sequence[str] = ()) -> Kernel:
        """The kernel as the machine has it for a size of block and checks, compiled once."""
        checks = check_names(check)
        block_size = _three(block, "block", (CTA.threads, CTA.threads, 64))
        cluster_size = None if cluster is None else _three(cluster, "cluster", (CTA.cluster,) * 3)
        if cluster_size is not None and cluster_size != (1, 1, 1) and architecture(self.module.arch).capability < CTA.clusters_from:
            raise OperandError(f"{self.name}: clusters of {cluster_size} CTAs; {self.module.arch} has none")
        told = self._entry.attributes.get("reqnctapercluster")
        if told and cluster_size is not None and tuple([*told, 1, 1][:3]) != cluster_size:
            raise OperandError(f"{self.name} is compiled for clusters of {told} CTAs, got {cluster_size}")
        key = (block_size, shared, cluster_size, checks)
        if key not in self._made:
            self._made[key] = Kernel(
                self.module.module, self.ptx_name, arch=self.module.arch, shared=shared, threads=block_size, cluster=cluster_size,
                contracts=self.module.contracts, variables=self.module.memory, checks=checks,
            )  # fmt: skip
        return self._made[key]

    def _check_block(self, block: tuple[int, int, int]) -> None:
        """Against what the text demands."""
        wanted, most = self._entry.attributes.get("reqntid"), self._entry.attributes.get("maxntid")
        count = int(np.prod(block))
        if wanted is not None and tuple([*wanted, 1, 1][:3]) != block:
            raise OperandError(f"{self.name} is compiled for blocks of {wanted} threads, got {block}")
        if most is not None and count > int(np.prod(most)):
            raise OperandError(f"{self.name} is compiled for at most {int(np.prod(most))} threads of a CTA, got {count}")
        if count > CTA.threads:
            raise OperandError(f"{self.name}: {count:,} threads of a CTA; there are up to {CTA.threads:,}")

    def _values(self, arguments: Sequence[Any]) -> tuple[list[int | bytes], list[tuple[str, PassedArray]]]:
        """The address or bytes of each parameter, and the arrays."""
        if len(arguments) != len(self.parameters):
            told = ", ".join(each.kind for each in self.parameters)
            raise OperandError(f"{self.name} takes {len(self.parameters)} arguments ({told}), got {len(arguments)}")
        values: list[int | bytes] = []
        arrays: list[tuple[str, PassedArray]] = []
        for place, (value, parameter) in enumerate(zip(arguments, self.parameters, strict=True)):
            name = f"argument {place + 1} of {self.name}, {parameter.kind},"
            if isinstance(value, ArrayMap):
                if parameter.size != BYTES:
                    raise OperandError(f"{name} has {parameter.size} bytes; a tensor map has {BYTES}")
                arrays.append((f"argument {place + 1}", value.array))
                values.append(value.record)
            elif is_array(value):
                if parameter.size != 8 or parameter.kind[0] == "f":
                    hint = "; a structure is given as bytes or numpy.void: array[()]" if "[" in parameter.kind else ""
                    raise OperandTypeError(f"{name} is no pointer, got an array{hint}")
                held = given(value, name)
                arrays.append((f"argument {place + 1}", held))
                values.append(held.address)
            else:
                values.append(scalar_bytes(value, parameter, name))
        return values, arrays


def _three(size: Any, name: str, most: Sequence[int]) -> tuple[int, int, int]:
    """Sizes along x, y and z."""
    given_sizes = [size] if isinstance(size, int | np.integer) else list(size) if isinstance(size, Sequence) else [None]
    whole = all(isinstance(each, int | np.integer) and not isinstance(each, bool) for each in given_sizes)
    if not whole or not 1 <= len(given_sizes) <= 3:
        raise OperandTypeError(f"{name} must be an integer or up to three, got {size!r:.60}")
    x, y, z = (int(each) for each in [*given_sizes, 1, 1][:3])
    if any(not 1 <= each <= limit for each, limit in zip((x, y, z), most, strict=True)):
        raise OperandError(f"{name} is {(x, y, z)}; there are up to {tuple(most)}, and at least 1")
    return x, y, z


__all__ = ["CudaKernel", "ModuleGlobals", "PtxModule", "compile_cuda", "load_ptx"]
