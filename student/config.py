"""Options of stage two: the shape of a student, its training, and all commands but `sd embed`."""

import re
from collections import Counter
from dataclasses import MISSING, asdict, dataclass
from math import nan
from pathlib import Path
from typing import Any, Literal

from sentence_distill.data.errors import UsageError, UserError
from sentence_distill.data.glue import TASKS, GlueName
from sentence_distill.data.options import (
    SEED,
    check,
    fields_of,
    option,
    parse_choices,
    parse_list,
    parse_names,
    parse_seconds,
)
from sentence_distill.data.records import InputFormat

POOLINGS = ("mean", "max", "mean+max")
INITS = ("pca", "random")
DEFAULT_STUDENT = "distilled"
"""Folder that commands read by default."""

# docs/training.md compares the sizes.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embedding_dim": 64, "hidden": 128, "layers": 1},
    # The widest student that stays below 10 MB in float16, tokenizer included.
    "small": {"embedding_dim": 112, "hidden": 256, "layers": 1},
    "base": {"embedding_dim": 300, "hidden": 300, "layers": 1},
    "large": {"embedding_dim": 384, "hidden": 512, "layers": 1},
}


def corpus_weight(text: str) -> tuple[str, float]:
    """Parse the name of a corpus and its weight, as in chat.txt=3."""
    name, equals, weight = text.rpartition("=")
    try:
        value = float(weight)
    except ValueError:
        value = nan
    if not (equals and name and 0 <= value < 1000):
        raise ValueError(f"{text!r} is not a corpus with a weight, as in chat.txt=3")
    return name, value


def _weighted(text: str) -> str:
    corpus_weight(text)
    return text


class _Options:
    def __post_init__(self) -> None:
        check(self)


