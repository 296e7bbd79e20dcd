import pickle
import subprocess
import sys

import joblib
import numpy as np
import pandas
import polars
import pytest
import torch
from sentence_transformers import SentenceTransformer, util
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from usearch.index import Index

from sentence_distill import Student
from sentence_distill.data.errors import UserError
from tests.conftest import make_sentences

SENTENCES = make_sentences(60)
LABELS = np.array(["the" in sentence.lower().split() or "is" in sentence for sentence in SENTENCES])


@pytest.fixture(scope="module")
def student(student_folder) -> Student:
    return Student.load(student_folder, backend="torch")


@pytest.fixture(scope="module")
def theirs(student_folder) -> SentenceTransformer:
    return SentenceTransformer(str(student_folder), device="cpu")


def test_sentence_transformers_compares_its_vectors_by_cosine(theirs, student):
    vectors = theirs.encode(SENTENCES, convert_to_tensor=True)
    assert isinstance(vectors, torch.Tensor)
    ours = student.encode(SENTENCES)
    np.testing.assert_allclose(theirs.similarity(vectors, vectors), ours @ ours.T, atol=1e-5)


def test_semantic_search_finds_a_sentence_in_a_corpus(theirs):
    corpus = theirs.encode(SENTENCES, convert_to_tensor=True)
    hits = util.semantic_search(theirs.encode(SENTENCES[7:8], convert_to_tensor=True), corpus, top_k=3)
    assert hits[0][0]["corpus_id"] == 7
    assert hits[0][0]["score"] == pytest.approx(1, abs=1e-5)


def test_semantic_search_takes_our_vectors(student):
    corpus = torch.from_numpy(student.encode(SENTENCES))
    assert util.semantic_search(corpus[7:8], corpus, top_k=1)[0][0]["corpus_id"] == 7


def test_an_index_of_neighbours_takes_the_vectors(student):
    vectors = student.encode(SENTENCES)
    index = Index(ndim=student.dim, metric="cos")
    index.add(np.arange(len(vectors)), vectors)
    exact = np.argsort(-vectors @ vectors[0])[:5]
    assert len(set(index.search(vectors[0], 5).keys) & set(exact)) >= 4


def test_a_classifier_learns_from_fixed_vectors_as_setfit_s_head_does(theirs):
    vectors = theirs.encode(SENTENCES)
    head = make_pipeline(StandardScaler(), LogisticRegression()).fit(vectors, LABELS)
    assert head.score(vectors, LABELS) > max(LABELS.mean(), 1 - LABELS.mean()) + 0.1


def test_a_pipeline_takes_texts_and_predicts(student):
    pipeline = make_pipeline(student, StandardScaler(), LogisticRegression())
    assert pipeline.fit(SENTENCES, LABELS).score(SENTENCES, LABELS) > 0.9
    by_hand = StandardScaler().fit_transform(student.encode(SENTENCES))
    head = LogisticRegression().fit(by_hand, LABELS)
    np.testing.assert_array_equal(pipeline.predict(SENTENCES), head.predict(by_hand))


def test_a_grid_search_in_two_processes_gives_what_one_gives(student):
    pipeline = make_pipeline(student, LogisticRegression())
    grid = {"logisticregression__C": [0.01, 100.0]}
    one, two = (GridSearchCV(pipeline, grid, cv=2, n_jobs=n, error_score="raise") for n in (1, 2))
    one.fit(SENTENCES, LABELS)
    two.fit(SENTENCES, LABELS)
    np.testing.assert_allclose(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])
    assert one.predict(SENTENCES[:3]).shape == (3,)


def test_a_grid_search_chooses_between_students(student, student_folder):
    pipeline = make_pipeline(student, LogisticRegression())
    search = GridSearchCV(
        pipeline, {"student": [student, Student.load(student_folder, backend="torch")]}, cv=2, error_score="raise"
    )
    assert len(search.fit(SENTENCES, LABELS).cv_results_["params"]) == 2


def test_a_column_of_a_table_becomes_named_vectors(student):
    table = pandas.DataFrame({"text": SENTENCES, "length": [len(sentence) for sentence in SENTENCES]})
    columns = make_column_transformer((student, "text"), (StandardScaler(), ["length"]))
    features = columns.fit_transform(table)
    np.testing.assert_allclose(features[:, :-1], student.encode(SENTENCES), atol=1e-6)
    assert list(columns.get_feature_names_out()[[0, -1]]) == ["student__student0", "standardscaler__length"]


