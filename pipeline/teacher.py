"""The teacher: a frozen transformer encoder that turns token ids into sentence embeddings, or logits."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save as save_safetensors
from torch import nn
from torch.nn import functional

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.hardware import use_cpu_kernels
from sentence_distill.pipeline.load import (
    Located,
    load_model,
    longest_input,
    prompt_tokens,
    separator_tokens,
    special_tokens,
    token_types,
    tokenize_pairs,
    unusable,
)
from sentence_distill.pipeline.records import TeacherFingerprint
from sentence_distill.pipeline.teacher_folder import (
    DENSE_WEIGHTS,
    LOGITS,
    POOLER,
    Dense,
    Normalize,
    choose_pooling,
    make_recipe,
    read_folder,
    wants_logits,
)


def exact_length_batches(lengths: np.ndarray, token_budget: int) -> Iterator[np.ndarray]:
    """Cut rows into batches of one length each, as many rows as fit into `token_budget` tokens, at least one.

    Yields int64[b] row numbers for int[n] `lengths`: shortest rows first, ties in their given order.
    """
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    for group in np.split(order, np.flatnonzero(np.diff(ordered)) + 1):
        size = max(1, token_budget // max(1, int(lengths[group[0]]))) if len(group) else 1
        for first in range(0, len(group), size):
            yield group[first : first + size]


@dataclass(frozen=True)
class PendingEmbeddings:
    """Vectors on their way from the device."""

    copy: torch.Tensor
    """float32[n, dim] in host memory, complete once `done` has passed."""
    done: Any
    """CUDA's event, or None on a CPU."""
    order: np.ndarray
    """int64[n], the sentence that each row belongs to."""

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
        """Return float32[n, dim], in the order of the sentences; waits for the device."""
        if self.done is not None:
            self.done.synchronize()
        out = np.empty(self.copy.shape, dtype=np.float32)
        out[self.order] = self.copy.numpy()
        return out


READING = ("prompt", "unpooled_tokens", "modules", "token_types")
"""Fields of the fingerprint that say how a teacher's folder is applied."""
_NOT_ARCHITECTURE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


