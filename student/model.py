"""A trained student: a tokenizer and an encoder, from text to vectors."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from sentence_distill.student.batches import near_length_batches, pad_tokens
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.sklearn_transformer import SklearnTransformer
from sentence_distill.student.workers import map_on_cores

# A batch's states then fit into a core's cache.
TOKEN_BUDGET = 4096
# So many sentences are ordered by length at once, or fewer long ones; more need more memory and fill no batch better.
_WINDOW = 1 << 16
_WINDOW_CHARACTERS = 1 << 25
# The shards hold no longer sentences by default; what is longer is cut, as sentence-transformers does.
MAX_TOKENS = 512


class Student(SklearnTransformer):
    """Encodes sentences; scikit-learn takes it for a transformer.

    Attributes:
        encoder: the network, in evaluation mode.
        tokenizer: adds no special tokens.
    """

    def __init__(self, encoder: StudentEncoder, tokenizer: Tokenizer) -> None:
        self.encoder = encoder.eval()
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, name: str | Path) -> "Student":
        """Read the student in a folder, which `sd train-student` or `sd finetune` made, or on the hub.

        Args:
            name: of the folder; or, as a string, "wiki-small", which comes with the package, or `owner/name` or
                `owner/name@revision` on the hub, which is asked where no folder has that name. Where it can't be
                asked, or HF_HUB_OFFLINE is set, its cache is searched.

        Raises:
            UserError: there is none, or it is damaged.
        """
        from sentence_distill.student.folder import load_student
        from sentence_distill.student.hub import locate_student

        return load_student(locate_student(name))

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.encoder.config.target_dims[-1]

    def tokenize(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids of each sentence, at most `MAX_TOKENS`."""
        encodings = self.tokenizer.encode_batch_fast(list(sentences), add_special_tokens=False)
        return [encoding.ids[:MAX_TOKENS] for encoding in encodings]

    def encode(self, sentences: str | Sequence[str], precision: torch.dtype = torch.float32) -> np.ndarray:
        """Embed sentences.

        A sentence's vector does not depend, but for rounding, on what it is encoded with; several threads may encode at
        once.

        Args:
            sentences: n sentences, or one.
            precision: bfloat16 computes the LSTM under autocast, for processors that have instructions for it.

        Returns:
            float32[n, dim] in the order given; of one `str` float32[dim].
        """
        if isinstance(sentences, str):
            return self.encode([sentences], precision)[0]
        out = np.empty((len(sentences), self.dim), dtype=np.float32)
        first = 0
        while first < len(sentences):
            window = self.tokenize(sentences[first : first + _window(sentences, first)])
            out[first : first + len(window)] = encode_tokens(self.encoder, window, precision).numpy()
            first += len(window)
        return out


def _window(sentences: Sequence[str], first: int) -> int:
    """How many sentences from `first` on are encoded together: at least one."""
    characters = 0
    for count in range(min(_WINDOW, len(sentences) - first)):
        characters += len(sentences[first + count])
        if characters > _WINDOW_CHARACTERS:
            return max(1, count)
    return min(_WINDOW, len(sentences) - first)


def encode_tokens(
    encoder: StudentEncoder,
    input_ids: Sequence[Sequence[int] | np.ndarray],
    precision: torch.dtype = torch.float32,
    token_budget: int = TOKEN_BUDGET,
) -> torch.Tensor:
    """Embed tokenised sentences in batches of near lengths, on a CPU several side by side.

    A sentence's vector does not depend on the others. One without tokens pools to zeros.

    Args:
        encoder: the network.
        input_ids: n sequences of token ids.
        precision: see `Student.encode`.
        token_budget: tokens of a batch.

    Returns:
        float32[n, dim].
    """
    return _in_batches(encoder, input_ids, encoder.embed, encoder.config.target_dims[-1], precision, token_budget)


def pool_tokens(
    encoder: StudentEncoder, input_ids: Sequence[Sequence[int] | np.ndarray], precision: torch.dtype = torch.float32
) -> torch.Tensor:
    """Pooled LSTM states of tokenised sentences, float32[n, pooled_dim], which heads read; see `encode_tokens`."""
    return _in_batches(encoder, input_ids, torch.Tensor.float, encoder.config.pooled_dim, precision, TOKEN_BUDGET)


def _in_batches(
    encoder: StudentEncoder,
    input_ids: Sequence[Sequence[int] | np.ndarray],
    finish: Callable[[torch.Tensor], torch.Tensor],
    width: int,
    precision: torch.dtype,
    token_budget: int,
) -> torch.Tensor:
    """float32[n, width]: `finish` of the pooled states of each sentence."""
    lengths = np.array([len(ids) for ids in input_ids], dtype=np.int64)

    @torch.inference_mode()
    def encode(rows: np.ndarray) -> torch.Tensor:
        return finish(_pool_batch(encoder, [input_ids[row] for row in rows], precision)).float().cpu()

    # The longest first, so that no thread is left alone with it at the end.
    batches = list(near_length_batches(lengths, token_budget))[::-1]
    on_cpu = next(encoder.parameters()).device.type == "cpu"
    vectors = map_on_cores(encode, batches) if on_cpu else [encode(rows) for rows in batches]
    out = torch.empty(len(input_ids), width)
    for rows, part in zip(batches, vectors, strict=True):
        out[torch.from_numpy(rows)] = part
    return out


def _pool_batch(
    encoder: StudentEncoder, input_ids: Sequence[Sequence[int] | np.ndarray], precision: torch.dtype
) -> torch.Tensor:
    """Pooled states of one batch, float32[b, pooled_dim]."""
    device = next(encoder.parameters()).device
    padded, lengths = pad_tokens(input_ids)
    batch = torch.from_numpy(padded).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        if lengths.min() == padded.shape[1]:
            return encoder.pool(batch)
        return encoder.pool_padded(batch, torch.from_numpy(lengths).to(device))