def test_cross_validation_clones_no_weights_and_prints_none(student):
    assert clone(student) is student
    assert repr(make_pipeline(student)) == "Pipeline(steps=[('student', Student(dim=32))])"
    scores = cross_val_score(make_pipeline(student, LogisticRegression()), SENTENCES, LABELS, cv=2, error_score="raise")
    assert scores.shape == (2,)


def test_a_student_goes_to_another_process_whole(student):
    copy = pickle.loads(pickle.dumps(student))  # noqa: S301 -- as joblib hands it to its workers
    np.testing.assert_array_equal(copy.encode(SENTENCES), student.encode(SENTENCES))


def test_equal_students_hash_equally_so_that_a_memory_outlives_the_process(student, student_folder):
    copy = pickle.loads(pickle.dumps(student))  # noqa: S301
    again = pickle.loads(pickle.dumps(copy))  # noqa: S301
    assert len({joblib.hash(of) for of in (student, Student.load(student_folder, backend="torch"), copy, again)}) == 1
    with torch.no_grad():
        copy.encoder.projections[0].bias[0] += 1
    assert joblib.hash(copy) != joblib.hash(student)


def test_a_memory_encodes_once_for_two_loads_of_a_student(student_folder, tmp_path, monkeypatch):
    for _ in range(2):
        make_pipeline(Student.load(student_folder, backend="torch"), LogisticRegression(), memory=str(tmp_path)).fit(
            SENTENCES, LABELS
        )
        monkeypatch.setattr(Student, "encode", None)


def test_a_pipeline_gives_data_frames_on_request(student_folder):
    student = Student.load(student_folder, backend="torch")
    vectors, column = student.encode(SENTENCES), pandas.Series(SENTENCES, index=range(5, 65))
    frame = make_pipeline(student, StandardScaler(with_mean=False, with_std=False)).set_output(transform="pandas")
    found = frame.fit_transform(column)
    assert list(found.columns[:2]) == ["student0", "student1"]
    assert list(found.index) == list(column.index)
    np.testing.assert_allclose(found.to_numpy(), vectors, atol=1e-6)
    other = student.set_output(transform="polars").transform(SENTENCES)
    assert isinstance(other, polars.DataFrame)
    np.testing.assert_allclose(other.to_numpy(), vectors, atol=1e-6)
    assert isinstance(student.set_output().set_output(transform="default").transform(SENTENCES), np.ndarray)
    with pytest.raises(UserError, match="not 'arrow'"):
        student.set_output(transform="arrow")


@pytest.mark.parametrize(
    "texts",
    [
        pandas.DataFrame({"text": ["The cat."]}),
        polars.DataFrame({"text": ["The cat."]}),
        {"text": ["The cat."]},
        np.array([["text"]]),
        np.array("text"),
    ],
)
def test_a_table_is_refused_and_its_headers_are_not_encoded(student, texts):
    with pytest.raises(UserError, match='select the column as in table\\["text"'):
        student.transform(texts)


@pytest.mark.parametrize("make", [list, tuple, np.array, pandas.Series, polars.Series])
def test_a_column_of_any_library_is_encoded(student, make):
    np.testing.assert_array_equal(student.transform(make(SENTENCES[:3])), student.encode(SENTENCES[:3]))


@pytest.mark.parametrize("texts", [[1.0, "text"], ["text", None]])
def test_what_is_no_list_of_texts_is_refused_with_its_place(student, texts):
    with pytest.raises(UserError, match=r"number \d is"):
        student.transform(texts)


def test_a_single_text_is_not_taken_for_a_list_of_letters(student):
    with pytest.raises(UserError, match="put it into a list"):
        student.transform("The cat ran.")


def test_parameters_that_a_student_has_not_are_refused(student):
    assert student.set_params() is student
    with pytest.raises(UserError, match="no parameter hidden"):
        student.set_params(hidden=3)


def test_loading_a_student_imports_no_scikit_learn(student_folder):
    script = (
        "import sys\nfrom sentence_distill import Student\n"
        f"Student.load({str(student_folder)!r}).encode(['The red cat ran.'])\n"
        "print([name for name in ('sklearn', 'sentence_transformers', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
