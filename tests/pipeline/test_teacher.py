import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from sentence_distill.data.errors import UserError
from sentence_distill.data.hub import packaged_teacher
from sentence_distill.pipeline.hardware import PackedLinear, attention, use_cpu_kernels
from sentence_distill.pipeline.load import Located, locate_teacher
from sentence_distill.pipeline.teacher import Teacher
from tests.conftest import make_sentences

CPU = torch.device("cpu")


def load(folder, **options):
    options = {"device": CPU, "dtype": torch.float32, **options}
    return Teacher(Located(folder, "tiny"), **options)


def embed(teacher, sentences, budget=256):
    return teacher.embed(teacher.tokenize(sentences), budget)


def reference(folder, sentences, layer, pooling):
    """The same, from transformers' own padded and masked batch."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    if pooling == "pooler":
        return output.pooler_output.numpy()
    states, mask = output.hidden_states[layer], inputs["attention_mask"][:, :, None].bool()
    if pooling == "cls":
        return states[:, 0].numpy()
    if pooling == "max":
        return states.masked_fill(~mask, -torch.inf).amax(1).numpy()
    return ((states * mask).sum(1) / mask.sum(1)).numpy()


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "pooler"])
def test_exact_length_batches_give_what_padded_ones_give(teacher_folder, pooling):
    sentences = make_sentences(40)
    expected = reference(teacher_folder, sentences, -1, pooling)
    np.testing.assert_allclose(embed(load(teacher_folder, pooling=pooling), sentences), expected, atol=1e-5)


def test_several_layers_are_pooled_and_concatenated_in_the_order_given(teacher_folder):
    sentences = make_sentences(10)
    got = embed(load(teacher_folder, pooling="mean", layers=(1, -1, 0)), sentences)
    expected = [reference(teacher_folder, sentences, layer, "mean") for layer in (1, 2, 0)]
    np.testing.assert_allclose(got, np.concatenate(expected, axis=1), atol=1e-5)


def test_a_vector_does_not_depend_on_its_batch(teacher_folder):
    teacher, sentences = load(teacher_folder), make_sentences(50)
    together = embed(teacher, sentences, budget=10_000)
    alone = np.concatenate([embed(teacher, [sentence]) for sentence in sentences])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(("layers", "message"), [((3,), "layers 0 to 2"), ((-4,), "layers 0 to 2"), ((2, -1), "twice")])
def test_a_layer_that_is_not_there_is_an_error(teacher_folder, layers, message):
    with pytest.raises(UserError, match=message):
        load(teacher_folder, layers=layers)


def test_weights_in_pickle_are_never_read(teacher_folder, tmp_path):
    folder = shutil.copytree(teacher_folder, tmp_path / "pickled")
    weights = AutoModel.from_pretrained(teacher_folder).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load(folder)


def test_weights_that_are_missing_are_not_made_up(teacher_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(teacher_folder, tmp_path / "gaps")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("encoder.layer.1.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weights lack encoder\.layer\.1"):
        load(folder)


def test_a_checkpoint_without_a_pooler_serves_all_other_poolings(teacher_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(teacher_folder, tmp_path / "mlm")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    sentences = make_sentences(5)
    np.testing.assert_allclose(embed(load(folder), sentences), embed(load(teacher_folder), sentences))
    with pytest.raises(UserError, match="pooler"):
        load(folder, pooling="pooler")


@pytest.mark.parametrize("damage", ["cut weights", "no tokenizer", "broken modules", "too small a table"])
def test_a_folder_that_can_not_be_used_is_an_error(teacher_folder, tmp_path, damage):
    folder = shutil.copytree(teacher_folder, tmp_path / "damaged")
    if damage == "cut weights":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif damage == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
    elif damage == "broken modules":
        (folder / "modules.json").write_text("[{")
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["beyond"])
        tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="can't be"):
        load(folder)


def test_another_number_of_heads_is_another_teacher(teacher_folder, tmp_path):
    folder = shutil.copytree(teacher_folder, tmp_path / "heads")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 8}))
    assert load(folder).facts().fingerprint != load(teacher_folder).facts().fingerprint


def test_a_teacher_that_can_not_be_had_names_both_ways_out():
    with pytest.raises(UserError, match=r"--teacher DIR.*sentence-distill\[offline\]"):
        locate_teacher("no-such/model")


@pytest.mark.parametrize(
    "name", [None, "minilm", "MiniLM", "all-MiniLM-L6-v2", "ALL-minilm-l6-V2", "sentence-transformers/all-MiniLM-L6-v2"]
)
def test_the_default_teacher_is_the_packaged_minilm_under_all_its_names(name):
    assert packaged_teacher() is not None, "make test installs the extra `offline`"
    located = locate_teacher(name)
    assert (located.folder, located.name) == (packaged_teacher(), "sentence-transformers/all-MiniLM-L6-v2")


def test_the_packaged_minilm_gives_the_vectors_of_sentence_transformers():
    from sentence_transformers import SentenceTransformer

    located = locate_teacher("minilm")
    sentences = ["A cat sits on the mat.", "Stocks fell sharply on Monday, analysts said.", "Why?"]
    got = embed(Teacher(located, device=CPU, dtype=torch.float32), sentences)
    expected = SentenceTransformer(str(located.folder), device="cpu").encode(sentences)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_bfloat16_stays_close_to_float32():
    sentences = ["A cat sits on the mat.", "Stocks fell sharply on Monday, analysts said."]
    located = locate_teacher("minilm")
    exact, rounded = (
        embed(Teacher(located, device=CPU, dtype=dtype), sentences) for dtype in (torch.float32, torch.bfloat16)
    )
    assert ((exact * rounded).sum(axis=1) > 0.999).all()


def test_what_does_not_fit_into_memory_is_halved_and_later_batches_with_it(teacher_folder, monkeypatch):
    teacher, sentences = load(teacher_folder), make_sentences(60)
    expected, sizes, forward = embed(teacher, sentences, budget=10_000), [], Teacher._forward

    def small_memory(self, batch):
        sizes.append(batch.numel())
        if batch.numel() > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch)

    monkeypatch.setattr(Teacher, "_forward", small_memory)
    np.testing.assert_allclose(embed(teacher, sentences, budget=10_000), expected, atol=1e-6)
    failed = [size for size in sizes if size > 40]
    assert failed
    sizes.clear()
    np.testing.assert_allclose(embed(teacher, sentences, budget=10_000), expected, atol=1e-6)
    assert max(sizes) <= 40


def test_a_sentence_that_does_not_fit_into_memory_is_an_error_that_says_what_to_do(teacher_folder, monkeypatch):
    def no_memory(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    teacher = load(teacher_folder)
    monkeypatch.setattr(Teacher, "_forward", no_memory)
    with pytest.raises(UserError, match="not enough memory for one sentence of"):
        embed(teacher, make_sentences(3))


def test_the_kernels_for_cpus_give_what_pytorch_gives_within_rounding(teacher_folder):
    sentences = make_sentences(80)
    exact = embed(load(teacher_folder), sentences)
    vectors = embed(load(teacher_folder, dtype=torch.bfloat16), sentences)
    plain = AutoModel.from_pretrained(teacher_folder, dtype=torch.bfloat16).eval()
    fast = AutoModel.from_pretrained(teacher_folder, dtype=torch.bfloat16).eval()
    use_cpu_kernels(fast)
    batch = torch.randint(5, 40, (16, 9))
    with torch.inference_mode():
        expected, got = (model(input_ids=batch).last_hidden_state.float() for model in (plain, fast))
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0.05)
    cosines = (exact * vectors).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(vectors, axis=1)
    assert cosines.min() > 0.999


@pytest.mark.parametrize("length", [1, 7, 64])
def test_attention_for_cpus_is_scaled_dot_product_attention(length):
    query, key, value = torch.randn(3, 5, 4, length, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    got, _ = attention(None, query, key, value, None)
    torch.testing.assert_close(got, expected.transpose(1, 2))


def test_a_packed_linear_layer_is_that_linear_layer():
    linear, states = torch.nn.Linear(48, 32), torch.randn(5, 7, 48)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(states), linear(states))
