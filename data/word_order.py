"""Rules that change the meaning of a sentence but hardly its words, which a bag of words can't tell apart."""

import re
from collections.abc import Callable, Mapping, Sequence

_BEFORE_NOT = """
    is are was were can could will would should must has had does did
"""
# Capitalized words that are not names, at the beginning of a sentence or always.
_CAPITALIZED = """
    a an the this that these those it he she they we you i its his her their our your my there here what who which
    when where why how if in on at by for from to of with as after before during since while although because and but
    or not no all some many most each every both several other another one two three first then thus however also
    january february march april may june july august september october november december
"""
# Auxiliaries come before "not", and at the beginning of a question.
_AUXILIARIES, _NO_NAMES = frozenset(_BEFORE_NOT.split()), frozenset(_CAPITALIZED.split())
_NAME = re.compile(r"\b[A-Z][\w-]+(?: [A-Z][\w-]+)*")
_MOST_SUBJECT_WORDS = 5


def negate(sentence: str) -> str | None:
    """Insert "not" after the first auxiliary, or remove it there; None if there is no auxiliary."""
    words = sentence.split()
    after = next((place + 1 for place, word in enumerate(words) if word.lower() in _AUXILIARIES), None)
    if after is None or after == len(words):
        return None
    rest = words[after + 1 :] if words[after] == "not" else ["not", *words[after:]]
    return " ".join([*words[:after], *rest])


def ask(sentence: str) -> str | None:
    """Turn a statement into a question: "The river is long." to "Is the river long?"; None if that fails."""
    words = sentence.split()
    place = next((place for place, word in enumerate(words) if word in _AUXILIARIES), 0)
    # A beginning that is long or has a comma contains more than the subject.
    if not sentence.endswith(".") or not 0 < place <= _MOST_SUBJECT_WORDS or "," in "".join(words[:place]):
        return None
    subject = [words[0].lower() if words[0].lower() in _NO_NAMES - {"i"} else words[0], *words[1:place]]
    return " ".join([words[place].capitalize(), *subject, *words[place + 1 :]]).rstrip(".") + "?"


def swap(sentence: str) -> str | None:
    """Swap the two names in a sentence: "Then France beat Spain." becomes "Then Spain beat France.".

    None unless there are exactly two. A single capitalized word at the beginning does not count as a name.
    """
    names = []
    for match in _NAME.finditer(sentence):
        start, name = match.start(), match.group()
        while name.partition(" ")[0].lower() in _NO_NAMES:
            first, _, name = name.partition(" ")
            start += len(first) + 1
        if name and (start or " " in name):
            names.append((start, name))
    if len(names) != 2 or names[0][1] == names[1][1]:
        return None
    (start, left), (second, right) = names
    between = sentence[start + len(left) : second]
    return sentence[:start] + right + between + left + sentence[second + len(right) :]


RULES: Mapping[str, Callable[[str], str | None]] = {"names swapped": swap, "negated": negate, "as a question": ask}


def altered_pairs(sentences: Sequence[str], most: int) -> dict[str, list[tuple[str, str]]]:
    """Apply each rule to the first `most` sentences that it fits; return pairs of sentence and result by rule."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, rule in RULES.items():
        pairs = ((sentence, other) for sentence in sentences if (other := rule(sentence)) and other != sentence)
        found[name] = [pair for _, pair in zip(range(most), pairs, strict=False)]
    return found
