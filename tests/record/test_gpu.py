"""On a GPU, if there is one: every form passes the layout check, and a recording of it can be replayed."""

from pathlib import Path

import pytest

from mmabits.conformance.diff.counting import count
from mmabits.conformance.record.driver import CudaDevice
from mmabits.conformance.record.session import make_jobs, record, representatives
from mmabits.conformance.recorded.tiles import read_recording
from mmabits.isa.errors import DeviceUnavailable

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def device(needs_nvrtc: None) -> CudaDevice:
    try:
        return CudaDevice()
    except DeviceUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("chain", [1, 2])
def test_every_form_multiplies_matrices(device: CudaDevice, tmp_path: Path, chain: int) -> None:
    """What differs from the emulator is a finding, not a failure: the GPU is right. It is printed with `pytest -rA`."""
    arch = device.info.arch
    jobs = make_jobs(representatives(arch), arch=arch, generators=("normal",), seed=1, tiles=4, chain=chain)
    outcomes = record(device, jobs, tmp_path)
    assert [(outcome.job.instruction.ptx, outcome.error) for outcome in outcomes if outcome.state != "recorded"] == []
    for outcome in outcomes:
        report = count(read_recording(outcome.path))
        print(f"{report.instruction}: {report.differing} of {report.rows} differ from the emulator")


def test_a_run_gives_the_same_bits_again(device: CudaDevice, tmp_path: Path) -> None:
    arch = device.info.arch
    jobs = make_jobs(representatives(arch)[:4], arch=arch, generators=("random-bits",), seed=1, tiles=64)
    sums = []
    for name in ("first", "second"):
        outcomes = record(device, jobs, tmp_path / name)
        sums.append([read_recording(outcome.path).data_sha256 for outcome in outcomes])
    assert sums[0] == sums[1]
