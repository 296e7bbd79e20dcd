"""How a teacher's hidden states become one sentence embedding: the choice of it, and its arithmetic."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.pipeline.teacher_folder import LOGITS, POOLER, SENTENCE_POOLINGS, Dense, Normalize, TeacherFolder

POOLINGS = (*SENTENCE_POOLINGS, POOLER)
_WAY_OUT = "--pooling mean takes the transformer's own states"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How a teacher's hidden states become one sentence embedding, or, with the pooling `LOGITS`, its head's logits.

    `layers` counts as transformers does: 0 is the word embeddings, 1 the first layer, -1 the last. Several
    layers' pooled vectors are concatenated, each L2-normalized on its own if `normalize` is set.

    Args:
        pooling: one of `POOLINGS`, several joined by "+", or `LOGITS`.
        layers: hidden layers, counted from 0.
        normalize: whether a layer's vector has length 1.
        after: modules after the pooling of the only layer, if they are more than a normalization.
        truncate_dim: numbers of the vector that are kept; None keeps all.
        left_out: what the folder asks for besides, and the user's own --pooling or --layers leaves out.
    """

    pooling: str
    layers: tuple[int, ...]
    normalize: bool
    after: tuple[Dense | Normalize, ...] = ()
    truncate_dim: int | None = None
    left_out: tuple[str, ...] = ()

    @property
    def poolings(self) -> tuple[str, ...]:
        """The poolings of a layer, whose vectors are concatenated."""
        return tuple(self.pooling.split("+"))

    def modules(self) -> list[str]:
        """What is done after pooling besides a normalization, for the fingerprint."""
        names = [_described(step) for step in self.after]
        return names if self.truncate_dim is None else [*names, f"truncate_dim {self.truncate_dim}"]


def wants_logits(folder: TeacherFolder, pooling: str | None) -> bool:
    """Whether the teacher's classification head is to be used: it is asked for, or there is one and nothing is.

    Args:
        folder: the teacher's folder; a sentence-transformers model's own pooling goes before its head.
        pooling: see `Teacher.load`.

    Raises:
        UserError: logits are asked for and the teacher has no head.
    """
    try:
        config = json.loads((folder.transformer / "config.json").read_text(encoding="utf-8"))
        head = any(str(name).endswith("ForSequenceClassification") for name in config.get("architectures") or [])
    except (OSError, ValueError, AttributeError, TypeError):
        head = False  # loading it says what is wrong
    if pooling == LOGITS and not head:
        raise UserError(
            f"--pooling logits: {folder.transformer} has no classification head (its config.json names none that ends "
            "in ForSequenceClassification); fine-tune the teacher first, or take --pooling cls, mean or max"
        )
    return head and (pooling == LOGITS or (pooling is None and not folder.pools))


def logits_recipe(layers: Sequence[int], last: int) -> Recipe:
    """The recipe of logits, which come from the last layer and keep their length.

    Raises:
        UserError: another layer is asked for.
    """
    if _absolute_layers(layers, last) != (last,):
        raise UserError("--pooling logits goes with the last layer only; leave --layers out, or name another pooling")
    return Recipe(LOGITS, (last,), normalize=False)


def require_applied(folder: TeacherFolder, pooling: str | None) -> None:
    """Refuse a folder's own modules if something of them is not applied here.

    Raises:
        UserError: naming the file and the field.
    """
    if pooling is None and folder.refused:
        raise UserError(f"{folder.refused[0]}; {_WAY_OUT}")


def make_recipe(folder: TeacherFolder, pooling: str | None, layers: Sequence[int], last: int) -> Recipe:
    """Combine what the user asked for with what a sentence-transformers folder brings.

    Args:
        folder: the teacher's folder.
        pooling: see `Teacher.load`; None takes the folder's own.
        layers: hidden layers, negative ones counted from the last.
        last: number of the last layer.

    Raises:
        UserError: no such layer or pooling.
    """
    absolute = _absolute_layers(layers, last)
    if pooling is not None and (unknown := [name for name in pooling.split("+") if name not in POOLINGS]):
        raise UserError(f"--pooling {pooling}: {unknown[0]} is none of {', '.join(POOLINGS)}")
    after, truncate_dim = folder.after, folder.truncate_dim
    normalize = Normalize() in after
    left_out: tuple[str, ...] = ()
    if pooling is not None or absolute != (last,):
        left_out = (*folder.refused, *("Dense" for step in after if isinstance(step, Dense)))
        left_out += () if truncate_dim is None else (f"truncate_dim {truncate_dim}",)
        after, truncate_dim = (), None
    elif after in ((), (Normalize(),)) and truncate_dim is None:
        after = ()
    else:
        # What comes out has length 1 if nothing changes it after the last normalization.
        normalize = after[-1:] == (Normalize(),) and truncate_dim is None
    recipe = Recipe(pooling or "+".join(folder.poolings), absolute, normalize, after, truncate_dim, left_out)
    if POOLER in recipe.poolings and (recipe.layers != (last,) or len(recipe.poolings) > 1):
        raise UserError("--pooling pooler goes with the last layer only, and alone; leave --layers out")
    return recipe


