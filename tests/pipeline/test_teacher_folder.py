"""A teacher's folder against `SentenceTransformer(folder).encode`: one rule of its configuration a test."""

import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, Pooling
from tokenizers import normalizers, processors
from transformers import (
    AutoTokenizer,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetModel,
)

from sentence_distill.data.errors import UserError
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.pipeline.load import Located
from sentence_distill.pipeline.teacher import Teacher
from sentence_distill.student.figures import load_distillation
from sentence_distill.student.models import open_teacher
from tests.conftest import WORDS, make_sentences

SENTENCES = [*make_sentences(30), "the", "THE Red CAT saw the Queen", "2 of the (old) trees."]
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def load(folder, **options):
    return Teacher(Located(folder, "tiny"), device=torch.device("cpu"), dtype=torch.float32, **options)


def embed(teacher, sentences=SENTENCES):
    return teacher.embed(teacher.tokenize(sentences), 256)


def assert_same(folder):
    """The teacher gives what sentence-transformers gives; return it."""
    teacher = load(folder)
    expected = SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(SENTENCES)
    np.testing.assert_allclose(embed(teacher), expected, atol=2e-6, rtol=1e-5)
    assert teacher.dim == teacher.facts().dim == expected.shape[1]
    return teacher


def edit(file, **fields):
    """Set fields of a JSON file, which may be missing; None removes one."""
    content = {**(json.loads(file.read_text()) if file.exists() else {}), **fields}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def saved(folder, *modules, **options):
    SentenceTransformer(modules=list(modules), device="cpu", **options).save_pretrained(str(folder))
    return folder


@pytest.fixture
def folder(teacher_folder, tmp_path):
    """The small BERT as a sentence-transformers model that pools the mean."""
    return saved(tmp_path / "model", Transformer(str(teacher_folder)), Pooling(32, "mean"))


