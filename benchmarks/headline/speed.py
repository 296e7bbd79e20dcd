"""Speed and fidelity of students of several sizes, their teacher and a static model, all in one run.

usage: python benchmarks/headline/speed.py SHARDS STS WORKDIR SIZE [SIZE…] [--sentences 4000] [--rounds 3]
                                           [--teacher minilm] [--peer-python ENV/bin/python]

WORKDIR/SIZE is a student with its int8 export in SIZE/onnx. The sentences are held-out ones of the shards; STS is
STS-B's dev.tsv. Each contender encodes them in its own process, once per round, and in another process single sentences
on one core; medians are reported. Writes WORKDIR/speed.json, unless it exists for the same exports and contenders.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import xxhash
from encode_speed import NAMES, batch_sizes, contend, read_pairs, summary
from peers import make_static
from record import forget_made

from sentence_distill.pipeline.load import locate_teacher
from sentence_distill.student.dataset import ShardStream
from sentence_distill.student.figures import Environment

_OF_A_STUDENT = ("student-int8", "student-bf16")
_OF_THE_TEACHER = ("st", "sd-bf16", "model2vec")
_OF_PEERS = ("openvino-int8", "onnx-int8")
_HELD_OUT = 0.01
_SINGLE, _PARTS = 200, ("p50", "p99")


def prepare(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Path], np.ndarray]:
    """Make a folder per size and one for the teacher, with the contenders' files; return them and the pairs' scores."""
    stream = ShardStream(options.shards, held_out=_HELD_OUT)
    texts = stream.held_out_texts(options.sentences)
    assert texts, "the shards keep no text"
    pairs, scores = read_pairs(options.sts)
    files = {"sentences.txt": texts, "pairs.txt": pairs}
    folders = {name: options.workdir / "speed" / name for name in (*options.sizes, "teacher")}
    for place in folders.values():
        place.mkdir(parents=True, exist_ok=True)
        for file, lines in files.items():
            (place / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        forget_made(place)
    make_static(folder, folders["teacher"] / "model2vec")
    return folders, scores


def subject(options: argparse.Namespace, contenders: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the identity of a run: the checksum of each size's export, and the contenders."""
    exports = {size: (options.workdir / size / "onnx" / "model.onnx").read_bytes() for size in options.sizes}
    return {
        "exports": {size: xxhash.xxh3_64_hexdigest(export) for size, export in exports.items()},
        "contenders": [" ".join(contender) for contender in contenders],
    }


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("shards", "sts", "workdir"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("sizes", nargs="+")
    parser.add_argument("--sentences", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--teacher", default="minilm")
    parser.add_argument("--peer-python")
    options = parser.parse_args()
    teacher = locate_teacher(options.teacher).folder
    contenders = [(size, name) for size in options.sizes for name in _OF_A_STUDENT]
    contenders += [("teacher", name) for name in (*_OF_THE_TEACHER, *(_OF_PEERS if options.peer_python else ()))]
    written, of = options.workdir / "speed.json", subject(options, contenders)
    if written.exists() and json.loads(written.read_text(encoding="utf-8")).get("of") == of:
        return
    folders, scores = prepare(options, teacher)
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {contender: [] for contender in contenders}
    single: dict[tuple[str, str], list[dict[str, Any]]] = {contender: [] for contender in contenders}
    of_teacher = argparse.Namespace(**{**vars(options), "student": teacher, "workdir": folders["teacher"]})
    sizes = batch_sizes([name for model, name in contenders if model == "teacher"], of_teacher, teacher)
    for number in range(options.rounds):
        for model, name in contenders:
            student = options.workdir / model
            part = argparse.Namespace(**{**vars(options), "student": student, "workdir": folders[model]})
            size = str(sizes.get(name, 0))
            runs[model, name].append(contend(name, part, teacher, "--batch-size", size))
            single[model, name].append(contend(name, part, teacher, "--batch-size", size, "--single", str(_SINGLE)))
            print(f"round {number + 1}, {model}, {name}: {runs[model, name][-1]['wall_s']:.2f} s", flush=True)
    reference = np.load(folders["teacher"] / "st.text.npy")
    slowest = statistics.median(run["wall_s"] for run in runs["teacher", "st"])
    rows = []
    for (model, name), results in runs.items():
        vectors = (np.load(folders[model] / f"{name}.{kind}.npy") for kind in ("text", "pairs"))
        rows.append(
            {
                "model": model,
                "contender": NAMES[name],
                **summary(results, slowest, *vectors, reference, scores),
                **({"batch": sizes[name]} if name in sizes else {}),
                **{
                    f"{part}_ms": round(statistics.median(run[part] for run in single[model, name]), 3)
                    for part in _PARTS
                },
                "seconds_of_rounds": [round(run["wall_s"], 3) for run in results],
            }
        )
    found = {
        "sentences": len(reference),
        "rounds": options.rounds,
        "environment": msgspec.to_builtins(Environment.here()),
        "of": of,
        "rows": rows,
    }
    written.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
