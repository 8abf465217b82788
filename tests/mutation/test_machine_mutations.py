"""The machine made wrong in one place, again and again: a quick test notices each time.

A change is a piece of text, found once in `emulator/machine` and `isa/fragments.py` wherever it stands, and what takes its place. The
sources are copied to a folder of their own, changed there, and the named tests run on them in another process: one must fail.
`python tests/mutation/test_machine_mutations.py [WORD]` makes the changes whose name has the word, and says what noticed each.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
CHANGED: Final = ("emulator", "isa")
"""Folders that are copied; the others are links."""
KERNEL, RULES, RANDOM = (f"tests/machine/test_{name}.py" for name in ("kernel", "rules", "random_programs"))
FUSION, TENSOR, DESCRIPTORS, BARRIERS = (f"tests/machine/test_{name}.py" for name in ("contraction", "tensor", "descriptors", "barriers"))
LAYOUTS: Final = "tests/record/test_layouts.py"

BULK, CLUSTERS, WGMMA, INLINING, OPCODES = (
    f"tests/machine/test_{name}.py" for name in ("bulk", "clusters", "wgmma", "inlining", "opcodes")
)


LIMIT: Final = 300
"""Seconds. Some changes make a test wait for ever, which is noticed too: the runs of CI have a limit of their own."""


class Change(NamedTuple):
    """One place of the sources, made wrong."""

    name: str
    text: str
    """What stands there,"""
    instead: str
    """and what takes its place."""
    tests: tuple[str, ...]
    """Quick tests, the one that notices among them."""


CHANGES: Final = (
    # Fragments of A, B, C and D, and of scales.
    Change("fragment: groups along K", "np.divmod(k % instruction.k, 4 * per_register)", "np.divmod(k % instruction.k, 2 * per_register)",
           (f"{LAYOUTS}::test_fragments_of_mma_sync",)),
    Change("fragment: registers of rows and of K", "register = group * halves + row // CORE_ROWS",
           "register = group + 2 * (row // CORE_ROWS)", (f"{LAYOUTS}::test_fragments_of_mma_sync",)),
    Change("fragment: lanes of a row", "lane = 4 * (row % CORE_ROWS) + thread\n", "lane = row % CORE_ROWS + 8 * thread\n",
           (f"{LAYOUTS}::test_fragments_of_mma_sync",)),
    Change("fragment: bits of fp4 in a byte", "return 2 if spec.code_bits == 4", "return 0 if spec.code_bits == 4",
           (f"{LAYOUTS}::test_fragments_of_mma_sync",)),
    Change("accumulator: lanes", "+ 4 * (own_row % CORE_ROWS) + own_column // 2", "+ 4 * (own_row % CORE_ROWS) + own_column % 4",
           (f"{LAYOUTS}::test_accumulators_in_registers",)),
    Change("accumulator: registers of rows", "pair = tile * halves + own_row // CORE_ROWS",
           "pair = tile * halves + (own_row // CORE_ROWS ^ (halves - 1))", (f"{LAYOUTS}::test_accumulators_in_registers",)),
    Change("accumulator: halves of a register", "(pair * threads + thread) * 32 + own_column % 2 * 16",
           "(pair * threads + thread) * 32 + (1 - own_column % 2) * 16", (f"{LAYOUTS}::test_accumulators_in_registers",)),
    Change("scales of A: lanes", "2 * selectors.thread_a + row // CORE_ROWS", "selectors.thread_a + 2 * (row // CORE_ROWS)",
           (f"{LAYOUTS}::test_scales_of_mma_sync_come_from_the_provider_lanes",)),
    Change("scales of B: lanes", "lane, byte = 4 * row + selectors.thread_b", "lane, byte = 4 * row + 3 - selectors.thread_b",
           (f"{LAYOUTS}::test_scales_of_mma_sync_come_from_the_provider_lanes",)),
    Change("shared memory: chunks along K", "chunk * LEADING_BYTES", "chunk * 2 * LEADING_BYTES",
           (f"{LAYOUTS}::test_operands_in_shared_memory",)),
    Change("shared memory: rows", "own_row % CORE_ROWS * (CHUNK_BITS // 8)", "(own_row % CORE_ROWS ^ 1) * (CHUNK_BITS // 8)",
           (f"{LAYOUTS}::test_operands_in_shared_memory",)),
    Change("tensor memory: lanes of 64 rows", "LANES * (own_row // 16) + own_row % 16, column", "own_row, column",
           (f"{LAYOUTS}::test_accumulators_in_tensor_memory",)),
    # Matrices of shared memory.
    Change("ldmatrix: halves", "(32 * matrix + 4 * row + column // 2) + (column & 1)",
           "(32 * matrix + 4 * row + column // 2) + (~column & 1)", (f"{RULES}::test_matrices_of_shared_memory",)),
    Change("ldmatrix: transposed", "(32 * matrix + 4 * column + row // 2) + (row & 1)",
           "(32 * matrix + 4 * row + column // 2) + (column & 1)", (f"{RULES}::test_matrices_of_shared_memory",)),
    Change("ldmatrix: lanes with addresses", "lane = 8 * matrix + row\n", "lane = 8 * matrix + (row ^ 1)\n",
           (f"{RULES}::test_matrices_of_shared_memory",)),
    Change("ldmatrix: a part of a warp", 'whole = code.named(f"icmp eq i32 {code.as_word(code.active)}, -1")',
           'whole = code.named("icmp eq i32 0, 0")', (f"{RULES}::test_a_matrix_for_a_part_of_a_warp_is_an_error",)),
    Change("ldmatrix: under a guard", "    if code.instruction.guard is not None:\n        raise",
           "    if code.instruction.guard is None and False:\n        raise", (f"{RULES}::test_a_matrix_under_a_guard_is_refused",)),
    # Asynchronous copies.
    Change("cp.async: groups that stay", "if group < groups:", "if group <= groups:",
           (f"{RULES}::test_groups_that_may_stay_under_way_stay",)),
    Change("cp.async: groups that are wanted", "words.ASYNC, 2, 0, \"%context_number\", 0, 0, 0, 0, code.index, left",
           "words.ASYNC, 2, 0, \"%context_number\", 0, 0, 0, 0, code.index, left + 1",
           (f"{KERNEL}::test_copies_are_put_off_until_their_wait",)),
    Change("cp.async: commit", "        context[_GROUP] += 1\n", "        context[_GROUP] += 0\n",
           (f"{RULES}::test_groups_that_may_stay_under_way_stay",)),
    Change("cp.async: what was not committed", 'if opcode.endswith("all"):', 'if opcode.endswith("none"):',
           (f"{RULES}::test_wait_all_takes_what_was_not_committed",)),
    Change("cp.async: zeros", "cells[byte] = 0", "cells[byte] = cells[byte]", (f"{RULES}::test_a_copy_of_less_is_filled_with_zeros",)),
    # Barriers.
    Change("barrier: threads of a warp", "barriers[2 * number] += 32", "barriers[2 * number] += 16",
           (f"{KERNEL}::test_warps_exchange_through_shared_memory",)),
    Change("barrier: complete", "if come < expected:", "if come <= expected:", (f"{KERNEL}::test_warps_exchange_through_shared_memory",)),
    Change("barrier: before it is complete", "if come < expected:", "if come < 32:", (f"{RULES}::test_a_barrier_lets_go_whom_it_holds",)),
    Change("barrier: warps that have ended", "context[_ALIVE] = 0\n", "context[_ALIVE] = context[_ALIVE]\n",
           (f"{RULES}::test_a_warp_that_has_ended_is_not_waited_for",)),
    Change("barrier: whom it lets go", "BLOCKED and context[_BARRIER] == number:", "BLOCKED and context[_BARRIER] >= number:",
           (f"{RULES}::test_a_barrier_lets_go_whom_it_holds",)),
    Change("barrier: two counts", "barriers[2 * number] > 0 and barriers[2 * number + 1] != expected",
           "barriers[2 * number] > 64 and barriers[2 * number + 1] != expected",
           (f"{RULES}::test_a_barrier_with_two_counts_is_an_error",)),
    Change("barrier: counts of whole warps", "number >= _BARRIER_COUNT or expected % 32 != 0",
           "number >= _BARRIER_COUNT or expected % 8 != 0", (f"{RULES}::test_a_barrier_for_less_than_a_warp_is_an_error",)),
    Change("barrier: lanes elsewhere", 'f"br i1 {apart}, label %misfit', 'f"br i1 false, label %misfit',
           (f"{KERNEL}::test_lanes_of_a_warp_at_different_places_of_a_barrier",)),
    # Masks, divergence, reconvergence.
    Change("mask: of a guard in a parted warp", "return guard if self.active is None else self.both(guard, self.active)", "return guard",
           (RANDOM,)),
    Change("mask: what others hold", "value = self.select(mask, value, self.get(register))", "value = self.select(mask, value, value)",
           (RANDOM,)),
    Change("divergence: which way", "targets = self.select(guard, self.constant(target, 32), self.constant(place + 1, 32))",
           "targets = self.select(guard, self.constant(place + 1, 32), self.constant(target, 32))", (f"{RULES}::test_lanes_that_run",)),
    Change("divergence: no way but one", "i32 0, label %segment{place + 1} ]\")\n        self.part(place, targets)\n\n    def part",
           "i32 1, label %segment{place + 1} ]\")\n        self.part(place, targets)\n\n    def part",
           (f"{RULES}::test_one_lane_goes_another_way",)),
    Change("divergence: lanes that end", "targets = self.select(guard, targets, self.constant(place + 1, 32))",
           "targets = self.constant(place + 1, 32)", (f"{RULES}::test_one_lane_goes_another_way",)),
    Change("divergence: lanes that a warp lacks", "pcs[lane] = 0 if lane < lanes else -1", "pcs[lane] = 0",
           (f"{RULES}::test_lanes_that_a_warp_lacks",)),
    Change("reconvergence: who is furthest behind goes on", 'f"call i32 @llvm.vector.reduce.umin.v32i32({free.typed})"',
           'f"extractelement {free.typed}, i32 31"', (RANDOM,)),
    Change("tables of targets", 'chosen = self.compare("eq", value, self.constant(number, 32))',
           'chosen = self.compare("eq", value, self.constant(number ^ 1, 32))', (RANDOM,)),
    # Guards and what lives from one segment to the next.
    Change("guard: its opposite", "return self.opposite(found) if negated else found", "return found", (RANDOM,)),
    Change("life: a carry is read", "if base_of(instruction.opcode) in _TAKES_CARRY:", "if instruction.opcode in _TAKES_CARRY:",
           (f"{RULES}::test_a_carry_lives_until_it_is_read",)),
    Change("life: across a branch", "before = uses[place] | (after - defines[place])", "before = uses[place]", (RANDOM,)),
    # Carries.
    Change("carry: of a sum", 'carry = code.compare("ult", total, a) if is_sum', 'carry = code.compare("ule", total, a) if is_sum',
           (RANDOM,)),
    Change("carry: of a sum with a carry", 'code.compare("ult", again, total) if is_sum else',
           'code.compare("ugt", again, total) if is_sum else', (RANDOM,)),
    Change("carry: borrowed twice", 'else code.compare("ult", total, more))', 'else code.compare("ugt", total, more))', (RANDOM,)),
    Change("carry: of a product", 'carry = code.compare("ult", total, term)', 'carry = code.compare("ugt", total, term)', (RANDOM,)),
    Change("carry: to its register", "targets = (target, CARRY)", "targets = (target, Sink())",
           (f"{RULES}::test_a_carry_lives_until_it_is_read",)),
    # Contraction.
    Change("fusion: a product under a guard", 'instruction.guard is not None or "sat" in row.parts', '"sat" in row.parts', (FUSION,)),
    Change("fusion: every use a sum", "if product not in [each.product for each in sums.get(use.place, ())]:", "if False:", (FUSION,)),
    Change("fusion: one use before several", "for several in (False, True):", "for several in (True,):", (FUSION,)),
    Change("fusion: a product that is an addend", "if taken is not None and taken.product != product:", "if False:", (FUSION,)),
    Change("fusion: other modifiers", "and _rest(made.opcode) == _rest(each.opcode):", ":", (FUSION,)),
    Change("fusion: the first operand first", "for operand in (1, 2):", "for operand in (2, 1):", (FUSION,)),
    Change("fusion: a product and itself", "if len(found) == 2 and _same(", "if False and _same(", (FUSION,)),
    Change("fusion: a difference's sign", "minus = taken.minus != (is_difference and taken.operand == 2)", "minus = taken.minus",
           (FUSION,)),
    Change("zeros: registers", "range(launch[_CLEARED] // 8):", "range(0):", (f"{RULES}::test_what_was_never_written_is_zero",)),
    Change("zeros: local memory", "range(4 * context[_LOCAL_SIZE]):", "range(0):", (f"{RULES}::test_what_was_never_written_is_zero",)),
    Change("zeros: registers of other lanes", 'if any(each.opcode.startswith("shfl")', "if any(False",
           (f"{RULES}::test_what_was_never_written_is_zero",)),
    Change("tables of targets: the end", 'self.compare("uge", value, self.constant(count, 32))',
           'self.compare("ugt", value, self.constant(count, 32))', (f"{RULES}::test_an_index_outside_the_table_of_a_branch",)),
    Change("fusion: factors written anew", "any(product <= place < last for place in values.writes[operand])", "False", (FUSION,)),
    Change("fusion: products that others need", "if {use.place for use in values.uses[Root(product)]} == places:", "if places:",
           (FUSION,)),
    Change("fusion: in a block", "        if place in leaders:\n", "        if False:\n", (FUSION,)),
    Change("fusion: a constant divisor that is large", "if is_full and 2.0**126 < abs(b) < math.inf:", "if False:", (FUSION,)),
    # Special registers.
    Change("special: lanes below", "below, up_to = (1 << lane) - 1, (2 << lane) - 1", "below, up_to = (1 << lane) - 1, (1 << lane) - 1",
           (RANDOM,)),
    Change("special: threads along y", 'return self.binary("urem", rest, y) if axis == "y"',
           'return self.binary("urem", rest, x) if axis == "y"', (f"{KERNEL}::test_three_dimensions",)),
    Change("special: threads of a warp", 'start = self.shift("shl", self.uniform("warp"), 5)',
           'start = self.shift("shl", self.uniform("warp"), 4)', (f"{KERNEL}::test_warps_exchange_through_shared_memory",)),
    Change("special: CTAs along y", "y = group // columns % lines * high", "y = group // columns * high",
           (f"{KERNEL}::test_three_dimensions",)),
    # Between lanes.
    Change("shfl: clamp", "bound = (lane & segment) | (clamp & 31 & ~segment)", "bound = (lane & segment) | (clamp & 31)",
           (f"{RULES}::test_every_distance_and_clamp",)),
    Change("shfl: segments", "segment = clamp >> 8 & 31", "segment = clamp >> 8 & 15", (f"{RULES}::test_every_distance_and_clamp",)),
    Change("shfl: up to the clamp", "ok = other >= bound", "ok = other > bound", (f"{RULES}::test_every_distance_and_clamp",)),
    Change("shfl: a lane of the segment", "other = least | by & ~segment & 31", "other = by & ~segment & 31",
           (f"{RULES}::test_every_distance_and_clamp",)),
    Change("shfl: distances below 32", "np.int64(wanted[lane] & 31)", "np.int64(wanted[lane] & 63)",
           (f"{RULES}::test_every_distance_and_clamp",)),
    Change("shfl: out of range", "            other = np.int64(lane)\n        results",
           "            other = np.int64(0)\n        results", (f"{RULES}::test_every_distance_and_clamp",)),
    Change("vote: members", "named if running is None else code.both(named, running)", "named",
           (f"{RULES}::test_lanes_that_have_ended_have_no_vote",)),
    Change("vote: nobody", 'found = code.named(f"or i1 {none}, {every}")', "found = every", (RULES, RANDOM)),
    Change("redux: what counts for nothing", '("min", "s"): 0x7FFF_FFFF', '("min", "s"): 0',
           (f"{RULES}::test_lanes_that_have_ended_have_no_vote",)),
    Change("activemask: guards", "running = code.running(code.guard(instruction))\n        word",
           "running = code.running(None)\n        word", (f"{RULES}::test_lanes_that_run",)),
    Change("mov: parts", 'code.shift("lshr", value, part * place), part), each.bits)',
           'code.shift("lshr", value, part * (len(target.items) - 1 - place)), part), each.bits)',
           (f"{KERNEL}::test_exchange_between_lanes",)),
    # Atomic operations.
    Change("atom: inc", "return 0 if not smaller else old + 1", "return old + 1", (f"{RULES}::test_atomic_operations",)),
    Change("atom: dec", "old == 0 or not (smaller or old == value)", "old == 0 or not smaller", (f"{RULES}::test_atomic_operations",)),
    Change("atom: cas", "return other if old == value else old", "return other", (f"{RULES}::test_atomic_operations",)),
    Change("atom: signs of 32 bits", "if bits == 32 and kind == 1:", "if bits == 32 and kind == 3:", (f"{RULES}::test_atomic_operations",)),
    Change("atom: 64 bits without sign", "if bits == 64 and kind == 0 else old < value", "if bits == 63 and kind == 0 else old < value",
           (f"{RULES}::test_atomic_operations",)),
    Change("atom: subnormal sums", "flushes = addresses[lane] >> TAG_SHIFT != SHARED_TAG",
           "flushes = addresses[lane] >> TAG_SHIFT == SHARED_TAG",
           (f"{KERNEL}::test_sums_of_f32_in_global_memory_flush_subnormal_numbers",)),
    # Addresses.
    Change("address: aligned", "if size & (size - 1) == 0 and address & (size - 1) != 0:",
           "if size & (size - 1) == 0 and address & (size // 2 - 1) != 0:", (f"{RULES}::test_a_vector_is_aligned_as_a_whole",)),
    Change("address: end of shared memory", "if place + size <= context[_SHARED_SIZE]:", "if place <= context[_SHARED_SIZE]:",
           (f"{RULES}::test_each_space_has_an_end",)),
    Change("address: end of local memory", "if low + size <= context[_LOCAL_SIZE]:", "if low <= context[_LOCAL_SIZE]:",
           (f"{RULES}::test_each_space_has_an_end",)),
    Change("address: end of constants", "if low + size <= context[_CONSTANTS_SIZE]:", "if low <= context[_CONSTANTS_SIZE]:",
           (f"{RULES}::test_each_space_has_an_end",)),
    Change("address: end of what was found last", "ranges[2 * last] <= address and address + size <= ranges[2 * last + 1]",
           "ranges[2 * last] <= address and address <= ranges[2 * last + 1]", (f"{RULES}::test_an_access_that_reaches_past_the_end",)),
    Change("address: a lane's local memory", "lane * context[_LOCAL_SIZE] + low", "(lane & 15) * context[_LOCAL_SIZE] + low",
           (f"{RULES}::test_local_memory_is_a_lanes_own",)),
    Change("address: windows", '"shared": words.SHARED_TAG', '"shared": words.LOCAL_TAG', (f"{RULES}::test_spaces_of_generic_addresses",)),
    Change("address: isspacep", 'found = code.compare("eq", top, code.constant(TAGS', 'found = code.compare("ne", top, code.constant(TAGS',
           (f"{RULES}::test_spaces_of_generic_addresses",)),
    Change("address: stride of a vector", "            at += 32 * register\n", "            at += 16 * register\n",
           (f"{KERNEL}::test_words_of_several_sizes_and_vectors",)),
    # mbarriers, turns, clusters.
    Change("mbarrier: the next phase", "phase, left = phase ^ 1, expected", "phase, left = phase ^ 1, expected + dropped",
           (f"{BARRIERS}::test_phases_are_those_of_the_manual",)),
    Change("mbarrier: bytes", "if left == 0 and bytes_left == 0:", "if left == 0:", (f"{BARRIERS}::test_phases_are_those_of_the_manual",)),
    Change("mbarrier: the state is that before", "results[lane] = word\n", "results[lane] = cell[0] ^ 1\n",
           (f"{BARRIERS}::test_phases_are_those_of_the_manual",)),
    Change("turns: held lanes let others go on", "free = self.select(self.lanes_of(held), self.constant(-1, 32), pcs)", "free = pcs",
           (f"{BARRIERS}::test_lanes_of_one_warp_wait_for_each_other",)),
    Change("turns: later programs begin",
           "if (launch[_IDLE] >= _GROW_AFTER or circles >= _GROW_AFTER_CIRCLES) and", "if launch[_IDLE] > 1 << 40 and",
           (f"{BARRIERS}::test_programs_wait_for_later_ones",)),
    Change("clusters: all have arrived", ">= live_threads_of_cluster(launch, cta[_CLUSTER])", ">= 32",
           (f"{BARRIERS}::test_the_barrier_of_a_cluster_of_one", CLUSTERS)),
    Change("clusters: windows", "first + 8 * CTA_WORDS * (window - 1), CTA_WORDS", "first, CTA_WORDS", (CLUSTERS,)),
    # Bulk copies.
    Change("TMA: rows before the tensor", "first = max(np.int64(0), -start)", "first = np.int64(0)", (BULK,)),
    Change("TMA: what lies outside", "if high - low < 16:\n                    _fill", "if high - low < 0:\n                    _fill",
           (BULK,)),
    Change("TMA: dimensions", "left //= length", "left //= length + 1", (BULK,)),
    Change("TMA: groups", "groups[lane] - words[5])", "groups[lane] - words[5] + 1)", (BULK,)),
    Change("TMA: as late as it may be", "if phase_of(word) == phase:\n                carry_out_for(launch, place)",
           "if phase_of(word) == phase:\n                carry_out_for(launch, place)\n            carry_out_for(launch, place + 8)",
           (BULK,)),
    # Products of warpgroups.
    Change("wgmma: groups that stay", "group = queue[_COMMITTED + warp] - words[4] - 1", "group = queue[_COMMITTED + warp] - words[4]",
           (WGMMA,)),
    Change("wgmma: accumulators of f16", "8 * (place & 1), 8 * (place >> 1)", "8 * (place >> 1 & 1), 8 * (place >> 2)", (WGMMA,)),
    Change("wgmma: a chain that begins anew", "or queue[entry + 3] == 0:", "or queue[entry + 3] == 9:", (WGMMA,)),
    Change("wgmma: all four warps", "if min(min(queue[0], queue[1]), min(queue[2], queue[3])) < wanted:",
           "if min(queue[0], queue[1]) < wanted:", (WGMMA,)),
    Change("wgmma: registers that are used too early", "found.add(index)\n                flight = {}", "flight = {}", (WGMMA,)),
    Change("wgmma: registers under way after a wait", "if age <= left}", "if age < left}", (WGMMA,)),
    # Swizzles and descriptors, mbarriers.
    Change("swizzle: bits of the readable form", "address ^ (address >> 7 & mask) * self.unit",
           "address ^ (address >> 8 & mask) * self.unit", (f"{DESCRIPTORS}::test_a_swizzled_tile_is_what_tma_writes",)),
    Change("swizzle: bits of the compiled form", "address ^ (address >> 7 & (span // unit - 1)) * unit",
           "address ^ (address >> 6 & (span // unit - 1)) * unit",
           (f"{DESCRIPTORS}::test_the_compiled_form_reads_what_the_readable_one_says",)),
    Change("swizzle: modes", "return 16 if mode == 0 else 256 >> mode", "return 16 << mode",
           (f"{DESCRIPTORS}::test_the_compiled_form_reads_what_the_readable_one_says",)),
    Change("descriptor: leading and stride", "offset += atom * leading + chunk * stride", "offset += atom * stride + chunk * leading",
           (f"{DESCRIPTORS}::test_the_compiled_form_reads_what_the_readable_one_says",)),
    Change("mbarrier: arrivals of the next phase", "phase, left = phase ^ 1, expected", "phase, left = phase ^ 1, left + 1",
           (f"{BARRIERS}::test_phases_are_those_of_the_manual",)),
    Change("mbarrier: bytes still to come", "if left == 0 and bytes_left == 0:", "if left == 0:",
           (f"{BARRIERS}::test_phases_are_those_of_the_manual",)),
    # Barriers with reductions, stores that mbarriers count, reductions of halves.
    Change("barrier: what its reduction counts", "+= context[_COUNTED]", "+= 1", (f"{RULES}::test_a_barrier_with_a_reduction",)),
    Change("barrier: its reduction begins anew", "barriers[2 * number], barriers[2 * _BARRIER_COUNT + number] = 0, 0",
           "barriers[2 * number] = 0", (f"{RULES}::test_a_barrier_with_a_reduction_in_a_loop",)),
    Change("barrier: and", "lanes = self.opposite(truth) if", "lanes = truth if", (f"{RULES}::test_a_barrier_with_a_reduction",)),
    Change("st.async: bytes", "carry_out_store(work)\n        error = change(work[_BARRIER], 0, -work[SIZE], 0, True)",
           "carry_out_store(work)\n        error = change(work[_BARRIER], 0, -4, 0, True)", (BULK,)),
    Change("reduction: the less of halves", "(key_new < key_old) == (operation == 2)", "(key_new < key_old) == (operation == 3)",
           (f"{BULK}::test_halves_are_reduced",)),
    # Calls.
    Change("call: it returns", 'elif number and base == "ret":', 'elif number and base == "nothing":', (INLINING,)),
    Change("call: registers of its own", "return register._replace(name=register.name + suffix)", "return register", (INLINING,)),
    Change("call: under a guard", "negated=not made.guard.negated", "negated=made.guard.negated", (INLINING,)),
    Change("call: shared memory is one", 'if number and variable.space == "shared" else suffix', 'if number and not suffix else suffix',
           (INLINING,)),
    # Directed roundings of f64.
    Change("f64: directions", '{"rz": 0, "rp": 2, "rm": 3}', '{"rz": 0, "rp": 3, "rm": 2}',
           (f"{OPCODES}::test_directed_sums_of_f64_leave_the_rounding_as_it_was",)),
    Change("f64: back to nearest", "@llvm.set.rounding(i32 1) strictfp", "@llvm.set.rounding(i32 2) strictfp",
           (f"{OPCODES}::test_directed_sums_of_f64_leave_the_rounding_as_it_was",)),
    # Products that are put off.
    Change("mma: a sum on the way", "code.program.readers[each] > 1 for each in chain.d",
           "code.program.readers[each] > 9 for each in chain.d", (f"{TENSOR}::test_a_sum_on_the_way_that_something_else_reads",)),
    Change("mma: what a read needs", "return register in self.waiting", "return False",
           (f"{TENSOR}::test_a_sum_on_the_way_that_something_else_reads",)),
)  # fmt: skip


def sources() -> list[Path]:
    """What may be changed; checks of kernels (`check*.py`) watch what the machine does, and have tests of their own."""
    machine = [path for path in sorted((ROOT / "emulator" / "machine").glob("*.py")) if not path.name.startswith("check")]
    return [*machine, ROOT / "isa" / "fragments.py"]


def place_of(change: Change) -> Path:
    """The one file with the text of a change."""
    found = [path for path in sources() for _ in range(path.read_text(encoding="utf-8").count(change.text))]
    assert len(found) == 1, f"{change.name}: {change.text!r} stands in {[path.name for path in found]}, not in one place"
    return found[0]


def outcome(change: Change, room: Path) -> tuple[int, str]:
    """Exit status of the named tests on changed sources, and the last lines that they wrote."""
    path = place_of(change)
    for folder in ROOT.iterdir():
        if folder.name in CHANGED:
            shutil.copytree(folder, room / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif folder.name in ("commands", "conformance", "kernels", "reports", "research"):
            (room / folder.name).symlink_to(folder)
    shutil.copytree(ROOT / "src", room / "src", symlinks=True)
    changed = room / path.relative_to(ROOT)
    changed.write_text(path.read_text(encoding="utf-8").replace(change.text, change.instead), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(room / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    if "engine.jit import" in path.read_text(encoding="utf-8"):  # compiled by Numba: its machine code is nobody else's
        environment["NUMBA_CACHE_DIR"] = str(room / "cache")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *change.tests],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, f"no end within {LIMIT} s"
    return done.returncode, done.stdout[-2000:] + done.stderr[-500:]


def test_every_change_has_its_place() -> None:
    names = [change.name for change in CHANGES]
    assert len(set(names)) == len(names)
    for change in CHANGES:
        place_of(change)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_a_quick_test_notices(change: Change, tmp_path: Path) -> None:
    status, said = outcome(change, tmp_path)
    assert status == 1, f"{change.name}: nothing notices, or the tests could not run ({status})\n{said}"


if __name__ == "__main__":
    for each in CHANGES:
        if not sys.argv[1:] or sys.argv[1] in each.name:
            with tempfile.TemporaryDirectory() as name:
                code, text = outcome(each, Path(name))
                noticed = re.findall(r"^FAILED (\S+)", text, re.M) or re.findall(r"^ERROR (\S+)", text, re.M)
                print(f"{'noticed' if code == 1 else f'NOT ({code})'}: {each.name}: {' '.join(noticed)}", flush=True)