@pytest.fixture
def cased(folder):
    """The same with a tokenizer that does not lowercase."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_the_transformer_may_lie_in_a_folder_of_its_own(folder):
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "0_Transformer").mkdir()
    for file in [file for file in folder.iterdir() if file.is_file() and "sentence_transformers" not in file.name]:
        if file.name != "modules.json":
            file.rename(folder / "0_Transformer" / file.name)
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    teacher = assert_same(folder)
    assert len(teacher.facts().fingerprint.teacher_weights) == 1


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_settings_are_read_under_all_their_names(cased, kind):
    (cased / "sentence_bert_config.json").unlink()
    edit(cased / f"sentence_{kind}_config.json", max_seq_length=40, do_lower_case=True)
    assert assert_same(cased).max_tokens == 38


@pytest.mark.parametrize("normalizer", ["none", "bert", "bert that lowercases", "several", "lowercase"])
def test_lowercasing_is_part_of_the_tokenizer_that_the_student_gets(folder, normalizer):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.normalizer = {
        "none": None,
        "bert": normalizers.BertNormalizer(lowercase=False),
        "bert that lowercases": normalizers.BertNormalizer(lowercase=True),
        "several": normalizers.Sequence([normalizers.NFC(), normalizers.Strip()]),
        "lowercase": normalizers.Lowercase(),
    }[normalizer]
    tokenizer.save_pretrained(folder)
    edit(folder / "sentence_bert_config.json", do_lower_case=True)
    teacher = assert_same(folder)
    student = TextTokenizer(teacher.facts().tokenizer_json)
    assert student.tokenize(["THE Red CAT"])[0].tolist() == teacher.tokenize(["the red cat"])[0].tolist()
    assert teacher.tokenizer.vocabulary()["[UNK]"] not in student.tokenize(["THE Red CAT"])[0]


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 158),
        ({"max_seq_length": 30}, 28),
        ({"max_seq_length": 500}, 158),
        ({"processor_kwargs": {"model_max_length": 20}, "max_seq_length": 30}, 18),
        ({"tokenizer_args": {"model_max_length": 20}}, 18),
        ({"processing_kwargs": {"text": {"max_length": 25, "truncation": True}}}, 23),
    ],
)
def test_the_length_is_what_sentence_transformers_cuts_to(folder, settings, most):
    edit(folder / "sentence_bert_config.json", **settings)
    assert assert_same(folder).max_tokens == most


def test_a_tokenizer_may_cut_before_the_model_ends(folder):
    edit(folder / "tokenizer_config.json", model_max_length=32)
    assert assert_same(folder).max_tokens == 30


def test_fields_that_change_nothing_are_taken(folder):
    edit(
        folder / "sentence_bert_config.json",
        unpad_inputs=False,
        query_length=12,
        document_length=20,
        processing_kwargs={"text": {"padding": True, "pad_to_multiple_of": 8}, "image": {"size": 4}},
        model_kwargs={"attn_implementation": "eager", "trust_remote_code": True},
    )
    edit(folder / "config_sentence_transformers.json", similarity_fn_name="dot", prompts={"query": "the "})
    assert_same(folder)


@pytest.mark.parametrize("name", ["config_kwargs", "config_args"])
def test_a_field_of_the_configuration_may_be_replaced(folder, name):
    before = load(folder)
    edit(folder / "sentence_bert_config.json", **{name: {"hidden_act": "relu"}})
    after = assert_same(folder)
    assert before.facts().fingerprint.teacher_config != after.facts().fingerprint.teacher_config


@pytest.mark.parametrize("modes", [*MODES, ["mean", "cls"], ["max", "lasttoken", "weightedmean"]])
def test_poolings_as_they_are_saved_today(folder, modes):
    edit(folder / "1_Pooling" / "config.json", pooling_mode=modes)
    teacher = assert_same(folder)
    assert teacher.facts().fingerprint.modules is None
    again = load(folder, pooling=teacher.facts().fingerprint.pooling)
    np.testing.assert_array_equal(embed(teacher), embed(again))


@pytest.mark.parametrize("chosen", [(), (2,), (0, 1, 2, 3, 4, 5), (3, 0)])
def test_poolings_as_they_were_saved_before(folder, chosen):
    names = ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
    flags = {f"pooling_mode_{name}": place in chosen for place, name in enumerate(names)}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **flags}))
    assert assert_same(folder).dim == 32 * max(1, len(chosen))


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("modes", [["mean"], MODES])
def test_a_default_prompt_is_put_before_every_sentence(folder, modes, include):
    plain = embed(load(folder))
    edit(folder / "1_Pooling" / "config.json", pooling_mode=modes, include_prompt=include)
    prompts = {"query": "the old river: ", "document": "a "}
    edit(folder / "config_sentence_transformers.json", prompts=prompts, default_prompt_name="query")
    teacher = assert_same(folder)
    facts = teacher.facts()
    assert facts.fingerprint.prompt == "the old river: "
    assert "prompt 'the old river: '" in str(facts)
    assert facts.max_tokens == 158 - 4
    if modes == ["mean"]:
        assert np.abs(embed(teacher) - plain).max() > 1e-3


def test_a_prompt_that_runs_into_the_sentence_is_refused(folder):
    edit(folder / "config_sentence_transformers.json", prompts={"query": "re"}, default_prompt_name="query")
    with pytest.raises(UserError, match=r"prompt 're'.*set default_prompt_name.*to null"):
        load(folder)


def dense(inputs, outputs, **options):
    torch.manual_seed(inputs + outputs)
    return Dense(inputs, outputs, **options)


@pytest.mark.parametrize(
    "after",
    [
        [Normalize()],
        [dense(32, 12)],
        [dense(32, 12, bias=False, activation_function=torch.nn.Identity()), Normalize()],
        [Normalize(), dense(32, 12, activation_function=torch.nn.GELU())],
        [Dropout(0.3), dense(32, 48, activation_function=torch.nn.ReLU()), Dropout(0.1), dense(48, 8)],
        [dense(32, 32, use_residual=True), dense(32, 16, use_residual=True), Normalize()],
    ],
)
@pytest.mark.parametrize("truncate_dim", [None, 6])
def test_modules_after_pooling_in_their_order(teacher_folder, tmp_path, after, truncate_dim):
    model = [Transformer(str(teacher_folder)), Pooling(32, "mean"), *after]
    folder = saved(tmp_path / "model", *model, truncate_dim=truncate_dim)
    teacher = assert_same(folder)
    lengths = np.linalg.norm(embed(teacher), axis=1)
    # A student's vectors get length 1 if the teacher's have it.
    assert teacher.recipe.normalize == bool(np.allclose(lengths, 1, atol=1e-5))
    own = teacher.facts().fingerprint
    assert (own.modules is not None) == (
        len(after) > 1 or after[0].__class__ is not Normalize or truncate_dim is not None
    )


def test_other_weights_of_a_dense_module_are_another_teacher(teacher_folder, tmp_path):
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        modules = [Transformer(str(teacher_folder)), Pooling(32, "mean"), Dense(32, 8)]
        found.append(load(saved(tmp_path / str(seed), *modules)).facts().fingerprint)
    assert found[0] != found[1]


@pytest.mark.parametrize("options", [{"pooling": "max"}, {"layers": (1,)}])
def test_a_named_pooling_or_layer_takes_the_transformers_own_states_and_says_what_that_leaves_out(
    teacher_folder, tmp_path, options
):
    transformer, modules = Transformer(str(teacher_folder)), [Dense(32, 8), Normalize()]
    own = load(saved(tmp_path / "own", transformer, Pooling(32, "mean"), *modules, truncate_dim=4), **options)
    plain = load(saved(tmp_path / "plain", transformer, Pooling(32, "mean"), Normalize()), **options)
    np.testing.assert_array_equal(embed(own), embed(plain))
    assert str(own.facts()).endswith("; left out for --pooling or --layers: Dense; truncate_dim 4")
    assert "left out" not in str(plain.facts())


def tiny(model, config, template, special, folder, teacher_folder):
    """A small model of another kind with the small BERT's words, whose `template` puts special tokens around them."""
    torch.manual_seed(0)
    model(config).eval().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    tokenizer.save_pretrained(folder)
    return folder


