"""Distil a task: fine-tune a teacher on labels, embed the task's text with it, and train a student on what it gives.

The student learns first the vectors of the teacher's layers, then its logits (Tang et al. 2019, arXiv:1903.12136),
then the labels; dev picks. Each stage has a folder named after all that it depends on, so a run that was stopped
resumes, and one with other options repeats only what they change.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.options import command_line
from sentence_distill.pipeline.files import write_json
from sentence_distill.pipeline.hardware import FINETUNING, pick_device, pick_precision
from sentence_distill.pipeline.load import Located, locate_teacher
from sentence_distill.pipeline.manifest import require_manifest
from sentence_distill.student.classifier import StudentClassifier, TaskModel, TeacherClassifier, load_classifier
from sentence_distill.student.config import FinetuneConfig, TrainConfig
from sentence_distill.student.figures import (
    DISTILLATION,
    Environment,
    Outcome,
    Scores,
    load_distillation,
    main_score,
)
from sentence_distill.student.files import TASK, is_student, module_weights
from sentence_distill.student.finetune import STUDENT, TEACHER, Finetuned, Fitter, constant, fit_student
from sentence_distill.student.model import Student, load_student
from sentence_distill.student.models import find_model
from sentence_distill.student.task_data import Labelled, TaskData, from_logits
from sentence_distill.student.task_teacher import TEACHER_SEED, TaskTeacher
from sentence_distill.student.train import train_student

# Version of the recipe, recorded with GLUE's results: count it up with a change that gives other weights.
RECIPE = 1
# A student learns far longer from logits than from labels: there is more text, and no overfitting seen.
LOGIT_EPOCHS, LOGIT_STEPS = 20, 4000
_VECTOR_EPOCHS = 6
# Texts that stage two needs at least, to hold some out.
_FEWEST_VECTORS = 200
_VECTOR_BATCH = TrainConfig.batch_size
# The labels come last and correct; a large step would undo what the logits taught.
_LABEL_RATE = 3e-4
# Shares of --max-time that fine-tuning the teacher may take, and that and embedding together.
_TEACHER_SHARE, _EMBEDDED_SHARE = 0.4, 0.6
# No limit of time makes a stage shorter: fewer steps teach nothing.
_LEAST_STEPS = 100
# Batches of a stage that are timed for the plan.
_TIMED_BATCHES = 6
_TIMED_TEXTS = 512


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths of a recipe's stages; None is the length without a limit of time."""

    teacher_steps: int | None = None
    most_texts: int | None = None
    """Maximum number of texts that the teacher embeds."""
    vector_steps: int | None = None
    logit_steps: int | None = None
    label_steps: int | None = None
    seconds: dict[str, float] = {}
    """Estimated time of each stage."""


_UNLIMITED = Plan()


@dataclass(frozen=True)
class Row:
    """One line of the table at the end."""

    title: str
    scores: Scores
    seconds: float | None = None
    """Time of training; None if there was none."""
    sentences_per_second: float | None = None


@dataclass(frozen=True)
class Distilled:
    """The student that dev picked, and all models that were made on the way."""

    finetuned: Finetuned
    rows: list[Row]


def distil_task(config: FinetuneConfig, data: TaskData, place: Path) -> Distilled:
    """Run the whole recipe of `sd finetune --teacher`; `place` is the folder of its stages."""
    assert config.teacher is not None
    student = find_model(config.model)
    if not is_student(str(student.folder)):
        raise UserError(f"--teacher is what a student learns from, and {config.model} is none")
    device = pick_device(config.device)
    precision = pick_precision("auto", device, FINETUNING)
    fitter = Fitter(STUDENT.given(config.finetuning), device, precision)
    teacher_config = replace(TEACHER, frozen_layers=config.finetuning.frozen_layers)
    teacher = TaskTeacher(
        locate_teacher(config.teacher),
        place,
        Fitter(teacher_config, device, precision),
        config.synthetic,
        config.unlabeled,
        config.text_column,
    )
    progress.log(f"stages are kept in {place}; those that are there are not repeated")
    started = time.monotonic()
    plan = _plan(config, data, teacher, fitter, student.folder)
    teacher = replace(teacher, fitter=_limited(teacher.fitter, plan.teacher_steps), most_texts=plan.most_texts)
    recipe = TaskRecipe(student.folder, teacher, fitter, data, config.seed, config.device, plan)
    with _stage("student on labels alone", plan, recipe.took):
        alone = recipe.on_labels()
    with _stage("teacher's fine-tuning", plan, recipe.took):
        folder, of_teacher = teacher.finetuned(data)
    made = {"labels alone": alone, **recipe.distilled()}
    rows = [Row("majority class" if data.task.labels else "mean of the scores", constant(data)[1])]
    rows += [
        Row(f"student, {title}", each.outcome.scores, each.outcome.seconds, _speed(fitter, each.model, data))
        for title, each in made.items()
    ]
    model = TeacherClassifier.load(Located(folder, teacher.located.name), data.task, TEACHER_SEED)
    rows.append(Row("teacher, fine-tuned", of_teacher.scores, of_teacher.seconds, _speed(fitter, model, data)))
    table = {
        "environment": Environment.here(),
        "command": command_line("finetune", config),
        "plan": plan,
        "took": recipe.took,
        "rows": rows,
    }
    write_json(teacher.place(data) / "table.json", msgspec.to_builtins(table))
    progress.log(f"took {_minutes(time.monotonic() - started)}, planned {_minutes(sum(plan.seconds.values()))}")
    return Distilled(max(made.values(), key=lambda each: main_score(each.outcome.scores)), rows)


