"""Logits of a fine-tuned teacher, of single sentences and of pairs."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.pipeline.config import EmbedConfig, parse_pooling
from sentence_distill.pipeline.embed import embed_corpus
from sentence_distill.pipeline.hardware import ATTENTION
from sentence_distill.pipeline.load import Located, tokenize_pairs
from sentence_distill.pipeline.manifest import load_manifest, read_logits, verify_folder
from sentence_distill.pipeline.records import as_dict
from sentence_distill.pipeline.shards import Shard
from tests.conftest import contents, make_classifier, make_sentences
from tests.pipeline.test_teacher import embed, load

SENTENCES = make_sentences(61)
FIRST, SECOND = SENTENCES[:60], SENTENCES[1:]


def reference(folder, *columns):
    """The logits of transformers' own padded batch."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = tokenizer(
        *map(list, columns), padding=True, return_token_type_ids=model.config.type_vocab_size > 1, return_tensors="pt"
    )
    with torch.no_grad():
        return model.eval()(**inputs).logits.numpy()


def write_pairs(path, first=FIRST, second=SECOND):
    if path.suffix == ".tsv":
        lines = ["a\tb", *(f"{x}\t{y}" for x, y in zip(first, second, strict=True))]
    else:
        lines = [json.dumps({"b": y, "n": 1, "a": x}) for x, y in zip(first, second, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(corpus, teacher, out, text_column="a,b", **config):
    """Embed a corpus into `out`, which is returned, in small shards."""
    embed_corpus(
        corpus=Corpus.open([str(corpus)], text_column=text_column),
        located=Located(teacher, "classifier"),
        config=EmbedConfig(out=str(out), shard_rows=20, precision="fp32", **config),
    )
    return out


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("corpus") / "pairs.jsonl")


@pytest.fixture(scope="module")
def logits_folder(pairs, classifier_folder, tmp_path_factory):
    return run(pairs, classifier_folder, tmp_path_factory.mktemp("logits") / "out")


def test_the_logits_of_pairs_are_those_of_transformers(logits_folder, classifier_folder):
    logits = read_logits(logits_folder)
    assert logits.texts == (FIRST, SECOND)
    assert logits.logits.dtype == np.float32
    np.testing.assert_allclose(logits.logits, reference(classifier_folder, FIRST, SECOND), atol=1e-5)
    assert verify_folder(logits_folder, lambda n: None) == []


def test_the_logits_of_single_sentences_are_those_of_transformers(classifier_folder, tmp_path):
    (tmp_path / "corpus.txt").write_text("\n".join(SENTENCES))
    logits = read_logits(run(tmp_path / "corpus.txt", classifier_folder, tmp_path / "out", text_column="text"))
    assert logits.texts == (SENTENCES,)
    np.testing.assert_allclose(logits.logits, reference(classifier_folder, SENTENCES), atol=1e-5)
    assert logits.logits.std() > 0.1
    assert logits.fingerprint.separator is None


def test_a_regression_has_one_logit(pairs, teacher_folder, tmp_path):
    folder = tmp_path / "regression"
    folder.mkdir()
    make_classifier(teacher_folder, folder, labels=1)
    logits = read_logits(run(pairs, folder, tmp_path / "out"))
    assert logits.logits.shape == (60, 1)
    np.testing.assert_allclose(logits.logits, reference(folder, FIRST, SECOND), atol=1e-5)


def test_the_names_of_the_labels_come_with_the_logits(logits_folder, classifier_folder, tmp_path):
    folder = shutil.copytree(classifier_folder, tmp_path / "named")
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "neutral", "1": "entailment", "2": "contradiction"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).facts().fingerprint.labels == ["neutral", "entailment", "contradiction"]
    assert read_logits(logits_folder).fingerprint.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]


