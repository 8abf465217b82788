"""Which way Triton's kernels go under `emulate`, which configuration an autotuner takes, and what the report says of both."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import mmabits
from mmabits.emulator.hooks.launched import NOT_ASKED
from mmabits.isa import EmulationError, Evidence, InsufficientEvidence, OperandError

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402
from triton.language.target_info import cuda_capability_geq  # noqa: E402

from mmabits.emulator.hooks.triton import compiled  # noqa: E402
from mmabits.emulator.machine import compiler, warp  # noqa: E402
from mmabits.isa.opcodes import opcode_table  # noqa: E402

N = 64


ANYWHERE = ("llvm_is_too_old", "without_a_compiler", "wrong_way")
"""In the names of tests that need nothing compiled."""


@pytest.fixture(autouse=True)
def compiles(request):
    if compiler.why_unusable() and not any(words in request.node.name for words in ANYWHERE):
        pytest.skip(compiler.why_unusable())


def emulate(arch="sm_80", **options):
    return mmabits.emulate(arch, frameworks=["triton"], **options)


@triton.jit
def plus(x, y, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y + i, tl.load(x + i) + 1)


@triton.jit
def dotted(a, b, c, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(c + i, tl.dot(tl.load(a + i), tl.load(b + i)))


@triton.jit
def grown(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, tl.exp(tl.load(x + i)))


def run_plus(kernel=plus, programs=1):
    x, y = torch.arange(float(N * programs)), torch.zeros(N * programs)
    kernel[(programs,)](x, y, N=N)
    return torch.equal(y, x + 1)


def operands():
    rng = np.random.default_rng(5)
    return [(rng.standard_normal((32, 32)) * 2.0 ** rng.integers(-6, 7, (32, 32))).astype(np.float16) for _ in range(2)]


# The way of a kernel -------------------------------------------------------------------------------------------------------


def test_compiled_is_the_default():
    with emulate() as session:
        assert run_plus()
    assert session.triton == "compiled" and [each.name for each in session.report().kernels] == ["plus"]
    with emulate(triton="interpreted") as session:
        assert run_plus()
    assert session.triton == "interpreted" and session.report().kernels == ()


def test_where_llvm_is_too_old_kernels_are_interpreted_and_the_report_says_so(monkeypatch):
    monkeypatch.setattr(compiler.llvmlite, "opaque_pointers_enabled", False, raising=False)
    for options in ({}, {"triton": "fallback"}):
        with emulate(**options) as session:
            assert run_plus() and run_plus()
        (line,) = session.report().skipped
        assert (line.site, line.operation, line.count) == ("plus", "the compiled way", 2)
        assert "interpreted instead: compiled kernels need llvmlite 0.45" in line.reason
    with pytest.raises(EmulationError, match=r"kernels cannot be compiled here: .*llvmlite 0\.45"), emulate(triton="compiled"):
        pass
    with emulate(triton="interpreted") as session:
        assert run_plus()
    assert session.report().skipped == ()


def test_without_a_compiler_for_nvidia_kernels_are_interpreted(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton.backends.nvidia.compiler", None)
    with emulate() as session:
        assert run_plus()
    (line,) = session.report().skipped
    assert "has no compiler for NVIDIA's GPUs" in line.reason


def test_kernels_that_were_decorated_for_the_interpreter():
    program = textwrap.dedent("""\
        import mmabits, torch, triton, triton.language as tl
        @triton.jit
        def plus(x, N: tl.constexpr):
            tl.store(x + tl.arange(0, N), tl.load(x + tl.arange(0, N)) + 1)
        for knob in (True, False):
            triton.knobs.runtime.interpret = knob
            for way in (None, "fallback", "compiled"):
                x = torch.zeros(16)
                try:
                    with mmabits.emulate("sm_80", triton=way) as session:
                        plus[(1,)](x, N=16)
                    print(x[0].item(), session.report().skipped[0].reason)
                except mmabits.MmabitsError as error:
                    print(error)
        """)
    path = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"mmabits-decorated-{os.getpid()}.py")
    with open(path, "w") as file:
        file.write(program)
    try:
        done = subprocess.run(
            [sys.executable, path], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
        )
    finally:
        os.unlink(path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *["1.0 interpreted instead: TRITON_INTERPRET is set, and kernels are decorated for the interpreter"] * 2,
        "kernels cannot be compiled here: TRITON_INTERPRET is set, and kernels are decorated for the interpreter",
        "plus cannot be compiled: it was decorated while TRITON_INTERPRET was set; triton='interpreted' runs it",
        "1.0 interpreted instead: it was decorated while TRITON_INTERPRET was set",
        "plus cannot be compiled: it was decorated while TRITON_INTERPRET was set; triton='interpreted' runs it",
    ]


@pytest.fixture
def no_sum(monkeypatch):
    """The machine lacks a row; nothing that was compiled with it is left."""
    table = {name: row for name, row in opcode_table().items() if name != "add.f32"}
    monkeypatch.setattr(warp, "opcode_table", lambda: table)
    monkeypatch.setattr(compiled, "_KERNELS", {})
    monkeypatch.setattr(compiled, "_REFUSALS", {})
    monkeypatch.setattr(compiled, "_LAUNCHERS", {})


def test_an_opcode_without_a_row_is_an_error_before_the_launch(no_sum):
    @triton.jit
    def kernel(x, y, N: tl.constexpr):
        value = tl.load(x + tl.arange(0, N))
        tl.store(y + tl.arange(0, N), value + value)

    x, y = torch.zeros(N), torch.zeros(N)
    line = kernel.starting_line_number + 3
    place = rf"add\.f32 .*\(line \d+ of the PTX, .*test_triton_ways\.py:{line}\)"
    with emulate() as session:
        for _ in range(2):  # the second time from memory
            with pytest.raises(mmabits.MmabitsError, match=place) as error:
                kernel[(1,)](x, y, N=N)
            assert "kernel" in str(error.value)
    assert not y.any() and session.report().kernels == ()


def test_a_kernel_falls_back_where_that_was_asked_for(no_sum):
    hooked = []

    @triton.jit
    def kernel(x, y, N: tl.constexpr):
        i = tl.arange(0, N)
        tl.store(y + i, tl.load(x + i) + 1)

    @triton.jit
    def moved(x, y, N: tl.constexpr):
        i = tl.arange(0, N)
        tl.store(y + i, tl.load(x + i))

    kernel.add_pre_run_hook(lambda *_, **__: hooked.append("hook"))
    x, y = torch.zeros(N), torch.zeros(N)
    with emulate(triton="fallback") as session:
        assert run_plus(kernel) and run_plus(kernel)
        moved[(1,)](x + 3, y, N=N)
    report = session.report()
    assert (y == 3).all() and hooked == ["hook"] * 2
    (line,) = report.skipped
    assert (line.site, line.operation, line.count) == ("kernel", "the compiled way", 2)
    assert "interpreted instead" in line.reason and "add.f32" in line.reason and "line" in line.reason
    assert [each.name for each in report.kernels] == ["moved"]


def test_a_gluon_kernel_does_not_fall_back(no_sum):
    gluon, gl = pytest.importorskip("triton.experimental.gluon"), pytest.importorskip("triton.experimental.gluon.language")

    @gluon.jit
    def plain(x, y, N: gl.constexpr):
        i = gl.arange(0, N, gl.BlockedLayout([1], [32], [4], [0]))
        gl.store(y + i, gl.load(x + i) + 1)

    plain.fn.__globals__["gl"] = gl
    with emulate(triton="fallback"), pytest.raises(mmabits.MmabitsError, match=r"add\.f32") as error:
        run_plus(plain)
    assert error.value.__notes__ == ["plain cannot be interpreted instead: it is a Gluon kernel"]


def test_gluon_kernels_run_by_default():
    gluon, gl = pytest.importorskip("triton.experimental.gluon"), pytest.importorskip("triton.experimental.gluon.language")

    @gluon.jit
    def plain(x, y, N: gl.constexpr):
        i = gl.arange(0, N, gl.BlockedLayout([1], [32], [4], [0]))
        gl.store(y + i, gl.load(x + i) + 1)

    plain.fn.__globals__["gl"] = gl
    with emulate():
        assert run_plus(plain)


@triton.jit
def asking(y):
    tl.store(y, 100 if cuda_capability_geq(10, 0) else 90 if cuda_capability_geq(9, 0) else 80)


@pytest.mark.parametrize("way", ["compiled", "interpreted", "fallback"])
def test_questions_for_the_target_are_answered_for_the_named_gpu(way):
    for arch, capability in (("sm_80", 80), ("sm_90a", 90), ("sm_100a", 100)):
        y = torch.zeros(1, dtype=torch.int32)
        with emulate(arch, triton=way):
            target = triton.runtime.driver.active.get_current_target()
            assert (target.backend, target.arch, target.warp_size) == ("cuda", capability, 32)
            device = triton.runtime.driver.active.get_current_device()
            told = triton.runtime.driver.active.utils.get_device_properties(device)
            assert told["multiprocessor_count"] == {80: 108, 90: 132, 100: 148}[capability]
            assert str(triton.runtime.driver.active.get_active_torch_device()) == "cpu"
            asking[(1,)](y)
        assert y.item() == capability


# Evidence ------------------------------------------------------------------------------------------------------------------


def test_evidence_is_asked_of_what_the_manual_leaves_open():
    a, b = operands()
    c, x, y = torch.zeros(32, 32), torch.zeros(N), torch.zeros(N)
    with emulate(require="recorded") as session:
        dotted[(1,)](torch.from_numpy(a), torch.from_numpy(b), c, N=32)
        assert run_plus()
        line = grown.starting_line_number + 3
        message = rf"grown: ex2\.approx\S* in `ex2\..*` \(line \d+ of the PTX, .*test_triton_ways\.py:{line}\) rests on inferred"
        with pytest.raises(InsufficientEvidence, match=message):
            grown[(1,)](x, y, N=N)
    assert np.array_equal(c.numpy(), mmabits.gemm(a, b, instruction="mma.sync", arch="sm_80"))
    assert not y.any()
    products, sums = session.report().kernels
    assert (products.evidence, sums.evidence) == (Evidence.RECORDED, None)
    assert products.weakest == ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",)


# The report ----------------------------------------------------------------------------------------------------------------


def test_the_report_says_what_a_kernel_is_made_of():
    a, b = map(torch.from_numpy, operands())
    x, y = torch.zeros(N), torch.zeros(N)
    with emulate() as session:
        for _ in range(2):
            dotted[(1,)](a, b, torch.zeros(32, 32), N=32, num_warps=2)
        grown[(1,)](x, y, N=N, enable_fp_fusion=False)
        assert run_plus(programs=5)
    products, powers, sums = session.report().kernels
    assert (products.launches, products.programs, products.warps, products.contracts) == (2, 2, 2, True)
    assert (sums.launches, sums.programs, powers.contracts) == (1, 5, False)
    assert products.families["tensor cores"] == sum(n for name, n in products.opcodes.items() if name.startswith("mma.sync")) > 0
    assert sums.opcodes["add.f32"] == 1 and sum(sums.families.values()) == sum(sums.opcodes.values())
    assert powers.evidence is Evidence.INFERRED and powers.weakest[0].startswith("ex2.approx")
    assert products.compiler == f"Triton {triton.__version__}" and products.translation is not None
    assert products.compilation.seconds > 0 and products.seconds > 0 and products.spills == NOT_ASKED
    text = str(session.report())
    for words in ("fusing is off", "fusing is on", "not asked", "programs on threads", "inferred: ex2.approx", "defines every bit"):
        assert words in text


def test_launches_of_one_kernel_are_one_entry_however_triton_launches(monkeypatch):
    """Triton asks for a launcher at each, in some versions only with a hook."""
    heard = []
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", lambda told: heard.append(told.get()["name"]))
    with emulate() as session:
        assert run_plus() and run_plus()
    assert [(each.name, each.launches) for each in session.report().kernels] == [("plus", 2)] and heard == ["plus"] * 2


def test_ptxas_is_asked_for_spills_on_demand():
    with emulate() as session:
        run_plus()
    (kernel,) = session.report(spills=True).kernels
    assert kernel.spills.startswith("none; ") and kernel.spills.endswith(" registers")


def test_the_programs_listener_hears_what_was_compiled(monkeypatch):
    @triton.jit
    def kernel(x, y, N: tl.constexpr):
        i = tl.arange(0, N)
        tl.store(y + i, tl.load(x + i) + 1)

    heard = []
    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda **told: heard.append(told["src"].name))
    with emulate():
        assert run_plus(kernel) and run_plus(kernel)
    assert heard == ["kernel"] and triton.knobs.compilation.listener is not None


def test_atomic_sums_are_in_the_order_of_the_report():
    @triton.jit
    def summed(x, y, N: tl.constexpr):
        tl.atomic_add(y, tl.sum(tl.load(x + tl.program_id(0) * N + tl.arange(0, N)), 0))

    y = torch.zeros(1)
    with emulate() as session:
        summed[(4,)](torch.ones(4 * N), y, N=N)
    report = session.report()
    assert y.item() == 4 * N and report.kernels[0].schedule == ("programs in ascending order",)
    assert "floating-point atomics" in {line.operation for line in report.skipped}


def test_poison_that_compiled_kernels_do_not_get_is_in_the_report():
    with emulate(undefined="poison") as session:
        run_plus()
    (line,) = session.report().skipped
    assert (line.site, line.operation) == ("plus", "poison")


def test_measuring_in_a_block_is_told():
    with emulate() as session:
        assert triton.testing.do_bench(run_plus, warmup=1, rep=1) > 0
    assert {(line.site, line.operation) for line in session.report().skipped} == {("triton.testing", "time")}


# Autotuning ----------------------------------------------------------------------------------------------------------------


@triton.jit
def numbered(y, count, NUMBER: tl.constexpr):
    tl.atomic_add(y, NUMBER)


def tuned(**options):
    """A kernel that adds the number of its configuration, counted from 1."""
    configs = options.pop("configs", [triton.Config({"NUMBER": number}) for number in (1, 2, 3)])
    return triton.autotune(configs, key=["count"], **options)(numbered)


def number(kernel, count=7, **options):
    y = torch.zeros(1, dtype=torch.int32)
    with emulate(**options) as session:
        kernel[(1,)](y, count)
    return y.item(), [line.why for line in session.report().chosen]


@pytest.mark.parametrize("way", ["compiled", "interpreted"])
def test_how_a_configuration_is_chosen(way):
    kernel = tuned()
    assert number(kernel, triton=way) == (1, ["the first of 3"])
    assert number(kernel, triton=way, autotune=2) == (3, ["number 2 of 3, as asked"])
    assert kernel.cache == {} and not hasattr(kernel, "best_config")
    with emulate(triton=way, autotune=1):
        assert not hasattr(kernel, "best_config")
        kernel[(1,)](torch.zeros(1, dtype=torch.int32), 7)
        assert kernel.best_config is kernel.configs[1]
    assert not hasattr(kernel, "best_config") and number(kernel, triton=way) == (1, ["the first of 3"])

    def largest(one, configs, arguments):
        assert one is kernel and arguments["count"] == 7
        return max(configs, key=lambda each: each.kwargs["NUMBER"])

    assert number(kernel, triton=way, autotune=largest) == (3, ["chosen by largest"])
    kernel.best_config = kernel.configs[1]
    assert number(kernel, triton=way) == (2, ["tuned on a GPU"])
    assert number(kernel, triton=way, autotune="first") == (1, ["the first of 3"])
    assert kernel.best_config is kernel.configs[1]


def test_pruning_and_heuristics_keep_working():
    pruned = tuned(prune_configs_by={"early_config_prune": lambda configs, named, **_: configs[1 : named["count"]]})
    assert number(pruned) == (2, ["the first of 2"])
    modelled = tuned(prune_configs_by={"perf_model": lambda NUMBER, **_: -NUMBER, "top_k": 2})
    assert number(modelled) == (3, ["the first of 2"])
    offered = []
    number(pruned, autotune=lambda kernel, configs, arguments: offered.extend(configs) or configs[-1])
    assert [each.kwargs["NUMBER"] for each in offered] == [2, 3]

    @triton.autotune([triton.Config({"FACTOR": 2}), triton.Config({"FACTOR": 3})], key=[])
    @triton.heuristics({"MORE": lambda given: given["FACTOR"] * 10})
    @triton.jit
    def both(y, FACTOR: tl.constexpr, MORE: tl.constexpr):
        tl.store(y, FACTOR + MORE)

    y = torch.zeros(1, dtype=torch.int32)
    with emulate(autotune=1):
        both[(1,)](y)
    assert y.item() == 33


def test_a_configuration_that_the_gpu_has_no_room_for_is_passed_over():
    """As the autotuner does, for the reasons of Triton's own launch path."""

    @triton.autotune([triton.Config({"N": 64}, num_stages=5), triton.Config({"N": 32}, num_stages=2)], key=[])
    @triton.jit
    def product(a, b, c, K, N: tl.constexpr):
        i, j, k = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :], tl.arange(0, 2 * N)
        total = tl.zeros((N, N), tl.float32)
        for start in range(0, K, 2 * N):
            left = tl.load(a + i * K + start + k[None, :], mask=i < 32, other=0.0)
            total = tl.dot(left, tl.load(b + (start + k)[:, None] * 32 + j, mask=j < 32, other=0.0), total)
        tl.store(c + i * 32 + j, total, mask=(i < 32) & (j < 32))

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-4, 5, shape, generator=generator).to(torch.float16) for shape in ((32, 512), (512, 32)))
    c = torch.zeros(32, 32)
    with emulate("sm_89") as session:
        for _ in range(2):
            product[(1,)](a, b, c, 512)
    assert torch.equal(c, a.float() @ b.float())
    (line,) = session.report().chosen
    assert line.configuration.startswith("N: 32") and line.count == 2
    assert line.why.startswith("the first of 2 that can be; not N: 64") and "OutOfResources" in line.why


