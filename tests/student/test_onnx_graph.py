import numpy as np
import onnxruntime
import pytest
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.student.config import StudentConfig
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.export.onnx_graph import build_graph
from sentence_distill.student.export.product_quantization import balance_parts, product_quantize


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


def opened(encoder, tables="float32"):
    model = build_graph(encoder, tables).SerializeToString()
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


def test_rotated_word_embeddings_give_the_same_vectors_and_parts_that_are_alike():
    encoder = make(embedding_dim=12, layers=2)
    with torch.no_grad():
        encoder.embedding.weight *= torch.linspace(4, 0.2, 12)
    balanced = balance_parts(encoder)
    ids, mask = padded([4, 0, 11])
    np.testing.assert_allclose(by_torch(balanced, ids, mask), by_torch(encoder, ids, mask), atol=1e-5)

    def products(of):
        return of.embedding.weight.detach().var(dim=0).reshape(3, 4).prod(dim=1)

    assert products(encoder).max() > 1000 * products(encoder).min()
    assert products(balanced).max() < 30 * products(balanced).min()


def rounded(weight, tables):
    """Word embeddings as a type of table holds them."""
    if tables == "float16":
        return weight.half().float()
    if tables == "int8":
        scales = weight.abs().amax(dim=1, keepdim=True) / 127
        return torch.round(weight / scales) * scales
    codes, centres = product_quantize(weight)
    return torch.from_numpy(
        np.concatenate([centre[code] for centre, code in zip(centres, codes.T, strict=True)], axis=1)
    )


@pytest.mark.parametrize(("tables", "bytes_per_word"), [("float16", 16), ("int8", 12), ("pq", 2)])
def test_smaller_tables_hold_the_same_words_more_coarsely(tables, bytes_per_word):
    encoder = make()
    ids, mask = padded([4, 0, 11])
    vectors, size = opened(encoder, tables)(ids, mask), build_graph(encoder, tables).ByteSize()
    assert np.abs(vectors - by_torch(encoder, ids, mask)).max() < 0.2
    encoder = balance_parts(encoder) if tables == "pq" else encoder
    with torch.no_grad():
        encoder.embedding.weight.copy_(rounded(encoder.embedding.weight, tables))
    # The centres of product quantisation are in float16.
    np.testing.assert_allclose(vectors, by_torch(encoder, ids, mask), atol=1e-3 if tables == "pq" else 1e-6)
    centres = 2 * 256 * 8 if tables == "pq" else 0
    assert build_graph(encoder).ByteSize() - size == pytest.approx(300 * (32 - bytes_per_word) - centres, abs=600)


def test_a_word_without_a_vector_stays_at_zero_in_int8():
    encoder = make()
    with torch.no_grad():
        encoder.embedding.weight[5] = 0
    ids, mask = np.full((1, 3), 5), np.ones((1, 3), dtype=np.int64)
    np.testing.assert_allclose(opened(encoder, "int8")(ids, mask), by_torch(encoder, ids, mask), atol=1e-6)


def test_a_width_that_product_quantisation_cannot_cut_is_refused():
    with pytest.raises(UserError, match="words have 6; take int8"):
        build_graph(make(embedding_dim=6), "pq")
