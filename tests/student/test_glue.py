import json

import numpy as np
import pytest


@pytest.fixture
def glue_dir(tmp_path):
    """SST-2: a sentence is positive where it names a cat. RTE: entailed where the sentences are the same."""
    rng = np.random.default_rng(0)
    words = ["red", "blue", "green", "old", "new", "small"]

    def sentence(animal):
        return f"The {rng.choice(words)} {animal} saw the {rng.choice(words)} house."

    for split, count in (("train", 160), ("dev", 60)):
        (tmp_path / "SST-2").mkdir(exist_ok=True)
        (tmp_path / "RTE").mkdir(exist_ok=True)
        singles, pairs = ["sentence\tlabel"], ["index\tsentence1\tsentence2\tlabel"]
        for i in range(count):
            singles.append(f"{sentence('cat' if i % 2 else 'dog')}\t{i % 2}")
            first, other = ("cat", "dog") if i % 4 < 2 else ("dog", "cat")
            same = "entailment" if i % 2 else "not_entailment"
            pairs.append(f"{i}\tThe {first} ran.\tThe {first if i % 2 else other} ran.\t{same}")
        (tmp_path / "SST-2" / f"{split}.tsv").write_text("\n".join(singles) + "\n")
        (tmp_path / "RTE" / f"{split}.tsv").write_text("\n".join(pairs) + "\n")
    return tmp_path


def test_fine_tuning_learns_single_sentences_and_pairs(sd, student_folder, glue_dir, tmp_path, capsys):
    out = tmp_path / "glue.json"
    options = ("--glue-dir", glue_dir, "--from-scratch", "--epochs", "12", "--learning-rate", "5e-3", "--json", out)
    assert sd("eval", "--glue", "--student", student_folder, *options) == 0
    rows = json.loads(out.read_text())["rows"]
    for row in ("distilled", "from scratch"):
        assert rows[row]["SST-2"]["scores"]["dev"]["accuracy"] > 0.95
        assert rows[row]["RTE"]["scores"]["dev"]["accuracy"] > 0.95
    shown = capsys.readouterr().out
    assert "skipped: MNLI: no MNLI/train.tsv" in shown
    assert "from scratch" in shown


def test_the_same_seed_gives_the_same_scores_and_leaves_the_student_alone(sd, student_folder, glue_dir, tmp_path):
    before = (student_folder / "model.safetensors").read_bytes()
    results = []
    for name in ("a.json", "b.json"):
        options = ("--glue-dir", glue_dir, "--tasks", "rte", "--epochs", "2", "--json", tmp_path / name)
        assert sd("eval", "--glue", "--student", student_folder, *options) == 0
        results.append((tmp_path / name).read_text())
    assert results[0] == results[1]
    assert (student_folder / "model.safetensors").read_bytes() == before


def test_without_data_the_ways_to_it_are_named(sd, student_folder, capsys):
    assert sd("eval", "--glue", "--student", student_folder) == 1
    assert "--glue-dir" in capsys.readouterr().err
