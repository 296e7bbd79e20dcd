import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sentence_distill import Classifier
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import TASKS, GlueFolder
from sentence_distill.data.labelled import read_labelled
from sentence_distill.pipeline.load import Located
from sentence_distill.pipeline.manifest import load_manifest
from sentence_distill.student import finetune, recipe
from sentence_distill.student.classifier import TeacherClassifier
from sentence_distill.student.finetune import Fitter, Hyperparameters
from sentence_distill.student.start import OtherVocabulary
from sentence_distill.student.task_data import TaskData
from sentence_distill.student.task_teacher import TaskTeacher
from tests.conftest import ADJECTIVES, animal_sentence, write_rows

PRICES = {"dog": 1000.5, "cat": 2000.0, "bird": 4000.0}


@pytest.fixture(scope="module", autouse=True)
def quick_teacher():
    """The teacher of these tests has random weights, and learns at a high rate."""
    config = Hyperparameters(epochs=12, max_steps=60, batch_size=32, learning_rates=(3e-3,), least_steps=40)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recipe, "TEACHER", config)
        patched.setattr(recipe, "_VECTOR_EPOCHS", 1)
        patched.setattr(recipe, "LOGITS", replace(recipe.LOGITS, max_steps=120))
        yield


def write_animals(folder):
    rng = np.random.default_rng(0)
    rows = [{"text": animal_sentence(rng, animal), "label": animal} for animal in ("dog", "cat", "bird") * 50]
    (folder / "more.txt").write_text("".join(animal_sentence(rng, animal) + "\n" for animal in ("dog", "cat") * 40))
    return write_rows(folder / "animals.jsonl", rows)


@pytest.fixture
def animals(tmp_path):
    return write_animals(tmp_path)


