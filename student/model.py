"""A student: encode texts, in Python and scikit-learn's pipelines, load and save."""

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

# A batch's states then fit into a core's cache.
_TOKEN_BUDGET = 4096
# So many sentences are ordered by length at once, or fewer long ones; more need more memory and fill no batch better.
_WINDOW = 1 << 16
_WINDOW_CHARACTERS = 1 << 25
_OUTPUTS = ("default", "pandas", "polars")


class Student:
    """Encodes sentences; scikit-learn takes it for a transformer, in a Pipeline, a ColumnTransformer or a GridSearchCV.

    It is fitted when it is made: `fit` changes nothing and `clone` gives the same object, as scikit-learn's
    FrozenEstimator does. Equal students have equal pickles, so that a pipeline's `memory` knows them again.

    Attributes:
        encoder: the network in PyTorch, in evaluation mode.
        tokenizer: adds no special tokens.
        backend: "onnx" or "torch", what `encode` runs on a CPU; on a GPU it is PyTorch.
    """

    def __init__(self, encoder: StudentEncoder, tokenizer: TextTokenizer, backend: str = "torch") -> None:
        """Put a network and a tokenizer together.

        Args:
            encoder: the network.
            tokenizer: of its vocabulary.
            backend: "onnx" is the network as an int8 graph in ONNX Runtime, the fastest way on any CPU; "torch"
                computes in float32; "auto" is "onnx" if that runs here.

        Raises:
            UserError: it is none of them, or ONNX Runtime is asked for and does not run here.
        """
        self.encoder = encoder.eval()
        self.tokenizer = tokenizer
        self._output = "default"
        self._onnx: tuple[object, OnnxEncoder] | None = None
        self.backend = "onnx" if open_onnx(backend, self._onnx_encoder) else "torch"

    @classmethod
    def load(cls, name: str | Path, backend: str = "auto") -> "Student":
        """Read the student in a folder, which `sd train-student` or `sd finetune` made, or on the hub.

        Args:
            name: of the folder; or, as a string, "minilm-small", which comes with the package, or `owner/name` or
                `owner/name@revision` on the hub, which is asked where no folder has that name. Where it can't be
                asked, or HF_HUB_OFFLINE is set, its cache is searched.
            backend: see the class.

        Raises:
            UserError: there is none, it is damaged, or the backend does not run here.
        """
        return load_student(locate_student(name), backend)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.encoder.config.target_dims[-1]

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Tokenize sentences, each cut after 512 tokens."""
        return self.tokenizer.tokenize(sentences).cut(MAX_TOKENS)

    def encode(self, sentences: str | Iterable[str], precision: torch.dtype | None = None) -> np.ndarray:
        """Embed sentences.

        A sentence's vector does not depend, but for rounding, on what it is encoded with; several threads may encode at
        once.

        Args:
            sentences: n sentences, as a list, an array or a column of a table; or one.
            precision: float32 or bfloat16 computes in PyTorch, bfloat16 under autocast; None is the backend's own.

        Returns:
            float32[n, dim] in the order given; of one `str` float32[dim].

        Raises:
            UserError: something in it is no text, or PyTorch runs no LSTM in `precision` here.
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
        """Return the graph of the weights as they are now; it is rebuilt after they were changed in place."""
        version = [(weight.data_ptr(), weight._version) for weight in self.encoder.parameters()]
        if self._onnx is None or self._onnx[0] != version:
            # onnx takes a while to import, and PyTorch does without.
            from sentence_distill.student.onnx_graph import build_graph

            model = build_graph(self.encoder.config, self.encoder.arrays(), int8=True)
            self._onnx = (version, OnnxEncoder(model.SerializeToString()))
        return self._onnx[1]

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

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the vectors' columns: student0, student1, ..."""
        return np.array([f"{type(self).__name__.lower()}{place}" for place in range(self.dim)], dtype=object)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return nothing: a trained student has no parameters to search."""
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


def _as_texts(texts: Iterable[str], method: str) -> list[str]:
    """Return a list, an array or a column of texts as a list, for the method that was called with them."""
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


def _window(sentences: Sequence[str], first: int) -> int:
    """Return how many sentences from `first` on are encoded together: at least one."""
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
    """Embed tokenized sentences in PyTorch, float32[n, dim], in batches of near lengths, on a CPU several in parallel.

    With `pooled` the pooled LSTM states, float32[n, pooled_dim], which heads read. bfloat16 computes under autocast. A
    sentence's vector does not depend on the others; one without tokens pools to zeros.
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

    # The longest first, so that no thread is left alone with it at the end.
    batches = list(near_length_batches(tokens.lengths, token_budget))[::-1]
    vectors = map_on_cores(encode, batches) if device.type == "cpu" else [encode(rows) for rows in batches]
    out = torch.empty(len(tokens), encoder.config.pooled_dim if pooled else encoder.config.target_dims[-1])
    for rows, part in zip(batches, vectors, strict=True):
        out[torch.from_numpy(rows)] = part
    return out


# A student on disk: a sentence-transformers folder that loads without this package.


def save_student(folder: Path, student: Student, distillation: dict[str, Any]) -> None:
    """Write a student, of whose projections only the last belongs to the folder, with its record and model card.

    `distillation` says how it was made and what it scores; "student" and "weights" are added.
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
    # safetensors writes for its own user alone, whatever the umask: whoever may read the folder may read these.
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
    """Set fields of distillation.json, and render the model card again unless somebody edited it; say if it was."""
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
    """A student in PyTorch, on the device that computes, as what encodes files; see `OnnxStudent`."""

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
        """Embed n tokenized sentences, float32[n, dim]."""
        return encode_tokens(self.student.encoder, tokens, self.precision).numpy()

    def identity(self) -> dict[str, str]:
        """Return hashes of weights, shape and tokenizer, and the precision."""
        encoder = self.student.encoder
        weights = b"".join(weight.cpu().numpy().tobytes() for weight in encoder.state_dict().values())
        return {
            "student": bytes_hash(weights),
            "shape": str(encoder.config),
            "tokenizer": bytes_hash(self.student.tokenizer.to_str().encode()),
            "precision": str(self.precision),
        }
