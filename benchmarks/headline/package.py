"""Add a student to the package: its weights in float16, its record, and a card with its figures and license notes.

usage: python benchmarks/headline/package.py STUDENT [--name minilm-small] [--glue GLUE_JSON]

The figures are those in STUDENT's folder. Run sd export --format folder --float16 and sd eval before, so that they are
those of the packaged weights.
"""

import argparse
import shutil
from pathlib import Path

from sentence_distill.student.card import model_card
from sentence_distill.student.figures import GlueFigures, load_distillation, read_figures
from sentence_distill.student.files import CARD
from sentence_distill.student.model import update_distillation
from sentence_distill.student.push import prepare_upload
from sentence_distill.student.reduce import halve_weights

PRETRAINED = Path(__file__).parents[2] / "student" / "pretrained"
USAGE = """## How to use it

It ships with sentence-distill, so nothing is downloaded:

```python
from sentence_distill import Student

vectors = Student.load("NAME").encode(["A sentence.", "Another one."])
```

To encode a file: `sd encode --student NAME --input FILE --out FILE`. For sentence-transformers, copy it first with
`sd export NAME --format folder --float16 --out FOLDER`, then load `SentenceTransformer("FOLDER")`.

"""
GLUE = "GLUE was measured before the weights were rounded to float16.\n\n"
LICENCE = """
No text of the corpus is part of the weights. The teacher's weights are Apache-2.0. The corpus is English Wikipedia,
whose text is under CC BY-SA; chitchat-dataset, MIT; the sentences of MNLI, whose text is free to use, and of SQuAD, CC
BY-SA; and text that was made from these by rule.
"""


def main() -> None:
    """Write the folder of the packaged student."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", type=Path)
    parser.add_argument("--name", default="minilm-small")
    parser.add_argument("--glue", type=Path, help="glue.json of the student before it was rounded")
    options = parser.parse_args()
    upload = prepare_upload(options.student, f"sentence-distill/{options.name}")
    # Everything is read before anything is written: the student may be the packaged one, whose card is regenerated.
    files = {path: found if isinstance(found, bytes) else found.read_bytes() for path, found in upload.files.items()}
    folder = PRETRAINED / options.name
    shutil.rmtree(folder, ignore_errors=True)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    halve_weights(folder)
    update_distillation(folder, licence="apache-2.0")
    glue = read_figures(options.glue, GlueFigures) if options.glue else None
    card = model_card(load_distillation(folder), name=options.name, glue=glue)
    before, _, rest = card.partition("## How to use it")
    scores, made, origin = rest[rest.index("## What it scores") :].partition("## How it was made")
    after = scores + (GLUE if glue else "") + made + origin + LICENCE
    (folder / CARD).write_text(before + USAGE.replace("NAME", options.name) + after, encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