@pytest.fixture(scope="module")
def whole(sd, student_folder, teacher_folder, quick_teacher, tmp_path_factory):
    """The student of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert sd(*command(student_folder, teacher_folder, write_animals(folder), folder / "out")) == 0
    return folder / "out"


def command(student, teacher, train, out, *options):
    learns = ("--learning-rate", "5e-3", "--finetune-steps", "60", "--device", "cpu", "--synthetic", "300")
    return ("finetune", student, "--train", train, "--teacher", teacher, "--out", out, *learns, *options)


def embedded(pattern):
    """Return the number of texts in the only folder of shards that a pattern names."""
    (folder,) = Path("/").glob(str(pattern).lstrip("/"))
    return load_manifest(folder).totals.sentences


def weights(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


class Stopped(BaseException):
    """A kill."""


def test_one_command_distils_a_task_and_shows_what_each_stage_brought(
    sd, student_folder, teacher_folder, animals, tmp_path, monkeypatch, capsys
):
    out, more = tmp_path / "out", tmp_path / "more.txt"
    run = command(student_folder, teacher_folder, animals, out, "--unlabeled", more)
    assert sd(*run) == 0
    shown = capsys.readouterr()
    for row in ("majority class", "labels alone", "vectors, logits, labels", "teacher, fine-tuned"):
        assert row in shown.out
    assert "plan: about" in shown.err
    assert "teacher's fine-tuning: 0:0" in shown.err
    assert Classifier.load(out).predict(["The old cat saw the red house."]) == ["cat"]
    (table,) = (tmp_path / "animals-stages").glob("*/table.json")
    assert [row["title"] for row in json.loads(table.read_text())["rows"]][-1] == "teacher, fine-tuned"
    # Text without labels is embedded too, and vectors and logits stand in the same shards.
    assert embedded(tmp_path / "animals-stages/animals-*/targets-*") > 300
    # The same again makes nothing again.
    before = weights(out)
    monkeypatch.setattr(Fitter, "fit", None)
    monkeypatch.setattr(recipe, "train_student", None)
    assert sd(*run, "--overwrite") == 0
    assert weights(out) == before


def test_other_options_of_the_student_repeat_nothing_of_the_teacher(
    sd, student_folder, teacher_folder, whole, monkeypatch
):
    train, out = whole.parent / "animals.jsonl", whole.parent / "other"
    fit, labels = Fitter.fit, []

    def counted(*arguments, **options):
        labels.append(options["label"])
        return fit(*arguments, **options)

    monkeypatch.setattr(Fitter, "fit", counted)
    monkeypatch.setattr("sentence_distill.pipeline.slices.commit_slice", None)
    run = command(student_folder, teacher_folder, train, out, "--seed", "0", "--encoder-rate", "0.5")
    assert sd(*run) == 0
    assert labels == ["finetune", "on logits", "on labels"]


def test_pairs_are_distilled_by_the_vectors_of_their_sides(sd, student_folder, teacher_folder, tmp_path, capsys):
    rows = []
    for number in range(160):
        first, other = ("cat", "dog") if number % 4 < 2 else ("dog", "cat")
        second = first if number % 2 else other
        rows.append({"a": f"The {first} ran.", "b": f"The {second} ran to {number}.", "label": number % 2})
    train = write_rows(tmp_path / "pairs.jsonl", rows)
    run = command(student_folder, teacher_folder, train, tmp_path / "out", "--text-column", "a,b")
    assert sd(*run) == 0
    # "The cat ran." and "The dog ran." once, and each other side; a tenth of the pairs is held out.
    assert embedded(tmp_path / "pairs-stages/pairs-*/vectors-*") > 144
    assert Classifier.load(tmp_path / "out").predict([("The cat ran.", "The cat ran to 3.")]) in (["0"], ["1"])
    (tmp_path / "more.txt").write_text("One text alone.\n")
    assert sd(*run, "--unlabeled", tmp_path / "more.txt", "--overwrite") == 1
    assert "more.txt" in capsys.readouterr().err


def test_scores_come_in_the_unit_of_the_file(sd, student_folder, teacher_folder, tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"text": animal_sentence(rng, animal), "label": PRICES[animal]} for animal in [*PRICES] * 60]
    train = write_rows(tmp_path / "prices.jsonl", rows)
    assert sd(*command(student_folder, teacher_folder, train, tmp_path / "out", "--finetune-steps", "150")) == 0
    found = Classifier.load(tmp_path / "out").predict([f"The old {animal} saw the red house." for animal in PRICES])
    np.testing.assert_allclose(found, list(PRICES.values()), atol=500)


@pytest.mark.parametrize("stage", ["teacher", "embed", "vectors", "on logits", "on labels", "save"])
def test_a_run_killed_in_any_stage_resumes_to_the_same_bytes(
    sd, student_folder, teacher_folder, whole, animals, tmp_path, monkeypatch, stage
):
    monkeypatch.setattr(finetune, "_BETWEEN_CHECKPOINTS", 0.0)
    killed = tmp_path / "killed"
    with monkeypatch.context() as patched:
        if stage in ("teacher", "on logits", "on labels"):
            train = Fitter.fit

            def fit(*arguments, **options):
                if options["label"] != stage:
                    return train(*arguments, **options)
                # After the first checkpoint, if this stage writes one.
                patched.setattr(finetune, "task_metrics", stop_at(2, finetune.task_metrics))
                return train(*arguments, **options)

            patched.setattr(Fitter, "fit", fit)
        elif stage == "embed":
            patched.setattr("sentence_distill.pipeline.slices.commit_slice", stop_at(1, None))
        elif stage == "vectors":
            patched.setattr("sentence_distill.student.train.Trainer.complete", stop_at(1, None))
        else:
            patched.setattr("sentence_distill.student.finetune.save_classifier", stop_at(3, finetune.save_classifier))
        with pytest.raises(Stopped):
            sd(*command(student_folder, teacher_folder, animals, killed))
    assert not killed.exists()
    assert sd(*command(student_folder, teacher_folder, animals, killed)) == 0
    assert weights(killed) == weights(whole)


def stop_at(call, function):
    calls = []

    def stopping(*arguments, **options):
        calls.append(1)
        if len(calls) >= call:
            raise Stopped
        return function(*arguments, **options)

    return stopping


def test_a_limit_of_time_shortens_the_stages_and_is_kept_for_the_next_run(
    sd, student_folder, teacher_folder, animals, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(recipe, "_LEAST_STEPS", 2)
    timed = []

    def time_of(*arguments):
        timed.append(arguments)
        return recipe._Rates(0.5, 0.01)

    monkeypatch.setattr(recipe, "_time", time_of)
    monkeypatch.setattr(recipe, "_time_embedding", time_of)
    run = command(student_folder, teacher_folder, animals, tmp_path / "out", "--max-time", "20s")
    assert sd(*run) == 0
    (table,) = (tmp_path / "animals-stages").glob("*/table.json")
    plan = json.loads(table.read_text())["plan"]
    # 40% of 20 s at half a second a step, evaluations on dev included; then another 20% at a hundredth a text.
    assert 10 <= plan["teacher_steps"] <= 16
    assert 300 <= plan["most_texts"] <= 450
    assert plan["logit_steps"] < 12
    assert sum(plan["seconds"].values()) < 23
    assert embedded(tmp_path / "animals-stages/animals-*/targets-*") <= plan["most_texts"]
    assert len(timed) == 3
    assert sd(*run, "--overwrite") == 0
    assert len(timed) == 3
    # Of one that is too short the least is done, and said.
    capsys.readouterr()
    assert sd(*command(student_folder, teacher_folder, animals, tmp_path / "least", "--max-time", "1s")) == 0
    assert "--max-time 0:01 min is less than the shortest useful run takes" in capsys.readouterr().err


def test_no_stage_is_reused_for_other_text_of_the_same_shape(sd, student_folder, teacher_folder, animals, tmp_path):
    out, more = tmp_path / "out", tmp_path / "more.txt"
    run = command(student_folder, teacher_folder, animals, out, "--unlabeled", more)
    assert sd(*run) == 0
    first = len(list((tmp_path / "animals-stages").glob("*/student-*")))
    more.write_text(more.read_text().replace("house", "garden"))
    assert sd(*run, "--overwrite") == 0
    assert len(list((tmp_path / "animals-stages").glob("*/student-*"))) == first + 3
    assert len(list((tmp_path / "animals-stages").glob("*/teacher"))) == 1


def test_scores_of_another_unit_and_classes_of_other_names_have_stages_of_their_own(teacher_folder, tmp_path):
    def place(labels):
        rows = [
            {"text": f"A {word} house of {number}.", "label": label} for word in ADJECTIVES for number, label in labels
        ]
        table = read_labelled(str(write_rows(tmp_path / "task.jsonl", rows)), ("text",), "label")
        data = TaskData.of_tables("task", table, None, columns=("text",), label="label", seed=0)
        teacher = TaskTeacher(Located(teacher_folder, "teacher"), tmp_path, fitter(), 0)
        return teacher.place(data).name

    numbers = [(number, number + 0.5) for number in range(8)]
    assert place(numbers) != place([(number, 100 * score) for number, score in numbers])
    names = [(number, "good" if number % 2 else "bad") for number in range(8)]
    assert place(names) != place([(number, f"very {name}") for number, name in names])
    assert place(names) == place(names)


def test_tabs_in_unlabeled_text_are_white_space_and_rows_without_text_are_counted(
    sd, student_folder, teacher_folder, animals, tmp_path, capsys
):
    (tmp_path / "more.jsonl").write_text('{"text": "A\\tdog\\tran."}\n{"text": null}\n{"text": "A cat ran."}\n')
    run = command(student_folder, teacher_folder, animals, tmp_path / "out", "--unlabeled", tmp_path / "more.jsonl")
    assert sd(*run) == 0
    assert "--unlabeled: 1 row of 3 without text left out" in capsys.readouterr().err


def test_a_teacher_with_another_vocabulary_teaches_by_its_logits(
    sd, student_folder, teacher_folder, animals, tmp_path, monkeypatch, capsys
):
    def refuse(config):
        raise OtherVocabulary("too few tokens")

    monkeypatch.setattr(recipe, "train_student", refuse)
    assert sd(*command(student_folder, teacher_folder, animals, tmp_path / "out")) == 0
    assert "no vectors are learned: too few tokens" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["animals-stages", "."])
def test_the_result_can_not_lie_where_the_stages_do(
    sd, student_folder, teacher_folder, animals, tmp_path, monkeypatch, capsys, out
):
    monkeypatch.chdir(tmp_path)
    assert sd(*command(student_folder, teacher_folder, animals, out)) == 2
    assert f"--out {out} is where the stages go" in capsys.readouterr().err


def test_frozen_layers_are_of_a_teacher(sd, student_folder, animals, tmp_path, capsys):
    assert sd("finetune", student_folder, "--train", animals, "--freeze-layers", "1", "--out", tmp_path / "out") == 2
    assert "--freeze-layers is for a teacher" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--unlabeled", "x.txt"), ("--max-time", "5m"), ("--synthetic", "7")])
def test_options_of_the_recipe_need_a_teacher(sd, student_folder, animals, capsys, option):
    assert sd("finetune", student_folder, "--train", animals, *option) == 2
    assert f"{option[0]} goes with --teacher" in capsys.readouterr().err


def test_what_is_no_student_can_not_be_distilled_into(sd, teacher_folder, animals, tmp_path, capsys):
    assert sd(*command(teacher_folder, teacher_folder, animals, tmp_path / "out")) == 1
    assert "is what a student learns from" in capsys.readouterr().err


# Fine-tuning the teacher.


@pytest.fixture
def sst(tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "SST-2").mkdir()
    for split, count in (("train", 96), ("dev", 30)):
        rows = (f"{animal_sentence(rng, 'cat' if number % 2 else 'dog')}\t{number % 2}" for number in range(count))
        (tmp_path / "SST-2" / f"{split}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    return TaskData.load(GlueFolder(tmp_path), TASKS["SST-2"])


def fitter(**options):
    config = Hyperparameters(epochs=20, max_steps=None, batch_size=32, learning_rates=(1e-3,), patience=99, **options)
    return Fitter(config, torch.device("cpu"), torch.float32)


def load(folder, data):
    return TeacherClassifier.load(Located(folder, "teacher"), data.task, 0)


def test_a_killed_fine_tuning_resumes_from_its_checkpoint_to_the_same_weights(
    teacher_folder, sst, tmp_path, monkeypatch
):
    monkeypatch.setattr(finetune, "_BETWEEN_CHECKPOINTS", 0.0)
    whole, outcome = fitter().fit(lambda: load(teacher_folder, sst), sst, seed=1, label="teacher")
    checkpoint, steps = tmp_path / "teacher.pt", []

    def advance(count):
        steps.append(count)
        if len(steps) == 50:
            raise Stopped

    with pytest.raises(Stopped):
        fitter().train(
            load(teacher_folder, sst), sst, sst.train, rate=1e-3, seed=1, advance=advance, checkpoint=checkpoint
        )
    assert torch.load(checkpoint, weights_only=True)["step"] == 40
    resumed, again = fitter().fit(
        lambda: load(teacher_folder, sst), sst, seed=1, label="teacher", checkpoint=checkpoint
    )
    assert (again.scores, again.step) == (outcome.scores, outcome.step)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name])


def test_frozen_layers_and_word_embeddings_stay_as_they_are(teacher_folder, sst):
    before, model = load(teacher_folder, sst).state_dict(), load(teacher_folder, sst)
    fitter(frozen_layers=1).train(model, sst, sst.train, rate=1e-3, seed=0)
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert not [name for name in moved if "embeddings" in name or "layer.0." in name]
    assert [name for name in moved if "layer.1." in name]
    with pytest.raises(UserError, match=r"--freeze-layers 99: the teacher has 2 layers"):
        fitter(frozen_layers=99).train(model, sst, sst.train, rate=1e-3, seed=0)
