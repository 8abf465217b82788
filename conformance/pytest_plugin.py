"""pytest's tests, each as one or more GPUs would compute it: `pytest --mmabits-arch sm_90a,sm_100a`.

pytest loads this module wherever mmabits is installed; without the option it does nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from mmabits.emulator.hooks.session import Session, SessionReport

PROPERTY: Final = "mmabits"
"""Under this name a test's report has its figures as JSON, in JUnit files too."""
_PARAMETER: Final = "mmabits_arch"
_MARK: Final = (
    "mmabits(arch=None, check=None, cuda=None, skip=False): other architectures for this test (a name or several), checks, whether host "
    "code finds a CUDA device, or no emulation at all"
)
_MARKED: Final = ("arch", "check", "cuda", "skip")
_NAMED: Final = 5
"""Operations that were not emulated, named in the summary of an architecture."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, on the command line and in the project's configuration."""
    group = parser.getgroup("mmabits", "tests as GPUs compute them (mmabits)")
    for name, text in (
        ("arch", "architectures or GPUs to run every test as, separated by commas: sm_90a,sm_100a"),
        ("check", "what to look for in compiled kernels: memory, init, races, sync, separated by commas, or all"),
        ("require", "refuse arithmetic that is known less well than this: recorded or published"),
        ("cuda", "whether host code finds a CUDA device of that architecture: yes (where torch is installed) or no"),
        ("report", "write what was emulated, test by test, to this file (.json)"),
    ):
        group.addoption(f"--mmabits-{name}", default=None, help=text)
        if name != "report":
            parser.addini(f"mmabits_{name}", text, default="")


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, Any, Any]:
    """Import the project's conftest.py as the first architecture too: helpers ask for a device when they are imported."""
    given = getattr(early_config.known_args_namespace, "mmabits_arch", None)
    archs = _split(str(early_config.getini("mmabits_arch") if given is None else given))
    cuda = getattr(early_config.known_args_namespace, "mmabits_cuda", None) or early_config.getini("mmabits_cuda") or "yes"
    if not archs or cuda != "yes" or importlib.util.find_spec("torch") is None:
        return (yield)
    import mmabits

    try:
        block = mmabits.emulate(archs[0], frameworks=["torch"], cuda=True)
        block.__enter__()
    except mmabits.MmabitsError:  # told where the options are looked at
        return (yield)
    try:
        return (yield)
    finally:
        block.__exit__(None, None, None)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, and let the tests run emulated where architectures are named."""
    config.addinivalue_line("markers", _MARK)
    archs = _split(_setting(config, "arch"))
    if archs:
        config.pluginmanager.register(EmulatedTests(config, archs), "mmabits-emulated")
        return
    others = [name for name in ("check", "require", "cuda", "report") if config.getoption(f"--mmabits-{name}") is not None]
    if others:
        raise pytest.UsageError(f"--mmabits-{others[0]} goes with --mmabits-arch, which is missing")


@pytest.fixture
def mmabits_session(request: pytest.FixtureRequest) -> Session:
    """The session of the test's emulation; its report says what was emulated so far. Skips where nothing is."""
    runs = request.config.pluginmanager.get_plugin("mmabits-emulated")
    if runs is None or runs.session is None:
        pytest.skip("not emulated: run with --mmabits-arch")
    session: Session = runs.session
    return session


@pytest.fixture
def mmabits_arch(request: pytest.FixtureRequest) -> str | None:
    """The architecture that the test runs as; None where nothing is emulated."""
    runs = request.config.pluginmanager.get_plugin("mmabits-emulated")
    return None if runs is None else runs.arch_of(request.node)


def _setting(config: pytest.Config, name: str) -> str:
    given = config.getoption(f"--mmabits-{name}")
    return str(config.getini(f"mmabits_{name}") if given is None else given)


def _split(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.replace("\n", ",").split(",") if part.strip()))


