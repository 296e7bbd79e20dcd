"""`sd eval --speed`: throughput, latency, startup time, memory and size of models, each in its own process."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import load_sts
from sentence_distill.data.lines import sentences_of_file
from sentence_distill.data.options import command_line
from sentence_distill.data.progress import counted
from sentence_distill.pipeline.hardware import STUDENT, TEACHER, pick_precision
from sentence_distill.pipeline.load import Located
from sentence_distill.pipeline.processes import cores
from sentence_distill.student.config import EvalConfig, SpeedConfig
from sentence_distill.student.figures import (
    SPEED,
    Environment,
    Latency,
    Rates,
    SpeedRecord,
    Timed,
    figures_file,
    load_distillation,
    models_of,
    write_figures,
)
from sentence_distill.student.files import is_student
from sentence_distill.student.models import (
    SENTENCES,
    find_model,
    find_teacher,
    free_name,
    in_torch,
    megabytes,
    parameters,
    sentences_of_shards,
    shards_of,
    short_names,
)
from sentence_distill.student.speed_worker import LONGEST_S, Contender

LENGTHS = (8, 16, 32, 64)
_TEXTS_OF_A_LENGTH = 32
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def measure_speed(config: EvalConfig, speed: SpeedConfig) -> SpeedRecord:
    """Time models on the same sentences, as `sd eval --speed` does, and write speed.json.

    Earlier figures are not merged, because only models that took turns are comparable.
    """
    named, file = models_of(config), figures_file(config, SPEED)
    located = [find_model(model) for model in named]
    if speed.sentences:
        sentences = sentences_of_file(speed.sentences, SENTENCES)
    else:
        sentences = sentences_of_shards(config.shards or shards_of(found.folder for found in located))
    pairs = load_sts(config.sts_file) if config.sts_file else None
    contenders, skipped = gather(located, short_names(named), config.teacher)
    costs: dict[Contender, Timed] = {}
    for contender in contenders:
        weights = Path(contender.weights)
        try:
            costs[contender] = Timed(
                model=contender.model,
                timed_as=contender.timed_as,
                parameters=parameters(weights),
                megabytes=megabytes(weights),
            )
        except UserError as error:
            skipped[contender.name] = str(error)
    texts: dict[str, Any] = {"sentences": sentences, "batch_sizes": sorted(set(speed.batch_sizes)), "by_length": {}}
    tokenizer = next(located[0].folder.rglob("tokenizer.json"), None)
    if tokenizer is None:
        skipped["speed by length"] = f"{named[0]} has no tokenizer.json to cut sentences with"
    else:
        texts["by_length"] = cut_to_lengths(Tokenizer.from_file(str(tokenizer)), sentences)
    texts["pairs"] = pairs and {"texts": pairs.texts, "scores": pairs.labels}
    threads = speed.threads or tuple(sorted({1, cores()}))
    with tempfile.TemporaryDirectory() as temporary:
        shared = Path(temporary) / "texts.json"
        shared.write_text(json.dumps(texts), encoding="utf-8")
        for number in threads:
            # STS-B does not depend on threads, so it is measured once, with the largest number.
            with_pairs = pairs is not None and number == threads[-1]
            rounds = _race(costs, number, speed.rounds, shared, skipped, with_pairs=with_pairs)
            for contender in costs:
                what = f"{contender.name}, threads {number}"
                costs[contender].threads[number] = _summarize(rounds[contender], texts, what, skipped)
    if not costs:
        reasons = "; ".join(f"{what}: {why}" for what, why in skipped.items())
        raise UserError(f"nothing could be timed, and nothing was written ({reasons})")
    record = SpeedRecord(
        contenders={contender.name: timed for contender, timed in costs.items()},
        threads=list(threads),
        skipped=skipped,
        sentences=len(sentences),
        rounds=speed.rounds,
        sts_pairs=len(pairs.labels) if pairs else None,
        environment=Environment.here(),
        command=command_line("eval", config, "--speed", speed),
    )
    write_figures(file, record)
    return record


def gather(
    models: Sequence[Located], names: Sequence[str], teacher: str | None
) -> tuple[list[Contender], dict[str, str]]:
    """List the contenders: each student in ONNX Runtime and in PyTorch, other models, and the first student's teacher.

    Returns contenders with distinct names, and the missing ones with the reasons.
    """
    cpu = torch.device("cpu")
    found: list[Contender] = []
    skipped: dict[str, str] = {}
    of_teacher: Contender | None = None
    for located, name in zip(models, names, strict=True):
        folder = str(located.folder)
        if not is_student(folder):
            precision = in_torch(pick_precision("auto", cpu, (*TEACHER, *STUDENT)))
            found.append(Contender(model=name, folder=folder, weights=folder, runner="other", timed_as=precision))
            continue
        # First the runtime of sd encode, then PyTorch.
        onnx = Contender(model=name, folder=folder, weights=folder, runner="onnx", timed_as="int8 in ONNX Runtime")
        found += [onnx, replace(onnx, runner="torch", timed_as=in_torch(torch.float32))]
        own = free_name("teacher", names)
        if of_teacher is None and own not in skipped:
            try:
                weights = str(find_teacher(load_distillation(located.folder), teacher).folder)
                of_teacher = replace(
                    onnx,
                    model=own,
                    weights=weights,
                    runner="teacher",
                    timed_as=in_torch(pick_precision("auto", cpu, TEACHER)),
                    teacher=teacher,
                )
            except UserError as error:
                skipped[own] = str(error)
    return found + ([of_teacher] if of_teacher else []), skipped


def cut_to_lengths(tokenizer: Tokenizer, sentences: Sequence[str]) -> dict[int, list[str]]:
    """Make texts of exactly 8, 16, 32 and 64 tokens, without special tokens; at most 32 of each length.

    Each text consists of consecutive sentences, cut after a token; sentences are reused if there are too few.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    by_length: dict[int, list[str]] = {}
    for length in LENGTHS:
        cuts: list[str] = []
        joined = ""
        # Each sentence has at least one token, so this many suffice for all texts.
        for number in range(length * _TEXTS_OF_A_LENGTH):
            joined = f"{joined} {sentences[number % len(sentences)]}".strip()
            offsets = tokenizer.encode(joined, add_special_tokens=False).offsets
            if len(offsets) >= length:
                cuts.append(joined[: offsets[length - 1][1]])
                joined = ""
            if len(cuts) == _TEXTS_OF_A_LENGTH:
                break
        # A text that is cut inside a word may have a different number of tokens.
        if texts := [cut for cut in cuts if len(tokenizer.encode(cut, add_special_tokens=False).ids) == length]:
            by_length[length] = texts
    return by_length


