"""The README.md of an export: what it is and how to use it."""

import shlex
from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from sentence_distill.student.encoding.export_folder import Agreement, ExportRecord

_TEMPLATE = "export-readme.md.j2"
_NAMED_CLASSES = 10


def describe(record: ExportRecord, labels: Sequence[str]) -> str:
    """Describe an export in a few words: "classifier of 3 classes: neg, neu, pos"."""
    pairs = " for pairs of texts" if record.task and len(record.task.columns) == 2 else ""
    if record.task is None:
        return f"sentence encoder with vectors of {record.dim} dimensions"
    if not labels:
        return f"regression{pairs}"
    others = f" and {len(labels) - _NAMED_CLASSES} others" if len(labels) > _NAMED_CLASSES else ""
    return f"classifier of {len(labels)} classes{pairs}: {', '.join(labels[:_NAMED_CLASSES])}{others}"


def describe_agreement(found: Agreement) -> str:
    """Say in one line how close an export comes to its student in PyTorch."""
    on = f"{found.sentences:,} sentences ({found.texts})"
    if found.same_label is not None:
        return (
            f"same label as the student in PyTorch for {found.same_label:.2%} of {on}; largest difference of a "
            f"probability {found.largest_difference:.2g}"
        )
    if found.range is not None:
        low, high = found.range
        return (
            f"largest difference to the score of the student in PyTorch, {on}: {found.largest_difference:.2g}, of "
            f"scores from {low:.4g} to {high:.4g}"
        )
    return f"cosine to the student, {on}: mean {found.cosine:.4f}, lowest {found.lowest_cosine:.4f}"


def next_command(record: ExportRecord, folder: str) -> str:
    """The command that runs an export."""
    folder = shlex.quote(folder)
    if record.task:
        return f"sd predict {folder} --input FILE --out predictions.jsonl"
    return f"sd encode --student {folder} --input FILE --out vectors.parquet"


def readme(record: ExportRecord, labels: Sequence[str]) -> str:
    """Write the README of an export.

    Args:
        record: content of its export.json.
        labels: names of a classifier's classes.
    """
    environment = Environment(
        loader=PackageLoader("sentence_distill.student"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(_TEMPLATE).render(
        title=f"{record.task.name}: {record.kind}" if record.task else "Sentence encoder",
        what=_sentence(describe(record, labels)),
        record=record,
        labels=labels,
        pairs=bool(record.task) and len(record.inputs) == 4,
        command=next_command(record, "FOLDER"),
        shape=_shape(record, labels),
        agreement=_sentence(describe_agreement(record.agreement)) if record.agreement else "",
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _shape(record: ExportRecord, labels: Sequence[str]) -> str:
    if labels:
        return f"float32[texts, {len(labels)}]: of each class of `labels.json`, in its order"
    if record.task:
        return "float32[texts, 1]"
    return f"float32[texts, {record.dim}]" + (", each of length 1" if record.normalize else "")
