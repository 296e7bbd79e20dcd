import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from sentence_distill.data.errors import UserError
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.student.config import StudentConfig
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.export import write_onnx
from sentence_distill.student.model import Student
from sentence_distill.student.onnx_student import ExportRecord, OnnxStudent

WORDS = [f"w{number}" for number in range(60)]


def make(**options):
    """A student whose tokenizer would add special tokens."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", "[CLS]", *WORDS])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    torch.manual_seed(0)
    shape = {"vocabulary": 62, "target_dims": (16,), "normalize": True, "embedding_dim": 8, "hidden": 8}
    return Student(StudentEncoder(StudentConfig(**{**shape, **options})), TextTokenizer(tokenizer.to_str()))


def exported(student, folder, *, int8=False):
    write_onnx(student, folder, int8=int8)
    return OnnxStudent.of_export(folder)


def sentences(count=50):
    """Sentences of 0 to 20 words, and one that is longer than a student reads."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, number % 21)) for number in range(count)] + [" ".join(WORDS * 10)]


def test_no_special_tokens_are_added_and_what_is_too_long_is_cut(tmp_path):
    student = make()
    vectors = exported(student, tmp_path).encode(sentences())
    np.testing.assert_allclose(vectors, student.encode(sentences()), atol=1e-5)


@pytest.mark.parametrize("shape", [{}, {"layers": 2, "pooling": "mean+max"}, {"pooling": "max", "normalize": False}])
def test_int8_stays_close(tmp_path, shape):
    student = make(**shape)
    ours, theirs = student.encode(sentences()), exported(student, tmp_path, int8=True).encode(sentences())
    cosines = (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosines.min() > 0.999
    assert np.abs(ours - theirs).max() > 1e-5


@pytest.mark.parametrize("int8", [False, True])
def test_a_vector_does_not_depend_on_what_it_is_encoded_with(tmp_path, int8):
    encoder = exported(make(), tmp_path, int8=int8)
    alone = np.concatenate([encoder.encode([sentence]) for sentence in sentences()])
    np.testing.assert_allclose(encoder.encode(sentences()), alone, atol=1e-6)
    assert encoder.encode([]).shape == (0, 16)


def test_a_folder_without_an_export_is_an_error_that_says_how_to_make_one(tmp_path):
    for read in (OnnxStudent.of_export, ExportRecord.read):
        with pytest.raises(UserError, match="sd export STUDENT --out"):
            read(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "pointer"])
def test_a_damaged_export_is_said_to_be_with_the_way_out(tmp_path, name, damage):
    exported(make(), tmp_path)
    file = tmp_path / name
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 100\n"
    file.write_bytes(pointer if damage == "pointer" else file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"^the export in .* is damaged \(.*\); make it again: sd export STUDENT --out"):
        OnnxStudent.of_export(tmp_path)
