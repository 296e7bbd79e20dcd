"""Logits of a fine-tuned teacher, of single sentences and of pairs."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.progress import Silent
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.pipeline.config import EmbedConfig
from sentence_distill.pipeline.embed import embed_corpus
from sentence_distill.pipeline.locate import Located
from sentence_distill.pipeline.logits import read_logits
from sentence_distill.pipeline.verify import verify_folder
from tests.conftest import make_sentences

SENTENCES = make_sentences(61)
FIRST, SECOND = SENTENCES[:60], SENTENCES[1:]


def reference(folder, *columns):
    """The logits of transformers' own padded batch."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = tokenizer(*map(list, columns), padding=True, return_token_type_ids=True, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits.numpy()


def write_pairs(path, first=FIRST, second=SECOND):
    if path.suffix == ".tsv":
        lines = ["a\tb", *(f"{x}\t{y}" for x, y in zip(first, second, strict=True))]
    else:
        lines = [json.dumps({"b": y, "n": 1, "a": x}) for x, y in zip(first, second, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def run(classifier_folder, tmp_path):
    """Embed a corpus with the classifier into `tmp_path`/NAME, small shards, and return that folder."""

    def run(corpus, out="out", text_field="a,b", teacher=classifier_folder, **options):
        embed_corpus(
            corpus=Corpus.open([str(corpus)], text_field=text_field),
            located=Located(teacher, "classifier"),
            out=tmp_path / out,
            config=EmbedConfig(rules=SentenceRules(), shard_rows=16),
            precision="fp32",
            progress=Silent(),
            **options,
        )
        return tmp_path / out

    return run


@pytest.mark.parametrize("suffix", ["jsonl", "tsv"])
def test_the_logits_of_pairs_are_those_of_transformers(run, classifier_folder, tmp_path, suffix):
    out = run(write_pairs(tmp_path / f"pairs.{suffix}"))
    logits = read_logits(out)
    assert logits.texts == (FIRST, SECOND)
    assert logits.logits.dtype == np.float32
    np.testing.assert_allclose(logits.logits, reference(classifier_folder, FIRST, SECOND), atol=1e-5)
    assert verify_folder(out, lambda n: None) == []


def test_the_logits_of_single_sentences_are_those_of_transformers(run, classifier_folder, tmp_path):
    (tmp_path / "corpus.txt").write_text("\n".join(SENTENCES))
    logits = read_logits(run(tmp_path / "corpus.txt", text_field="text"))
    assert logits.texts == (SENTENCES,)
    np.testing.assert_allclose(logits.logits, reference(classifier_folder, SENTENCES), atol=1e-5)
    assert logits.logits.std() > 0.1
    assert "separator" not in logits.fingerprint
