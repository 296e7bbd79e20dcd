"""Loading a teacher's weights and tokenizer: safetensors only, and every weight from its file."""

from typing import Any

import torch

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.pipeline.locate import Located

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")


def load_parts(located: Located, dtype: torch.dtype, *, head: bool = False) -> tuple[Any, TextTokenizer]:
    """Model, with its classification head if asked, and tokenizer of a folder; every weight comes from its file."""
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    require_vocabulary(located)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # a checkpoint with a head that is left out is no cause for a warning
    try:
        model, report = (AutoModelForSequenceClassification if head else AutoModel).from_pretrained(
            located.folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(located.folder, local_files_only=True, use_fast=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, SafetensorError) as error:
        raise unusable(located, error) from error
    missing = sorted(report["missing_keys"])
    if [name for name in missing if head or not name.startswith("pooler.")]:
        raise unusable(located, ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} others"))
    if missing:
        # transformers would have made up random weights; without a pooler, asking for it is an error.
        model.pooler = None
    if not tokenizer.is_fast:
        raise UserError(f"teacher {located.name!r} has no fast tokenizer; save a tokenizer.json beside it")
    loaded = TextTokenizer(tokenizer.backend_tokenizer.to_str())
    largest = max(loaded.vocabulary().values())
    if largest >= model.get_input_embeddings().num_embeddings:
        raise unusable(located, ValueError(f"its tokenizer has an id {largest} that its word embeddings lack"))
    return model, loaded


def require_vocabulary(located: Located) -> None:
    """Refuse a folder without vocabulary: transformers makes up an empty one, to which every word is unknown."""
    if not any((located.folder / name).exists() for name in _VOCABULARIES):
        raise unusable(located, ValueError("it has no tokenizer.json and no vocabulary"))


def unusable(located: Located, error: Exception) -> UserError:
    """What to raise for a folder from which no teacher can be had."""
    return UserError(
        f"teacher {located.name!r} can't be used: {first_line(error)}; it needs the config.json, model.safetensors "
        "and tokenizer of a transformer encoder in one folder"
    )


def special_tokens(tokenizer: TextTokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and behind a sentence."""
    inner = tokenizer.backend.encode("a", add_special_tokens=False).ids
    whole = tokenizer.backend.encode("a", add_special_tokens=True).ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]