VOCABULARY = 7 + len(WORDS)
T5 = T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0)
XLNET = XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=48, pad_token_id=0)
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ROBERTA = RobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=34, pad_token_id=1, **SHAPE)


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize(
    ("model", "config", "template", "most"),
    [
        (T5EncoderModel, T5, "$A [SEP]", None),
        (T5ForConditionalGeneration, T5, "$A [SEP]", None),
        (XLNetModel, XLNET, "$A [SEP] [CLS]:2", None),
        (RobertaModel, ROBERTA, "[CLS] $A [SEP]", 30),
    ],
)
def test_other_kinds_of_transformers(teacher_folder, tmp_path, model, config, template, most, pooling):
    special = [("[CLS]", 2), ("[SEP]", 3)]
    plain = tiny(model, config, template, special, tmp_path / "plain", teacher_folder)
    # sentence-transformers takes the encoder alone of an encoder-decoder.
    folder = saved(tmp_path / "model", Transformer(str(plain)), Pooling(32, pooling))
    if model is T5ForConditionalGeneration:
        shutil.copy(plain / "model.safetensors", folder / "model.safetensors")
        shutil.copy(plain / "config.json", folder / "config.json")
    teacher = assert_same(folder)
    assert teacher.max_tokens == most if most else teacher.max_tokens > 10**9
    if pooling == "mean":
        assert_same(plain)


