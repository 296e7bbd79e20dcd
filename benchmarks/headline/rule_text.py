"""Short sentences made by rule out of a teacher's vocabulary: captions, questions, headlines, statements.

They mean little, and a teacher embeds them all the same: a student learns from them what each word adds in a short
sentence, which an encyclopedia does not tell. general_text.py writes them.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional

COUNTS = {"captions": 350_000, "questions": 150_000, "headlines": 130_000, "statements": 150_000}
_PEOPLE = "man woman boy girl person child baby dog cat lady guy kid teenager player worker group".split()  # noqa: SIM905
_SIMPLE = (
    "red blue green black white small large big little young old tall long short wet dry hot cold new brown yellow"
)
_PREPOSITIONS = "in on at near with by over under through into from around behind across against beside"
_PLURALS = {"man": "men", "woman": "women", "child": "children", "person": "people", "lady": "ladies", "baby": "babies"}


@dataclass(frozen=True)
class Vocabulary:
    """Whole words of a teacher's vocabulary, by what they seem to be, with how often they occur in some text."""

    words: list[str]
    alike: dict[str, list[str]]
    """For each of `words` the 15 whose word embeddings are nearest."""
    counts: Counter[str]
    nouns: list[str]
    verbs: list[str]
    """In their form with -ing."""
    adjectives: list[str]
    nouns_of: list[list[str]]
    """For each noun the 40 nearest others."""
    verbs_of: list[list[str]]
    """For each noun the 25 nearest verbs."""

    @classmethod
    def of(cls, teacher: Path, text: Sequence[str]) -> Self:
        """Sort the vocabulary of a BERT: nouns have a plural and stand behind articles, verbs have a form with -ing."""
        tokens = Tokenizer.from_file(str(teacher / "tokenizer.json")).get_vocab()
        weights = load_file(teacher / "model.safetensors")
        table = next(weights[name] for name in weights if name.endswith("word_embeddings.weight")).float()
        words = sorted(word for word in tokens if re.fullmatch(r"[a-z]{2,}", word))
        known, counts, behind = set(words), Counter[str](), Counter[str]()
        for line in text:
            lower = line.lower()
            counts.update(re.findall(r"[a-z]+", lower))
            behind.update(re.findall(r"\b(?:a|an|the|his|her|my|your) ([a-z]{3,})\b", lower))
        verbs = [word for word in words if len(word) > 5 and counts[word] > 30 and _base(word, known)]
        nouns = [
            word
            for word in words
            if word + "s" in known and behind[word] > 8 and counts[word] > 40 and behind[word] / counts[word] > 0.12
        ]
        ending = re.compile(r"(ful|ous|y|ish|ed|en|less|ive|al)$")
        adjectives = [word for word in words if counts[word] > 60 and word not in nouns and ending.search(word)]
        adjectives += _SIMPLE.split() * 6

        def unit(some: Sequence[str]) -> torch.Tensor:
            return functional.normalize(table[[tokens[word] for word in some]] - table.mean(dim=0), dim=1)

        def nearest(some: Sequence[str], others: Sequence[str], count: int) -> list[list[str]]:
            rows = (chunk @ unit(others).T for chunk in unit(some).split(2000))
            return [[others[place] for place in places] for row in rows for places in row.topk(count).indices.tolist()]

        alike = {word: near[1:] for word, near in zip(words, nearest(words, words, 16), strict=True)}
        of_nouns = [near[1:] for near in nearest(nouns, nouns, 41)]
        return cls(words, alike, counts, nouns, verbs, adjectives, of_nouns, nearest(nouns, verbs, 25))


def _base(verb: str, known: set[str]) -> str:
    """Return the verb of a form with -ing, run of running for one; "" for what is none."""
    stems = (verb[:-3], verb[:-3] + "e", verb[:-4]) if verb.endswith("ing") else ()
    return next((stem for stem in stems if stem in known), "")


