"""The tables: number formats, datapaths, instructions and the evidence behind each row."""

from mmabits.isa.architectures import ARCHITECTURES, ArchitectureSpec, architecture
from mmabits.isa.choices import library_instruction
from mmabits.isa.datapaths import DATAPATHS, Arithmetic, DatapathSpec, ResultRounding
from mmabits.isa.errors import (
    CompilerError,
    DeviceUnavailable,
    EmulationError,
    InsufficientEvidence,
    MmabitsError,
    NotEnoughMemory,
    OperandError,
    OperandTypeError,
    UnknownArchitecture,
    UnknownFormat,
    UnknownInstruction,
    UnsupportedInstruction,
    VectorFileError,
    nearest,
    visible,
)
from mmabits.isa.evidence import Evidence, Proof, evidence_level, weakest
from mmabits.isa.formats import FORMATS, FormatSpec, NonFinite, format_spec
from mmabits.isa.instructions import INSTRUCTION_SPECS, KNOWN_FORMS, Family, Instruction, InstructionSpec, KnownForm, ScaleMode, Tile
from mmabits.isa.lowering import LOWERINGS, KOrder, Lowering, LoweringSpec, Support, instructions, lower
from mmabits.isa.ptx import complete, parse, resolve
from mmabits.isa.rounding import Rounding
from mmabits.isa.whatif import what_if

__all__ = [
    # formats
    "FORMATS", "FormatSpec", "NonFinite", "format_spec",
    # architectures
    "ARCHITECTURES", "ArchitectureSpec", "architecture", "what_if",
    # instructions
    "INSTRUCTION_SPECS", "KNOWN_FORMS", "Family", "Instruction", "InstructionSpec", "KnownForm", "ScaleMode", "Tile", "complete", "parse",
    "resolve",
    # what they become
    "LOWERINGS", "KOrder", "Lowering", "LoweringSpec", "Support", "instructions", "library_instruction", "lower",
    # what computes them
    "DATAPATHS", "Arithmetic", "DatapathSpec", "ResultRounding", "Rounding",
    # how well it is known
    "Evidence", "Proof", "evidence_level", "weakest",
    # errors
    "CompilerError", "DeviceUnavailable", "EmulationError", "InsufficientEvidence", "MmabitsError", "NotEnoughMemory", "OperandError",
    "OperandTypeError", "UnknownArchitecture", "UnknownFormat", "UnknownInstruction", "UnsupportedInstruction", "VectorFileError",
    "nearest", "visible",
]  # fmt: skip
