"""A QEMU guest: another kernel over this machine's own root file system, read-only, with a throwaway overlay.

Software emulation (TCG), one processor, no network card. The verdict is a line on the serial console that carries a
token made for this boot, so nothing a guest program prints can be taken for it; without that line the boot failed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.vm.kernels import Kernel

VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")
BOOT_MODULES = ("virtio_pci", "virtiofs", "overlay")

INIT = """#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
export CWD=@CWD@
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
for module in $(cat /modules.order); do insmod $module || echo "init: insmod $module failed"; done
mkdir -p /lower /rw /new
mount -t virtiofs -o ro root /lower || echo "init: no root file system"
mount -t tmpfs tmpfs /rw; mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /new || echo "init: no overlay"
mkdir -p /new/dev /new/proc /new/sys /new/run /new/tmp /new/lib/modules
for folder in dev proc sys; do mount --move /$folder /new/$folder; done
mkdir /keep; mount --bind "/new$CWD" /keep || echo "init: $CWD is not there"
mount -t tmpfs tmpfs /new/run; mount -t tmpfs -o mode=1777 tmpfs /new/tmp
mkdir -p "/new$CWD"; mount --move /keep "/new$CWD"
rm -rf /new/lib/modules/@RELEASE@; ln -s /run/modules/@RELEASE@ /new/lib/modules/@RELEASE@
mkdir -p /new/run/modules; mount -t virtiofs -o ro modules /new/run/modules || echo "init: no modules"
cp /bin/busybox /new/run/busybox
printf '#!/run/busybox sh\\nexec /run/busybox modprobe "$@"\\n' > /new/run/modprobe; chmod 755 /new/run/modprobe
echo /run/modprobe > /new/proc/sys/kernel/modprobe
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup; mount -t bpf bpf /new/sys/fs/bpf
cp /script /new/run/script; chmod 755 /new/run/script
exec switch_root /new /run/busybox sh -c '
  /run/busybox ip link set lo up; hostname vm 2>/dev/null
  cd "$CWD" && env -i REDIRECT_TEST_MACHINE=disposable HOME=/root \\
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /run/script
  status=$?; echo; echo "@TOKEN@ $status"; /run/busybox sync; /run/busybox poweroff -f'
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a guest ended."""

    exit_status: int | None
    """Of the script; None: it never got to its end (panic, hang, no boot)."""
    console: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.exit_status == 0


def hidden_from_guests(checkout: Path) -> str | None:
    """Why a guest wouldn't see a checkout, in one line; None if it does."""
    # The root file system is what is served, without what is mounted on it.
    if checkout.stat().st_dev == Path("/").stat().st_dev:
        return None
    mounted = next(folder for folder in (checkout, *checkout.parents) if folder.is_mount())
    return (
        f"guests see this machine's root file system only, and {checkout} is on another, mounted on {mounted}; "
        "run it in a checkout on the root file system"
    )


def missing_programs() -> list[str]:
    """Debian packages this machine lacks for booting guests."""
    wanted = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "modprobe": "kmod"}
    missing = [package for program, package in wanted.items() if shutil.which(program) is None]
    if not any(Path(path).exists() for path in VIRTIOFSD):
        missing.append("qemu-system-x86")
    return missing


