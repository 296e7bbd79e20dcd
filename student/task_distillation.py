"""Task-specific distillation."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from sentence_distill.data import progress
from sentence_distill.data.corpus import Corpus
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.labelled import FIELDS, json_line, synthetic_examples
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.pipeline.config import EmbedConfig
from sentence_distill.pipeline.embed import embed_corpus
from sentence_distill.pipeline.files import lock_folder, replacing, write_atomically
from sentence_distill.pipeline.load import Located
from sentence_distill.student.finetune import LOOP, Labelled, Outcome
from sentence_distill.student.fit import Fitter
from sentence_distill.student.task_data import TaskData, from_logits
from sentence_distill.student.task_teacher import TeacherClassifier, longest_text, mask_token

_RECORD = "finetuning.json"
# The words of one example; what the teacher can't hold is rejected by its tokens.
_MOST_WORDS = 1000
_SHARD_ROWS = 8192
_MOST_COPIES = 20


@dataclass(frozen=True, kw_only=True)
class TaskTeacher:
    """A teacher that is fine-tuned on tasks, each in a folder of its own; what is there already is not done again.

    Of several runs that need the same folder one makes what is missing, and the others wait for it.

    Args:
        located: the pre-trained teacher.
        folder: where the tasks' folders go.
        fitter: how it is fine-tuned.
        synthetic: augmented examples of a task, about; 0 makes none. Each of its own examples has the same number of
            copies, at most 20, as many as Tang et al. made.
    """

    located: Located
    folder: Path
    fitter: Fitter
    synthetic: int

    def finetuned(self, data: TaskData, seed: int) -> tuple[Path, Outcome, float]:
        """The teacher fine-tuned on a task: its folder, its scores on dev, and its learning rate.

        Args:
            data: the task.
            seed: of the head, the order of examples and dropout.
        """
        with self._held(data, seed) as place:
            return self._finetuned(place / "teacher", data, seed)

    def _finetuned(self, folder: Path, data: TaskData, seed: int) -> tuple[Path, Outcome, float]:
        with suppress(FileNotFoundError):
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
            return folder, Outcome(**record["outcome"]), record["learning_rate"]
        start = partial(TeacherClassifier.load, self.located, data.task, seed)
        fitted = self.fitter.fit(start, data, seed=seed, label="teacher")
        fitted.model.save(folder)
        record = {"outcome": asdict(fitted.outcome), "learning_rate": fitted.learning_rate}
        # Last, so that a folder with it is whole.
        write_atomically(folder / _RECORD, (json.dumps(record, indent=1) + "\n").encode())
        return folder, fitted.outcome, fitted.learning_rate

    def logits(self, data: TaskData, seed: int) -> Labelled:
        """The task's text and augmented copies of it, with the fine-tuned teacher's logits as targets.

        Args:
            data: the task.
            seed: of the teacher and of augmentation.
        """
        with self._held(data, seed) as place:
            teacher, _, _ = self._finetuned(place / "teacher", data, seed)
            return self._logits(teacher, data, seed)

    def _logits(self, teacher: Path, data: TaskData, seed: int) -> Labelled:
        columns = tuple(list(column) for column in data.train.texts)
        copies = min(_MOST_COPIES, -(-self.synthetic // len(columns[0])))
        text, shards = teacher.parent / f"text-{copies}.jsonl", teacher.parent / f"logits-{copies}"
        with replacing(text) as file:
            for example in zip(*columns, strict=True):
                file.write(json_line(example))
            for example in synthetic_examples(columns, copies=copies, mask=mask_token(teacher), seed=seed):
                file.write(json_line(example))
        embed_corpus(
            corpus=Corpus.open([str(text)], format="jsonl", text_column=",".join(FIELDS[len(columns)])),
            located=Located(teacher, f"{self.located.name} fine-tuned on {data.task.name}"),
            config=EmbedConfig(
                out=str(shards),
                rules=SentenceRules(split=False, min_words=1, max_words=_MOST_WORDS),
                shard_rows=_SHARD_ROWS,
                max_tokens=longest_text(teacher),
                dtype="float32",
                device=str(self.fitter.device),
                precision="bf16" if self.fitter.precision == torch.bfloat16 else "fp32",
            ),
        )
        return from_logits(shards, data)

    @contextmanager
    def _held(self, data: TaskData, seed: int) -> Iterator[Path]:
        """The folder of a task, for this process alone."""
        place = self._place(data, seed)
        place.mkdir(parents=True, exist_ok=True)
        told = f"{data.task.name}: another run makes its teacher in {place}; waiting for it"
        with lock_folder(place, wait=True, waiting=lambda: progress.log(told)):
            yield place

    def _place(self, data: TaskData, seed: int) -> Path:
        """The folder of a task, named after all that its teacher depends on, so that nothing in it is ever stale."""
        identity = {
            "teacher": self.located.name,
            "weights": self.located.weights_hashes(),
            "seed": seed,
            "finetuning": {**self.fitter.config.identity(), "loop": LOOP},
            "computed": f"{self.fitter.precision} on {self.fitter.device.type}",
            "data": data.hash,
        }
        return self.folder / f"{data.task.name}-{bytes_hash(json.dumps(identity).encode())[:8]}"
