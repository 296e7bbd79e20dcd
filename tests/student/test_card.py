import json
import re

import msgspec
import pytest
from huggingface_hub import ModelCard

from sentence_distill.student.card import model_card
from sentence_distill.student.figures import GlueFigures, SpeedRecord
from sentence_distill.student.tables import plain_names
from tests.conftest import make_sentences

EVALUATED = {
    "size": {"parameters": 10_000, "megabytes": 1.5},
    "teacher_size": {"parameters": 90_000, "megabytes": 9.5},
    "precision": "float32",
    "held_out": {
        "cosine": 0.9,
        "mse": 0.01,
        "rank_agreement": 0.8,
        "recall_at_10": 0.54,
        "mean_vector_cosine": 0.2,
        "rows": 1000,
        "by_length": [
            {"least": 1, "most": 8, "rows": 60, "cosine": 0.91},
            {"least": 9, "most": None, "rows": 40, "cosine": 0.88},
        ],
        "by_frequency": [
            {"least": 0, "most": 0, "rows": 50, "cosine": 0.8},
            {"least": 1, "most": 2000, "rows": 50, "cosine": 0.95},
        ],
    },
    "sentences_per_second": {"student": 2161.0, "teacher": 434.0},
    "sts_spearman": {"student": 0.834, "teacher": 0.867},
}


@pytest.fixture
def distillation(student_folder):
    record = json.loads((student_folder / "distillation.json").read_text())
    record["teacher"]["teacher"] = "sentence-transformers/all-MiniLM-L6-v2"
    return {**record, "metrics": EVALUATED}


def test_the_hub_reads_the_card_s_metadata(distillation):
    data = ModelCard(model_card(distillation, name="me/small")).data
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert data.library_name == "sentence-transformers"
    assert data.pipeline_tag == "sentence-similarity"
    assert data.language == "en"
    assert data.model_name == "small"
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        "cosine": 0.9,
        "rank_agreement": 0.8,
        "recall_at_10": 0.54,
        "mse": 0.01,
        "spearman_cosine": 0.834,
    }


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"epochs": 1, "max_steps": None, "max_time": None}, "Training: at most 1 epoch, batches"),
        (
            {"epochs": 3, "max_steps": 1500, "max_time": 60.0},
            "Training: at most 3 epochs or 1,500 steps or 60 seconds,",
        ),
    ],
)
def test_the_card_says_what_may_have_ended_the_training(distillation, limits, said):
    assert said in model_card({**distillation, "training": {**distillation["training"], **limits}})


def test_the_card_shows_what_sd_eval_measured_of_student_and_teacher(distillation):
    card = model_card(distillation)
    assert "| STS-B, Spearman, no fine-tuning | 0.8340 | 0.8670 |" in card
    assert "| sentences per second | 2,161 | 434 |" in card
    assert "| recall@10 of the teacher's nearest neighbors | 0.5400 |" in card
    assert "| baseline: one constant vector | 0.2000 |" in card
    assert "| tokens | 1–8 | 9+ |" in card
    assert "| times seen in training | 0 | 1–2000 |" in card


def test_a_card_begins_with_the_model_s_name_its_use_and_limits(distillation):
    for options, title in (
        ({"name": "me/small"}, "small"),
        ({"name": "minilm-small"}, "minilm-small"),
        ({"title": "distilled"}, "distilled"),
    ):
        card = ModelCard(model_card(distillation, **options))
        assert re.findall("^#+ .*", card.text, re.MULTILINE) == [
            *(f"# {title}", "## Intended use and limits", "## How to use it", "## What it scores"),
            *("## How it was made", "## License"),
        ]
        assert card.data.model_name == title


def test_figures_are_rounded_in_the_metadata_too(distillation):
    held_out = {"cosine": 0.8888052701950073, "mse": 0.0005791392177343369, "rows": 20000}
    metrics = {"held_out": held_out, "sts_spearman": {"student": 0.8494567997423355}}
    card = model_card({**distillation, "metrics": metrics}, name="me/small")
    values = {result.metric_type: result.metric_value for result in ModelCard(card).data.eval_results}
    assert values == {"cosine": 0.8888, "mse": 0.0005791, "spearman_cosine": 0.8495}
    assert not re.search(r"\d\.\d{8}", card)


