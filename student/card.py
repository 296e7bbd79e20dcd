"""The model card of a student, made from its distillation.json."""

from typing import Any


def model_card(distillation: dict[str, Any]) -> str:
    """README.md of a student's folder."""
    teacher, student = distillation["teacher"], distillation["student"]
    corpus, metrics = distillation["corpus"], distillation["metrics"]
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in _figures(metrics))
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- feature-extraction
- knowledge-distillation
- bilstm
---

# A BiLSTM student of {teacher["teacher"]}

Approximates the sentence embeddings of `{teacher["teacher"]}` (pooling `{teacher["pooling"]}`, layers
{teacher["layers"]}) with {student["layers"]} BiLSTM layer(s) of {student["hidden"]} units a direction over
{student["embedding_dim"]}-dimensional word embeddings; {student["pooling"]} pooling, {student["target_dims"][-1]}
dimensions out{", L2-normalised" if student["normalize"] else ""}. Made with sentence-distill
(arXiv:2004.03097) from {corpus["rows"]:,} sentences.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
vectors = model.encode(["A sentence.", "Another one."])
```

| measure | value |
| --- | ---: |
{rows}

Fidelity is measured on held-out sentences of the same corpus. `distillation.json` holds the whole
configuration. The licences of the teacher and of the corpus apply to what was learned from them.
"""


def _figures(metrics: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    figures: list[tuple[str, float]] = []
    for name, value in metrics.items():
        if isinstance(value, dict):
            figures += _figures(value, f"{prefix}{name} ")
        elif isinstance(value, float):
            figures.append((f"{prefix}{name.replace('_', ' ')}", value))
    return figures
