"""The teacher: from token ids to embeddings."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors
from torch.nn import functional

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.hardware import use_cpu_kernels
from sentence_distill.pipeline.load import (
    LoadedTeacher,
    Located,
    TokenTypes,
    load_parts,
    unusable,
)
from sentence_distill.pipeline.pairs import separator_tokens, tokenize_pairs
from sentence_distill.pipeline.recipe import (
    AfterPooling,
    Recipe,
    logits_recipe,
    make_recipe,
    pool,
    require_applied,
    wants_logits,
)
from sentence_distill.pipeline.records import TeacherFingerprint
from sentence_distill.pipeline.teacher_folder import LOGITS, POOLER, Dense, TeacherFolder, read_folder


def exact_length_batches(lengths: np.ndarray, token_budget: int) -> Iterator[np.ndarray]:
    """Cut rows into batches of one length each, as many rows as fit into `token_budget` tokens.

    Args:
        lengths: int[n], tokens of each row.
        token_budget: tokens of a batch; a longer row is a batch of its own.

    Yields:
        int64[b], row numbers; shortest rows first, ties in their given order.
    """
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    for group in np.split(order, np.flatnonzero(np.diff(ordered)) + 1):
        size = max(1, token_budget // max(1, int(lengths[group[0]]))) if len(group) else 1
        for first in range(0, len(group), size):
            yield group[first : first + size]


# Vectors that a device still computes, and how they come to the host.


@dataclass(frozen=True)
class PendingEmbeddings:
    """Vectors on their way from the device.

    Args:
        copy: float32[n, dim] in host memory, complete once `done` has passed.
        done: CUDA's event, or None on a CPU.
        order: int64[n], the sentence that each row belongs to.
    """

    copy: torch.Tensor
    done: Any
    order: np.ndarray

    @classmethod
    def fetch(cls, vectors: torch.Tensor, order: np.ndarray) -> "PendingEmbeddings":
        """Queue the copy to the host behind the computation, and before whatever is launched next."""
        if vectors.device.type != "cuda":
            return cls(vectors, None, order)
        copy = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
        copy.copy_(vectors, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(vectors.device))
        return cls(copy, done, order)

    def vectors(self) -> np.ndarray:
        """float32[n, dim], in the order of the sentences; waits for the device."""
        if self.done is not None:
            self.done.synchronize()
        out = np.empty(self.copy.shape, dtype=np.float32)
        out[self.order] = self.copy.numpy()
        return out


# The teacher: a frozen transformer encoder that turns exact-length batches into sentence embeddings or logits.

READING = ("prompt", "unpooled_tokens", "modules", "token_types")
_NOT_ARCHITECTURE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


@dataclass(frozen=True)
class TeacherFacts:
    """What a run has to know of its teacher, wherever that is loaded.

    Args:
        fingerprint: what decides the embeddings.
        dim: width of the embeddings of all layers together.
        vocabulary: rows of the word embeddings; some may belong to no token.
        max_tokens: the most tokens of a sentence, special tokens and prompt not counted.
        tokenizer_json: the tokenizer; adds no special tokens.
        word_embeddings: safetensors file of "weight", float16[vocabulary, width].
        device: where it computes.
        left_out: what its folder asks for and the user's own --pooling or --layers leaves out.
        note: why it is a weak target, or "".
    """

    fingerprint: TeacherFingerprint
    dim: int
    vocabulary: int
    max_tokens: int
    tokenizer_json: str
    word_embeddings: bytes
    device: str
    left_out: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        found = self.fingerprint
        parts = [
            f"teacher {found.teacher}",
            f"pooling {found.pooling}",
            f"layers {','.join(map(str, found.layers))}",
            *(found.modules or []),
            *(["normalized"] if found.normalize else []),
            *([f"prompt {found.prompt!r}"] if found.prompt is not None else []),
            f"{found.compute_dtype} on {self.device}",
        ]
        left_out = f"; left out for --pooling or --layers: {'; '.join(self.left_out)}" if self.left_out else ""
        return ", ".join(parts) + left_out


class Teacher:
    """A loaded teacher with its tokenizer; build it with `Teacher.load`.

    Attributes:
        name: as in manifests.
        recipe: pooling, layers (counted from 0, in the order given) and what follows.
        prefix: ids before a sentence: special tokens, then those of a prompt.
        suffix: ids after it.
        separator: ids between the sides of a pair; none where it embeds single sentences.
        tokenizer: its tokenizer, which adds no special tokens.
        dim: width of the embeddings of all layers together.
        max_tokens: the most tokens of a sentence, special tokens and prompt not counted.
        most_tokens: tokens of a batch that memory was found to hold.
    """

    def __init__(
        self,
        *,
        located: Located,
        folder: TeacherFolder,
        loaded: LoadedTeacher,
        recipe: Recipe,
        device: torch.device,
        pairs: bool,
    ) -> None:
        self.name = located.name
        self._located = located
        self._folder = folder
        self._loaded = loaded
        self.recipe = recipe
        self.device = device
        self.model = loaded.model.to(device).eval()
        self._after = AfterPooling(recipe).to(device).eval()
        self.tokenizer = loaded.tokenizer
        self.prefix, self.suffix = loaded.prefix, loaded.suffix
        special = self.prefix[: loaded.special]
        self.separator = separator_tokens(self.tokenizer, special, self.suffix, self.name) if pairs else []
        self.max_tokens = loaded.longest - len(self.prefix) - len(self.suffix)
        self.dtype = self.model.dtype
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
            pooling: one of `POOLINGS` or several joined by "+", which take the transformer's own states, or `LOGITS` of
                a classification head. None takes all modules of a sentence-transformers folder, the logits of a teacher
                that has a head, and otherwise what `SentenceTransformer` takes of a plain transformer, the mean.
            layers: hidden layers to pool; others than the last are the transformer's own states.
            device: where to compute.
            dtype: compute type of the weights and activations.
            pairs: whether what it embeds are pairs of sentences, see `join_sides`.

        Raises:
            UserError: the folder holds no encoder that can be loaded safely, asks for what is not applied here, has no
                such layer or pooling, or takes no pairs.
        """
        folder = read_folder(located.folder)
        head = wants_logits(folder, pooling)
        if not head:
            # Before anything large is loaded.
            require_applied(folder, pooling)
        loaded = load_parts(located, folder, dtype, head=head)
        last = loaded.model.config.num_hidden_layers
        recipe = logits_recipe(layers, last) if head else make_recipe(folder, pooling, layers, last)
        if recipe.pooling not in (POOLER, LOGITS) and getattr(loaded.model, "pooler", None) is not None:
            loaded.model.pooler = None
        teacher = cls(located=located, folder=folder, loaded=loaded, recipe=recipe, device=device, pairs=pairs)
        if teacher.max_tokens < 1:
            raise UserError(
                f"teacher {located.name!r} reads {loaded.longest} tokens, which its special tokens and prompt take up; "
                "raise max_seq_length in its configuration"
            )
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
        """Width of one layer's pooled vector, or of what follows it; the number of logits if those are asked for."""
        if self.recipe.pooling == LOGITS:
            return int(self.model.config.num_labels)
        width = int(self.model.config.hidden_size) * len(self.recipe.poolings)
        widths = [width, *(step.outputs for step in self.recipe.after if isinstance(step, Dense))]
        return min(widths[-1], self.recipe.truncate_dim or widths[-1])

    @property
    def dim(self) -> int:
        """Width of the concatenated embedding."""
        return self.layer_dim * len(self.recipe.layers)

    @property
    def vocabulary_size(self) -> int:
        """Rows of the word embeddings; some may belong to no token."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @property
    def note(self) -> str:
        """Why its vectors are a weak target, or "" if nothing says so."""
        if self._folder.pools or self.recipe.pooling == LOGITS:
            return ""
        return (
            f"{self.name} does not seem to be trained for sentence vectors (it has no modules.json), and its "
            f"{self.recipe.pooling} pooling is a weak target; --teacher minilm or mpnet is better"
        )

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
    ) -> PendingEmbeddings:
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
        return PendingEmbeddings.fetch(vectors, order)

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
        types = self._token_types(batch)
        typed = {} if types is None else {"token_type_ids": types}
        output = self.model(input_ids=batch, output_hidden_states=self.recipe.layers != (last,), **typed)
        if self.recipe.pooling == LOGITS:
            return output.logits.float()  # type: ignore[no-any-return]
        if self.recipe.pooling == POOLER:
            pooled = [_pooler_output(output)]
        else:
            whole = self.recipe.layers == (last,)
            states = [
                output.last_hidden_state if whole else output.hidden_states[layer] for layer in self.recipe.layers
            ]
            pooled = [pool(of_layer, self.recipe.poolings, self._loaded.unpooled) for of_layer in states]
        if self.recipe.modules():
            return self._after(pooled[0])  # type: ignore[no-any-return]
        if self.recipe.normalize:
            pooled = [functional.normalize(vector, dim=-1) for vector in pooled]
        return torch.cat(pooled, dim=-1)

    def _token_types(self, batch: torch.Tensor) -> torch.Tensor | None:
        """int64[b, length]: the type of each token; None if the model takes 0 for all by itself."""
        types = self._loaded.types
        if self.separator and (types is not None or getattr(self.model.config, "type_vocab_size", 0) > 1):
            of_pair = _pair_types(batch, len(self.prefix), self.separator)
            if types is not None and any(types.suffix):
                of_pair[:, -len(types.suffix) :] = torch.tensor(types.suffix, device=batch.device).clamp(min=1)
            return of_pair
        return None if types is None else _sentence_types(batch, len(self.prefix), types)

    def tokenizer_json(self) -> str:
        """The tokenizer as tokenizer.json without post-processor: it adds no special tokens."""
        tokenizer = json.loads(self.tokenizer.to_str())
        tokenizer["post_processor"] = None
        return json.dumps(tokenizer, ensure_ascii=False, sort_keys=True)

    def reading(self) -> dict[str, Any]:
        """Return how its folder is applied: those fields of the fingerprint named in `READING` that it has."""
        fields: dict[str, Any] = {}
        if self._folder.prompt:
            fields |= {"prompt": self._folder.prompt, "unpooled_tokens": self._loaded.unpooled}
        if modules := self.recipe.modules():
            fields["modules"] = modules
        if (types := self._loaded.types) is not None:
            fields["token_types"] = [*types.prefix, types.inner, *types.suffix]
        return fields

    def facts(self) -> TeacherFacts:
        """Return what a run has to know of it."""
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in _NOT_ARCHITECTURE}
        logits = self.recipe.pooling == LOGITS
        fingerprint = TeacherFingerprint(
            teacher=self.name,
            teacher_weights=self._located.weights_hashes(),
            teacher_config=bytes_hash(json.dumps(config, sort_keys=True, default=str).encode()),
            special_tokens=[self.prefix, self.suffix],
            tokenizer=bytes_hash(self.tokenizer_json().encode()),
            pooling=self.recipe.pooling,
            layers=list(self.recipe.layers),
            normalize=self.recipe.normalize,
            compute_dtype=str(self.dtype).removeprefix("torch."),
            separator=self.separator or None,
            labels=[str(self.model.config.id2label[number]) for number in range(self.dim)] if logits else None,
            **self.reading(),
        )
        words = self.model.get_input_embeddings().weight.detach().cpu().half().contiguous()
        return TeacherFacts(
            fingerprint=fingerprint,
            dim=self.dim,
            vocabulary=self.vocabulary_size,
            max_tokens=self.max_tokens,
            tokenizer_json=self.tokenizer_json(),
            word_embeddings=save_safetensors({"weight": words}),
            device=str(self.device),
            left_out=self.recipe.left_out,
            note=self.note,
        )


def _pooler_output(output: Any) -> torch.Tensor:
    if getattr(output, "pooler_output", None) is None:
        raise UserError("this teacher has no pooler; use --pooling cls, mean or max")
    return output.pooler_output.float()  # type: ignore[no-any-return]


def _sentence_types(batch: torch.Tensor, prefix: int, types: TokenTypes) -> torch.Tensor:
    """The type of each token of a batch of single sentences, which `prefix` tokens precede."""
    before = [*types.prefix, *[types.inner] * (prefix - len(types.prefix))]
    inner = batch.shape[1] - prefix - len(types.suffix)
    row = torch.tensor([*before, *[types.inner] * inner, *types.suffix], device=batch.device)
    return row.expand_as(batch)


def _pair_types(batch: torch.Tensor, prefix: int, separator: Sequence[int]) -> torch.Tensor:
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