class EmulatedTests:
    """Runs every test inside `mmabits.emulate`."""

    def __init__(self, config: pytest.Config, archs: tuple[str, ...]) -> None:
        from mmabits.emulator.machine.checkrecords import CHECKS
        from mmabits.isa import MmabitsError, architecture, evidence_level

        self.session: Session | None = None
        self.figures: list[dict[str, Any]] = []
        checks = _split(_setting(config, "check"))
        self.checks: tuple[str, ...] = tuple(CHECKS) if checks == ("all",) else checks
        self.require = _setting(config, "require") or "inferred"
        cuda = _setting(config, "cuda") or "yes"
        is_worker = hasattr(config, "workerinput")  # of pytest-xdist: the figures travel with the reports to the one that writes
        self.report = None if is_worker else config.getoption("--mmabits-report")
        try:
            self.archs = tuple(dict.fromkeys(architecture(arch).name for arch in archs))
            evidence_level(self.require)
            if wrong := [name for name in self.checks if name not in CHECKS]:
                raise pytest.UsageError(f"no check {wrong[0]!r}; there are {', '.join(CHECKS)}")
        except MmabitsError as error:
            raise pytest.UsageError(f"mmabits: {error}") from None
        if cuda not in ("yes", "no"):
            raise pytest.UsageError(f"--mmabits-cuda is yes or no, got {cuda!r}")
        if self.report is not None and Path(self.report).suffix != ".json":
            raise pytest.UsageError(f"--mmabits-report takes a .json file, got {self.report!r}")
        self.cuda = cuda == "yes" and importlib.util.find_spec("torch") is not None

    # What a test runs as ---------------------------------------------------------------------------------------------

    def arch_of(self, item: pytest.Item) -> str | None:
        """The architecture of a test; None: it is not emulated."""
        marked = _marked(item)
        if marked.get("skip"):
            return None
        call = getattr(item, "callspec", None)
        if call is not None and _PARAMETER in call.params:
            return str(call.params[_PARAMETER])
        return self._archs(marked)[0]

    def _archs(self, marked: Mapping[str, Any]) -> tuple[str, ...]:
        from mmabits.isa import architecture

        arch = marked.get("arch")
        if arch is None:
            return self.archs
        return tuple(architecture(name).name for name in ((arch,) if isinstance(arch, str) else tuple(arch)))

    @contextmanager
    def _block(self, arch: str, marked: Mapping[str, Any]) -> Iterator[Session]:
        import mmabits

        cuda = self.cuda if marked.get("cuda") is None else bool(marked["cuda"])
        if cuda:
            importlib.import_module("torch")
        check = marked.get("check")
        checks = self.checks if check is None else (check,) if isinstance(check, str) else tuple(check)
        if checks:
            importlib.import_module("triton")
        with mmabits.emulate(arch, require=self.require, cuda=cuda, check=checks) as session:
            yield session

    # Hooks of pytest -------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, Any, Any]:
        """Import test modules as the first architecture: what they ask at import has that answer for all."""
        with self._block(self.archs[0], {"check": ()}):
            return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """A test for each architecture."""
        marked = _arguments(metafunc.definition.iter_markers("mmabits"))
        archs = () if marked.get("skip") else self._archs(marked)
        if len(archs) > 1 or (archs and marked.get("arch") is not None):
            if _PARAMETER not in metafunc.fixturenames:
                metafunc.fixturenames.append(_PARAMETER)
            metafunc.parametrize(_PARAMETER, archs, scope="function")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Set a test up, run it and take it down inside the block."""
        arch = self.arch_of(item)
        if arch is None:
            return (yield)
        with self._block(arch, _marked(item)) as session:
            self.session = session
            try:
                return (yield)
            finally:
                self.session = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
        """Give the report of a test's end its figures."""
        report = yield
        if call.when == "teardown" and self.session is not None:
            report.user_properties.append((PROPERTY, json.dumps(_figures(item.nodeid, self.session.report()))))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the figures."""
        if report.when == "teardown":
            self.figures += [json.loads(str(value)) for name, value in report.user_properties if name == PROPERTY]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What was emulated, by architecture, and what was not."""
        if not self.figures:
            return
        terminalreporter.section("emulated by mmabits")
        for line in _summary(self.figures):
            terminalreporter.write_line(line)

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        if self.report is not None and self.figures:
            from mmabits.reports.pages import write

            write(self.report, json.dumps(self.figures, indent=1))


def _arguments(marks: Any) -> dict[str, Any]:
    """The arguments of a test's markers; the nearest counts."""
    found: dict[str, Any] = {}
    for mark in marks:
        wrong = [name for name in mark.kwargs if name not in _MARKED]
        if mark.args or wrong:
            raise pytest.UsageError(f"the marker mmabits takes {', '.join(f'{name}=' for name in _MARKED)}, got {mark}")
        found = mark.kwargs | found
    return found


def _marked(item: pytest.Item) -> dict[str, Any]:
    return _arguments(item.iter_markers("mmabits"))


def _figures(test: str, report: SessionReport) -> dict[str, Any]:
    from mmabits.emulator.hooks.condensed import by_evidence

    return {
        "test": test, "arch": report.arch, "multiply_adds": report.multiply_adds, "share": report.share,
        "evidence": dict(by_evidence(report.emulated)), "kernels": {kernel.name: kernel.launches for kernel in report.kernels},
        "not_emulated": [
            {"operation": line.operation, "multiply_adds": line.multiply_adds, "count": line.count, "reason": line.reason}
            for line in report.skipped
        ],
    }  # fmt: skip


def _summary(figures: list[dict[str, Any]]) -> Iterator[str]:
    for arch in dict.fromkeys(figure["arch"] for figure in figures):
        own = [figure for figure in figures if figure["arch"] == arch]
        done = sum(figure["multiply_adds"] for figure in own)
        missed: dict[tuple[str, str], int] = {}
        left = 0
        for figure in own:
            for line in figure["not_emulated"]:
                missed[line["operation"], line["reason"]] = missed.get((line["operation"], line["reason"]), 0) + line["count"]
                left += line["multiply_adds"] or 0
        share = f" ({100 * done / (done + left):.4g} % of those counted)" if done + left else ""
        launches = sum(sum(figure["kernels"].values()) for figure in own)
        yield f"{arch}: {len(own)} tests; {done:,} multiply-adds{share}; {launches:,} launches of compiled kernels"
        for (operation, reason), count in sorted(missed.items(), key=lambda item: -item[1])[:_NAMED]:
            kind, _, rest = reason.partition(": ")
            yield (
                f"  {kind}: {operation}, {count} times: {rest}"
                if kind == "inferred"
                else f"  not emulated: {operation}, {count} times: {reason}"
            )
        if len(missed) > _NAMED:
            yield f"  and {len(missed) - _NAMED} operations more: --mmabits-report writes all"


__all__ = ["PROPERTY", "EmulatedTests", "mmabits_arch", "mmabits_session", "pytest_addoption", "pytest_configure"]
