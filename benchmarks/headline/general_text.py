"""Text of several kinds to distil on, and other text of some kinds to measure on.

usage: python benchmarks/headline/general_text.py WIKI CHAT GLUE_DIR OUT

WIKI: output of WikiExtractor, of which every 11th article is taken. CHAT: messages, one per line; 5,000 are kept apart.
GLUE_DIR: TSV files. MNLI's and SQuAD's sentences (through QNLI) are trained on, QQP's and SST-2's measured on.
"""

import argparse
import csv
import random
from collections.abc import Iterator
from pathlib import Path

import zstandard

HELD_OUT_MESSAGES = 5000
EVERY_ARTICLE = 11
LAST_OTHER_ARTICLE = 60_000
SPANS = {"wiki": 30_000, "chat": 20_000, "squad": 5_000, "mnli": 5_000}
"""Spans of two to eight words that are drawn from each kind."""


def main() -> None:
    """Write one file for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("wiki", "chat", "glue_dir", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    chat = [line for line in map(str.strip, _lines(options.chat)) if line]
    rng.shuffle(chat)
    kinds = {
        "chat": chat[HELD_OUT_MESSAGES:],
        # The other rows are LingNLI's.
        "mnli": _column(options.glue_dir / "MNLI/train.tsv", ("sentence1", "sentence2"), only={"genre": "mnli"}),
        "squad": _column(options.glue_dir / "QNLI/train.tsv", ("question", "sentence")),
    }
    articles, others = [], []
    for number, line in _numbered(options.wiki):
        if number % EVERY_ARTICLE == 5:
            articles.append(line)
        elif number % EVERY_ARTICLE == 8 and number < LAST_OTHER_ARTICLE:
            others.append(line)
    _write(options.out / "wiki.txt", [line.rstrip("\n") for line in articles])
    kinds["wiki"] = [line for line in articles if len(line.split()) > 12 and not line.startswith("<")]
    spans = [span for kind, count in SPANS.items() for span in _spans(kinds[kind], count, rng)]
    for name in ("chat", "mnli", "squad"):
        _write(options.out / f"{name}.txt", kinds[name])
    _write(options.out / "spans.txt", spans)
    _write(options.out / "other-wiki.txt", [line.rstrip("\n") for line in others])
    _write(options.out / "unseen-chat.txt", chat[:HELD_OUT_MESSAGES])
    _write(options.out / "unseen-qqp.txt", _column(options.glue_dir / "QQP/dev.tsv", ("question1", "question2")))
    _write(options.out / "unseen-sst2.txt", _column(options.glue_dir / "SST-2/dev.tsv", ("sentence",)))


def _lines(path: Path) -> Iterator[str]:
    with zstandard.open(path, "rt", encoding="utf-8") as file:
        yield from file


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of WikiExtractor's output with the number of their article."""
    number = 0
    for line in _lines(path):
        number += line.startswith("<doc ")
        yield number, line


def _column(path: Path, names: tuple[str, ...], only: dict[str, str] | None = None) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = [row for row in rows if all(row.get(key, value) == value for key, value in (only or {}).items())]
    return list(dict.fromkeys(row[name].strip() for row in rows for name in names))


def _spans(texts: list[str], count: int, rng: random.Random) -> Iterator[str]:
    for text in rng.sample(texts, min(count, len(texts))):
        words, length = text.split(), rng.randint(2, 8)
        if len(words) >= length:
            start = rng.randrange(len(words) - length + 1)
            yield " ".join(words[start : start + length])


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines):,} lines")


if __name__ == "__main__":
    main()
