"""The student network: word embeddings, a bidirectional LSTM, pooling, and a projection for each target layer."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sentence_distill.student.config import StudentConfig

_LSTM_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class StudentEncoder(nn.Module):
    """Student network, from token ids to sentence embeddings.

    There are two paths with the same result: `pool` for exact-length batches, which need no padding, and `pool_padded`
    for batches of mixed lengths.
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
        """Return the weights as float32 arrays, by name as in `state_dict`."""
        return {name: weight.float().cpu().numpy() for name, weight in self.state_dict().items()}

    def pool(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the pooled LSTM states, float32[b, pooled_dim], of sentences of one length, int64[b, length]."""
        return self.pool_words(self.embedding(input_ids))

    def pool_words(self, embedded: torch.Tensor) -> torch.Tensor:
        """Do the same as `pool` from word embeddings, float[b, length, embedding_dim]."""
        states = self.lstm(embedded)[0].float()
        parts = [states.mean(dim=1) if mode == "mean" else states.amax(dim=1) for mode in self._pooling_modes]
        return torch.cat(parts, dim=-1)

    def pool_padded(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return the pooled LSTM states, float32[b, pooled_dim], of padded sentences, int64[b, longest].

        `lengths`, int64[b], has their numbers of tokens, and any id may serve as padding. Instead of packing, which is
        slow, each layer runs as two one-way LSTMs, the second over each sentence's own tokens in reverse: in both,
        padding comes after the sentence and can't influence its states. A sentence without tokens pools to zeros.
        """
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        inside = places < lengths[:, None]
        # Reverses the tokens of each sentence, and leaves the padding in place. It is its own inverse.
        reverse = torch.where(inside, lengths[:, None] - 1 - places, places)
        states = self.embedding(input_ids)
        for layer in range(self.config.layers):
            back = self._one_way(_gather(states, reverse), f"_l{layer}_reverse")
            states = torch.cat([self._one_way(states, f"_l{layer}"), _gather(back, reverse)], dim=-1)
        states, mask, counts = states.float(), inside[:, :, None], inside.sum(dim=1, keepdim=True)
        parts = []
        for mode in self._pooling_modes:
            if mode == "mean":
                parts.append((states * mask).sum(dim=1) / counts.clamp(min=1))
            else:
                parts.append(states.masked_fill(~mask, -torch.inf).amax(dim=1).masked_fill(counts == 0, 0.0))
        return torch.cat(parts, dim=-1)

    def embed(self, pooled: torch.Tensor) -> torch.Tensor:
        """Project pooled states to the public embedding, float32[b, dim], the last target."""
        return self._project(self.projections[-1], pooled)

    def targets(self, pooled: torch.Tensor) -> list[torch.Tensor]:
        """Project pooled states to float32[b, dim] for each approximated layer of the teacher."""
        return [self._project(projection, pooled) for projection in self.projections]

    def _project(self, projection: nn.Module, pooled: torch.Tensor) -> torch.Tensor:
        vector: torch.Tensor = projection(pooled)
        return functional.normalize(vector, dim=-1) if self.config.normalize else vector

    @property
    def _pooling_modes(self) -> list[str]:
        return self.config.pooling.split("+")

    def _one_way(self, states: torch.Tensor, end: str) -> torch.Tensor:
        weights = [getattr(self.lstm, f"{name}{end}") for name in _LSTM_WEIGHTS]
        zeros = states.new_zeros(1, states.shape[0], self.config.hidden)
        return torch.lstm(states, (zeros, zeros), weights, True, 1, 0.0, self.training, False, True)[0]


def _gather(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return states.gather(1, places[:, :, None].expand_as(states))
