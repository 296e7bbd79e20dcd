"""Costs of models: sentences per second, latency, start-up, memory and size, each model in a process of its own."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import load_sts
from sentence_distill.data.lines import sentences_of_file
from sentence_distill.data.options import command_line
from sentence_distill.pipeline.hardware import STUDENT, TEACHER, pick_precision
from sentence_distill.pipeline.load import Located
from sentence_distill.student.config import EvalConfig, SpeedConfig
from sentence_distill.student.environment import cores, environment
from sentence_distill.student.evaluate import free_name
from sentence_distill.student.figures import (
    SPEED,
    Environment,
    Latency,
    Rates,
    SpeedRecord,
    Timed,
    figures_file,
    models_of,
    sts_file,
    write_figures,
)
from sentence_distill.student.files import is_student, load_distillation
from sentence_distill.student.models import find_model, find_teacher, in_torch, megabytes, parameters, short_names
from sentence_distill.student.reference import SENTENCES, own_shards, sentences_of_shards
from sentence_distill.student.speed_worker import LONGEST_S, Contender

LENGTHS = (8, 16, 32, 64)
_TEXTS_OF_A_LENGTH = 32
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def measure_speed(config: EvalConfig, speed: SpeedConfig) -> SpeedRecord:
    """Time models as `sd eval --speed` does, all with the same sentences, and write speed.json.

    Nothing is merged with earlier figures: only models that took turns can be compared.

    Raises:
        UserError: there is no model or no sentence, or none of the models could be timed.
    """
    named, file = models_of(config), figures_file(config, SPEED)
    sentences = _sentences(config, speed, named)
    located = [find_model(model) for model in named]
    sts = sts_file(config)
    pairs = load_sts(sts) if sts else None
    contenders, skipped = gather(located, short_names(named), config.teacher)
    results: dict[str, Result] = {}
    for contender, folder in contenders:
        try:
            costs = Timed(
                model=contender.model,
                timed_as=contender.timed_as,
                parameters=parameters(folder),
                megabytes=megabytes(folder),
            )
            results[contender.name] = Result(contender, costs)
        except UserError as error:
            skipped[contender.name] = str(error)
    texts: dict[str, Any] = {"sentences": sentences, "batch_sizes": sorted(set(speed.batch_sizes)), "by_length": {}}
    tokenizer = next(located[0].folder.rglob("tokenizer.json"), None)
    if tokenizer is None:
        skipped["speed by length"] = f"{named[0]} has no tokenizer.json to cut sentences with"
    else:
        texts["by_length"] = cut_to_lengths(Tokenizer.from_file(str(tokenizer)), sentences)
    texts["pairs"] = pairs and {"texts": pairs.texts, "scores": [float(score) for score in pairs.labels]}
    threads = speed.threads or tuple(sorted({1, cores()}))
    with tempfile.TemporaryDirectory() as temporary:
        shared = Path(temporary) / "texts.json"
        shared.write_text(json.dumps(texts), encoding="utf-8")
        for number in threads:
            # Quality does not depend on threads: it is measured once, with the most.
            _race(
                results, number, speed.rounds, shared, skipped, with_pairs=pairs is not None and number == threads[-1]
            )
    if not results:
        reasons = "; ".join(f"{what}: {why}" for what, why in skipped.items())
        raise UserError(f"nothing could be timed, and nothing was written ({reasons})")
    for result in results.values():
        result.summarize(texts, skipped)
    record = SpeedRecord(
        contenders={name: result.costs for name, result in results.items()},
        threads=list(threads),
        skipped=skipped,
        sentences=len(sentences),
        rounds=speed.rounds,
        sts_pairs=len(pairs.labels) if pairs else None,
        environment=msgspec.convert(environment(), Environment),
        command=f"{command_line('eval', config)} --speed{command_line('', speed).removeprefix('sd')}",
    )
    write_figures(file, record)
    return record


def _sentences(config: EvalConfig, speed: SpeedConfig, named: Sequence[str]) -> list[str]:
    if speed.sentences:
        return sentences_of_file(speed.sentences, SENTENCES)
    shards = config.shards
    for student in filter(is_student, named):
        shards = shards or own_shards(load_distillation(Path(student)), Path(student))
    if shards is None:
        raise UserError("which sentences to encode? name some with --shards, or a text file with --sentences")
    return sentences_of_shards(shards)


def gather(
    models: Sequence[Located], names: Sequence[str], teacher: str | None
) -> tuple[list[tuple[Contender, Path]], dict[str, str]]:
    """List the ways in which models are timed: a student by ONNX Runtime and by PyTorch, and its teacher.

    Args:
        models: what `find_model` found.
        names: of them.
        teacher: where the first student's teacher is, see `find_teacher`.

    Returns:
        Contenders, each with the folder of its weights, no two of one name; and which are missing, with the reason.
    """
    cpu = torch.device("cpu")
    found: list[tuple[Contender, Path]] = []
    skipped: dict[str, str] = {}
    of_teacher: list[tuple[Contender, Path]] = []
    for located, name in zip(models, names, strict=True):
        folder = str(located.folder)
        if not is_student(folder):
            precision = in_torch(pick_precision("auto", cpu, (*TEACHER, *STUDENT)))
            found.append((Contender(model=name, folder=folder, runner="other", timed_as=precision), located.folder))
            continue
        # As sd encode runs it, then by PyTorch.
        onnx = Contender(model=name, folder=folder, runner="onnx", timed_as="int8 in ONNX Runtime")
        by_torch = replace(onnx, runner="torch", timed_as=in_torch(torch.float32))
        found += [(onnx, located.folder), (by_torch, located.folder)]
        if not of_teacher and "teacher" not in skipped:
            own, precision = free_name("teacher", names), in_torch(pick_precision("auto", cpu, TEACHER))
            try:
                place = find_teacher(load_distillation(located.folder), teacher).folder
                contender = replace(onnx, model=own, runner="teacher", timed_as=precision, teacher=teacher)
                of_teacher.append((contender, place))
            except UserError as error:
                skipped[own] = str(error)
    return found + of_teacher, skipped


def cut_to_lengths(tokenizer: Tokenizer, sentences: Sequence[str]) -> dict[int, list[str]]:
    """Cut texts of exactly 8, 16, 32 and 64 tokens, special ones not counted; at most 32 of each.

    Each is some sentences in a row, cut after a token; sentences are used again if they are too few.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    by_length: dict[int, list[str]] = {}
    for length in LENGTHS:
        cuts: list[str] = []
        joined = ""
        # A token is one character at least: so many sentences make all the texts that are wanted.
        for number in range(length * _TEXTS_OF_A_LENGTH):
            joined = f"{joined} {sentences[number % len(sentences)]}".strip()
            offsets = tokenizer.encode(joined, add_special_tokens=False).offsets
            if len(offsets) >= length:
                cuts.append(joined[: offsets[length - 1][1]])
                joined = ""
            if len(cuts) == _TEXTS_OF_A_LENGTH:
                break
        # Cut inside a word, a text may have another number of tokens than was counted.
        if texts := [cut for cut in cuts if len(tokenizer.encode(cut, add_special_tokens=False).ids) == length]:
            by_length[length] = texts
    return by_length


