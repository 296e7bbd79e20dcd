"""The teacher: a frozen transformer encoder that turns exact-length batches into sentence embeddings or logits."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch.nn import functional

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.batches import exact_length_batches
from sentence_distill.pipeline.cpu_kernels import use_cpu_kernels
from sentence_distill.pipeline.launched import Launched
from sentence_distill.pipeline.load import load_parts, special_tokens, unusable
from sentence_distill.pipeline.locate import Located
from sentence_distill.pipeline.pairs import separator_tokens, tokenize_pairs
from sentence_distill.pipeline.recipe import LOGITS, Recipe, logits_recipe, make_recipe, wants_logits

_NOT_ARCHITECTURE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


@dataclass(frozen=True)
class TeacherFacts:
    """What a run has to know of its teacher, wherever that is loaded.

    Args:
        fingerprint: what decides the embeddings, as JSON values.
        dim: width of the embeddings of all layers together.
        vocabulary: rows of the word embeddings; some may belong to no token.
        max_tokens: the most tokens of a sentence, special tokens not counted.
        tokenizer_json: the tokenizer; adds no special tokens.
        word_embeddings: safetensors file of "weight", float16[vocabulary, width].
        device: where it computes.
    """

    fingerprint: dict[str, Any]
    dim: int
    vocabulary: int
    max_tokens: int
    tokenizer_json: str
    word_embeddings: bytes
    device: str

    def __str__(self) -> str:
        found = self.fingerprint
        return (
            f"teacher {found['teacher']}, pooling {found['pooling']}, layers {','.join(map(str, found['layers']))}"
            f"{', normalised' if found['normalize'] else ''}, {found['compute_dtype']} on {self.device}"
        )


class Teacher:
    """A loaded teacher with its tokenizer; build it with `Teacher.load`.

    Attributes:
        name: as in manifests.
        recipe: pooling, layers (counted from 0, ascending as given) and normalisation.
        separator: ids between the sides of a pair; none where it embeds single sentences.
        tokenizer: its tokenizer, which adds no special tokens.
        dim: width of the embeddings of all layers together.
        most_tokens: tokens of a batch that memory was found to hold.
    """

    def __init__(
        self,
        *,
        located: Located,
        model: Any,
        tokenizer: TextTokenizer,
        recipe: Recipe,
        device: torch.device,
        pairs: bool,
    ) -> None:
        self.name = located.name
        self._located = located
        self.recipe = recipe
        self.device = device
        self.model = model
        self.tokenizer = tokenizer
        self.prefix, self.suffix = special_tokens(tokenizer)
        self.separator = separator_tokens(tokenizer, self.prefix, self.suffix, self.name) if pairs else []
        self.dtype = model.dtype
        self.most_tokens = sys.maxsize

    @classmethod
    def load(
        cls,
        located: Located,
        *,
        pooling: str | None = None,
        layers: Sequence[int] = (-1,),
        device: torch.device,
        dtype: torch.dtype,
        pairs: bool = False,
    ) -> "Teacher":
        """Load weights (safetensors only) and tokenizer.

        Args:
            located: see `locate_teacher`.
            pooling: one of `POOLINGS`, or `LOGITS` of a classification head; None takes the logits of a teacher that
                has a head, a sentence-transformers folder's own pooling, otherwise "cls".
            layers: hidden layers to pool.
            device: where to compute.
            dtype: compute type of the weights and activations.
            pairs: whether what it embeds are pairs of sentences, see `join_sides`.

        Raises:
            UserError: the folder holds no encoder that can be loaded safely, has no such layer or pooling, or takes no
                pairs.
        """
        head = wants_logits(located.folder, pooling)
        model, tokenizer = load_parts(located, dtype, head=head)
        last = model.config.num_hidden_layers
        recipe = logits_recipe(layers, last) if head else make_recipe(located.folder, pooling, layers, last)
        if recipe.pooling not in ("pooler", LOGITS) and getattr(model, "pooler", None) is not None:
            model.pooler = None
        model = model.to(device).eval()
        teacher = cls(located=located, model=model, tokenizer=tokenizer, recipe=recipe, device=device, pairs=pairs)
        if device.type == "cpu":
            use_cpu_kernels(teacher.model)
        try:
            # What is no encoder of one sentence shows now, and not once the whole corpus was planned.
            # Two at once, because some heads take no batch.
            teacher.embed(teacher.tokenize(["a\ta" if pairs else "a"] * 2), token_budget=64)
        except (ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
            raise unusable(located, error) from error
        return teacher

    @property
    def layer_dim(self) -> int:
        """Width of one layer's pooled vector; the number of logits where those are asked for."""
        return int(self.model.config.num_labels if self.recipe.pooling == LOGITS else self.model.config.hidden_size)

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

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Token ids of each sentence, without special tokens, or of each pair, with those between its sides."""
        if self.separator:
            return tokenize_pairs(self.tokenizer, sentences, self.separator)
        return self.tokenizer.tokenize(sentences)

    def embed(
        self, tokens: Tokens, token_budget: int, advance: Callable[[int], None] = lambda count: None
    ) -> np.ndarray:
        """Embed tokenised sentences in exact-length batches; see `launch`.

        Returns:
            float32[n, dim], in the order given.
        """
        return self.launch(tokens, token_budget, advance).vectors()

    @torch.inference_mode()
    def launch(
        self, tokens: Tokens, token_budget: int, advance: Callable[[int], None] = lambda count: None
    ) -> Launched:
        """Begin to embed tokenised sentences in exact-length batches.

        On a GPU this returns when all batches are queued, and the next slice can be launched before this one's
        vectors are asked for: the ids travel there in one copy from pinned memory, the vectors come back in
        one, and no batch waits for another. Where a batch does not fit into memory, it and all later ones are
        halved.

        Args:
            tokens: n sentences without special tokens.
            token_budget: tokens of a batch, special tokens counted.
            advance: called with the number of sentences after each batch.

        Raises:
            UserError: not even a single sentence fits into memory.
        """
        lengths = tokens.lengths + len(self.prefix) + len(self.suffix)
        batches = list(exact_length_batches(lengths, token_budget))
        order = np.concatenate([*batches, np.empty(0, dtype=np.int64)]).astype(np.int64)
        flat = torch.from_numpy(tokens.take(order).wrapped(self.prefix, self.suffix).ids.astype(np.int64))
        if self.device.type == "cuda":
            flat = flat.pin_memory().to(self.device, non_blocking=True)
        # One piece for all: those of each batch would stay between activations that come and go, and split memory.
        vectors = torch.empty(len(order), self.dim, device=self.device)
        token = row = 0
        for rows in batches:
            length = int(lengths[rows[0]])
            batch = flat[token : token + len(rows) * length].view(len(rows), length)
            self._within_memory(batch, vectors[row : row + len(rows)])
            token, row = token + batch.numel(), row + len(rows)
            advance(len(rows))
        return Launched.fetch(vectors, order)

    def _within_memory(self, batch: torch.Tensor, vectors: torch.Tensor) -> None:
        """Compute the `vectors` of a batch in as many parts as memory asks for; what was learned of it is kept."""
        rows, length = batch.shape
        size = max(1, min(rows, self.most_tokens // length))
        first = 0
        while first < rows:
            part = slice(first, min(first + size, rows))
            try:
                vectors[part] = self._forward(batch[part])
                first = part.stop
                continue
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise UserError(
                        f"{self.device} has not enough memory for one sentence of {length} tokens; free some, "
                        "lower --max-tokens, or use --device cpu"
                    ) from error
            # Outside the handler, whose traceback would keep the failed batch's tensors alive.
            size = (size + 1) // 2
            self.most_tokens = size * length
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        last = self.model.config.num_hidden_layers
        # No attention mask: exact-length batches have no padding, and attention takes its fastest path.
        types = {"token_type_ids": _token_types(batch, len(self.prefix), self.separator)} if self._typed else {}
        output = self.model(input_ids=batch, output_hidden_states=self.recipe.layers != (last,), **types)
        if self.recipe.pooling == LOGITS:
            return output.logits.float()  # type: ignore[no-any-return]
        if self.recipe.pooling == "pooler":
            pooled = [_pooler_output(output)]
        elif self.recipe.layers == (last,):
            pooled = [_pool(output.last_hidden_state, self.recipe.pooling)]
        else:
            pooled = [_pool(output.hidden_states[layer], self.recipe.pooling) for layer in self.recipe.layers]
        if self.recipe.normalize:
            pooled = [functional.normalize(vector, dim=-1) for vector in pooled]
        return torch.cat(pooled, dim=-1)

    @property
    def _typed(self) -> bool:
        """Whether the model is told which tokens are of the second sentence; of a single one it takes type 0."""
        return bool(self.separator) and getattr(self.model.config, "type_vocab_size", 0) > 1

    def tokenizer_json(self) -> str:
        """The tokenizer as tokenizer.json without post-processor: it adds no special tokens."""
        tokenizer = json.loads(self.tokenizer.to_str())
        tokenizer["post_processor"] = None
        return json.dumps(tokenizer, ensure_ascii=False, sort_keys=True)

    def facts(self) -> TeacherFacts:
        """What a run has to know of it."""
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in _NOT_ARCHITECTURE}
        fingerprint = {
            "teacher": self.name,
            "teacher_weights": self._located.weights_hashes(),
            "teacher_config": bytes_hash(json.dumps(config, sort_keys=True, default=str).encode()),
            "special_tokens": [self.prefix, self.suffix],
            "tokenizer": bytes_hash(self.tokenizer_json().encode()),
            "pooling": self.recipe.pooling,
            "layers": list(self.recipe.layers),
            "normalize": self.recipe.normalize,
            "compute_dtype": str(self.dtype).removeprefix("torch."),
        }
        # Fields of these runs alone, so that those of all others stay what they were.
        if self.separator:
            fingerprint["separator"] = self.separator
        if self.recipe.pooling == LOGITS:
            fingerprint["labels"] = [str(self.model.config.id2label[number]) for number in range(self.dim)]
        words = self.model.get_input_embeddings().weight.detach().cpu().half().contiguous()
        return TeacherFacts(
            fingerprint=fingerprint,
            dim=self.dim,
            vocabulary=self.vocabulary_size,
            max_tokens=self.max_tokens,
            tokenizer_json=self.tokenizer_json(),
            word_embeddings=save_safetensors({"weight": words}),
            device=str(self.device),
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


def _token_types(batch: torch.Tensor, prefix: int, separator: Sequence[int]) -> torch.Tensor:
    """0 up to and with the first separator, 1 behind it.

    Args:
        batch: int64[b, length], pairs with the special tokens around them.
        prefix: how many special tokens stand before a pair.
        separator: see `separator_tokens`.

    Returns:
        int64[b, length].
    """
    # The first of several maxima is the one that argmax gives.
    found = (batch[:, prefix:] == separator[0]).int().argmax(dim=1, keepdim=True)
    second = found + prefix + len(separator)
    return (torch.arange(batch.shape[1], device=batch.device) >= second).long()