def test_arguments_are_reset_as_after_tuning():
    """At the first launch of each tuning key, and not again."""
    kernel, y = tuned(reset_to_zero=["y"]), torch.full((1,), 100, dtype=torch.int32)
    with emulate():
        for count, want in ((7, 1), (7, 2), (7, 3), (8, 1)):
            kernel[(1,)](y, count)
            assert y.item() == want


@pytest.mark.parametrize("wrong", ["fastest", -1, True, 1.5, None])
def test_a_wrong_way_to_choose(wrong):
    with pytest.raises(OperandError, match="autotune must be 'best', 'first', the number of a configuration from 0, or a function, got"):
        emulate(autotune=wrong)


def test_what_does_not_fit_the_kernel():
    kernel = tuned()
    with pytest.raises(OperandError, match="autotune=3: numbered has 3 configurations, counted from 0"):
        number(kernel, autotune=3)
    with pytest.raises(OperandError, match="autotune: <lambda> must return a configuration of numbered, got 5"):
        number(kernel, autotune=lambda kernel, configs, arguments: 5)
    with emulate(), pytest.raises(OperandError, match="NUMBER is chosen by its autotuner and cannot be given"):
        kernel[(1,)](torch.zeros(1, dtype=torch.int32), 7, NUMBER=4)
