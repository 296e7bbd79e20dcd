import numpy as np
import pytest
from transformers import AutoTokenizer

from sentence_distill.data.glue import Task
from sentence_distill.pipeline.load import Located
from sentence_distill.student import classifier
from sentence_distill.student.classifier import TeacherClassifier
from tests.conftest import make_sentences

SHORT = make_sentences(60, seed=3)
TEXTS = [*SHORT, "", *(" ".join(SHORT[n : n + 3]) for n in range(0, 60, 3)), "cat " * 300]


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    task = Task(name="x", columns=("a", "b"), label="label", labels=("no", "yes"), metrics=("accuracy",))
    return TeacherClassifier.load(Located(teacher_folder, "teacher"), task, 0)


def expected(folder, *columns, most):
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(most)
    return backend.encode_batch(list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True)))


@pytest.mark.parametrize("most", [7, 8, 20, 158])
def test_texts_and_pairs_have_the_tokens_of_the_tokenizers_library(teacher, teacher_folder, monkeypatch, most):
    monkeypatch.setattr(classifier, "most_tokens", lambda config: most)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    for columns in ([TEXTS], [TEXTS, [TEXTS[place] for place in order]]):
        found, wanted = teacher.tokenize(columns), expected(teacher_folder, *columns, most=most)
        (tokens,) = found.columns
        assert [tokens[row].tolist() for row in range(len(tokens))] == [encoding.ids for encoding in wanted]
        assert found.first.tolist() == [encoding.type_ids.count(0) for encoding in wanted]
