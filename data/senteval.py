"""SentEval's transfer tasks for sentence embeddings (Conneau and Kiela 2018, arXiv:1803.05449), read from files."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import counted

# Minimum number of examples per class: fewer leave a fold of the cross-validation without any.
_FEWEST, _FEWEST_IN_FOLDS = 3, 10


@dataclass(frozen=True)
class Split:
    """A split with n texts, or pairs, and their classes."""

    texts: tuple[list[str], ...]
    """One or two columns of n texts."""
    labels: list[str]


@dataclass(frozen=True)
class TransferTask:
    """A task with a single table, or with train, dev and test splits."""

    name: str
    train: Split
    dev: Split | None = None
    test: Split | None = None
    """None for a task without splits, which is scored by cross-validation."""


def transfer_tasks(folder: Path) -> dict[str, TransferTask]:
    """Read the tasks in `folder`, the downstream/ that SentEval's get_transfer_data.bash fills.

    Raises:
        UserError: there is no task, or a file can't be read.
    """
    if not folder.is_dir():
        raise UserError(f"--transfer {folder} is not a folder; name the one that holds MR/, CR/ and so on")
    found = {name: read(name, folder / name) for name, read in _READERS.items() if (folder / name).is_dir()}
    if not found:
        raise UserError(
            f"--transfer {folder} holds none of {', '.join(_READERS)}; they are the folders in data/downstream that "
            "SentEval's script downloads"
        )
    for name, task in found.items():
        label, count = Counter(task.train.labels).most_common()[-1]
        if count < (_FEWEST if task.test else _FEWEST_IN_FOLDS):
            raise UserError(
                f"{folder / name}: class {label!r} has only {counted(count, 'training example')}; check the files"
            )
    return found


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); it is part of SentEval's layout") from error
    try:
        text = content.decode()
    except UnicodeDecodeError:
        # The files of Pang and Lee and of TREC are in Latin-1.
        text = content.decode("latin-1")
    lines = [line.strip() for line in text.split("\n")]
    if not any(lines):
        raise UserError(f"{path} is empty; download it again")
    return [line for line in lines if line]


def _by_class(positive: str, negative: str) -> Callable[[str, Path], TransferTask]:
    """Return a reader of tasks with one file per class."""

    def read(name: str, folder: Path) -> TransferTask:
        yes, no = _lines(folder / positive), _lines(folder / negative)
        return TransferTask(name, Split(([*yes, *no],), ["1"] * len(yes) + ["0"] * len(no)))

    return read


def _sst(name: str, folder: Path) -> TransferTask:
    def read(split: str) -> Split:
        path = folder / "binary" / f"sentiment-{split}"
        rows = [line.rpartition("\t") for line in _lines(path)]
        if wrong := [label for _, _, label in rows if label not in ("0", "1")]:
            raise UserError(f"{path} should hold lines of text, a tab, and 0 or 1, not {wrong[0]!r}")
        return Split(([text for text, _, _ in rows],), [label for _, _, label in rows])

    return TransferTask(name, read("train"), read("dev"), read("test"))


def _trec(name: str, folder: Path) -> TransferTask:
    def read(file: str) -> Split:
        # Lines such as "LOC:city What city …"; the class is the coarse one, LOC.
        rows = [line.partition(" ") for line in _lines(folder / file)]
        if wrong := [label for label, _, _ in rows if ":" not in label]:
            raise UserError(f"{folder / file} should hold lines such as LOC:city What city …, not {wrong[0]!r}")
        return Split(([text for _, _, text in rows],), [label.partition(":")[0] for label, _, _ in rows])

    return TransferTask(name, read("train_5500.label"), test=read("TREC_10.label"))


def _mrpc(name: str, folder: Path) -> TransferTask:
    def read(split: str) -> Split:
        path = folder / f"msr_paraphrase_{split}.txt"
        content = "\n".join(_lines(path)).removeprefix("\ufeff")
        rows = list(csv.DictReader(io.StringIO(content), delimiter="\t", quoting=csv.QUOTE_NONE))
        columns = ("#1 String", "#2 String", "Quality")
        if any(row.get(column) is None for row in rows for column in columns) or not rows:
            raise UserError(f"{path} should have the columns {', '.join(columns)}; download it again")
        return Split(tuple([row[column] for row in rows] for column in columns[:2]), [row["Quality"] for row in rows])

    return TransferTask(name, read("train"), test=read("test"))


_READERS: Mapping[str, Callable[[str, Path], TransferTask]] = {
    "MR": _by_class("rt-polarity.pos", "rt-polarity.neg"),
    "CR": _by_class("custrev.pos", "custrev.neg"),
    "SUBJ": _by_class("subj.subjective", "subj.objective"),
    "MPQA": _by_class("mpqa.pos", "mpqa.neg"),
    "SST": _sst,
    "TREC": _trec,
    "MRPC": _mrpc,
}
