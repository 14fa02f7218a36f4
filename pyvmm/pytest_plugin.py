# SPDX-License-Identifier: Apache-2.0
"""The pytest plugin: options, markers and fixtures for tests that boot RISC-V guests (docs/howto/pytest.md).

Every run of pytest on a machine with pyvmm loads this module. So it imports nothing of pyvmm until a test
asks for a fixture.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.testing.config import GuestConfig
    from pyvmm.testing.console import Console
    from pyvmm.testing.guest import GuestChannel
    from pyvmm.testing.host import Host
    from pyvmm.testing.trace import TraceReader
    from pyvmm.testing.vm import Vm

_OPTIONS = (
    ("kernel", "FILE", "kernel to boot; may be a glob and repeated: every test runs with each of them"),
    ("initrd", "FILE", "initial RAM disk of the guests"),
    ("mem", "SIZE", "memory of the guests"),
    ("cpus", "N", "harts of the guests"),
    ("config", "FILE", "pyvmm.toml to take the guests' defaults from"),
    ("profile", "NAME", "profile of that file"),
    ("host", "WHERE", "where guests run: auto, local, lab, lab:aia, lab:plic [auto]"),
    ("artifacts", "DIR", "folder for what guests leave [.pyvmm/<session>]"),
    ("keep", "WHICH", "artifacts to keep: failed, all, none [failed]"),
    ("console", "HOW", "console output: tail of it with failures, live, or off [tail]"),
    ("timeout_scale", "X", "multiplies every time limit; auto: by the host's speed [auto]"),
    ("max_parallel", "N", "most guests at once, over all processes; auto: by memory [auto]"),
    ("trace", "KINDS", "trace every guest: mmio,sbi,irq"),
    ("interact", None, "after a failure, hand the guest's console to the user (Ctrl-] goes on)"),
    ("require_kvm", None, "fail at once, instead of skipping tests, when guests cannot run"),
)  # fmt: skip
_MARKERS = (
    "vmm(**nouns): the guest of this test: mem=, cpus=, append=, disks=, ... as `pyvmm run` takes them",
    "vmm_requires(isa=, irqchip=, sbi=, tool=, cpus=): skip unless the guests' host has these",
    "vmm_timeout(seconds): limit for each wait of this test, on hardware; scaled elsewhere",
    "vmm_allow_panic: a panic of the guest is no failure of this test",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Every option is an ini key and an environment variable (VMM_KERNEL), too."""
    group = parser.getgroup("pyvmm", "RISC-V guests (pyvmm)")
    for name, metavar, text in _OPTIONS:
        how: dict[str, Any] = {"metavar": metavar}
        if name == "kernel":
            how["action"] = "append"
        elif metavar is None:
            how = {"action": "store_true", "default": None}
        group.addoption(f"--vmm-{name.replace('_', '-')}", dest=f"vmm_{name}", help=text, **how)
        parser.addini(f"vmm_{name}", text, default="")


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known."""
    for line in _MARKERS:
        config.addinivalue_line("markers", line)


def pytest_sessionstart(session: pytest.Session) -> None:
    """With --vmm-require-kvm: fail now, and once, when guests cannot run."""
    config = session.config
    given = config.getoption("vmm_require_kvm") or os.environ.get("VMM_REQUIRE_KVM")
    if not (given or config.getini("vmm_require_kvm")) or hasattr(config, "workerinput"):
        return
    from pyvmm.testing import session as ours

    shared = ours.of(config)
    if shared.settings.require_kvm and shared.host.reason:
        raise pytest.UsageError(f"guests cannot run: {shared.host.reason}")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker of pytest-xdist puts its artifacts where the others do."""
    from pyvmm.testing.settings import session_name

    node.workerinput["vmm_session"] = session_name(node.config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Check the markers, and run tests with guests once for each kernel."""
    if any(mark.name.startswith("vmm") for mark in metafunc.definition.iter_markers()):
        from pyvmm.testing.markers import check

        check(metafunc.definition)
    if "vmm_kernel" in metafunc.fixturenames:
        from pyvmm.testing import session as ours

        try:
            kernels = ours.of(metafunc.config).settings.kernel_files()
        except pytest.UsageError as error:
            raise pytest.Collector.CollectError(str(error)) from None
        if kernels:
            metafunc.parametrize(
                "vmm_kernel", list(kernels), ids=list(kernels.values()), indirect=True, scope="session"
            )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose host lacks something, or whose module's guest is gone."""
    from_module = "vm_module" in getattr(item, "fixturenames", ())
    if from_module or item.get_closest_marker("vmm_requires"):
        from pyvmm.testing import lifecycle

        lifecycle.skip_if_pointless(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test whose guest panicked has failed, whatever it asked for."""
    result = yield
    if _ours(item.config):
        from pyvmm.testing import lifecycle

        lifecycle.fail_if_lost(item)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say with a failure what its guests did; keep or remove what they left."""
    report = yield
    if _ours(item.config):
        from pyvmm.testing import lifecycle

        lifecycle.report(item, call, report)
    return report


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    session = _ours(config)
    if session is not None:
        session.close()


def _ours(config: pytest.Config) -> Any:
    """What the guests of this process share, once there was one."""
    return getattr(config, "_pyvmm_session", None)


@pytest.fixture(scope="session")
def vmm_host(request: pytest.FixtureRequest) -> Host:
    """Facts about the host that guests run on. Never skips: look at ``vmm_host.reason``."""
    from pyvmm.testing import session as ours

    return ours.of(request.config).host


@pytest.fixture(scope="session")
def vmm_kernel(request: pytest.FixtureRequest) -> str | None:
    """The kernel of --vmm-kernel that this test runs with."""
    kernel: str | None = getattr(request, "param", None)
    return kernel


@pytest.fixture(scope="session")
def vmm_config(request: pytest.FixtureRequest, vmm_kernel: str | None) -> GuestConfig:
    """The guest that the options ask for. To be overridden: ``return vmm_config.replace(mem="1G")``."""
    from pyvmm.testing import session as ours

    return ours.of(request.config).base_config(vmm_kernel)


@pytest.fixture
def vm_factory(
    request: pytest.FixtureRequest, vmm_config: GuestConfig
) -> Generator[Callable[..., Vm], None, None]:
    """``vm_factory(**nouns)`` makes a guest, any number of them; they end with the test."""
    from pyvmm.testing import lifecycle

    with lifecycle.Factory(request, vmm_config) as factory:
        yield factory


@pytest.fixture
def vm(request: pytest.FixtureRequest, vm_factory: Callable[..., Vm]) -> Vm:
    """A guest, not started. Its indirect parameters are nouns."""
    return vm_factory(**getattr(request, "param", {}))


@pytest.fixture
def vm_booted(vm: Vm) -> Vm:
    """A guest that has booted: the agent in it answers."""
    vm.start()
    vm.wait_ready()
    return vm


@pytest.fixture(scope="module")
def vm_module(
    request: pytest.FixtureRequest, vmm_config: GuestConfig, vmm_kernel: str | None
) -> Generator[Vm, None, None]:
    """A booted guest that the tests of a module share. Once it is gone, the rest of them are skipped."""
    from pyvmm.testing import lifecycle

    with lifecycle.Factory(request, vmm_config, vmm_kernel) as factory:
        booted = factory(**getattr(request, "param", {}))
        booted.start()
        booted.wait_ready()
        yield booted


@pytest.fixture
def console(request: pytest.FixtureRequest, vmm_kernel: str | None) -> Console:  # noqa: ARG001 - for each
    """The guest's console, with pexpect's API."""
    from pyvmm.testing import lifecycle

    return lifecycle.vm_of(request).console


@pytest.fixture
def guest(request: pytest.FixtureRequest, vmm_kernel: str | None) -> GuestChannel:  # noqa: ARG001 - for each
    """Commands and files in the guest: run, check, put, get, wait_for."""
    from pyvmm.testing import lifecycle

    return lifecycle.vm_of(request).guest


@pytest.fixture
def trace(request: pytest.FixtureRequest, vmm_kernel: str | None) -> TraceReader:  # noqa: ARG001 - for each
    """What the guest makes its host do: counts of MMIO accesses, SBI calls, interrupts."""
    from pyvmm.testing import lifecycle

    return lifecycle.vm_of(request).trace
