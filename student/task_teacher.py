"""A teacher fine-tuned on a task, and its logits for task-specific distillation."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from sentence_distill.data import progress
from sentence_distill.data.corpus import Corpus
from sentence_distill.data.glue import Task
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.labelled import FIELDS, json_line, synthetic_examples
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.config import EmbedConfig
from sentence_distill.pipeline.embed import embed_corpus
from sentence_distill.pipeline.files import lock_folder, replacing, system_errors, write_json
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
from sentence_distill.student.config import LOOP
from sentence_distill.student.files import FINETUNED_TEACHER
from sentence_distill.student.fit import ExampleTokens, Fitter, Padded
from sentence_distill.student.task_data import Labelled, Outcome, TaskData, TeacherRecord, from_logits

_MOST_TOKENS = 256
# Before, between and after a pair, at most.
_SPECIAL_TOKENS = 4
# Maximum words of an example; what the teacher can't hold is rejected by its tokens.
_MOST_WORDS = 1000
_SHARD_ROWS = 8192
_MOST_COPIES = 20


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
        """Load an encoder's weights (safetensors only); it gets a new head, unless it has one of as many classes.

        Raises:
            UserError: the folder holds no encoder that can be loaded safely.
        """
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
        tokenizer = load_tokenizer(located, folder)
        encoder = f"{model.base_model_prefix}."
        lacking = [name for name in report["missing_keys"] if name.startswith(encoder) and ".pooler." not in name]
        if lacking:
            raise unusable(located, ValueError(f"its weights lack {lacking[0]} and {len(lacking) - 1} others"))
        return cls(model, tokenizer)

    def tokenize(self, texts: Sequence[Sequence[str]]) -> ExampleTokens:
        """Tokenize texts, or pairs as one, with special tokens; of what is too long the longer text is cut.

        Raises:
            UserError: the tokenizer joins no pairs.
        """
        columns = [self._texts.tokenize(column) for column in texts]
        prefix, suffix = special_tokens(self._texts)
        most = min(most_tokens(self.model.config), self._tokenizer.model_max_length) - len(prefix) - len(suffix)
        if len(columns) == 1:
            tokens = columns[0].cut(most).wrapped(prefix, suffix)
            return ExampleTokens((tokens,), tokens.lengths)
        separator = separator_tokens(self._texts, prefix, suffix, self._tokenizer.name_or_path)
        # The separator before a second text is of the first for BERT, whose type ids alone are read.
        first, second = _cut_longest_first(columns[0], columns[1], most - len(separator))
        between = Tokens.of([separator] * len(first))
        return ExampleTokens(
            (Tokens.joined([first, between, second]).wrapped(prefix, suffix),),
            len(prefix) + first.lengths + len(separator),
        )

    def forward(self, batch: Padded) -> torch.Tensor:
        """Return logits, float[b, outputs]."""
        assert batch.first is not None
        places = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        inputs = {"input_ids": batch.input_ids, "attention_mask": (places < batch.lengths[:, None]).long()}
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = (places >= batch.first[:, None]).long() * inputs["attention_mask"]
        return self.model(**inputs).logits  # type: ignore[no-any-return]

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

    def finetuned(self, data: TaskData, seed: int) -> tuple[Path, Outcome]:
        """Return the folder of the teacher fine-tuned on a task, and its scores on dev.

        Args:
            data: the task.
            seed: seed of the head, the order of examples and dropout.
        """
        with self._held(data, seed) as place:
            folder = place / "teacher"
            with suppress(FileNotFoundError):
                return folder, msgspec.json.decode((folder / FINETUNED_TEACHER).read_bytes(), type=Outcome)
            start = partial(TeacherClassifier.load, self.located, data.task, seed)
            model, outcome = self.fitter.fit(start, data, seed=seed, label="teacher")
            model.save(folder, data.task, outcome)
            return folder, outcome

    def logits(self, data: TaskData, seed: int) -> Labelled:
        """Return the task's text and augmented copies of it, with the fine-tuned teacher's logits as targets.

        Args:
            data: the task.
            seed: seed of the teacher and of augmentation.
        """
        from transformers import AutoConfig, AutoTokenizer

        teacher, _ = self.finetuned(data, seed)
        tokenizer = AutoTokenizer.from_pretrained(teacher, local_files_only=True)
        # `sd embed` takes no more of a text than the tokenizer would keep.
        longest = most_tokens(AutoConfig.from_pretrained(teacher, local_files_only=True))
        columns = tuple(list(column) for column in data.train.texts)
        copies = min(_MOST_COPIES, -(-self.synthetic // len(columns[0])))
        text, shards = teacher.parent / f"text-{copies}.jsonl", teacher.parent / f"logits-{copies}"
        with self._held(data, seed):
            with replacing(text) as file:
                for example in zip(*columns, strict=True):
                    file.write(json_line(example))
                mask = str(tokenizer.mask_token or tokenizer.unk_token)
                for example in synthetic_examples(columns, copies=copies, mask=mask, seed=seed):
                    file.write(json_line(example))
            embed_corpus(
                corpus=Corpus.open([str(text)], format="jsonl", text_column=",".join(FIELDS[len(columns)])),
                located=Located(teacher, f"{self.located.name} fine-tuned on {data.task.name}"),
                config=EmbedConfig(
                    out=str(shards),
                    rules=SentenceRules(split=False, min_words=1, max_words=_MOST_WORDS),
                    shard_rows=_SHARD_ROWS,
                    max_tokens=min(longest, int(tokenizer.model_max_length)) - _SPECIAL_TOKENS,
                    dtype="float32",
                    device=str(self.fitter.device),
                    precision="bf16" if self.fitter.precision == torch.bfloat16 else "fp32",
                ),
            )
        return from_logits(shards, data)

    @contextmanager
    def _held(self, data: TaskData, seed: int) -> Iterator[Path]:
        """Hold the folder of a task for this process alone."""
        place = self.place(data, seed)
        place.mkdir(parents=True, exist_ok=True)
        message = f"{data.task.name}: another run makes its teacher in {place}; waiting for it"
        with lock_folder(place, wait=True, waiting=lambda: progress.log(message)):
            yield place

    def place(self, data: TaskData, seed: int) -> Path:
        """Return the folder of a task, named after all that its teacher depends on, so that nothing in it is stale."""
        identity = {
            "teacher": self.located.name,
            "weights": self.located.weights_hashes(),
            "seed": seed,
            "finetuning": {**asdict(self.fitter.config), "loop": LOOP},
            "computed": f"{self.fitter.precision} on {self.fitter.device.type}",
            "data": data.hash,
        }
        return self.folder / f"{data.task.name}-{bytes_hash(json.dumps(identity).encode())[:8]}"