REFUSED = {
    "transformer_task fill-mask": ("sentence_bert_config.json", {"transformer_task": "fill-mask"}),
    "modality_config message": (
        "sentence_bert_config.json",
        {"modality_config": {"message": {"method": "forward", "method_output_name": "last_hidden_state"}}},
    ),
    "modality_config text .*pooler_output": (
        "sentence_bert_config.json",
        {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
    ),
    "module_output_name sentence_embedding": (
        "sentence_bert_config.json",
        {"module_output_name": "sentence_embedding"},
    ),
    "model_kwargs num_hidden_layers": ("sentence_bert_config.json", {"model_args": {"num_hidden_layers": 1}}),
    r"processing_kwargs text\.add_special_tokens": (
        "sentence_bert_config.json",
        {"processing_kwargs": {"text": {"add_special_tokens": False}}},
    ),
    "tokenizer_name_or_path": ("sentence_bert_config.json", {"tokenizer_name_or_path": "bert-base-cased"}),
    "a_new_field": ("sentence_bert_config.json", {"a_new_field": 1}),
    "pooling attention": ("1_Pooling/config.json", {"pooling_mode": ["mean", "attention"]}),
    "temperature": ("1_Pooling/config.json", {"temperature": 2}),
    "model_type SparseEncoder": ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}),
    "requirements.*transformers": (
        "config_sentence_transformers.json",
        {"requirements": {"transformers": ">=99"}},
    ),
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_not_applied_is_refused_by_name_with_the_way_out(folder, named):
    file, fields = REFUSED[named]
    edit(folder / file, **fields)
    with pytest.raises(UserError, match=rf"{file}.*{named}.*; --pooling mean takes the transformer's own") as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert load(folder, pooling="mean").recipe.left_out


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["Transformer", "Dense"], "Transformer, Dense"),
        (["Transformer", "Pooling", "LayerNorm"], "LayerNorm"),
        (["Transformer", "Pooling", "Pooling"], "order"),
        (["Transformer", "WordWeights", "Pooling"], "WordWeights"),
        (["custom_st.Transformer", "Pooling"], "custom_st.Transformer"),
    ],
)
def test_other_modules_are_refused_by_name(folder, kinds, message):
    paths = {"Pooling": "1_Pooling", "Dense": "2_Dense"}
    types = [kind if "." in kind else f"sentence_transformers.models.{kind}" for kind in kinds]
    entries = [
        {"idx": number, "name": str(number), "path": paths.get(kind, ""), "type": types[number]}
        for number, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "2_Dense").mkdir()
    edit(folder / "2_Dense" / "config.json", in_features=32, out_features=8)
    with pytest.raises(UserError, match=rf"modules\.json.*{message}.*--pooling mean"):
        load(folder)
    assert load(folder, pooling="mean").recipe.pooling == "mean"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_function": "my_package.Square"}, "activation_function my_package.Square"),
        ({"activation_function": "torch.nn.modules.activation.Softmax"}, "Softmax"),
        ({"module_input_name": "token_embeddings"}, "Dense of .*token_embeddings"),
        ({"in_features": None}, "in_features"),
    ],
)
def test_a_dense_module_that_is_not_applied_is_refused(teacher_folder, tmp_path, fields, message):
    folder = saved(tmp_path / "m", Transformer(str(teacher_folder)), Pooling(32, "mean"), Dense(32, 8))
    edit(folder / "2_Dense" / "config.json", **fields)
    with pytest.raises(UserError, match=rf"2_Dense/config\.json.*{message}.*--pooling mean"):
        load(folder)


