"""A student as a transformer of scikit-learn, which needs no import of scikit-learn for it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.student.config import StudentConfig
from sentence_distill.student.encoder import StudentEncoder

if TYPE_CHECKING:
    import pandas
    import polars
    from sklearn.utils import Tags

_OUTPUTS = ("default", "pandas", "polars")


def as_texts(texts: Iterable[str], method: str) -> list[str]:
    """Return texts as a list, of whatever they were a list, an array or a column.

    Args:
        texts: n texts.
        method: who was called with them, for messages.

    Raises:
        UserError: it is a table, or something in it is no text.
    """
    # Of a data frame and of a dict the names of the columns would be taken for texts.
    if isinstance(texts, Mapping) or len(getattr(texts, "shape", (0,))) != 1:
        raise UserError(
            f"{method} takes one column of texts, and got a {type(texts).__name__} of another shape; name the "
            'column, as in table["text"] (not [["text"]]), in a ColumnTransformer "text" (not ["text"])'
        )
    listed = list(texts)
    for place, text in enumerate(listed):
        if not isinstance(text, str):
            pair = "; encode the sides of a pair each in a call of its own" if isinstance(text, tuple | list) else ""
            raise UserError(
                f"{method} takes texts, and number {place} is {type(text).__name__}{pair}; give a list of strings or "
                "one column of a table, without missing values"
            )
    return listed


class SklearnTransformer(ABC):
    """Texts to vectors in a Pipeline, a ColumnTransformer or a GridSearchCV.

    It is fitted when it is made: `fit` changes nothing and `clone` gives the same object, as scikit-learn's
    FrozenEstimator does. Equal students have equal pickles, so that a pipeline's `memory` knows them again.
    """

    encoder: StudentEncoder
    tokenizer: TextTokenizer
    backend: str
    _output = "default"

    @property
    @abstractmethod
    def dim(self) -> int:
        """Width of the vectors."""

    @abstractmethod
    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        """Embed sentences: float32[n, dim]."""

    def fit(self, texts: Iterable[str], y: Any = None) -> Self:
        """Do nothing: a student is trained already."""
        return self

    def transform(self, texts: Iterable[str]) -> "np.ndarray | pandas.DataFrame | polars.DataFrame":
        """Embed texts.

        Args:
            texts: n texts: a list, a column of a data frame, or an array of one axis.

        Returns:
            float32[n, dim], or the same as a data frame, see `set_output`.

        Raises:
            UserError: a single text, a table, or something in it is no text.
        """
        if isinstance(texts, str):
            raise UserError("transform takes several texts, and got one: put it into a list")
        return self._as_output(self.encode(as_texts(texts, "transform")), texts)

    def fit_transform(self, texts: Iterable[str], y: Any = None) -> "np.ndarray | pandas.DataFrame | polars.DataFrame":
        """Embed texts, see `transform`."""
        return self.transform(texts)

    def set_output(self, *, transform: str | None = None) -> Self:
        """Choose what `transform` returns, of this student wherever it is used.

        Args:
            transform: "default" for an array, "pandas" or "polars" for a data frame; None changes nothing.

        Raises:
            UserError: it is something else.
        """
        if transform is not None:
            if transform not in _OUTPUTS:
                raise UserError(f"set_output takes transform={', '.join(map(repr, _OUTPUTS))}, not {transform!r}")
            self._output = transform
        return self

    def _as_output(
        self, vectors: np.ndarray, texts: Iterable[str]
    ) -> "np.ndarray | pandas.DataFrame | polars.DataFrame":
        if self._output == "pandas":
            import pandas

            index = texts.index if isinstance(texts, pandas.Series) else None
            return pandas.DataFrame(vectors, columns=self.get_feature_names_out(), index=index)
        if self._output == "polars":
            import polars

            return polars.DataFrame(vectors, schema=list(self.get_feature_names_out()), orient="row")
        return vectors

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the vectors' columns: student0, student1, ..."""
        return np.array([f"{type(self).__name__.lower()}{place}" for place in range(self.dim)], dtype=object)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Nothing: a trained student has no parameters to search."""
        return {}

    def set_params(self, **params: Any) -> Self:
        """Take no parameters.

        Raises:
            UserError: some are given.
        """
        if params:
            raise UserError(
                f"a student has no parameter {', '.join(params)}; to search over students, name the pipeline's step: "
                '{"student": [first, second]}'
            )
        return self

    def __repr__(self) -> str:
        # Pipelines show it.
        return f"{type(self).__name__}(dim={self.dim})"

    def __getstate__(self) -> dict[str, Any]:
        # PyTorch pickles the same weights to other bytes every time.
        return {
            "config": asdict(self.encoder.config),
            "weights": self.encoder.arrays(),
            "tokenizer": self.tokenizer.to_str(),
            "output": self._output,
            "backend": self.backend,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        encoder = StudentEncoder(StudentConfig(**state["config"]))
        # Copied, because joblib's workers share arrays that nobody may write to.
        encoder.load_state_dict({name: torch.tensor(weight) for name, weight in state["weights"].items()})
        self.__init__(encoder, TextTokenizer(state["tokenizer"]), state["backend"])  # type: ignore[misc]
        self._output = state["output"]

    def __sklearn_clone__(self) -> Self:
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> "Tags":
        from sklearn.utils import InputTags, Tags, TargetTags, TransformerTags

        return Tags(
            estimator_type=None,
            target_tags=TargetTags(required=False),
            transformer_tags=TransformerTags(preserves_dtype=[]),
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
            requires_fit=False,
        )
