"""The teacher: a frozen transformer encoder that turns exact-length batches into sentence embeddings."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash, file_hash
from sentence_distill.pipeline.batches import exact_length_batches
from sentence_distill.pipeline.locate import Located
from sentence_distill.pipeline.recipe import Recipe, make_recipe

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
_NOT_ARCHITECTURE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


class Teacher:
    """A loaded teacher with its tokenizer; build it with `Teacher.load`.

    Attributes:
        name: as in manifests.
        recipe: pooling, layers (counted from 0, ascending as given) and normalisation.
        tokenizer: a `tokenizers.Tokenizer` without truncation and padding.
        dim: width of the embeddings of all layers together.
    """

    def __init__(self, *, located: Located, model: Any, tokenizer: Any, recipe: Recipe, device: torch.device) -> None:
        self.name = located.name
        self.folder = located.folder
        self.recipe = recipe
        self.device = device
        self.model = model
        self.tokenizer = tokenizer
        self.prefix, self.suffix = _special_tokens(tokenizer)
        self.dtype = model.dtype

    @classmethod
    def load(
        cls,
        located: Located,
        *,
        pooling: str | None = None,
        layers: Sequence[int] = (-1,),
        device: torch.device,
        dtype: torch.dtype,
    ) -> "Teacher":
        """Load weights (safetensors only) and tokenizer.

        Args:
            located: see `locate_teacher`.
            pooling: one of `POOLINGS`; None takes a sentence-transformers folder's own, otherwise "cls".
            layers: hidden layers to pool.
            device: where to compute.
            dtype: compute type of the weights and activations.

        Raises:
            UserError: the folder holds no encoder that can be loaded safely, or has no such layer or pooling.
        """
        model, tokenizer = _load_parts(located, dtype)
        recipe = make_recipe(located.folder, pooling, layers, model.config.num_hidden_layers)
        teacher = cls(located=located, model=model.to(device).eval(), tokenizer=tokenizer, recipe=recipe, device=device)
        try:
            # What is no encoder of one sentence shows now, and not once the whole corpus was planned.
            teacher.embed(teacher.tokenize(["a"]), token_budget=64)
        except (ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
            raise _unusable(located, error) from error
        return teacher

    @property
    def layer_dim(self) -> int:
        """Width of one layer's pooled vector."""
        return int(self.model.config.hidden_size)

    @property
    def dim(self) -> int:
        """Width of the concatenated embedding."""
        return self.layer_dim * len(self.recipe.layers)

    @property
    def vocabulary_size(self) -> int:
        """Rows of the word embeddings; some may belong to no token."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @property
    def max_tokens(self) -> int:
        """The most tokens of a sentence, special tokens not counted."""
        positions = int(getattr(self.model.config, "max_position_embeddings", 512))
        # RoBERTa-like models start their positions behind the padding id.
        if self.model.config.model_type not in ("bert", "distilbert", "electra", "albert"):
            positions -= 2
        return positions - len(self.prefix) - len(self.suffix)

    def tokenize(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of each sentence, without special tokens."""
        return [e.ids for e in self.tokenizer.encode_batch_fast(list(sentences), add_special_tokens=False)]

    def embed(self, input_ids: Sequence[Sequence[int]], token_budget: int, advance: Any = None) -> np.ndarray:
        """Embed tokenised sentences in exact-length batches.

        Args:
            input_ids: n lists of token ids without special tokens.
            token_budget: tokens of a batch, special tokens counted.
            advance: called with the number of sentences after each batch.

        Returns:
            float32[n, dim], in the order given.
        """
        out = np.empty((len(input_ids), self.dim), dtype=np.float32)
        specials = len(self.prefix) + len(self.suffix)
        lengths = np.array([len(ids) + specials for ids in input_ids], dtype=np.int64)
        for rows in exact_length_batches(lengths, token_budget):
            batch = np.array([[*self.prefix, *input_ids[row], *self.suffix] for row in rows], dtype=np.int64)
            out[rows] = self._forward(torch.from_numpy(batch)).cpu().numpy()
            if advance is not None:
                advance(len(rows))
        return out

    @torch.inference_mode()
    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        last = self.model.config.num_hidden_layers
        # No attention mask: exact-length batches have no padding, and attention takes its fastest path.
        output = self.model(input_ids=batch.to(self.device), output_hidden_states=self.recipe.layers != (last,))
        if self.recipe.pooling == "pooler":
            pooled = [_pooler_output(output)]
        elif self.recipe.layers == (last,):
            pooled = [_pool(output.last_hidden_state, self.recipe.pooling)]
        else:
            pooled = [_pool(output.hidden_states[layer], self.recipe.pooling) for layer in self.recipe.layers]
        if self.recipe.normalize:
            pooled = [functional.normalize(vector, dim=-1) for vector in pooled]
        return torch.cat(pooled, dim=-1)

    def word_embeddings(self) -> torch.Tensor:
        """float32[vocabulary, width]: the teacher's input word embeddings, for the student to start from."""
        return self.model.get_input_embeddings().weight.detach().float().cpu()  # type: ignore[no-any-return]

    def tokenizer_json(self) -> str:
        """The tokenizer as tokenizer.json without post-processor: it adds no special tokens."""
        tokenizer = json.loads(self.tokenizer.to_str())
        tokenizer["post_processor"] = None
        return json.dumps(tokenizer, ensure_ascii=False, sort_keys=True)

    def weights_hashes(self) -> list[str]:
        """xxh3-128 of each weights file, by name."""
        return [file_hash(file) for file in sorted(self.folder.glob("*.safetensors"))]

    def fingerprint(self) -> dict[str, Any]:
        """What decides the embeddings, as JSON values."""
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in _NOT_ARCHITECTURE}
        return {
            "teacher": self.name,
            "teacher_weights": self.weights_hashes(),
            "teacher_config": bytes_hash(json.dumps(config, sort_keys=True, default=str).encode()),
            "special_tokens": [self.prefix, self.suffix],
            "tokenizer": bytes_hash(self.tokenizer_json().encode()),
            "pooling": self.recipe.pooling,
            "layers": list(self.recipe.layers),
            "normalize": self.recipe.normalize,
            "compute_dtype": str(self.dtype).removeprefix("torch."),
        }


