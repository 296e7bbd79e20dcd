"""Fault injection into real runs of `sd embed`: kills, signals and damaged files, with counts of survivals.

usage: python benchmarks/faults.py CORPUS WORKDIR [--kills 30] [--signals 5] [--flips 400] [--seed 0]

CORPUS has a few thousand sentences; the teacher is MiniLM, with shards of 250 sentences. A kill or signal is survived
if the same command resumes to the bytes of an undisturbed run; damage is survived if both `sd shards verify` and
training detect it, and `sd embed` rebuilds that shard and no other. Writes a dated file.
"""

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import write_result

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.manifest import verify_folder
from sentence_distill.student.dataset import ShardStream

# Rebuilding a damaged shard loads the teacher each time, so only this many flips are repaired.
_MENDED = 10


def digest(folder: Path) -> str:
    """Return the SHA-256 over the names and bytes of all files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(f"{path.relative_to(folder)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def stop_and_go_on(command: list[str], out: Path, whole: str, number: int, times: int, rng: random.Random) -> int:
    """Send a signal to `times` runs at random moments, each in the folder of the previous one; return survivals.

    A run that completes first is compared, and the next one starts in an empty folder.
    """
    survived = sent = pending = 0
    while sent < times or pending:
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if sent < times:
            # Random moments cover the imports, which take most of a start, the plan, all shards and the end.
            time.sleep(rng.uniform(2, 14))
            if process.poll() is None:
                process.send_signal(number)
                process.wait()
                sent, pending = sent + 1, pending + 1
                continue
        process.wait()
        survived += pending if digest(out) == whole else 0
        pending = 0
        shutil.rmtree(out)
    return survived


def damage(folder: Path, command: list[str], changes: list[tuple[Path, bytes]]) -> dict[str, int]:
    """Damage one file after the other; count how often the damage is detected and repaired."""
    counts = {"tried": len(changes), "found_by_verify": 0, "found_by_training": 0, "mended_tried": 0, "mended": 0}
    whole = digest(folder)
    for number, (path, wrong) in enumerate(changes):
        right = path.read_bytes()
        path.write_bytes(wrong)
        counts["found_by_verify"] += any(path.stem in problem for problem in verify_folder(folder, lambda n: None))
        try:
            ShardStream(folder, held_out=0.1)
        except UserError as error:
            counts["found_by_training"] += path.stem in str(error)
        if number % max(1, len(changes) // _MENDED) == 0:
            others = {p: p.stat().st_mtime_ns for p in folder.glob("shard-*") if p.stem != path.stem}
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            untouched = all(p.stat().st_mtime_ns == at for p, at in others.items())
            counts["mended_tried"] += 1
            counts["mended"] += untouched and digest(folder) == whole
        path.write_bytes(right)
    return counts


def flipped(rng: random.Random, content: bytes) -> bytes:
    """Flip one bit of `content`."""
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, content: bytes) -> bytes:
    """Truncate `content`."""
    return content[: rng.randrange(len(content))]


def survived(row: dict[str, Any]) -> bool:
    """Return True if every fault of a row was survived, or detected by all checks and repaired."""
    found = [row[name] for name in ("survived", "found_by_verify", "found_by_training") if name in row]
    return all(count == row["tried"] for count in found) and row.get("mended") == row.get("mended_tried")


def main() -> None:
    """Run, break and count; exit with 1 if a fault was not survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--signals", type=int, default=5)
    parser.add_argument("--flips", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    command = [sys.executable, "-m", "sentence_distill.cli", "embed", "--corpus", str(options.corpus)]
    command += ["--teacher", "minilm", "--shard-rows", "250", "--out"]
    whole, out = options.workdir / "whole", options.workdir / "out"
    for folder in (whole, out):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([*command, str(whole)], check=True)
    expected = digest(whole)
    rows: list[dict[str, Any]] = []
    for number, times in (
        (signal.SIGKILL, options.kills),
        (signal.SIGTERM, options.signals),
        (signal.SIGINT, options.signals),
    ):
        count = stop_and_go_on([*command, str(out)], out, expected, number, times, rng)
        rows.append({"fault": f"{number.name} at a random moment", "tried": times, "survived": count})
        print(rows[-1], flush=True)
    files = sorted(path for path in whole.glob("shard-*"))
    kinds: tuple[tuple[str, Callable[[random.Random, bytes], bytes], int], ...] = (
        ("one bit flipped in a shard or sidecar", flipped, options.flips),
        ("a shard or sidecar cut short", cut, options.flips // 10),
    )
    for name, change, times in kinds:
        chosen = [rng.choice(files) for _ in range(times)]
        changes = [(path, change(rng, path.read_bytes())) for path in chosen]
        rows.append({"fault": name, **damage(whole, [*command, str(whole)], changes)})
        print(rows[-1], flush=True)
    write_result("faults", {"teacher": "minilm", "shards": len(files) // 2}, rows)
    sys.exit(0 if all(survived(row) for row in rows) else 1)


if __name__ == "__main__":
    main()