@dataclass(frozen=True)
class TaskRecipe:
    """The student's stages of one task with one teacher and seed."""

    student: Path
    teacher: TaskTeacher
    fitter: Fitter
    """The student's, as for labels."""
    data: TaskData
    seed: int
    device: str
    plan: Plan = _UNLIMITED
    took: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage so far; of one that was there already nearly none."""

    def on_labels(self) -> Finetuned:
        """Return the student fine-tuned on the labels alone, which distillation has to beat."""
        fitter = _limited(self.fitter, self.plan.label_steps)
        return self._saved(
            "labels",
            self.student,
            [*_weights(self.student), repr(fitter.config)],
            lambda: fit_student(load_student(self.student), self.data, self.data.train, self.seed, fitter),
        )

    def distilled(self) -> dict[str, Finetuned]:
        """Return the student that learned vectors and logits, and the one that then learned the labels."""
        with _stage("embedding", self.plan, self.took):
            targets = self.teacher.targets(self.data)
            logits = from_logits(targets.logits, self.data)
        with _stage("student on vectors", self.plan, self.took):
            student = self._on_vectors(targets.vectors)
        with _stage("student on logits", self.plan, self.took):
            distilled = self._on_logits(student, logits, require_manifest(targets.logits).fingerprint.plan)
        with _stage("student on labels, last", self.plan, self.took):
            corrected = self._corrected(distilled)
        return {"vectors, logits": distilled, "vectors, logits, labels": corrected}

    def _on_vectors(self, shards: Path) -> Path:
        """Return the folder of the student that learned the vectors of the teacher's layers."""
        manifest = require_manifest(shards)
        fingerprint, steps = manifest.fingerprint, self.plan.vector_steps
        if manifest.totals.rows < _FEWEST_VECTORS:
            progress.log(f"{manifest.totals.rows} different texts are too few to learn vectors from; only logits are")
            return self.student
        key = self._key([fingerprint.plan, *_weights(self.student), f"{_VECTOR_EPOCHS} {steps}"])
        folder = self.teacher.place(self.data) / f"student-vectors-{key}"
        if not (folder / DISTILLATION).exists():
            train_student(
                TrainConfig(
                    shards=shards,
                    out=folder,
                    init=str(self.student),
                    epochs=_VECTOR_EPOCHS,
                    max_steps=steps,
                    seed=self.seed,
                    device=self.device,
                )
            )
        return folder

    def _on_logits(self, student: Path, logits: Labelled, shards: str) -> Finetuned:
        """Return the student of `student` fine-tuned on the logits of `shards`, a hash."""
        fitter = _limited(on_logits(self.fitter), self.plan.logit_steps)
        return self._saved(
            "logits",
            student,
            [*_weights(student), shards, repr(fitter.config)],
            lambda: fit_student(load_student(student), self.data, logits, self.seed, fitter, label="on logits"),
        )

    def _corrected(self, distilled: Finetuned) -> Finetuned:
        """Return the distilled student trained on with the labels, at a small rate."""
        fitter = _limited(
            replace(self.fitter, config=replace(self.fitter.config, learning_rates=(_LABEL_RATE,))),
            self.plan.label_steps,
        )
        model, data = distilled.model, self.data
        assert isinstance(model, StudentClassifier)

        def start() -> StudentClassifier:
            copy = StudentClassifier(
                Student(deepcopy(model.encoder), model.tokenizer), model.columns, data.task.outputs
            )
            copy.head.load_state_dict(model.head.state_dict())
            if data.task.regression:  # from the unit of the user's file back to the one that is learned
                copy.rescale(1 / data.deviation, -data.mean / data.deviation)
            return copy

        def fit() -> tuple[StudentClassifier, Outcome]:
            found, outcome = fitter.fit(start, data, seed=self.seed, label="on labels")
            if data.task.regression:
                found.rescale(data.deviation, data.mean)
            return found, outcome

        weights = b"".join(value.float().cpu().numpy().tobytes() for value in model.state_dict().values())
        return self._saved("logits-labels", distilled.source, [bytes_hash(weights), repr(fitter.config)], fit)

    def _saved(
        self, name: str, source: Path, depends: list[str], fit: Callable[[], tuple[StudentClassifier, Outcome]]
    ) -> Finetuned:
        """Return what `fit` makes of the student in `source`, or what an earlier run made and saved."""
        folder = self.teacher.place(self.data) / f"student-{name}-{self._key(depends)}"
        distillation = load_distillation(source)
        if (folder / TASK).exists() and (folder / DISTILLATION).exists():
            model, _ = load_classifier(folder)
            outcome = msgspec.json.decode((folder / TASK).read_bytes(), type=Outcome)
        else:
            model, outcome = fit()
            Finetuned(model, outcome, self.data, source, distillation).save(folder)
        found = Finetuned(model, outcome, self.data, source, distillation)
        progress.log(found.describe())
        return found

    def _key(self, parts: list[str]) -> str:
        """Name what a stage depends on besides the task and the teacher, which its folder lies in."""
        return _hash([*parts, str(self.seed), f"{self.fitter.precision} on {self.fitter.device.type}"])


