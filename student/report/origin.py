"""What was distilled from what, and the commands that do it again."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from sentence_distill.data.glue import TASKS
from sentence_distill.student.config import SIZES, STUDENT, TEACHER, Hyperparameters, TrainConfig
from sentence_distill.student.files import DISTILLATION, TASK, find_shards
from sentence_distill.student.report.charts import Cell, Column, Rows, Table
from sentence_distill.student.report.data import EVAL, GLUE, SPEED, StudentFiles
from sentence_distill.student.report.measures import is_measured, measured_models

# Fields of a fingerprint that are options of sd embed, with their defaults.
_EMBED = {
    "format": "auto",
    "text_field": "text",
    "language": "en",
    "min_words": 3,
    "max_words": 100,
    "max_tokens": 128,
    "shard_rows": 16_384,
    "dtype": "float16",
    "compression": "none",
}
# Fields of glue.json's finetuning, and of its teacher_finetuning, that are options of sd eval --glue.
_FINETUNING = {
    "epochs": "epochs",
    "max_steps": "finetune_steps",
    "learning_rates": "learning_rate",
    "encoder_rate": "encoder_rate",
}
_TEACHER_FINETUNING = {"epochs": "teacher_epochs", "learning_rates": "teacher_learning_rate"}
_PRECISION = {"bfloat16": "bf16", "float32": "fp32"}


def origin(files: StudentFiles) -> list[tuple[str, str]]:
    """Names and values that say what the student is, from which teacher and which text."""
    record = files.distillation
    teacher, student, fingerprint = record["teacher"], record["student"], record["corpus"]["fingerprint"]
    layers, width = ", ".join(map(str, teacher["layers"])), fingerprint["dim"] // len(fingerprint["layers"])
    share = record["training"].get("train_fraction", 1.0)
    part = f", of which a share of {share:g} was trained on" if share < 1 else ""
    after = "".join(f", {module}" for module in fingerprint.get("modules", []))
    facts = [
        ("Teacher", teacher["teacher"]),
        ("Its sentence vectors", f"pooling {teacher['pooling']}, layer {layers}{after}, {width} wide"),
        ("Teacher's weights", ", ".join(teacher["teacher_weights"])),
        ("Corpus", f"{record['corpus']['rows']:,} sentences of {_corpus(fingerprint)}{part}"),
        ("Student", _student(student)),
    ]
    with files.using(EVAL):
        parameters = measured_models(files)["student"].get("size", {}).get("parameters")
    if parameters:
        words = student["vocabulary"] * student["embedding_dim"]
        facts.append(("Parameters", f"{parameters:,}, of which {words:,} are word embeddings"))
    if record.get("history"):
        last = record["history"][-1]
        facts.append(("Training", f"{last['step']:,.0f} steps, {last['epoch']:.3g} epochs"))
    return facts


def option_rows(files: StudentFiles) -> list[tuple[str, str]]:
    """Options of the training, all of them."""
    return [(name.replace("_", " "), _shown(value)) for name, value in files.distillation["training"].items()]


def history_table(files: StudentFiles) -> Table | None:
    """The validations of the training; None where there was none."""
    history = files.distillation.get("history", [])
    names = [name for name in ("epoch", "loss", "cosine", "rank_agreement", "mse") if history and name in history[0]]
    if not history:
        return None
    best = max(entry["cosine"] for entry in history)
    rows = [
        [Cell(f"{entry['step']:,.0f}", entry["step"])]
        + [Cell(f"{entry[n]:.4g}", entry[n], best=n == "cosine" and entry[n] == best) for n in names]
        for entry in history
    ]
    heads = [Column("step"), *(Column(name.replace("_", " ")) for name in names)]
    held_out = files.distillation["metrics"].get("held_out", {}).get("rows")
    over = f"{held_out:,} held-out sentences" if held_out else "held-out sentences"
    return Table(f"Validations on {over}", heads, [Rows("", rows)])


def commands(files: StudentFiles) -> list[str]:
    """What makes the shards, the student and its figures again, as far as it is recorded.

    Options at their defaults are left out. Words in capitals stand for what is not recorded: where the corpus was, and
    the folders of what the student was made of.

    Raises:
        UserError: a file is damaged.
    """
    record, folder = files.distillation, shlex.quote(str(files.folder))
    with files.using(DISTILLATION):
        embed = ["sd embed --corpus CORPUS", *_embed_options(record), "--out", shlex.quote(_shards(files))]
        lines = [" ".join(embed), *_student_commands(files, folder)]
    if is_measured(files):
        lines.append(f"sd eval --student {folder}")
    with files.using(GLUE):
        if files.glue.get("rows"):
            lines.append(" ".join(["sd eval --glue --student", folder, *_glue_options(files.glue)]))
    if files.speed:
        lines.append(f"sd eval --speed --student {folder}")
    return [*lines, f"sd report {folder}"]


def _student_commands(files: StudentFiles, folder: str) -> Iterator[str]:
    """Training, and what was made of the student after it; the last command writes `folder`."""
    record = files.distillation
    train = ["--shards", shlex.quote(_shards(files)), *_train_options(record)]
    steps = [("STUDENT", "sd train-student", train)]
    if reduction := record.get("reduction"):
        steps.append(("REDUCED", "sd export", _reduce_options(reduction, record["shards"])))
    if files.task:
        with files.using(TASK):
            steps.append(("FINETUNED", "sd finetune", _finetune_options(files.task, record.get("glue_task"))))
    if record.get("weights") == "float16":
        steps.append(("HALVED", "sd export", ["--format folder --float16"]))
    source: list[str] = []
    for number, (name, command, options) in enumerate(steps, start=1):
        out = folder if number == len(steps) else name
        yield " ".join([command, *source, *options, "--out", out])
        source = [out]


def _shards(files: StudentFiles) -> str:
    return str(find_shards(files.distillation, files.folder))


def _reduce_options(reduction: dict[str, Any], shards: str) -> list[str]:
    words = ["--format folder --dim", str(reduction["dim"])]
    sentences = reduction["sentences"]
    # Only shards hold vectors of the teacher to compare with.
    if "teacher_rank_agreement" not in reduction:
        return words + [word for location in sentences.split(", ") for word in ("--corpus", shlex.quote(location))]
    return words + ([] if reduction.get("own", sentences == shards) else ["--shards", shlex.quote(sentences)])


def _finetune_options(task: dict[str, Any], glue_task: str | None) -> list[str]:
    if glue_task:
        words = ["--task", task["task"]]
    else:
        options = {"text_column": task["text_columns"], "label_column": task["label_column"]}
        words = ["--train", "TRAIN", *(word for name, value in options.items() for word in _option(name, value))]
        words += [] if task["labels"] else ["--regression"]
    return words + list(_option("learning_rate", task["learning_rate"]))


def environments(files: StudentFiles) -> Table | None:
    """Hardware and versions that the files of figures name; None where none does."""
    rows = []
    for name, content in (
        (DISTILLATION, files.distillation),
        (EVAL, files.evaluation),
        (GLUE, files.glue),
        (SPEED, files.speed),
    ):
        with files.using(name):
            for found in content.get("environments", [content.get("environment")]):
                if not isinstance(found, dict):
                    continue
                versions = ", ".join(f"{package} {version}" for package, version in found.get("versions", {}).items())
                cells = (str(found.get(key, "")) for key in ("date", "cpu", "cores", "system", "python"))
                rows.append([Cell("training" if name == DISTILLATION else name), *map(Cell, cells), Cell(versions)])
    heads = [Column(title, numeric=False) for title in ("figures of", "date", "processor", "cores", "system", "Python")]
    if not rows:
        return None
    return Table("Where the figures are from", [*heads, Column("packages", numeric=False)], [Rows("", rows)])


def _corpus(fingerprint: dict[str, Any]) -> str:
    files, size = fingerprint["corpus_files"], fingerprint["corpus_bytes"] / 1e3
    shown = f"{size / 1e3:,.0f} MB" if size >= 1e4 else f"{size:,.0f} kB"
    return f"{files:,} file{'s' if files != 1 else ''}, {shown} (hash of the content {fingerprint['corpus_content']})"


def _student(student: dict[str, Any]) -> str:
    layers = "one BiLSTM layer" if student["layers"] == 1 else f"{student['layers']} BiLSTM layers"
    return (
        f"{layers} of {student['hidden']} units a direction over {student['embedding_dim']}-dimensional word "
        f"embeddings, vocabulary of {student['vocabulary']:,}; {student['pooling']} pooling; "
        f"{student['target_dims'][-1]} dimensions{', of length 1' if student['normalize'] else ''}"
    )


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_written, value))
    return _written(value)


def _written(value: Any) -> str:
    """In full, as the options take it: no option of a time takes 1e+06."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _option(name: str, value: Any) -> Iterator[str]:
    yield f"--{name.replace('_', '-')}"
    values = value if isinstance(value, list | tuple) else [value]
    yield shlex.quote(",".join(map(_written, values)))


