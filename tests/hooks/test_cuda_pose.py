"""`emulate(..., cuda=True)`: host code for CUDA finds the named GPU on a machine without one."""

import shutil
import subprocess
import sys

import llvmlite
import numpy as np
import pytest

import mmabits
from mmabits.isa import ARCHITECTURES, OperandError
from mmabits.isa.devices import DEVICES, device_of

torch = pytest.importorskip("torch")


@pytest.fixture
def hopper():
    with mmabits.emulate("sm_90a", frameworks=["torch"], cuda=True) as session:
        yield session


def stock():
    names = ("is_available", "device_count", "get_device_name", "synchronize", "Event", "Stream", "current_stream", "_lazy_init")
    found = {name: getattr(torch.cuda, name) for name in names}
    found["version"], found["autocast"] = torch.version.cuda, torch.amp.autocast_mode.autocast.__init__
    found["modes"] = torch._C._len_torch_function_stack()
    return found


def test_every_architecture_has_a_gpu():
    assert set(DEVICES) == set(ARCHITECTURES)
    assert device_of("sm_120a").capability == (12, 0) and device_of("sm_90a").capability == (9, 0)
    for device in DEVICES.values():
        assert device.shared_memory > ARCHITECTURES[device.arch].shared_memory or device.arch in ("sm_70", "sm_75")


@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if int(name.strip("sm_a")) >= 80])
def test_queries_answer_for_the_named_gpu(arch):
    device = DEVICES[arch]
    with mmabits.emulate(arch, frameworks=["torch"], cuda=True):
        assert torch.cuda.is_available() and torch.cuda.device_count() == 1 and torch.cuda.current_device() == 0
        assert torch.cuda.get_device_capability() == torch.cuda.get_device_capability("cuda:0") == device.capability
        assert torch.cuda.get_device_name(0) == device.name
        told = torch.cuda.get_device_properties(torch.device("cuda"))
        assert (told.multi_processor_count, told.major) == (device.processors, device.capability[0])
        assert told.shared_memory_per_block_optin == ARCHITECTURES[arch].shared_memory << 10
        assert torch.cuda.is_bf16_supported() and torch.cuda.mem_get_info()[1] == told.total_memory
        assert torch.version.cuda


def test_tensors_are_made_moved_and_asked(hopper):
    x = torch.randn(4, 4, device="cuda")
    assert x.is_cuda and not x.is_cpu and x.device == torch.device("cuda:0") and x.get_device() == 0
    y = torch.ones(4, 4).cuda().to("cuda:0").to(torch.device("cuda"), torch.float16)
    assert y.dtype == torch.float16 and y.device.type == "cuda"
    assert torch.empty_like(x, device="cuda").is_cuda and torch.zeros(3, device=x.device).is_cuda
    assert x.new_zeros(2, device=x.device).sum().item() == 0
    assert torch.tensor([1.0], device="cuda", pin_memory=False).pin_memory().is_cuda
    assert np.array_equal(torch.arange(3, device="cuda").cpu().numpy(), [0, 1, 2])
    layer = torch.nn.Linear(4, 4).cuda().to("cuda")
    assert layer.weight.is_cuda and layer(x).is_cuda


def test_streams_events_and_contexts(hopper):
    stream = torch.cuda.Stream()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(0), torch.cuda.stream(stream), torch.cuda.device("cuda:0"):
        begin.record()
        stream.wait_stream(torch.cuda.current_stream())
        torch.ones(2, device="cuda").record_stream(stream)
        end.record(stream)
    torch.cuda.synchronize()
    assert isinstance(stream, torch.cuda.Stream) and isinstance(end, torch.cuda.Event)
    assert end.query() and begin.elapsed_time(end) >= 0 and torch.cuda.current_stream().cuda_stream == 0
    with pytest.raises(mmabits.MmabitsError, match="enable_timing"):
        begin.elapsed_time(torch.cuda.Event())