def _load_parts(located: Located, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and tokenizer of a folder; every weight of the model comes from its file."""
    from safetensors import SafetensorError
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    # Without a vocabulary transformers makes up an empty one, to which every word is unknown.
    if not any((located.folder / name).exists() for name in _VOCABULARIES):
        raise _unusable(located, ValueError("it has no tokenizer.json and no vocabulary"))
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # a checkpoint with a head that is left out is no cause for a warning
    try:
        model, report = AutoModel.from_pretrained(
            located.folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(located.folder, local_files_only=True, use_fast=True)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError, SafetensorError) as error:
        raise _unusable(located, error) from error
    missing = sorted(report["missing_keys"])
    if [name for name in missing if not name.startswith("pooler.")]:
        raise _unusable(located, ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} others"))
    if missing:
        # transformers would have made up random weights; without a pooler, asking for it is an error.
        model.pooler = None
    if not tokenizer.is_fast:
        raise UserError(f"teacher {located.name!r} has no fast tokenizer; save a tokenizer.json beside it")
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    largest = max(backend.get_vocab(with_added_tokens=True).values())
    if largest >= model.get_input_embeddings().num_embeddings:
        raise _unusable(located, ValueError(f"its tokenizer has an id {largest} that its word embeddings lack"))
    return model, backend


def _unusable(located: Located, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"teacher {located.name!r} can't be used: {reason}; it needs the config.json, model.safetensors "
        "and tokenizer of a transformer encoder in one folder"
    )


def _pool(states: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool [batch, length, width] hidden states to float32[batch, width]; special tokens take part."""
    if pooling == "cls":
        return states[:, 0].float()
    if pooling == "mean":
        return states.float().mean(dim=1)
    return states.amax(dim=1).float()


def _pooler_output(output: Any) -> torch.Tensor:
    if getattr(output, "pooler_output", None) is None:
        raise UserError("this teacher has no pooler; use --pooling cls, mean or max")
    return output.pooler_output.float()  # type: ignore[no-any-return]


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and behind a sentence."""
    inner = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]
