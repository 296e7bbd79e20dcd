"""The model card of a student."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from sentence_distill.student.figures import GlueFigures, SpeedRecord
    from sentence_distill.student.tables import Table


LOCAL = "path/to/this/folder"
_TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction", "knowledge-distillation", "bilstm"]
_HELD_OUT = {
    "cosine": "Cosine to the teacher",
    "rank_agreement": "Rank agreement with the teacher",
    "recall_at_10": "Recall of the teacher's 10 neighbours",
    "recall_at_10_among_100": "The same among the student's first 100",
    "mse": "Mean squared error to the teacher",
}
# What the hub calls GLUE's metrics.
_GLUE_METRICS = {"matthews": "matthews_correlation", "spearman": "spearmanr", "pearson": "pearsonr"}


def model_card(
    distillation: dict[str, Any],
    *,
    name: str = LOCAL,
    licence: str | None = None,
    glue: "GlueFigures | None" = None,
    speed: "SpeedRecord | None" = None,
) -> str:
    """README.md of a student's folder.

    Args:
        distillation: content of distillation.json.
        name: by which the student is loaded: of a folder, or of a repository on the hub.
        licence: the hub's identifier of the student's licence; None is what its record says. Where that says nothing,
            it stays open, and the card says so.
        glue: content of glue.json, where there is one.
        speed: content of speed.json, where there is one.
    """
    title = f"A BiLSTM student of {distillation['teacher']['teacher']}"
    licence = licence or distillation.get("licence")
    metadata = _metadata(distillation, title if name == LOCAL else name.split("/")[-1], licence)
    sections = [
        f"---\n{metadata}\n---",
        f"# {title}",
        _summary(distillation),
        _usage(name),
        "## What it scores",
        *_scores(distillation, glue, speed),
        "## How it was made",
        _origin(distillation),
        "## Licence",
        _licence(distillation, licence),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(distillation: dict[str, Any], model_name: str, licence: str | None) -> str:
    from huggingface_hub import ModelCardData

    teacher = distillation["teacher"]["teacher"]
    language = str(distillation["corpus"]["fingerprint"].get("language", ""))
    results = list(_results(distillation["metrics"], distillation.get("glue_task")))
    data = ModelCardData(
        # Two letters are a code of ISO 639-1; what else stands here is known to the sentence splitter only.
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
    return data.to_yaml()  # type: ignore[no-any-return]


def _results(metrics: dict[str, Any], glue_task: str | None) -> Iterator["EvalResult"]:
    """What was measured of these very weights, as the hub's model-index takes it.

    Args:
        metrics: of the distillation.
        glue_task: the hub's name of the task of GLUE that the student was fine-tuned on. Other tasks may have a name of
            GLUE's, after a user's file.
    """
    from huggingface_hub import EvalResult

    from sentence_distill.student.metrics import too_few

    held_out = metrics.get("held_out", {})
    count = f"{held_out['rows']:,} " if "rows" in held_out else ""
    for key, metric in _HELD_OUT.items():
        if key in held_out and not (key.startswith("recall") and too_few(held_out.get("rows"))):
            yield EvalResult(
                task_type="knowledge-distillation",
                task_name="Knowledge distillation",
                dataset_type="unknown",
                dataset_name=f"{count}sentences of the corpus that were held out".capitalize(),
                metric_type=key,
                metric_name=metric,
                metric_value=held_out[key],
            )
    if "student" in metrics.get("sts_spearman", {}):
        yield EvalResult(
            task_type="semantic-similarity",
            task_name="Semantic similarity",
            dataset_type="stsb",
            dataset_name="STS-B",
            metric_type="spearman_cosine",
            metric_name="Spearman correlation of cosines",
            metric_value=metrics["sts_spearman"]["student"],
        )
    for task, split, metric, value in _task_scores(metrics):
        yield EvalResult(
            task_type="text-classification",
            task_name="Text classification",
            dataset_type="nyu-mll/glue" if glue_task else "unknown",
            dataset_name=f"GLUE {task}, {split}" if glue_task else f"{task}, {split}",
            dataset_config=glue_task,
            metric_type=_GLUE_METRICS.get(metric, metric),
            metric_value=value,
        )


def _summary(distillation: dict[str, Any]) -> str:
    teacher, student = distillation["teacher"], distillation["student"]
    layers = "one BiLSTM layer" if student["layers"] == 1 else f"{student['layers']} BiLSTM layers"
    return (
        f"Approximates the sentence embeddings of {_named(teacher['teacher'])} with {layers} of {student['hidden']} "
        f"units a direction over {student['embedding_dim']}-dimensional word embeddings. It has no attention, so it "
        f"encodes fast on CPUs. A text becomes a vector of {student['target_dims'][-1]} numbers"
        f"{' and length 1' if student['normalize'] else ''}; what is longer than 512 tokens is cut. Made with "
        f"sentence-distill after [arXiv:2004.03097](https://arxiv.org/abs/2004.03097).{_changes(distillation)}"
    )


def _changes(distillation: dict[str, Any]) -> str:
    """What was done to the student after it was distilled."""
    text = ""
    if reduction := distillation.get("reduction"):
        text += f" Its vectors were then projected from {reduction['full_dim']} dimensions to these."
    if distillation.get("weights") == "float16":
        text += " Its weights are stored as float16."
    if tasks := dict.fromkeys(task for task, *_ in _task_scores(distillation["metrics"])):
        text += (
            f" It was then fine-tuned on {' and '.join(tasks)}: its vectors are no longer the teacher's, and "
            "`sd predict` labels texts with it."
        )
    return text


def _named(teacher: str) -> str:
    return f"[{teacher}](https://huggingface.co/{teacher})" if "/" in teacher else f"`{teacher}`"


def _usage(name: str) -> str:
    return (
        (Path(__file__).parent / "templates" / "card-usage.md")
        .read_text(encoding="utf-8")
        .strip()
        .replace("NAME", name)
    )


def _scores(distillation: dict[str, Any], glue: "GlueFigures | None", speed: "SpeedRecord | None") -> Iterator[str]:
    import msgspec

    from sentence_distill.student.figures import ModelFigures
    from sentence_distill.student.tables import fidelity_table, glue_table, speed_table

    metrics = distillation["metrics"]
    # By measure in the record, and here by model.
    by_model: dict[str, dict[str, Any]] = {"student": {"held_out": metrics.get("held_out")}}
    for measure in ("sts_spearman", "sentences_per_second"):
        for name, value in metrics.get(measure, {}).items():
            by_model.setdefault(name, {})[measure] = value
    for name, key in (("student", "size"), ("teacher", "teacher_size")):
        if key in metrics:
            by_model.setdefault(name, {})["size"] = metrics[key]
    models = {name: msgspec.convert(figures, ModelFigures) for name, figures in by_model.items()}
    if (fidelity := fidelity_table(models)).groups[0].rows:
        yield markdown(fidelity)
        yield (
            "Held out are sentences of the same corpus that training never saw; all measures compare with the "
            "teacher's vectors of them, so the teacher itself would have 1 (and an error of 0)."
        )
    for key, title in (("by_length", "Tokens of the sentence"), ("by_frequency", "Its rarest token, times seen")):
        if parts := metrics.get("held_out", {}).get(key):
            yield _parts(title, parts)
    if fine_tuned := _task_scores(metrics):
        yield "After fine-tuning on the task, with its head, on the examples that picked the best step:"
        yield _task_table(fine_tuned, distillation.get("dev_examples") or {})
    if glue and (table := glue_table(glue, {})):
        yield (
            "GLUE, on dev, in percent. Each row is a model that was fine-tuned on the task; the weights here are "
            "those that the distilled rows begin with."
        )
        yield markdown(table, groups=1)
    if speed and speed.environment:
        environment, timed = speed.environment, speed_table(speed)
        yield f"Speed on {environment.cores} cores of {environment.cpu}, {timed.caption.lower()}:"
        yield markdown(timed)


def markdown(table: "Table", groups: int | None = None) -> str:
    """A report's table in Markdown; of its groups of rows the first `groups`, or all."""
    heads = [f"{column.title}, {column.unit}" if column.unit else column.title for column in table.columns]
    lines = [heads, ["---:" if column.numeric else "---" for column in table.columns]]
    lines += [
        [f"**{cell.text}**" if cell.best else cell.text for cell in row]
        for group in table.groups[:groups]
        for row in group.rows
    ]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _parts(title: str, parts: list[dict[str, Any]]) -> str:
    ranges = [
        f"from {part['least']:,}" if part["most"] is None else f"{part['least']:,} to {part['most']:,}"
        for part in parts
    ]
    cosines = [f"{part['cosine']:.3f}" for part in parts]
    rows = ([title, *ranges], ["---", *("---:" for _ in parts)], ["cosine to the teacher", *cosines])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _task_scores(metrics: dict[str, Any]) -> list[tuple[str, str, str, float]]:
    """Task, split, metric and value of what a student was fine-tuned on; none where it was only distilled."""
    return [
        (task, split, metric, value)
        for task, splits in metrics.items()
        if isinstance(splits, dict)
        for split, scores in splits.items()
        if isinstance(scores, dict)
        for metric, value in scores.items()
        if isinstance(value, float)
    ]


