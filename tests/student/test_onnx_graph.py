import numpy as np
import onnxruntime
import pytest
import torch

from sentence_distill.student.config import StudentConfig
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.onnx_graph import build_graph


def make(**options):
    torch.manual_seed(0)
    shape = {"vocabulary": 300, "target_dims": (4, 7), "normalize": True, "embedding_dim": 8, "hidden": 5}
    return StudentEncoder(StudentConfig(**{**shape, **options})).eval()


def padded(lengths, fill=0):
    """Ids and mask of sentences of these lengths; `fill` stands behind their ends."""
    rng = np.random.default_rng(sum(lengths))
    longest = max(lengths)
    mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)
    return np.where(mask, rng.integers(0, 300, mask.shape), fill), mask


def graph(encoder, **options):
    weights = {name: weight.numpy() for name, weight in encoder.state_dict().items()}
    return build_graph(encoder.config, weights, **options)


def opened(encoder, **options):
    model = graph(encoder, **options).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]


@torch.inference_mode()
def by_torch(encoder, ids, mask):
    return encoder.embed(encoder.pool_padded(torch.from_numpy(ids), torch.from_numpy(mask.sum(axis=1)))).numpy()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("pooling", ["mean", "max", "mean+max"])
def test_the_graph_computes_the_students_vectors_whatever_the_batch(pooling, layers, normalize):
    encoder = make(pooling=pooling, layers=layers, normalize=normalize)
    run = opened(encoder)
    for lengths in ([6], [1], [3, 9, 1, 0, 5], [40, 2]):
        ids, mask = padded(lengths)
        np.testing.assert_allclose(run(ids, mask), by_torch(encoder, ids, mask), atol=1e-6)


def test_what_stands_behind_a_sentences_end_changes_nothing():
    run = opened(make(pooling="mean+max"))
    np.testing.assert_array_equal(run(*padded([2, 7], fill=0)), run(*padded([2, 7], fill=9)))


def test_a_batch_without_any_token_gets_the_vector_of_the_empty_sentence():
    encoder = make(pooling="mean+max")
    nothing = np.zeros((3, 0), dtype=np.int64)
    expected = by_torch(encoder, *padded([0, 4]))[:1].repeat(3, axis=0)
    np.testing.assert_allclose(opened(encoder)(nothing, nothing), expected, atol=1e-6)


def cosines(left, right):
    return (left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("pooling", ["mean", "max", "mean+max"])
def test_in_int8_it_stays_close(pooling, layers, normalize):
    encoder = make(pooling=pooling, layers=layers, normalize=normalize, hidden=19, embedding_dim=13)
    run = opened(encoder, int8=True)
    for lengths in ([6], [1], [3, 9, 1, 5], [40, 2]):
        ids, mask = padded(lengths)
        assert cosines(run(ids, mask), by_torch(encoder, ids, mask)).min() > 0.999


@pytest.mark.parametrize("scale", [1, 20])
@pytest.mark.parametrize("layers", [1, 2])
def test_in_int8_a_vector_is_the_same_in_every_batch_to_the_last_bit(layers, scale):
    """Large weights drive states to their bounds, small ones leave them far below."""
    encoder = make(pooling="mean+max", layers=layers)
    with torch.no_grad():
        for weight in encoder.lstm.parameters():
            weight.mul_(scale)
    run = opened(encoder, int8=True)
    ids, mask = padded([7, 3, 1, 0, 12, 60, 2])
    together = run(ids, mask)
    for row, length in enumerate(mask.sum(axis=1)):
        alone = run(ids[row : row + 1, :length], mask[row : row + 1, :length])
        np.testing.assert_array_equal(alone[0], together[row])


def test_int8_needs_a_quarter_of_the_bytes():
    encoder = make(vocabulary=5000, embedding_dim=64, hidden=64)
    assert graph(encoder, int8=True).ByteSize() < 0.3 * graph(encoder).ByteSize()


def test_a_table_of_equal_numbers_has_a_scale_all_the_same():
    encoder = make()
    for value in (0.0, 0.5, -0.5):
        torch.nn.init.constant_(encoder.embedding.weight, value)
        ids, mask = padded([4, 2])
        assert cosines(opened(encoder, int8=True)(ids, mask), by_torch(encoder, ids, mask)).min() > 0.999
