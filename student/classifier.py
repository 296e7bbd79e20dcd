"""Models with a head for one task: a student or a teacher under it, and their folders."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Task
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.files import system_errors, write_atomically, write_json
from sentence_distill.pipeline.load import (
    LOADING_ERRORS,
    Located,
    load_tokenizer,
    require_vocabulary,
    separator_tokens,
    special_tokens,
    unusable,
)
from sentence_distill.pipeline.teacher_folder import read_folder
from sentence_distill.student.figures import Outcome, TaskRecord, TeacherRecord
from sentence_distill.student.files import FINETUNED_TEACHER, HEAD, TASK
from sentence_distill.student.model import Student, encode_tokens, load_student, save_student

HEAD_UNITS = 512
HEAD_DROPOUT = 0.2
_MOST_TOKENS = 256


# Examples as a model reads them.


@dataclass(frozen=True)
class Padded:
    """A batch of b examples in c columns."""

    input_ids: torch.Tensor
    """int64[c * b, longest], column after column; 0 fills a text up."""
    lengths: torch.Tensor
    """int64[c * b]."""
    first: torch.Tensor | None
    """int64[b], see `ExampleTokens`."""


@dataclass(frozen=True)
class ExampleTokens:
    """Tokens of n examples."""

    columns: tuple[Tokens, ...]
    """The tokens of n texts for each text of an example; a model that reads pairs as one text has one column."""
    first: np.ndarray | None = None
    """int[n], the number of tokens of the only column that belong to the first text of a pair."""

    def __len__(self) -> int:
        return len(self.columns[0])

    def batches(self, size: int, rng: np.random.Generator | None) -> Iterator[np.ndarray]:
        """Cut the examples into batches of similar length, in random order if `rng` is given."""
        lengths = np.max([column.lengths for column in self.columns], axis=0)
        rows = rng.permutation(len(self)) if rng is not None else np.arange(len(self))
        order = rows[np.argsort(lengths[rows], kind="stable")]
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        for batch in rng.permutation(len(batches)) if rng is not None else range(len(batches)):
            yield batches[batch]

    def padded(self, rows: np.ndarray, device: torch.device) -> Padded:
        """Return the tokens of int[b] `rows`, column after column."""
        padded, lengths = Tokens.concatenated([column.take(rows) for column in self.columns]).padded()
        first = None if self.first is None else torch.from_numpy(self.first[rows]).to(device)
        return Padded(torch.from_numpy(padded).to(device), torch.from_numpy(lengths).to(device), first)


class StudentClassifier(nn.Module):
    """A student's encoder under a head with one hidden layer.

    The head reads the pooled LSTM states, u of a single sentence and [u, v, |u - v|, u * v] of a pair, whose sentences
    are encoded each alone.
    """

    def __init__(self, student: Student, columns: int, outputs: int) -> None:
        """Put a new head on a student, whose encoder is shared and not copied, for 1 column of texts or for pairs."""
        super().__init__()
        self.encoder = student.encoder
        self.tokenizer = student.tokenizer
        # A batch holds few of the words, and a dense pass over all of them takes as long as the LSTM.
        self.encoder.embedding.sparse = True
        self.columns = columns
        width = self.encoder.config.pooled_dim * (1 if columns == 1 else 4)
        self.head = nn.Sequential(
            nn.Dropout(HEAD_DROPOUT),
            nn.Linear(width, HEAD_UNITS),
            nn.ReLU(),
            nn.Dropout(HEAD_DROPOUT),
            nn.Linear(HEAD_UNITS, outputs),
        )

    @classmethod
    def new(cls, student: Student, task: Task, seed: int) -> "StudentClassifier":
        """Return a copy of a student with a new head for a task."""
        copy = Student(deepcopy(student.encoder), student.tokenizer)
        torch.manual_seed(seed)
        return cls(copy, len(task.columns), task.outputs)

    @property
    def student(self) -> Student:
        """The student, without the head."""
        return Student(self.encoder, self.tokenizer)

    def tokenize(self, texts: Sequence[Sequence[str]]) -> ExampleTokens:
        """Tokenize one or two columns of texts."""
        return ExampleTokens(tuple(self.student.tokenize(column) for column in texts))

    def forward(self, batch: Padded) -> torch.Tensor:
        """Return logits, float[b, outputs]."""
        return self.logits(self.encoder.pool_padded(batch.input_ids, batch.lengths).chunk(self.columns))

    def logits(self, pooled: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return logits, float[b, outputs], from pooled states, float[b, pooled_dim] of each column."""
        if self.columns == 1:
            return self.head(pooled[0])  # type: ignore[no-any-return]
        u, v = pooled
        return self.head(torch.cat([u, v, (u - v).abs(), u * v], dim=1))  # type: ignore[no-any-return]

    def head_arrays(self) -> dict[str, np.ndarray]:
        """Return the head's weights as float32 arrays, by their names in `head.state_dict`."""
        return {name: weight.float().cpu().numpy() for name, weight in self.head.state_dict().items()}

    def pretrained(self) -> list[nn.Parameter]:
        """Return the weights that came with the student, and not with the task."""
        return list(self.encoder.parameters())

    def rescale(self, factor: float, shift: float) -> None:
        """Let a regression give `factor` times its scores, plus `shift`."""
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.mul_(factor)
            last.bias.mul_(factor).add_(shift)


