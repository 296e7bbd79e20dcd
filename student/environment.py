"""What a figure depends on besides the code: the machine, and the versions of what computes."""

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("sentence-distill", "torch", "transformers", "sentence-transformers", "tokenizers", "pyarrow", "numpy")


def environment(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Date, hardware and versions, for a file of figures."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "cpu": cpu(),
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
