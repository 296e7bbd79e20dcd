"""The student network, and batches of near-equal length."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sentence_distill.student.config import StudentConfig

# What a call of the LSTM and each of its steps cost beside the sentences themselves, in steps of one sentence; measured
# on 300 units. A wrong value costs time and changes no vector.
_CALL_COST, _STEP_COST = 48, 3
_TILE_ROWS = 32


def near_length_batches(lengths: np.ndarray, token_budget: int) -> Iterator[np.ndarray]:
    """Cut rows, ordered by length, into the batches that cost least together.

    A batch of b rows takes as many steps as its longest row has tokens. Few rows of a length share a batch with the
    next lengths, whose padding costs less than another call; many rows of a length stay among themselves.

    Args:
        lengths: int[n], tokens of each row.
        token_budget: tokens of a batch, padding included; a longer row is a batch of its own.

    Yields:
        int64[b], row numbers; shortest rows first, ties in their given order.
    """
    order = np.argsort(lengths, kind="stable")
    distinct, first = np.unique(lengths[order], return_index=True)
    ends = np.append(first, len(order))[1:]
    for start, stop in _cheapest_groups(distinct, ends - first, token_budget):
        group = order[first[start] : ends[stop - 1]]
        size = max(1, token_budget // max(1, int(distinct[stop - 1])))
        # Matrix kernels work on tiles of up to 32 rows: a part of one costs as much as a whole.
        size -= size % _TILE_ROWS if size > _TILE_ROWS else 0
        for place in range(0, len(group), size):
            yield group[place : place + size]


def _cheapest_groups(distinct: np.ndarray, counts: np.ndarray, token_budget: int) -> list[tuple[int, int]]:
    """Runs [start, stop) of neighbouring lengths whose summed cost is least, by dynamic programming.

    Args:
        distinct: int[m], ascending lengths.
        counts: int[m], rows of each.
        token_budget: see `near_length_batches`; lengths share a batch only where all of them fit into one.
    """
    before = np.concatenate([[0], np.cumsum(counts)])
    cost = np.zeros(len(distinct) + 1)
    begin = np.zeros(len(distinct) + 1, dtype=np.int64)
    for stop in range(1, len(distinct) + 1):
        length, starts = int(distinct[stop - 1]), np.arange(stop)
        rows = before[stop] - before[:stop]
        calls = np.where(starts == stop - 1, -(-rows * length // token_budget), 1)
        whole = cost[:stop] + calls * _CALL_COST + length * (calls * _STEP_COST + rows)
        whole[(starts < stop - 1) & (rows * length > token_budget)] = np.inf
        # What has no tokens needs no call, and pads to nothing.
        begin[stop] = stop - 1 if length == 0 else int(whole.argmin())
        cost[stop] = 0 if length == 0 else whole[begin[stop]]
    groups: list[tuple[int, int]] = []
    stop = len(distinct)
    while stop:
        groups.append((int(begin[stop]), stop))
        stop = groups[-1][0]
    return groups[::-1]


# The student network: word embeddings, a bidirectional LSTM, pooling, and a projection a target layer.


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
