# SPDX-License-Identifier: Apache-2.0
"""The guests of a test from its first fixture to its report: made, watched, explained, ended."""

from __future__ import annotations

import pytest

from pyvmm.testing import artifacts
from pyvmm.testing import report as reports
from pyvmm.testing import session as sessions
from pyvmm.testing.config import GuestConfig
from pyvmm.testing.errors import GuestError
from pyvmm.testing.interact import interact
from pyvmm.testing.vm import Vm

_VMS = pytest.StashKey[list[Vm]]()
_SHARED = pytest.StashKey[dict[str, list[Vm]]]()  # of a module: its guests for each kernel
_FAILED = pytest.StashKey[bool]()
_LOST_LINES = "lines of the trace were dropped"

Node = pytest.Item | pytest.Collector


class Factory:
    """Makes the guests of one test, or of one module with one ``kernel``, and ends them."""

    def __init__(self, request: pytest.FixtureRequest, base: GuestConfig, kernel: str | None = None) -> None:
        self._node: Node = request.node
        self._session = sessions.of(request.config)
        self._session.require_guests()
        self._traced = "trace" in request.fixturenames
        self._config = sessions.marked(base, self._node)
        self._vms: list[Vm] = []
        if isinstance(self._node, pytest.Collector):
            shared = self._node.stash.setdefault(_SHARED, {})
            shared[_variant(kernel, getattr(request, "param", None))] = self._vms
        else:
            self._node.stash[_VMS] = self._vms

    def __call__(self, **nouns: object) -> Vm:
        """A guest: that of the options, fixtures and markers, with ``nouns`` changed. Raises ConfigError."""
        vm = self._session.make(self._node, self._config.replace(**nouns), traced=self._traced)
        self._vms.append(vm)
        return vm

    def __enter__(self) -> Factory:
        return self

    def __exit__(self, *_: object) -> None:
        """End them. A panic that nobody has seen yet is raised now, and so is a trace that has gaps."""
        panicked = None
        incomplete = ""
        for vm in self._vms:
            self._session.finish(vm)
            if vm.log.panic.seen and vm.panic_ends():
                panicked = vm
            if self._traced and not incomplete:
                incomplete = next((line for line in vm.said() if _LOST_LINES in line), "")
        failed = self._node.stash.get(_FAILED, False)
        if isinstance(self._node, pytest.Collector):
            self._dispose(failed or panicked is not None)
        if panicked is not None and not failed:
            raise panicked.fatal("", None)
        if incomplete and not failed:
            raise GuestError(f"what the test counted is not all there was: {incomplete}")

    def _dispose(self, failed: bool) -> None:
        dispose(self._session, self._vms, failed=failed)


def vm_of(request: pytest.FixtureRequest) -> Vm:
    """The guest that a test's other fixtures are about; a booted one when it asks for none."""
    names = request.fixturenames
    if "vm_module" in names:
        vm: Vm = request.getfixturevalue("vm_module")
        vm.forget_output()
        return vm
    if "vm" in names and "vm_booted" not in names:
        vm = request.getfixturevalue("vm")
    else:
        vm = request.getfixturevalue("vm_booted")
    return vm


def skip_if_pointless(item: pytest.Item) -> None:
    """Skip a test whose host lacks something, or whose module's guest is gone."""
    for mark in item.iter_markers("vmm_requires"):
        session = sessions.of(item.config)
        session.require_guests()
        missing = session.host.lacks(mark.kwargs)
        if missing:
            pytest.skip(missing)
    for vm in _module_vms(item):
        if vm.lost:
            pytest.skip(f"the guest of this module is gone: {vm.fatal('', None).what}")


def fail_if_lost(item: pytest.Item) -> None:
    """Raise what happened to a guest that panicked meanwhile, or that others still need."""
    for vm in _vms(item):
        if vm.log.panicked and vm.panic_ends():
            raise vm.fatal("", None)
    for vm in _module_vms(item):
        if vm.lost:
            raise vm.fatal("", None)


def report(item: pytest.Item, call: pytest.CallInfo[None], found: pytest.TestReport) -> None:
    """Add what is known of the guests to a report; after the last one, keep or remove their artifacts."""
    vms = _vms(item)
    session = sessions.of(item.config)
    if found.failed:
        item.stash[_FAILED] = True
        parent = item.getparent(pytest.Module)
        if parent is not None:
            parent.stash[_FAILED] = True
        error = call.excinfo.value if call.excinfo else None
        found.sections += reports.sections(vms, error)
        if session.settings.keep != "none" and item.config.getoption("xmlpath", None):
            _attach(item, found, reports.attachments(vms))
        if session.settings.interact and not session.settings.worker and found.when != "teardown":
            for vm in vms:
                if vm.state == "running":
                    interact(item.config, vm)
    if found.when == "call" or (found.when == "setup" and found.failed):
        item.user_properties += [one for vm in vms for one in reports.properties(vm)]
    if found.when == "teardown":
        dispose(session, item.stash.get(_VMS, []), failed=item.stash.get(_FAILED, False))


def _attach(item: pytest.Item, found: pytest.TestReport, text: str) -> None:
    """Have ``text`` in the output of a test; junit's file takes that from its last report."""
    if found.when == "teardown":
        found.sections.append(("Captured stdout artifacts", text))
    else:
        item.add_report_section("artifacts", "stdout", text)


def dispose(session: sessions.Session, vms: list[Vm], *, failed: bool) -> None:
    """Keep the artifacts of guests that have ended, or remove them."""
    kept = session.settings.keep == "all" or (session.settings.keep == "failed" and failed)
    for vm in vms:
        if not kept:
            artifacts.remove(vm.folder)


def _vms(item: pytest.Item) -> list[Vm]:
    return [*item.stash.get(_VMS, []), *_module_vms(item)]


def _module_vms(item: pytest.Item) -> list[Vm]:
    module = item.getparent(pytest.Module)
    if module is None or "vm_module" not in getattr(item, "fixturenames", ()):
        return []
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    variant = _variant(params.get("vmm_kernel"), params.get("vm_module"))
    return module.stash.get(_SHARED, {}).get(variant, [])


def _variant(kernel: object, nouns: object) -> str:
    """Which of the guests that a module has one after another: by its kernel and its own parameters."""
    return repr((kernel, nouns))