# The folder of a fine-tuned student: a student's, with the head next to it.


def save_classifier(
    folder: Path, model: StudentClassifier, record: TaskRecord, glue_task: str | None, distillation: dict[str, Any]
) -> None:
    """Write a fine-tuned student and its record; `distillation` is of the student that it was made of."""
    folder.mkdir(parents=True, exist_ok=True)
    head = {name: value.cpu().contiguous() for name, value in model.head.state_dict().items()}
    write_atomically(folder / HEAD, save(head))
    write_json(folder / TASK, msgspec.to_builtins(record))
    changed = {
        # Fidelity was measured before the encoder moved.
        "metrics": {record.task: record.scores},
        "dev_examples": record.dev_examples,
        "glue_task": glue_task,
        # The license of the student that it was made of does not cover a user's examples.
        "licence": None,
    }
    # Last, so that no student without its head passes for a finished one.
    save_student(folder, model.student, {**distillation, **changed})


def load_classifier(folder: Path) -> tuple[StudentClassifier, Task]:
    """Read a fine-tuned student, and the task that it knows."""
    try:
        record = msgspec.json.decode((folder / TASK).read_bytes(), type=TaskRecord)
        task = Task(
            name=record.task,
            columns=record.text_columns,
            label=record.label_column,
            labels=record.labels,
            metrics=record.metrics,
        )
        classifier = StudentClassifier(load_student(folder), len(task.columns), task.outputs)
        classifier.head.load_state_dict(load_file(folder / HEAD))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no fine-tuned student ({error}); make one: sd finetune STUDENT") from error
    return classifier.eval(), task


@dataclass(frozen=True)
class TorchClassifier:
    """A fine-tuned student in PyTorch; see `OnnxClassifier`."""

    model: StudentClassifier
    """The model in evaluation mode, on the device that computes."""
    task: Task

    def outputs(self, columns: Sequence[Sequence[str]]) -> np.ndarray:
        """Return probabilities, float32[n, classes], or scores of a regression, float32[n, 1], of n texts a column."""
        device = next(self.model.parameters()).device
        pooled = [
            encode_tokens(self.model.encoder, tokens, pooled=True) for tokens in self.model.tokenize(columns).columns
        ]
        with torch.inference_mode():
            logits = self.model.logits([part.to(device) for part in pooled])
            return (logits if self.task.regression else logits.softmax(dim=1)).cpu().numpy()


