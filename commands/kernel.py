"""The command `mmabits kernel`."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmabits.commands.completion import architectures
from mmabits.isa.errors import EmulationError, OperandError

if TYPE_CHECKING:
    from mmabits.research.kernels import KernelDescription


def kernel(
    target: Annotated[str, typer.Argument(help="FILE.ptx, FILE.ptx:kernel, FILE.py (a script) or FILE.py:function.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Of a script, after `--`.")] = None,
    arch: Annotated[
        list[str] | None, typer.Option(autocompletion=architectures, help="Architecture, or GPU: sm_90a, h100. May be repeated.")
    ] = None,
    signature: Annotated[str | None, typer.Option(help="Types of a Triton kernel's arguments: '*fp16,*fp16,i32'.")] = None,
    constexpr: Annotated[list[str] | None, typer.Option(help="A constant of a Triton kernel: BLOCK=64. May be repeated.")] = None,
    warps: Annotated[int, typer.Option(min=1, help="Warps of a Triton kernel that --signature compiles.")] = 4,
    shared: Annotated[int, typer.Option(min=0, help="Bytes of dynamic shared memory of a launch, for PTX.")] = 0,
    only: Annotated[str | None, typer.Option("--only", help="Kernels whose names hold this word.")] = None,
    source: Annotated[bool, typer.Option(help="Show what each line of the source became.")] = True,
    fusing: Annotated[bool, typer.Option(help="Fuse products and sums as ptxas does, for PTX.")] = True,
    keep: Annotated[Path | None, typer.Option(help="Folder for a file of each launch, which `mmabits replay` runs again.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what became of a kernel: instruction mix, tensor-core instructions, memory, evidence, and the source line by line.

    A Python script, or a function of one without arguments, is run with CPU tensors in place of CUDA's; every Triton kernel that it
    launches is shown. A Triton kernel itself is compiled if --signature gives the types of its arguments.
    """
    from mmabits.reports.output import say, say_json
    from mmabits.reports.progress import working

    if not arch:
        raise OperandError("which architecture? --arch sm_90a, say; may be repeated")
    path, _, name = target.partition(":") if not Path(target).exists() else (target, "", "")
    if not Path(path).is_file():
        raise OperandError(f"no file is called {path}")
    if keep is not None and not path.endswith(".py"):
        raise OperandError("--keep takes launches, and PTX has none: name a script or a function")
    found: list[KernelDescription] = []
    for each in arch:
        if path.endswith(".ptx"):
            with working("reading and compiling"):
                found += _of_ptx(Path(path), name, each, shared, fusing)
        elif path.endswith(".py"):
            found += _of_python(Path(path), name, each, arguments or [], signature, constexpr or [], warps, keep)
        else:
            raise OperandError(f"{path}: a kernel is in a file of PTX (.ptx) or Python (.py)")
    found = [each for each in found if only is None or only in each.name]
    if not found:
        raise OperandError(f"{target}: no kernel" + (f" whose name holds {only!r}" if only else " was launched"))
    if as_json:
        say_json([each.to_dict() for each in found])
        return
    for place, description in enumerate(found):
        say(*([""] if place else []), *description.text(source=source), folds=False)


def _of_ptx(path: Path, name: str, arch: str, shared: int, fusing: bool) -> Iterator[KernelDescription]:
    from mmabits.emulator.machine.ptx import PtxError, read_ptx
    from mmabits.research.kernels import describe_kernel

    module = read_ptx(path.read_text(encoding="utf-8", errors="replace"))
    if not module.kernels:
        raise PtxError(f"{path}: no kernel (.entry)")
    for each in [name] if name else module.kernels:
        yield describe_kernel(module, each, arch=arch, shared=shared, contracts=fusing)


@contextmanager
def _script(path: Path, arguments: list[str]) -> Iterator[None]:
    """Modules beside a script are found, and it sees its arguments."""
    before = sys.argv, list(sys.path)
    sys.argv, sys.path = [str(path), *arguments], [str(path.resolve().parent), *sys.path]
    try:
        yield
    finally:
        sys.argv, sys.path = before


def _of_python(
    path: Path,
    name: str,
    arch: str,
    arguments: list[str],
    signature: str | None,
    constants: list[str],
    warps: int,
    keep: Path | None,
) -> Iterator[KernelDescription]:
    import mmabits
    from mmabits.reports.output import note
    from mmabits.research.kernels import describe_kernel

    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            raise EmulationError(f"{path}: running Python needs {package}: pip install 'mmabits[torch,triton]'")
    with _script(path, arguments), mmabits.emulate(arch, frameworks=["torch", "triton"], triton="compiled", cuda=True) as session:
        session.keeper = _keeper(keep)
        if not name:
            runpy.run_path(str(path), run_name="__main__")
        else:
            function = _function(path, name)
            if hasattr(function, "warmup") or hasattr(function, "fn"):
                yield from _compiled(function, arch, signature, constants, warps)
                return
            function()
        launched = session.report().kernels
    if keep is not None:
        note(f"wrote {len(session.keeper.paths)} launches into {keep}")
    for each in launched:
        yield describe_kernel(each.ptx, arch=session.arch, shared=each.shared, contracts=each.contracts, cluster=_cluster(each.cluster))


def _keeper(folder: Path | None) -> Any:
    if folder is None:
        return None
    from mmabits.conformance.diff.runs import Keeper
    from mmabits.reports.pages import check_folder

    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return Keeper(folder)


def _cluster(size: int) -> tuple[int, ...] | None:
    return (size, 1, 1) if size != 1 else None


def _function(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise OperandError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found) and not hasattr(found, "fn"):
        raise OperandError(f"{path} has no function called {name}")
    return found


def _compiled(function: Any, arch: str, signature: str | None, constants: list[str], warps: int) -> Iterator[KernelDescription]:
    import triton
    from triton.compiler import ASTSource
    from triton.runtime import driver

    from mmabits.research.kernels import describe_kernel

    while not hasattr(function, "arg_names") or not hasattr(function, "src"):  # autotuned, with heuristics
        function = function.fn
    given = dict(_constant(each) for each in constants)
    unknown = [each for each in given if each not in function.arg_names]
    if unknown:
        raise OperandError(f"{function.__name__} has no argument called {unknown[0]}; it has {', '.join(function.arg_names)}")
    rest = [each for each in function.arg_names if each not in given]
    types = [each.strip() for each in signature.split(",")] if signature else []
    if len(types) != len(rest):
        raise OperandError(f"{function.__name__}: --signature gives {len(types)} types; there are {len(rest)} arguments: {', '.join(rest)}")
    kinds = dict(zip(rest, types, strict=True)) | dict.fromkeys(given, "constexpr")
    made = triton.compile(
        ASTSource(function, {each: kinds[each] for each in function.arg_names}, given),
        target=driver.active.get_current_target(), options={"num_warps": warps},
    )  # fmt: skip
    yield describe_kernel(
        made.asm["ptx"], arch=arch, shared=int(made.metadata.shared), contracts=bool(getattr(made.metadata, "enable_fp_fusion", True))
    )


def _constant(text: str) -> tuple[str, Any]:
    import ast

    name, equals, value = text.partition("=")
    if not equals:
        raise OperandError(f"--constexpr {text}: NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value
