"""The model card of a student."""

import hashlib
import re
import statistics
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from jinja2 import Environment, PackageLoader, StrictUndefined

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import TASKS, set_name
from sentence_distill.student.config import ROWS
from sentence_distill.student.metrics import shown_score, too_few
from sentence_distill.student.records import (
    Agreement,
    Contender,
    Distillation,
    GlueResults,
    Measured,
    SpeedResults,
    as_distillation,
)

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

LOCAL = "path/to/this/folder"
_TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "knowledge-distillation", "bilstm"]
_HELD_OUT = {
    "cosine": "Cosine to the teacher",
    "rank_agreement": "Rank agreement with the teacher",
    "recall_at_10": "Recall of the teacher's 10 neighbours",
    "recall_at_10_among_100": "The same among the student's first 100",
    "mse": "Mean squared error to the teacher",
}
_FIDELITY = {
    "cosine": "cosine to the teacher, held out",
    "mean_vector_cosine": "the same of one constant vector",
    "rank_agreement": "rank agreement of similarities, held out",
    "recall_at_10": "recall of the teacher's 10 nearest neighbours, held out",
    "recall_at_10_among_100": "the same among the model's 100 nearest",
    "mse": "mean squared error, held out",
}
# What the hub calls GLUE's metrics.
_GLUE_METRICS = {"matthews": "matthews_correlation", "spearman": "spearmanr", "pearson": "pearsonr"}
_METRIC_TITLES = {"matthews": "Matthews", "f1": "F1", "pearson": "Pearson", "spearman": "Spearman"}
_MARK = re.compile(r"\n<!-- sentence-distill card ([0-9a-f]{64}) -->\n\Z")

_Record = TypeVar("_Record", bound=msgspec.Struct)


def model_card(
    distillation: dict[str, Any],
    *,
    name: str = LOCAL,
    licence: str | None = None,
    glue: dict[str, Any] | None = None,
    speed: dict[str, Any] | None = None,
    folder: Path = Path(),
) -> str:
    """Render README.md of a student's folder; its last line marks it, see `is_edited`.

    Args:
        distillation: content of distillation.json.
        name: by which the student is loaded: a folder, or a repository on the hub.
        licence: the hub's identifier of the student's license; None takes that of its record. If there is none, the
            card says that none is stated.
        glue: content of glue.json, if there is one.
        speed: content of speed.json, if there is one.
        folder: where those lie, for the error.

    Raises:
        UserError: a record is not as this version writes it.
    """
    record = as_distillation(distillation, folder / "distillation.json")
    measured = _converted(record.metrics, Measured, folder / "distillation.json")
    title = f"A BiLSTM student of {record.teacher.teacher}"
    licence = licence or record.licence
    scores = record.task_scores()
    body = _template().render(
        metadata=_metadata(record, measured, title if name == LOCAL else name.split("/")[-1], licence),
        title=title,
        name=name,
        record=record,
        licence=licence,
        tasks=list(dict.fromkeys(task for task, *_ in scores)),
        fidelity=_fidelity_table(measured),
        held_out=measured.held_out,
        task_rows=[
            [f"{task}, {split}", metric, shown_score(metric, value, (record.dev_examples or {}).get(split))]
            for task, split, metric, value in scores
        ],
        glue=_glue_table(_converted(glue or {}, GlueResults, folder / "glue.json")),
        speed=_speed_table(_converted(speed or {}, SpeedResults, folder / "speed.json")),
    )
    return f"{body}\n<!-- sentence-distill card {_hash(body)} -->\n"


def is_edited(card: str) -> bool:
    """Tell whether somebody changed a card after `model_card` rendered it, by this or another version."""
    mark = _MARK.search(card)
    return mark is None or _hash(card[: mark.start()]) != mark[1]


