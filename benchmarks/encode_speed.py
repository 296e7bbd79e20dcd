"""Sentences per second of students, compared with alternatives, and their fidelity to the teacher.

usage: python benchmarks/encode_speed.py TEXT STS WORKDIR STUDENT [STUDENT…] [--sentences 10000] [--rounds 3]
                                         [--teacher minilm] [--peer-python PYTHON] [--before-python PYTHON]

TEXT has one sentence per line, of which --sentences are drawn; STS is STS-B's dev.tsv. Each contender encodes them in
its own process, once per round, and medians are reported. Then it encodes single sentences on one core. `sd encode` is
the whole command, from its start to the finished file, on ten copies of the sentences. ONNX and OpenVINO are included
with --peer-python, an environment made from peers-requirements.txt; version 0.1.0 of this package, whose sd encode ran
PyTorch, with --before-python. Contenders in bfloat16 are included on CPUs with instructions for it. Writes a dated file
to results/.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batch_size import fastest_batch_size
from peers import make_static
from record import forget_made, write_result
from scipy.stats import spearmanr

from sentence_distill.data.glue import load_sts
from sentence_distill.pipeline.hardware import STUDENT, TEACHER, fast_in_bf16
from sentence_distill.pipeline.load import locate_teacher
from sentence_distill.student.files import locate_student
from sentence_distill.student.metrics import paired_rank_agreement, recall_figures

CONTENDER = Path(__file__).with_name("encode_contender.py")
NAMES = {
    "sd-encode": "sd encode, the whole command",
    "student-int8": "Student.encode",
    "student-bf16": "Student.encode, bfloat16 in PyTorch",
    "student-fp32": "Student.encode, float32 in PyTorch",
    "before": "0.1.0: Student.encode, as its sd encode ran it",
    "before-int8": "0.1.0: the int8 export",
    "st": "teacher, SentenceTransformer as it comes",
    "st-bf16": "teacher, SentenceTransformer, bfloat16 autocast",
    "onnx-int8": "teacher, SentenceTransformer with ONNX, int8",
    "openvino-bf16": "teacher, SentenceTransformer with OpenVINO, bfloat16",
    "openvino-int8": "teacher, SentenceTransformer with OpenVINO, int8",
    "sd-bf16": "teacher, sd embed's, bfloat16",
    "sd-fp32": "teacher, sd embed's, float32",
    "model2vec": "model2vec of the teacher, StaticModel.encode",
    "model2vec-nanotoken": "model2vec of the teacher, its table over nanotoken's ids",
}
_OF_STUDENTS = ("sd-encode", "student-int8", "student-bf16", "student-fp32", "before", "before-int8")
_BFLOAT16 = ("student-bf16", "st-bf16", "openvino-bf16", "sd-bf16")
# Batch sizes of contenders that have one: SentenceTransformer's default, and a number of tokens for sd embed. Faster
# ways to run the teacher get the fastest of several sizes.
_BATCH_SIZES = {"st": 32, "sd-bf16": 4096, "sd-fp32": 4096}
_TUNED = ("st-bf16", "onnx-int8", "openvino-bf16", "openvino-int8")
_PROBED = 600
_REPEATS = 10
_SINGLE = 300
# This contender computes the vectors that the command writes, and also encodes the pairs.
_SAME_VECTORS = {"sd-encode": "student-int8"}


def contend(name: str, options: argparse.Namespace, teacher: Path, *arguments: str, **files: str) -> dict[str, Any]:
    """Run a contender once; return seconds and versions.

    Args:
        name: name of the contender.
        options: "student", "workdir", "peer_python" and "before_python".
        teacher: folder of the teacher.
        arguments: further arguments of encode_contender.py.
        files: names in the workdir for "text" and "pairs", instead of sentences.txt and pairs.txt.
    """
    python = sys.executable
    if name.startswith(("onnx", "openvino")):
        python = options.peer_python
    elif name.startswith("before"):
        python = options.before_python
    paths = (
        options.student,
        teacher,
        options.workdir / files.get("text", "sentences.txt"),
        options.workdir / files.get("pairs", "pairs.txt"),
        options.workdir,
    )
    command = [python, str(CONTENDER), "--name", name, *map(str, paths)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def batch_sizes(names: Sequence[str], options: argparse.Namespace, teacher: Path) -> dict[str, int]:
    """Return the batch size of each contender that has one: its default, or the fastest of several."""
    lines = (options.workdir / "sentences.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    probe = lines[:: max(1, len(lines) // _PROBED)][:_PROBED]
    (options.workdir / "probe.txt").write_text("".join(probe), encoding="utf-8")
    (options.workdir / "one.txt").write_text(lines[0], encoding="utf-8")

    def seconds(name: str, size: int) -> float:
        batch = ("--batch-size", str(size))
        return float(contend(name, options, teacher, *batch, text="probe.txt", pairs="one.txt")["wall_s"])

    sizes = {name: size for name, size in _BATCH_SIZES.items() if name in names}
    for name in [name for name in _TUNED if name in names]:
        sizes[name] = fastest_batch_size(partial(seconds, name))
    return sizes


def run_command(options: argparse.Namespace) -> dict[str, Any]:
    """Run `sd encode` over the repeated sentences; return the seconds for one copy."""
    out = options.workdir / "sd-encode.npy"
    command = [sys.executable, "-m", "sentence_distill.cli", "encode", "--student", str(options.student), "--overwrite"]
    # Otherwise a stopped run would be resumed, and only its rest be timed.
    shutil.rmtree(f"{out}.parts", ignore_errors=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([*command, "--input", str(options.workdir / "repeated.txt"), "--out", str(out)], check=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall / _REPEATS, "user_sys_s": cpu / _REPEATS, "versions": {}}


def quality(text: np.ndarray, pairs: np.ndarray, reference: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Measure agreement with the teacher's neighbors and similarities, and Spearman on STS-B."""
    unit = pairs / np.maximum(np.linalg.norm(pairs, axis=1, keepdims=True), 1e-9)
    first, second = np.split(unit, 2)
    mine, theirs = torch.from_numpy(text), torch.from_numpy(reference)
    return {
        "sts_spearman": round(float(spearmanr((first * second).sum(axis=1), scores).statistic), 4),
        "rank_agreement": round(paired_rank_agreement(mine, theirs), 4),
        **{name: round(recall, 4) for name, recall in recall_figures(mine, theirs).items()},
    }


