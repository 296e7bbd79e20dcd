"""A teacher's folder: the configuration of a sentence-transformers model, each field of it honored or refused by name.

The reference is `SentenceTransformer(folder).encode` of sentence-transformers 6.2: what it does for a field is done
here, or the field is listed in `TeacherFolder.refused`. A folder without modules.json is a plain transformer, of which
sentence-transformers reads no other file either.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentence_distill.data.errors import UserError

LOGITS = "logits"
POOLER = "pooler"
SENTENCE_POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
ACTIVATIONS = (
    *("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "Mish", "ELU", "SELU", "CELU", "LeakyReLU", "ReLU6"),
    *("Softplus", "Softsign", "Hardtanh", "Hardswish", "Hardsigmoid", "LogSigmoid", "Tanhshrink"),
)

_MODULES = "modules.json"
_MODEL = "config_sentence_transformers.json"
# The first of these that says anything; the later ones are those of versions before 2.
_SETTINGS = (
    "sentence_bert_config.json",
    *(f"sentence_{kind}_config.json" for kind in ("roberta", "distilbert", "camembert", "albert")),
    *(f"sentence_{kind}_config.json" for kind in ("xlm-roberta", "xlnet")),
)
_OLD_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_OLD_NAMES = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}
# Where files come from and whether foreign code is run: never the folder's to decide, as in sentence-transformers.
_NOT_THE_FOLDERS = {
    *("trust_remote_code", "token", "cache_dir", "revision", "code_revision", "local_files_only", "subfolder"),
    *("force_download", "use_fast"),
}
# How weights are loaded and attention is computed; the vectors stay the same within rounding.
_HARMLESS_MODEL_KWARGS = {
    *("attn_implementation", "dtype", "torch_dtype", "device_map", "low_cpu_mem_usage", "use_safetensors"),
    "add_pooling_layer",
}
# Padding is masked, and what would be cut is rejected as too long.
_HARMLESS_CALL_KWARGS = {
    *("padding", "truncation", "return_tensors", "pad_to_multiple_of", "return_attention_mask", "logits_to_keep"),
}
# For queries, documents, images, sound and chats, none of which a corpus's sentences are.
_HARMLESS_SETTINGS = {"unpad_inputs", "query_length", "document_length", "query_expansion", "backend", "cache_dir"}
_SENTENCE_STATES = {"method": "forward", "method_output_name": "last_hidden_state"}


@dataclass(frozen=True)
class Dense:
    """A linear layer after pooling.

    Args:
        folder: of its model.safetensors.
        inputs: width of its input.
        outputs: width of its output.
        bias: whether it has one.
        activation: one of `ACTIVATIONS`.
        residual: whether its input, projected if the widths differ, is added to its output.
    """

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str
    residual: bool


@dataclass(frozen=True)
class Normalize:
    """L2 normalization after pooling."""


@dataclass(frozen=True, kw_only=True)
class TeacherFolder:
    """What a teacher's folder asks for.

    Args:
        transformer: folder of the transformer's config.json, weights and tokenizer.
        pools: whether it has a modules.json that pools; a plain transformer has none.
        max_length: tokens that the transformer reads, special tokens and prompt counted; None leaves that to its
            tokenizer and config.json.
        lower_case: whether text is lowercased before it is tokenized.
        prompt: text that is put before each sentence.
        pools_prompt: whether the prompt's tokens take part in pooling.
        config_options: fields that replace those of config.json.
        tokenizer_options: options of the tokenizer.
        poolings: one or several of `SENTENCE_POOLINGS`, concatenated in this order.
        after: modules after pooling.
        truncate_dim: numbers of each vector that are kept; None keeps all.
        refused: what the folder asks for and is not done here, each naming its file.
    """

    transformer: Path
    pools: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    pools_prompt: bool = True
    config_options: dict[str, Any] = field(default_factory=dict)
    tokenizer_options: dict[str, Any] = field(default_factory=dict)
    poolings: tuple[str, ...] = ("mean",)
    after: tuple[Dense | Normalize, ...] = ()
    truncate_dim: int | None = None
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Module:
    kind: str
    folder: Path


@dataclass(frozen=True)
class _Settings:
    """What `TeacherFolder` has from the transformer module's own file."""

    max_length: int | None
    config_options: dict[str, Any]
    tokenizer_options: dict[str, Any]
    refused: list[str]


def transformer_folder(folder: Path) -> Path:
    """Return the folder of the transformer itself; `folder` if modules.json can't be read, which loading reports."""
    try:
        return _transformer(folder, _modules(folder))
    except UserError:
        return folder


