"""NVRTC and CUDA's headers, where they are installed."""

import pytest

from mmabits.emulator.cuda.nvrtc import compiler_version, header_folders, standard_headers
from mmabits.isa import MmabitsError


@pytest.fixture(scope="session")
def nvrtc() -> None:
    try:
        compiler_version()
    except MmabitsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def headers(nvrtc: None) -> None:
    if not header_folders() or not standard_headers():
        pytest.skip("CUDA's headers are not installed: pip install 'mmabits[nvrtc]'")