def _hash(parts: list[str]) -> str:
    return bytes_hash(json.dumps(parts).encode())[:8]


def _weights(student: Path) -> list[str]:
    return [bytes_hash(file.read_bytes()) for file in module_weights(student)]


def on_logits(fitter: Fitter) -> Fitter:
    """Return the fitter with the length that logits need."""
    return replace(fitter, config=replace(fitter.config, epochs=LOGIT_EPOCHS, max_steps=LOGIT_STEPS))


def _limited(fitter: Fitter, steps: int | None) -> Fitter:
    """Return the fitter with a limit of steps that may end its first epoch."""
    if steps is None:
        return fitter
    return replace(fitter, config=replace(fitter.config, max_steps=steps, whole_epoch=False))


def _speed(fitter: Fitter, model: TaskModel, data: TaskData) -> float:
    """Return the examples per second that a model labels, timed on some of the training examples."""
    texts = [list(column[:_TIMED_TEXTS]) for column in data.train.texts]
    fitter.predict(model, model.tokenize([column[:32] for column in texts]), data.task.regression)
    started = time.perf_counter()
    fitter.predict(model, model.tokenize(texts), data.task.regression)
    return len(texts[0]) / (time.perf_counter() - started)


# The plan: how long each stage will take on this machine, and what --max-time leaves of it.


def _plan(config: FinetuneConfig, data: TaskData, teacher: TaskTeacher, fitter: Fitter, student: Path) -> Plan:
    """Return the plan that an earlier run made, or time a few batches of each stage and make one.

    What it says of the teacher depends on the teacher alone, so that a run with another student shares its stages.
    """
    place = teacher.place(data)
    place.mkdir(parents=True, exist_ok=True)
    limit = str(config.max_time)
    of_teacher = place / f"plan-teacher-{_hash([limit, str(teacher.synthetic), *teacher.unlabeled])}.json"
    of_student = place / f"plan-student-{_hash([of_teacher.name, *_weights(student), repr(fitter.config)])}.json"
    first = _kept(of_teacher, lambda: _plan_teacher(config.max_time, data, teacher))
    texts, spent = first.most_texts or teacher.texts(data), sum(first.seconds.values())
    second = _kept(of_student, lambda: _plan_student(config.max_time, data, fitter, student, texts, spent))
    seconds = {**first.seconds, **second.seconds}
    whole = f"plan: about {_minutes(sum(seconds.values()))}"
    progress.log(f"{whole}, {', '.join(f'{name} {_minutes(each)}' for name, each in seconds.items())}")
    if config.max_time is not None and sum(seconds.values()) > 1.1 * config.max_time:
        progress.log(f"--max-time {_minutes(config.max_time)} is less than the shortest useful run takes")
    return Plan(
        teacher_steps=first.teacher_steps,
        most_texts=first.most_texts,
        vector_steps=second.vector_steps,
        logit_steps=second.logit_steps,
        label_steps=second.label_steps,
        seconds=seconds,
    )


