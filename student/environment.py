"""What a figure depends on besides the code: the machine, and the versions of what computes."""

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("sentence-distill", "torch", "onnxruntime", "transformers", "sentence-transformers", "tokenizers", "nanotoken"),
    *("pyarrow", "numpy"),
)
# The first of x86, the others of ARM.
_INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)


def environment(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Date, hardware and versions, for a file of figures."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": cpu(),
        "instructions": instructions(),
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions(packages),
    }


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def instructions() -> list[str]:
    """Instruction sets of the processor that decide the speed of encoders, as Linux names them; none elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    return [name for name in _INSTRUCTIONS if name in flags]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of those of `packages` that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