def read_folder(folder: Path) -> TeacherFolder:
    """Read a teacher's folder.

    Raises:
        UserError: a file can't be read, or the weights are an adapter's.
    """
    modules = _modules(folder)
    transformer = _transformer(folder, modules)
    if (transformer / "adapter_config.json").exists():
        raise UserError(
            f"{transformer / 'adapter_config.json'}: adapters are not applied here; merge it into its model "
            "(merge_and_unload of peft) and save that"
        )
    if not modules:
        return TeacherFolder(transformer=transformer, poolings=_plain_poolings(transformer))
    if not any(_is_transformer(module) for module in modules):
        raise UserError(
            f"{folder / _MODULES}: {modules[0].kind} is no transformer, and a teacher begins with one; name another "
            "with --teacher"
        )
    settings_file, settings = _settings(transformer)
    model = _read(folder / _MODEL)
    kinds = [module.kind for module in modules]
    pooling = modules[kinds.index("Pooling")].folder if "Pooling" in kinds else None
    with _reading(settings_file):
        found = _read_settings(settings, settings_file)
    refused = found.refused
    with _reading(folder / _MODEL):
        prompt, truncate_dim = _prompt(model, folder / _MODEL), _positive(model.get("truncate_dim"))
        if (kind := model.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
            refused.append(f"{folder / _MODEL}: model_type {kind} gives no sentence vectors")
        refused += _unmet(model.get("requirements"), folder / _MODEL)
    poolings, pools_prompt = _read_pooling(pooling, refused) if pooling else (("mean",), True)
    after = tuple(_read_modules(folder, modules, refused))
    return TeacherFolder(
        transformer=transformer,
        pools=pooling is not None,
        max_length=found.max_length,
        lower_case=bool(settings.get("do_lower_case")),
        prompt=prompt,
        pools_prompt=pools_prompt,
        config_options=found.config_options,
        tokenizer_options=found.tokenizer_options,
        poolings=poolings,
        after=after,
        truncate_dim=truncate_dim,
        refused=tuple(refused),
    )


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what is wrong with a file's content into an error that names the file."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} can't be read ({error!r}); save or fetch the model again") from error


def _read(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no such file."""
    with _reading(file):
        if not file.exists():
            return {}
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("it is no JSON object")
        return content


def _modules(folder: Path) -> list[_Module]:
    file = folder / _MODULES
    if not file.exists():
        return []
    with _reading(file):
        modules = []
        for entry in json.loads(file.read_text(encoding="utf-8")):
            path, kind = Path(entry["path"]), str(entry["type"])
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"path {path} leads out of the folder")
            # A type of another package is code that comes with the model, which is never run.
            ours = kind.startswith("sentence_transformers.")
            modules.append(_Module(kind.rpartition(".")[2] if ours else kind, folder / path))
        if not modules:
            raise ValueError("it names no module")
        return modules


def _transformer(folder: Path, modules: list[_Module]) -> Path:
    return next((module.folder for module in modules if _is_transformer(module)), folder)


def _is_transformer(module: _Module) -> bool:
    # One whose code comes with the model may still hold weights of a known kind, for a named pooling.
    return module.kind.rpartition(".")[2] == "Transformer"


def _plain_poolings(transformer: Path) -> tuple[str, ...]:
    """As `SentenceTransformer` pools a plain transformer: a causal model's last token, any other's mean."""
    config = _read(transformer / "config.json")
    architectures = config.get("architectures")
    causal = isinstance(architectures, list) and str(next(iter(architectures), "")).endswith("ForCausalLM")
    return ("lasttoken",) if causal and config.get("is_causal", True) else ("mean",)


def _settings(transformer: Path) -> tuple[Path, dict[str, Any]]:
    for name in _SETTINGS:
        if settings := _read(transformer / name):
            return transformer / name, {_OLD_NAMES.get(key, key): value for key, value in settings.items()}
    return transformer / _SETTINGS[0], {}


def _read_settings(settings: dict[str, Any], file: Path) -> _Settings:
    """The transformer module's own file, as `_settings` found it."""
    rest = dict(settings)
    for name in (*_HARMLESS_SETTINGS, "do_lower_case"):
        rest.pop(name, None)
    config_options, tokenizer_options, model_options = (
        {name: value for name, value in (rest.pop(key, None) or {}).items() if name not in _NOT_THE_FOLDERS}
        for key in ("config_kwargs", "processor_kwargs", "model_kwargs")
    )
    refused = [f"model_kwargs {name}" for name in sorted(set(model_options) - _HARMLESS_MODEL_KWARGS)]
    max_length = _positive(rest.pop("max_seq_length", None))
    max_length = _positive(tokenizer_options.pop("model_max_length", None)) or max_length
    processing = rest.pop("processing_kwargs", None) or {}
    for part in ("common", "text"):
        calls = dict(processing.get(part) or {})
        max_length = _positive(calls.pop("max_length", None)) or max_length
        refused += [f"processing_kwargs {part}.{name}" for name in sorted(set(calls) - _HARMLESS_CALL_KWARGS)]
    if (task := rest.pop("transformer_task", "feature-extraction")) != "feature-extraction":
        refused.append(f"transformer_task {task}")
    modalities = rest.pop("modality_config", None)
    if modalities is not None:
        if "message" in modalities:
            refused.append("modality_config message, a chat template")
        text = modalities.get("text") or {}
        output = text.get("method_output_name")
        if {**text, "method_output_name": output[0] if output and len(output) == 1 else output} != _SENTENCE_STATES:
            refused.append(f"modality_config text {text}")
    if (name := rest.pop("module_output_name", "token_embeddings")) != "token_embeddings":
        refused.append(f"module_output_name {name}")
    if rest.get("tokenizer_name_or_path", "") is None:
        del rest["tokenizer_name_or_path"]
    refused += sorted(rest)
    refused = [f"{file}: {what} is not applied here" for what in refused]
    return _Settings(max_length, config_options, tokenizer_options, refused)


def _positive(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1 or value != int(value):
        raise ValueError(f"{value!r} is no length")
    return int(value)


def _prompt(model: dict[str, Any], file: Path) -> str:
    prompts = {"query": "", "document": "", **(model.get("prompts") or {})}
    name = model.get("default_prompt_name")
    if name is not None and name not in prompts:
        raise UserError(f"{file}: default_prompt_name {name!r} is none of its prompts; name one of them, or null")
    return str(prompts.get(name) or "")


def _unmet(requirements: Any, file: Path) -> list[str]:
    """What sentence-transformers says of versions that the model needs and that are not installed."""
    if not requirements:
        return []
    from sentence_transformers.util.environment import check_version_requirements

    try:
        check_version_requirements(requirements)
    except ImportError as error:
        return [f"{file}: requirements: {' '.join(str(error).split())}"]
    return []


def _read_pooling(folder: Path, refused: list[str]) -> tuple[tuple[str, ...], bool]:
    """The modes, and whether a prompt is pooled."""
    file = folder / "config.json"
    config = _read(file)
    if not config:
        refused.append(f"{file} is missing or empty")
    # Since sentence-transformers 6 one key names the modes; before, one boolean key a mode.
    modes = config.get("pooling_mode") or [mode for key, mode in _OLD_POOLING_KEYS.items() if config.get(key)]
    with _reading(file):
        modes = (modes,) if isinstance(modes, str) else tuple(map(str, modes)) or ("mean",)
    known = {"pooling_mode", "include_prompt", "embedding_dimension", "word_embedding_dimension", *_OLD_POOLING_KEYS}
    refused += [f"{file}: {key} is not applied here" for key in config if key not in known]
    refused += [f"{file}: pooling {mode} is not known here" for mode in modes if mode not in SENTENCE_POOLINGS]
    return modes, bool(config.get("include_prompt", True))


def _read_modules(folder: Path, modules: list[_Module], refused: list[str]) -> Iterator[Dense | Normalize]:
    """The modules after pooling; what is of another kind, or stands in the wrong place, goes to `refused`."""
    for module in modules:
        file = module.folder / "config.json"
        if module.kind in ("Transformer", "Pooling", "Dropout"):
            continue
        if module.kind not in ("Dense", "Normalize"):
            refused.append(f"{folder / _MODULES}: module {module.kind} is not applied here")
            continue
        config = _read(file)
        names = {config.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")}
        if names != {"sentence_embedding"}:
            refused.append(f"{file}: {module.kind} of {' and '.join(sorted(names))} is not applied here")
        elif module.kind == "Normalize":
            yield Normalize()
        elif not {"in_features", "out_features"} <= config.keys():
            refused.append(f"{file} lacks in_features or out_features of Dense")
        else:
            yield from _dense(config, file, refused)
    kinds = [module.kind for module in modules if module.kind != "Dropout"]
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        refused.append(f"{folder / _MODULES}: modules {', '.join(kinds)} in this order are not applied here")


def _dense(config: dict[str, Any], file: Path, refused: list[str]) -> Iterator[Dense]:
    given = str(config.get("activation_function", "torch.nn.Tanh"))
    package, _, activation = given.rpartition(".")
    if not f"{package}.".startswith("torch.nn.") or activation not in ACTIVATIONS:
        refused.append(f"{file}: activation_function {given} is not applied here")
        return
    with _reading(file):
        yield Dense(
            folder=file.parent,
            inputs=int(config["in_features"]),
            outputs=int(config["out_features"]),
            bias=bool(config.get("bias", True)),
            activation=activation,
            residual=bool(config.get("use_residual", False)),
        )
