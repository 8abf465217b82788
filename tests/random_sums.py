"""Random PTX texts of products, sums and what stands between them, for what ptxas fuses."""

from __future__ import annotations

import random

HEAD = """.version 8.8
.target {arch}
.address_size 64
.visible .entry k(.param .u64 p, .param .u64 o) {{
.reg .f32 %f<400>; .reg .pred %q<9>; .reg .b32 %r<400>; .reg .b64 %rd<400>; .reg .b16 %h<400>;
ld.param.u64 %rd1, [p];
ld.param.u64 %rd2, [o];
"""
SINGLE = {
    "mul.f32": 30, "add.f32": 26, "sub.f32": 14, "neg.f32": 8, "mov.f32": 4, "fma.rn.f32": 4, "mul.rn.f32": 2, "add.rn.f32": 2,
    "mul.ftz.f32": 5, "add.ftz.f32": 5, "sub.ftz.f32": 2, "div.full.f32": 3, "div.approx.f32": 1, "div.full.ftz.f32": 1,
    "rcp.approx.f32": 1, "abs.f32": 1, "max.f32": 1, "add.sat.f32": 1, "mul.sat.f32": 1, "ex2.approx.ftz.f32": 1,
}  # fmt: skip
PAIRS = {"mul.f32x2": 30, "add.f32x2": 24, "sub.f32x2": 12, "fma.rn.f32x2": 4, "mul.rn.f32x2": 2, "pack": 8, "unpack": 8, "mul.f32": 8,
         "add.f32": 8}  # fmt: skip
HALVES = {"mul.f16x2": 30, "add.f16x2": 26, "sub.f16x2": 12, "neg.f16x2": 6, "fma.rn.f16x2": 4, "add.rn.f16x2": 2}
CONSTANTS = ("0f3F800000", "0f40000000", "0fBF800000", "0f3DCCCCCD", "0f40400000", "0f43E00000")
OPERANDS = {"neg": 1, "mov": 1, "abs": 1, "rcp": 1, "ex2": 1, "fma": 3}


class Text:
    """A kernel that is being written."""

    def __init__(self, seed: int, arch: str, weights: dict[str, int]) -> None:
        self.draw = random.Random(f"sums {seed}")
        self.lines = HEAD.format(arch=arch).splitlines()
        self.weights = weights
        self.values: dict[str, list[str]] = {"f": [], "rd": [], "r": []}
        self.count = 9

    def kind(self, opcode: str) -> str:
        return "rd" if opcode.endswith("f32x2") else "r" if opcode.endswith("f16x2") else "f"

    def fresh(self, kind: str) -> str:
        """A new register, now and then one that holds something already."""
        if kind != "rd" and len(self.values[kind]) > 9 and self.draw.random() < 0.04:
            return self.draw.choice(self.values[kind])
        self.count += 1
        return f"%{kind}{self.count}"

    def operand(self, kind: str, opcode: str) -> str:
        if kind == "f" and self.draw.random() < 0.06 and not opcode.startswith(("neg", "mov", "abs")):
            return self.draw.choice(CONSTANTS)
        held = self.values[kind]
        return held[-1 - min(int(self.draw.expovariate(0.25)), len(held) - 1)]

    def put(self, opcode: str) -> None:
        """One more instruction."""
        if opcode == "pack":
            a, b = self.operand("f", "mov"), self.operand("f", "mov")
            target = self.fresh("rd")
            self.lines.append(f"mov.b64 {target}, {{{a}, {b}}};")
            self.values["rd"].append(target)
            return
        if opcode == "unpack":
            whole, targets = self.operand("rd", "mov"), []
            for _ in range(2):
                self.count += 1
                targets.append(f"%f{self.count}")
            self.lines.append(f"mov.b64 {{{targets[0]}, {targets[1]}}}, {whole};")
            self.values["f"] += targets
            return
        kind = self.kind(opcode)
        operands = [self.operand(kind, opcode) for _ in range(OPERANDS.get(opcode.partition(".")[0], 2))]
        guard = "@%q1 " if opcode.startswith("add") and self.draw.random() < 0.03 and kind == "f" else ""
        target = self.draw.choice(self.values[kind]) if guard else self.fresh(kind)
        self.lines.append(f"{guard}{opcode} {target}, {', '.join(operands)};")
        if target not in self.values[kind]:
            self.values[kind].append(target)


def text(seed: int, arch: str, *, weights: dict[str, int], count: int = 150, blocks: bool = True) -> str:
    """A kernel of `count` instructions, in a few basic blocks."""
    made = Text(seed, arch, weights)
    for k in range(9):
        for kind, of, size in (("f", "f32", 4), ("rd", "b64", 8), ("r", "b32", 4)):
            name = f"%{kind}{k + (20 if kind == 'rd' else 0)}"
            made.lines.append(f"ld.global.{of} {name}, [%rd1+{size * (k + 16 * (kind == 'rd') + 64 * (kind == 'r'))}];")
            made.values[kind].append(name)
    made.count = 40
    made.lines.append("setp.gt.f32 %q1, %f0, %f1;")
    opcodes = list(weights)
    for k in range(count):
        if blocks and made.draw.random() < 0.02:
            made.lines += [f"@%q1 bra L{k};", "bar.sync 0;", f"L{k}:"]
        made.put(made.draw.choices(opcodes, [weights[each] for each in opcodes])[0])
    place = 0
    for kind, of in (("f", "f32"), ("rd", "b64"), ("r", "b32")):
        for name in made.values[kind][-40:]:
            if made.draw.random() < 0.4:
                place += 8
                made.lines.append(f"st.global.{of} [%rd2+{place}], {name};")
    return "\n".join([*made.lines, "ret;", "}", ""])