def _hash(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _converted(content: dict[str, Any], kind: type[_Record], path: Path) -> _Record:
    try:
        return msgspec.convert(content, kind, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is damaged or of another version ({error}); remove it and measure again") from error


@cache
def _template() -> Any:
    environment = Environment(  # noqa: S701: Markdown, of records of one's own
        loader=PackageLoader("sentence_distill.student", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["named"] = _named
    environment.filters["row"] = _row
    return environment.get_template("card.md.j2")


def _named(model: str) -> str:
    """Link a model of the hub; a folder's name has no owner."""
    return f"[{model}](https://huggingface.co/{model})" if "/" in model else f"`{model}`"


def _row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _metadata(record: Distillation, measured: Measured, model_name: str, licence: str | None) -> str:
    from huggingface_hub import ModelCardData

    teacher = record.teacher.teacher
    language = str(record.corpus.fingerprint.get("language", ""))
    results = list(_results(record, measured))
    data = ModelCardData(
        # Two letters are a code of ISO 639-1; what else may be here is known to the sentence splitter only.
        language=language if len(language) == 2 else None,
        license=licence,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        # A teacher from a folder has a name without an owner.
        base_model=teacher if "/" in teacher else None,
        tags=_TAGS,
        model_name=model_name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _results(record: Distillation, measured: Measured) -> Iterator["EvalResult"]:
    """Yield what was measured of these very weights, as the hub's model-index takes it."""
    from huggingface_hub import EvalResult

    count = f"{measured.held_out.rows:,} " if measured.held_out.rows is not None else ""
    for key, metric in _HELD_OUT.items():
        if isinstance(value := _score(measured.held_out, key), float):
            yield EvalResult(
                task_type="knowledge-distillation",
                task_name="Knowledge distillation",
                dataset_type="unknown",
                dataset_name=f"{count}sentences of the corpus that were held out".capitalize(),
                metric_type=key,
                metric_name=metric,
                metric_value=value,
            )
    if "student" in measured.sts_spearman:
        yield EvalResult(
            task_type="semantic-similarity",
            task_name="Semantic similarity",
            dataset_type="stsb",
            dataset_name="STS-B",
            metric_type="spearman_cosine",
            metric_name="Spearman correlation of cosines",
            metric_value=measured.sts_spearman["student"],
        )
    # A user's own task may have a name of GLUE's.
    of_glue = record.glue_task is not None
    for task, split, metric, value in record.task_scores():
        yield EvalResult(
            task_type="text-classification",
            task_name="Text classification",
            dataset_type="nyu-mll/glue" if of_glue else "unknown",
            dataset_name=f"GLUE {task}, {split}" if of_glue else f"{task}, {split}",
            dataset_config=record.glue_task,
            metric_type=_GLUE_METRICS.get(metric, metric),
            metric_value=value,
        )


def _score(held_out: Agreement, key: str) -> float | str | None:
    """Return a held-out score, or the reason why there is none."""
    if key.startswith("recall") and (reason := too_few(held_out.rows)):
        return reason if key == "recall_at_10" else None
    return getattr(held_out, key)  # type: ignore[no-any-return]


def _fidelity_table(measured: Measured) -> list[list[str]]:
    """Lay out the figures of the student, and of its teacher if it was measured; no rows if nothing is known."""
    with_teacher = measured.teacher_size or "teacher" in measured.sts_spearman | measured.sentences_per_second
    models = ["student", "teacher"] if with_teacher else ["student"]
    sizes = {"student": measured.size, "teacher": measured.teacher_size}
    lines: list[tuple[str, str, list[float | str | None]]] = [
        (title, ".4g", [_score(measured.held_out, key), None]) for key, title in _FIDELITY.items()
    ]
    lines += [
        ("held-out sentences", ",.0f", [measured.held_out.rows, None]),
        ("STS-B, Spearman, no fine-tuning", ".4f", [measured.sts_spearman.get(model) for model in models]),
        ("sentences a second", ",.0f", [measured.sentences_per_second.get(model) for model in models]),
        ("parameters", ",.0f", [size.parameters if (size := sizes[model]) else None for model in models]),
        ("size on disk, MB", ",.1f", [size.megabytes if (size := sizes[model]) else None for model in models]),
    ]
    rows = [
        [title, *(_number(value, form) for value in values[: len(models)])]
        for title, form, values in lines
        if any(value is not None for value in values)
    ]
    return [["measure", *models], ["---", *("---:" for _ in models)], *rows] if rows else []


def _number(value: float | str | None, form: str) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:{form}}"


def _glue_table(glue: GlueResults) -> list[list[str]]:
    """Lay out mean dev scores in percent, over the seeds that were trained on all examples; the best is bold."""
    columns = [(task, split, metric) for task in TASKS.values() for split in task.dev for metric in task.metrics]
    means: dict[str, dict[tuple[str, str, str], float]] = {}
    for row in (row for row in ROWS if row in glue.rows):
        for task, split, metric in columns:
            results = [result for result in glue.rows[row].get(task.name, []) if result.fraction == 1]
            values = [v for result in results if (v := result.scores.get(split, {}).get(metric)) is not None]
            if values:
                means.setdefault(row, {})[task.name, split, metric] = round(100 * statistics.fmean(values), 1)
    keys = [(task.name, split, metric) for task, split, metric in columns]
    known = [key for key in keys if any(key in row for row in means.values())]
    if not known:
        return []
    students = [scores for row, scores in means.items() if row not in ("majority", "teacher-frozen", "teacher")]
    heads = [f"{set_name(task, split)}, {_METRIC_TITLES.get(metric, metric)}" for task, split, metric in known]
    table = [["system", *heads], ["---", *("---:" for _ in known)]]
    for row, scores in means.items():
        cells = [ROWS[row]]
        for key in known:
            value, others = scores.get(key), [student[key] for student in students if key in student]
            best = scores in students and len(others) > 1 and value == max(others)
            cells.append("" if value is None else f"**{value:.1f}**" if best else f"{value:.1f}")
        table.append(cells)
    return table


def _speed_table(speed: SpeedResults) -> dict[str, Any] | None:
    """Lay out all contenders, best quality first, with the most threads that were tried."""
    if not speed.contenders:
        return None
    threads = max(speed.threads)
    heads = ["model", "STS-B, Spearman", "one a call, sentences/s", "128 a call, sentences/s", "latency, median, ms"]
    heads += ["latency, p99, ms", "start, s", "memory, peak, MB", "on disk, MB", "weights, M"]

    def cells(contender: Contender) -> list[str]:
        rates = contender.threads.get(threads)
        by_batch, latency = (rates.by_batch, rates.latency_ms) if rates else ({}, None)
        values = [
            (contender.sts_spearman, ".3f"),
            (by_batch.get(1), ",.0f"),
            (by_batch.get(128), ",.0f"),
            (latency.p50 if latency else None, ",.2f"),
            (latency.p99 if latency else None, ",.2f"),
            (contender.startup_seconds, ",.1f"),
            (contender.peak_megabytes, ",.0f"),
            (contender.megabytes, ",.1f"),
            (contender.parameters / 1e6 if contender.parameters else None, ",.1f"),
        ]
        return [_number(value, form) for value, form in values]

    ordered = sorted(speed.contenders.items(), key=lambda item: -(item[1].sts_spearman or 0.0))
    rows = [[f"{place}. {name}", *cells(contender)] for place, (name, contender) in enumerate(ordered, start=1)]
    rules = ["---", *("---:" for _ in heads[1:])]
    return {"machine": speed.environment, "threads": threads, "table": [heads, rules, *rows]}