def test_speed_is_given_with_its_dtype_backend_and_machine(distillation):
    timed = {
        "timed_as": {"student": "int8 in ONNX Runtime", "teacher": "bfloat16 in PyTorch"},
        "timed_on": {"student": "2 cores of a CPU", "teacher": "2 cores of a CPU"},
    }
    card = model_card({**distillation, "metrics": {**EVALUATED, **timed}})
    ways = "int8 in ONNX Runtime (student), bfloat16 in PyTorch (teacher)"
    assert f"Speed measured on 2 cores of a CPU: {ways}." in card


def test_corpora_and_texts_are_named_without_folders_and_formats(distillation):
    assert plain_names(["a/wiki.txt", "chat.jsonl.gz", "x", "b/news.csv", "c/news.txt"]) == {
        **{"a/wiki.txt": "wiki", "chat.jsonl.gz": "chat", "x": "x"},
        **{"b/news.csv": "b/news.csv", "c/news.txt": "c/news.txt"},
    }
    by_corpus = [{"name": name, "rows": 20, "cosine": 0.91234} for name in ("wiki.txt", "chat")]
    card = model_card({**distillation, "metrics": {"held_out": {"cosine": 0.9, "by_corpus": by_corpus}}})
    assert "| wiki | 20 | 0.912 |\n| chat | 20 | 0.912 |" in card


def test_figures_of_glue_and_of_speed_are_shown_where_they_are_known(distillation):
    result = {"seed": 0, "fraction": 1.0, "scores": {"dev": {"accuracy": 0.865}}, "examples": 10}
    speed = {
        "environment": {"cores": 2, "cpu": "a processor"},
        "threads": [2],
        "contenders": {
            "student (sd, fp32)": {
                "model": "x",
                "threads": {"2": {"by_batch": {"1": 357.0}}},
                "parameters": 10_000,
                "megabytes": 1.5,
            }
        },
    }
    glue = msgspec.convert({"rows": {"distilled": {"SST-2": [result]}}}, GlueFigures)
    card = model_card(distillation, glue=glue, speed=msgspec.convert(speed, SpeedRecord, strict=False))
    assert "| system | SST-2, accuracy |" in card
    assert "86.5" in card
    assert "2 cores of a processor" in card
    assert "| 1. student (sd, fp32) |" in card
    # Of models that were fine-tuned further, so no result of these weights.
    assert all(result.dataset_type != "nyu-mll/glue" for result in ModelCard(card).data.eval_results)


def test_a_fine_tuned_student_says_so_and_lists_its_scores_as_results(distillation):
    card = model_card({**distillation, "metrics": {"SST-2": {"dev": {"accuracy": 0.9}}}, "glue_task": "sst2"})
    assert "no longer the teacher's" in card
    (result,) = ModelCard(card).data.eval_results
    assert (result.dataset_type, result.dataset_config, result.metric_value) == ("nyu-mll/glue", "sst2", 0.9)
    assert result.dataset_name == "GLUE SST-2, dev"


def test_a_users_own_task_may_have_the_name_of_a_measure(distillation):
    card = model_card({**distillation, "metrics": {"size": {"dev": {"accuracy": 0.9}}}})
    assert "| size, dev | accuracy | 0.9000 |" in card


def test_a_users_own_task_with_a_name_of_glues_is_not_published_as_glue(sd, student_folder, tmp_path):
    rows = [f"the {word} cat,the {word} dog,{number % 2}" for number, word in enumerate(make_sentences(40))]
    (tmp_path / "MRPC.csv").write_text("\n".join(["a,b,label", *rows]), encoding="utf-8")
    out = tmp_path / "out"
    options = ("--text-column", "a,b", "--epochs", "1", "--out", out)
    assert sd("finetune", student_folder, "--train", tmp_path / "MRPC.csv", *options) == 0
    results = ModelCard((out / "README.md").read_text(encoding="utf-8")).data.eval_results
    assert {(result.dataset_type, result.dataset_name) for result in results} == {("unknown", "MRPC, dev")}


def test_a_licence_is_stated_only_where_it_was_given(distillation):
    unknown, known = ModelCard(model_card(distillation)), ModelCard(model_card(distillation, licence="mit"))
    assert unknown.data.license is None
    assert "No license was stated" in unknown.text
    assert known.data.license == "mit"
    for card in (unknown, known):
        assert "licenses of the teacher" in card.text


def test_a_teacher_without_an_owner_and_a_splitter_s_language_are_no_metadata(distillation):
    distillation["teacher"]["teacher"] = "my-bert"
    distillation["corpus"]["fingerprint"]["language"] = "none"
    data = ModelCard(model_card({**distillation, "metrics": {}})).data
    assert data.base_model is None
    assert data.language is None
    assert data.eval_results is None
