import threading

import numpy as np
import pytest
import torch

from sentence_distill import Student
from sentence_distill.data.errors import UserError
from tests.conftest import make_sentences

SENTENCES = [*make_sentences(200), "", "a", "the " * 600]


@pytest.fixture(scope="module")
def student(student_folder):
    return Student.load(student_folder)


def test_one_string_gives_one_vector(student):
    vector = student.encode(SENTENCES[0])
    assert vector.shape == (student.dim,)
    assert np.array_equal(vector, student.encode(SENTENCES[:1])[0])


def test_no_sentences_give_no_vectors(student):
    assert student.encode([]).shape == (0, student.dim)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_vector_does_not_depend_on_what_it_is_encoded_with(student, precision):
    together = student.encode(SENTENCES, precision)
    alone = np.stack([student.encode(sentence, precision) for sentence in SENTENCES])
    np.testing.assert_allclose(together, alone, atol=1e-6 if precision == torch.float32 else 1e-2)


def test_windows_do_not_show(student, monkeypatch):
    whole = student.encode(SENTENCES)
    monkeypatch.setattr("sentence_distill.student.model._WINDOW", 7)
    np.testing.assert_allclose(student.encode(SENTENCES), whole, atol=1e-6)
    monkeypatch.setattr("sentence_distill.student.model._WINDOW_CHARACTERS", 100)
    np.testing.assert_allclose(student.encode(SENTENCES), whole, atol=1e-6)


def test_several_threads_encode_at_once(student):
    torch.set_num_threads(2)
    try:
        expected = student.encode(SENTENCES)
        found = [None] * 4

        def work(place):
            found[place] = student.encode(SENTENCES)

        threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(1)
    for vectors in found:
        np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_a_folder_without_a_student_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no student"):
        Student.load(tmp_path)