def _task_table(scores: Sequence[tuple[str, str, str, float]], counts: dict[str, int]) -> str:
    from sentence_distill.student.metrics import shown_score

    rows = [
        f"| {task}, {split} | {metric} | {shown_score(metric, value, counts.get(split))} |"
        for task, split, metric, value in scores
    ]
    return "\n".join(["| task | metric | value |", "| --- | --- | ---: |", *rows])


def _origin(distillation: dict[str, Any]) -> str:
    teacher, corpus, training = distillation["teacher"], distillation["corpus"], distillation["training"]
    fingerprint = corpus["fingerprint"]
    layers, start = ", ".join(map(str, teacher["layers"])), distillation.get("start")
    share = training.get("train_fraction", 1.0)
    size = f"{fingerprint['corpus_bytes'] / 1e6:,.1f} MB" if "corpus_bytes" in fingerprint else "unknown size"
    return "\n".join(
        [
            f"- Teacher: {_named(teacher['teacher'])}, pooling `{teacher['pooling']}`, layer {layers}"
            f"{''.join(f', {module}' for module in fingerprint.get('modules', []))}"
            f"{', normalised' if teacher['normalize'] else ''}.",
            f"- Corpus: {corpus['rows']:,} sentences of {fingerprint.get('corpus_files', 1):,} file(s), {size}, "
            f"language `{fingerprint.get('language', 'unknown')}`"
            f"{f', of which a share of {share:g} was trained on' if share < 1 else ''}.",
            f"- Training: {_length(training)}, batches of {training['batch_size']} sentences, learning "
            f"rate {training['learning_rate']:g}, seed {training['seed']}.",
            *([f"- Start: the weights of the student {_named(start['student'])}."] if start else []),
            f"- Student: {distillation['student']['pooling']} pooling, vocabulary of "
            f"{distillation['student']['vocabulary']:,} tokens.",
            "",
            "`distillation.json` holds the whole configuration, with hashes of corpus and teacher.",
        ]
    )


def _length(training: dict[str, Any]) -> str:
    """How long the training was, or could have been: patience may have ended it."""
    epochs, steps, seconds = training["epochs"], training.get("max_steps"), training.get("max_time")
    limits = [f"{epochs} epoch{'s' if epochs != 1 else ''}"]
    limits += [f"{steps:,} steps"] if steps else []
    limits += [f"{seconds:,.0f} seconds"] if seconds else []
    return f"{' or '.join(limits)} at most"


def _licence(distillation: dict[str, Any], licence: str | None) -> str:
    stated = (
        f"This student is published under `{licence}`."
        if licence
        else "Whoever made this student has stated no licence for it; `license` is left out above for that reason."
    )
    origins = [f"the teacher, {_named(distillation['teacher']['teacher'])}", "the corpus"]
    if start := distillation.get("start"):
        origins.insert(1, f"the student that it began as, {_named(start['student'])}")
    return (
        f"{stated} The licences of {', of '.join(origins[:-1])}, and of {origins[-1]} apply to what was learned from "
        "them."
    )