@dataclass(frozen=True)
class TeacherFacts:
    """Facts about a teacher that a run needs, wherever the teacher is loaded."""

    fingerprint: TeacherFingerprint
    dim: int
    """Width of the embeddings of all layers together."""
    vocabulary: int
    """Rows of the word embeddings; some may belong to no token."""
    max_tokens: int
    """Maximum tokens of a sentence, special tokens and prompt not counted."""
    tokenizer_json: str
    """The tokenizer without post-processor: it adds no special tokens."""
    word_embeddings: bytes
    """safetensors file of "weight", float16[vocabulary, width]."""
    device: str
    left_out: tuple[str, ...] = ()
    """Steps that its folder asks for and that the user's own --pooling or --layers leaves out."""
    note: str = ""
    """Why it is a weak target, or ""."""

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
    """A loaded teacher with its tokenizer."""

    def __init__(
        self,
        located: Located,
        *,
        pooling: str | None = None,
        layers: Sequence[int] = (-1,),
        device: torch.device,
        dtype: torch.dtype,
        pairs: bool = False,
    ) -> None:
        """Load weights (safetensors only) and tokenizer, and embed a sentence to see that it does.

        A named `pooling` takes the transformer's own states, or the logits of its head; so do other `layers` than the
        last. With "mean+logits" the head's logits stand behind the vectors. None takes all modules of a
        sentence-transformers folder, the logits of a teacher that has a head, and otherwise what `SentenceTransformer`
        takes of a plain transformer, the mean. `pairs` says whether what it embeds are pairs of sentences, see
        `tokenize_pairs`.
        """
        folder = read_folder(located.folder)
        pooling = choose_pooling(folder, pooling)
        model, tokenizer = load_model(located, folder, dtype, head=wants_logits(pooling))
        self.name = located.name
        self._located, self._folder = located, folder
        self.recipe = make_recipe(folder, pooling, layers, model.config.num_hidden_layers)
        if self.recipe.pooling not in (POOLER, LOGITS) and getattr(model, "pooler", None) is not None:
            model.pooler = None
        self.device = device
        self.model = model.to(device).eval()
        self._after = nn.Sequential(*map(_module, self.recipe.after)).to(device).eval()
        self.tokenizer = TextTokenizer(tokenizer.backend_tokenizer.to_str())
        special, self.suffix = special_tokens(self.tokenizer)
        prompt, self._unpooled = prompt_tokens(located, folder, self.tokenizer, tokenizer.all_special_ids)
        self.prefix = special + prompt
        # Types of the special tokens before a sentence, of the sentence, and of the special tokens after it.
        self._types = token_types(tokenizer, model, self.tokenizer, len(special))
        self.separator = separator_tokens(self.tokenizer, special, self.suffix, self.name) if pairs else []
        longest = longest_input(folder, model, tokenizer)
        self.max_tokens = longest - len(self.prefix) - len(self.suffix)
        if self.max_tokens < 1:
            raise UserError(
                f"teacher {self.name!r} reads {longest} tokens, which its special tokens and prompt take up; "
                "raise max_seq_length in its configuration"
            )
        # Tokens of a batch that memory was found to hold.
        self.most_tokens = sys.maxsize
        if device.type == "cpu":
            use_cpu_kernels(self.model)
        try:
            # What is no encoder of one sentence shows now, and not once the whole corpus was planned.
            # Two at once, because some heads take no batch.
            self.embed(self.tokenize(["a\ta" if pairs else "a"] * 2), token_budget=64)
        except (ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
            raise unusable(located, error) from error

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
        """Width of the embeddings of all layers together."""
        return self.layer_dim * len(self.recipe.layers)

    @property
    def logits(self) -> int:
        """Number of logits that stand behind the embeddings; 0 unless both were asked for."""
        return int(self.model.config.num_labels) if self.recipe.logits else 0

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Token ids of each sentence, without special tokens, or of each pair, with those between its sides."""
        if self.separator:
            return tokenize_pairs(self.tokenizer, sentences, self.separator)
        return self.tokenizer.tokenize(sentences)

    def embed(
        self, tokens: Tokens, token_budget: int, advance: Callable[[int], None] = lambda count: None
    ) -> np.ndarray:
        """Embed n tokenized sentences, see `launch`; returns float32[n, dim + logits]."""
        return self.launch(tokens, token_budget, advance).vectors()

    @torch.inference_mode()
    def launch(
        self, tokens: Tokens, token_budget: int, advance: Callable[[int], None] = lambda count: None
    ) -> PendingEmbeddings:
        """Begin to embed sentences, without special tokens, in exact-length batches of `token_budget` tokens with them.

        On a GPU this returns when all batches are queued, and the next slice can be launched before this one's
        vectors are asked for: the ids travel there in one copy from pinned memory, the vectors come back in
        one, and no batch waits for another. Where a batch does not fit into memory, it and all later ones are
        halved. `advance` is called with the number of sentences after each batch.
        """
        lengths = tokens.lengths + len(self.prefix) + len(self.suffix)
        batches = list(exact_length_batches(lengths, token_budget))
        order = np.concatenate([*batches, np.empty(0, dtype=np.int64)]).astype(np.int64)
        flat = torch.from_numpy(tokens.take(order).wrapped(self.prefix, self.suffix).ids.astype(np.int64))
        if self.device.type == "cuda":
            flat = flat.pin_memory().to(self.device, non_blocking=True)
        # One piece for all: those of each batch would stay between activations that come and go, and split memory.
        vectors = torch.empty(len(order), self.dim + self.logits, device=self.device)
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
        recipe, last = self.recipe, self.model.config.num_hidden_layers
        # No attention mask: exact-length batches have no padding, and attention takes its fastest path.
        types = self._token_types(batch)
        typed = {} if types is None else {"token_type_ids": types}
        # A model under a head returns no last state but as one of all.
        every = recipe.logits or recipe.layers != (last,)
        output = self.model(input_ids=batch, output_hidden_states=every, **typed)
        if recipe.pooling == LOGITS:
            return output.logits.float()  # type: ignore[no-any-return]
        if recipe.pooling == POOLER:
            if getattr(output, "pooler_output", None) is None:
                raise UserError("this teacher has no pooler; use --pooling cls, mean or max")
            pooled = [output.pooler_output.float()]
        elif not every:
            pooled = [pool(output.last_hidden_state, recipe.poolings, self._unpooled)]
        else:
            states = [output.hidden_states[layer] for layer in recipe.layers]
            pooled = [pool(of_layer, recipe.poolings, self._unpooled) for of_layer in states]
        if recipe.after or recipe.truncate_dim is not None:
            features = self._after({"sentence_embedding": pooled[0]})
            return features["sentence_embedding"][:, : recipe.truncate_dim]  # type: ignore[no-any-return]
        if recipe.normalize:
            pooled = [functional.normalize(vector, dim=-1) for vector in pooled]
        return torch.cat([*pooled, output.logits.float()] if recipe.logits else pooled, dim=-1)

    def _token_types(self, batch: torch.Tensor) -> torch.Tensor | None:
        """Return the type of each token, int64[b, length]; None if the model takes 0 for all by itself."""
        types, length, start = self._types, batch.shape[1], len(self.prefix)
        after = types[len(types) - len(self.suffix) :] if types else []
        if self.separator and (types is not None or getattr(self.model.config, "type_vocab_size", 0) > 1):
            # 0 up to and with the first separator, 1 after it; of several maxima argmax gives the first.
            found = (batch[:, start:] == self.separator[0]).int().argmax(dim=1, keepdim=True)
            second = found + start + len(self.separator)
            of_pair = (torch.arange(length, device=batch.device) >= second).long()
            if any(after):
                of_pair[:, -len(after) :] = torch.tensor(after, device=batch.device).clamp(min=1)
            return of_pair
        if types is None:
            return None
        *before, inner = types[: len(types) - len(after)]
        row = [*before, *[inner] * (length - len(before) - len(after)), *after]
        return torch.tensor(row, device=batch.device).expand_as(batch)

    def tokenizer_json(self) -> str:
        """Return the tokenizer as tokenizer.json without post-processor: it adds no special tokens."""
        tokenizer = json.loads(self.tokenizer.to_str())
        tokenizer["post_processor"] = None
        return json.dumps(tokenizer, ensure_ascii=False, sort_keys=True)

    def reading(self) -> dict[str, Any]:
        """Return how its folder is applied: those fields of the fingerprint named in `READING` that it has."""
        fields: dict[str, Any] = {}
        if self._folder.prompt:
            fields |= {"prompt": self._folder.prompt, "unpooled_tokens": self._unpooled}
        if modules := self.recipe.modules():
            fields["modules"] = modules
        if self._types is not None:
            fields["token_types"] = self._types
        return fields

    def facts(self) -> TeacherFacts:
        """Return what a run has to know of it."""
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in _NOT_ARCHITECTURE}
        logits = self.logits or (self.dim if self.recipe.pooling == LOGITS else 0)
        tokenizer = self.tokenizer_json()
        fingerprint = TeacherFingerprint(
            teacher=self.name,
            teacher_weights=self._located.weights_hashes(),
            teacher_config=bytes_hash(json.dumps(config, sort_keys=True, default=str).encode()),
            special_tokens=[self.prefix, self.suffix],
            tokenizer=bytes_hash(tokenizer.encode()),
            pooling=self.recipe.pooling,
            layers=list(self.recipe.layers),
            normalize=self.recipe.normalize,
            compute_dtype=str(self.model.dtype).removeprefix("torch."),
            separator=self.separator or None,
            labels=[str(self.model.config.id2label[number]) for number in range(logits)] if logits else None,
            **self.reading(),
        )
        note = (
            f"{self.name} does not seem to be trained for sentence vectors (it has no modules.json), and its "
            f"{self.recipe.pooling} pooling is a weak target; --teacher minilm or mpnet is better"
        )
        words = self.model.get_input_embeddings()
        return TeacherFacts(
            fingerprint=fingerprint,
            dim=self.dim,
            vocabulary=int(words.num_embeddings),
            max_tokens=self.max_tokens,
            tokenizer_json=tokenizer,
            word_embeddings=save_safetensors({"weight": words.weight.detach().cpu().half().contiguous()}),
            device=str(self.device),
            left_out=self.recipe.left_out,
            note="" if self._folder.pools or logits else note,
        )


# From hidden states to the vector.


def pool(states: torch.Tensor, poolings: Sequence[str], skip: int = 0) -> torch.Tensor:
    """Pool [batch, length, width] hidden states without padding to float32[batch, len(poolings) * width].

    Special tokens take part; `skip` tokens at the beginning do not: a prompt and what stands before it.
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


def _module(step: Dense | Normalize) -> nn.Module:
    """Load sentence-transformers' own module, which works on a dictionary of features."""
    from sentence_transformers.base import modules

    if isinstance(step, Normalize):
        return modules.Normalize()  # type: ignore[no-any-return]
    file = step.folder / DENSE_WEIGHTS
    if not file.exists():
        raise UserError(
            f"{file} is missing, and pickled weights are not read; save the model again with sentence-transformers"
        )
    try:
        return modules.Dense.load(str(step.folder), local_files_only=True)  # type: ignore[no-any-return]
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        told = " ".join(str(error).split())
        raise UserError(f"{file} does not fit its config.json ({told}); save the model again") from error
