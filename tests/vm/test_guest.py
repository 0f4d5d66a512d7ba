"""A guest's verdict can't be anything but its script's: what goes wrong in it comes out as a failure."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.vm.guest import hidden_from_guests, machine_can_boot, run_in_guest
from tests.vm.kernels import Kernel, KernelError, KernelStore

CHECKOUT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    if (reason := machine_can_boot()) is not None:
        pytest.fail(reason)
    store = KernelStore(CHECKOUT / "build/vm")
    store.refresh()
    return store.get("6.1")


def test_a_script_that_succeeds_passes_and_runs_on_that_kernel(kernel: Kernel) -> None:
    verdict = run_in_guest(kernel, ["uname", "-r"], CHECKOUT, 90)
    assert verdict.passed
    assert kernel.release in verdict.console


def test_a_failing_script_fails_with_its_own_exit_status(kernel: Kernel) -> None:
    verdict = run_in_guest(kernel, ["sh", "-c", "exit 3"], CHECKOUT, 90)
    assert not verdict.passed
    assert verdict.exit_status == 3


def test_a_script_that_prints_a_passing_verdict_itself_and_fails_is_not_believed(kernel: Kernel) -> None:
    verdict = run_in_guest(kernel, ["sh", "-c", "echo 0; echo '0123456789abcdef 0'; exit 1"], CHECKOUT, 90)
    assert verdict.exit_status == 1


def test_a_panic_fails(kernel: Kernel) -> None:
    verdict = run_in_guest(kernel, ["sh", "-c", "echo c > /proc/sysrq-trigger"], CHECKOUT, 90)
    assert verdict.exit_status is None
    assert not verdict.passed


def test_a_hang_fails_when_its_time_is_up_and_leaves_nothing(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder of its own, so that guests of another run aren't taken for this one's; short, as sockets lie in it.
    folder = tempfile.mkdtemp(prefix="kiamvm-hang-")
    monkeypatch.setattr(tempfile, "tempdir", folder)
    verdict = run_in_guest(kernel, ["sleep", "1000"], CHECKOUT, 15)
    assert verdict.exit_status is None
    assert not verdict.passed
    left = subprocess.run(["pgrep", "-f", folder], capture_output=True, text=True, check=False)
    assert left.stdout == ""
    assert folder not in Path("/proc/mounts").read_text()
    Path(folder).rmdir()


def test_nothing_a_guest_writes_reaches_this_machine(kernel: Kernel) -> None:
    verdict = run_in_guest(kernel, ["sh", "-c", "echo x > /root/kiamvm-written && ls /root"], CHECKOUT, 90)
    assert verdict.passed
    assert not Path("/root/kiamvm-written").exists()


def test_a_series_debian_does_not_have_is_one_clear_line(kernel: Kernel) -> None:
    with pytest.raises(KernelError, match=r"has a cloud kernel 4\.4"):
        KernelStore(CHECKOUT / "build/vm").get("4.4")


@pytest.mark.parametrize("parent", ["/tmp", "/run", "/root"])
def test_a_checkout_is_seen_wherever_it_is(kernel: Kernel, parent: str) -> None:
    """Guests have a /tmp and a /run of their own, which used to hide it."""
    with tempfile.TemporaryDirectory(prefix="kiam vm-", dir=parent) as folder:
        if hidden_from_guests(Path(folder)) is not None:
            pytest.skip(f"{parent} is a file system of its own here")
        (Path(folder) / "here").write_text("the checkout\n")
        verdict = run_in_guest(kernel, ["sh", "-c", "cat here && echo x > written"], Path(folder), 90)
        assert verdict.passed, verdict.console
        assert "the checkout" in verdict.console
        assert not (Path(folder) / "written").exists()


def test_a_checkout_on_another_file_system_is_refused_in_one_line() -> None:
    reason = hidden_from_guests(Path("/dev/shm"))
    assert reason is not None
    assert "/dev/shm is on another, mounted on /dev" in reason
    assert "\n" not in reason
