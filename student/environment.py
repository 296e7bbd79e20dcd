"""Machine and package versions that figures depend on."""

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
# Those of x86, then those of ARM.
_INSTRUCTIONS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)


def environment() -> dict[str, Any]:
    """Return date, hardware and versions, for a file of figures (`figures.Environment`)."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": cpu(),
        "instructions": instructions(),
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def cpu() -> str:
    """Return the processor's name."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def instructions() -> list[str]:
    """Return the instruction sets that decide the speed of encoders, as Linux names them; none elsewhere."""
    flags = {flag for line in _cpuinfo() if line.startswith(("flags", "Features")) for flag in line.split()}
    return [name for name in _INSTRUCTIONS if name in flags]


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
