"""The student that comes with the package."""

import json
import re

import numpy as np
import pytest

from sentence_distill import Student
from sentence_distill.data.errors import UserError
from sentence_distill.student.figures import load_distillation
from sentence_distill.student.files import SMALL, locate_student
from tests.conftest import contents

FOLDER = locate_student(SMALL)


def test_it_knows_what_is_alike_and_what_is_not():
    sentences = [
        "A man is eating a piece of bread.",
        "Someone is having a meal.",
        "The committee rejected the new tax law.",
        "Parliament voted against the tax bill.",
    ]
    vectors = Student.load(SMALL).encode(sentences)
    assert vectors.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similar = vectors @ vectors.T
    assert min(similar[0, 1], similar[2, 3]) > 0.3 > 0.2 > similar[:2, 2:].max()


def test_the_packaged_student_of_earlier_versions_gives_its_vectors_still():
    before, now = (Student.load(name).encode(["One sentence."]) for name in ("wiki-small", SMALL))
    assert before.shape == now.shape
    assert 0.5 < float(before[0] @ now[0]) < 0.9999


def test_word_order_matters_to_it():
    dog, man, same = Student.load(SMALL).encode(
        ["the dog bites the man", "the man bites the dog", "the dog bites the man"]
    )
    assert dog @ man < 0.999 < dog @ same


def test_it_stays_below_ten_megabytes_and_says_what_it_is():
    assert sum(len(content) for content in contents(FOLDER).values()) < 10e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    record = load_distillation(FOLDER)
    assert f"{record['metrics']['sts_spearman']['student']:.4f}" in card
    for part in (
        "license: apache-2.0",
        "CC BY-SA",
        "all-MiniLM-L6-v2",
        f'Student.load("{SMALL}")',
        "stored as float16",
        "| names swapped |",
    ):
        assert part in card
    # Rows of other text and of a corpus.
    for name in ("unseen-chat", "wiki"):
        assert re.search(rf"^\| .*\b{name}\b", card, re.MULTILINE)
    # Nothing of the machine that made it.
    assert not re.search(r'"/|/tmp|/home|/root', json.dumps(record) + card)


def test_sentence_transformers_reads_a_copy_of_it(sd, tmp_path):
    from sentence_transformers import SentenceTransformer

    assert sd("export", SMALL, "--format", "folder", "--float16", "--out", tmp_path / "copy") == 0
    theirs = SentenceTransformer(str(tmp_path / "copy"), device="cpu").encode(["One sentence.", "Another."])
    np.testing.assert_allclose(
        theirs, Student.load(SMALL, backend="torch").encode(["One sentence.", "Another."]), atol=1e-5
    )


def test_its_copy_keeps_its_licence_and_what_was_fine_tuned_of_it_has_none(sd, tmp_path):
    copy, tuned, train = tmp_path / "copy", tmp_path / "tuned", tmp_path / "train.csv"
    assert sd("export", SMALL, "--format", "folder", "--float16", "--out", copy) == 0
    assert "license: apache-2.0" in (copy / "README.md").read_text(encoding="utf-8")
    train.write_text("text,label\n" + "".join(f"good film {n},1\nbad film {n},0\n" for n in range(20)))
    assert sd("finetune", copy, "--train", train, "--epochs", "1", "--out", tuned) == 0
    card = (tuned / "README.md").read_text(encoding="utf-8")
    assert "license:" not in card
    assert "float16" not in card


def test_a_folder_of_its_name_goes_before_it(student_folder, tmp_path, monkeypatch):
    (tmp_path / SMALL).symlink_to(student_folder)
    monkeypatch.chdir(tmp_path)
    assert Student.load(SMALL).dim == 32


def test_sd_encode_takes_it_where_nothing_was_distilled(sd, student_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "in.txt").write_text("One sentence.\nAnother.\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert sd("encode", "--input", "in.txt", "--out", "out.npy", "--precision", "fp32") == 0
    assert f"the packaged student {SMALL}" in capsys.readouterr().err
    expected = Student.load(SMALL, backend="torch").encode(["One sentence.", "Another."])
    np.testing.assert_array_equal(np.load("out.npy"), expected)
    (tmp_path / "distilled").symlink_to(student_folder)
    assert sd("encode", "--input", "in.txt", "--out", "own.npy") == 0
    assert SMALL not in capsys.readouterr().err
    assert np.load("own.npy").shape == (2, 32)


def test_other_commands_take_it_by_its_name_and_leave_its_folder_alone(sd, tmp_path, monkeypatch, capsys):
    before = contents(FOLDER)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dev.tsv").write_text("sentence1\tsentence2\tscore\na cat\ta dog\t2.0\na car\ta car\t5.0\na\tb\t0.0\n")
    assert sd("eval", "--student", SMALL, "--sts", "dev.tsv", "--json", "figures.json") == 0
    assert "next" not in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text())["models"][SMALL]["sts_spearman"] > 0
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"good film {n},1\nbad film {n},0\n" for n in range(20))
    )
    assert sd("finetune", SMALL, "--train", "train.csv", "--epochs", "1", "--out", "tuned") == 0
    assert sd("export", SMALL) == 2
    assert "name a folder for its export" in capsys.readouterr().err
    for command in (["eval", "--glue", SMALL], ["report", SMALL], ["push", SMALL, "me/x", "--dry-run"]):
        assert sd(*command) == 1
        assert f"copy it to your own folder: sd export {SMALL} --format folder" in capsys.readouterr().err
    assert sd("eval", SMALL) == 1
    assert f"{SMALL}: there is no folder of a local student" in capsys.readouterr().err
    assert sd("export", SMALL, "--dim", "64,128") == 1
    assert "name text with --corpus" in capsys.readouterr().err
    assert contents(FOLDER) == before


def test_an_unknown_name_is_an_error_that_says_so(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="holds no student"):
        Student.load("wiki-smal")
