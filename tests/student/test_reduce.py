import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sklearn.decomposition import TruncatedSVD
from torch.nn import functional

from sentence_distill import Student
from sentence_distill.data.errors import UserError
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.figures import load_distillation
from sentence_distill.student.model import encode_tokens
from sentence_distill.student.reduce import (
    compare_dims,
    find_directions,
    reduce_student,
    sample_corpus,
    sample_shards,
)


@pytest.fixture(scope="module")
def student(student_folder):
    return Student.load(student_folder, backend="torch")


@pytest.fixture(scope="module")
def sample(student_folder, shards):
    return sample_shards(shards, load_distillation(student_folder), student_folder)


@pytest.fixture(scope="module")
def directions(student, sample):
    return find_directions(student, sample.fit)


def test_the_directions_are_those_of_scikit_learn_s_truncated_svd(student, sample, directions):
    vectors = encode_tokens(student.encoder, sample.fit).double().numpy()
    components = TruncatedSVD(5, algorithm="arpack", random_state=0).fit(vectors).components_
    np.testing.assert_allclose(np.abs(components @ directions[:5].numpy().T), np.eye(5), atol=1e-4)


def test_the_length_that_is_kept_is_of_the_measured_vectors(student, sample, directions):
    vectors = encode_tokens(student.encoder, sample.measured)
    kept = [figures.kept for figures in compare_dims(vectors, None, directions, (5, student.dim))]
    projected = vectors.numpy() @ directions[:5].T.numpy()
    assert kept == pytest.approx([(projected**2).sum() / len(vectors), 1], abs=1e-5)


def test_fewer_sentences_than_dimensions_are_refused_with_both_numbers(student, sample):
    with pytest.raises(UserError, match=r"^31 sentences to fit a reduction on.* needs at least 32, not counting"):
        find_directions(student, sample.fit.take(np.arange(31)))
    assert find_directions(student, sample.fit.take(np.arange(32))).shape == (32, 32)


def test_the_last_projection_takes_the_reduction_in(student, sample, directions):
    full = encode_tokens(student.encoder, sample.measured)
    narrow = encode_tokens(reduce_student(student, directions, 6).encoder, sample.measured)
    wanted = functional.normalize(full @ directions[:6].T.float(), dim=1)
    torch.testing.assert_close(narrow, wanted, atol=1e-5, rtol=0)
    # The student itself stays as it was.
    torch.testing.assert_close(encode_tokens(student.encoder, sample.measured), full)


def test_without_normalisation_lengths_and_cosines_are_kept(student, sample):
    encoder = StudentEncoder(replace(student.encoder.config, normalize=False))
    encoder.load_state_dict(student.encoder.state_dict())
    raw = Student(encoder, student.tokenizer)
    directions = find_directions(raw, sample.fit)
    full = encode_tokens(encoder, sample.measured)
    rotated = encode_tokens(reduce_student(raw, directions, raw.dim).encoder, sample.measured)
    torch.testing.assert_close(rotated.norm(dim=1), full.norm(dim=1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotated @ rotated.T, full @ full.T, atol=1e-3, rtol=1e-3)


def test_more_dimensions_keep_more_and_all_of_them_everything(student, sample, directions):
    vectors = encode_tokens(student.encoder, sample.measured)
    few, more, every = compare_dims(vectors, sample.teacher, directions, (2, 12, student.dim))
    for name in ("kept", "rank_agreement"):
        assert getattr(few, name) < getattr(more, name) <= getattr(every, name) == pytest.approx(1, abs=1e-3)
    assert few.teacher_rank_agreement < every.teacher_rank_agreement < 1
    assert compare_dims(vectors, None, directions, (2,))[0].teacher_recall_at_10 is None


def test_what_is_measured_with_has_not_shaped_the_reduction(student, student_folder, shards, corpus_file):
    from_shards = sample_shards(shards, load_distillation(student_folder), student_folder)
    from_corpus = sample_corpus([str(corpus_file)], student)
    for sample in (from_shards, from_corpus):
        known = {tuple(ids) for ids in sample.fit}
        assert len(sample.measured) >= 50
        assert not any(tuple(ids) in known for ids in sample.measured)
    assert from_corpus.teacher is None


def test_a_reduced_student_is_a_student_like_any_other(sd, student_folder, shards, tmp_path):
    out = tmp_path / "narrow"
    assert sd("export", student_folder, "--format", "folder", "--dim", "6", "--shards", shards, "--out", out) == 0
    sentences = ["The red cat ran.", "A small ship.", "Never."]
    vectors = Student.load(out, backend="torch").encode(sentences)
    assert vectors.shape == (3, 6)
    np.testing.assert_allclose(SentenceTransformer(str(out), device="cpu").encode(sentences), vectors, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    record = load_distillation(out)
    assert record["student"]["target_dims"] == [6]
    assert (record["reduction"]["full_dim"], record["reduction"]["dim"]) == (32, 6)
    assert record["metrics"]["held_out"]["rank_agreement"] == record["reduction"]["teacher_rank_agreement"]
    # What compares vectors of one width is left out; what does not is measured.
    assert sd("eval", out, "--shards", shards) == 0
    (figures,) = json.loads((out / "eval.json").read_text())["models"].values()
    held_out = figures["held_out"]
    assert held_out["rank_agreement"] == pytest.approx(record["metrics"]["held_out"]["rank_agreement"], abs=1e-3)
    assert "cosine" not in held_out