@dataclass
class Result:
    """What is known of one contender."""

    contender: Contender
    costs: Timed
    rounds: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """By number of threads, what `speed_worker.one_round` gave each time."""

    def summarize(self, texts: dict[str, Any], skipped: dict[str, str]) -> None:
        """Turn rounds into figures; what took too long to measure is listed in `skipped`."""
        for threads, rounds in self.rounds.items():
            latency = [milliseconds for one in rounds for milliseconds in one["latency_ms"]]
            p50, p99 = (float(percentile) for percentile in np.percentile(latency, [50, 99]))
            medians: dict[str, dict[int, float]] = {}
            for by, what, wanted in (
                ("by_batch", "sentences per call", texts["batch_sizes"]),
                ("by_length", "tokens per sentence", texts["by_length"]),
            ):
                kept = [key for key in wanted if all(str(key) in one[by] for one in rounds)]
                medians[by] = {int(key): statistics.median(one[by][str(key)] for one in rounds) for key in kept}
                if missing := [str(key) for key in wanted if key not in kept]:
                    skipped[f"{self.contender.name}, threads {threads}: {', '.join(missing)} {what}"] = (
                        f"one call would take over {LONGEST_S:.0f} s"
                    )
            self.costs.threads[threads] = Rates(**medians, latency_ms=Latency(p50, p99))


def _race(
    results: dict[str, Result], threads: int, rounds: int, texts: Path, skipped: dict[str, str], *, with_pairs: bool
) -> None:
    """Start all contenders, let them take turns, and end them; one that fails is moved to `skipped`."""
    workers: dict[str, Worker] = {}

    def start(result: Result) -> None:
        worker = stack.enter_context(Worker(replace(result.contender, threads=threads), texts))
        workers[result.contender.name] = worker
        result.costs.dim, result.costs.startup_seconds = worker.dim, worker.startup_seconds

    def measure(result: Result) -> None:
        answer = workers[result.contender.name].ask(len(result.rounds.setdefault(threads, [])))
        result.costs.peak_megabytes = answer.pop("peak_megabytes")
        result.rounds[threads].append(answer)

    def score(result: Result) -> None:
        result.costs.sts_spearman = workers[result.contender.name].ask("sts")["sts_spearman"]

    turns: list[Callable[[Result], None]] = [start, *[measure] * rounds, *[score] * with_pairs]
    title = f"{threads} thread{'s' if threads > 1 else ''}"
    with ExitStack() as stack, progress.task(title, len(turns) * len(results), "turns") as advance:
        for turn in turns:
            for name, result in list(results.items()):
                try:
                    turn(result)
                except UserError as error:
                    skipped[name] = str(error)
                    del results[name]
                advance(1, name)


class Worker:
    """A process that runs one contender and idles while it is not asked; a context manager, which ends it."""

    def __init__(self, contender: Contender, texts: Path) -> None:
        """Start the process and wait for its first vector.

        Args:
            contender: what to run.
            texts: JSON file of what it will encode.

        Raises:
            UserError: the model could not be loaded.
        """
        variables = dict.fromkeys(_THREADS, str(contender.threads))
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sentence_distill.student.speed_worker", contender.to_json(), str(texts)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **variables},
        )
        try:
            self.dim = int(self._answer()["dim"])
        except BaseException:
            self.__exit__()
            raise
        self.startup_seconds = time.perf_counter() - started

    def ask(self, request: int | str) -> dict[str, Any]:
        """Let it measure, see `speed_worker.main`.

        Raises:
            UserError: the process is gone; with the last thing that it said.
        """
        assert self._process.stdin is not None
        # If the process is gone, what it said is read below.
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
