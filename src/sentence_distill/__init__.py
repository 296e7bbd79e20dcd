"""Distil a BERT sentence encoder into a small BiLSTM, without choosing a task first."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sentence_distill.student.evaluate import evaluate
    from sentence_distill.student.model import Student
    from sentence_distill.student.predict import Classifier

__version__ = version("sentence-distill")
__all__ = ["Classifier", "Student", "__version__", "evaluate"]


def __getattr__(name: str) -> Any:
    # PyTorch takes most of a second to import, and `sd --help` needs none of it.
    if name == "Student":
        from sentence_distill.student.model import Student

        return Student
    if name == "Classifier":
        from sentence_distill.student.predict import Classifier

        return Classifier
    if name == "evaluate":
        from sentence_distill.student.evaluate import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
