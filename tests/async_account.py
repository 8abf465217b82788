"""Random small programs of asynchronous work, and a plain account of what happens before what in them.

The account is a graph: a node for what each thread does at a step, for each copy and product, and for what ends each barrier and phase,
with an edge where one comes before the other. Two accesses race where no path joins them, or none over the fences that they need. The
manual leaves some edges open, so there are two graphs: with every edge that it allows for (what races there must be found), and with
those alone that it promises (nothing else may be named).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mmabits.conformance.record.kernels import instruction_descriptor
from mmabits.emulator.machine.descriptors import NONE, MatrixDescriptor, encode_tcgen05, encode_wgmma
from mmabits.isa import parse

BARRIERS = 8192
"""Where the mbarriers lie in shared memory, 8 bytes each; places for a tensor address are behind them."""
MOST = 12
"""Mbarriers of a program."""
SHARED = 8704
TENSOR_PLACE = BARRIERS + 8 * MOST + 32


class AsyncStep(NamedTuple):
    """Something that some threads do."""

    what: str
    area: int = 0
    """First byte of shared memory."""
    where: str = "own"
    who: str = "all"
    number: int = 0
    """Of an mbarrier; groups that may be left."""


@dataclass(frozen=True)
class Family:
    """A kind of programs."""

    name: str
    arch: str
    threads: int
    areas: tuple[int, ...]
    steps: tuple[str, ...]
    """What there is to do, as often as it shall come."""
    orders: tuple[str, ...]
    """What puts it in order: some programs have more of that."""
    fetched: int = 256
    """Bytes of a bulk copy."""


_COMMON = ("store", "store", "load", "load", "barrier", "warp barrier", "proxy", "fetch", "arrive", "seen", "seen")
FAMILIES = (
    Family("copies", "sm_90a", 64, (0, 1024, 2048), (
        *_COMMON, "copy", "copy", "close", "await", "send", "close sends", "await sends", "arrive behind copies", "seen",
    ), ("barrier", "barrier", "proxy", "seen", "close", "await", "await sends"), fetched=1024),
    Family("wgmma", "sm_90a", 128, (0, 2048, 4096), (*_COMMON, "product", "product", "close products", "await products"),
           ("barrier", "barrier", "proxy", "seen", "close products", "await products")),
    Family("tcgen05", "sm_100a", 128, (0, 4096, 5120), (
        *_COMMON, "product", "product", "commit", "commit", "seen", "tensor load", "await loads", "tensor store", "await stores",
        "fence before", "fence after", "fence before", "fence after",
    ), ("barrier", "barrier", "proxy", "commit", "seen", "seen", "await loads", "await stores", "fence before", "fence after")),
)  # fmt: skip
GROUPED = {"copy", "close", "await", "tensor load", "await loads", "tensor store", "await stores"}
"""Done by whole warps."""
WHOLE = {"barrier", "warp barrier", "product", "close products", "await products", "arrive behind copies"}
"""Done by all, save products of tcgen05."""
FIRST = {"fetch", "send", "close sends", "await sends", "commit"}
"""Done by the first thread."""
_WHO = {"all": "", "warp": "@%p2 ", "second": "@%p4 ", "first": "@%p1 ", "lanes": "@%p3 "}
_PLACES = {"own": "%r9", "other": "%r10", "beside": "%r11", "one": "%r8"}


def is_in(who: str, thread: int) -> bool:
    return {
        "all": True, "warp": thread < 32, "second": 32 <= thread < 64, "first": thread == 0, "lanes": thread % 32 == 0,
    }[who]  # fmt: skip


def random_program(rng: np.random.Generator, family: Family) -> list[AsyncStep]:
    """Steps that end: what is waited for was asked for before."""
    steps: list[AsyncStep] = []
    promised = 0
    kinds = family.steps + family.orders * int(rng.integers(0, 4))
    for _ in range(int(rng.integers(6, 22))):
        what = str(rng.choice(kinds))
        area, where = int(rng.choice(family.areas)), str(rng.choice(["own", "own", "other", "beside", "one"]))
        who = str(rng.choice(["all", "all", "all", "warp", "second", "first", "lanes"]))
        number = 0
        if what in FIRST or (what == "product" and family.name == "tcgen05"):
            who = "first"
        elif what in WHOLE:
            who = "all"
        elif what in GROUPED:
            who = "all" if who in ("first", "lanes") else who
        if what == "copy" and where not in ("own", "other"):
            where = "own"
        if what in ("fetch", "arrive", "arrive behind copies", "commit"):
            if promised == MOST:
                continue
            number, promised = promised, promised + 1
        elif what == "seen":
            if promised == 0:
                continue
            number = int(rng.integers(0, promised))
            if family.name != "copies" and who in ("first", "lanes"):  # the lanes of a warp must come to wgmma and tcgen05.ld together
                who = "all"
        elif what in ("await", "await sends", "await products"):
            number = int(rng.choice([0, 0, 1]))
        steps.append(AsyncStep(what, area, where, who, number))
    return steps


# -------------------------------------------------------------------------------------------------------------------- the text


def _wait(number: int, label: str, guard: str) -> str:
    skip = f"{guard.replace('@', '@!')}bra $L_skip_{label}; " if guard else ""
    at = BARRIERS + 8 * number
    return f"{skip}$L_{label}: mbarrier.try_wait.parity.shared::cta.b64 %p5, [%r8+{at}], 0; @!%p5 bra $L_{label}; $L_skip_{label}:"


_WGMMA = "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%c0, %c1, %c2, %c3}, %rd30, %rd31, 1, 1, 1, 0, 0;"


def _line(number: int, step: AsyncStep, family: Family, threads_of: dict[int, int]) -> str:
    """A step on a line of its own."""
    guard, place, area = _WHO[step.who], _PLACES[step.where], step.area
    at = f"%r8+{BARRIERS + 8 * step.number}"
    wide = "%r12" if step.where == "own" else "%r13"
    product = (
        f"wgmma.fence.sync.aligned; {_WGMMA}" if family.name == "wgmma"
        else f"{guard}tcgen05.mma.cta_group::1.kind::f16 [%r51], %rd30, %rd31, %r50, %p10;"
    )  # fmt: skip
    return {
        "store": f"add.s32 %r20, %r1, {1000 * (number + 1)}; {guard}st.shared.b32 [{place}+{area}], %r20;",
        "load": f"{guard}ld.shared.b32 %r21, [{place}+{area}];",
        "barrier": "bar.sync 0;", "warp barrier": "bar.warp.sync -1;",
        "proxy": f"{guard}fence.proxy.async.shared::cta;",
        "fetch": f"{guard}mbarrier.arrive.expect_tx.shared::cta.b64 _, [{at}], {family.fetched}; {guard}cp.async.bulk.shared::cta.global"
                 f".mbarrier::complete_tx::bytes [%r8+{area}], [%rd1], {family.fetched}, [{at}];",
        "arrive": f"{guard}mbarrier.arrive.shared::cta.b64 _, [{at}];",
        "seen": _wait(step.number, f"seen{number}", guard),
        "copy": f"{guard}cp.async.ca.shared.global [{wide}+{area}], [%rd13], 16;",
        "close": f"{guard}cp.async.commit_group;", "await": f"{guard}cp.async.wait_group {step.number};",
        "arrive behind copies": f"{guard}cp.async.mbarrier.arrive.noinc.shared::cta.b64 [{at}];",
        "send": f"{guard}cp.async.bulk.global.shared::cta.bulk_group [%rd1+8192], [%r8+{area}], {family.fetched};",
        "close sends": f"{guard}cp.async.bulk.commit_group;", "await sends": f"{guard}cp.async.bulk.wait_group.read {step.number};",
        "product": product,
        "close products": "wgmma.commit_group.sync.aligned;", "await products": f"wgmma.wait_group.sync.aligned {step.number};",
        "commit": f"{guard}tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [{at}];",
        "tensor load": f"{guard}tcgen05.ld.sync.aligned.32x32b.x1.b32 {{%v{number}}}, [%r53];",
        "await loads": f"{guard}tcgen05.wait::ld.sync.aligned;",
        "tensor store": f"{guard}tcgen05.st.sync.aligned.32x32b.x1.b32 [%r53], {{%r1}};",
        "await stores": f"{guard}tcgen05.wait::st.sync.aligned;",
        "fence before": f"{guard}tcgen05.fence::before_thread_sync;", "fence after": f"{guard}tcgen05.fence::after_thread_sync;",
    }[step.what]  # fmt: skip


def text_of(steps: list[AsyncStep], family: Family) -> tuple[str, int]:
    """The PTX of a program, and the line of its first step."""
    threads_of = {}
    for step in steps:
        if step.what in ("fetch", "arrive", "arrive behind copies", "commit"):
            threads_of[step.number] = sum(is_in(step.who, thread) for thread in range(family.threads))
    begin = [
        "\t.reg .pred %p<20>; .reg .b32 %r<80>; .reg .b64 %rd<60>; .reg .b32 %c<8>; .reg .b32 %v<20>;",
        "\tld.param.b64 %rd1, [k_0]; mov.u32 %r1, %tid.x; mov.b32 %r8, room; shr.u32 %r6, %r1, 5; and.b32 %r7, %r1, 31;",
        "\tshl.b32 %r60, %r1, 2; add.s32 %r9, %r8, %r60; xor.b32 %r61, %r60, 128; add.s32 %r10, %r8, %r61; xor.b32 %r62, %r60, 4;",
        "\tadd.s32 %r11, %r8, %r62; shl.b32 %r63, %r1, 4; add.s32 %r12, %r8, %r63; xor.b32 %r64, %r63, 512; add.s32 %r13, %r8, %r64;",
        "\tsetp.eq.u32 %p1, %r1, 0; setp.eq.u32 %p2, %r6, 0; setp.eq.u32 %p3, %r7, 0; setp.eq.u32 %p4, %r6, 1;",
        "\tmul.wide.u32 %rd12, %r1, 16; add.s64 %rd13, %rd1, %rd12;",
        *(f"\t@%p1 mbarrier.init.shared::cta.b64 [%r8+{BARRIERS + 8 * number}], {count};" for number, count in threads_of.items()),
    ]
    end = ["\tbar.sync 0;", *(f"\t{_wait(number, f'end{number}', '')}" for number in threads_of)]
    if family.name == "copies":
        end += ["\tcp.async.wait_all; cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;"]
    elif family.name == "wgmma":
        a, b = MatrixDescriptor(0, 128, 256, NONE), MatrixDescriptor(2048, 128, 256, NONE)
        begin += [f"\tmov.b64 %rd30, {encode_wgmma(a)}; mov.b64 %rd31, {encode_wgmma(b)};"]
        begin += ["\tmov.b32 %c0, 0; mov.b32 %c1, 0; mov.b32 %c2, 0; mov.b32 %c3, 0; wgmma.fence.sync.aligned;"]
        end += ["\twgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;"]
    else:
        a, b = MatrixDescriptor(0, 128, 256, NONE), MatrixDescriptor(4096, 128, 256, NONE)
        kind = instruction_descriptor(parse("tcgen05.mma.cta_group::1.kind::f16.m128n16k16.f32.f16.f16"))
        begin += [
            f"\tmov.b64 %rd30, {encode_tcgen05(a)}; mov.b64 %rd31, {encode_tcgen05(b)}; mov.b32 %r50, {kind}; setp.ne.u32 %p10, 0, 0;",
            f"\t@%p2 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r8+{TENSOR_PLACE}], 32;",
            f"\t@%p1 mbarrier.init.shared::cta.b64 [%r8+{TENSOR_PLACE + 8}], 1;",
            f"\tbar.sync 0; ld.shared.b32 %r51, [%r8+{TENSOR_PLACE}]; shl.b32 %r52, %r6, 21; add.s32 %r53, %r51, %r52;",
        ]
        last = f"%r8+{TENSOR_PLACE + 8}"
        end += [
            f"\t@%p1 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [{last}];",
            f"\t$L_last: mbarrier.try_wait.parity.shared::cta.b64 %p5, [{last}], 0; @!%p5 bra $L_last;",
            "\ttcgen05.wait::ld.sync.aligned; tcgen05.wait::st.sync.aligned; tcgen05.fence::before_thread_sync; bar.sync 0;",
            "\t@%p2 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r51, 32;",
        ]
    begin.append("\tbar.sync 0;")
    head = [
        ".version 8.8", f".target {family.arch}", ".address_size 64", ".extern .shared .align 1024 .b8 room[];",
        f".visible .entry k(.param .u64 k_0) .reqntid {family.threads}", "{",
    ]  # fmt: skip
    body = [f"\t{_line(number, step, family, threads_of)}" for number, step in enumerate(steps)]
    return "\n".join([*head, *begin, *body, *end, "\tret;", "}", ""]), len(head) + len(begin) + 1


# -------------------------------------------------------------------------------------------------------------------- the account


class Access(NamedTuple):
    """What a node does to memory."""

    step: int
    space: str
    first: int
    last: int
    writes: bool
    how: str
    """`generic`, `async`, or of tensor memory the warp that owns it, `""` of products."""


@dataclass
class Node:
    """Something that happens; its masks have a bit for each node."""

    past: int = 0
    """What happened before,"""
    fenced: int = 0
    """with a proxy fence on the way,"""
    before: int = 0
    """with tcgen05.fence::before_thread_sync,"""
    after: int = 0
    """and with ::after_thread_sync behind that."""
    accesses: list[Access] = field(default_factory=list)


LAYERS = ("past", "fenced", "before", "after")


class Account:
    """The graph of a program.

    Args:
        generous: whether all edges are there that the manual allows for: what a copy or a product came after is before whoever waits for
            it, as is what a thread did before it commits; and a warp's instruction comes after what any of its lanes did. Otherwise an
            end stands for the work alone, and an instruction of a warp comes after what all of its lanes know.
    """

    def __init__(self, steps: list[AsyncStep], family: Family, generous: bool) -> None:
        self.family, self.generous = family, generous
        self.nodes: list[Node] = []
        self.at = [self.node([]) for _ in range(family.threads)]
        """The last node of each thread."""
        self.phases: dict[int, list[tuple[int, bool]]] = {}
        """What an mbarrier waits for: nodes, and whether what came before them counts."""
        self.ended: dict[int, int] = {}
        self.open: dict[str, list[list[int]]] = {"copies": [[] for _ in self.at], "products": [[] for _ in self.at], "sends": [[]]}
        self.closed: dict[str, list[list[list[int]]]] = {name: [[] for _ in lanes] for name, lanes in self.open.items()}
        self.every_copy: list[list[int]] = [[] for _ in self.at]
        self.tensor: dict[str, list[list[int]]] = {"load": [[] for _ in range(4)], "store": [[] for _ in range(4)]}
        self.asked: list[int] = []
        for number, step in enumerate(steps):
            self.step(number, step)

    def node(self, ones: list[int], *, whole: bool = True, every: bool = False) -> int:
        """A node behind others; with `every`, behind what all of them know."""
        made = Node()
        for place, one in enumerate(ones):
            for layer in LAYERS:
                mask = getattr(self.nodes[one], layer) if whole else 0
                mask |= 1 << one if layer == "past" else 0
                held = getattr(made, layer)
                setattr(made, layer, mask if place == 0 else held & mask if every else held | mask)
        self.nodes.append(made)
        return len(self.nodes) - 1

    def behind(self, one: int, others: list[tuple[int, bool]]) -> None:
        """More edges to a node."""
        for other, whole in others:
            for layer in LAYERS:
                mask = getattr(self.nodes[other], layer) if whole else 0
                setattr(self.nodes[one], layer, getattr(self.nodes[one], layer) | mask | (1 << other if layer == "past" else 0))

    def of_warp(self, warp: int) -> int:
        """What a warp asks for."""
        return self.node(self.at[32 * warp : 32 * warp + 32], every=not self.generous)

    def phase(self, number: int) -> int:
        """The end of an mbarrier's phase."""
        if number not in self.ended:
            made = self.node([])
            self.behind(made, self.phases[number])
            self.ended[number] = made
        return self.ended[number]

    def threads(self, who: str) -> list[int]:
        return [thread for thread in range(self.family.threads) if is_in(who, thread)]

    def word(self, step: AsyncStep, thread: int, wide: int) -> int:
        other = {"own": thread, "other": thread ^ 32, "beside": thread ^ 1, "one": 0}[step.where]
        return step.area + wide * other

    def step(self, number: int, step: AsyncStep) -> None:
        what, threads = step.what, self.threads(step.who)
        if what in ("barrier", "warp barrier"):
            size = 32 if what == "warp barrier" else self.family.threads
            for first in range(0, self.family.threads, size):
                made = self.node(self.at[first : first + size])
                self.at[first : first + size] = [made] * size
            return
        if what in GROUPED and what.startswith(("tensor", "await loads", "await stores")):
            self.tensor_step(number, step)
            return
        if what in ("product", "close products", "await products", "commit"):
            self.product_step(number, step)
            return
        for thread in threads:
            self.at[thread] = self.node([self.at[thread]])
            self.lane(number, step, thread)

    def lane(self, number: int, step: AsyncStep, thread: int) -> None:
        """What a thread does at a step."""
        own, what, generous = self.at[thread], step.what, self.generous
        node = self.nodes[own]
        if what in ("store", "load"):
            word = self.word(step, thread, 4)
            node.accesses.append(Access(number, "shared", word, word + 4, what == "store", "generic"))
        elif what == "proxy":
            node.fenced |= node.past
        elif what == "fence before":
            node.before |= node.past
        elif what == "fence after":
            node.after |= node.before
        elif what == "arrive":
            self.phases.setdefault(step.number, []).append((own, True))
        elif what == "fetch":
            made = self.node([own])
            self.nodes[made].accesses.append(Access(number, "shared", step.area, step.area + self.family.fetched, True, "async"))
            self.phases[step.number] = [(own, True), (made, generous)]
        elif what == "seen":
            self.behind(own, [(self.phase(step.number), True)])
        elif what == "copy":
            made = self.node([own])
            word = self.word(step, thread, 16)
            self.nodes[made].accesses.append(Access(number, "shared", word, word + 16, True, "generic"))
            self.open["copies"][thread].append(made)
            self.every_copy[thread].append(made)
        elif what == "send":
            made = self.node([own])
            self.nodes[made].accesses.append(Access(number, "shared", step.area, step.area + self.family.fetched, False, "async"))
            self.open["sends"][0].append(made)
        elif what in ("close", "close sends"):
            self.close("copies" if what == "close" else "sends", thread)
        elif what in ("await", "await sends"):
            self.await_groups("copies" if what == "await" else "sends", thread, step.number, own)
        elif what == "arrive behind copies":
            self.phases.setdefault(step.number, []).extend((each, generous) for each in self.every_copy[thread])

    def close(self, name: str, thread: int) -> None:
        self.closed[name][thread].append(self.open[name][thread])
        self.open[name][thread] = []

    def await_groups(self, name: str, thread: int, left: int, own: int) -> None:
        groups = self.closed[name][thread]
        for group in groups[: max(0, len(groups) - left)]:
            self.behind(own, [(each, self.generous) for each in group])

    def product_step(self, number: int, step: AsyncStep) -> None:
        if self.family.name == "tcgen05":
            own = self.at[0] = self.node([self.at[0]])
            if step.what == "product":
                made = self.node([own])
                self.behind(made, [(each, False) for each in self.asked])  # in the order in which they were asked for
                for first, last in ((0, 4096), (4096, 4608)):
                    self.nodes[made].accesses.append(Access(number, "shared", first, last, False, "async"))
                for lane in range(128):
                    self.nodes[made].accesses.append(Access(number, "tensor", 512 * lane, 512 * lane + 16, True, ""))
                self.asked.append(made)
            else:
                done = self.node([])
                self.behind(done, [(each, self.generous) for each in self.asked])
                self.nodes[done].before |= self.nodes[done].past
                self.phases[step.number] = [(done, True), *([(own, True)] if self.generous else [])]
            return
        for warp in range(4):
            lanes = range(32 * warp, 32 * warp + 32)
            if step.what == "product":
                made = self.of_warp(warp)
                for first, last in ((0, 2048), (2048, 2304)):
                    self.nodes[made].accesses.append(Access(number, "shared", first, last, False, "async"))
                for lane in lanes:
                    self.open["products"][lane].append(made)
            for lane in lanes:
                self.at[lane] = self.node([self.at[lane]])
                if step.what == "close products":
                    self.close("products", lane)
                elif step.what == "await products":
                    self.await_groups("products", lane, step.number, self.at[lane])

    def tensor_step(self, number: int, step: AsyncStep) -> None:
        """tcgen05.ld, tcgen05.st and their waits."""
        kind = "load" if "load" in step.what else "store"
        for warp in sorted({thread // 32 for thread in self.threads(step.who)}):
            lanes = range(32 * warp, 32 * warp + 32)
            if step.what.startswith("tensor"):
                made = self.of_warp(warp)
                for lane in lanes:
                    self.nodes[made].accesses.append(Access(number, "tensor", 512 * lane, 512 * lane + 1, kind == "store", f"warp {warp}"))
                self.tensor[kind][warp].append(made)
            for lane in lanes:
                self.at[lane] = self.node([self.at[lane]])
                if step.what.startswith("await"):
                    self.behind(self.at[lane], [(each, self.generous) for each in self.tensor[kind][warp]])

    # ------------------------------------------------------------------------------------------------------------------ races

    def races(self) -> dict[tuple[int, int], set[str]]:
        """Pairs of steps that race, and what is missing: `order`, or a `fence`."""
        found: dict[tuple[int, int], set[str]] = {}
        every = [(number, access) for number, node in enumerate(self.nodes) for access in node.accesses]
        for place, (later, one) in enumerate(every):
            for earlier, other in every[:place]:
                overlap = one.space == other.space and one.first < other.last and other.first < one.last
                if earlier == later or not overlap or not (one.writes or other.writes):
                    continue
                missing = self.missing(earlier, other, later, one)
                if missing:
                    found.setdefault((min(one.step, other.step), max(one.step, other.step)), set()).add(missing)
        return found

    def missing(self, earlier: int, other: Access, later: int, one: Access) -> str:
        """What keeps two accesses from being in order."""
        node, bit = self.nodes[later], 1 << earlier
        if not node.past & bit:
            return "order"
        if one.space == "shared":
            needed = one.how == "async" and other.how == "generic" and other.writes
            return "fence" if needed and not node.fenced & bit else ""
        is_own = one.how == other.how
        return "" if is_own or node.after & bit else "fence"
