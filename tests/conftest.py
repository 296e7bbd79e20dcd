"""Small real parts: a two-layer BERT with random weights, a corpus, and the shards they make."""

import json
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# No test asks the network, whatever the machine has; the libraries read this when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
# Over shapes as small as these tests', the last bit of a product depends on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from sentence_distill.cli.main import main

WORDS = """
    the a one two red blue green old new small cat dog bird house river king queen ship road tree
    ran saw built found left made was is in on under near of and slowly quickly again never
""".split()


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory) -> Path:
    """A BERT of 2 layers, 32 wide, with random weights and a WordPiece tokenizer over WORDS."""
    folder = tmp_path_factory.mktemp("teacher")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *WORDS]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=160,
    )
    BertModel(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def classifier_folder(teacher_folder, tmp_path_factory) -> Path:
    """A BERT of the same shape under a head of 3 labels, as transformers saves a fine-tuned one."""
    return make_classifier(teacher_folder, tmp_path_factory.mktemp("classifier"), labels=3)


def make_classifier(teacher_folder: Path, folder: Path, labels: int) -> Path:
    """Save a model like the teacher under a head of `labels` outputs; its logits differ from sentence to sentence."""
    torch.manual_seed(1)
    config = BertConfig.from_pretrained(teacher_folder, num_labels=labels, initializer_range=0.2)
    model = BertForSequenceClassification(config)
    model.eval().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(teacher_folder / name, folder)
    return folder


def make_sentences(count: int, seed: int = 0) -> list[str]:
    """Different sentences of 4 to 12 words."""
    rng = random.Random(seed)
    sentences: dict[str, None] = {}
    while len(sentences) < count:
        # No sentence ends in "a": the splitter takes "a." for an initial.
        words = [rng.choice(WORDS) for _ in range(rng.randint(3, 11))] + [rng.choice(WORDS[2:])]
        sentences[" ".join(words).capitalize() + "."] = None
    return list(sentences)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory) -> Path:
    """900 sentences, three a line, some of them twice."""
    sentences = make_sentences(900)
    lines = [" ".join(sentences[i : i + 3]) for i in range(0, 900, 3)]
    lines += [lines[0], "Too short.", "Old ship."]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


ADJECTIVES = ["red", "blue", "green", "old", "new", "small"]


def animal_sentence(rng: np.random.Generator, animal: str) -> str:
    """A sentence whose class is the animal that it names."""
    return f"The {rng.choice(ADJECTIVES)} {animal} saw the {rng.choice(ADJECTIVES)} house."


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Write a row a line; return the file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder, by name; but for sources.json, which names the command and its --out."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "sources.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def wait_for(found: Callable[[], Any]) -> Any:
    """Wait until `found` returns something, and return it; fail after ten minutes."""
    deadline = time.monotonic() + 600
    while not (result := found()):
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.002)
    return result


def children_besides(others: list[Any]) -> list[Any]:
    """This process's children that are not among `others`, such as those that joblib keeps; waits for the first."""
    return wait_for(lambda: [child for child in multiprocessing.active_children() if child not in others])


def run_sd(*arguments: str | Path) -> int:
    """Run `sd` in this process; its exit code."""
    import sys
    from unittest import mock

    with mock.patch.object(sys, "argv", ["sd", *map(str, arguments)]):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@pytest.fixture(scope="session")
def sd():
    """`sd` as a function of its arguments."""
    return run_sd


@pytest.fixture(scope="session")
def shards(teacher_folder, corpus_file, tmp_path_factory) -> Path:
    """A finished folder of shards of 200 sentences, in float32."""
    folder = tmp_path_factory.mktemp("run") / "shards"
    code = run_sd(
        *("embed", "--corpus", corpus_file, "--teacher", teacher_folder, "--out", folder),
        *("--shard-rows", "200", "--pooling", "mean", "--dtype", "float32", "--precision", "fp32"),
    )
    assert code == 0
    return folder


@pytest.fixture
def arguments(teacher_folder, corpus_file) -> list[str]:
    """The options with which the fixture `shards` was made, without --out."""
    return [
        *("embed", "--corpus", str(corpus_file), "--teacher", str(teacher_folder), "--shard-rows", "200"),
        *("--pooling", "mean", "--dtype", "float32", "--precision", "fp32"),
    ]


@pytest.fixture(scope="session")
def student_folder(shards, tmp_path_factory) -> Path:
    """A small trained student."""
    folder = tmp_path_factory.mktemp("trained") / "student"
    code = run_sd(
        *("train-student", "--shards", shards, "--out", folder, "--embedding-dim", "16", "--hidden", "16"),
        *("--epochs", "3", "--batch-size", "16", "--held-out", "0.1", "--precision", "fp32"),
    )
    assert code == 0
    return folder
