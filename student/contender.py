"""A model to time, in its own process."""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Encode = Callable[[list[str]], Any]
# All contenders encode the same sentences, and the fast ones again until so much time has passed.
_SECONDS = 0.2
_SINGLE_CALLS = 64
_FEWEST_SENTENCES = 128
# No longer than this: of slow contenders fewer sentences stand for the rest. A call that would take longer is left out.
LONGEST_S = 5.0


def load(spec: dict[str, Any]) -> Encode:
    """The contender as a function from sentences to vectors."""
    loader = {
        "sd": _teacher if spec["teacher"] else _student,
        "SentenceTransformer": _sentence_transformer,
        "ONNX Runtime": _onnx,
        "model2vec": _static,
        "scikit-learn": _tf_idf,
    }[spec["runner"]]
    return loader(spec, Path(spec["folder"]))


def _student(spec: dict[str, Any], folder: Path) -> Encode:
    if spec["precision"] == "int8":
        from sentence_distill.student.onnx_student import OnnxStudent

        return OnnxStudent.of_student(folder, spec["threads"]).encode
    from sentence_distill.student.model import load_student

    student, dtype = load_student(folder), _dtype(spec)
    return lambda sentences: student.encode(sentences, dtype)


def _teacher(spec: dict[str, Any], folder: Path) -> Encode:
    import torch

    from sentence_distill.pipeline.load import Located
    from sentence_distill.pipeline.teacher import Teacher
    from sentence_distill.student.models import teacher_encode

    recipe, cpu = spec["teacher"], torch.device("cpu")
    located = Located(folder, "teacher")
    teacher = Teacher.load(located, pooling=recipe["pooling"], layers=recipe["layers"], device=cpu, dtype=_dtype(spec))
    return teacher_encode(teacher, recipe["token_budget"])


def _sentence_transformer(spec: dict[str, Any], folder: Path) -> Encode:
    from sentence_distill.pipeline.load import Located
    from sentence_distill.student.models import load_sentence_transformer

    if spec["teacher"] and not (folder / "modules.json").exists():
        model = _pooled(folder, spec["teacher"]["pooling"])
    else:
        model = load_sentence_transformer(Located(folder, spec["model"]))
    model = model.to(_dtype(spec))
    return lambda sentences: model.encode(sentences, show_progress_bar=False)


def _pooled(folder: Path, pooling: str) -> Any:
    """A plain transformer, pooled as it was for the student."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    transformer = Transformer(str(folder), model_kwargs={"use_safetensors": True})
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling)]
    return SentenceTransformer(modules=modules, device="cpu")


def _onnx(spec: dict[str, Any], folder: Path) -> Encode:
    """As sentence-transformers does it: batches of 32, longest first, padded."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(512)
    names = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}
    inputs = [node.name for node in session.get_inputs()]

    def encode(sentences: list[str]) -> Any:
        order = sorted(range(len(sentences)), key=lambda row: -len(sentences[row]))
        parts = []
        for first in range(0, len(order), 32):
            batch = tokenizer.encode_batch([sentences[row] for row in order[first : first + 32]])
            feed = {name: np.array([getattr(one, names[name]) for one in batch], dtype=np.int64) for name in inputs}
            parts.append(_pool(session.run(None, feed)[0], feed["attention_mask"], spec["teacher"]["pooling"]))
        vectors = np.concatenate(parts)
        return vectors[np.argsort(order)]

    return encode


def _pool(states: Any, mask: Any, pooling: str) -> Any:
    if pooling == "cls":
        return states[:, 0]
    inside = mask[:, :, None].astype(states.dtype)
    if pooling == "max":
        return (states + (inside - 1) * 1e9).max(axis=1)
    return (states * inside).sum(axis=1) / inside.sum(axis=1)


def _static(spec: dict[str, Any], folder: Path) -> Encode:
    from model2vec import StaticModel

    encode: Encode = StaticModel.from_pretrained(str(folder)).encode
    return encode


def _tf_idf(spec: dict[str, Any], folder: Path) -> Encode:
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    fitted = json.loads((folder / "tf-idf.json").read_text(encoding="utf-8"))
    vectorizer = TfidfVectorizer(sublinear_tf=True, vocabulary=fitted["vocabulary"])
    vectorizer.idf_ = np.array(fitted["idf"])
    encode: Encode = vectorizer.transform
    return encode


