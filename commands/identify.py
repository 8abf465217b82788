"""`mmabits identify`: the datapath behind a recording, a GPU's instruction, or the emulator's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from mmabits.commands.completion import architectures

if TYPE_CHECKING:
    from mmabits.commands.pages.identify import Asked

EXIT_CONTRADICTED: Final = 1


def identify(
    recording: Annotated[Path | None, typer.Argument(help="A file of dot products or tiles.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Instead of a recording: ask for this instruction, PTX in full, with --arch or --gpu.")
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(autocompletion=architectures, help="With --instruction: ask the emulator of this architecture, or GPU: sm_90a, h100."),
    ] = None,
    gpu: Annotated[int | None, typer.Option(min=0, help="With --instruction: ask this GPU, counted from 0 (extra gpu).")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page (.html).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a row for each finding.")] = False,
    function: Annotated[Path | None, typer.Option(help="Instead: a file of `mmabits record --functions`.")] = None,
    blocks: Annotated[
        int | None, typer.Option(min=0, help="With --function: blocks of 2^20 operands to prove the model on; all if left out.")
    ] = None,
) -> None:
    """Find the datapath that fits: its row, the evidence, and what stays undecided. Exit status 1: nothing modelled fits."""
    from mmabits.conformance.identify import identify as run
    from mmabits.conformance.identify.devices import emulator_device
    from mmabits.conformance.recorded.reading import read_dots
    from mmabits.isa import parse
    from mmabits.isa.errors import OperandError
    from mmabits.reports.output import say, say_csv, say_json
    from mmabits.reports.pages import check_page, write
    from mmabits.reports.progress import working

    if function is not None:
        if recording is not None or instruction is not None or arch is not None or gpu is not None or report is not None or as_csv:
            raise OperandError("--function takes a file, and goes with --blocks and --json alone")
        raise typer.Exit(_function(function, blocks, as_json=as_json))
    if blocks is not None:
        raise OperandError("--blocks goes with --function")
    if (recording is None) == (instruction is None) or (instruction is None) != (arch is None and gpu is None) or None not in (arch, gpu):
        raise OperandError("identify takes a file, or --instruction with either --arch or --gpu")
    check_page(report)
    device: Any
    if recording is not None:
        vectors = read_dots(recording)
        row, device = parse(vectors.instruction), vectors
    else:
        row = parse(str(instruction))
        device = emulator_device(str(instruction), str(arch)) if gpu is None else gpu_device(str(instruction), gpu)
    with working("asking"):
        found = run(
            device, a_type=row.a_type.name, b_type=row.b_type.name, d_type=row.d_type.name, k=row.k,
            scale_type=row.scale_type.name if row.scale_type else None, block_size=row.block,
        )  # fmt: skip
    if report is not None:
        from mmabits.commands.pages.identify import identification_page

        write(report, identification_page(found, asked=_asked(device, recording, row.ptx, arch)))
    if as_csv:
        say_csv(
            [{"what": f.what, "value": f.value, "probes": f.probes, "evidence": f.evidence, "also": ""} for f in found.findings]
            + [{"what": u.what, "value": "undecided", "probes": "", "evidence": u.reason, "also": u.alternatives} for u in found.undecided]
        )
    elif as_json:
        say_json({
            "row": found.row, "what_if": found.what_if,
            "probes": found.probes, "contradictions": found.contradictions, "matches": list(found.names),
            "findings": [{"what": f.what, "value": f.value, "evidence": f.evidence, "probes": f.probes} for f in found.findings],
            "undecided": [{"what": u.what, "alternatives": list(u.alternatives), "reason": u.reason} for u in found.undecided],
        })  # fmt: skip
    else:
        say(*str(found).split("\n"))
        if report is not None:
            say(f"wrote {report}")
    raise typer.Exit(0 if found.survived else EXIT_CONTRADICTED)


def _function(path: Path, blocks: int | None, *, as_json: bool) -> int:
    """Identify a recorded function; the exit status."""
    from mmabits.conformance.identify.functions import identify_function
    from mmabits.conformance.recorded.functions import read_function
    from mmabits.reports.output import say, say_json
    from mmabits.reports.progress import working

    with working("fitting and proving"):
        found = identify_function(read_function(path), most_blocks=blocks)
    if as_json:
        say_json({
            "opcode": found.opcode, "arch": found.arch, "gpu": found.gpu, "structure": found.structure, "fits": found.fits,
            "changed_rows": list(found.changed), "results": found.compared, "differ": found.differ, "blocks": found.blocks,
            "wrong_blocks": list(found.wrong_blocks), "all_operands": found.is_whole,
            "rows": None if found.rows is None else {"low": found.rows.form.low, "k": found.rows.k, "b": found.rows.b, "c": found.rows.c},
        })  # fmt: skip
    else:
        say(*str(found).split("\n"))
    return 0 if found.fits else EXIT_CONTRADICTED


def _asked(device: Any, recording: Path | None, instruction: str, arch: str | None) -> Asked:
    """Who answered, for the page."""
    from mmabits.commands.pages.identify import Asked

    if recording is not None:
        facts = (("instruction", device.instruction), ("recorded on", f"{device.gpu} ({device.arch})"), ("source", device.source))
        return Asked(device=str(recording), kind=device.kind, facts=tuple(fact for fact in facts if fact[1]), recording=device)
    if arch is not None:
        return Asked(
            device=f"{instruction}, emulated for {arch}", kind="emulator", facts=(("instruction", instruction), ("emulated", arch))
        )
    info = device.info
    facts = (("instruction", instruction), ("device", f"{info.name} ({info.arch})"), ("driver", info.driver))
    return Asked(device=f"{instruction} of {info.name}", kind=info.kind, facts=facts)


def gpu_device(instruction: str, index: int = 0) -> Any:
    """An instruction of a GPU at hand as a device for `identify`.

    Args:
        instruction: PTX in full.
        index: which GPU, counted as the driver does.

    Returns:
        A callable f(a, b, c, scale_a=None, scale_b=None) over arrays of the formats' NumPy types.

    Raises:
        DeviceUnavailable: no GPU, no driver, or the extra `gpu` is missing.
        MmabitsError: the GPU lacks the instruction, or its kernel fails its check.
    """
    from mmabits.conformance.record.asking import AskedInstruction
    from mmabits.conformance.record.driver import CudaDevice
    from mmabits.isa import parse

    return AskedInstruction(CudaDevice(index), parse(instruction))