def summary(
    results: list[dict[str, Any]], slowest: float, text: np.ndarray, pairs: np.ndarray, *truth: np.ndarray
) -> dict[str, Any]:
    """Return the figures of a contender: medians of its runs, and the quality of its vectors.

    Args:
        results: results of its runs; see `contend`.
        slowest: seconds of the reference for the ratio.
        text: float32[n, dim], vectors of the timed sentences.
        pairs: see `quality`, as for its last two arguments, `truth`.
    """
    wall, cpu = (statistics.median(run[key] for run in results) for key in ("wall_s", "user_sys_s"))
    return {
        "sentences_per_second": round(len(text) / wall, 1),
        "ratio": round(slowest / wall, 2),
        "sentences_per_cpu_second": round(len(text) / cpu, 1),
        **quality(text, pairs, *truth),
        "versions": results[0]["versions"],
    }


def read_pairs(file: Path) -> tuple[list[str], np.ndarray]:
    """Read STS-B; return all first sentences followed by all second ones, and the float32 scores of the pairs."""
    sts = load_sts(file)
    return [" ".join(text.split()) for column in sts.texts for text in column], np.array(sts.labels, dtype=np.float32)


def prepare(options: argparse.Namespace, teacher: Path) -> np.ndarray:
    """Write the files for the contenders; return the scores of the pairs."""
    options.workdir.mkdir(parents=True, exist_ok=True)
    lines = [line for line in options.text.read_text(encoding="utf-8").splitlines() if line.strip()]
    places = np.linspace(0, len(lines) - 1, options.sentences).astype(int)
    sentences = "".join(f"{lines[place]}\n" for place in places)
    (options.workdir / "sentences.txt").write_text(sentences, encoding="utf-8")
    (options.workdir / "repeated.txt").write_text(sentences * _REPEATS, encoding="utf-8")
    pairs, scores = read_pairs(options.sts)
    (options.workdir / "pairs.txt").write_text("".join(f"{pair}\n" for pair in pairs), encoding="utf-8")
    forget_made(options.workdir)
    make_static(teacher, options.workdir / "model2vec")
    return scores


