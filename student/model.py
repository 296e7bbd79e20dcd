"""A trained student: a tokenizer and an encoder, from text to vectors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from sentence_distill.pipeline.batches import exact_length_batches
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.sklearn_transformer import SklearnTransformer

TOKEN_BUDGET = 8192
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
            name: of the folder; or, as a string, `owner/name` or `owner/name@revision` on the hub, which is asked
                where no folder has that name. Where it can't be asked, or HF_HUB_OFFLINE is set, its cache is searched.

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

    def encode(self, sentences: Sequence[str], precision: torch.dtype = torch.float32) -> np.ndarray:
        """Embed sentences: float32[n, dim], in the order given; see `encode_tokens` for `precision`."""
        return encode_tokens(self.encoder, self.tokenize(sentences), precision).numpy()


@torch.inference_mode()
def encode_tokens(
    encoder: StudentEncoder,
    input_ids: Sequence[Sequence[int] | np.ndarray],
    precision: torch.dtype = torch.float32,
    token_budget: int = TOKEN_BUDGET,
) -> torch.Tensor:
    """Embed tokenised sentences in exact-length batches.

    A sentence's vector does not depend on the others. One without tokens pools to zeros.

    Args:
        encoder: the network.
        input_ids: n sequences of token ids.
        precision: bfloat16 computes the LSTM under autocast.
        token_budget: tokens of a batch.

    Returns:
        float32[n, dim].
    """
    device = next(encoder.parameters()).device
    out = torch.empty(len(input_ids), encoder.config.target_dims[-1])
    lengths = np.array([len(ids) for ids in input_ids], dtype=np.int64)
    for rows in exact_length_batches(lengths, token_budget):
        if lengths[rows[0]] == 0:
            pooled = torch.zeros(len(rows), encoder.config.pooled_dim, device=device)
        else:
            batch = np.array([input_ids[row] for row in rows], dtype=np.int64)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
                pooled = encoder.pool(torch.from_numpy(batch).to(device))
        out[torch.from_numpy(rows)] = encoder.embed(pooled).float().cpu()
    return out
