import errno
import json
import os
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from sentence_distill import Classifier, Student
from sentence_distill.data.labelled import read_labelled
from sentence_distill.pipeline.files import lock_folder
from sentence_distill.pipeline.manifest import Logits
from sentence_distill.student.finetune import STUDENT
from sentence_distill.student.task_data import TaskData
from tests.conftest import animal_sentence, write_rows

LEARNS = ("--learning-rate", "5e-3", "--device", "cpu")
PRICES = {"dog": 1000.5, "cat": 2000.0, "bird": 4000.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def animals(sd, student_folder, folder):
    """A student that knows what animal a sentence names."""
    rng = np.random.default_rng(0)
    rows = [{"line": animal_sentence(rng, animal), "animal": animal} for animal in ("dog", "cat", "bird") * 60]
    train = write_rows(folder / "animals.jsonl", rows)
    columns = ("--text-column", "line", "--label-column", "animal")
    assert sd("finetune", student_folder, "--train", train, *columns, "--out", folder / "animals", *LEARNS) == 0
    return folder / "animals"


def test_classes_of_one_s_own_are_learned_and_predicted(animals):
    classifier = Classifier.load(animals)
    assert classifier.classes == ("bird", "cat", "dog")
    texts = ["The old cat saw the red house.", "The new bird saw the old house.", "", "The blue dog saw the new house."]
    labels = classifier.predict(texts)
    assert [labels[0], labels[1], labels[3]] == ["cat", "bird", "dog"]
    probabilities = classifier.predict_proba(texts)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == (4, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert [classifier.classes[number] for number in probabilities.argmax(axis=1)] == labels
    # A prediction does not depend on what it is made with.
    np.testing.assert_allclose(classifier.predict_proba(texts[:1]), probabilities[:1], atol=1e-6)
    assert classifier.predict([]) == []


def test_the_folder_holds_the_scores_and_is_a_student_like_any_other(animals):
    record = json.loads((animals / "task.json").read_text())
    assert record["text_columns"] == ["line"]
    assert record["labels"] == ["bird", "cat", "dog"]
    assert record["scores"]["dev"].keys() == {"accuracy", "macro_f1"}
    assert record["scores"]["dev"]["accuracy"] > 0.95
    sentences = ["The old cat ran.", "The dog."]
    vectors = SentenceTransformer(str(animals), device="cpu").encode(sentences)
    np.testing.assert_allclose(vectors, Student.load(animals, backend="torch").encode(sentences), atol=1e-5)


def test_pairs_are_learned(sd, student_folder, folder):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(240):
        first, other = ("cat", "dog") if number % 4 < 2 else ("dog", "cat")
        second = first if number % 2 else other
        rows.append({"a": animal_sentence(rng, first), "b": animal_sentence(rng, second), "same": bool(number % 2)})
    train, dev = (
        write_rows(folder / "pairs.jsonl", rows[:180]),
        write_rows(folder / "dev.jsonl", rows[180:]),
    )
    columns = ("--text-column", "a,b", "--label-column", "same")
    out = folder / "pairs"
    assert sd("finetune", student_folder, "--train", train, "--dev", dev, *columns, "--out", out, *LEARNS) == 0
    classifier = Classifier.load(out)
    assert classifier.classes == ("false", "true")
    pairs = [("The cat ran.", "The old cat ran."), ("The cat ran.", "The old dog ran.")]
    assert classifier.predict(pairs) == ["true", "false"]
    with pytest.raises(ValueError, match="takes a list of pairs of texts"):
        classifier.predict(["The cat ran."])


def test_scores_come_in_the_units_of_the_file(sd, student_folder, folder):
    rng = np.random.default_rng(0)
    rows = [{"text": animal_sentence(rng, animal), "label": PRICES[animal]} for animal in list(PRICES) * 60]
    train = write_rows(folder / "prices.jsonl", rows)
    assert sd("finetune", student_folder, "--train", train, "--out", folder / "prices", *LEARNS) == 0
    classifier = Classifier.load(folder / "prices")
    record = json.loads((folder / "prices" / "task.json").read_text())
    assert record["scores"]["dev"]["pearson"] > 0.95
    found = classifier.predict([animal_sentence(rng, animal) for animal in PRICES])
    np.testing.assert_allclose(found, list(PRICES.values()), atol=500)
    with pytest.raises(ValueError, match="is a regression"):
        classifier.predict_proba(["The cat."])


@pytest.mark.parametrize(
    ("animals", "unit"),
    [
        # As the teachers that are fine-tuned here: deviations from the mean of the file.
        (list(PRICES), lambda price: (price - 2333.5) / 1247.0),
        # As another one, over text in which the cheap ones are far commoner.
        (["dog"] * 5 + ["cat"] * 2 + ["bird"], lambda price: price / 1000),
    ],
)
def test_scores_learned_from_a_teacher_of_any_unit_come_in_that_of_the_file(
    sd, student_folder, shards, tmp_path, monkeypatch, animals, unit
):
    rng = np.random.default_rng(0)
    rows = [{"text": animal_sentence(rng, animal), "label": PRICES[animal]} for animal in list(PRICES) * 40]
    train = write_rows(tmp_path / "prices.jsonl", rows)
    named = animals * (180 // len(animals))
    scores = np.array([[unit(PRICES[animal])] for animal in named], dtype=np.float32)
    found = Logits(([animal_sentence(rng, animal) for animal in named],), scores, SimpleNamespace(labels=["score"]))
    monkeypatch.setattr("sentence_distill.student.task_data.read_logits", lambda shards: found)
    out = tmp_path / "out"
    assert sd("finetune", student_folder, "--train", train, "--logits", shards, "--out", out, *LEARNS) == 0
    predicted = Classifier.load(out).predict([animal_sentence(rng, animal) for animal in PRICES])
    np.testing.assert_allclose(predicted, list(PRICES.values()), atol=400)


def test_a_teacher_whose_scores_say_nothing_of_the_labels_is_refused(
    sd, student_folder, shards, tmp_path, monkeypatch, capsys
):
    rng = np.random.default_rng(0)
    rows = [{"text": animal_sentence(rng, animal), "label": PRICES[animal]} for animal in list(PRICES) * 10]
    train, texts = write_rows(tmp_path / "prices.jsonl", rows), [row["text"] for row in rows]
    command = ("finetune", student_folder, "--train", train, "--logits", shards, "--out", tmp_path / "out", *LEARNS)
    for scores, message in ((lambda price: -price, "do not rise with the labels"), (lambda price: 3, "do not differ")):
        logits = np.array([[scores(row["label"])] for row in rows], dtype=np.float32)
        found = Logits((texts,), logits, SimpleNamespace(labels=["score"]))
        monkeypatch.setattr("sentence_distill.student.task_data.read_logits", lambda shards, found=found: found)
        assert sd(*command) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_whole_numbers_are_classes_unless_they_are_called_scores(tmp_path):
    rows = [{"text": f"The cat saw {number} houses.", "label": number % 3} for number in range(30)]
    train = str(write_rows(tmp_path / "stars.jsonl", rows))
    given = {"columns": ("text",), "label": "label", "seed": 0}
    table = read_labelled(train, ("text",), "label")
    classes = TaskData.of_tables("stars", table, None, **given)
    assert classes.task.labels == ("0", "1", "2")
    assert len(classes.dev["dev"].targets) == 3
    scores = TaskData.of_tables("stars", table, None, **given, regression=True)
    assert scores.task.regression
    assert scores.train.targets.mean() == pytest.approx(0, abs=1e-6)


def test_a_teacher_learns_one_s_own_task_and_a_student_its_logits(
    sd, student_folder, teacher_folder, animals, tmp_path
):
    train = animals.parent / "animals.jsonl"
    columns = ("--text-column", "line", "--label-column", "animal", "--device", "cpu")
    teacher, logits, out = tmp_path / "teacher", tmp_path / "logits", tmp_path / "student"
    learns = ("--learning-rate", "2e-3", "--epochs", "35")
    assert sd("finetune", teacher_folder, "--train", train, *columns, "--out", teacher, *learns) == 0
    embed = ("embed", "--corpus", train, "--text-column", "line", "--no-split", "--min-words", "1")
    assert sd(*embed, "--teacher", teacher, "--out", logits) == 0
    assert (
        sd("finetune", student_folder, "--train", train, *columns, "--logits", logits, "--out", out, *LEARNS[:2]) == 0
    )
    assert Classifier.load(out).predict(["The old cat saw the red house."]) == ["cat"]


def test_a_folder_that_can_not_be_written_or_is_in_use_is_refused_before_the_work(
    sd, student_folder, animals, tmp_path, monkeypatch, capsys
):
    def no_work(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr("sentence_distill.student.finetune.Fitter.fit", no_work)
    command = ("--train", animals.parent / "animals.jsonl", "--text-column", "line", "--label-column", "animal")
    (tmp_path / "file").write_text("")
    assert sd("finetune", student_folder, *command, "--out", tmp_path / "file" / "out") == 1
    assert f"Not a directory: '{tmp_path / 'file' / 'out'}'" in capsys.readouterr().err
    out = tmp_path / "out"
    out.mkdir()
    with lock_folder(out):
        for made in (
            ("finetune", student_folder, *command),
            ("export", student_folder, "--format", "folder", "--float16"),
        ):
            assert sd(*made, "--out", out) == 1
            assert f"{out} is in use by process {os.getpid()}" in capsys.readouterr().err
    # A run that fails leaves no empty folder.
    assert sd("finetune", "no-such/student", *command, "--out", tmp_path / "other") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_a_full_disk_leaves_no_half_of_a_fine_tuned_model(
    sd, student_folder, teacher_folder, animals, tmp_path, monkeypatch, capsys, kind
):
    out, whole = tmp_path / "out", []

    def full(file):
        if "task.json" in os.readlink(f"/proc/self/fd/{file}"):
            whole.append((out / "distillation.json").exists())
            raise OSError(errno.ENOSPC, "No space left on device")

    def full_of_weights(model, folder):
        (folder / "config.json").write_text("{}")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("sentence_distill.pipeline.files.os.fsync", full)
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full_of_weights)
    command = ("--train", animals.parent / "animals.jsonl", "--text-column", "line", "--label-column", "animal")
    model = student_folder if kind == "student" else teacher_folder
    assert sd("finetune", model, *command, "--finetune-steps", "1", "--device", "cpu", "--out", out) == 1
    assert "No space left on device" in (error := capsys.readouterr().err)
    assert "free some space, then run the same command again" in error
    assert not out.exists()
    assert not any(whole)


def test_as_many_epochs_run_as_were_asked_for_and_how_it_ended_is_said(sd, student_folder, tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [{"text": animal_sentence(rng, animal), "label": animal} for animal in ("dog", "cat", "bird") * 50]
    train, dev = (
        write_rows(tmp_path / "animals.jsonl", rows[:135]),
        write_rows(tmp_path / "dev.jsonl", rows[135:]),
    )
    command = ("finetune", student_folder, "--train", train, "--dev", dev, *LEARNS)
    assert sd(*command, "--epochs", "2", "--out", tmp_path / "two") == 0
    shown = capsys.readouterr()
    assert "fine-tuning: at most 6 steps, 2 epochs of 135 examples\n" in shown.err
    assert "ran all 2 epochs, 6 steps\n" in shown.err
    assert re.search(r"dev accuracy \d\.\d{4} \(\d+/15\), macro_f1 \d\.\d{4} \(best at step 6\)", shown.out)
    record = json.loads((tmp_path / "two" / "task.json").read_text())
    assert (record["step"], record["dev_examples"], record["ended"]) == (6, {"dev": 15}, "ran all 2 epochs, 6 steps")
    assert "/15) |" in (tmp_path / "two" / "README.md").read_text(encoding="utf-8")
    assert sd(*command, "--out", tmp_path / "default") == 0
    said = capsys.readouterr().err
    assert "at most 200 steps, 66.7 epochs of 135 examples: at least 200 steps; --epochs N sets another" in said
    assert re.search(r"\nstopped early at step \d+ of 200: no better on dev in 3 evaluations\n", said)


def test_the_length_of_fine_tuning_says_what_limits_it():
    assert STUDENT.describe(6400) == "at most 600 steps, 6 epochs of 6,400 examples"
    assert STUDENT.describe(64_000).startswith(
        "at most 2,000 steps, 2 epochs of 64,000 examples of 6: --finetune-steps"
    )
    assert replace(STUDENT, epochs=2, least_steps=0).steps(135) == 6