class RuleText:
    """Draws sentences; most are about a noun, and then other words are near it."""

    def __init__(self, vocabulary: Vocabulary, titles: Sequence[str], rng: random.Random) -> None:
        self._vocabulary, self._titles, self._rng = vocabulary, titles, rng
        known = set(vocabulary.words)
        self._bases = {verb: _base(verb, known) for verb in vocabulary.verbs}
        bases = self._bases.values()
        self._lists = {
            "noun": vocabulary.nouns,
            "verb": vocabulary.verbs,
            "adjective": vocabulary.adjectives,
            "third": [form for base in bases if (form := _third(base)) in known],
            "past": [form for base in bases if (form := base + ("d" if base.endswith("e") else "ed")) in known],
        }
        # The root of the count: rare words come up often enough to be learned.
        roots = {kind: [vocabulary.counts[word] ** 0.5 for word in found] for kind, found in self._lists.items()}
        self._weights = {kind: list(accumulate(found)) for kind, found in roots.items()}
        self._number = {noun: number for number, noun in enumerate(vocabulary.nouns)}
        self._topic: int | None = None

    def kinds(self) -> dict[str, list[str]]:
        """Return different sentences of each kind."""
        makers: dict[str, Callable[[], str]] = {
            "captions": self._caption,
            "questions": lambda: self._filled(_QUESTIONS),
            "headlines": self._headline,
            "statements": lambda: self._filled(_STATEMENTS),
        }
        found = {}
        for kind, make in makers.items():
            found[kind] = list(dict.fromkeys(self._about(make) for _ in range(COUNTS[kind])))
        return found

    def _about(self, make: Callable[[], str]) -> str:
        about = self._rng.random() < 0.65
        self._topic = self._number[self._drawn("noun")] if about else None
        return make()

    def _drawn(self, kind: str) -> str:
        return self._rng.choices(self._lists[kind], cum_weights=self._weights[kind])[0]

    def _noun(self) -> str:
        if self._topic is None:
            return self._drawn("noun")
        near = self._vocabulary.nouns_of[self._topic]
        return self._vocabulary.nouns[self._topic] if self._rng.random() < 0.35 else self._rng.choice(near)

    def _verb(self) -> str:
        if self._topic is None or self._rng.random() < 0.3:
            return self._drawn("verb")
        return self._rng.choice(self._vocabulary.verbs_of[self._topic])

    def _phrase(self) -> str:
        """Draw a noun with its article, and sometimes an adjective."""
        words = (self._drawn("adjective") + " " if self._rng.random() < 0.3 else "") + self._noun()
        article = self._rng.choice(["a", "the", "a", "the", "his", "some"])
        return (
            _with_article(words) if article == "a" else f"some {words}s" if article == "some" else f"{article} {words}"
        )

    def _subject(self) -> tuple[str, str]:
        rng = self._rng
        noun = rng.choice(_PEOPLE) if rng.random() < 0.55 else self._noun()
        adjective = self._drawn("adjective") + " " if rng.random() < 0.25 else ""
        kind = rng.random()
        if kind < 0.55:
            return _with_article(adjective + noun).capitalize(), "is"
        if kind < 0.7:
            return f"The {adjective}{noun}", "is"
        several = rng.choice(["Two", "Three", "Some", "A group of", "Several", "The"])
        return f"{several} {adjective}{_PLURALS.get(noun, noun + 's')}", "are"

    def _caption(self) -> str:
        rng = self._rng
        subject, is_or_are = self._subject()
        text = subject if rng.random() < 0.15 else f"{subject} {is_or_are}"
        if rng.random() < 0.85:
            text += f" {self._verb()}"
            text += f" {self._phrase()}" if rng.random() < 0.75 else ""
            text += f" {rng.choice(_PREPOSITIONS.split())} {self._phrase()}" if rng.random() < 0.5 else ""
            text += f" and {self._verb()}" if rng.random() < 0.1 else ""
        else:
            text += f" {rng.choice(_PREPOSITIONS.split())} {self._phrase()}"
        return text + ("." if rng.random() < 0.7 else "")

    def _headline(self) -> str:
        text = self._filled(_HEADLINES)
        return text if self._rng.random() < 0.4 else text[0].upper() + text[1:]

    def _filled(self, templates: str) -> str:
        """Fill in one of some templates, one per line."""
        fillers: dict[str, Callable[[], str]] = {
            "title": lambda: self._rng.choice(self._titles),
            "noun": self._noun,
            "one": lambda: _with_article(self._noun()),
            "phrase": self._phrase,
            "do": lambda: self._bases[self._verb()],
            "doing": self._verb,
            "does": lambda: self._drawn("third"),
            "did": lambda: self._drawn("past"),
            "such": lambda: self._drawn("adjective"),
            "preposition": lambda: self._rng.choice(_PREPOSITIONS.split()),
            "people": lambda: self._rng.choice([*_PLURALS.values(), *(noun + "s" for noun in _PEOPLE[7:])]),
            "number": lambda: str(self._rng.randint(2, 90)),
            "year": lambda: str(self._rng.randint(1900, 2020)),
        }
        text = re.sub(r"\{(\w+)\}", lambda match: fillers[match[1]](), self._rng.choice(templates.strip().splitlines()))
        return text[0].upper() + text[1:] if templates is _STATEMENTS else text


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _third(base: str) -> str:
    if base.endswith("y") and base[-2:-1] not in "aeiou":
        return base[:-1] + "ies"
    return base + ("es" if base.endswith(("s", "x", "ch", "sh")) else "s")


