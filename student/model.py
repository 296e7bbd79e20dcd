"""A student: encode texts, load and save."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.tokenization import TextTokenizer, Tokens
from sentence_distill.pipeline.files import system_errors, write_atomically, write_json
from sentence_distill.pipeline.hardware import STUDENT, require_precision
from sentence_distill.student.batches import near_length_batches
from sentence_distill.student.card import is_edited, model_card
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.files import (
    CARD,
    DISTILLATION,
    MAX_TOKENS,
    StudentFiles,
    load_distillation,
    module_weights,
)
from sentence_distill.student.onnx_encoder import OnnxEncoder, open_onnx
from sentence_distill.student.sklearn_transformer import SklearnTransformer, as_texts
from sentence_distill.student.workers import map_on_cores

# A batch's states then fit into a core's cache.
TOKEN_BUDGET = 4096
# So many sentences are ordered by length at once, or fewer long ones; more need more memory and fill no batch better.
_WINDOW = 1 << 16
_WINDOW_CHARACTERS = 1 << 25


class Student(SklearnTransformer):
    """Encodes sentences; scikit-learn takes it for a transformer.

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
        self._onnx: tuple[object, OnnxEncoder] | None = None
        self.backend = "onnx" if open_onnx(backend, self._onnx_encoder) else "torch"

    @classmethod
    def load(cls, name: str | Path, backend: str = "auto") -> "Student":
        """Read the student in a folder, which `sd train-student` or `sd finetune` made, or on the hub.

        Args:
            name: of the folder; or, as a string, "wiki-small", which comes with the package, or `owner/name` or
                `owner/name@revision` on the hub, which is asked where no folder has that name. Where it can't be
                asked, or HF_HUB_OFFLINE is set, its cache is searched.
            backend: see the class.

        Raises:
            UserError: there is none, it is damaged, or the backend does not run here.
        """
        from sentence_distill.student.hub import locate_student

        return load_student(locate_student(name), backend)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.encoder.config.target_dims[-1]

    def tokenize(self, sentences: Sequence[str]) -> Tokens:
        """Tokenize sentences, each cut behind `MAX_TOKENS`."""
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
        sentences = as_texts(sentences, "encode")
        device = next(self.encoder.parameters()).device
        if precision is not None:
            require_precision(precision, device, STUDENT)
        onnx = self._onnx_encoder() if self.backend == "onnx" and precision is None and device.type == "cpu" else None
        out = np.empty((len(sentences), self.dim), dtype=np.float32)
        first = 0
        while first < len(sentences):
            tokens = self.tokenize(sentences[first : first + _window(sentences, first)])
            if onnx is not None:
                vectors = onnx.encode(tokens, torch.get_num_threads())
            else:
                vectors = encode_tokens(self.encoder, tokens, precision or torch.float32).numpy()
            out[first : first + len(tokens)] = vectors
            first += len(tokens)
        return out

    def _onnx_encoder(self) -> OnnxEncoder:
        """The graph of the weights as they are now; it is rebuilt after they were changed in place."""
        version = [(weight.data_ptr(), weight._version) for weight in self.encoder.parameters()]
        if self._onnx is None or self._onnx[0] != version:
            from sentence_distill.student.onnx_graph import build_graph

            model = build_graph(self.encoder.config, self.encoder.arrays(), int8=True)
            self._onnx = (version, OnnxEncoder(model.SerializeToString()))
        return self._onnx[1]


def _window(sentences: Sequence[str], first: int) -> int:
    """How many sentences from `first` on are encoded together: at least one."""
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
    token_budget: int = TOKEN_BUDGET,
) -> torch.Tensor:
    """Embed tokenized sentences in PyTorch, in batches of near lengths, on a CPU several side by side.

    A sentence's vector does not depend on the others. One without tokens pools to zeros.

    Args:
        encoder: the network.
        tokens: of n sentences.
        precision: float32, or bfloat16 for autocast.
        token_budget: tokens of a batch.

    Returns:
        float32[n, dim].
    """
    return _in_batches(encoder, tokens, encoder.embed, encoder.config.target_dims[-1], precision, token_budget)


def pool_tokens(encoder: StudentEncoder, tokens: Tokens, precision: torch.dtype = torch.float32) -> torch.Tensor:
    """Pooled LSTM states of tokenized sentences, float32[n, pooled_dim], which heads read; see `encode_tokens`."""
    return _in_batches(encoder, tokens, torch.Tensor.float, encoder.config.pooled_dim, precision, TOKEN_BUDGET)


