"""How a teacher's hidden states become one sentence embedding."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sentence_distill.data.errors import UserError

POOLINGS = ("cls", "mean", "max", "pooler")
LOGITS = "logits"


@dataclass(frozen=True)
class Recipe:
    """How a teacher's hidden states become one sentence embedding, or, with the pooling `LOGITS`, its head's logits.

    `layers` counts as transformers does: 0 is the word embeddings, 1 the first layer, -1 the last. Several
    layers' pooled vectors are concatenated, each L2-normalised on its own where `normalize` is set.
    """

    pooling: str
    layers: tuple[int, ...]
    normalize: bool


def wants_logits(folder: Path, pooling: str | None) -> bool:
    """Whether the teacher's classification head is to be used: it is asked for, or there is one and nothing is.

    Args:
        folder: the teacher's folder.
        pooling: one of `POOLINGS`, `LOGITS` or None, see `Teacher.load`.

    Raises:
        UserError: logits are asked for and the teacher has no head.
    """
    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
        head = any(str(name).endswith("ForSequenceClassification") for name in names)
    except (OSError, ValueError, AttributeError, TypeError):
        head = False  # loading it says what is wrong
    if pooling == LOGITS and not head:
        raise UserError(
            f"--pooling logits: {folder} has no classification head (its config.json names none that ends in "
            "ForSequenceClassification); fine-tune the teacher first, or take --pooling cls, mean or max"
        )
    return head and pooling in (None, LOGITS)


def logits_recipe(layers: Sequence[int], last: int) -> Recipe:
    """The recipe of logits, which come from the last layer and keep their length.

    Raises:
        UserError: another layer is asked for.
    """
    if _absolute_layers(layers, last) != (last,):
        raise UserError("--pooling logits goes with the last layer only; leave --layers out, or name another pooling")
    return Recipe(LOGITS, (last,), normalize=False)


def make_recipe(folder: Path, pooling: str | None, layers: Sequence[int], last: int) -> Recipe:
    """Combine what the user asked for with what a sentence-transformers folder brings.

    Args:
        folder: the teacher's folder.
        pooling: one of `POOLINGS`; None takes the folder's own and, in a plain model's folder, "cls".
        layers: hidden layers, negative ones counted from the last.
        last: number of the last layer.

    Raises:
        UserError: no such layer, or modules that are not applied here.
    """
    absolute = _absolute_layers(layers, last)
    try:
        kinds = [module["type"].rsplit(".", 1)[-1] for module in _modules(folder)]
        recipe = Recipe(pooling or _own_pooling(folder, kinds), absolute, "Normalize" in kinds)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: modules.json can't be read ({error!r}); name a pooling, or mend it") from error
    if recipe.pooling == "pooler" and recipe.layers != (last,):
        raise UserError("--pooling pooler goes with the last layer only; leave --layers out")
    return recipe


def _modules(folder: Path) -> list[dict[str, str]]:
    file = folder / "modules.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []  # type: ignore[no-any-return]


def _own_pooling(folder: Path, kinds: list[str]) -> str:
    if not kinds:
        return "cls"
    if unknown := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise UserError(
            f"the teacher's modules.json names {', '.join(sorted(unknown))}, which this does not apply; "
            "name a pooling to take the transformer's own states: --pooling mean"
        )
    path = _modules(folder)[kinds.index("Pooling")]["path"]
    config = json.loads((folder / path / "config.json").read_text(encoding="utf-8"))
    # Since sentence-transformers 6 one key names the mode; before, one boolean key a mode.
    legacy = {
        "cls": "pooling_mode_cls_token",
        "mean": "pooling_mode_mean_tokens",
        "max": "pooling_mode_max_tokens",
    }
    mode = config.get("pooling_mode") or [mode for mode, key in legacy.items() if config.get(key)]
    modes = [mode] if isinstance(mode, str) else mode
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise UserError(f"the teacher pools by {modes}, which this does not know; name one of {', '.join(POOLINGS)}")
    return str(modes[0])


def _absolute_layers(layers: Sequence[int], last: int) -> tuple[int, ...]:
    absolute = tuple(layer if layer >= 0 else last + 1 + layer for layer in layers)
    if len(set(absolute)) < len(absolute):
        raise UserError(f"--layers {','.join(map(str, layers))} names a layer twice")
    wrong = [str(given) for given, layer in zip(layers, absolute, strict=True) if not 0 <= layer <= last]
    if wrong or not absolute:
        raise UserError(f"--layers {','.join(wrong)}: this teacher has layers 0 to {last} (or -1 to {-last - 1})")
    return absolute
