"""One contender of embed_speed.py in its own process: load, encode once, and print the costs as JSON.

usage: python embed_contender.py --name NAME TEACHER_FOLDER SENTENCES.txt VECTORS.npy WORKDIR [--batch-size N]

NAME is sd-bf16, sd-fp32, st, st-bf16, onnx-fp32, onnx-int8, openvino-fp32, openvino-bf16 or openvino-int8; the last
five need an environment with peers-requirements.txt. Converted models are kept in WORKDIR.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[list[str]], np.ndarray]
_PACKAGES = (
    *("sentence-distill", "sentence-transformers", "transformers", "torch"),
    *("onnxruntime", "openvino", "nncf", "model2vec"),
)
_CALIBRATION_SENTENCES = 300


def load(name: str, folder: Path, workdir: Path, batch_size: int) -> Encode:
    """Load a contender as a function from sentences to vectors."""
    kind, _, precision = name.partition("-")
    if kind == "sd":
        import torch

        from sentence_distill.pipeline.load import Located
        from sentence_distill.pipeline.teacher import Teacher

        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        teacher = Teacher(Located(folder, "teacher"), device=torch.device("cpu"), dtype=dtype)
        return lambda sentences: teacher.embed(teacher.tokenize(sentences), batch_size)
    from sentence_transformers import SentenceTransformer

    if kind == "st":
        model = SentenceTransformer(str(folder), device="cpu")
    elif kind == "onnx":
        model = _onnx(folder, workdir, quantized=precision == "int8")
    else:
        model = _openvino(folder, workdir, precision)

    def encode(sentences: list[str]) -> np.ndarray:
        import torch

        with torch.autocast("cpu", torch.bfloat16, enabled=name == "st-bf16"):
            return model.encode(sentences, batch_size=batch_size)

    return encode


def _onnx(folder: Path, workdir: Path, quantized: bool) -> Any:
    from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

    target = workdir / "onnx"
    if not target.exists():
        model = SentenceTransformer(str(folder), device="cpu", backend="onnx")
        model.save_pretrained(str(target))
        export_dynamic_quantized_onnx_model(model, "avx512_vnni", str(target))
    file = "onnx/model_qint8_avx512_vnni.onnx" if quantized else "onnx/model.onnx"
    options = {"file_name": file, "provider": "CPUExecutionProvider"}
    return SentenceTransformer(str(target), device="cpu", backend="onnx", model_kwargs=options)


def _openvino(folder: Path, workdir: Path, precision: str) -> Any:
    from sentence_transformers import SentenceTransformer

    # OpenVINO computes in bfloat16 by default if the processor supports it.
    hint = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}[precision]
    options: dict[str, Any] = {"ov_config": {"INFERENCE_PRECISION_HINT": hint}}
    target = workdir / "openvino"
    if not target.exists():
        SentenceTransformer(str(folder), device="cpu", backend="openvino").save_pretrained(str(target))
    if precision == "int8":
        target = _quantized(target, workdir)
    return SentenceTransformer(str(target), device="cpu", backend="openvino", model_kwargs=options)


def _quantized(source: Path, workdir: Path) -> Path:
    """Quantize statically to int8, calibrated on sentences of the benchmark."""
    import shutil

    from datasets import Dataset
    from optimum.intel import OVConfig, OVModelForFeatureExtraction, OVQuantizationConfig, OVQuantizer
    from transformers import AutoTokenizer

    target = workdir / "openvino-int8"
    if not target.exists():
        lines = (workdir / "sentences.txt").read_text(encoding="utf-8").splitlines()[::7][:_CALIBRATION_SENTENCES]
        tokenizer = AutoTokenizer.from_pretrained(str(source))
        dataset = Dataset.from_list([dict(tokenizer(line, truncation=True, max_length=128)) for line in lines])
        quantizer = OVQuantizer(OVModelForFeatureExtraction.from_pretrained(str(source), subfolder="openvino"))
        shutil.copytree(source, target)
        quantizer.quantize(
            calibration_dataset=dataset,
            save_directory=str(workdir / "openvino-int8-model"),
            ov_config=OVConfig(quantization_config=OVQuantizationConfig()),
        )
        for part in (workdir / "openvino-int8-model").glob("openvino_model.*"):
            shutil.copy(part, target / "openvino" / part.name)
    return target


def installed_versions() -> dict[str, str]:
    """Return the versions of the installed packages that encode."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def measured(encode: Encode, sentences: list[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """Encode after a warmup call; return vectors and costs: seconds, peak memory, versions."""
    encode(sentences[:64])
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    vectors = encode(sentences)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures = {"wall_s": wall, "user_sys_s": cpu, "peak_mb": after.ru_maxrss / 1024, "versions": installed_versions()}
    return vectors, figures


def main() -> None:
    """Encode once and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for argument in ("folder", "sentences", "vectors", "workdir"):
        parser.add_argument(argument, type=Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--name", required=True)
    options = parser.parse_args()
    sentences = options.sentences.read_text(encoding="utf-8").splitlines()
    encode = load(options.name, options.folder, options.workdir, options.batch_size)
    vectors, figures = measured(encode, sentences)
    np.save(options.vectors, vectors.astype(np.float32))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
