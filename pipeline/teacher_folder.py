"""A teacher's folder: the configuration of a sentence-transformers model, each field of it honored or refused by name.

The reference is `SentenceTransformer(folder).encode` of sentence-transformers 6.2: what it does for a field is done
here, or the field is listed in `TeacherFolder.refused`. A folder without modules.json is a plain transformer, of which
sentence-transformers reads no other file either.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash

LOGITS = "logits"
POOLER = "pooler"
SENTENCE_POOLINGS = ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
POOLINGS = (*SENTENCE_POOLINGS, POOLER)
DENSE_WEIGHTS = "model.safetensors"
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
# With other values these are refused.
_USUAL_SETTINGS = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "tokenizer_name_or_path": None,
}
_SENTENCE_STATES = {"method": "forward", "method_output_name": "last_hidden_state"}


@dataclass(frozen=True)
class Dense:
    """A linear layer after pooling, with its model.safetensors in `folder`."""

    folder: Path
    inputs: int
    outputs: int
    activation: str
    """One of `ACTIVATIONS`."""
    residual: bool


@dataclass(frozen=True)
class Normalize:
    """L2 normalization after pooling."""


@dataclass(frozen=True, kw_only=True)
class TeacherFolder:
    """Content of a teacher's folder: its modules and settings."""

    transformer: Path
    """Folder of the transformer's config.json, weights and tokenizer."""
    pools: bool = False
    """True if it has a modules.json that pools; a plain transformer has none."""
    max_length: int | None = None
    """Tokens of an input, special tokens and prompt counted; None leaves that to tokenizer and config.json."""
    lower_case: bool = False
    prompt: str = ""
    """Text before each sentence."""
    pools_prompt: bool = True
    config_options: dict[str, Any] = field(default_factory=dict)
    """Fields that replace those of config.json."""
    tokenizer_options: dict[str, Any] = field(default_factory=dict)
    poolings: tuple[str, ...] = ("mean",)
    """Some of `SENTENCE_POOLINGS`, concatenated in this order."""
    after: tuple[Dense | Normalize, ...] = ()
    """Modules after pooling."""
    truncate_dim: int | None = None
    """Numbers of each vector that are kept; None keeps all."""
    refused: tuple[str, ...] = ()
    """Requests of the folder that are not supported here, each naming its file."""


@dataclass(frozen=True)
class _Module:
    kind: str
    folder: Path

    @property
    def is_transformer(self) -> bool:
        # One whose code comes with the model may still hold weights of a known kind, for a named pooling.
        return self.kind.rpartition(".")[2] == "Transformer"


def transformer_folder(folder: Path) -> Path:
    """Return the folder of the transformer itself; `folder` if modules.json can't be read, which loading reports."""
    try:
        modules = _modules(folder)
    except UserError:
        modules = []
    return next((module.folder for module in modules if module.is_transformer), folder)


