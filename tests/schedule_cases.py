"""Plans of cuBLASLt in the words of the published cases, and where those lie."""

from pathlib import Path

from mmabits.emulator.schedules import BlockSums, Chains, LaneSums, Merge, PartSums, RangeSums, Schedule

ROOT = Path(__file__).parent.parent.resolve()
FOLDER = ROOT.parent / "shared" / "cublaslt"
FILES = sorted(FOLDER.glob("cublas_plan_*.json"))
ARCHS = {(9, 0): "sm_90a", (10, 0): "sm_100a", (10, 3): "sm_103a"}
TYPES = {"fp16": "f16", "bf16": "bf16", "fp8": "e4m3"}
_MERGES = {Merge.F32: 0, Merge.PARTS: 2, Merge.TOTAL: 3}


def fields(schedule: Schedule) -> dict:
    """A schedule as the published cases write it."""
    sums, planned = schedule.sums, schedule.planned
    algo, k = planned.config[0], planned.k
    match sums:
        case Chains(group=None, promote_every=None):
            found = {"mode": "plain"} if schedule.slice_k is None else {"mode": "split", "k_chunk": schedule.slice_k}
        case Chains(group=None):
            found = {"mode": "split_blocks", "k_chunk": schedule.slice_k or k, "block_k": sums.promote_every}
        case Chains() if schedule.slice_k is None:
            found = {"mode": "k_per_dot", "k_per_dot": sums.group, "leading_group_k": k % sums.lead_block}
        case Chains():
            found = {
                "mode": "splitk_groups", "k_chunk": schedule.slice_k, "block_k": sums.lead_block, "k_per_dot": sums.group,
                "merge_scheme": _MERGES[schedule.merge],
            }  # fmt: skip
        case PartSums():
            found = {"mode": "gemmsn", "simt": [sums.parts, sums.block]}
        case LaneSums():
            found = {"mode": "gemv13", "gemv": [[sums.vector, sums.lanes, sums.close_every, sums.halves], schedule.slices]}
        case RangeSums():
            found = {"mode": "gemv_cslice", "gemv": [sums.lanes, sums.close_every]}
        case BlockSums():
            found = {"mode": "gemv14", "gemv": [sums.blocks, sums.vector]}
    return {"algo_id": algo, **found}


def resolved(plan: dict | None, k: int) -> dict | None:
    """A published plan with the elements that a lane of gemv takes at a time; the cases write -64 for min(64, ceil(slice / lanes))."""
    if plan is None or plan["mode"] != "gemv13" or plan["gemv"][0][0] != -64:
        return plan
    (_, lanes, *rest), splits = plan["gemv"]
    slice_k = -(-k // splits)
    return {**plan, "gemv": [[min(64, -(-slice_k // lanes)), lanes, *rest], splits]}
