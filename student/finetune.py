"""Fine-tuning of a whole student with a head on one labelled task."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sentence_distill.data.glue import Examples
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.init import SCALE
from sentence_distill.student.model import Student

HEAD_UNITS = 512
HEAD_DROPOUT = 0.2


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a student is fine-tuned; the same for every task and every row of a table."""

    epochs: int = 5
    """Most passes over the training examples; the best epoch on dev counts."""
    max_steps: int = 1500
    """Large tasks get fewer epochs, but at least 2, so that their steps stay near this."""
    batch_size: int = 64
    """Examples of a batch."""
    learning_rate: float = 1e-3
    """Of AdamW at its peak, with a linear fall to 0."""
    weight_decay: float = 0.01
    """Of AdamW."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    """Of the head's weights and the order of examples."""


class Classifier(nn.Module):
    """A student's encoder under a head with one hidden layer.

    The head reads the pooled LSTM states, u of a single sentence and [u, v, |u - v|, u * v] of a pair.
    """

    def __init__(self, encoder: StudentEncoder, sentences: int, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.pooled_dim * (1 if sentences == 1 else 4)
        self.head = nn.Sequential(
            nn.Dropout(HEAD_DROPOUT),
            nn.Linear(width, HEAD_UNITS),
            nn.ReLU(),
            nn.Dropout(HEAD_DROPOUT),
            nn.Linear(HEAD_UNITS, outputs),
        )

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor, sentences: int) -> torch.Tensor:
        """Logits, float32[b, outputs].

        Args:
            input_ids: int64[sentences * b, longest]: all first sentences, then all second ones.
            lengths: int64[sentences * b].
            sentences: 1 or 2.
        """
        pooled = self.encoder.pool_padded(input_ids, lengths)
        if sentences == 1:
            return self.head(pooled)  # type: ignore[no-any-return]
        u, v = pooled.chunk(2)
        return self.head(torch.cat([u, v, (u - v).abs(), u * v], dim=1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Tokens:
    """Tokenised examples: for each column n lists of token ids, and float32[n] labels."""

    columns: tuple[list[list[int]], ...]
    labels: np.ndarray

    @classmethod
    def make(cls, student: Student, examples: Examples) -> "Tokens":
        """Tokenise labelled examples."""
        columns = tuple(student.tokenize(column) for column in examples.texts)
        return cls(columns, np.array(examples.labels, dtype=np.float32))

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, rng: np.random.Generator | None) -> Iterator[np.ndarray]:
        """Cut the examples into batches of similar length, in random order where `rng` is given."""
        lengths = np.array([[len(ids) for ids in column] for column in self.columns]).max(axis=0)
        rows = rng.permutation(len(self)) if rng is not None else np.arange(len(self))
        order = rows[np.argsort(lengths[rows], kind="stable")]
        batches = [order[first : first + size] for first in range(0, len(order), size)]
        for batch in rng.permutation(len(batches)) if rng is not None else range(len(batches)):
            yield batches[batch]

    def padded(self, rows: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens of `rows`, column after column: int64[columns * b, longest] and int64[columns * b]."""
        sequences = [column[row] for column in self.columns for row in rows]
        lengths = np.array([len(ids) for ids in sequences], dtype=np.int64)
        padded = np.zeros((len(sequences), max(1, lengths.max())), dtype=np.int64)
        for row, ids in enumerate(sequences):
            padded[row, : len(ids)] = ids
        return torch.from_numpy(padded).to(device), torch.from_numpy(lengths).to(device)


def finetune(
    student: Student,
    train: Tokens,
    classes: int,
    config: FinetuneConfig,
    device: torch.device,
    precision: torch.dtype,
) -> Iterator[Classifier]:
    """Fine-tune encoder and head; yield the classifier after each epoch.

    Args:
        student: where to start; it is changed.
        train: labelled examples.
        classes: number of classes, 0 for a regression.
        config: options.
        device: where to train.
        precision: bfloat16 computes under autocast.
    """
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    sentences = len(train.columns)
    model = Classifier(student.encoder, sentences, max(1, classes)).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    per_epoch = -(-len(train) // config.batch_size)
    epochs = min(config.epochs, max(2, config.max_steps // per_epoch))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=epochs * per_epoch)
    for _ in range(epochs):
        model.train()
        for rows in train.batches(config.batch_size, rng):
            input_ids, lengths = train.padded(rows, device)
            labels = torch.from_numpy(train.labels[rows]).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
                logits = model(input_ids, lengths, sentences).float()
            loss = (
                functional.cross_entropy(logits, labels.long())
                if classes
                else functional.mse_loss(logits[:, 0], labels)
            )
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
        yield model


@torch.inference_mode()
def predict(model: Classifier, tokens: Tokens, classes: int, device: torch.device) -> np.ndarray:
    """Class numbers, or scores in a regression: float[n], in the order of the examples."""
    model.eval()
    out = np.empty(len(tokens))
    for rows in tokens.batches(256, None):
        logits = model(*tokens.padded(rows, device), len(tokens.columns)).float().cpu()
        out[rows] = (logits.argmax(dim=1) if classes else logits[:, 0]).numpy()
    return out


def mean_score(scores: dict[str, float]) -> float:
    """One number for a task: the mean of its metrics, as GLUE averages them."""
    return float(np.mean(list(scores.values())))


def initial_weights(encoder: StudentEncoder, seed: int) -> StudentEncoder:
    """A student of the same shape with new random weights: the baseline that knows nothing of the teacher."""
    torch.manual_seed(seed)
    scratch = StudentEncoder(encoder.config)
    nn.init.normal_(scratch.embedding.weight, std=SCALE)
    return scratch
