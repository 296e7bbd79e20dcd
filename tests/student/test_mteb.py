import json
import shutil

import pytest

mteb = pytest.importorskip("mteb")

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from safetensors.numpy import load_file, save_file

from sentence_distill.data.errors import UserError
from sentence_distill.student.evaluation.mteb_tasks import find_tasks


class LocalSTS(AbsTaskSTS):
    """Four pairs that need no hub."""

    metadata = TaskMetadata(
        name="LocalSTS",
        description="Pairs of this test.",
        dataset={"path": "local", "revision": "1"},
        type="STS",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="cosine_spearman",
    )

    def load_data(self, *args, **kwargs):
        first = ["The red cat ran.", "The red cat ran.", "The old dog saw.", "One ship left."]
        second = ["The red cat ran.", "The new road was built.", "The old dog ran.", "The king found a river."]
        columns = {"sentence1": first, "sentence2": second, "score": [5.0, 0.5, 3.0, 0.2]}
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True


def test_tasks_of_mteb_are_scored_and_what_has_no_data_is_listed(sd, student_folder, monkeypatch, capsys):
    tasks = [LocalSTS(), *find_tasks(["STS12"])]
    monkeypatch.setattr("sentence_distill.student.evaluation.mteb_tasks.find_tasks", lambda names: tasks)
    assert sd("eval", student_folder, "--mteb", "LocalSTS,STS12") == 0
    shown = capsys.readouterr().out
    figures = json.loads((student_folder / "mteb.json").read_text())
    (scores,) = figures["models"].values()
    assert scores["LocalSTS"]["metric"] == "cosine_spearman"
    assert -1 <= scores["LocalSTS"]["score"] <= 1
    assert "STS12" not in scores
    assert "can't be had" in figures["skipped"]["STS12"]
    assert "not measured: STS12" in shown


def test_scores_of_other_tasks_and_models_stay_while_the_weights_do(sd, student_folder, monkeypatch, tmp_path):
    again = LocalSTS()
    again.metadata = LocalSTS.metadata.model_copy(update={"name": "Again"})
    out = tmp_path / "mteb.json"
    models = [shutil.copytree(student_folder, tmp_path / name) for name in ("one", "two")]
    for model, task in ((models[0], LocalSTS()), (models[1], LocalSTS()), (models[0], again)):
        monkeypatch.setattr(
            "sentence_distill.student.evaluation.mteb_tasks.find_tasks", lambda names, task=task: [task]
        )
        assert sd("eval", model, "--mteb", "x", "--json", out) == 0
    figures = json.loads(out.read_text())["models"]
    assert {name: list(scores) for name, scores in figures.items()} == {
        "one": ["LocalSTS", "Again"],
        "two": ["LocalSTS"],
    }
    weights = load_file(models[0] / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, models[0] / "model.safetensors")
    assert sd("eval", models[0], "--mteb", "x", "--json", out) == 0
    assert list(json.loads(out.read_text())["models"]["one"]) == ["Again"], "the other score is of other weights"


class Incompatible(LocalSTS):
    """Its data lacks a column."""

    metadata = LocalSTS.metadata.model_copy(update={"name": "Incompatible"})

    def load_data(self, *args, **kwargs):
        super().load_data()
        self.dataset = DatasetDict({"test": self.dataset["test"].remove_columns("score")})


def test_a_model_and_a_task_that_fail_are_listed_and_the_others_are_scored(
    sd, student_folder, monkeypatch, tmp_path, capsys
):
    tasks = [Incompatible(), LocalSTS()]
    monkeypatch.setattr("sentence_distill.student.evaluation.mteb_tasks.find_tasks", lambda names: tasks)
    other = shutil.copytree(student_folder, tmp_path / "other")
    evaluate, calls = mteb.evaluate, []

    def second_fails(model, task, **options):
        calls.append(task.metadata.name)
        if calls.count("LocalSTS") == 2:
            raise RuntimeError("too long")
        return evaluate(model, task, **options)

    monkeypatch.setattr(mteb, "evaluate", second_fails)
    assert sd("eval", student_folder, other, "--mteb", "Incompatible,LocalSTS") == 0
    figures = json.loads((student_folder / "mteb.json").read_text())
    assert [list(scores) for scores in figures["models"].values()] == [["LocalSTS"], []]
    assert set(figures["skipped"]) == {"Incompatible, student", "Incompatible, other", "LocalSTS, other"}
    assert "too long" in capsys.readouterr().out


def test_without_data_for_any_task_it_is_an_error(sd, student_folder, capsys):
    assert sd("eval", student_folder, "--mteb", "STS12") == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "mteb/sts12-sts can't be had" in error[0]


def test_an_unknown_task_is_named():
    with pytest.raises(UserError, match="STS99"):
        find_tasks(["STS99"])
