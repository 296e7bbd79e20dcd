import json
import shutil
import threading
import zipfile
from queue import Queue
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import TASKS, GlueFolder
from sentence_distill.data.labelled import synthetic_examples
from sentence_distill.data.options import command_line
from sentence_distill.pipeline.files import lock_folder
from sentence_distill.pipeline.load import Located
from sentence_distill.pipeline.manifest import Logits
from sentence_distill.student.classifier import StudentClassifier, load_classifier
from sentence_distill.student.config import FinetuneConfig, FinetuneOptions, GlueConfig
from sentence_distill.student.figures import GlueFigures, load_distillation, read_figures
from sentence_distill.student.finetune import Fitter, Hyperparameters
from sentence_distill.student.model import load_student
from sentence_distill.student.start import initial_words
from sentence_distill.student.task_data import Labelled, TaskData, from_logits
from sentence_distill.student.task_teacher import TaskTeacher
from tests.conftest import animal_sentence


@pytest.fixture
def glue_dir(tmp_path):
    """SST-2: a sentence is positive where it names a cat. RTE: entailed where the sentences are the same."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 160), ("dev", 60)):
        (tmp_path / "SST-2").mkdir(exist_ok=True)
        (tmp_path / "RTE").mkdir(exist_ok=True)
        singles, pairs = ["sentence\tlabel"], ["index\tsentence1\tsentence2\tlabel"]
        for i in range(count):
            singles.append(f"{animal_sentence(rng, 'cat' if i % 2 else 'dog')}\t{i % 2}")
            first, other = ("cat", "dog") if i % 4 < 2 else ("dog", "cat")
            same = "entailment" if i % 2 else "not_entailment"
            pairs.append(f"{i}\tThe {first} ran.\tThe {first if i % 2 else other} ran.\t{same}")
        (tmp_path / "SST-2" / f"{split}.tsv").write_text("\n".join(singles) + "\n")
        (tmp_path / "RTE" / f"{split}.tsv").write_text("\n".join(pairs) + "\n")
    # The test splits have no labels.
    (tmp_path / "SST-2" / "test.tsv").write_text("index\tsentence\n0\tThe old cat ran.\n1\tThe old dog ran.\n")
    return tmp_path


LEARNS = ("--learning-rate", "5e-3")


def glue(sd, student_folder, glue_dir, out, *options):
    """Run `sd eval --glue`; the figures that it leaves."""
    assert sd("eval", "--glue", student_folder, "--glue-dir", glue_dir, "--json", out, *options) == 0
    return json.loads(out.read_text())


def accuracy(figures, row, task="SST-2"):
    return [result["scores"]["dev"]["accuracy"] for result in figures["rows"][row][task]]


def test_fine_tuning_learns_single_sentences_and_pairs(sd, student_folder, glue_dir, tmp_path, capsys):
    figures = glue(sd, student_folder, glue_dir, tmp_path / "glue.json", "--from-scratch", *LEARNS)
    for row in ("distilled", "scratch", "scratch-words"):
        assert accuracy(figures, row, "SST-2")[0] > 0.95
        assert accuracy(figures, row, "RTE")[0] > 0.95
    assert figures["skipped"]["MNLI"] == "no MNLI/train.tsv"
    shown = capsys.readouterr().out
    assert "skipped: MNLI: no MNLI/train.tsv" in shown
    assert "from scratch" in shown


def test_every_row_of_the_table_can_be_made(sd, student_folder, teacher_folder, glue_dir, tmp_path):
    options = ("--rows", "all", "--tasks", "sst-2,rte", "--teacher", teacher_folder, "--synthetic", "300")
    options += (*LEARNS, "--teacher-learning-rate", "2e-3", "--teacher-epochs", "2")
    figures = glue(sd, student_folder, glue_dir, tmp_path / "glue.json", *options)
    assert figures["skipped"] == {}
    assert list(figures["rows"]) == [
        *("majority", "scratch", "scratch-words", "task-specific", "frozen", "distilled"),
        *("distilled-task-specific", "teacher-frozen", "teacher"),
    ]
    assert accuracy(figures, "majority") == [0.5]
    # The logits of a teacher are learned from, over more text than is labelled.
    for row in ("task-specific", "distilled-task-specific"):
        assert figures["rows"][row]["SST-2"][0]["examples"] > 160
    # What stage one wrote of it is there, beside the figures, and a second run makes nothing anew.
    assert len(list(tmp_path.glob("glue/RTE-*/logits-*/manifest.json"))) == 1
    assert not (student_folder / "glue").exists()
    before = (tmp_path / "glue.json").read_text()
    assert json.loads(before) == glue(sd, student_folder, glue_dir, tmp_path / "glue.json", *options)
    assert (tmp_path / "glue.json").read_text() == before


class Heard(progress.Silent):
    """Keeps the lines."""

    def __init__(self):
        self.lines = Queue()

    def log(self, message):
        self.lines.put(message)


def test_of_two_runs_one_makes_a_task_s_teacher_and_the_other_waits(teacher_folder, glue_dir, tmp_path, monkeypatch):
    data, heard = TaskData.load(GlueFolder(glue_dir), TASKS["RTE"]), Heard()
    monkeypatch.setattr(progress, "_display", heard)
    fitter = Fitter(Hyperparameters(), torch.device("cpu"), torch.float32)
    teacher = TaskTeacher(located=Located(teacher_folder, "bert"), folder=tmp_path / "x", fitter=fitter, synthetic=0)
    place, found = teacher.place(data), []
    place.mkdir(parents=True)
    second = threading.Thread(target=lambda: found.append(teacher.finetuned(data)))
    with lock_folder(place):
        second.start()
        assert "RTE: another run makes its teacher" in heard.lines.get(timeout=60)
        (place / "teacher").mkdir()
        record = {"task": "RTE", "scores": {"dev": {"accuracy": 0.5}}, "step": 7, "seconds": 1.0, "learning_rate": 0.1}
        (place / "teacher" / "finetuning.json").write_text(json.dumps(record))
    second.join(timeout=60)
    assert [(folder, outcome.step) for folder, outcome in found] == [(place / "teacher", 7)]
    assert not (place / ".lock").exists()


def test_the_same_seed_gives_the_same_scores_and_leaves_the_student_alone(sd, student_folder, glue_dir, tmp_path):
    before = (student_folder / "model.safetensors").read_bytes()
    results = []
    for name in ("a.json", "b.json"):
        figures = glue(sd, student_folder, glue_dir, tmp_path / name, "--tasks", "rte", "--epochs", "2")
        results.append([{**result, "seconds": 0} for result in figures["rows"]["distilled"]["RTE"]])
    assert results[0] == results[1]
    assert (student_folder / "model.safetensors").read_bytes() == before


def test_a_run_that_was_stopped_makes_only_what_is_missing(sd, student_folder, glue_dir, tmp_path, capsys):
    out = tmp_path / "glue.json"
    options = ("--tasks", "sst-2", "--epochs", "2")
    first = glue(sd, student_folder, glue_dir, out, *options)["rows"]["distilled"]["SST-2"]
    # As if those were made elsewhere.
    out.write_text(out.read_text().replace('"system": "', '"system": "another '))
    figures = glue(sd, student_folder, glue_dir, out, *options, "--seeds", "2")
    both = figures["rows"]["distilled"]["SST-2"]
    assert [environment["system"].startswith("another") for environment in figures["environments"]] == [True, False]
    assert both[0] == first[0]
    assert [result["seed"] for result in both] == [0, 1]
    # Figures of other options are neither mixed in nor lost.
    before = out.read_bytes()
    assert sd("eval", "--glue", student_folder, "--glue-dir", glue_dir, "--json", out, "--epochs", "3") == 1
    assert "finetuning epochs (2 there, 3 here)" in capsys.readouterr().err
    assert out.read_bytes() == before
    # Nor are those of an earlier version's loop, which gave other weights with the same options.
    out.write_bytes(before.replace(b'"loop": 2', b'"loop": 1'))
    assert sd("eval", "--glue", student_folder, "--glue-dir", glue_dir, "--json", out, *options) == 1
    assert "finetuning loop (1 there, 2 here)" in capsys.readouterr().err
    out.write_bytes(before)
    # Other examples are another figure, with which those of before have no common mean.
    with (glue_dir / "SST-2" / "dev.tsv").open("a") as file:
        file.write("The new cat ran.\t1\n")
    (anew,) = glue(sd, student_folder, glue_dir, out, *options)["rows"]["distilled"]["SST-2"]
    assert anew["data"] != first[0]["data"]


def test_the_best_learning_rate_of_the_first_seed_serves_all(sd, student_folder, glue_dir, tmp_path):
    options = ("--tasks", "sst-2", "--learning-rate", "1e-9,5e-3", "--seeds", "2")
    figures = glue(sd, student_folder, glue_dir, tmp_path / "glue.json", *options)
    assert [result["learning_rate"] for result in figures["rows"]["distilled"]["SST-2"]] == [0.005, 0.005]


def test_shares_of_the_training_examples_make_a_low_data_curve(sd, student_folder, glue_dir, tmp_path):
    options = ("--tasks", "rte", "--epochs", "1", "--train-fraction", "0.1,0.5,1")
    results = glue(sd, student_folder, glue_dir, tmp_path / "glue.json", *options)["rows"]["distilled"]["RTE"]
    assert [(result["fraction"], result["examples"]) for result in results] == [(1.0, 160), (0.5, 80), (0.1, 16)]


def test_a_share_is_drawn_by_the_seed(glue_dir):
    data = TaskData.load(GlueFolder(glue_dir), TASKS["SST-2"])
    assert data.share(0.25, 0).train.texts == data.share(0.25, 0).train.texts
    assert data.share(0.25, 0).train.texts != data.share(0.25, 1).train.texts
    assert len(data.share(0.25, 0).train.targets) == 40


def test_frozen_probes_read_fixed_vectors(sd, student_folder, glue_dir, tmp_path):
    figures = glue(sd, student_folder, glue_dir, tmp_path / "glue.json", "--frozen", "--tasks", "sst-2,rte")
    assert list(figures["rows"]) == ["frozen"]
    assert accuracy(figures, "frozen", "SST-2")[0] > 0.95
    few = ("--frozen", "--tasks", "rte", "--train-fraction", "0.01", "--seeds", "8")
    figures = glue(sd, student_folder, glue_dir, tmp_path / "few.json", *few)
    assert "all training examples are of one class" in figures["skipped"]["distilled, frozen: RTE"]


def test_a_submission_holds_what_can_be_predicted_and_names_the_rest(sd, student_folder, glue_dir, tmp_path, capsys):
    options = ("--tasks", "sst-2", "--submission", tmp_path / "submission", *LEARNS)
    glue(sd, student_folder, glue_dir, tmp_path / "glue.json", *options)
    with zipfile.ZipFile(tmp_path / "submission" / "submission.zip") as archive:
        assert archive.namelist() == ["SST-2.tsv"]
        assert archive.read("SST-2.tsv") == b"index\tprediction\n0\t1\n1\t0\n"
    assert "rejects it without CoLA" in capsys.readouterr().out


def test_without_data_the_ways_to_it_are_named(sd, student_folder, capsys):
    assert sd("eval", "--glue", "--student", student_folder) == 1
    assert "--glue-dir" in capsys.readouterr().err


def test_a_damaged_file_of_figures_is_not_overwritten(sd, student_folder, glue_dir, tmp_path, capsys):
    out = tmp_path / "glue.json"
    out.write_text("{")
    assert sd("eval", "--glue", student_folder, "--glue-dir", glue_dir, "--json", out) == 1
    assert f"{out} already exists" in capsys.readouterr().err
    assert out.read_text() == "{"


def test_a_wrong_value_in_a_file_of_figures_is_an_error_that_names_it(tmp_path):
    (tmp_path / "glue.json").write_text('{"source": "x", "rows": {"distilled": 3}}')
    with pytest.raises(UserError, match=r"glue\.json is damaged .*remove it, then: sd eval --glue"):
        read_figures(tmp_path / "glue.json", GlueFigures)


def test_configs_are_made_in_python_and_say_their_command():
    config = FinetuneConfig(model="mine", train="a/my-data.csv.gz", finetuning=FinetuneOptions(epochs=2))
    assert config.name == "my-data"
    assert command_line("finetune", config) == "sd finetune mine --train a/my-data.csv.gz --epochs 2"
    chosen = GlueConfig(rows=("teacher", "distilled"), from_scratch=True, frozen=True, fractions=(0.1, 1.0))
    assert chosen.chosen_rows == ("scratch", "scratch-words", "frozen", "teacher")
    command = "sd eval --glue --rows teacher,distilled --from-scratch --frozen --train-fraction 0.1,1"
    assert command_line("eval --glue", chosen) == command
    with pytest.raises(UserError, match="give --train"):
        FinetuneConfig(model="mine")
    with pytest.raises(UserError, match="--train-fraction must be above 0, not 0"):
        GlueConfig(fractions=(0.0,))


def test_the_three_commands_of_task_specific_distillation(
    sd, student_folder, teacher_folder, glue_dir, tmp_path, capsys
):
    task = ("--task", "RTE", "--glue-dir", glue_dir)
    teacher, text, logits, out = (tmp_path / name for name in ("teacher", "rte.jsonl", "logits", "student"))
    assert sd("finetune", teacher_folder, *task, "--out", teacher, "--learning-rate", "2e-3", "--epochs", "30") == 0
    pairs = TaskData.load(GlueFolder(glue_dir), TASKS["RTE"]).train.texts
    copies = synthetic_examples(tuple(map(list, pairs)), copies=2, mask="[MASK]", seed=0)
    rows = [*zip(*pairs, strict=True), *copies]
    text.write_text("".join(json.dumps({"sentence1": a, "sentence2": b}) + "\n" for a, b in rows), encoding="utf-8")
    fields = ("--text-column", "sentence1,sentence2", "--min-words", "1")
    assert sd("embed", "--corpus", text, *fields, "--teacher", teacher, "--out", logits) == 0
    assert sd("finetune", student_folder, *task, "--logits", logits, "--out", out, *LEARNS) == 0
    assert "student fine-tuned on RTE" in capsys.readouterr().out
    # The folder gives the scores that were printed, and is a student like any other.
    classifier, rte = load_classifier(out)
    assert (rte.name, rte.columns, rte.labels) == ("RTE", ("sentence1", "sentence2"), TASKS["RTE"].labels)
    record = json.loads((out / "task.json").read_text())
    data = TaskData.load(GlueFolder(glue_dir), TASKS["RTE"])
    with torch.inference_mode():
        tokens = classifier.tokenize(data.dev["dev"].texts)
        logits = classifier(tokens.padded(np.arange(len(tokens)), torch.device("cpu")))
    correct = (logits.argmax(dim=1).numpy() == data.dev["dev"].targets).mean()
    assert correct == pytest.approx(record["scores"]["dev"]["accuracy"], abs=0.02)
    assert load_student(out).encode(["The cat ran."]).shape == (1, 32)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["finetune", "{teacher}", "--task", "RTE", "--logits", "x"], 2, "is what a student learns from"),
        (["finetune", "{student}", "--task", "RTE", "--logits", "{shards}"], 1, "holds sentence embeddings"),
        (["finetune", "{student}", "--task", "QQP"], 1, "no QQP/train.tsv"),
        (["finetune", "{student}", "--task", "RTE", "--out", "{student}"], 1, "which sd finetune did not write"),
        (["eval", "--glue", "{student}", "--submission", "x", "--rows", "all"], 2, "one row's predictions"),
        (["eval", "--glue", "{student}", "--rows", "best"], 2, "not one of majority"),
        (["eval", "--glue", "{student}", "--train-fraction", "2"], 2, "at most 1"),
        (["eval", "--glue", "{student}", "--learning-rate", "0"], 2, "above 0"),
    ],
)
def test_mistakes_end_in_one_line(
    sd, student_folder, teacher_folder, shards, glue_dir, tmp_path, monkeypatch, capsys, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    places = {"teacher": teacher_folder, "student": student_folder, "shards": shards}
    arguments = [argument.format(**places) for argument in arguments]
    assert sd(*arguments, "--glue-dir", glue_dir) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_a_row_whose_teacher_is_not_here_is_skipped_with_the_reason(sd, student_folder, glue_dir, tmp_path):
    options = ("--rows", "distilled,teacher", "--tasks", "sst-2", "--epochs", "1")
    figures = glue(sd, student_folder, glue_dir, tmp_path / "glue.json", *options)
    assert list(figures["rows"]) == ["distilled"]
    assert "is not on this machine" in figures["skipped"]["teacher, fine-tuned: SST-2"]


def test_patience_and_steps_end_fine_tuning_early(student_folder, glue_dir):
    data = TaskData.load(GlueFolder(glue_dir), TASKS["SST-2"])
    student = load_student(student_folder)
    config = Hyperparameters(epochs=50, learning_rates=(1e-2,), batch_size=16, patience=2)
    _, outcome = fit(student, data, config)
    # It is perfect within a few epochs, and then no evaluation is better.
    assert outcome.scores["dev"]["accuracy"] == 1.0
    assert outcome.step < 300
    assert config.steps(160) == 500
    assert Hyperparameters(epochs=50, max_steps=70, batch_size=16).steps(160) == 70
    assert Hyperparameters(epochs=50, max_steps=7, batch_size=16).steps(160) == 10
    # A few examples are seen often enough to be learned.
    assert Hyperparameters(epochs=2, batch_size=16).steps(16) == 200


def test_a_number_of_epochs_that_was_asked_for_is_cut_by_asked_for_steps_alone():
    default = Hyperparameters(epochs=6, max_steps=2000, batch_size=64)
    assert default.steps(640_000) == 10_000
    assert default.steps(64_000) == 2000
    asked = default.given(FinetuneOptions(epochs=6))
    assert asked.steps(64_000) == 6000
    assert asked.describe(64_000) == "at most 6,000 steps, 6 epochs of 64,000 examples"
    assert default.given(FinetuneOptions(epochs=2)).steps(64) == 2
    assert default.given(FinetuneOptions(epochs=6, max_steps=2500)).steps(64_000) == 2500
    assert default.given(FinetuneOptions(max_steps=5000)).steps(64_000) == 5000
    assert default.given(FinetuneOptions(learning_rates=(1e-3, 1e-3, 3e-4))).learning_rates == (1e-3, 3e-4)
    assert default.given(FinetuneOptions()) == default


@pytest.mark.parametrize(("epochs", "waited"), [(20, 60), (60, 200)])
def test_a_long_schedule_waits_for_a_third_of_its_steps(student_folder, glue_dir, epochs, waited):
    data = TaskData.load(GlueFolder(glue_dir), TASKS["SST-2"])
    done = []
    config = Hyperparameters(epochs=epochs, batch_size=16)
    model = StudentClassifier.new(load_student(student_folder), data.task, 0)
    fitter = Fitter(config, torch.device("cpu"), torch.float32)
    outcome = fitter.train(model, data, data.train, rate=1e-2, seed=0, advance=done.append)
    assert len(done) == outcome.step + waited < config.steps(160)


def fit(student, data, config, train=None):
    fitter = Fitter(config, torch.device("cpu"), torch.float32)
    return fitter.fit(lambda: StudentClassifier.new(student, data.task, 0), data, train=train, seed=0, label="test")


def test_a_low_encoder_rate_keeps_the_encoder_near_where_it_was(student_folder, glue_dir):
    data = TaskData.load(GlueFolder(glue_dir), TASKS["SST-2"])
    student = load_student(student_folder)

    def moved(rate):
        model, _ = fit(student, data, Hyperparameters(epochs=4, encoder_rate=rate, patience=100))
        pairs = zip(student.encoder.parameters(), model.encoder.parameters(), strict=True)
        return sum((before - after).abs().sum().item() for before, after in pairs)

    assert 0 < moved(0.01) < 0.1 * moved(1.0)


def test_logits_are_learned_by_their_squared_error(student_folder, glue_dir):
    data = TaskData.load(GlueFolder(glue_dir), TASKS["SST-2"])
    student = load_student(student_folder)
    # A teacher that calls the cats 3 and the dogs -1, which no cross-entropy would lead to.
    logits = np.stack([2 - 4 * data.train.targets, 4 * data.train.targets - 1], axis=1).astype(np.float32)
    config = Hyperparameters(epochs=40, learning_rates=(5e-3,), patience=1000)
    classifier = fit(student, data, config, Labelled(data.train.texts, logits))[0].eval()
    tokens = classifier.tokenize(data.train.texts)
    with torch.inference_mode():
        learned = classifier(tokens.padded(np.arange(160), torch.device("cpu"))).numpy()
    assert np.abs(learned - logits).mean() < 1.5
    assert np.corrcoef(learned[:, 1], logits[:, 1])[0, 1] > 0.9


def test_logits_come_in_the_order_of_the_task_s_classes(glue_dir, tmp_path, monkeypatch):
    data = TaskData.load(GlueFolder(glue_dir), TASKS["RTE"])
    logits = np.array([[1.0, 2.0]], dtype=np.float32)

    def holds(*labels):
        found = Logits((["a"], ["b"]), logits, SimpleNamespace(labels=list(labels)))
        monkeypatch.setattr("sentence_distill.student.task_data.read_logits", lambda shards: found)
        return from_logits(tmp_path, data).targets.tolist()

    assert holds("entailment", "not_entailment") == holds("LABEL_0", "LABEL_1") == [[1.0, 2.0]]
    assert holds("not_entailment", "entailment") == [[2.0, 1.0]]
    with pytest.raises(UserError, match="holds logits of 0, 1, and RTE has entailment, not_entailment"):
        holds("0", "1")


def test_a_folder_without_an_encoder_s_weights_is_no_teacher(sd, teacher_folder, glue_dir, tmp_path, capsys):
    folder = shutil.copytree(teacher_folder, tmp_path / "teacher")
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "layer.1" in name))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert sd("finetune", folder, "--task", "RTE", "--glue-dir", glue_dir, "--out", tmp_path / "out") == 1
    assert "its weights lack" in capsys.readouterr().err
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    assert sd("finetune", folder, "--task", "RTE", "--glue-dir", glue_dir, "--out", tmp_path / "out") == 1
    assert "no vocabulary" in capsys.readouterr().err


def test_word_embeddings_of_another_teacher_are_refused(student_folder):
    record = load_distillation(student_folder)
    assert initial_words(record, student_folder).shape[0] == record["student"]["vocabulary"]
    record["teacher"]["teacher_weights"] = ["another"]
    with pytest.raises(UserError, match="word embeddings of another teacher"):
        initial_words(record, student_folder)
