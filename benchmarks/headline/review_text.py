"""Write sentences of Wikipedia that judge films, records, books and plays: text like SST-2's, for a teacher to label.

usage: python benchmarks/headline/review_text.py CORPUS OUT [--sentences 24000]

CORPUS is anything that sd embed reads. From its paragraphs about works, sentences with a word of praise or criticism
are kept; OUT gets --sentences of them, drawn with a fixed seed, one per line.
"""

import argparse
import random
import re
from pathlib import Path

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.sentences import SentenceRules, split_sentences

_WORK = re.compile(
    r"\b(films?|movies?|albums?|songs?|novels?|musicals?|comed(y|ies)|dramas?|episodes?|sequels?|plays?)\b", re.I
)
_JUDGEMENT = re.compile(
    r"\b(critics?|critically|reviews?|reviewers?|reviewed|praised|acclaim(ed)?|applauded|panned|lauded|brilliant|superb|"
    r"charming|funny|funniest|gripping|witty|memorable|masterpiece|delight(ful)?|dull|boring|bland|poorly|clich\w+|"
    r"disappoint(ing|ed|ment)|mediocre|tedious|predictable|lacks|lacking|worst|entertaining|enjoyable|compelling)\b",
    re.I,
)


def main() -> None:
    """Write the text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("out", type=Path)
    parser.add_argument("--sentences", type=int, default=24_000)
    options = parser.parse_args()
    rules = SentenceRules(min_words=4, max_words=40)
    found: dict[str, None] = {}
    for record in Corpus.open([options.corpus]).records():
        text = record.text or ""
        # Splitting is slow, and few paragraphs are relevant.
        if not (_WORK.search(text) and _JUDGEMENT.search(text)):
            continue
        for candidate in split_sentences(text, rules):
            if not candidate.reason and _JUDGEMENT.search(candidate.text):
                found[candidate.text] = None
    sentences = random.Random(0).sample(list(found), min(options.sentences, len(found)))
    options.out.write_text("".join(f"{sentence}\n" for sentence in sentences), encoding="utf-8")
    print(f"{options.out}: {len(sentences):,} of {len(found):,} sentences")


if __name__ == "__main__":
    main()
