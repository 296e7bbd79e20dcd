import numpy as np
import pytest
import torch
from torch import nn

from sentence_distill.data.tokenization import Tokens
from sentence_distill.student.config import StudentConfig
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.model import encode_tokens


def make(**options):
    torch.manual_seed(0)
    shape = {"vocabulary": 50, "target_dims": (8,), "normalize": True, "embedding_dim": 6, "hidden": 5}
    return StudentEncoder(StudentConfig(**{**shape, **options})).eval()


def ragged(count=30, longest=9, shortest=1):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 50, rng.integers(shortest, longest + 1)) for _ in range(count)]


def padded(sentences, fill):
    lengths = torch.tensor([len(s) for s in sentences])
    ids = torch.full((len(sentences), max(1, int(lengths.max()))), fill)
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)] = torch.from_numpy(sentence)
    return ids, lengths


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("pooling", ["mean", "max", "mean+max"])
@torch.inference_mode()
def test_padded_and_exact_length_batches_give_the_same_states(pooling, layers):
    encoder, sentences = make(pooling=pooling, layers=layers), ragged()
    alone = torch.cat([encoder.pool(torch.from_numpy(s)[None]) for s in sentences])
    for fill in (0, 7):
        torch.testing.assert_close(encoder.pool_padded(*padded(sentences, fill)), alone, atol=1e-6, rtol=0)


@torch.inference_mode()
def test_padded_batches_give_what_packed_sequences_give():
    encoder, sentences = make(layers=2), ragged()
    ids, lengths = padded(sentences, 0)
    packed = nn.utils.rnn.pack_padded_sequence(encoder.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
    states = nn.utils.rnn.pad_packed_sequence(encoder.lstm(packed)[0], batch_first=True)[0]
    expected = states.sum(dim=1) / lengths[:, None]
    torch.testing.assert_close(encoder.pool_padded(ids, lengths), expected, atol=1e-6, rtol=0)


def test_gradients_of_padded_batches_reach_both_directions():
    encoder = make(layers=2)
    encoder.pool_padded(*padded(ragged(), 0)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in encoder.lstm.parameters())


@pytest.mark.parametrize("pooling", ["mean", "max"])
@torch.inference_mode()
def test_a_sentence_without_tokens_pools_to_zeros(pooling):
    encoder = make(pooling=pooling)
    ids, lengths = padded([np.array([1, 2]), np.array([], dtype=np.int64)], 0)
    assert (encoder.pool_padded(ids, lengths)[1] == 0).all()
    vector = encode_tokens(encoder, Tokens.of([[1, 2], []]))[1]
    torch.testing.assert_close(vector, encoder.embed(torch.zeros(1, encoder.config.pooled_dim))[0])


def test_a_vector_does_not_depend_on_its_batch_or_place():
    encoder, tokens = make(), Tokens.of(ragged(60))
    together = encode_tokens(encoder, tokens, token_budget=10_000)
    alone = torch.cat([encode_tokens(encoder, tokens.take(np.array([row]))) for row in range(60)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_each_target_has_its_own_projection_and_the_last_is_public():
    encoder = make(target_dims=(4, 8))
    pooled = torch.randn(3, encoder.config.pooled_dim)
    targets = encoder.targets(pooled)
    assert [target.shape[1] for target in targets] == [4, 8]
    torch.testing.assert_close(targets[-1], encoder.embed(pooled))
