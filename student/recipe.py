"""Distil a task: fine-tune a teacher on labels, embed the task's text with it, and train a student on what it gives.

The student learns first the vectors of the teacher's layers, then its logits (Tang et al. 2019, arXiv:1903.12136),
then the labels; dev picks. Each stage has a folder named after all that it depends on, so a run that was stopped
resumes, and one with other options repeats only what they change.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.options import command_line
from sentence_distill.data.progress import counted
from sentence_distill.pipeline.embed import CPU_TOKEN_BUDGET
from sentence_distill.pipeline.files import lock_folder, write_json
from sentence_distill.pipeline.hardware import FINETUNING, pick_device, pick_precision
from sentence_distill.pipeline.load import Located, locate_teacher
from sentence_distill.pipeline.manifest import require_manifest
from sentence_distill.pipeline.teacher import Teacher
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
from sentence_distill.student.files import TASK, is_student, weights_hashes
from sentence_distill.student.finetune import LOGITS, STUDENT, TEACHER, Finetuned, Fitter, constant, fit_student
from sentence_distill.student.model import load_student
from sentence_distill.student.models import find_model
from sentence_distill.student.start import OtherVocabulary
from sentence_distill.student.task_data import Labelled, TaskData, from_logits
from sentence_distill.student.task_teacher import TEACHER_SEED, TaskTeacher
from sentence_distill.student.train import train_student

# Version of the recipe, recorded with GLUE's results: count it up with a change that gives other weights.
RECIPE = 1
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
# Examples that are timed: of a teacher's fine-tuning, and of the models in the table.
_TIMED_EXAMPLES, _TIMED_TEXTS = 256, 512


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
    fitter, on_logits = (Fitter(each.given(config.finetuning), device, precision) for each in (STUDENT, LOGITS))
    teacher_config = replace(TEACHER, frozen_layers=config.finetuning.frozen_layers)
    teacher = TaskTeacher(
        locate_teacher(config.teacher),
        place,
        Fitter(teacher_config, device, precision),
        config.synthetic,
        config.unlabeled,
        config.text_column,
    )
    teacher.more(data)  # mistakes show before the work
    progress.log(f"stages are kept in {place}; those that are there are not repeated")
    place.mkdir(parents=True, exist_ok=True)
    with lock_folder(place, wait=True, waiting=lambda: progress.log(f"another run works in {place}; waiting for it")):
        return _distil(config, TaskRecipe(student.folder, teacher, fitter, on_logits, data, config.seed, config.device))


def _distil(config: FinetuneConfig, recipe: "TaskRecipe") -> Distilled:
    started, data, fitter = time.monotonic(), recipe.data, recipe.fitter
    plan = _plan(config.max_time, recipe)
    limited = _limited(recipe.teacher.fitter, plan.teacher_steps)
    teacher = replace(recipe.teacher, fitter=limited, most_texts=plan.most_texts)
    recipe = replace(recipe, teacher=teacher, plan=plan)
    with recipe.stage("student on labels alone"):
        alone = recipe.on_labels()
    with recipe.stage("teacher's fine-tuning"):
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
    """The student's, for labels."""
    on_logits: Fitter
    """The student's, for logits."""
    data: TaskData
    seed: int
    device: str
    plan: Plan = _UNLIMITED
    took: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage so far; of one that was there already nearly none."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note how long a stage takes, and log it next to the planned time."""
        started = time.monotonic()
        yield
        self.took[name] = time.monotonic() - started
        planned = f", planned {_minutes(self.plan.seconds[name])}" if name in self.plan.seconds else ""
        progress.log(f"{name}: {_minutes(self.took[name])}{planned}")

    def on_labels(self) -> Finetuned:
        """Return the student fine-tuned on the labels alone, which distillation has to beat."""
        fitter = _limited(self.fitter, self.plan.label_steps)
        return self._saved(
            "labels",
            self.student,
            [*weights_hashes(self.student), repr(fitter.config)],
            lambda: fit_student(load_student(self.student), self.data, self.data.train, self.seed, fitter),
        )

    def distilled(self) -> dict[str, Finetuned]:
        """Return the student that learned vectors and logits, and the one that then learned the labels."""
        with self.stage("embedding"):
            targets = self.teacher.targets(self.data)
            logits = from_logits(targets.logits, self.data)
        with self.stage("student on vectors"):
            student = self._learned_vectors(targets.vectors)
        with self.stage("student on logits"):
            distilled = self._learned_logits(student, logits, targets.logits.name)
        with self.stage("student on labels, last"):
            corrected = self._corrected(distilled)
        return {"vectors, logits": distilled, "vectors, logits, labels": corrected}

    def _learned_vectors(self, shards: Path) -> Path:
        """Return the folder of the student that learned the vectors of the teacher's layers.

        Too few texts, or a teacher with another vocabulary, leave the student as it is: logits need neither.
        """
        rows, steps = require_manifest(shards).totals.rows, self.plan.vector_steps
        if rows < _FEWEST_VECTORS:
            progress.log(f"no vectors are learned: {counted(rows, 'different text')} are too few")
            return self.student
        # The name of the shards holds a hash of their text, and lies in a folder named after their teacher.
        key = self._key([shards.name, *weights_hashes(self.student), f"{_VECTOR_EPOCHS} {steps}"])
        folder = self.teacher.place(self.data) / f"student-vectors-{key}"
        if not (folder / DISTILLATION).exists():
            config = TrainConfig(
                shards=shards,
                out=folder,
                # However the user spelled it: a run that is resumed compares the options.
                init=str(self.student.resolve()),
                epochs=_VECTOR_EPOCHS,
                max_steps=steps,
                seed=self.seed,
                device=self.device,
            )
            try:
                train_student(config)
            except OtherVocabulary as error:
                progress.log(f"no vectors are learned: {error}")
                return self.student
        return folder

    def _learned_logits(self, student: Path, logits: Labelled, shards: str) -> Finetuned:
        """Return the student of `student` fine-tuned on the logits of the folder `shards`."""
        fitter = _limited(self.on_logits, self.plan.logit_steps)
        return self._saved(
            "logits",
            student,
            [*weights_hashes(student), shards, repr(fitter.config)],
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
            copy = StudentClassifier.new(model.student, data.task, self.seed)
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
        saved = (folder / TASK).exists() and (folder / DISTILLATION).exists()
        if saved:
            model, _ = load_classifier(folder)
            outcome = msgspec.json.decode((folder / TASK).read_bytes(), type=Outcome)
        else:
            model, outcome = fit()
        found = Finetuned(model, outcome, self.data, source, distillation)
        if not saved:
            found.save(folder)
        progress.log(found.describe())
        return found

    def _key(self, parts: list[str]) -> str:
        """Name what a stage depends on besides the task and the teacher, which its folder lies in."""
        return _hash([*parts, str(RECIPE), str(self.seed), f"{self.fitter.precision} on {self.fitter.device.type}"])


def _hash(parts: list[str]) -> str:
    return bytes_hash(json.dumps(parts).encode())[:8]


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


class _Rates(msgspec.Struct, frozen=True):
    """Seconds that a model takes on this machine."""

    step: float
    """A step of fine-tuning; 0 where none was timed."""
    text: float
    """Labeling or embedding a text."""


def _plan(limit: float | None, recipe: TaskRecipe) -> Plan:
    """Time a few batches of teacher and student, or read what an earlier run timed, and plan all stages.

    Stages depend on the plan, so what was timed is kept: the same command does the same again.
    """
    data, teacher, fitter = recipe.data, recipe.teacher, recipe.fitter
    place = teacher.place(data)
    place.mkdir(parents=True, exist_ok=True)

    def timed(name: str, measure: Callable[[], _Rates]) -> _Rates:
        file = place / f"timed-{name}.json"
        if not file.exists():
            write_json(file, msgspec.to_builtins(measure()))
        return msgspec.json.decode(file.read_bytes(), type=_Rates)

    def time_teacher() -> _Rates:
        model = TeacherClassifier.load(teacher.located, data.task, TEACHER_SEED)
        return _time(teacher.fitter, model, data, _TIMED_EXAMPLES)

    def time_student() -> _Rates:
        model = StudentClassifier.new(load_student(recipe.student), data.task, 0)
        return _time(fitter, model, data, 8 * _TIMED_EXAMPLES)

    of_teacher = timed("teacher", time_teacher)
    of_student = timed(f"student-{_hash(weights_hashes(recipe.student))}", time_student)
    embedding = timed("embedding", lambda: _time_embedding(teacher, data))
    own, texts = len(data.train.targets), teacher.texts(data)
    columns, dev = len(data.train.texts), sum(data.dev_counts.values())

    def length(fitter: Fitter, steps: int, examples: int, rates: _Rates) -> float:
        """Return the seconds of fine-tuning, evaluations on dev included."""
        evaluations = -(-steps // fitter.config.between(examples))
        return len(fitter.config.learning_rates) * (steps * rates.step + evaluations * dev * rates.text)

    # The sides of pairs are embedded too, once each.
    text = embedding.text * (1 if columns == 1 else 1.5)
    steps, fewer, room = teacher.fitter.config.steps(own), None, None
    whole = length(teacher.fitter, steps, own, of_teacher)
    if limit is not None:
        if whole > _TEACHER_SHARE * limit:
            fewer = max(_LEAST_STEPS, int(steps * _TEACHER_SHARE * limit / whole))
            steps = fewer = min(steps, fewer)
        # Its own text is the least that a task needs.
        fits = max(own, int((_EMBEDDED_SHARE * limit - length(teacher.fitter, steps, own, of_teacher)) / text))
        texts, room = min(texts, fits), fits if fits < texts else None
    spent = {
        "teacher's fine-tuning": length(teacher.fitter, steps, own, of_teacher),
        "embedding": texts * text,
    }
    labels, logits = fitter.config.steps(own), recipe.on_logits.config.steps(texts)
    vectors = -(-texts * columns // _VECTOR_BATCH) * _VECTOR_EPOCHS
    # A step of stage two has more sentences.
    vector_step = of_student.step * _VECTOR_BATCH / (fitter.config.batch_size * columns)

    def of_the_student(labels: int, vectors: int, logits: int) -> dict[str, float]:
        on_labels = length(fitter, labels, own, of_student)
        return {
            "student on labels alone": on_labels,
            "student on vectors": vectors * vector_step,
            "student on logits": length(recipe.on_logits, logits, texts, of_student),
            "student on labels, last": on_labels,
        }

    lengths = of_the_student(labels, vectors, logits)
    shorter: tuple[int | None, ...] = (None, None, None)
    if limit is not None and sum(spent.values()) + sum(lengths.values()) > limit:
        share = max(0.0, limit - sum(spent.values())) / sum(lengths.values())
        labels, vectors, logits = (
            min(each, max(_LEAST_STEPS, int(share * each))) for each in (labels, vectors, logits)
        )
        lengths, shorter = of_the_student(labels, vectors, logits), (labels, vectors, logits)
    alone = "student on labels alone"
    seconds = {alone: lengths.pop(alone), **spent, **lengths}
    progress.log(f"plan: about {_minutes(sum(seconds.values()))}")
    for name, each in seconds.items():
        progress.log(f"  {name}: {_minutes(each)}")
    if limit is not None and sum(seconds.values()) > 1.1 * limit:
        progress.log(f"--max-time {_minutes(limit)} is less than the shortest useful run takes")
    return Plan(
        teacher_steps=fewer,
        most_texts=room,
        label_steps=shorter[0],
        vector_steps=shorter[1],
        logit_steps=shorter[2],
        seconds=seconds,
    )


def _sample(data: TaskData, count: int) -> TaskData:
    """Return a task with `count` of the training examples, fewer if there are fewer, and some for dev."""
    share = data.share(min(1.0, count / len(data.train.targets)), 0)
    return replace(share, dev={"dev": share.train})


def _time(fitter: Fitter, model: TaskModel, data: TaskData, examples: int) -> _Rates:
    """Time a few batches of fine-tuning a model, and of labeling with it."""
    data = _sample(data, examples)
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
    return _Rates((time.perf_counter() - started) / once.steps(len(data.train.targets)), embedded)


def _time_embedding(teacher: TaskTeacher, data: TaskData) -> _Rates:
    """Time embedding as `sd embed` does it, in exact-length batches; the teacher need not be fine-tuned for that."""
    fitter = teacher.fitter
    encoder = Teacher(teacher.located, pooling="mean", device=fitter.device, dtype=fitter.precision)
    texts = [" ".join(example) for example in zip(*_sample(data, 4 * _TIMED_EXAMPLES).train.texts, strict=True)]
    tokens = encoder.tokenize(texts).cut(encoder.max_tokens)
    encoder.embed(tokens, CPU_TOKEN_BUDGET)
    started = time.perf_counter()
    encoder.embed(tokens, CPU_TOKEN_BUDGET)
    return _Rates(0.0, (time.perf_counter() - started) / len(texts))


def _minutes(seconds: float) -> str:
    """Return minutes and seconds, as in 2:05 min."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
