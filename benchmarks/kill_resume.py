"""Kills `sd embed` with SIGKILL in mid-run, lets it finish, and compares with a run that was left alone.

usage: python benchmarks/kill_resume.py CORPUS WORKDIR [--kills 3] [--seed 0] [-- options of sd embed]
"""

import argparse
import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(f"{path.relative_to(folder)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def committed(folder: Path) -> int:
    """Number of shards that exist."""
    return len(list(folder.glob("shard-?????.json")))


def main() -> None:
    """Run, kill, resume, compare; exit with 1 where a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options, embed_options = parser.parse_known_args()
    command = [sys.executable, "-m", "sentence_distill.cli", "embed", "--corpus", str(options.corpus)]
    command += [option for option in embed_options if option != "--"]
    whole, killed = options.workdir / "whole", options.workdir / "killed"
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([*command, "--out", str(whole)], check=True)
    rng = random.Random(options.seed)
    for kill in range(options.kills):
        before = committed(killed)
        process = subprocess.Popen([*command, "--out", str(killed)])
        # In the midst of the shard behind the next one that it commits.
        while process.poll() is None and committed(killed) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.5))
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        state = "in mid-run" if alive else "too late, it had ended"
        print(f"kill {kill + 1} {state}: {committed(killed)} shards committed", flush=True)
    subprocess.run([*command, "--out", str(killed)], check=True)
    print(f"left alone: {digest(whole)}\nkilled:     {digest(killed)}")
    sys.exit(0 if digest(whole) == digest(killed) else 1)


if __name__ == "__main__":
    main()
