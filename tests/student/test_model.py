import builtins
import copy
import pickle
import threading

import numpy as np
import pytest
import torch

from sentence_distill import Student
from sentence_distill.data.errors import UserError
from sentence_distill.student import model
from sentence_distill.student.onnx_student import OnnxEncoder
from tests.conftest import make_sentences

SENTENCES = [*make_sentences(200), "", "a", "the " * 600]


@pytest.fixture(scope="module", params=["onnx", "torch"])
def student(request, student_folder):
    return Student.load(student_folder, backend=request.param)


def test_one_string_gives_one_vector(student):
    vector = student.encode(SENTENCES[0])
    assert vector.shape == (student.dim,)
    assert np.array_equal(vector, student.encode(SENTENCES[:1])[0])


def test_no_sentences_give_no_vectors(student):
    assert student.encode([]).shape == (0, student.dim)


@pytest.mark.parametrize("precision", [None, torch.float32, torch.bfloat16])
def test_a_vector_does_not_depend_on_what_it_is_encoded_with(student, precision):
    try:
        together = student.encode(SENTENCES, precision)
    except UserError as error:
        pytest.skip(str(error))
    alone = np.stack([student.encode(sentence, precision) for sentence in SENTENCES])
    np.testing.assert_allclose(together, alone, atol=1e-2 if precision == torch.bfloat16 else 1e-6)


def test_windows_do_not_show(student, monkeypatch):
    whole = student.encode(SENTENCES)
    monkeypatch.setattr(model, "_WINDOW", 7)
    np.testing.assert_allclose(student.encode(SENTENCES), whole, atol=1e-6)
    monkeypatch.setattr(model, "_WINDOW_CHARACTERS", 100)
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


def test_both_backends_give_nearly_the_same_vectors(student_folder):
    onnx, exact = (Student.load(student_folder, backend=name) for name in ("onnx", "torch"))
    ours, theirs = onnx.encode(SENTENCES), exact.encode(SENTENCES)
    assert 0.999 < (ours * theirs).sum(axis=1).min() < 1
    # A precision is one of PyTorch's.
    np.testing.assert_array_equal(onnx.encode(SENTENCES, torch.float32), theirs)


def test_a_copy_keeps_its_backend(student):
    for twin in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):  # noqa: S301
        assert twin.backend == student.backend
        np.testing.assert_allclose(twin.encode(SENTENCES), student.encode(SENTENCES), atol=1e-6)


def test_weights_that_were_changed_in_place_are_those_that_encode(student_folder):
    student = Student.load(student_folder, backend="onnx")
    before = student.encode(SENTENCES[:5])
    with torch.no_grad():
        student.encoder.projections[-1].weight.neg_()
        student.encoder.projections[-1].bias.neg_()
    np.testing.assert_allclose(student.encode(SENTENCES[:5]), -before, atol=1e-6)


def test_a_folder_is_opened_in_onnx_runtime_and_a_trained_network_in_pytorch(student_folder):
    loaded = Student.load(student_folder)
    assert loaded.backend == "onnx"
    assert Student(loaded.encoder, loaded.tokenizer).backend == "torch"


@pytest.mark.parametrize("fault", ["not installed", "an operator is missing"])
def test_where_onnx_runtime_does_not_run_pytorch_does_and_says_so(student_folder, monkeypatch, caplog, fault):
    real = builtins.__import__

    def missing(name, *of, **more):
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
        return real(name, *of, **more)

    def refused(self, content):
        raise ValueError("ONNX Runtime can't run this graph: no DynamicQuantizeLSTM")

    if fault == "not installed":
        monkeypatch.setattr(builtins, "__import__", missing)
    else:
        monkeypatch.setattr(OnnxEncoder, "__init__", refused)
    student = Student.load(student_folder)
    assert student.backend == "torch"
    assert "using PyTorch" in caplog.text
    assert student.encode(SENTENCES[:3]).shape == (3, student.dim)
    with pytest.raises(UserError, match="use the backend torch"):
        Student.load(student_folder, backend="onnx")


def test_an_unknown_backend_is_refused(student_folder):
    with pytest.raises(UserError, match="backend 'tensorflow' is not one of auto, onnx, torch"):
        Student.load(student_folder, backend="tensorflow")


def test_a_folder_without_a_student_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no student"):
        Student.load(tmp_path)