class TeacherClassifier(nn.Module):
    """A pre-trained transformer under the head that transformers puts on it; pairs are read as one text."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Put a `…ForSequenceClassification` and transformers' fast tokenizer, which is saved with it, together."""
        super().__init__()
        self.model = model
        self._tokenizer = tokenizer
        self._texts = TextTokenizer(tokenizer.backend_tokenizer.to_str())

    @classmethod
    def load(cls, located: Located, task: Task, seed: int) -> "TeacherClassifier":
        """Load an encoder's weights (safetensors only); it gets a new head, unless it has one of as many classes."""
        from transformers import AutoModelForSequenceClassification
        from transformers.utils import logging

        require_vocabulary(located)
        folder = read_folder(located.folder)
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # the head is new, and no warning is needed to say so
        labels = dict(enumerate(task.labels or ("score",)))
        torch.manual_seed(seed)
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder.transformer,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                # With a mask in bfloat16 the other implementation is a quarter slower on CPUs.
                attn_implementation=None if torch.cuda.is_available() else "eager",
                id2label=labels,
                label2id={name: number for number, name in labels.items()},
                problem_type="regression" if task.regression else "single_label_classification",
                output_loading_info=True,
                **folder.config_options,
            )
        except LOADING_ERRORS as error:
            raise unusable(located, error) from error
        encoder = f"{model.base_model_prefix}."
        lacking = [name for name in report["missing_keys"] if name.startswith(encoder) and ".pooler." not in name]
        if lacking:
            raise unusable(located, ValueError(f"its weights lack {lacking[0]} and {len(lacking) - 1} others"))
        return cls(model, load_tokenizer(located, folder))

    def tokenize(self, texts: Sequence[Sequence[str]]) -> ExampleTokens:
        """Tokenize texts, or pairs as one, with special tokens; of what is too long the longer text is cut."""
        columns = [self._texts.tokenize(column) for column in texts]
        prefix, suffix = special_tokens(self._texts)
        most = min(most_tokens(self.model.config), self._tokenizer.model_max_length) - len(prefix) - len(suffix)
        if len(columns) == 1:
            tokens = columns[0].cut(most).wrapped(prefix, suffix)
            return ExampleTokens((tokens,), tokens.lengths)
        separator = separator_tokens(self._texts, prefix, suffix, self._tokenizer.name_or_path)
        # The separator before a second text is of the first for BERT, whose type ids alone are read.
        first, second = _cut_longest_first(columns[0], columns[1], most - len(separator))
        tokens = Tokens.joined([first, Tokens.of([separator] * len(first)), second]).wrapped(prefix, suffix)
        return ExampleTokens((tokens,), len(prefix) + first.lengths + len(separator))

    def forward(self, batch: Padded) -> torch.Tensor:
        """Return logits, float[b, outputs]."""
        assert batch.first is not None
        places = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        inputs = {"input_ids": batch.input_ids, "attention_mask": (places < batch.lengths[:, None]).long()}
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = (places >= batch.first[:, None]).long() * inputs["attention_mask"]
        return self.model(**inputs).logits  # type: ignore[no-any-return]

    def freeze(self, layers: int) -> None:
        """Leave the word embeddings and so many of the lowest layers as they are; 0 leaves nothing."""
        if not layers:
            return
        encoder, count = self.model.base_model, self.model.config.num_hidden_layers
        stacks = [part for part in encoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
        if not stacks or layers > count:
            raise UserError(f"--freeze-layers {layers}: the teacher has {count if stacks else 'no list of'} layers")
        for part in (encoder.get_input_embeddings(), getattr(encoder, "embeddings", None), *stacks[0][:layers]):
            if part is not None:
                part.requires_grad_(False)

    def pretrained(self) -> list[nn.Parameter]:
        """Return the encoder's weights."""
        return list(self.model.base_model.parameters())

    def save(self, folder: Path, task: Task, outcome: Outcome) -> None:
        """Write the model as transformers does, and its record; `sd embed --teacher` takes the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        before = {path.name for path in folder.iterdir()}
        with system_errors(folder):
            self.model.save_pretrained(folder)
            self._tokenizer.save_pretrained(folder)
        files = tuple(sorted({path.name for path in folder.iterdir()} - before))
        record = TeacherRecord(task=task.name, files=files, **msgspec.structs.asdict(outcome))
        write_json(folder / FINETUNED_TEACHER, msgspec.to_builtins(record))


TaskModel = StudentClassifier | TeacherClassifier


def _cut_longest_first(first: Tokens, second: Tokens, most: int) -> tuple[Tokens, Tokens]:
    """Cut pairs to `most` tokens together, as the tokenizers library does: token by token from the longer text."""
    short, long = np.minimum(first.lengths, second.lengths), np.maximum(first.lengths, second.lengths)
    # The shorter keeps its tokens as long as it is the shorter; where both are too long they share.
    kept_long = np.where(short + long <= most, long, np.maximum(most - short, most - most // 2))
    kept_short = np.minimum(short, np.where(short + long <= most, short, most - kept_long))
    swapped = first.lengths > second.lengths
    rows = np.arange(len(first))
    return (
        first.take(rows, np.where(swapped, kept_long, kept_short)),
        second.take(rows, np.where(swapped, kept_short, kept_long)),
    )


def most_tokens(config: Any) -> int:
    """Return the maximum tokens of an example, special ones counted, by a model's configuration."""
    # RoBERTa-like models start their positions after the padding id; XLNet's and T5's have no end.
    positions = int(getattr(config, "max_position_embeddings", None) or -1)
    return min(_MOST_TOKENS, positions - 2) if positions > 0 else _MOST_TOKENS
