"""A student on disk: a sentence-transformers folder that loads without this package."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.files import system_errors, write_atomically
from sentence_distill.student.config import StudentConfig
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.model import MAX_TOKENS, Student
from sentence_distill.student.sharing.card import model_card

DISTILLATION = "distillation.json"
CARD = "README.md"
_FIELDS = {"teacher", "corpus", "shards", "training", "metrics", "student"}


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
        tokenizer_object=student.tokenizer, clean_up_tokenization_spaces=False, model_max_length=MAX_TOKENS
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


def load_student(folder: Path) -> Student:
    """Read a student without importing sentence-transformers.

    Raises:
        UserError: the folder holds no student.
    """
    try:
        distillation = load_distillation(folder)
        paths = module_paths(folder)
        config = StudentConfig(
            **{**distillation["student"], "target_dims": (distillation["student"]["target_dims"][-1],)}
        )
        encoder = StudentEncoder(config)
        weights = {kind: load_file(paths[kind] / "model.safetensors") for kind in ("WordEmbeddings", "LSTM", "Dense")}
        encoder.load_state_dict(
            {
                "embedding.weight": weights["WordEmbeddings"]["emb_layer.weight"].float(),
                **{f"lstm.{name.removeprefix('encoder.')}": value for name, value in weights["LSTM"].items()},
                **{f"projections.0.{name.removeprefix('linear.')}": value for name, value in weights["Dense"].items()},
            }
        )
        tokenizer = Tokenizer.from_buffer((paths["WordEmbeddings"] / "tokenizer.json").read_bytes())
    except UserError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no student that can be read ({error}); train one: sd train-student") from error
    return Student(encoder, tokenizer)


def load_distillation(folder: Path) -> dict[str, Any]:
    """How the student in `folder` was made.

    Raises:
        UserError: there is no student in it.
    """
    try:
        record = json.loads((folder / DISTILLATION).read_text(encoding="utf-8"))
        if missing := _FIELDS - record.keys():
            raise ValueError(f"no {', '.join(sorted(missing))}")
        return record  # type: ignore[no-any-return]
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} holds no student; train one: sd train-student --out {folder}") from None
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder / DISTILLATION} is damaged ({error}); train the student again") from error


def module_weights(folder: Path) -> list[Path]:
    """The files of a student's weights."""
    files = (path / "model.safetensors" for path in module_paths(folder).values())
    return sorted({file for file in files if file.exists()})


def share_as(example: Path, files: Iterable[Path]) -> None:
    """Let whoever may read `example` read `files`: safetensors writes for its own user alone, whatever the umask."""
    for file in files:
        file.chmod(example.stat().st_mode)


def update_distillation(folder: Path, **fields: Any) -> bool:
    """Set fields of distillation.json, and write the model card anew unless somebody edited it.

    Returns:
        Whether the card was written; not where it is another than the one that the record before gives.
    """
    before, card = load_distillation(folder), folder / CARD
    edited = card.exists() and card.read_bytes() != model_card(before).encode()
    _write_record(folder, {**before, **fields}, with_card=not edited)
    return not edited


def _write_record(folder: Path, distillation: dict[str, Any], *, with_card: bool = True) -> None:
    write_atomically(folder / DISTILLATION, (json.dumps(distillation, indent=1, ensure_ascii=False) + "\n").encode())
    if with_card:
        write_atomically(folder / CARD, model_card(distillation).encode())


def module_paths(folder: Path) -> dict[str, Path]:
    """Where each module of a student lies, by its kind."""
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    return {module["type"].rsplit(".", 1)[-1]: folder / module["path"] for module in modules}