def _dtype(spec: dict[str, Any]) -> Any:
    import torch

    return torch.bfloat16 if spec["precision"] == "bf16" else torch.float32


def one_round(encode: Encode, texts: dict[str, Any], number: int) -> dict[str, Any]:
    """Measure once: single sentences, then each batch size, then each length.

    Args:
        encode: the contender.
        texts: "sentences", "batch_sizes" in ascending order, and "by_length": texts by their number of tokens.
        number: of the round; others take other sentences.

    Returns:
        "latency_ms" of each call with one sentence, and sentences a second "by_batch" and "by_length".
    """
    sentences = texts["sentences"]
    by_batch: dict[str, float] = {}
    latency = _times(encode, _calls(sentences, 1, _SINGLE_CALLS, number))
    rate = len(latency) / sum(latency)
    for size in texts["batch_sizes"]:
        if size / rate > LONGEST_S:
            break
        if size > 1:
            times = _times(encode, _calls(sentences, size, -(-_FEWEST_SENTENCES // size), number))
            rate = size * len(times) / sum(times)
        by_batch[str(size)] = rate
    by_length: dict[str, float] = {}
    seconds_a_token = 0.0
    for length, cut in texts["by_length"].items():
        if seconds_a_token * int(length) * len(cut) > LONGEST_S:
            break
        times = _times(encode, [cut])
        by_length[length] = len(cut) * len(times) / sum(times)
        seconds_a_token = 1 / by_length[length] / int(length)
    return {"latency_ms": [1000 * seconds for seconds in latency], "by_batch": by_batch, "by_length": by_length}


def _calls(sentences: list[str], size: int, count: int, number: int) -> list[list[str]]:
    """A round's calls, `count` of `size` sentences each."""
    places = range(number * size * count, (number + 1) * size * count)
    round_of = [sentences[place % len(sentences)] for place in places]
    return [round_of[first : first + size] for first in range(0, size * count, size)]


def _times(encode: Encode, calls: list[list[str]]) -> list[float]:
    """Seconds of each call; whole passes over them, until they are long enough to tell."""
    times: list[float] = []
    spent = 0.0
    while spent < _SECONDS:
        for call in calls:
            started = time.perf_counter()
            encode(call)
            times.append(time.perf_counter() - started)
            spent += times[-1]
            if spent > LONGEST_S:
                return times
    return times


def spearman(encode: Encode, pairs: dict[str, Any]) -> float:
    """Spearman correlation of "scores" with the cosines of the vectors of "first" and "second"; 0 of equal ones."""
    import numpy as np
    from sklearn.preprocessing import normalize

    from sentence_distill.student.metrics import task_metrics

    # Many sentences stand in several pairs.
    texts = list(dict.fromkeys(pairs["first"] + pairs["second"]))
    vectors, places = normalize(encode(texts)), {text: place for place, text in enumerate(texts)}
    first, second = (vectors[[places[text] for text in pairs[side]]] for side in ("first", "second"))
    product = first.multiply(second) if hasattr(first, "multiply") else first * second
    cosines = np.asarray(product.sum(axis=1)).ravel()
    return task_metrics(("spearman",), np.array(pairs["scores"]), cosines)["spearman"]


def peak_megabytes() -> float:
    """Most memory that this process has had (resident)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    except (OSError, StopIteration):
        # Where there is no /proc; on Linux this would count the process that started this one too.
        unit = 1e6 if sys.platform == "darwin" else 1e6 / 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Load, say so, and answer until standard input ends."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    spec = json.loads(sys.argv[1])
    encode = load(spec)
    print(json.dumps({"dim": encode(["One sentence to begin with."]).shape[1]}), file=answers)
    texts: dict[str, Any] = json.loads(Path(spec["texts"]).read_text(encoding="utf-8"))
    for line in sys.stdin:
        asked = json.loads(line)
        if asked == "spearman":
            answer: Any = spearman(encode, texts["pairs"])
        else:
            answer = {**one_round(encode, texts, asked), "peak_megabytes": peak_megabytes()}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