def test_products_are_emulated_and_reported_on_posed_tensors(hopper):
    a, b = (torch.randn(32, 64, device="cuda", dtype=torch.float16) for _ in range(2))
    d = a @ b.T
    want = mmabits.gemm(a, b.T, instruction="wgmma", arch="sm_90a")
    assert d.is_cuda and np.array_equal(d.cpu().numpy(), want.numpy().astype(np.float16) if hasattr(want, "numpy") else want)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert (a.float() @ b.float().T).dtype == torch.bfloat16
    report = hopper.report()
    assert len(report.emulated) == 2
    assert [(line.operation, line.count) for line in report.skipped if line.operation == "autocast"] == [("autocast", 1)]


def test_accelerator(hopper):
    if not hasattr(torch, "accelerator"):
        pytest.skip("PyTorch has no torch.accelerator")
    assert torch.accelerator.is_available() and torch.accelerator.current_accelerator().type == "cuda"
    torch.accelerator.synchronize()


def test_inside_of_operators_written_in_python(hopper):
    """PyTorch runs those of torch.library.custom_op without the mode."""

    @torch.library.custom_op("mmabits_tests::posed", mutates_args=())
    def posed(x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(1, device="cuda") * (x.device.index + 1) * x.is_cuda

    for call in (posed, torch.ops.mmabits_tests.posed, torch.ops.mmabits_tests.posed.default):
        found = call(torch.ones(2, device="cuda"))
        assert found.is_cuda and found.tolist() == [2, 2]
    assert torch.ones(1).is_cuda


def test_triton_that_is_imported_inside():
    """By a package of kernels, say: it is among the frameworks before it is there."""
    pytest.importorskip("triton")
    code = """
import sys, torch, mmabits
assert "triton" not in sys.modules
with mmabits.emulate("sm_90a", cuda=True) as session:
    import triton
    assert triton.runtime.driver.active.get_current_target().arch == 90
with mmabits.emulate("sm_90a", frameworks=["torch"], cuda=True) as session:
    assert "triton" not in session.frameworks
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_all_is_undone_and_code_outside_sees_the_truth():
    before = stock()
    outer, inner = mmabits.emulate("sm_90a", frameworks=["torch"], cuda=True), mmabits.emulate("sm_100a", frameworks=["torch"], cuda=True)
    outer.__enter__()
    inner.__enter__()
    assert torch.cuda.get_device_capability() == (10, 0)
    outer.__exit__(None, None, None)  # in another order than they were entered
    assert torch.cuda.get_device_capability() == (10, 0) and torch.ones(1, device="cuda").is_cuda
    inner.__exit__(None, None, None)
    assert stock() == before
    assert not torch.ones(1).is_cuda and not torch.cuda.is_available()
    with mmabits.emulate("sm_90a", frameworks=["torch"]):
        assert not torch.cuda.is_available()


def test_a_block_without_it_inside_one_with_it_tells_the_truth(hopper):
    with mmabits.emulate("sm_90a", frameworks=["torch"]):
        assert not torch.cuda.is_available() and not torch.ones(1).is_cuda
    assert torch.cuda.is_available() and torch.ones(1).is_cuda


def test_a_generator_poses_only_while_it_runs():
    def generator():
        with mmabits.emulate("sm_90a", frameworks=["torch"], cuda=True):
            yield torch.cuda.is_available()
            yield torch.ones(1).is_cuda

    running = generator()
    assert next(running) and not torch.cuda.is_available() and not torch.ones(1).is_cuda
    assert next(running)
    running.close()


def test_refusals(monkeypatch):
    with pytest.raises(OperandError, match="cuda must be True or False"):
        mmabits.emulate("sm_90a", cuda="yes")
    with pytest.raises(OperandError, match="PyTorch is not among the frameworks"), mmabits.emulate("sm_90a", frameworks=[], cuda=True):
        pass


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
def test_a_host_wrapper_for_cuda_launches_a_compiled_kernel():
    pytest.importorskip("triton")
    if not getattr(llvmlite, "opaque_pointers_enabled", True):
        pytest.skip("compiled kernels need llvmlite 0.45")
    with mmabits.emulate("sm_80", frameworks=["triton", "torch"], triton="compiled", cuda=True):
        from mmabits.kernels.triton.matmul import matmul

        a, b = (torch.randn(64, 64, device="cuda", dtype=torch.float16) for _ in range(2))
        assert a.is_cuda
        found = matmul(a, b)
        assert found.is_cuda
    want = mmabits.gemm(a, b, instruction="mma.sync", arch="sm_80")
    assert np.array_equal(found.float().numpy(), np.asarray(want, np.float32).astype(found.numpy().dtype).astype(np.float32))


class Doubled(torch.Tensor):
    """A tensor made of another, as quantized ones are: its device is what its part says."""

    @staticmethod
    def __new__(cls, part):
        return torch.Tensor._make_wrapper_subclass(cls, part.shape, dtype=part.dtype, device=part.device)

    def __init__(self, part):
        self.part = part

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        plain = [each.part if isinstance(each, cls) else each for each in args]
        found = func(*plain, **(kwargs or {}))
        return cls(found) if func in (torch.ops.aten.detach.default, torch.ops.aten.t.default) else found


def test_tensors_of_tensors_lie_where_their_parts_do() -> None:
    weight, x = torch.randn(32, 16).to(torch.bfloat16), torch.randn(8, 16).to(torch.bfloat16)
    with mmabits.emulate("sm_90a", frameworks=["torch"], cuda=True) as session:
        held = torch.nn.Parameter(Doubled(weight.cuda()), requires_grad=False)
        assert held.is_cuda and held.device == torch.device("cuda", 0)
        assert torch.equal(torch.nn.functional.linear(x.cuda(), held), torch.nn.functional.linear(x, weight))
    assert sum(line.count for line in session.report().emulated) == 2
    with pytest.raises((AssertionError, RuntimeError)):
        Doubled(weight.cuda())


def test_random_numbers_are_seeded_and_put_back() -> None:
    with mmabits.emulate("sm_90a", frameworks=["torch"], cuda=True):
        state = torch.cuda.get_rng_state()
        first = torch.randn(4, device="cuda")
        torch.cuda.set_rng_state(state)
        assert torch.equal(torch.randn(4, device="cuda"), first)
        torch.cuda.manual_seed_all(5)
        seeded = torch.randn(4, device="cuda")
        torch.manual_seed(5)
        assert torch.equal(torch.randn(4, device="cuda"), seeded) and torch.cuda.initial_seed() == 5


@pytest.mark.parametrize(("bins", "least", "most"), [(4, 0, 3), (8, 0, 7), (3, -5, 9), (5, 0, 0)])
def test_histograms_of_integers_which_the_cpu_lacks(bins: int, least: int, most: int) -> None:
    values = torch.randint(-8, 12, (200,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    with mmabits.emulate("sm_90a", frameworks=["torch"], cuda=True):
        found = torch.histc(values.cuda(), bins=bins, min=least, max=most)
        with pytest.raises((RuntimeError, TypeError)):  # PyTorch's own error
            torch.histc(input=values.cuda(), bins=bins)
    low, high = (least, most) if least != most else (int(values.min()), int(values.max()))
    counts = [0] * bins
    for value in values.tolist():
        if low <= value <= high:
            counts[min((value - low) * bins // (high - low), bins - 1)] += 1
    assert found.tolist() == counts and found.dtype == torch.int32


def test_compiled_functions_take_no_notice_of_the_mode() -> None:
    """torch.compile looks into modes, and has made wrong code of what it cannot follow there."""

    def rotated(x, angles):
        angles = angles.unsqueeze(1)
        return x.cuda() * angles + torch.zeros(16, device="cuda")

    with mmabits.emulate("sm_90a", cuda=True):
        x, angles = torch.randn(2, 4, 12, 16, device="cuda"), torch.randn(2, 12, 16, device="cuda")
        assert torch.equal(torch.compile(rotated, backend="eager")(x, angles), rotated(x, angles))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_the_default_backend_of_compile() -> None:
    """inductor asks Triton for its driver where there is CUDA, and knows one error alone for that there is none."""
    values = torch.randn(16, 32).bfloat16()
    with mmabits.emulate("sm_90a", frameworks=["torch"], cuda=True) as session:
        want = torch.relu(values @ values.T)
        assert torch.equal(torch.compile(lambda values: torch.relu(values @ values.T))(values), want)
    assert sum(line.count for line in session.report().emulated) == 2
