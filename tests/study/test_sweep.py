"""Sweeps: the same table at once, interrupted and resumed, and on a cluster."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

import mmabits
from mmabits.isa import OperandError
from mmabits.research.study import JournalMismatch, Table, points, sweep


def one_point(k: int, arch: str, scale: float = 1.0):
    """A product and a figure of it: importable, so that a cluster's workers find it."""
    rng = np.random.default_rng(k)
    a, b = ((rng.standard_normal(shape) * scale).astype(np.float16) for shape in ((4, k), (k, 4)))
    d = mmabits.gemm(a, b, instruction="mma.sync", arch=arch)
    return [{"k": k, "arch": arch, "sum": float(d.sum()), "bits": int(d.view(np.uint32).sum())}]


_AT = points(k=[16, 48, 100], arch=["sm_80", "sm_90a"])


def test_points_are_every_combination_in_order():
    assert points(k=[1, 2], f=["x", "y"]) == [{"k": 1, "f": "x"}, {"k": 1, "f": "y"}, {"k": 2, "f": "x"}, {"k": 2, "f": "y"}]
    with pytest.raises(OperandError, match="axis 'k' needs a sequence of values"):
        points(k=[])


def test_a_table_has_the_rows_of_every_point_in_order_and_is_written(tmp_path):
    table = sweep(one_point, _AT)
    assert [(row["k"], row["arch"]) for row in table.rows] == [(point["k"], point["arch"]) for point in _AT]
    with table.csv(tmp_path / "deep" / "table.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [int(row["bits"]) for row in read] == [row["bits"] for row in table.rows]
    pyarrow = pytest.importorskip("pyarrow.parquet")
    assert tuple(pyarrow.read_table(table.parquet(tmp_path / "table.parquet")).to_pylist()) == table.rows


_PROGRAM = """
import sys, time
sys.path.insert(0, {here!r})
import test_sweep
from mmabits.research.study import sweep
def slow(**point):
    time.sleep(0.4)
    return test_sweep.one_point(**point)
slow.__module__, slow.__qualname__ = "tests", "slow"
sweep(slow, test_sweep._AT, out={out!r})
"""


def test_a_sweep_killed_halfway_resumes_and_gives_the_same_table(tmp_path):
    """The process is killed as soon as two points are in the journal, and half a line is left behind."""
    journal = tmp_path / "points.jsonl"
    program = textwrap.dedent(_PROGRAM.format(here=str(Path(__file__).parent), out=str(tmp_path)))
    path = os.pathsep.join([str(Path(mmabits.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline, "the sweep ended before it was killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = [json.loads(line)["point"] for line in journal.read_text().splitlines(keepends=True)[1:] if line.endswith("\n")]
    assert 2 <= len(done) < len(_AT)
    with journal.open("a") as file:
        file.write('{"point": "{\\"k\\": 100')
    seen = []

    def slow(**point):
        seen.append(json.dumps(point, sort_keys=True))
        return one_point(**point)

    slow.__module__, slow.__qualname__ = "tests", "slow"
    resumed = sweep(slow, _AT, out=tmp_path)
    assert not set(seen) & set(done), "a finished point was computed again"
    assert len(seen) == len(_AT) - len(done)
    assert resumed == sweep(one_point, _AT)
    assert sweep(slow, _AT, out=tmp_path) == resumed and len(seen) == len(_AT) - len(done)


def test_a_folder_of_another_sweep_is_not_touched(tmp_path):
    sweep(one_point, _AT, out=tmp_path)
    before = (tmp_path / "points.jsonl").read_bytes()
    with pytest.raises(JournalMismatch, match="choose another folder"):
        sweep(one_point, points(k=[16], arch=["sm_80"]), out=tmp_path)
    assert (tmp_path / "points.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_gives_the_same_bits():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert sweep(one_point, _AT, client=client) == sweep(one_point, _AT)


def test_numpy_values_become_plain_ones():
    table = sweep(lambda **point: [{"x": np.float32(0.5), "n": np.int64(point["n"])}], points(n=[3]))
    assert table == Table(rows=({"x": 0.5, "n": 3},))


def counted(k: int):
    """A point that leaves a mark for each time it is computed."""
    _COUNTED.append(k)
    return [{"k": k, "value": np.float32(k) / 2}]


_COUNTED: list[int] = []


@pytest.mark.parametrize("damage", [b'{"point": 3\n', b"[1]\n", b"\xff\xfe\n", b"{}\n"], ids=["cut off", "a list", "no text", "no result"])
def test_a_damaged_line_costs_its_point_alone(tmp_path, damage):
    table = sweep(counted, points(k=[1, 2, 3]), out=tmp_path)
    journal = tmp_path / "points.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:2], damage, lines[3]]))
    _COUNTED.clear()
    assert sweep(counted, points(k=[1, 2, 3]), out=tmp_path) == table
    assert _COUNTED == [2]
    _COUNTED.clear()
    assert sweep(counted, points(k=[1, 2, 3]), out=tmp_path) == table
    assert _COUNTED == []


def test_a_journal_without_a_readable_heading_is_not_taken_for_this_sweeps(tmp_path):
    (tmp_path / "points.jsonl").write_text('{"sweep": "tes')
    with pytest.raises(JournalMismatch, match="choose another folder"):
        sweep(counted, points(k=[1]), out=tmp_path)


def test_axes_and_rows_may_hold_numpys_numbers_and_nothing_that_is_not_plain(tmp_path):
    at = points(k=np.arange(1, 3), j=(j for j in [5]))
    assert at == [{"k": 1, "j": 5}, {"k": 2, "j": 5}]
    assert sweep(counted, points(k=np.array([4]))).rows == ({"k": 4, "value": 2.0},)
    with pytest.raises(OperandError, match="a point holds plain values"):
        sweep(counted, [{"k": object()}])
    with pytest.raises(OperandError, match="a row holds plain values"):
        sweep(lambda k: [{"k": np.ones(3)}], points(k=[1]))


def _square(x):
    return [{"x": x, "square": x * x}]


def _sweeps_again(folder, x):
    return sweep(_sweeps_again, points(folder=[folder], x=[1]), out=folder, progress=False).rows


def test_two_sweeps_do_not_write_into_one_folder(tmp_path):
    pytest.importorskip("fcntl")
    with pytest.raises(JournalMismatch, match="another sweep writes into"):
        sweep(_sweeps_again, points(folder=[str(tmp_path)], x=[1]), out=tmp_path, progress=False)
    with pytest.raises(JournalMismatch, match="holds results of"):
        sweep(_square, points(x=[1]), out=tmp_path, progress=False)
    found = sweep(_square, points(x=[3]), out=tmp_path / "other", progress=False)
    assert sweep(_square, points(x=[3]), out=tmp_path / "other", progress=False) == found
