"""A student as a transformer of scikit-learn, which needs no import of scikit-learn for it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    from sklearn.utils import Tags


class SklearnTransformer(ABC):
    """Texts to vectors in a Pipeline, a ColumnTransformer or a GridSearchCV.

    It is fitted when it is made: `fit` changes nothing and `clone` gives the same object, as scikit-learn's
    FrozenEstimator does.
    """

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

    def transform(self, texts: Iterable[str]) -> np.ndarray:
        """Embed texts.

        Args:
            texts: n texts: a list, a column of a data frame, or an array of one axis.

        Returns:
            float32[n, dim].

        Raises:
            UserError: a single text, or something in it is no text.
        """
        if isinstance(texts, str):
            raise UserError("transform takes several texts, and got one: put it into a list")
        listed = list(texts)
        for place, text in enumerate(listed):
            if not isinstance(text, str):
                raise UserError(
                    f"transform takes texts, and number {place} is {type(text).__name__}; give a list of strings or "
                    "one column of a table, without missing values"
                )
        return self.encode(listed)

    def fit_transform(self, texts: Iterable[str], y: Any = None) -> np.ndarray:
        """Embed texts, see `transform`."""
        return self.transform(texts)

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