def _race(
    costs: dict[Contender, Timed], threads: int, rounds: int, texts: Path, skipped: dict[str, str], *, with_pairs: bool
) -> dict[Contender, list[dict[str, Any]]]:
    """Start all contenders, let them take turns, and end them; those that fail are moved to `skipped`.

    Returns the results of `speed_worker.one_round`, by contender and round.
    """
    workers: dict[Contender, Worker] = {}
    answers: dict[Contender, list[dict[str, Any]]] = {contender: [] for contender in costs}

    def take(turn: int | str, contender: Contender) -> None:
        timed = costs[contender]
        if turn == "start":
            workers[contender] = worker = stack.enter_context(Worker(contender, threads, texts))
            timed.dim, timed.startup_seconds = worker.dim, worker.startup_seconds
        elif turn == "sts":
            timed.sts_spearman = workers[contender].ask(turn)["sts_spearman"]
        else:
            answer = workers[contender].ask(turn)
            timed.peak_megabytes = answer.pop("peak_megabytes")
            answers[contender].append(answer)

    turns = ["start", *range(rounds), *["sts"] * with_pairs]
    title = counted(threads, "thread")
    with ExitStack() as stack, progress.task(title, len(turns) * len(costs), "turns") as advance:
        for turn in turns:
            for contender in list(costs):
                try:
                    take(turn, contender)
                except UserError as error:
                    skipped[contender.name] = str(error)
                    del costs[contender]
                advance(1, contender.name)
    return answers


def _summarize(rounds: list[dict[str, Any]], texts: dict[str, Any], name: str, skipped: dict[str, str]) -> Rates:
    """Summarize the rounds of a contender; measurements that would take too long go to `skipped`."""
    latency = [milliseconds for one in rounds for milliseconds in one["latency_ms"]]
    medians: dict[str, dict[int, float]] = {}
    for by, what, wanted in (
        ("by_batch", "sentences per call", texts["batch_sizes"]),
        ("by_length", "tokens per sentence", texts["by_length"]),
    ):
        kept = [key for key in wanted if all(str(key) in one[by] for one in rounds)]
        medians[by] = {key: statistics.median(one[by][str(key)] for one in rounds) for key in kept}
        if missing := [str(key) for key in wanted if key not in kept]:
            skipped[f"{name}: {', '.join(missing)} {what}"] = f"one call would take over {LONGEST_S:.0f} s"
    return Rates(**medians, latency_ms=Latency(*map(float, np.percentile(latency, [50, 99]))))


class Worker:
    """Process that runs one contender, and idles between requests; as a context manager, it ends the process."""

    def __init__(self, contender: Contender, threads: int, texts: Path) -> None:
        """Start the process and wait for its first vector; `texts` is a JSON file with the texts to encode."""
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        started = time.perf_counter()
        arguments = [json.dumps(asdict(contender)), str(threads), str(texts)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sentence_distill.student.speed_worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **dict.fromkeys(_THREADS, str(threads))},
        )
        try:
            self.dim = int(self._answer()["dim"])
        except BaseException:
            self.__exit__()
            raise
        self.startup_seconds = time.perf_counter() - started

    def ask(self, request: int | str) -> dict[str, Any]:
        """Send a request (see `speed_worker.main`); if the process has died, raise the last line of its errors."""
        assert self._process.stdin is not None
        # If the process has died, `_answer` raises its error.
        with suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)  # type: ignore[no-any-return]
        code = self._process.wait()
        if code < 0:
            raise UserError(f"its process was ended by signal {-code}; is memory short?")
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines() or [f"its process ended with code {code}"]
        raise UserError(said[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: "))

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()
