"""`Student`: encodes texts, in Python and in scikit-learn pipelines; loading and saving."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.files import system_errors, write_atomically, write_json
from sentence_distill.pipeline.hardware import STUDENT, require_precision
from sentence_distill.student.batches import map_on_cores, near_length_batches
from sentence_distill.student.card import is_edited, model_card
from sentence_distill.student.config import StudentConfig
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.figures import DISTILLATION, load_distillation
from sentence_distill.student.files import CARD, MAX_TOKENS, locate_student, module_weights, read_student
from sentence_distill.student.onnx_student import OnnxEncoder, open_onnx

if TYPE_CHECKING:
    import pandas
    import polars
    from sklearn.utils import Tags

# With this size, the states of a batch fit into a core's cache.
_TOKEN_BUDGET = 4096
# Sentences are sorted by length in windows of this many sentences or characters. Larger windows would take more memory,
# without filling batches any better.
_WINDOW = 1 << 16
_WINDOW_CHARACTERS = 1 << 25
_OUTPUTS = ("default", "pandas", "polars")


class Student:
    """Sentence encoder, which is also a transformer for scikit-learn's Pipeline, ColumnTransformer and GridSearchCV.

    It is already fitted: `fit` does nothing and `clone` returns the same object, as for scikit-learn's
    FrozenEstimator. Equal students have equal pickles, so that the `memory` of a pipeline recognizes them.

    Attributes:
        encoder: the network in PyTorch, in evaluation mode.
        tokenizer: the tokenizer, which adds no special tokens.
        backend: "onnx" or "torch", the backend of `encode` on a CPU; on a GPU it is always PyTorch.
    """

    def __init__(self, encoder: StudentEncoder, tokenizer: TextTokenizer, backend: str = "torch") -> None:
        """Make a student from a network and a tokenizer.

        Args:
            encoder: the network.
            tokenizer: the tokenizer for its vocabulary.
            backend: "onnx" runs the network as an int8 graph in ONNX Runtime, the fastest way on any CPU; "torch"
                computes in float32; "auto" is "onnx" if it runs on this machine.

        Raises:
            UserError: the backend is unknown, or is "onnx" and does not run here.
        """
        self.encoder = encoder.eval()
        self.tokenizer = tokenizer
        self._output = "default"
        self._onnx: tuple[object, OnnxEncoder] | None = None
        self.backend = "onnx" if open_onnx(backend, self._onnx_encoder) else "torch"

    @classmethod
    def load(cls, name: str | Path, backend: str = "auto") -> "Student":
        """Load a student from a folder written by `sd train-student` or `sd finetune`, or from the hub.

        Args:
            name: the folder; or, as a string, "minilm-small", which is part of the package, or `owner/name` or
                `owner/name@revision` on the hub, if there is no folder of that name. If the hub can't be reached, or
                HF_HUB_OFFLINE is set, the cached copy is loaded.
            backend: see the class.

        Raises:
            UserError: the student does not exist or is damaged, or the backend does not run here.
        """
        return load_student(locate_student(name), backend)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.encoder.config.target_dims[-1]

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Tokenize sentences, truncated to 512 tokens."""
        return self.tokenizer.tokenize(sentences).cut(MAX_TOKENS)

    def encode(self, sentences: str | Iterable[str], precision: torch.dtype | None = None) -> np.ndarray:
        """Encode sentences to vectors.

        The vector of a sentence does not depend on the other sentences, up to rounding. Several threads may encode at
        the same time.

        Args:
            sentences: n sentences, as a list, an array or a column of a table; or a single string.
            precision: float32 or bfloat16 compute in PyTorch, bfloat16 under autocast; None uses the backend.

        Returns:
            float32[n, dim] in the given order; for a single string, float32[dim].

        Raises:
            UserError: an item is not text, or PyTorch can't run an LSTM in `precision` here.
        """
        if isinstance(sentences, str):
            return self.encode([sentences], precision)[0]
        sentences = _as_texts(sentences, "encode")
        device = next(self.encoder.parameters()).device
        if precision is not None:
            require_precision(precision, device, STUDENT)
        onnx = self._onnx_encoder() if self.backend == "onnx" and precision is None and device.type == "cpu" else None
        out = np.empty((len(sentences), self.dim), dtype=np.float32)
        first = 0
        while first < len(sentences):
            tokens = self.tokenize(sentences[first : first + _window(sentences, first)])
            if onnx is not None:
                vectors = onnx.run([tokens], torch.get_num_threads())
            else:
                vectors = encode_tokens(self.encoder, tokens, precision or torch.float32).numpy()
            out[first : first + len(tokens)] = vectors
            first += len(tokens)
        return out

    def _onnx_encoder(self) -> OnnxEncoder:
        """Return the graph for the current weights; it is rebuilt after they were modified in place."""
        version = [(weight.data_ptr(), weight._version) for weight in self.encoder.parameters()]
        if self._onnx is None or self._onnx[0] != version:
            # Imported here, because onnx takes a while to import, and the PyTorch backend does not need it.
            from sentence_distill.student.onnx_graph import build_graph

            model = build_graph(self.encoder.config, self.encoder.arrays(), int8=True)
            self._onnx = (version, OnnxEncoder(model.SerializeToString()))
        return self._onnx[1]

    def fit(self, texts: Iterable[str], y: Any = None) -> Self:
        """Do nothing, because a student is already trained."""
        return self

    def transform(self, texts: Iterable[str]) -> "np.ndarray | pandas.DataFrame | polars.DataFrame":
        """Encode texts to vectors.

        Args:
            texts: n texts, as a list, a column of a data frame, or a one-dimensional array.

        Returns:
            float32[n, dim], or a data frame; see `set_output`.

        Raises:
            UserError: the input is a single text or a table, or an item is not text.
        """
        if isinstance(texts, str):
            raise UserError("transform takes several texts, but got one: put it into a list")
        vectors = self.encode(_as_texts(texts, "transform"))
        if self._output == "pandas":
            import pandas

            index = texts.index if isinstance(texts, pandas.Series) else None
            return pandas.DataFrame(vectors, columns=self.get_feature_names_out(), index=index)
        if self._output == "polars":
            import polars

            return polars.DataFrame(vectors, schema=list(self.get_feature_names_out()), orient="row")
        return vectors

    def fit_transform(self, texts: Iterable[str], y: Any = None) -> "np.ndarray | pandas.DataFrame | polars.DataFrame":
        """Encode texts; see `transform`."""
        return self.transform(texts)

    def set_output(self, *, transform: str | None = None) -> Self:
        """Set the output type of `transform` for this student.

        Args:
            transform: "default" for an array, "pandas" or "polars" for a data frame; None changes nothing.

        Raises:
            UserError: the type is unknown.
        """
        if transform is not None:
            if transform not in _OUTPUTS:
                raise UserError(f"set_output takes transform={', '.join(map(repr, _OUTPUTS))}, not {transform!r}")
            self._output = transform
        return self

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the output columns: student0, student1, ..."""
        return np.array([f"{type(self).__name__.lower()}{place}" for place in range(self.dim)], dtype=object)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return {}: a trained student has no hyperparameters."""
        return {}

    def set_params(self, **params: Any) -> Self:
        """Do nothing, because a trained student has no hyperparameters.

        Raises:
            UserError: a parameter is given.
        """
        if params:
            raise UserError(
                f"a student has no parameter {', '.join(params)}; to search over students, use the name of the "
                'pipeline step: {"student": [first, second]}'
            )
        return self

    def __repr__(self) -> str:
        # Shown in pipelines.
        return f"{type(self).__name__}(dim={self.dim})"

    def __getstate__(self) -> dict[str, Any]:
        # As arrays: PyTorch's pickles of the same weights differ each time.
        return {
            "config": asdict(self.encoder.config),
            "weights": self.encoder.arrays(),
            "tokenizer": self.tokenizer.to_str(),
            "output": self._output,
            "backend": self.backend,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        encoder = StudentEncoder(StudentConfig(**state["config"]))
        # Copied, because joblib's workers receive shared, read-only arrays.
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


def _as_texts(texts: Iterable[str], method: str) -> list[str]:
    """Convert a list, an array or a column of texts to a list; `method` is named in errors."""
    # Iterating over a data frame or dict would give the names of its columns.
    if isinstance(texts, Mapping) or len(getattr(texts, "shape", (0,))) != 1:
        raise UserError(
            f"{method} takes one column of texts, but got a {type(texts).__name__} of another shape; select the "
            'column as in table["text"] (not [["text"]]), in a ColumnTransformer "text" (not ["text"])'
        )
    listed = list(texts)
    for place, text in enumerate(listed):
        if not isinstance(text, str):
            pair = "; encode the two sides of pairs in separate calls" if isinstance(text, tuple | list) else ""
            raise UserError(
                f"{method} takes texts, but number {place} is {type(text).__name__}{pair}; give a list of strings or "
                "one column of a table, without missing values"
            )
    return listed


def _window(sentences: Sequence[str], first: int) -> int:
    """Return the number of sentences, starting at `first`, to encode together: at least one."""
    characters = 0
    for count in range(min(_WINDOW, len(sentences) - first)):
        characters += len(sentences[first + count])
        if characters > _WINDOW_CHARACTERS:
            return max(1, count)
    return min(_WINDOW, len(sentences) - first)


def encode_tokens(
    encoder: StudentEncoder,
    tokens: Tokens,
    precision: torch.dtype = torch.float32,
    *,
    token_budget: int = _TOKEN_BUDGET,
    pooled: bool = False,
) -> torch.Tensor:
    """Encode tokenized sentences in PyTorch to float32[n, dim], in batches of similar lengths.

    With `pooled`, return the pooled LSTM states, float32[n, pooled_dim], which classifier heads read. bfloat16 computes
    under autocast. On a CPU, several batches run in parallel. The vector of a sentence does not depend on the others; a
    sentence without tokens pools to zeros.
    """
    device = next(encoder.parameters()).device

    @torch.inference_mode()
    def encode(rows: np.ndarray) -> torch.Tensor:
        padded, lengths = tokens.take(rows).padded()
        batch = torch.from_numpy(padded).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            if lengths.min() == padded.shape[1]:
                states = encoder.pool(batch)
            else:
                states = encoder.pool_padded(batch, torch.from_numpy(lengths).to(device))
        return (states if pooled else encoder.embed(states)).float().cpu()

    # Longest batches first, so that no thread is still busy with one when the others have finished.
    batches = list(near_length_batches(tokens.lengths, token_budget))[::-1]
    vectors = map_on_cores(encode, batches) if device.type == "cpu" else [encode(rows) for rows in batches]
    out = torch.empty(len(tokens), encoder.config.pooled_dim if pooled else encoder.config.target_dims[-1])
    for rows, part in zip(batches, vectors, strict=True):
        out[torch.from_numpy(rows)] = part
    return out


# Students on disk: sentence-transformers folders, which can be loaded without this package.


def save_student(folder: Path, student: Student, distillation: dict[str, Any]) -> None:
    """Write a student, with the last of its projections only, its record and its model card.

    `distillation` is the record with its origin and figures; "student" and "weights" are added.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import LSTM, Pooling, WordEmbeddings
    from transformers import PreTrainedTokenizerFast

    config, encoder = student.encoder.config, student.encoder
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=student.tokenizer.backend, clean_up_tokenization_spaces=False, model_max_length=MAX_TOKENS
    )
    words = WordEmbeddings(tokenizer, encoder.embedding.weight.detach().cpu(), max_seq_length=MAX_TOKENS)
    lstm = LSTM(config.embedding_dim, config.hidden, num_layers=config.layers)
    lstm.encoder.load_state_dict(encoder.lstm.state_dict())
    modes = config.pooling.split("+")
    pooling = Pooling(2 * config.hidden, modes[0] if len(modes) == 1 else modes)
    dense = Dense(config.pooled_dim, config.target_dims[-1], activation_function=None)
    dense.linear.load_state_dict(encoder.projections[-1].state_dict())
    modules = [words, lstm, pooling, dense] + ([Normalize()] if config.normalize else [])
    model = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")
    with system_errors(folder):
        model.save_pretrained(str(folder), create_model_card=False)
    # safetensors creates files that only their owner can read, ignoring the umask; use the mode of the other files.
    for file in module_weights(folder):
        file.chmod((folder / "modules.json").stat().st_mode)
    _write_record(folder, {**distillation, "student": asdict(config), "weights": "float32"})


def load_student(folder: Path, backend: str = "torch") -> Student:
    """Read a student without importing sentence-transformers; see `Student` for the backends."""
    config, weights, tokenizer = read_student(folder)
    encoder = StudentEncoder(config)
    encoder.load_state_dict({name: torch.from_numpy(weight) for name, weight in weights.items()})
    return Student(encoder, tokenizer, backend)


def update_distillation(folder: Path, **fields: Any) -> bool:
    """Set fields of distillation.json, and render the model card again; return False if an edited card was kept."""
    before, card = load_distillation(folder), folder / CARD
    edited = card.exists() and is_edited(card.read_text(encoding="utf-8"))
    _write_record(folder, {**before, **fields}, with_card=not edited)
    return not edited


def _write_record(folder: Path, distillation: dict[str, Any], *, with_card: bool = True) -> None:
    write_json(folder / DISTILLATION, distillation)
    if with_card:
        write_card(folder, folder.resolve().name)


def write_card(folder: Path, title: str) -> None:
    """Render the model card of a student's folder under the name `title`."""
    write_atomically(folder / CARD, model_card(load_distillation(folder), title=title).encode())


@dataclass(frozen=True)
class TorchEncoder:
    """A student in PyTorch, with the same interface as `OnnxStudent` for encoding files."""

    student: Student
    precision: torch.dtype

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.student.dim

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Tokenize sentences."""
        return self.student.tokenize(sentences)

    def vectors(self, tokens: Tokens) -> np.ndarray:
        """Encode n tokenized sentences to float32[n, dim]."""
        return encode_tokens(self.student.encoder, tokens, self.precision).numpy()

    def identity(self) -> dict[str, str]:
        """Return hashes of weights and tokenizer, the shape and the precision, for runs to compare."""
        encoder = self.student.encoder
        weights = b"".join(weight.cpu().numpy().tobytes() for weight in encoder.state_dict().values())
        return {
            "student": bytes_hash(weights),
            "shape": str(encoder.config),
            "tokenizer": bytes_hash(self.student.tokenizer.to_str().encode()),
            "precision": str(self.precision),
        }