def measure(
    name: str, student: str, options: argparse.Namespace, teacher: Path, size: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Encode the text once, and single sentences on one core."""
    folder = options.workdir / (student or "teacher")
    folder.mkdir(exist_ok=True)
    for file in ("sentences.txt", "pairs.txt", "repeated.txt", "model2vec"):
        if not (folder / file).exists():
            (folder / file).symlink_to((options.workdir / file).resolve())
    part = argparse.Namespace(**{**vars(options), "student": options.students.get(student, ""), "workdir": folder})
    if name in _SAME_VECTORS:
        return run_command(part), {}
    batch = ("--batch-size", str(size))
    return contend(name, part, teacher, *batch), contend(name, part, teacher, *batch, "--single", str(_SINGLE))


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("text", "sts", "workdir"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("students", nargs="+")
    parser.add_argument("--sentences", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--teacher", default="minilm")
    parser.add_argument("--peer-python")
    parser.add_argument("--before-python")
    options = parser.parse_args()
    options.students, options.student = {Path(name).name: locate_student(name) for name in options.students}, ""
    located = locate_teacher(options.teacher)
    scores = prepare(options, located.folder)
    names = [
        name
        for name in NAMES
        if (options.peer_python or not name.startswith(("onnx", "openvino")))
        and (options.before_python or not name.startswith("before"))
        and (name not in _BFLOAT16 or fast_in_bf16(torch.device("cpu"), (*TEACHER, *STUDENT)))
    ]
    contenders = [(name, student) for name in names for student in (options.students if name in _OF_STUDENTS else [""])]
    sizes = batch_sizes([name for name, student in contenders if not student], options, located.folder)
    runs: dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, Any]]]] = {of: [] for of in contenders}
    for number in range(options.rounds):
        for name, student in contenders:
            runs[name, student].append(measure(name, student, options, located.folder, sizes.get(name, 0)))
            rate = options.sentences / runs[name, student][-1][0]["wall_s"]
            print(f"round {number + 1}, {name} {student}: {rate:.1f}/s", flush=True)
    reference = np.load(options.workdir / "teacher" / "st.text.npy")
    slowest = statistics.median(whole["wall_s"] for whole, _ in runs["st", ""])
    rows = []
    for (name, student), results in runs.items():
        source = options.workdir / (student or "teacher") / _SAME_VECTORS.get(name, name)
        text, pairs = (np.load(source.with_name(f"{source.name}.{kind}.npy")) for kind in ("text", "pairs"))
        whole, single = zip(*results, strict=True)
        rows.append(
            {
                **({"student": student} if student else {}),
                "contender": NAMES[name],
                **({"batch": sizes[name]} if name in sizes else {}),
                **summary(list(whole), slowest, text, pairs, reference, scores),
                **{f"{part}_ms": round(statistics.median(one[part] for one in single), 3) for part in single[0]},
                "sentences_per_second_of_rounds": [round(options.sentences / run["wall_s"]) for run in whole],
            }
        )
    setting = {"sentences": options.sentences, "rounds": options.rounds, "teacher": located.name}
    write_result("encode_speed", setting, rows)


if __name__ == "__main__":
    main()
