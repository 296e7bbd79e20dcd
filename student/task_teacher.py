"""A teacher fine-tuned on a task, and what students learn of it: vectors of layers and logits, over the task's text."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from sentence_distill.data import progress
from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.labelled import FIELDS, json_line, synthetic_examples
from sentence_distill.data.progress import counted
from sentence_distill.data.records import PAIR_SEPARATOR
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.pipeline.config import EmbedConfig
from sentence_distill.pipeline.embed import embed_corpus
from sentence_distill.pipeline.files import TEMPORARY, lock_folder, replacing
from sentence_distill.pipeline.load import Located
from sentence_distill.student.classifier import TeacherClassifier, most_tokens
from sentence_distill.student.figures import Outcome
from sentence_distill.student.files import FINETUNED_TEACHER
from sentence_distill.student.finetune import LOOP, Fitter
from sentence_distill.student.task_data import Labelled, TaskData, from_logits

# Seed of the teacher that students learn from; it is the same for all their seeds.
TEACHER_SEED = 0
# Before, between and after a pair, at most.
_SPECIAL_TOKENS = 4
# Maximum words of an example; what the teacher can't hold is rejected by its tokens.
_MOST_WORDS = 1000
_SHARD_ROWS = 8192
_MOST_COPIES = 20


@dataclass(frozen=True)
class Targets:
    """Shards that a student of a task learns from; for single texts both are in one folder."""

    vectors: Path
    """Shards with the vectors of the teacher's last layers; of pairs, each side alone."""
    logits: Path
    """Shards with its logits for every text or pair."""