def _absolute_layers(layers: Sequence[int], last: int) -> tuple[int, ...]:
    absolute = tuple(layer if layer >= 0 else last + 1 + layer for layer in layers)
    if len(set(absolute)) < len(absolute):
        raise UserError(f"--layers {','.join(map(str, layers))} names a layer twice")
    wrong = [str(given) for given, layer in zip(layers, absolute, strict=True) if not 0 <= layer <= last]
    if wrong or not absolute:
        raise UserError(f"--layers {','.join(wrong)}: this teacher has layers 0 to {last} (or -1 to {-last - 1})")
    return absolute


def _described(step: Dense | Normalize) -> str:
    if isinstance(step, Normalize):
        return "Normalize"
    shape = f"Dense {step.inputs} to {step.outputs}, {step.activation}{', residual' if step.residual else ''}"
    weights = step.folder / _WEIGHTS
    return f"{shape}, {file_hash(weights)}" if weights.exists() else shape


def pool(states: torch.Tensor, poolings: Sequence[str], skip: int = 0) -> torch.Tensor:
    """Pool hidden states without padding; special tokens take part.

    Args:
        states: [batch, length, width].
        poolings: some of `SENTENCE_POOLINGS`.
        skip: tokens at the beginning that take no part: a prompt and what stands before it.

    Returns:
        float32[batch, len(poolings) * width].
    """
    if len(poolings) > 1:
        return torch.cat([pool(states, [pooling], skip) for pooling in poolings], dim=-1)
    pooling = poolings[0]
    if pooling == "lasttoken":
        return states[:, -1].float()
    states = states[:, skip:]
    if pooling == "cls":
        return states[:, 0].float()
    if pooling == "max":
        return states.amax(dim=1).float()
    states = states.float()
    if pooling == "mean":
        return states.mean(dim=1)
    length = states.shape[1]
    if pooling == "mean_sqrt_len_tokens":
        return states.sum(dim=1) / length**0.5
    # A token weighs as much as its position, which counts what is skipped too.
    weights = torch.arange(skip + 1, skip + length + 1, device=states.device, dtype=states.dtype)
    return (states * weights[:, None]).sum(dim=1) / weights.sum()


class AfterPooling(nn.Module):
    """What a sentence-transformers model does with pooled vectors, in float32."""

    def __init__(self, recipe: Recipe) -> None:
        """Load the weights.

        Raises:
            UserError: they are missing, pickled, or of another shape.
        """
        super().__init__()
        self.steps = nn.ModuleList(_Linear(step) if isinstance(step, Dense) else _UnitLength() for step in recipe.after)
        self.truncate_dim = recipe.truncate_dim

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """float32[batch, width] to float32[batch, width of the last step]."""
        for step in self.steps:
            vectors = step(vectors)
        return vectors[:, : self.truncate_dim]


class _UnitLength(nn.Module):
    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return functional.normalize(vectors, dim=-1)


class _Linear(nn.Module):
    """sentence-transformers' Dense; the weights have its names."""

    def __init__(self, dense: Dense) -> None:
        super().__init__()
        self.linear = nn.Linear(dense.inputs, dense.outputs, bias=dense.bias)
        self.activation = getattr(nn, dense.activation)()
        self.dense = dense
        if dense.residual and dense.inputs != dense.outputs:
            self.residual = nn.Linear(dense.inputs, dense.outputs, bias=False)
        file = dense.folder / _WEIGHTS
        if not file.exists():
            raise UserError(
                f"{file} is missing, and pickled weights are not read; save the model again with sentence-transformers"
            )
        try:
            self.load_state_dict(load_file(file))
        except (OSError, RuntimeError, SafetensorError) as error:
            told = " ".join(str(error).split())
            raise UserError(f"{file} does not fit its config.json ({told}); save the model again") from error

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        out = self.activation(self.linear(vectors))
        if self.dense.residual:
            out = out + (self.residual(vectors) if hasattr(self, "residual") else vectors)
        return out  # type: ignore[no-any-return]
