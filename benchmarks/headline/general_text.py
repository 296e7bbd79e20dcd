"""Write text of several kinds for distillation, and other text of some kinds for measurements.

usage: python benchmarks/headline/general_text.py WIKI CHAT GLUE_DIR TEACHER OUT

WIKI: output of WikiExtractor, of which four articles in eleven are used. CHAT: messages, one per line; 5,000 are held
out. GLUE_DIR: TSV files; the sentences of MNLI and SQuAD (through QNLI) are for training, those of QQP and SST-2 for
measurements. TEACHER: its folder, whose word embeddings define similar words. Text derived from these is random, and
depends only on a seed:

- altered-*: copies in which some words are replaced by similar or random words;
- swapped: copies in which two words are swapped;
- spans, clauses, words: parts of sentences, and words in random order;
- the kinds of rule_text.py.
"""

import argparse
import csv
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import zstandard
from rule_text import RuleText, Vocabulary

HELD_OUT_MESSAGES = 5000
ARTICLES, OTHER_ARTICLE, OF = (0, 3, 5, 9), 8, 11
LAST_OTHER_ARTICLE = 60_000
SPANS = {"wiki": 80_000, "chat": 40_000, "squad": 15_000, "mnli": 15_000}
"""Number of spans of two to eight words that are drawn from each kind."""
COPIES = {"chat": 1, "mnli": 3}
_LETTERS = re.compile(r"([A-Za-z]+)")


def main() -> None:
    """Write one file per kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("wiki", "chat", "glue_dir", "teacher", "out"):
        parser.add_argument(name, type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    chat = [line for line in map(str.strip, _lines(options.chat)) if line]
    rng.shuffle(chat)
    kinds = {
        "chat": chat[HELD_OUT_MESSAGES:],
        # The other rows are from LingNLI.
        "mnli": _column(options.glue_dir / "MNLI/train.tsv", ("sentence1", "sentence2"), only={"genre": "mnli"}),
        "squad": _column(options.glue_dir / "QNLI/train.tsv", ("question", "sentence")),
    }
    articles, others = [], []
    for number, line in _numbered(options.wiki):
        if number % OF in ARTICLES:
            articles.append(line.rstrip("\n"))
        elif number % OF == OTHER_ARTICLE and number < LAST_OTHER_ARTICLE:
            others.append(line.rstrip("\n"))
    natural = {**kinds, "wiki": [line for line in articles if len(line.split()) > 12 and not line.startswith("<")]}
    vocabulary = Vocabulary.of(options.teacher, [*natural["wiki"][:300_000], *kinds["chat"], *kinds["mnli"] * 3])
    made = {
        **_altered(kinds, vocabulary, rng),
        "spans": [span for kind, count in SPANS.items() for span in _spans(natural[kind], count, rng)],
        "clauses": rng.sample(list(_clauses(rng.sample(natural["wiki"], 80_000), 4, 14)), 100_000),
        "words": [" ".join(rng.choices(vocabulary.words, k=rng.randint(2, 4))) for _ in range(60_000)],
        "telegraphic": rng.sample(list(_telegraphic(rng.sample(natural["wiki"], 120_000))), 100_000),
        **RuleText(vocabulary, _titles(articles), rng).kinds(),
    }
    for name, lines in {**kinds, **made, "wiki": articles, "other-wiki": others}.items():
        _write(options.out / f"{name}.txt", lines)
    _write(options.out / "unseen-chat.txt", chat[:HELD_OUT_MESSAGES])
    _write(options.out / "unseen-qqp.txt", _column(options.glue_dir / "QQP/dev.tsv", ("question1", "question2")))
    _write(options.out / "unseen-sst2.txt", _column(options.glue_dir / "SST-2/dev.tsv", ("sentence",)))


def _altered(kinds: dict[str, list[str]], vocabulary: Vocabulary, rng: random.Random) -> dict[str, list[str]]:
    counts = Counter(word for texts in kinds.values() for text in texts for word in re.findall(r"[a-z]+", text.lower()))
    content = vocabulary.alike.keys() - {word for word, _ in counts.most_common(180)}

    def replaced(text: str) -> str:
        """Replace nearly half of the uncommon words by a similar word, or, one time in four, by a random one."""
        parts = _LETTERS.split(text)
        for place, part in enumerate(parts):
            word = part.lower()
            if word in content and rng.random() < 0.45:
                parts[place] = rng.choice(vocabulary.alike[word] if rng.random() < 0.75 else vocabulary.words)
        return "".join(parts)

    def swapped(text: str) -> str:
        parts = _LETTERS.split(text)
        words = [place for place, part in enumerate(parts) if part.lower() in content]
        if len(words) > 1:
            first, second = rng.sample(words, 2)
            parts[first], parts[second] = parts[second], parts[first]
        return "".join(parts)

    def copies(texts: Sequence[str], count: int) -> list[str]:
        return [copy for text in texts for _ in range(count) if (copy := replaced(text)) != text]

    found = {f"altered-{kind}": copies(kinds[kind], count) for kind, count in COPIES.items()}
    asked = [text for text in kinds["chat"] if text.endswith("?") and len(text.split()) > 3]
    questions = [text for text in kinds["squad"] if text.endswith("?")]
    found["altered-questions"] = [*copies(questions, 10), *copies(asked, 2)]
    short = [text for text in [*kinds["chat"], *kinds["mnli"]] if 4 <= len(text.split()) <= 14]
    found["swapped"] = [other for text in rng.sample(short, 60_000) if (other := swapped(text)) != text]
    return found


def _clauses(texts: Sequence[str], least: int, most: int) -> Iterator[str]:
    """Yield the text between punctuation marks, within a range of lengths in words."""
    for text in texts:
        for clause in re.split(r"[,;:().]", text):
            if least <= len(clause.split()) <= most:
                yield clause.strip()


def _telegraphic(texts: Sequence[str]) -> Iterator[str]:
    """Yield clauses without articles and auxiliaries, as in headlines."""
    dropped = {"a", "an", "the", "is", "was", "were", "are", "been", "had", "has", "have"}
    for clause in _clauses(texts, 6, 16):
        words = [word for word in clause.split() if word.lower() not in dropped]
        if 4 <= len(words) <= 12:
            yield " ".join(words)


def _titles(articles: Sequence[str]) -> list[str]:
    found = (re.match(r'<doc .*title="([^"]{1,39})"', line) for line in articles)
    return [re.sub(r" \(.*\)", "", match[1]) for match in found if match]


def _lines(path: Path) -> Iterator[str]:
    with zstandard.open(path, "rt", encoding="utf-8") as file:
        yield from file


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of WikiExtractor's output, with the number of their article."""
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
    for text in rng.choices(texts, k=count):
        words, length = text.split(), rng.randint(2, 8)
        if len(words) >= length:
            start = rng.randrange(len(words) - length + 1)
            yield " ".join(words[start : start + length])


def _write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines):,} lines")


if __name__ == "__main__":
    main()