@pytest.mark.parametrize("labels", [1, 3])
def test_the_head_is_left_out_where_another_pooling_is_asked_for(teacher_folder, tmp_path, labels):
    folder = make_classifier(teacher_folder, tmp_path, labels)
    whole = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(FIRST, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = whole.bert(**inputs).last_hidden_state[:, 0].numpy()
    teacher = load(folder, pooling="cls")
    assert (teacher.dim, teacher.recipe.pooling) == (32, "cls")
    np.testing.assert_allclose(embed(teacher, FIRST), expected, atol=1e-5)


def test_the_facts_of_a_classifier_are_those_of_its_logits(classifier_folder):
    teacher = load(classifier_folder)
    facts = teacher.facts()
    assert (teacher.dim, teacher.layer_dim, facts.dim) == (3, 3, 3)
    assert (teacher.recipe.pooling, teacher.recipe.layers, teacher.recipe.normalize) == ("logits", (2,), False)
    assert facts.fingerprint.pooling == "logits"
    assert load(classifier_folder, pooling="logits").facts() == facts
    assert load(classifier_folder, pooling="cls").facts().fingerprint != facts.fingerprint


def test_on_a_cpu_its_encoder_computes_with_the_kernels_for_cpus(classifier_folder):
    model = load(classifier_folder, pairs=True).model
    assert model.bert.config._attn_implementation == ATTENTION
    assert not [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]


def test_an_ordinary_run_has_no_field_of_pairs_or_logits(shards):
    fields = as_dict(load_manifest(shards).fingerprint).keys()
    assert fields == {
        *("teacher", "teacher_weights", "teacher_config", "special_tokens", "tokenizer", "pooling", "layers"),
        *("normalize", "compute_dtype", "plan", "dim", "vocabulary", "max_tokens", "token_budget", "dtype"),
        *("keep_text", "compression", "corpus_files", "corpus_bytes", "corpus_names", "corpus_content", "format"),
        *("text_field", "splitter", "language", "min_words", "max_words", "shard_rows", "spans", "corpora"),
    }


def test_single_sentences_are_given_no_token_types(classifier_folder, monkeypatch):
    teacher = load(classifier_folder)
    given = []
    forward = type(teacher.model).forward

    def watched(self, **inputs):
        given.append(inputs)
        return forward(self, **inputs)

    monkeypatch.setattr(type(teacher.model), "forward", watched)
    embed(teacher, FIRST[:3])
    assert {name for inputs in given for name in inputs} == {"input_ids", "output_hidden_states"}


def test_a_lost_shard_of_pairs_is_made_again_as_it_was(logits_folder, pairs, classifier_folder, tmp_path):
    folder = shutil.copytree(logits_folder, tmp_path / "out")
    (folder / "shard-00001.arrow").unlink()
    (folder / "shard-00002.json").unlink()
    assert contents(run(pairs, classifier_folder, folder)) == contents(logits_folder)


def test_the_columns_in_the_other_order_are_another_run(logits_folder, pairs, classifier_folder, tmp_path):
    with pytest.raises(UserError, match=r"--text-column \(a,b there, b,a here\)"):
        run(pairs, classifier_folder, logits_folder, text_column="b,a")
    other = run(pairs, classifier_folder, tmp_path / "other", text_column="b,a")
    assert read_logits(other).texts == (SECOND, FIRST)


def test_each_side_of_a_pair_has_to_keep_the_rules(classifier_folder, tmp_path):
    good = "The red cat ran."
    first = [good, " Two\twords ", good, good, "1 2 3 4", good, good]
    second = [good, good, "", "x " * 101, good, "The\told dog\nran again.", "the " * 127]
    out = run(write_pairs(tmp_path / "pairs.jsonl", first, second), classifier_folder, tmp_path / "out")
    assert read_logits(out).texts == ([good, good], [good, "The old dog ran again."])
    listed = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(line["record"], line["reason"]) for line in listed] == [
        *((2, "too few words"), (3, "empty"), (4, "too many words"), (5, "no letters"), (7, "too many words")),
    ]
    assert listed[0]["text"] == f"Two words\t{good}"
    assert verify_folder(out, lambda n: None) == []


def test_tokens_of_both_sides_and_between_them_count_together(classifier_folder, tmp_path):
    first, second = ["the red cat ran", "the red cat"], ["the old dog ran", "the dog saw"]
    corpus = write_pairs(tmp_path / "pairs.jsonl", first, second)
    out = run(corpus, classifier_folder, tmp_path / "out", max_tokens=7)
    assert read_logits(out).texts == (["the red cat"], ["the dog saw"])
    assert load_manifest(out).totals.rejected == {"too many tokens": 1}


