"""The student network: word embeddings, a bidirectional LSTM, pooling, and a projection for each target layer."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sentence_distill.student.config import StudentConfig


class StudentEncoder(nn.Module):
    """Token ids to sentence embeddings.

    Two ways lead to the same result: `pool` for exact-length batches, where nothing is padded, and
    `pool_padded` where lengths must mix.
    """

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.embedding_dim)
        self.lstm = nn.LSTM(
            config.embedding_dim,
            config.hidden,
            num_layers=config.layers,
            batch_first=True,
            bidirectional=True,
        )
        self.projections = nn.ModuleList(nn.Linear(config.pooled_dim, dim) for dim in config.target_dims)

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights as float32 arrays, by their names in `state_dict`."""
        return {name: weight.float().cpu().numpy() for name, weight in self.state_dict().items()}

    def pool(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Pooled LSTM states, float32[b, pooled_dim], of int64[b, length] sentences of one length."""
        return self.pool_words(self.embedding(input_ids))

    def pool_words(self, embedded: torch.Tensor) -> torch.Tensor:
        """The same from word embeddings, float[b, length, embedding_dim]."""
        states = self.lstm(embedded)[0].float()
        return torch.cat([_pool(states, mode) for mode in self.config.pooling.split("+")], dim=-1)

    def pool_padded(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Pooled LSTM states of sentences padded at their end.

        Instead of packing, each layer runs as two one-way LSTMs, the second over each sentence's own tokens
        in reverse: what stands behind a sentence's end never reaches its states. A sentence without tokens
        pools to zeros.

        Args:
            input_ids: int64[b, longest]; any id stands behind a sentence's end.
            lengths: int64[b], tokens of each sentence.

        Returns:
            float32[b, pooled_dim].
        """
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        inside = places < lengths[:, None]
        # Reverses the tokens of each sentence and leaves the padding where it is; its own inverse.
        reverse = torch.where(inside, lengths[:, None] - 1 - places, places)
        states = self.embedding(input_ids)
        for forward, backward in self._directions():
            back = self._one_way(_gather(states, reverse), backward)
            states = torch.cat([self._one_way(states, forward), _gather(back, reverse)], dim=-1)
        states = states.float()
        return torch.cat([_pool_inside(states, inside, mode) for mode in self.config.pooling.split("+")], dim=-1)

    def embed(self, pooled: torch.Tensor) -> torch.Tensor:
        """The public embedding, float32[b, dim], from pooled states: the projection to the last target."""
        return self._project(self.projections[-1], pooled)

    def targets(self, pooled: torch.Tensor) -> list[torch.Tensor]:
        """One float32[b, dim] for each layer of the teacher that is approximated."""
        return [self._project(projection, pooled) for projection in self.projections]

    def _project(self, projection: nn.Module, pooled: torch.Tensor) -> torch.Tensor:
        vector: torch.Tensor = projection(pooled)
        return functional.normalize(vector, dim=-1) if self.config.normalize else vector

    def _directions(self) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        for layer in range(self.config.layers):
            yield (
                [getattr(self.lstm, f"{name}_l{layer}") for name in names],
                [getattr(self.lstm, f"{name}_l{layer}_reverse") for name in names],
            )

    def _one_way(self, states: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        zeros = states.new_zeros(1, states.shape[0], self.config.hidden)
        return torch.lstm(states, (zeros, zeros), weights, True, 1, 0.0, self.training, False, True)[0]


def _gather(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return states.gather(1, places[:, :, None].expand_as(states))


def _pool(states: torch.Tensor, mode: str) -> torch.Tensor:
    return states.mean(dim=1) if mode == "mean" else states.amax(dim=1)


def _pool_inside(states: torch.Tensor, inside: torch.Tensor, mode: str) -> torch.Tensor:
    mask = inside[:, :, None]
    counts = inside.sum(dim=1, keepdim=True)
    if mode == "mean":
        return (states * mask).sum(dim=1) / counts.clamp(min=1)
    return states.masked_fill(~mask, -torch.inf).amax(dim=1).masked_fill(counts == 0, 0.0)