def _embed_options(record: dict[str, Any]) -> list[str]:
    fingerprint = record["corpus"]["fingerprint"]
    # A folder's own modules are its default; no other pooling would apply them.
    given = ("teacher", "layers") if "modules" in fingerprint else ("teacher", "pooling", "layers")
    options = {name: fingerprint[name] for name in given}
    options |= {
        name: fingerprint[name] for name, default in _EMBED.items() if fingerprint.get(name, default) != default
    }
    if precision := _PRECISION.get(fingerprint.get("compute_dtype", "")):
        options["precision"] = precision
    words = [word for name, value in options.items() for word in _option(name, value)]
    words += ["--no-split"] if fingerprint.get("splitter") == "none" else []
    return words + ([] if fingerprint.get("keep_text", True) else ["--no-text"])


def _train_options(record: dict[str, Any]) -> list[str]:
    training, student = record["training"], record["student"]
    shape = {name: student[name] for name in ("embedding_dim", "hidden", "layers")}
    size = next((name for name, known in SIZES.items() if known == shape), None)
    options: dict[str, Any] = {"size": size} if size else shape
    if student["pooling"] != "mean":
        options["pooling"] = student["pooling"]
    for field in fields(TrainConfig):
        value = training.get(field.name)
        if value is not None and value != field.default:
            options[field.name] = value
    return [word for name, value in options.items() for word in _option(name, value)]


