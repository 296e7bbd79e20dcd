"""The process in which `sd eval --speed` times a model; it imports only what that model needs."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Encode = Callable[[Sequence[str]], Any]
_SINGLE_CALLS = 64
_FEWEST_SENTENCES = 128
# Calls are repeated for at least this long.
_SECONDS = 0.2
LONGEST_S = 5.0
"""Maximum seconds of a measurement: slow calls are not repeated, and a call that would take longer is left out."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model that is run in one way."""

    model: str
    folder: str
    """Folder of the model; for a teacher, that of its student."""
    weights: str
    """Folder of the model's weights."""
    runner: Literal["onnx", "torch", "teacher", "other"]
    """Student in ONNX Runtime or PyTorch, teacher of a student, or other sentence-transformers model."""
    timed_as: str
    """Dtype and runtime, such as "int8 in ONNX Runtime"."""
    teacher: str | None = None
    """Teacher's folder or name, if the user has given it."""

    @property
    def name(self) -> str:
        """Name in tables and files."""
        return f"{self.model} ({self.timed_as})"

    def load(self, threads: int = 1) -> Encode:
        """Load the model as a function from sentences to vectors."""
        folder = Path(self.folder)
        # Imported here, because startup time is measured, and a student in ONNX Runtime needs no PyTorch.
        if self.runner == "onnx":
            from sentence_distill.student.onnx_graph import int8_student

            return int8_student(folder, threads).encode
        if self.runner == "torch":
            from sentence_distill.student.model import load_student

            return load_student(folder).encode
        from sentence_distill.pipeline.load import Located
        from sentence_distill.student.figures import load_distillation
        from sentence_distill.student.models import open_model, open_teacher

        if self.runner == "teacher":
            return open_teacher(load_distillation(folder), self.teacher, self.model).timed
        return open_model(Located(folder, self.model), self.model).timed


def one_round(
    encode: Encode,
    number: int,
    *,
    sentences: Sequence[str],
    batch_sizes: Sequence[int],
    by_length: dict[str, list[str]],
) -> dict[str, Any]:
    """Measure single sentences, then the batch sizes in ascending order, then texts of each number of tokens.

    Each round uses other sentences, chosen by its number. Returns "latency_ms" of each call with one sentence, and
    sentences per second "by_batch" and "by_length".
    """

    def calls(size: int, count: int) -> list[list[str]]:
        places = range(number * size * count, (number + 1) * size * count)
        of_round = [sentences[place % len(sentences)] for place in places]
        return [of_round[first : first + size] for first in range(0, size * count, size)]

    rates: dict[int, float] = {}
    latency = _times(encode, calls(1, _SINGLE_CALLS))
    rate = len(latency) / sum(latency)
    for size in batch_sizes:
        if size / rate > LONGEST_S:
            break
        if size > 1:
            times = _times(encode, calls(size, -(-_FEWEST_SENTENCES // size)))
            rate = size * len(times) / sum(times)
        rates[size] = rate
    lengths: dict[str, float] = {}
    seconds_per_token = 0.0
    for length, texts in by_length.items():
        if seconds_per_token * int(length) * len(texts) > LONGEST_S:
            break
        times = _times(encode, [texts])
        lengths[length] = len(texts) * len(times) / sum(times)
        seconds_per_token = 1 / lengths[length] / int(length)
    return {"latency_ms": [1000 * seconds for seconds in latency], "by_batch": rates, "by_length": lengths}


def _times(encode: Encode, calls: list[list[str]]) -> list[float]:
    """Time each call in seconds, repeating all of them until the total is long enough to be meaningful."""
    times: list[float] = []
    while sum(times) < _SECONDS:
        for call in calls:
            started = time.perf_counter()
            encode(call)
            times.append(time.perf_counter() - started)
            if sum(times) > LONGEST_S:
                return times
    return times


def peak_megabytes() -> float:
    """Return the peak resident memory of this process."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    except (OSError, StopIteration):
        # Not used on Linux, where it would include the peak of the parent process before exec.
        unit = 1e6 if sys.platform == "darwin" else 1e6 / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Load the model, report its width, and answer each line of standard input: the number of a round, or "sts"."""
    # Libraries may print to standard output, which must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    contender, threads, file = sys.argv[1:]
    encode = Contender(**json.loads(contender)).load(int(threads))
    print(json.dumps({"dim": encode(["One sentence to begin with."]).shape[1]}), file=answers)
    texts = json.loads(Path(file).read_text(encoding="utf-8"))
    pairs = texts.pop("pairs")
    for line in sys.stdin:
        if (asked := json.loads(line)) == "sts":
            from sentence_distill.student.metrics import sts_spearman

            answer: dict[str, Any] = {"sts_spearman": sts_spearman(encode, pairs["texts"], pairs["scores"])}
        else:
            answer = {**one_round(encode, asked, **texts), "peak_megabytes": peak_megabytes()}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