def _named(flag: str, metavar: str, help: str, default: tuple[str, ...] = ()) -> Any:
    """Declare names that are given as arguments or by a repeatable option."""
    return option(default, help, argument=True, repeated=True, flags=(flag,), metavar=metavar)


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Shape of a student."""

    vocabulary: int
    """Number of token ids."""
    target_dims: tuple[int, ...]
    """Widths of the teacher's layers that the student approximates; the last one is its public embedding."""
    normalize: bool
    """True if the public embedding is L2-normalized."""
    embedding_dim: int = 300
    """Width of the word embeddings."""
    hidden: int = 300
    """Width of the LSTM's state in each direction."""
    layers: int = 1
    """LSTM layers."""
    pooling: str = "mean"
    """Pooling of the token states into one vector: "mean", "max", or "mean+max", both concatenated."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise UserError(f"pooling {self.pooling!r} is not one of {', '.join(POOLINGS)}")
        if min(self.embedding_dim, self.hidden, self.layers) < 1:
            raise UserError("--embedding-dim, --hidden and --layers must be at least 1")

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled LSTM states."""
        return 2 * self.hidden * len(self.pooling.split("+"))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Options):
    """Options of `sd train-student`."""

    shards: Path = option(Path("shards"), "Folder of shards that sd embed wrote.")
    out: Path = option(Path(DEFAULT_STUDENT), "Folder of the student and its checkpoints.", flags=("--out", "-o"))
    size: Literal["tiny", "small", "base", "large"] | None = option(
        None,
        "Size of the student: 2, 4, 11 or 16 million parameters. --embedding-dim, --hidden and --layers override it.",
        shown="base, or that of --init",
    )
    embedding_dim: int | None = option(None, "Width of the word embeddings.", least=1)
    hidden: int | None = option(None, "LSTM units in each direction.", least=1)
    layers: int | None = option(None, "Number of LSTM layers.", least=1)
    pooling: Literal["mean", "max", "mean+max"] | None = option(
        None, "Pooling of the token states into one vector.", shown="mean, or that of --init"
    )
    init: str = option(
        "pca",
        "Initial weights: the teacher's word embeddings reduced by PCA, random ones, or a student to continue from (a "
        "folder, minilm-small, or owner/name on the hub).",
        metavar="pca|random|STUDENT",
    )
    corpus: tuple[str, ...] = option(
        (),
        "Number of times an epoch reads a corpus of the shards: chat.txt=3, or 0.5 for half of it, or 0; may be "
        "repeated.",
        metavar="NAME=X",
        repeated=True,
        parse=_weighted,
        shown="1 for each",
    )
    target_layers: tuple[int, ...] | None = option(
        None,
        "Teacher layers in the shards to approximate, each with its own loss. The student's embedding is the last one.",
        shown="all",
        metavar="N[,N…]",
    )
    cosine: float = option(1.0, "Loss weight of 1 - cosine between the student's and the teacher's vector.", least=0)
    mse: float = option(0.0, "Loss weight of the mean squared error.", least=0)
    relational: float = option(
        0.0, "Loss weight of the divergence between the teacher's and the student's similarities in a batch.", least=0
    )
    temperature: float = option(0.05, "Softmax temperature of --relational.", above=0)
    epochs: int = option(3, "Stop after this many passes over the shards.", least=1)
    max_steps: int | None = option(None, "Stop after this many optimizer steps.", least=1)
    max_time: float | None = option(
        None,
        "Stop after this much training time, as in 90s, 30m or 2h, resumed parts included. The learning rate reaches "
        "0 by then.",
        metavar="TIME",
        parse=parse_seconds,
    )
    batch_size: int = option(128, "Sentences per batch over all processes; all have the same length.", least=1)
    learning_rate: float = option(4e-3, "Peak learning rate, after warm-up.", above=0)
    # A word's embedding is updated only by batches that contain the word; see `step.RowAdam` for the step sizes.
    embedding_rate: float = option(
        2.0, "Learning rate of the word embeddings, as a multiple of --learning-rate.", above=0
    )
    warmup: float = option(0.05, "Share of the run over which the learning rate rises.", least=0, most=1)
    weight_decay: float = option(0.01, "Weight decay of AdamW, on all weights but the word embeddings.", least=0)
    clip: float = option(1.0, "Gradient clipping: maximum norm.", above=0)
    token_dropout: float = option(0.0, "Share of the tokens to mask.", least=0, below=1)
    embedding_dropout: float = option(
        0.0, "Share of the vocabulary to mask in a batch; the other words are scaled up.", least=0, below=1
    )
    held_out: float | None = option(
        None,
        "Share of the sentences to hold out for validation, chosen by their ids.",
        shown="0.01, or 500 sentences if that is more, but at most 0.1",
        above=0,
        below=1,
    )
    train_fraction: float = option(
        1.0, "Share of the other sentences to train on, to see what a larger corpus would bring.", above=0, most=1
    )
    validate_every: int | None = option(
        None, "Validate after this many steps.", shown="each epoch", metavar="STEPS", least=1
    )
    patience: int | None = option(
        None, "Stop after this many validations without a better held-out cosine.", shown="no limit", least=1
    )
    seed: int = option(0, "Random seed.", **SEED)
    device: str = option("auto", "Device to train on: auto, cpu, cuda or cuda:N.")
    precision: Literal["auto", "bf16", "fp32"] = option(
        "auto", "Compute dtype of the LSTM. `auto` picks bf16 if the hardware supports it."
    )
    checkpoint_every: float = option(300.0, "Seconds between checkpoints.", metavar="SECONDS", above=0)
    keep_checkpoints: int = option(2, "Number of checkpoints to keep during training.", least=1)
    tensorboard: bool = option(False, "Write TensorBoard events, too.", flags=("--tensorboard/--no-tensorboard",))
    resume: bool = option(False, "Fail if --out holds no run to resume.", given=False)
    overwrite: bool = option(False, "Replace the run or student in --out.", given=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any((self.cosine, self.mse, self.relational)):
            raise UserError("all loss weights are 0; set --cosine, --mse or --relational")
        try:
            names = Counter(corpus_weight(each)[0] for each in self.corpus)
        except ValueError as error:
            raise UserError(f"--corpus {error}") from error
        if len(names) < len(self.corpus):
            raise UserError(f"--corpus names {names.most_common(1)[0][0]} twice")

    @property
    def weights(self) -> dict[str, float]:
        """Number of times an epoch reads each corpus that `corpus` names."""
        return dict(map(corpus_weight, self.corpus))

    def recipe(self) -> dict[str, Any]:
        """Return the options that decide what is learned, for distillation.json and checkpoints."""
        return {name: value for name, value in asdict(self).items() if name not in _OUTSIDE_RECIPE}


# The shape is not among them: it is recorded as a `StudentConfig`.
_OUTSIDE_RECIPE = {
    *("shards", "out", "size", "embedding_dim", "hidden", "layers", "pooling", "device", "precision"),
    *("checkpoint_every", "keep_checkpoints", "tensorboard", "resume", "overwrite"),
}


def default_held_out(rows: int) -> float:
    """Return the share of a corpus to hold out by default: 1%, or 500 rows if that is more, but at most 10%."""
    return max(0.01, min(0.1, 500 / max(1, rows)))


@dataclass(frozen=True, kw_only=True)
class ExportConfig(_Options):
    """Options of `sd export`."""

    student: str = option(
        DEFAULT_STUDENT,
        "Student to export: a folder, minilm-small, or a name on the hub.",
        argument=True,
        metavar="[STUDENT]",
    )
    format: Literal["onnx", "folder"] = option(
        "onnx", "Write an ONNX file with its tokenizer, or the folder of a smaller student for PyTorch."
    )
    out: Path | None = option(
        None,
        "Folder to write.",
        shown="STUDENT/onnx; with --format folder STUDENT-DIM, or STUDENT-float16",
        flags=("--out", "-o"),
    )
    dim: tuple[int, ...] = option(
        (),
        "Reduce the vectors to this many dimensions by PCA. Several numbers, as in 64,128,256, are only compared, and "
        "nothing is written.",
        metavar="N[,N…]",
        least=1,
        aliases=("--dims",),
    )
    float16: bool = option(False, "Store the weights in float16, with --format folder.")
    int8: bool = option(False, "Quantize the ONNX file to int8: faster, and a quarter of the size.")
    overwrite: bool = option(False, "Replace an earlier smaller student in --out.", given=False)
    shards: Path | None = option(
        None, "Shards to fit the reduction and measure on.", shown="those that the student was trained on"
    )
    corpus: tuple[str, ...] = option(
        (),
        "Text to fit the reduction on instead of shards, in any form that sd embed takes; may be repeated.",
        metavar="FILE",
        repeated=True,
    )
    sentences: Path | None = option(
        None,
        "Text file, one sentence per line, to compare the ONNX file with the student on.",
        shown="held-out sentences of the shards",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shards and self.corpus:
            raise UsageError("--shards and --corpus are two sources of sentences; give one of them")
        if self.corpus and not self.dim:
            raise UsageError("--corpus goes with --dim")
        if len(self.dim) > 1:
            if self.out or self.float16 or self.int8:
                raise UsageError("several --dim are only compared, and nothing is written; name one --dim")
        elif self.format == "folder":
            if not (self.dim or self.float16):
                raise UsageError("--format folder writes a smaller student; give --dim, --float16, or both")
            if self.int8 or self.sentences:
                raise UsageError("--int8 and --sentences go with an ONNX file; leave out --format folder")
            if self.shards and not self.dim:
                raise UsageError("--float16 alone does not read --shards; leave them out")
        elif self.float16:
            raise UsageError("--float16 goes with --format folder; ONNX files have --int8")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(_Options):
    """Options of every fine-tuning; None takes what suits the model."""

    epochs: int | None = option(
        None,
        "Fine-tuning: maximum passes over the examples; the best step on dev is kept.",
        shown="6, for a teacher 3, but at least 200 steps",
        least=1,
    )
    max_steps: int | None = option(
        None,
        "Fine-tuning: maximum steps, but at least one epoch.",
        flags=("--finetune-steps",),
        shown="2000, for a teacher 2500; with --epochs no limit",
        least=1,
    )
    learning_rates: tuple[float, ...] | None = option(
        None,
        "Fine-tuning: peak learning rate. Of several, the best on dev with the first seed serves all seeds.",
        flags=("--learning-rate",),
        metavar="X[,X…]",
        shown="1e-3, for a teacher 5e-5",
        above=0,
    )
    encoder_rate: float = option(1.0, "Fine-tuning: learning rate of the encoder as a multiple of the head's.", above=0)
    frozen_layers: int = option(
        0,
        "Fine-tuning a teacher: leave the word embeddings and this many of the lowest layers as they are. Faster.",
        flags=("--freeze-layers",),
        least=0,
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(_Options):
    """Options of `sd finetune`."""

    model: str = option(MISSING, "Student or transformer encoder: a folder, or a name on the hub.", argument=True)
    train: str | None = option(
        None, "Your own training examples: CSV, TSV, JSON lines, Parquet or Arrow, compressed or not.", metavar="FILE"
    )
    dev: str | None = option(
        None,
        "Examples that pick the best step.",
        metavar="FILE",
        shown="a tenth of --train is held out, stratified by class",
    )
    text_column: str = option("text", "Column of the texts in --train and --dev, two for pairs.", metavar="NAME[,NAME]")
    label_column: str = option("label", "Column of the labels.", metavar="NAME")
    regression: bool | None = option(
        None,
        "Labels are scores, or classes.",
        flags=("--regression/--classes",),
        shown="scores if all are numbers and one is not whole",
    )
    task: GlueName | None = option(None, "Task of GLUE to learn in place of --train.")
    glue_dir: Path | None = option(None, "GLUE in the official TSV layout.", shown="nyu-mll/glue from the hub")
    logits: Path | None = option(
        None, "Shards of a fine-tuned teacher's logits, from which a student learns in place of the labels."
    )
    teacher: str | None = option(
        None,
        "Distill the task: fine-tune this encoder on the labels, and train the student on its vectors and logits. A "
        "folder, minilm, mpnet, or a name on the hub.",
        metavar="NAME",
    )
    unlabeled: tuple[str, ...] = option(
        (),
        "More text of the task without labels, lines or the columns of --text-column, for the student to learn from "
        "--teacher; may be repeated.",
        metavar="FILE",
        repeated=True,
    )
    synthetic: int = option(
        50_000, "Approximate number of augmented copies of the examples, to learn from --teacher.", least=0
    )
    max_time: float | None = option(
        None,
        "With --teacher: shorten the stages so that the whole takes about this time, as in 15m or 2h.",
        metavar="TIME",
        parse=parse_seconds,
    )
    finetuning: FinetuneOptions = FinetuneOptions()
    seed: int = option(0, "Random seed.", **SEED)
    device: str = option("auto", "Device: auto, cpu, cuda or cuda:N.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.train is None) == (self.task is None):
            raise UsageError("give --train, a file of your own examples, or --task, one of GLUE")
        if self.teacher and self.logits:
            raise UsageError("--teacher makes its own logits; give --teacher or --logits")
        for field in fields_of(FinetuneConfig):
            of_recipe = field.name in ("unlabeled", "synthetic", "max_time")
            if of_recipe and not self.teacher and getattr(self, field.name) != field.default:
                raise UsageError(f"{field.flag} goes with --teacher")
        # With --task, --text-column can only be that of --unlabeled.
        of_files = ("dev", "label_column", "regression", *(() if self.unlabeled else ("text_column",)))
        of_glue = ("glue_dir",)
        unread, needs = (of_glue, "--task") if self.task is None else (of_files, "--train")
        for field in fields_of(FinetuneConfig):
            if field.name in unread and getattr(self, field.name) != field.default:
                raise UsageError(f"{field.flag} goes with {needs}")

    @property
    def name(self) -> str:
        """Name of the task; one's own is named after its file: reviews for data/reviews.csv.gz, task for data/*.csv."""
        if self.task is not None:
            return self.task
        name = Path(str(self.train).rstrip("/")).name.split(".")[0]
        return re.sub(r"[^\w-]+", "-", name).strip("-") or "task"


ROWS = {
    "majority": "majority class",
    "scratch": "BiLSTM from scratch",
    "scratch-words": "BiLSTM from scratch, teacher's word embeddings",
    "task-specific": "task-specific distillation alone",
    "frozen": "distilled, frozen",
    "distilled": "distilled",
    "distilled-task-specific": "distilled + task-specific",
    "teacher-frozen": "teacher, frozen",
    "teacher": "teacher, fine-tuned",
}
"""Titles of the rows of the table of GLUE."""


@dataclass(frozen=True, kw_only=True)
class GlueConfig(_Options):
    """Options of `sd eval --glue`."""

    tasks: tuple[str, ...] = option(
        tuple(TASKS),
        "GLUE: tasks to score.",
        parse=parse_choices(tuple(TASKS)),
        metavar="NAME[,NAME…]",
        shown="all nine",
    )
    rows: tuple[str, ...] = option(
        ("distilled",),
        f"GLUE: rows of the table, all or some of {', '.join(ROWS)}.",
        parse=parse_choices(tuple(ROWS)),
        metavar="NAME[,NAME…]",
    )
    from_scratch: bool = option(False, "GLUE: add the rows scratch and scratch-words.")
    frozen: bool = option(False, "GLUE: linear probes on fixed vectors in place of the row distilled.")
    seeds: int = option(1, "GLUE: number of seeds to average over.", least=1)
    seed: int = option(0, "GLUE: the first seed.", **SEED)
    fractions: tuple[float, ...] = option(
        (1.0,),
        "GLUE: share of the training examples, several for a low-data curve.",
        flags=("--train-fraction",),
        above=0,
        most=1,
    )
    finetuning: FinetuneOptions = FinetuneOptions()
    synthetic: int = option(
        50_000, "GLUE: approximate number of augmented examples of a task, for task-specific distillation.", least=0
    )
    teacher_learning_rates: tuple[float, ...] | None = option(
        None,
        "GLUE: learning rate of the teacher's fine-tuning.",
        flags=("--teacher-learning-rate",),
        metavar="X[,X…]",
        shown="5e-5",
        above=0,
    )
    teacher_epochs: int | None = option(
        None, "GLUE: maximum epochs of the teacher's fine-tuning; --epochs is the students'.", shown="3", least=1
    )
    submission: Path | None = option(
        None, "GLUE: folder for the predictions that gluebenchmark.com takes; needs a single row."
    )
    device: str = option("auto", "GLUE: device: auto, cpu, cuda or cuda:N.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.submission and len(self.chosen_rows) != 1:
            raise UsageError(f"--submission holds one row's predictions, not those of {', '.join(self.chosen_rows)}")
        if self.submission and self.fractions != (1.0,):
            raise UsageError("--submission is of models of all training examples; leave --train-fraction out")

    @property
    def chosen_rows(self) -> tuple[str, ...]:
        """Rows to make, in the order of the table."""
        rows = {*self.rows, *(("scratch", "scratch-words") if self.from_scratch else ())}
        if self.frozen and "distilled" in rows:
            rows = rows - {"distilled"} | {"frozen"}
        return tuple(row for row in ROWS if row in rows)

    @property
    def teacher_finetuning(self) -> FinetuneOptions:
        """Options of the teacher's fine-tuning."""
        return FinetuneOptions(
            epochs=self.teacher_epochs,
            learning_rates=self.teacher_learning_rates,
            frozen_layers=self.finetuning.frozen_layers,
        )


def _parse_threads(text: str) -> tuple[int, ...]:
    """Parse numbers of threads, as in 1,8; `all` stands for the number of cores."""
    # Imports multiprocessing, which --help does not need.
    from sentence_distill.pipeline.processes import cores

    numbers = parse_list(int, re.sub(r"\ball\b", str(cores()), text))
    if min(numbers) < 1:
        raise ValueError(f"{text!r} must be at least 1")
    return tuple(sorted(set(numbers)))


@dataclass(frozen=True, kw_only=True)
class EvalConfig(_Options):
    """Options of `sd eval`."""

    models: tuple[str, ...] = _named("--student", "[MODEL]...", "Same as MODEL; may be repeated.")
    shards: Path | None = option(
        None,
        "Shards whose held-out sentences are used for fidelity and timing.",
        shown="those that the first student was trained on",
    )
    sts: Path | None = option(
        None, "TSV file with columns sentence1, sentence2 and score.", shown="STS-B/dev.tsv in --glue-dir"
    )
    texts: tuple[str, ...] = option(
        (),
        "Text to measure on, in any form that sd embed takes; may be repeated. The teacher embeds up to 2,000 of its "
        "sentences.",
        flags=("--text",),
        metavar="FILE",
        repeated=True,
    )
    word_order: str | None = option(
        None,
        "Text whose sentences are negated, turned into questions, and have their names swapped, to test whether a "
        "model tells them apart as its teacher does.",
        metavar="FILE",
    )
    transfer: Path | None = option(
        None,
        "Folder of SentEval tasks (MR, CR, SUBJ, MPQA, SST, TREC, MRPC), scored by logistic regression on frozen "
        "vectors.",
        metavar="DIR",
    )
    teacher: str | None = option(
        None, "Teacher to compare with.", metavar="NAME", shown="the student's, if it is on this machine"
    )
    glue_dir: Path | None = option(None, "GLUE in the official TSV layout.", shown="nyu-mll/glue from the hub")
    json_file: Path | None = option(
        None,
        "File for the figures.",
        flags=("--json",),
        metavar="FILE",
        shown="eval.json, glue.json or speed.json in the first student's folder",
    )
    overwrite: bool = option(False, "Replace --json, whatever it holds; earlier figures are lost.", given=False)

    @property
    def on_data_given(self) -> bool:
        """True if the options name text or tasks to measure on; such figures need no file."""
        return bool(self.texts or self.word_order or self.transfer)

    @property
    def sts_file(self) -> Path | None:
        """File of STS-B's pairs: --sts, or dev.tsv of --glue-dir if it is there."""
        if self.sts is not None or self.glue_dir is None:
            return self.sts
        inside = self.glue_dir / "STS-B" / "dev.tsv"
        return inside if inside.exists() else None


@dataclass(frozen=True, kw_only=True)
class SpeedConfig(_Options):
    """Options of `sd eval --speed`."""

    sentences: Path | None = option(
        None, "Speed: text file with one sentence per line.", shown="the text in the shards", metavar="FILE"
    )
    threads: tuple[int, ...] = option(
        (),
        "Speed: numbers of threads; models are restarted for each.",
        parse=_parse_threads,
        metavar="N[,N…]",
        shown="1,all",
    )
    rounds: int = option(3, "Speed: number of rounds, in which models take turns; the median is reported.", least=1)
    batch_sizes: tuple[int, ...] = option((1, 8, 32, 128, 512), "Speed: sentences per call.", least=1)


def parse_note(text: str) -> str:
    """Parse TASK=TEXT, a note on the figures of a GLUE task; the task gets GLUE's own spelling."""
    task, _, remark = (part.strip() for part in text.partition("="))
    known = {name.lower(): name for name in TASKS}
    if task.lower() not in known or not remark:
        raise ValueError(f"{text!r} is not TASK=TEXT with one of {', '.join(TASKS)}")
    return f"{known[task.lower()]}={remark}"


@dataclass(frozen=True, kw_only=True)
class ReportConfig(_Options):
    """Options of `sd report`."""

    student: Path = option(Path(DEFAULT_STUDENT), "Folder of the student.", argument=True)
    out: Path = option(Path("report.html"), "File to write.", flags=("--out", "-o"))
    title: str | None = option(None, "Title of the page.", shown="one that names the teacher")
    notes: tuple[str, ...] = option(
        (),
        "Footnote for the figures of a GLUE task, for example if its data is not the official one; may be repeated.",
        flags=("--note",),
        repeated=True,
        parse=parse_note,
        metavar="TASK=TEXT",
    )
    overwrite: bool = option(False, "Replace --out even if it is not a report.", given=False)


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(_Options):
    """Options of `sd encode`."""

    inputs: tuple[str, ...] = _named("--input", "INPUT...", "Same as INPUT; may be repeated.")
    student: str | None = option(
        None,
        "Student: a folder, a name on the hub, or the folder of an export.",
        shown="distilled; if there is none, the packaged minilm-small",
        metavar="NAME",
    )
    out: str = option(
        "-",
        "File for the vectors; a stopped run is resumed.",
        shown="standard output",
        flags=("--out", "-o"),
        metavar="FILE",
    )
    format: Literal["jsonl", "parquet", "arrow", "npy"] | None = option(
        None, "Format of --out.", shown="from its suffix; jsonl for standard output"
    )
    input_format: InputFormat | None = option(None, "Format of the input.", shown="detected from content and name")
    text_column: str = option("text", "Column of the text.", aliases=("--text-field",), metavar="NAME")
    columns: tuple[str, ...] | None = option(
        None,
        "Columns of the input to write next to the vectors.",
        shown="all",
        parse=parse_names,
        metavar="NAME[,NAME]",
    )
    keep_columns: bool = option(True, "Write only the vectors, as npy always does.", flags=("--no-text",))
    dtype: Literal["float32", "float16"] = option("float32", "Data type of the vectors.")
    backend: Literal["auto", "onnx", "torch"] = option(
        "auto",
        "Compute in ONNX Runtime with int8, the fastest on a CPU, or in PyTorch. auto picks PyTorch on a GPU, or if "
        "--precision or --device is given.",
    )
    precision: Literal["auto", "bf16", "fp32"] | None = option(
        None, "Compute dtype of PyTorch.", shown="auto, which is bf16 if the hardware supports it"
    )
    device: str | None = option(None, "Device for PyTorch: auto, cpu, cuda or cuda:N.", shown="auto", metavar="DEVICE")
    threads: int | None = option(None, "Number of CPU threads.", shown="all cores", least=1)
    overwrite: bool = option(
        False, "Replace --out if it exists, and discard another run that was stopped.", given=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.inputs:
            raise UsageError("name the input: a file, a folder, a glob or a URL, or - for standard input")
        if "-" in self.inputs and (len(self.inputs) > 1 or self.out != "-"):
            raise UsageError(
                "standard input can only be encoded to standard output: a stopped run could not read it again; "
                "name an input file instead"
            )
        if self.out == "-" and self.format == "npy":
            raise UsageError("--format npy needs a file, because it begins with the number of rows; name --out")
        if not self.keep_columns and self.columns is not None:
            raise UsageError("--no-text writes no columns, --columns some; give one of them")
        if self.backend == "onnx" and (of_torch := self.option_of_torch):
            raise UsageError(f"{of_torch} is an option of PyTorch; leave it out, or use --backend torch")

    @property
    def option_of_torch(self) -> str | None:
        """Name of a given option that only PyTorch has; None if there is none."""
        given = {"--precision": self.precision, "--device": self.device}
        return next((name for name, value in given.items() if value is not None), None)


@dataclass(frozen=True, kw_only=True)
class PredictConfig(_Options):
    """Options of `sd predict`."""

    folder: str = option(
        MISSING, "Fine-tuned student: its folder, the folder of its export, or a name on the hub.", argument=True
    )
    inputs: tuple[str, ...] = _named(
        "--input",
        "INPUT...",
        "Same as INPUT; may be repeated.  [default: - (standard input)]",
        default=("-",),
    )
    out: str = option("-", "File to write; - is standard output.", flags=("--out", "-o"), metavar="FILE")
    format: Literal["jsonl", "csv", "tsv", "parquet"] | None = option(
        None, "Format of --out.", shown="from its suffix; jsonl for standard output"
    )
    input_format: InputFormat | None = option(None, "Format of the input.", shown="detected from content and name")
    text_column: str | None = option(
        None, "Column of the text; two columns for pairs.", shown="as in fine-tuning", metavar="NAME[,NAME]"
    )
    every_class: bool = option(False, "Write the probability of every class.", flags=("--all",))
    device: str = option("auto", "Device to compute on: auto, cpu, cuda or cuda:N.", metavar="DEVICE")
    overwrite: bool = option(False, "Replace --out if it exists.", given=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "-" in self.inputs and len(self.inputs) > 1:
            raise UsageError("standard input can't be joined with files; name one or the other")