def _kept(file: Path, make: Callable[[], Plan]) -> Plan:
    if not file.exists():
        write_json(file, msgspec.to_builtins(make()))
    return msgspec.json.decode(file.read_bytes(), type=Plan)


def _plan_teacher(limit: float | None, data: TaskData, teacher: TaskTeacher) -> Plan:
    fitter = teacher.fitter
    sample = _sample(data, fitter.config.batch_size * _TIMED_BATCHES)
    model = TeacherClassifier.load(teacher.located, data.task, TEACHER_SEED)
    step, embedded = _time(fitter, model, sample)
    steps, texts, own = fitter.config.steps(len(data.train.targets)), teacher.texts(data), len(data.train.targets)
    if limit is None:
        return Plan(seconds={"teacher's fine-tuning": steps * step, "embedding": texts * embedded})
    fewer = _fit_in(steps, step, _TEACHER_SHARE * limit)
    fine_tuning = (fewer or steps) * step
    # Its own text is the least that a task needs.
    room = max(own, int((_EMBEDDED_SHARE * limit - fine_tuning) / embedded))
    return Plan(
        teacher_steps=fewer,
        most_texts=room if room < texts else None,
        seconds={"teacher's fine-tuning": fine_tuning, "embedding": min(room, texts) * embedded},
    )


def _plan_student(limit: float | None, data: TaskData, fitter: Fitter, student: Path, texts: int, spent: float) -> Plan:
    sample = _sample(data, fitter.config.batch_size * _TIMED_BATCHES)
    step, _ = _time(fitter, StudentClassifier.new(load_student(student), data.task, 0), sample)
    labels = fitter.config.steps(len(data.train.targets))
    logits = on_logits(fitter).config.steps(texts)
    vectors = -(-texts // _VECTOR_BATCH) * _VECTOR_EPOCHS
    # A step of stage two has more sentences.
    vector_step = step * _VECTOR_BATCH / fitter.config.batch_size
    seconds = {
        "student on labels alone": labels * step,
        "student on vectors": vectors * vector_step,
        "student on logits": logits * step,
        "student on labels, last": labels * step,
    }
    if limit is None or spent + sum(seconds.values()) <= limit:
        return Plan(seconds=seconds)
    share = max(0.0, limit - spent) / sum(seconds.values())
    fewer = [min(steps, max(_LEAST_STEPS, int(share * steps))) for steps in (labels, vectors, logits)]
    lengths = dict(
        zip(seconds, (fewer[0] * step, fewer[1] * vector_step, fewer[2] * step, fewer[0] * step), strict=True)
    )
    return Plan(label_steps=fewer[0], vector_steps=fewer[1], logit_steps=fewer[2], seconds=lengths)


def _fit_in(steps: int, each: float, seconds: float) -> int | None:
    """Return how many steps fit, at least a few; None if all do."""
    fewer = max(_LEAST_STEPS, int(seconds / each))
    return fewer if fewer < steps else None


def _sample(data: TaskData, count: int) -> TaskData:
    """Return a task with `count` of the training examples, fewer if there are fewer, and some for dev."""
    share = data.share(min(1.0, count / len(data.train.targets)), 0)
    return replace(share, dev={"dev": share.train})


def _time(fitter: Fitter, model: TaskModel, data: TaskData) -> tuple[float, float]:
    """Return the seconds of a step of fine-tuning and of embedding a text, timed over a few batches."""
    once = replace(fitter.config, epochs=1, least_steps=0, max_steps=None)
    short = replace(fitter, config=once)
    fewest = _sample(data, fitter.config.batch_size)
    short.train(model, fewest, fewest.train, rate=1e-6, seed=0)  # the first step allocates
    started = time.perf_counter()
    for _ in range(2):
        fitter.predict(model, model.tokenize(data.train.texts), data.task.regression)
    embedded = (time.perf_counter() - started) / (2 * len(data.train.targets))
    started = time.perf_counter()
    short.train(model, replace(data, dev=fewest.dev), data.train, rate=1e-6, seed=0)
    return (time.perf_counter() - started) / once.steps(len(data.train.targets)), embedded


@contextmanager
def _stage(name: str, plan: Plan, took: dict[str, float]) -> Iterator[None]:
    """Log a stage's time next to the planned one, and note it in `took`."""
    started = time.monotonic()
    yield
    took[name] = time.monotonic() - started
    planned = f", planned {_minutes(plan.seconds[name])}" if name in plan.seconds else ""
    progress.log(f"{name}: {_minutes(took[name])}{planned}")


def _minutes(seconds: float) -> str:
    """Return minutes and seconds, as in 2:05 min."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
