"""A teacher fine-tuned on a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sentence_distill.data.glue import Task
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.files import system_errors
from sentence_distill.pipeline.load import (
    LOADING_ERRORS,
    Located,
    load_tokenizer,
    require_vocabulary,
    special_tokens,
    unusable,
)
from sentence_distill.pipeline.pairs import separator_tokens
from sentence_distill.pipeline.teacher_folder import read_folder
from sentence_distill.student.finetune import ExampleTokens, Padded

_MOST_TOKENS = 256
# Before, between and behind a pair, at most.
_SPECIAL_TOKENS = 4


class TeacherClassifier(nn.Module):
    """A pre-trained transformer under the head that transformers puts on it; pairs are read as one text.

    Attributes:
        model: a `…ForSequenceClassification`.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Put a model and its tokenizer together.

        Args:
            model: see the class.
            tokenizer: transformers' fast tokenizer, which is saved with the model.
        """
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
        from safetensors import SafetensorError
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
        except (*LOADING_ERRORS, SafetensorError) as error:
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
        """Logits, float[b, outputs]."""
        assert batch.first is not None
        places = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        inputs = {"input_ids": batch.input_ids, "attention_mask": (places < batch.lengths[:, None]).long()}
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = (places >= batch.first[:, None]).long() * inputs["attention_mask"]
        return self.model(**inputs).logits  # type: ignore[no-any-return]

    def pretrained(self) -> list[nn.Parameter]:
        """The encoder's weights."""
        return list(self.model.base_model.parameters())

    def save(self, folder: Path) -> None:
        """Write it as transformers does; `sd embed --teacher` takes the folder."""
        with system_errors(folder):
            self.model.save_pretrained(folder)
            self._tokenizer.save_pretrained(folder)


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


def mask_token(folder: Path) -> str:
    """What stands for a masked word in a saved teacher's vocabulary; for an unknown one, where it knows no mask."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return str(tokenizer.mask_token or tokenizer.unk_token)


def longest_text(folder: Path) -> int:
    """The most tokens of an example that a saved teacher embeds, special ones not counted."""
    from transformers import AutoConfig, AutoTokenizer

    # What sd embed takes of a teacher ends where its tokenizer would cut.
    cut = int(AutoTokenizer.from_pretrained(folder, local_files_only=True).model_max_length)
    return min(most_tokens(AutoConfig.from_pretrained(folder, local_files_only=True)), cut) - _SPECIAL_TOKENS


def most_tokens(config: Any) -> int:
    """The most tokens of an example, special ones counted, by a model's configuration."""
    # RoBERTa-like models start their positions behind the padding id; XLNet's and T5's have no end.
    positions = int(getattr(config, "max_position_embeddings", None) or -1)
    return min(_MOST_TOKENS, positions - 2) if positions > 0 else _MOST_TOKENS