def _glue_options(glue: dict[str, Any]) -> list[str]:
    """Options that make every figure; those that not every row has of each task and seed are made with them."""
    results = [result for tasks in glue["rows"].values() for several in tasks.values() for result in several]
    seeds = {result.get("seed", 0) for result in results} or {0}
    fractions = sorted({result.get("fraction", 1.0) for result in results}, reverse=True)
    tasks = [task for task in TASKS if any(task in found for found in glue["rows"].values())]
    options: dict[str, Any] = {"rows": list(glue["rows"])}
    if len(tasks) < len(TASKS):
        options["tasks"] = tasks
    if len(seeds) > 1:
        options["seeds"] = max(seeds) - min(seeds) + 1
    if min(seeds):
        options["seed"] = min(seeds)
    if fractions not in ([], [1.0]):
        options["train_fraction"] = fractions
    finetuning = glue.get("finetuning", {})
    options |= _changed(finetuning, STUDENT, _FINETUNING)
    options |= _changed(glue.get("teacher_finetuning", {}), TEACHER, _TEACHER_FINETUNING)
    options |= {name: finetuning[name] for name in ("synthetic",) if name in finetuning}
    words = [word for name, value in options.items() for word in _option(name, value)]
    return words + ([] if glue.get("source") == "nyu-mll/glue" else ["--glue-dir", "GLUE"])


def _changed(recorded: dict[str, Any], default: Hyperparameters, names: dict[str, str]) -> dict[str, Any]:
    """Options whose recorded value is not the default."""
    values = json.loads(json.dumps(asdict(default)))
    changed = {name for name in names if recorded.get(name, values[name]) != values[name]}
    if "epochs" in names and recorded.get("least_steps") == 0:
        # Asked for, though it may be the default's number.
        changed.add("epochs")
    return {option: recorded[name] for name, option in names.items() if name in changed and recorded[name] is not None}