def _in_batches(
    encoder: StudentEncoder,
    tokens: Tokens,
    finish: Callable[[torch.Tensor], torch.Tensor],
    width: int,
    precision: torch.dtype,
    token_budget: int,
) -> torch.Tensor:
    """float32[n, width]: `finish` of the pooled states of each sentence."""

    @torch.inference_mode()
    def encode(rows: np.ndarray) -> torch.Tensor:
        return finish(_pool_batch(encoder, tokens, rows, precision)).float().cpu()

    # The longest first, so that no thread is left alone with it at the end.
    batches = list(near_length_batches(tokens.lengths, token_budget))[::-1]
    on_cpu = next(encoder.parameters()).device.type == "cpu"
    vectors = map_on_cores(encode, batches) if on_cpu else [encode(rows) for rows in batches]
    out = torch.empty(len(tokens), width)
    for rows, part in zip(batches, vectors, strict=True):
        out[torch.from_numpy(rows)] = part
    return out


def _pool_batch(encoder: StudentEncoder, tokens: Tokens, rows: np.ndarray, precision: torch.dtype) -> torch.Tensor:
    """Pooled states of one batch, float32[b, pooled_dim]."""
    device = next(encoder.parameters()).device
    padded, lengths = tokens.take(rows).padded()
    batch = torch.from_numpy(padded).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        if lengths.min() == padded.shape[1]:
            return encoder.pool(batch)
        return encoder.pool_padded(batch, torch.from_numpy(lengths).to(device))


# A student on disk: a sentence-transformers folder that loads without this package.


def save_student(folder: Path, student: Student, distillation: dict[str, Any]) -> None:
    """Write a student with its model card.

    Args:
        folder: made where it is missing; a student in it is replaced.
        student: what to write. Of its projections only the last belongs to the folder.
        distillation: how it was made and what it scores; "student" and "weights" are added.
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
    share_as(folder / "modules.json", module_weights(folder))
    _write_record(folder, {**distillation, "student": asdict(config), "weights": "float32"})


def load_student(folder: Path, backend: str = "torch") -> Student:
    """Read a student without importing sentence-transformers.

    Args:
        folder: of the student.
        backend: see `Student`.

    Raises:
        UserError: the folder holds no student.
    """
    files = StudentFiles.read(folder)
    encoder = StudentEncoder(files.config)
    encoder.load_state_dict({name: torch.from_numpy(weight) for name, weight in files.weights.items()})
    return Student(encoder, files.tokenizer, backend)


def share_as(example: Path, files: Iterable[Path]) -> None:
    """Let whoever may read `example` read `files`: safetensors writes for its own user alone, whatever the umask."""
    for file in files:
        file.chmod(example.stat().st_mode)


def update_distillation(folder: Path, **fields: Any) -> bool:
    """Set fields of distillation.json, and render the model card again unless somebody edited it.

    Returns:
        Whether the card was written.
    """
    before, card = load_distillation(folder), folder / CARD
    edited = card.exists() and is_edited(card.read_text(encoding="utf-8"))
    _write_record(folder, {**before, **fields}, with_card=not edited)
    return not edited


def _write_record(folder: Path, distillation: dict[str, Any], *, with_card: bool = True) -> None:
    write_json(folder / DISTILLATION, distillation)
    if with_card:
        write_atomically(folder / CARD, model_card(distillation).encode())


@dataclass(frozen=True)
class TorchEncoder:
    """A student in PyTorch as what encodes files, a `TextEncoder`.

    Args:
        student: on the device that computes.
        precision: of the LSTM's arithmetic, see `Student.encode`.
    """

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
        """float32[n, dim] of n tokenized sentences."""
        return encode_tokens(self.student.encoder, tokens, self.precision).numpy()

    def identity(self) -> dict[str, str]:
        """Hashes of weights, shape and tokenizer, and the precision."""
        encoder = self.student.encoder
        weights = b"".join(weight.cpu().numpy().tobytes() for weight in encoder.state_dict().values())
        return {
            "student": bytes_hash(weights),
            "shape": str(encoder.config),
            "tokenizer": bytes_hash(self.student.tokenizer.to_str().encode()),
            "precision": str(self.precision),
        }