def run_in_guest(
    kernel: Kernel,
    command: Sequence[str],
    cwd: Path,
    limit_seconds: float = 300,
    on_output: Callable[[str], None] | None = None,
) -> Verdict:
    """Boot the kernel, run the command as root in cwd, power off. Nothing outside the guest is written to."""
    token = secrets.token_hex(8)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kiamvm-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        initramfs = _build_initramfs(kernel, command, cwd, token, folder)
        root_socket = stack.enter_context(_virtiofsd("/", folder, "root"))
        modules_socket = stack.enter_context(_virtiofsd(str(kernel.modules / "lib/modules"), folder, "modules"))
        console: list[str] = []
        qemu = subprocess.Popen(
            [
                "timeout", "--kill-after=5", str(limit_seconds), "qemu-system-x86_64",
                "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1G", "-net", "none", "-nodefaults",
                "-display", "none", "-no-reboot", "-serial", "stdio",
                "-object", "memory-backend-memfd,id=memory,size=1G,share=on", "-numa", "node,memdev=memory",
                "-chardev", f"socket,id=root,path={root_socket}",
                "-device", "vhost-user-fs-pci,chardev=root,tag=root",
                "-chardev", f"socket,id=modules,path={modules_socket}",
                "-device", "vhost-user-fs-pci,chardev=modules,tag=modules",
                "-kernel", str(kernel.image), "-initrd", str(initramfs),
                "-append", "console=ttyS0 panic=-1 quiet loglevel=3 net.ifnames=0 mitigations=off",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )  # fmt: skip
        try:
            assert qemu.stdout is not None
            for line in qemu.stdout:
                console.append(line)
                if on_output is not None and token not in line:
                    on_output(line)
        finally:
            qemu.terminate()
            qemu.wait()
    status = next((line.split()[1] for line in reversed(console) if line.startswith(token)), None)
    return Verdict(
        exit_status=int(status) if status is not None else None,
        console="".join(line for line in console if token not in line),
        seconds=time.monotonic() - started,
    )


def _build_initramfs(kernel: Kernel, command: Sequence[str], cwd: Path, token: str, folder: Path) -> Path:
    tree = folder / "initramfs"
    for name in ("bin", "dev", "proc", "sys", "modules"):
        (tree / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tree / "bin/busybox")
    _depmod(kernel)
    order = []
    for path in _module_files(kernel):
        shutil.copy(path, tree / "modules" / path.name)
        order.append(f"/modules/{path.name}")
    (tree / "modules.order").write_text("\n".join(dict.fromkeys(order)) + "\n")
    init = INIT.replace("@RELEASE@", kernel.release).replace("@TOKEN@", token).replace("@CWD@", shlex.quote(str(cwd)))
    (tree / "init").write_text(init)
    (tree / "init").chmod(0o755)
    (tree / "script").write_text("#!/bin/sh\nexec " + shlex.join(command) + "\n")
    archive = folder / "initramfs.cpio"
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with archive.open("wb") as output:
        subprocess.run(
            ["busybox", "cpio", "-o", "-H", "newc"],
            cwd=tree,
            input=names.encode(),
            stdout=output,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    return archive


def _depmod(kernel: Kernel) -> None:
    if not (kernel.modules / "lib/modules" / kernel.release / "modules.dep.bin").exists():
        subprocess.run(["depmod", "-b", str(kernel.modules), kernel.release], check=True)


def _module_files(kernel: Kernel) -> Iterator[Path]:
    for module in BOOT_MODULES:
        shown = subprocess.run(
            ["modprobe", "-d", str(kernel.modules), "-S", kernel.release, "--show-depends", module],
            capture_output=True,
            text=True,
            check=True,
        )
        for line in shown.stdout.splitlines():
            if line.startswith("insmod "):
                yield _decompressed(Path(line.split()[1]))


def _decompressed(module: Path) -> Path:
    """busybox's insmod takes plain .ko only."""
    if module.suffix != ".xz":
        return module
    plain = module.with_suffix("")
    if not plain.exists():
        subprocess.run(["xz", "--decompress", "--keep", str(module)], check=True)
    return plain


@contextlib.contextmanager
def _virtiofsd(shared: str, folder: Path, name: str) -> Iterator[Path]:
    """Serve a folder read-only: bind-mounted so in a mount namespace that ends with the process."""
    socket = folder / f"{name}.sock"
    program = next(path for path in VIRTIOFSD if Path(path).exists())
    target = folder / f"{name}.mount"
    target.mkdir()
    script = (
        f"mount --make-rprivate / && mount --bind {shlex.quote(shared)} {target} && "
        f"mount -o remount,bind,ro {target} && "
        f"exec {program} --socket-path={socket} -o source={target} -o sandbox=chroot -o cache=always"
    )
    log = (folder / f"{name}.log").open("wb")
    process = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                print((folder / f"{name}.log").read_text(), file=sys.stderr)
                raise RuntimeError(f"virtiofsd for {shared} did not start")
            time.sleep(0.02)
        yield socket
    finally:
        process.terminate()
        process.wait()
        log.close()


def machine_can_boot() -> str | None:
    """Why guests can't be booted here; None: they can."""
    if os.geteuid() != 0:
        return "booting guests needs root"
    missing = missing_programs()
    return f"missing Debian packages: {' '.join(missing)}" if missing else None
