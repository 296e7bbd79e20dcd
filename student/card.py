"""The model card of a student."""

import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from sentence_distill.student.figures import Distillation, GlueFigures, HeldOut, SpeedRecord, shown_score, too_few
from sentence_distill.student.tables import (
    corpora_table,
    glue_table,
    plain_names,
    probe_tables,
    quality_table,
    range_tables,
    render,
    size_table,
    speed_table,
)

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

LOCAL = "path/to/this/folder"
_TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "knowledge-distillation", "bilstm"]
_HELD_OUT = {
    "cosine": "Cosine to the teacher",
    "rank_agreement": "Rank agreement with the teacher",
    "recall_at_10": "Recall@10 of the teacher's nearest neighbors",
    "recall_at_10_among_100": "Recall@10 within the top 100",
    "mse": "Mean squared error to the teacher",
}
# What the hub calls GLUE's metrics.
_GLUE_METRICS = {"matthews": "matthews_correlation", "spearman": "spearmanr", "pearson": "pearsonr"}
_MARK = re.compile(r"\n<!-- sentence-distill card ([0-9a-f]{64}) -->\n\Z")


def model_card(
    distillation: dict[str, Any],
    *,
    name: str = LOCAL,
    title: str | None = None,
    licence: str | None = None,
    glue: GlueFigures | None = None,
    speed: SpeedRecord | None = None,
) -> str:
    """Render README.md of a student's folder; its last line marks it, see `is_edited`.

    `name` is that by which the student is loaded, a folder or a repository on the hub; `title` the model's own name, by
    default the last part of `name`; `licence` the hub's identifier of its license, if not that of its record.
    """
    record = msgspec.convert(distillation, Distillation)
    licence = licence or record.licence
    title = title or (f"student of {record.teacher.teacher}" if name == LOCAL else name.split("/")[-1])
    models, tasks = record.models(), record.task_scores()
    student = {"student": models["student"]}
    held_out = models["student"].held_out or HeldOut()
    tables = [quality_table(models), size_table(models), corpora_table(student), *range_tables(held_out)]
    body = render(
        "card.md.j2",
        on_hub=_on_hub,
        metadata=_metadata(record, title, licence),
        title=title,
        name=name,
        record=record,
        licence=licence,
        corpora=list(plain_names(record.corpus.fingerprint.get("corpora") or []).values()),
        tasks=list(dict.fromkeys(task for task, *_ in tasks)),
        scores=[table for table in (*tables, *probe_tables(student)) if table.groups[""]],
        too_few=too_few(held_out.rows),
        task_rows=[
            (f"{task}, {split}", metric, shown_score(metric, value, (record.dev_examples or {}).get(split)))
            for task, split, metric, value in tasks
        ],
        glue=glue_table(glue, {}) if glue else None,
        speed=speed_table(speed) if speed and speed.contenders else None,
    )
    return f"{body}\n<!-- sentence-distill card {_hash(body)} -->\n"


def is_edited(card: str) -> bool:
    """Tell whether somebody changed a card after `model_card` rendered it, by this or another version."""
    mark = _MARK.search(card)
    return mark is None or _hash(card[: mark.start()]) != mark[1]


def _hash(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _metadata(record: Distillation, model_name: str, licence: str | None) -> str:
    from huggingface_hub import ModelCardData

    teacher = record.teacher.teacher
    language = str(record.corpus.fingerprint.get("language", ""))
    results = list(_results(record))
    data = ModelCardData(
        # Two letters are a code of ISO 639-1; what else may be here is known to the sentence splitter only.
        language=language if len(language) == 2 else None,
        license=licence,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        # A teacher from a folder has a name without an owner.
        base_model=teacher if _on_hub(teacher) else None,
        tags=_TAGS,
        model_name=model_name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _results(record: Distillation) -> Iterator["EvalResult"]:
    """Yield what was measured of these very weights, as the hub's model-index takes it."""
    from huggingface_hub import EvalResult

    student = record.models()["student"]
    if held_out := student.held_out:
        count = f"{held_out.rows:,} " if held_out.rows is not None else ""
        for key, metric in _HELD_OUT.items():
            value = getattr(held_out, key)
            if value is not None and not (key.startswith("recall") and too_few(held_out.rows)):
                yield EvalResult(
                    task_type="knowledge-distillation",
                    task_name="Knowledge distillation",
                    dataset_type="unknown",
                    dataset_name=f"{count}held-out sentences of the corpus".capitalize(),
                    metric_type=key,
                    metric_name=metric,
                    metric_value=_rounded(value),
                )
    if student.sts_spearman is not None:
        yield EvalResult(
            task_type="semantic-similarity",
            task_name="Semantic similarity",
            dataset_type="stsb",
            dataset_name="STS-B",
            metric_type="spearman_cosine",
            metric_name="Spearman correlation of cosines",
            metric_value=_rounded(student.sts_spearman),
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
            metric_value=_rounded(value),
        )


def _on_hub(model: str) -> bool:
    """Tell a name on the hub from a folder's, and from that of a teacher that was fine-tuned on a task."""
    return "/" in model and " " not in model


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
