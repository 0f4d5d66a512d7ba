"""Boots Debian's other kernels in QEMU and runs a script of this checkout in them: ``python -m tests.vm``."""