_QUESTIONS = """
What is {title}?
Who is {title}?
Where is {title}?
Why is {title} so {such}?
Is {title} {such}?
What is the difference between {title} and {title}?
What is the difference between {one} and {one}?
How do I {do} {one}?
How can I {do} my {noun}?
How can I {do} {noun}s in {noun}?
Do you {do} {noun}s?
What is the best way to {do} {one}?
What are the best {noun}s for {doing}?
How do {noun}s work?
Why do {people} {do} {noun}s?
Is it {such} to {do} {one}?
Should I {do} or {do}?
Which is better, {title} or {title}?
Can {one} {do} {one}?
What does it mean when {one} is {doing}?
How much does {one} cost?
How long does it take to {do} {one}?
What happens if you {do} {one}?
Does {title} have {one}?
What are some {such} {noun}s?
What are the {noun}s of {title}?
How did {title} {do} the {noun}?
When did {title} {do}?
What should I do if my {noun} is {doing}?
How is {title} {such} for {noun}s?
Why did the {noun} {do} in {title}?
What are the advantages of {doing} {one}?
I want to {do} {one}. What should I do?
"""
_HEADLINES = """
{title} {does} {noun} over {noun}
{noun}s {did} in {title} {noun}
{title}: {noun} {doing} {noun}s
{number} {noun}s {did} in {title} {noun}
{title} {noun} {does} {such} {noun}
{title} to {do} {noun} {noun}
{title} and {title} {do} on {noun}
{such} {noun} {does} {title}
{title} {does} {noun} in {title}
{noun} {noun} {did} after {noun}
{title} {noun} faces {noun} {noun}
{title} says {noun} will {do} {noun}
Police {do} {noun} in {title} {noun}
New {noun} {does} {title} {noun}s
{title} {noun}s {do} against {noun}
{title} president {does} {noun}
{noun} kills {number} in {title}
{title} {noun} {did} by {title}
"""
_STATEMENTS = """
I think you should {do} {phrase}.
If you {do} {phrase}, you will {do} it.
{phrase} is {such} and {such}.
The best way to {do} {phrase} is to {do} {phrase}.
You don't need to {do} {phrase} to {do} {phrase}.
I would {do} {phrase} and then {do} it {preposition} {phrase}.
We are {doing} {phrase}.
It depends on {phrase} and on how you {do} {phrase}.
Yes, you can {do} {phrase} with {phrase}.
No, {phrase} is not {such}.
You could try to {do} {phrase}.
{phrase} {did} {phrase}.
As far as I know, {title} does not {do} {phrase}.
I have never seen {phrase} {do} {phrase}.
It's {such} to {do} {phrase} {preposition} {phrase}.
{phrase} {does} {phrase} {preposition} {phrase}.
There is {phrase} {preposition} {phrase}.
He {did} {phrase} {preposition} {phrase}.
She was {doing} {phrase} when {phrase} {did}.
They {did} {phrase} because of {phrase}.
{title} {did} {phrase} in {year}.
{phrase} is a kind of {noun}.
One problem is that {phrase} {does} {phrase}.
Don't {do} {phrase} unless you {do} {phrase}.
My {noun} is {such}, and I can't {do} it.
"""
