"""The blocks of code in the documentation's pages, and the calls of `sd` in them.

A fence names its language; further words are for this: "no-run" is not run but read, and a title is the name of a
file, which is written in place of being run.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
LANGUAGES = {"sh", "python", "text", "yaml", "toml", "json", "jsonl", "tsv", "csv", "javascript", "rust"}
RUN = {"sh", "python"}

_FENCE = re.compile(r"^( *)```(\S*)(.*)$")
_TITLE = re.compile(r'title="([^"]+)"')
_HERE = re.compile(r"<<'?(\w+)'?")
_OPERATORS = set("();<>|&")
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `title` is "" where it has none."""

    page: str
    line: int
    language: str
    run: bool
    title: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return str(page.relative_to(ROOT))


def read_blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found: list[Block] = []
    opened: tuple[int, re.Match[str], list[str]] | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None:
            opened = (number, fence, []) if fence else None
        elif fence and not fence[2]:
            start, head, lines = opened
            title = _TITLE.search(head[3])
            written = bool(title) and head[2] not in RUN
            run = head[2] in RUN and "no-run" not in head[3].split()
            text = "".join(f"{line.removeprefix(head[1])}\n" for line in lines)
            found.append(Block(name_of(page), start, head[2], run, title[1] if written and title else "", text))
            opened = None
        else:
            opened[2].append(line)
    assert opened is None, f"{page}:{opened[0]}: the block has no end" if opened else ""
    return found


def command_lines(script: str) -> list[str]:
    """A script's commands without comments, each with its here-document; a script with loops stays whole."""
    if re.search(r"^(for|while|if)\b", script, re.MULTILINE):
        return [script]
    found = []
    lines = iter(script.replace("\\\n", " ").splitlines())
    for line in lines:
        if here := _HERE.search(line):
            found.append("\n".join([line, *iter(lines.__next__, here[1]), here[1]]))
        elif line.strip() and not line.lstrip().startswith("#"):
            found.append(line.strip())
    return found


def words(line: str) -> list[str]:
    """A command as the shell splits it, operators as words of their own."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="".join(_OPERATORS))
    lexer.whitespace_split = True
    return list(lexer)


def needs_a_shell(line: str) -> bool:
    """Return True if a command is more than words: a pipe, a redirection, a pattern, a variable."""
    bare = re.sub(r"'[^']*'|\"[^\"$]*\"|#.*", "", line)
    return bool(re.search(r"[|&;<>$`()*?~\n]", bare)) or bool(re.match(r"\w+=", bare))


def sd_calls(script: str) -> Iterator[list[str]]:
    """The arguments of each call of `sd` in a script, however it is started; a variable is taken for a 1."""
    for line in command_lines(re.sub(r"\$\{?\w+\}?", "1", script)):
        # What a here-document holds is text.
        for part in line.splitlines()[:1] if _HERE.search(line) else line.splitlines():
            command: list[str] = []
            for word in [*words(part), ";"]:
                if not set(word) <= _OPERATORS:
                    command.append(word)
                    continue
                if "sentence_distill.cli" in command:
                    yield command[command.index("sentence_distill.cli") + 1 :]
                elif "sd" in command[:3]:
                    yield command[command.index("sd") + 1 :]
                command = []


def sd_spans(page: Path) -> list[list[str]]:
    """The arguments of each `sd …` in the prose of a page, up to an ellipsis."""
    return [shlex.split(span.partition("…")[0])[1:] for span in _spans(page) if span.startswith("sd ")]


def option_spans(page: Path) -> list[str]:
    """Each `--option` in the prose of a page, without its value."""
    return [span.split()[0] for span in _spans(page) if span.startswith("--")]


def _spans(page: Path) -> list[str]:
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return _SPAN.findall(" ".join(text.split()))