@pytest.mark.parametrize("damage", ["pickled", "another shape", "cut"])
def test_weights_of_a_dense_module_come_from_a_whole_safetensors_file(teacher_folder, tmp_path, damage):
    folder = saved(tmp_path / "m", Transformer(str(teacher_folder)), Pooling(32, "mean"), Dense(32, 8))
    weights = folder / "2_Dense" / "model.safetensors"
    if damage == "pickled":
        weights.rename(folder / "2_Dense" / "pytorch_model.bin")
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        edit(folder / "2_Dense" / "config.json", out_features=9)
    with pytest.raises(UserError, match=r"2_Dense/model\.safetensors .*save the model again"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", "{}", "adapters are not applied"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "passage"}', "default_prompt_name 'passage'"),
        ("config_sentence_transformers.json", "[{", "can't be read"),
        ("sentence_bert_config.json", '{"max_seq_length": -1}', "can't be read.*-1"),
        ("sentence_bert_config.json", '{"max_seq_length": 2}', "max_seq_length"),
        ("modules.json", '[{"type": "sentence_transformers.models.Transformer", "path": "../other"}]', "out of the"),
        ("modules.json", '[{"type": "sentence_transformers.models.BoW", "path": ""}]', "BoW is no transformer"),
    ],
)
def test_a_folder_that_can_not_be_read_is_one_line_that_says_where(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_a_plain_transformer_pools_the_mean_with_a_note(teacher_folder, folder):
    teacher = assert_same(teacher_folder)
    assert teacher.recipe.pooling == "mean"
    assert "not seem to be trained for sentence vectors" in teacher.facts().note
    assert "--teacher minilm or mpnet" in teacher.facts().note
    assert not load(folder).facts().note
    assert not load(folder, pooling="cls").facts().note


def test_a_causal_model_pools_its_last_token(teacher_folder, tmp_path):
    folder = shutil.copytree(teacher_folder, tmp_path / "causal")
    edit(folder / "config.json", architectures=["BertForCausalLM"])
    assert assert_same(folder).recipe.pooling == "lasttoken"


def test_a_students_teacher_is_read_again_as_it_was(teacher_folder, corpus_file, sd, tmp_path):
    modules = [Transformer(str(teacher_folder)), Pooling(32, ["mean", "max"]), dense(64, 24), Normalize()]
    prompts = {"prompts": {"query": "the old river: "}, "default_prompt_name": "query"}
    folder = saved(tmp_path / "model", *modules, truncate_dim=16, **prompts)
    edit(folder / "sentence_bert_config.json", max_seq_length=60)
    shards, student = tmp_path / "shards", tmp_path / "student"
    embed_options = ("--corpus", corpus_file, "--teacher", folder, "--shard-rows", "200", "--precision", "fp32")
    assert sd("embed", *embed_options, "--out", shards) == 0
    manifest = json.loads((shards / "manifest.json").read_text())
    assert (manifest["fingerprint"]["max_tokens"], manifest["fingerprint"]["dim"]) == (60 - 2 - 4, 16)
    assert manifest["notice"] == ""
    shape = ("--embedding-dim", "16", "--hidden", "16", "--epochs", "1", "--batch-size", "16", "--held-out", "0.1")
    assert sd("train-student", "--shards", shards, "--out", student, *shape) == 0
    distillation = load_distillation(student)
    found = open_teacher(distillation, str(folder), "teacher").encode(SENTENCES)
    expected = SentenceTransformer(str(folder), device="cpu").encode(SENTENCES)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert found.shape == expected.shape
    assert cosines.min() > 0.99
    edit(folder / "config_sentence_transformers.json", default_prompt_name=None)
    with pytest.raises(UserError, match=r"has changed since the student was distilled.*prompt"):
        open_teacher(distillation, str(folder), "teacher")


def test_sentences_longer_than_the_teacher_reads_are_rejected(folder, corpus_file, sd, tmp_path, capsys):
    edit(folder / "sentence_bert_config.json", max_seq_length=10)
    arguments = ("embed", "--corpus", corpus_file, "--teacher", folder, "--out", tmp_path / "out")
    assert sd(*arguments) == 0
    assert "reads at most 8 tokens; longer sentences are rejected" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["fingerprint"]["max_tokens"] == 8
    assert manifest["totals"]["rejected"]["too many tokens"] > 0
    assert sd(*arguments[:-1], tmp_path / "other", "--max-tokens", "9") == 1
    assert "this teacher reads at most 8" in capsys.readouterr().err
