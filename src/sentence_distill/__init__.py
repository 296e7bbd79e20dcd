"""Distil a BERT sentence encoder into a small BiLSTM, without choosing a task first."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from sentence_distill.pipeline.embed import embed
    from sentence_distill.student.evaluate import evaluate
    from sentence_distill.student.model import Student
    from sentence_distill.student.predict import Classifier
    from sentence_distill.student.train import train_student

__all__ = ["Classifier", "Student", "__version__", "embed", "evaluate", "train_student"]


_PLACES = {
    "Student": "sentence_distill.student.model",
    "Classifier": "sentence_distill.student.predict",
    "embed": "sentence_distill.pipeline.embed",
    "evaluate": "sentence_distill.student.evaluate",
    "train_student": "sentence_distill.student.train",
}


def __getattr__(name: str) -> Any:
    # PyTorch takes most of a second to import, and `sd --help` needs none of it, nor of importlib.metadata.
    if name == "__version__":
        from importlib.metadata import version

        return version("sentence-distill")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