@dataclass(frozen=True)
class TaskTeacher:
    """A teacher that is fine-tuned on tasks, each in a folder of its own; what is there already is not done again.

    Of several runs that need the same folder one makes what is missing, and the others wait for it.
    """

    located: Located
    """The pre-trained teacher."""
    folder: Path
    """Where the tasks' folders go."""
    fitter: Fitter
    synthetic: int
    """Approximate number of augmented examples of a task. Each of its own examples has the same number of copies, at
    most 20, as in Tang et al."""
    unlabeled: tuple[str, ...] = ()
    """Files of more text of the task, with the columns that the training examples have or lines of text."""
    text_column: str = "text"
    most_texts: int | None = None
    """Maximum number of texts to embed: first the task's own, then a sample of those without labels, then augmented
    copies."""
    _read: list[tuple[str, ...]] = field(default_factory=list)
    """Text without labels, once it is read."""

    @cached_property
    def _weights(self) -> list[str]:
        return self.located.weights_hashes()

    def finetuned(self, data: TaskData) -> tuple[Path, Outcome]:
        """Return the folder of the teacher fine-tuned on a task, and its scores on dev."""
        with self._held(data) as place:
            folder = place / "teacher"
            with suppress(FileNotFoundError):
                return folder, msgspec.json.decode((folder / FINETUNED_TEACHER).read_bytes(), type=Outcome)
            start = partial(TeacherClassifier.load, self.located, data.task, TEACHER_SEED)
            checkpoint = place / "teacher.pt"
            model, outcome = self.fitter.fit(start, data, seed=TEACHER_SEED, label="teacher", checkpoint=checkpoint)
            model.save(folder, data.task, outcome)
            # Only now: the disk may have been full.
            checkpoint.unlink(missing_ok=True)
            return folder, outcome

    def logits(self, data: TaskData) -> Labelled:
        """Return the task's text and augmented copies of it, with the fine-tuned teacher's logits as targets."""
        return from_logits(self.targets(data, sides=False).logits, data)

    def targets(self, data: TaskData, *, sides: bool = True) -> Targets:
        """Embed the task's text, augmented copies of it, and the text without labels, with the fine-tuned teacher.

        Of pairs the vectors are those of their sides, which `sides` can leave out; `Targets.vectors` is then not made.
        """
        from transformers import AutoConfig, AutoTokenizer

        teacher, _ = self.finetuned(data)
        config = AutoConfig.from_pretrained(teacher, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(teacher, local_files_only=True)
        columns = tuple(list(column) for column in data.train.texts)
        copies, more = self._copies(data), self.more(data)
        if self.most_texts is not None:
            room = max(0, self.most_texts - len(columns[0]))
            if room < len(more):
                drawn = np.random.default_rng(TEACHER_SEED).permutation(len(more))[:room]
                more = [more[row] for row in np.sort(drawn)]
            copies = min(copies, (room - len(more)) // len(columns[0]))
        key = f"{copies}-{bytes_hash(json.dumps(more).encode())[:8]}" if more else str(copies)
        text, last = teacher.parent / f"text-{key}.jsonl", int(config.num_hidden_layers)
        # `sd embed` takes no more of a text than the tokenizer would keep.
        most = min(most_tokens(config), int(tokenizer.model_max_length)) - _SPECIAL_TOKENS
        layers = tuple(dict.fromkeys(max(1, last * part // 6) for part in (4, 5, 6)))

        def embed(name: str, file: Path, fields: Sequence[str], **options: Any) -> Path:
            out = teacher.parent / f"{name}-{key}"
            embed_corpus(
                corpus=Corpus.open([str(file)], format="jsonl", text_column=",".join(fields)),
                located=Located(teacher, f"{self.located.name} fine-tuned on {data.task.name}"),
                config=EmbedConfig(
                    out=str(out),
                    rules=SentenceRules(split=False, min_words=1, max_words=_MOST_WORDS),
                    shard_rows=_SHARD_ROWS,
                    max_tokens=most,
                    device=str(self.fitter.device),
                    precision="bf16" if self.fitter.precision == torch.bfloat16 else "fp32",
                    **options,
                ),
            )
            return out

        with self._held(data):
            with replacing(text) as file:
                mask = str(tokenizer.mask_token or tokenizer.unk_token)
                augmented = synthetic_examples(columns, copies=copies, mask=mask, seed=TEACHER_SEED)
                file.writelines(map(json_line, chain(zip(*columns, strict=True), augmented, more)))
            fields = FIELDS[len(columns)]
            if len(columns) == 1:
                both = embed("targets", text, fields, pooling="mean+logits", layers=layers)
                return Targets(both, both)
            logits = embed("logits", text, fields, dtype="float32")
            if not sides:
                return Targets(logits, logits)
            each = teacher.parent / f"sides-{key}.jsonl"
            with replacing(each) as file:
                file.writelines(json_line((side,)) for side in dict.fromkeys(chain(*columns, *more)))
            return Targets(embed("vectors", each, FIELDS[1], pooling="mean", layers=layers), logits)

    def texts(self, data: TaskData) -> int:
        """Return the number of texts or pairs that `targets` embeds, copies that turn out the same included."""
        return len(data.train.targets) * (1 + self._copies(data)) + len(self.more(data))

    def _copies(self, data: TaskData) -> int:
        return min(_MOST_COPIES, -(-self.synthetic // len(data.train.targets)))

    def more(self, data: TaskData) -> list[tuple[str, ...]]:
        """Return the text without labels, of one column or two, in the order of its files."""
        if not self.unlabeled or self._read:
            return self._read
        columns, names = len(data.train.texts), f"--unlabeled {', '.join(self.unlabeled)}"
        corpus = Corpus.open(list(self.unlabeled), text_column=self.text_column)
        texts = [record.text for record in corpus.records()]
        usable = [text for text in texts if text is not None and text.strip()]
        if not usable:
            raise UserError(f"{names} holds no text; check the files and --text-column")
        if len(usable) < len(texts):
            lost = counted(len(texts) - len(usable), "row")
            progress.log(f"--unlabeled: {lost} of {len(texts):,} without text left out")
        # A tab inside a single text is white space.
        found = [tuple(text.split(PAIR_SEPARATOR)) if columns == 2 else (text,) for text in usable]
        if wrong := next((row for row in found if len(row) != columns), None):
            raise UserError(
                f"{names} has {counted(len(wrong), 'text')} in a row, {wrong[0][:40]!r}, and a row of --train has "
                f"{columns}; name the same columns"
            )
        self._read.extend(found)
        return self._read

    @contextmanager
    def _held(self, data: TaskData) -> Iterator[Path]:
        """Hold the folder of a task for this process alone."""
        place = self.place(data)
        place.mkdir(parents=True, exist_ok=True)
        message = f"{data.task.name}: another run makes its teacher in {place}; waiting for it"
        with lock_folder(place, wait=True, waiting=lambda: progress.log(message)):
            for temporary in place.glob(f"*{TEMPORARY}"):  # what a kill left
                temporary.unlink()
            yield place

    def place(self, data: TaskData) -> Path:
        """Return the folder of a task, named after all that its teacher depends on, so that nothing in it is stale."""
        identity = {
            "teacher": self.located.name,
            "weights": self._weights,
            "seed": TEACHER_SEED,
            "finetuning": {**asdict(self.fitter.config), "loop": LOOP},
            "computed": f"{self.fitter.precision} on {self.fitter.device.type}",
            "data": data.hash,
            # The hash is of standardized scores, and of class numbers.
            "labels": data.task.labels,
            "scale": (data.mean, data.deviation),
        }
        return self.folder / f"{data.task.name}-{bytes_hash(json.dumps(identity).encode())[:8]}"