def read_folder(folder: Path) -> TeacherFolder:
    """Read a teacher's folder; an adapter's weights and files that can't be read are errors."""
    modules = _modules(folder)
    transformer = transformer_folder(folder)
    if (transformer / "adapter_config.json").exists():
        raise UserError(
            f"{transformer / 'adapter_config.json'}: adapters are not applied here; merge it into its model "
            "(merge_and_unload of peft) and save that"
        )
    if not modules:
        return TeacherFolder(transformer=transformer, poolings=_plain_poolings(transformer))
    if not any(module.is_transformer for module in modules):
        raise UserError(
            f"{folder / _MODULES}: {modules[0].kind} is no transformer, and a teacher begins with one; name another "
            "with --teacher"
        )
    refused: list[str] = []
    settings = _read_settings(transformer, refused)
    prompting = _read_model(folder / _MODEL, refused)
    pooling = next((module.folder for module in modules if module.kind == "Pooling"), None)
    poolings, pools_prompt = _read_pooling(pooling, refused) if pooling else (("mean",), True)
    after = tuple(_read_modules(folder, modules, refused))
    return TeacherFolder(
        transformer=transformer,
        pools=pooling is not None,
        poolings=poolings,
        pools_prompt=pools_prompt,
        after=after,
        refused=tuple(refused),
        **settings,
        **prompting,
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


def _plain_poolings(transformer: Path) -> tuple[str, ...]:
    """As `SentenceTransformer` pools a plain transformer: a causal model's last token, any other's mean."""
    config = _read(transformer / "config.json")
    architectures = config.get("architectures")
    causal = isinstance(architectures, list) and str(next(iter(architectures), "")).endswith("ForCausalLM")
    return ("lasttoken",) if causal and config.get("is_causal", True) else ("mean",)


def _read_settings(transformer: Path, refused: list[str]) -> dict[str, Any]:
    """Return the fields of `TeacherFolder` that the transformer module's own file decides."""
    found = ((transformer / name, _read(transformer / name)) for name in _SETTINGS)
    file, settings = next(((file, read) for file, read in found if read), (transformer / _SETTINGS[0], {}))
    rest = {_OLD_NAMES.get(key, key): value for key, value in settings.items() if key not in _HARMLESS_SETTINGS}
    lower_case = bool(rest.pop("do_lower_case", False))
    unknown = []
    with _reading(file):
        config_options, tokenizer_options, model_options = (
            {name: value for name, value in (rest.pop(key, None) or {}).items() if name not in _NOT_THE_FOLDERS}
            for key in ("config_kwargs", "processor_kwargs", "model_kwargs")
        )
        unknown += [f"model_kwargs {name}" for name in sorted(set(model_options) - _HARMLESS_MODEL_KWARGS)]
        max_length = _positive(rest.pop("max_seq_length", None))
        max_length = _positive(tokenizer_options.pop("model_max_length", None)) or max_length
        processing = rest.pop("processing_kwargs", None) or {}
        for part in ("common", "text"):
            calls = dict(processing.get(part) or {})
            max_length = _positive(calls.pop("max_length", None)) or max_length
            unknown += [f"processing_kwargs {part}.{name}" for name in sorted(set(calls) - _HARMLESS_CALL_KWARGS)]
        modalities = rest.pop("modality_config", None)
        if modalities is not None:
            if "message" in modalities:
                unknown.append("modality_config message, a chat template")
            text = modalities.get("text") or {}
            output = text.get("method_output_name")
            if {**text, "method_output_name": output[0] if output and len(output) == 1 else output} != _SENTENCE_STATES:
                unknown.append(f"modality_config text {text}")
    for key, usual in _USUAL_SETTINGS.items():
        if (value := rest.pop(key, usual)) != usual:
            unknown.append(f"{key} {value}")
    refused += [f"{file}: {what} is not applied here" for what in (*unknown, *sorted(rest))]
    return {
        "max_length": max_length,
        "lower_case": lower_case,
        "config_options": config_options,
        "tokenizer_options": tokenizer_options,
    }


def _read_model(file: Path, refused: list[str]) -> dict[str, Any]:
    """Return the fields of `TeacherFolder` that the whole model's file decides."""
    model = _read(file)
    with _reading(file):
        prompts = {"query": "", "document": "", **(model.get("prompts") or {})}
        truncate_dim = _positive(model.get("truncate_dim"))
        requirements = model.get("requirements")
        if requirements:
            from sentence_transformers.util.environment import check_version_requirements

            try:
                check_version_requirements(requirements)
            except ImportError as error:
                refused.append(f"{file}: requirements: {' '.join(str(error).split())}")
    if (kind := model.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        refused.append(f"{file}: model_type {kind} gives no sentence vectors")
    name = model.get("default_prompt_name")
    if name is not None and name not in prompts:
        raise UserError(f"{file}: default_prompt_name {name!r} is none of its prompts; name one of them, or null")
    return {"prompt": str(prompts.get(name) or ""), "truncate_dim": truncate_dim}


def _positive(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1 or value != int(value):
        raise ValueError(f"{value!r} is no length")
    return int(value)


def _read_pooling(folder: Path, refused: list[str]) -> tuple[tuple[str, ...], bool]:
    """Return the modes, and whether a prompt is pooled."""
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
    """Yield the modules after pooling; what is of another kind, or stands in the wrong place, goes to `refused`."""
    for module in modules:
        file = module.folder / "config.json"
        if module.kind in ("Transformer", "Pooling", "Dropout"):
            continue
        if module.kind not in ("Dense", "Normalize"):
            refused.append(f"{folder / _MODULES}: module {module.kind} is not applied here")
            continue
        config = _read(file)
        names = {config.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")}
        given = str(config.get("activation_function", "torch.nn.Tanh"))
        package, _, activation = given.rpartition(".")
        if names != {"sentence_embedding"}:
            refused.append(f"{file}: {module.kind} of {' and '.join(sorted(names))} is not applied here")
        elif module.kind == "Normalize":
            yield Normalize()
        elif not {"in_features", "out_features"} <= config.keys():
            refused.append(f"{file} lacks in_features or out_features of Dense")
        elif not f"{package}.".startswith("torch.nn.") or activation not in ACTIVATIONS:
            refused.append(f"{file}: activation_function {given} is not applied here")
        else:
            with _reading(file):
                yield Dense(
                    folder=module.folder,
                    inputs=int(config["in_features"]),
                    outputs=int(config["out_features"]),
                    activation=activation,
                    residual=bool(config.get("use_residual", False)),
                )
    kinds = [module.kind for module in modules if module.kind != "Dropout"]
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        refused.append(f"{folder / _MODULES}: modules {', '.join(kinds)} in this order are not applied here")


# What is taken of a folder, by the options --pooling and --layers.


@dataclass(frozen=True)
class Recipe:
    """Recipe from hidden states to one sentence embedding, or, with the pooling `LOGITS`, to the head's logits."""

    pooling: str
    """One of `POOLINGS`, several joined by "+", or `LOGITS`."""
    layers: tuple[int, ...]
    """Their pooled vectors are concatenated; 0 is the word embeddings, 1 the first layer."""
    normalize: bool
    """True if each layer's vector is scaled to length 1."""
    after: tuple[Dense | Normalize, ...] = ()
    """Modules after the pooling of the only layer, if they are more than a normalization."""
    truncate_dim: int | None = None
    logits: bool = False
    """True if the head's logits are taken in addition to the vectors."""
    left_out: tuple[str, ...] = ()
    """Further steps that the folder asks for, and that the user's own --pooling or --layers leaves out."""

    @property
    def poolings(self) -> tuple[str, ...]:
        """The poolings of a layer, whose vectors are concatenated."""
        return tuple(self.pooling.split("+"))

    def modules(self) -> list[str]:
        """Describe what is done after pooling besides a normalization, for the fingerprint."""
        described = []
        for step in self.after:
            if isinstance(step, Normalize):
                described.append("Normalize")
                continue
            shape = f"Dense {step.inputs} to {step.outputs}, {step.activation}{', residual' if step.residual else ''}"
            weights = step.folder / DENSE_WEIGHTS
            described.append(f"{shape}, {file_hash(weights)}" if weights.exists() else shape)
        return described if self.truncate_dim is None else [*described, f"truncate_dim {self.truncate_dim}"]


def choose_pooling(folder: TeacherFolder, pooling: str | None) -> str | None:
    """Return `LOGITS` if they are asked for, or there is a head and nothing else is; otherwise `pooling`.

    Refuses, before anything large is loaded, a folder's own modules of which something is not applied here.
    """
    file = folder.transformer / "config.json"
    with _reading(file):
        head = any(str(name).endswith("ForSequenceClassification") for name in _read(file).get("architectures") or [])
    if wants_logits(pooling) and not head:
        raise UserError(
            f"--pooling {pooling}: the teacher has no classification head ({file} names none that ends in "
            "ForSequenceClassification); fine-tune the teacher first, or take --pooling cls, mean or max"
        )
    if pooling is None and head and not folder.pools:
        return LOGITS
    if pooling is None and folder.refused:
        raise UserError(f"{folder.refused[0]}; --pooling mean takes the transformer's own states")
    return pooling


def wants_logits(pooling: str | None) -> bool:
    """Tell whether a pooling takes the logits of a head, alone or besides vectors: logits, mean+logits."""
    return pooling is not None and pooling.split("+")[-1] == LOGITS


def make_recipe(folder: TeacherFolder, pooling: str | None, layers: Sequence[int], last: int) -> Recipe:
    """Combine what the user asked for, see `choose_pooling`, with what the folder brings.

    Layers may be negative, counted from `last`, the number of the last one.
    """
    absolute = tuple(layer if layer >= 0 else last + 1 + layer for layer in layers)
    if len(set(absolute)) < len(absolute):
        raise UserError(f"--layers {','.join(map(str, layers))} names a layer twice")
    wrong = [str(given) for given, layer in zip(layers, absolute, strict=True) if not 0 <= layer <= last]
    if wrong or not absolute:
        raise UserError(f"--layers {','.join(wrong)}: this teacher has layers 0 to {last} (or -1 to {-last - 1})")
    logits = pooling != LOGITS and wants_logits(pooling)
    pooling = pooling.removesuffix(f"+{LOGITS}") if pooling and logits else pooling
    names = folder.poolings if pooling is None else pooling.split("+")
    if pooling != LOGITS and (unknown := [name for name in names if name not in POOLINGS]):
        raise UserError(f"--pooling {pooling}: {unknown[0]} is none of {', '.join(POOLINGS)}")
    if {LOGITS, POOLER} & set(names) and (absolute != (last,) or len(names) > 1):
        raise UserError(f"--pooling {pooling} goes with the last layer only, and alone; leave --layers out")
    if pooling == LOGITS:
        return Recipe(LOGITS, absolute, normalize=False)
    own = pooling is None and absolute == (last,)
    left_out = [*folder.refused, *("Dense" for step in folder.after if isinstance(step, Dense))]
    left_out += [f"truncate_dim {folder.truncate_dim}"] if folder.truncate_dim else []
    after, truncate_dim = (folder.after, folder.truncate_dim) if own else ((), None)
    normalize = Normalize() in folder.after
    if after in ((), (Normalize(),)) and truncate_dim is None:
        after = ()
    else:
        # What comes out has length 1 if nothing changes it after the last normalization.
        normalize = after[-1:] == (Normalize(),) and truncate_dim is None
    ignored = () if own else tuple(left_out)
    return Recipe("+".join(names), absolute, normalize, after, truncate_dim, logits, ignored)