def test_the_separator_in_text_is_text_and_the_mask_stays_the_mask(classifier_folder, tmp_path):
    first = ["the cat [SEP] ran home", "the [MASK] saw the [MASK]", "the old cat[SEP]", "the [[SEP]SEP] ran"]
    second = ["the old dog ran", "the [MASK] is red", "[SEP] [CLS] a cat ran", "the dog ran off"]
    out = run(write_pairs(tmp_path / "pairs.jsonl", first, second), classifier_folder, tmp_path / "out")
    assert read_logits(out).texts == (first, second)
    tokenizer = AutoTokenizer.from_pretrained(classifier_folder)
    shard = Shard.open(out / "shard-00000.arrow")
    for row, sides in enumerate(zip(first, second, strict=True)):
        ids = shard.tokens[row].tolist()
        place = ids.index(tokenizer.sep_token_id)
        assert ids.count(tokenizer.sep_token_id) == 1
        masks = [part.count(tokenizer.mask_token_id) for part in (ids[:place], ids[place + 1 :])]
        assert masks == [side.count("[MASK]") for side in sides]
    expected = reference(classifier_folder, [first[1]], [second[1]])
    np.testing.assert_allclose(shard.embeddings[1:2], expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pairs_have_embeddings_too(teacher_folder, pooling):
    teacher = load(teacher_folder, pooling=pooling, pairs=True)
    got = embed(teacher, [f"{x}\t{y}" for x, y in zip(FIRST, SECOND, strict=True)])
    tokenizer, model = AutoTokenizer.from_pretrained(teacher_folder), AutoModel.from_pretrained(teacher_folder).eval()
    for row in (0, 17, 59):
        inputs = tokenizer(FIRST[row], SECOND[row], return_token_type_ids=True, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0]
        np.testing.assert_allclose(got[row], states[0] if pooling == "cls" else states.mean(0), atol=1e-5)


def save_small(model, config, folder, **options):
    """Save a small classifier of another architecture."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model(config(num_labels=2, initializer_range=0.2, pad_token_id=0, **shape, **options)).save_pretrained(folder)


def test_a_pair_for_roberta_has_its_two_separators_between(tmp_path, teacher_folder):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.backend_tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save_pretrained(tmp_path)
    save_small(RobertaForSequenceClassification, RobertaConfig, tmp_path, vocab_size=len(tokenizer), type_vocab_size=1)
    teacher = load(tmp_path, pairs=True)
    assert teacher.separator == [3, 3]
    got = embed(teacher, [f"{x}\t{y}" for x, y in zip(FIRST, SECOND, strict=True)])
    np.testing.assert_allclose(got, reference(tmp_path, FIRST, SECOND), atol=1e-5)


def test_a_pair_that_tokens_can_not_tell_apart_has_none():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "|": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    got = tokenize_pairs(TextTokenizer(tokenizer.to_str()), ["a\ta", "\ta", "a\t ", "a | a\ta"], [1])
    assert [got[row].tolist() for row in range(4)] == [[0, 1, 0], [], [], []]


def without_weights(folder, start):
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith(start)}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("start", ["classifier", "bert.pooler", "bert.encoder.layer.1"])
def test_weights_that_the_head_needs_are_not_made_up(classifier_folder, tmp_path, start):
    folder = shutil.copytree(classifier_folder, tmp_path / "gaps")
    without_weights(folder, start)
    with pytest.raises(UserError, match=rf"weights lack {start}"):
        load(folder)


def test_a_pooler_that_belongs_to_the_head_is_used_and_not_made_up(teacher_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.save_pretrained(tmp_path)
    save_small(DebertaV2ForSequenceClassification, DebertaV2Config, tmp_path, vocab_size=len(tokenizer))
    np.testing.assert_allclose(embed(load(tmp_path), FIRST), reference(tmp_path, FIRST), atol=1e-5)
    without_weights(tmp_path, "pooler")
    with pytest.raises(UserError, match="weights lack pooler"):
        load(tmp_path)


def test_a_head_of_another_size_than_the_configuration_s_is_an_error(classifier_folder, tmp_path):
    folder = shutil.copytree(classifier_folder, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    names = {str(number): f"L{number}" for number in range(5)}
    config |= {"id2label": names, "label2id": {name: int(number) for number, name in names.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="can't be used"):
        load(folder)


def test_a_tokenizer_without_a_template_for_pairs_is_an_error(teacher_folder, tmp_path):
    folder = shutil.copytree(teacher_folder, tmp_path / "single")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    pair = tokenizer["post_processor"]["pair"]
    tokenizer["post_processor"]["pair"] = [part for part in pair if "Sequence" in part]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert load(folder).separator == []
    with pytest.raises(UserError, match="takes no pairs"):
        load(folder, pairs=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pooling", "logits"], "has no classification head"),
        (["--text-column", "a,b"], "read as text, which has no columns"),
        (["--text-column", "a,b,c"], "name one column, or two"),
    ],
)
def test_what_a_plain_encoder_or_corpus_lacks_is_one_line_of_error(sd, arguments, tmp_path, capsys, options, message):
    arguments = arguments[: arguments.index("--pooling")]
    assert sd(*arguments, *options, "--out", tmp_path / "out") == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_logits_come_from_the_last_layer_only(classifier_folder):
    assert load(classifier_folder, layers=(2,)).dim == 3
    with pytest.raises(UserError, match="last layer only"):
        load(classifier_folder, layers=(1, 2))


def test_the_command_writes_logits_of_pairs_that_it_does_not_split(sd, classifier_folder, tmp_path, capsys):
    second = [f"{a} {b}" for a, b in zip(SECOND, FIRST, strict=True)]
    corpus = write_pairs(tmp_path / "pairs.tsv", FIRST, second)
    command = ("embed", "--corpus", corpus, "--teacher", classifier_folder, "--text-column", "a,b", "--out")
    assert sd(*command, tmp_path / "out") == 0
    assert "next: sd finetune STUDENT --task NAME --logits" in capsys.readouterr().out
    assert read_logits(tmp_path / "out").texts == (FIRST, second)
    assert load_manifest(tmp_path / "out").fingerprint.dtype == "float32"
    assert sd("shards", "verify", tmp_path / "out") == 0
    assert sd("shards", tmp_path / "out") == 0
    assert "pooling logits, layers 2; 3 x float32" in capsys.readouterr().out
    assert sd(*command, tmp_path / "half", "--dtype", "float16", "--device", "cpu") == 0
    assert Shard.open(tmp_path / "half" / "shard-00000.arrow").embeddings.dtype == np.float16


def test_a_student_without_a_task_refuses_logits_and_pairs_and_says_where_they_go(
    sd, logits_folder, pairs, teacher_folder, tmp_path, capsys
):
    for folder, message in (
        (logits_folder, f"sd finetune STUDENT --task NAME --logits {logits_folder}"),
        (run(pairs, teacher_folder, tmp_path / "pairs"), "sd embed with one --text-column"),
    ):
        assert sd("train-student", "--shards", folder, "--out", tmp_path / "student") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert not (tmp_path / "student").exists()


def test_a_reader_of_logits_refuses_what_holds_none(logits_folder, shards, tmp_path):
    with pytest.raises(UserError, match="holds sentence embeddings"):
        read_logits(shards)
    with pytest.raises(UserError, match="no folder"):
        read_logits(tmp_path / "nowhere")
    folder = shutil.copytree(logits_folder, tmp_path / "damaged")
    content = bytearray((folder / "shard-00002.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "shard-00002.arrow").write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00002\.arrow does not match its checksum"):
        read_logits(folder)


def test_logits_without_their_text_are_refused_by_their_reader(sd, classifier_folder, corpus_file, tmp_path):
    command = ("embed", "--corpus", corpus_file, "--teacher", classifier_folder, "--no-text")
    assert sd(*command, "--out", tmp_path / "out") == 0
    with pytest.raises(UserError, match="has no text"):
        read_logits(tmp_path / "out")


def test_vectors_of_layers_and_logits_come_out_of_one_pass(sd, classifier_folder, tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES))
    options = {"text_column": "text", "layers": (1, 2), "dtype": "float32"}
    both = run(corpus, classifier_folder, tmp_path / "both", pooling="mean+logits", **options)
    alone = run(corpus, classifier_folder, tmp_path / "alone", pooling="mean", **options)
    logits = read_logits(both)
    assert logits.texts == (SENTENCES,)
    np.testing.assert_allclose(logits.logits, reference(classifier_folder, SENTENCES), atol=1e-5)
    for path in sorted(alone.glob("shard-*.arrow")):
        found, expected = Shard.open(both / path.name), Shard.open(path)
        np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-5)
        assert found.logits.dtype == np.float32
        assert expected.logits is None
    fingerprint = load_manifest(both).fingerprint
    assert (fingerprint.pooling, fingerprint.dim, len(fingerprint.labels)) == ("mean", 64, 3)
    assert verify_folder(both, lambda n: None) == []
    train = ("train-student", "--embedding-dim", "8", "--hidden", "8", "--epochs", "1", "--out", tmp_path / "student")
    assert sd(*train, "--shards", both) == 0
    with pytest.raises(UserError, match="labels"):
        run(corpus, classifier_folder, both, pooling="mean", **options)


def test_logits_besides_vectors_need_a_head_and_come_last(classifier_folder, teacher_folder):
    with pytest.raises(UserError, match=r"--pooling mean\+logits: the teacher has no classification head"):
        load(teacher_folder, pooling="mean+logits")
    assert parse_pooling("mean+max+logits") == "mean+max+logits"
    with pytest.raises(ValueError, match="logits can also come last"):
        parse_pooling("logits+mean")
    with pytest.raises(ValueError, match="none of"):
        parse_pooling("pooler+logits")
    assert load(classifier_folder, pooling="max+logits").dim == 32
