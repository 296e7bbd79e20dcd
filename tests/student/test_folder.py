import json
import subprocess
import sys

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from sentence_distill.data.errors import UserError
from sentence_distill.student.model import load_student
from tests.conftest import make_sentences

SENTENCES = [*make_sentences(40), "unknown words only", "One."]


@pytest.mark.parametrize("options", [[], ["--pooling", "mean+max", "--layers", "2"], ["--mse", "1", "--cosine", "0"]])
def test_sentence_transformers_gives_the_same_vectors(sd, shards, tmp_path, options):
    folder = tmp_path / "student"
    train = ("train-student", "--shards", shards, "--out", folder, "--embedding-dim", "8", "--hidden", "8")
    assert sd(*train, "--epochs", "1", "--batch-size", "16", "--held-out", "0.1", *options) == 0
    ours = load_student(folder).encode(SENTENCES)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(SENTENCES)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_an_empty_sentence_gets_the_same_vector_too(student_folder):
    ours = load_student(student_folder).encode(["", "The red cat ran."])
    theirs = SentenceTransformer(str(student_folder), device="cpu").encode(["", "The red cat ran."])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_sentence_transformers_needs_nothing_of_this_package(student_folder):
    script = (
        "import sys; sys.modules['sentence_distill'] = None\n"
        "from sentence_transformers import SentenceTransformer\n"
        f"print(SentenceTransformer({str(student_folder)!r}, device='cpu').encode(['The red cat ran.']).shape)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "(1, 32)", result.stderr


def test_no_weights_are_pickled(student_folder):
    files = [file for file in student_folder.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".jsonl", ".safetensors", ".md", ".png", ".svg"}


def test_the_card_and_the_record_say_how_the_student_was_made(student_folder):
    record = json.loads((student_folder / "distillation.json").read_text())
    assert record["training"]["epochs"] == 3
    assert record["corpus"]["rows"] == 900
    assert record["teacher"]["pooling"] == "mean"
    assert "pooling `mean`" in (student_folder / "README.md").read_text()


@pytest.mark.parametrize("damage", ["no folder", "no weights", "cut weights"])
def test_a_folder_that_holds_no_student_is_an_error_that_says_what_to_do(student_folder, tmp_path, damage):
    import shutil

    folder = tmp_path / "student"
    if damage != "no folder":
        shutil.copytree(student_folder, folder)
        weights = folder / "1_LSTM" / "model.safetensors"
        content = weights.read_bytes()
        weights.unlink()
        if damage == "cut weights":
            weights.write_bytes(content[:100])
    with pytest.raises(UserError, match="train one: sd train-student"):
        load_student(folder)


def test_whoever_may_read_one_file_of_a_student_may_read_all(student_folder):
    modes = {
        path.stat().st_mode & 0o777 for path in student_folder.rglob("*") if path.suffix in (".json", ".safetensors")
    }
    assert modes == {(student_folder / "modules.json").stat().st_mode & 0o777}
