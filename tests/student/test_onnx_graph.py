import numpy as np
import onnxruntime
import pytest
import torch

from sentence_distill.student.classifier import StudentClassifier
from sentence_distill.student.config import StudentConfig
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.model import Student
from sentence_distill.student.onnx_graph import Head, build_graph


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


def with_head(columns=1, outputs=3, **options):
    torch.manual_seed(1)
    return StudentClassifier(Student(make(**options), tokenizer=None), columns, outputs).eval()


def opened_classifier(model, *, regression=False, int8=False):
    """The graph as a function of ids and mask of each column, and the same in PyTorch."""
    head = Head(model.head_arrays(), model.columns, regression)
    graph = build_graph(model.encoder.config, model.encoder.arrays(), head=head, int8=int8).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    (output,) = session.get_outputs()
    assert output.name == ("scores" if regression else "probabilities")

    def run(*columns):
        return session.run(None, dict(zip(names, (array for column in columns for array in column), strict=True)))[0]

    @torch.inference_mode()
    def expected(*columns):
        pooled = [
            model.encoder.pool_padded(torch.from_numpy(ids), torch.from_numpy(mask.sum(axis=1)))
            for ids, mask in columns
        ]
        logits = model.logits(pooled)
        return (logits if regression else logits.softmax(dim=1)).numpy()

    return run, expected


TEXTS = [padded([3, 9, 1, 0, 5]), padded([4, 0, 12, 0, 2])]


@pytest.mark.parametrize("shape", [{}, {"pooling": "mean+max", "layers": 2, "normalize": False}])
@pytest.mark.parametrize(("outputs", "regression"), [(3, False), (1, True)])
@pytest.mark.parametrize("columns", [1, 2])
def test_a_classifiers_graph_computes_its_outputs(columns, outputs, regression, shape):
    model = with_head(columns, outputs, **shape)
    run, expected = opened_classifier(model, regression=regression)
    found = run(*TEXTS[:columns])
    assert found.shape == (5, outputs)
    np.testing.assert_allclose(found, expected(*TEXTS[:columns]), atol=1e-6)
    run, expected = opened_classifier(model, regression=regression, int8=True)
    np.testing.assert_allclose(run(*TEXTS[:columns]), expected(*TEXTS[:columns]), atol=0.01)


@pytest.mark.parametrize("shape", [{}, {"hidden": 300, "embedding_dim": 64, "pooling": "mean+max"}])
@pytest.mark.parametrize("columns", [1, 2])
def test_in_int8_a_prediction_is_the_same_in_every_batch_to_the_last_bit(columns, shape):
    run, _ = opened_classifier(with_head(columns, **shape), int8=True)
    texts = [padded([7, 3, 1, 0, 12, 60, 2]), padded([1, 0, 44, 3, 12, 6, 20])][:columns]
    together = run(*texts)
    for row in range(7):
        alone = [(ids[row : row + 1], mask[row : row + 1]) for ids, mask in texts]
        cut = [(ids[:, : mask.sum()], mask[:, : mask.sum()]) for ids, mask in alone]
        np.testing.assert_array_equal(run(*cut)[0], together[row])


def test_a_batch_of_empty_pairs_gets_the_prediction_of_one():
    run, expected = opened_classifier(with_head(2))
    nothing = np.zeros((2, 0), dtype=np.int64)
    empty = [padded([0, 4])] * 2
    found = run((nothing, nothing), (nothing, nothing))
    np.testing.assert_allclose(found, expected(*empty)[:1].repeat(2, axis=0), atol=1e-6)


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_in_int8_scores_of_any_unit_keep_it(unit):
    model = with_head(1, 1)
    with torch.no_grad():
        model.head[-1].weight.mul_(unit)
        model.head[-1].bias.mul_(unit)
    run, expected = opened_classifier(model, regression=True, int8=True)
    np.testing.assert_allclose(run(TEXTS[0]) / unit, expected(TEXTS[0]) / unit, atol=0.01)
