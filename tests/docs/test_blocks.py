"""Every block of code in README.md and docs/ does what the page says, or at least still parses."""

import ast
import importlib
import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import click
import pytest

from sentence_distill.cli.main import sd as group
from tests.docs.blocks import (
    LANGUAGES,
    PAGES,
    Block,
    command_lines,
    name_of,
    needs_a_shell,
    option_spans,
    read_blocks,
    sd_calls,
    sd_spans,
    words,
)

# The machine has what they install.
INSTALLERS = {"pip"}
# What a page makes itself it does not find there.
MADE_BY = {"sample": "wiki.txt", "embed": "shards", "train-student": "distilled"}


def pages(has: Callable[[Path], object]):
    return pytest.mark.parametrize("page", [page for page in PAGES if has(page)], ids=name_of)


@pages(read_blocks)
def test_each_block_names_its_language(page):
    unknown = [block.place for block in read_blocks(page) if block.language not in LANGUAGES]
    assert not unknown, f"a fence needs one of {', '.join(sorted(LANGUAGES))}"


@pages(lambda page: any(block.run for block in read_blocks(page)))
def test_the_blocks_of_a_page_run_one_after_the_other(page, workplace, sd, capfd):
    names: dict[str, object] = {"__name__": "page"}
    for block in read_blocks(page):
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.run and block.language == "python":
            # Blank lines before it, so that a traceback shows the page's line.
            exec(compile("\n" * block.line + block.text, block.page, "exec"), names)
        elif block.run:
            for line in command_lines(block.text):
                code = run(line, sd)
                assert code == 0, f"{block.place}: {line!r} ended with {code}\n{''.join(capfd.readouterr())[-2000:]}"


def run(line: str, sd: Callable[..., int]) -> int:
    """Run a command of a page, `sd` in this process, where its start takes no seconds; its exit code."""
    if needs_a_shell(line):
        return subprocess.run(["sh", "-ec", line], check=False).returncode
    command, *arguments = words(line)
    if command in INSTALLERS:
        return 0
    if command != "sd":
        return subprocess.run([command, *arguments], check=False).returncode
    make_room(arguments)
    return sd(*arguments)


def make_room(arguments: list[str]) -> None:
    default = MADE_BY.get(arguments[0], "")
    given = dict(pairwise(arguments)).get("--out", default).rstrip("/")
    if default and given == default and "--overwrite" not in arguments:
        shutil.rmtree(default, ignore_errors=True)
        Path(default).unlink(missing_ok=True)


@pytest.fixture
def parse(monkeypatch):
    """Reads a command line as `sd` does, and does nothing."""

    def idle(command: click.Command) -> None:
        monkeypatch.setattr(command, "callback", lambda *args, **kwargs: None)
        for child in getattr(command, "commands", {}).values():
            idle(child)

    idle(group)
    # Neither files nor a configuration have to be there.
    monkeypatch.setattr(click.Path, "convert", lambda self, value, parameter, context: Path(value))
    monkeypatch.setattr("sentence_distill.cli.options._read", lambda path: {})

    def parse_arguments(arguments: list[str]) -> None:
        group.main(arguments, prog_name="sd", standalone_mode=False)

    return parse_arguments


@pages(lambda page: any(block.language == "sh" for block in read_blocks(page)))
def test_each_call_of_sd_has_options_that_exist(page, parse):
    for block in read_blocks(page):
        for arguments in sd_calls(block.text) if block.language == "sh" else ():
            try:
                parse(arguments)
            except click.ClickException as error:
                pytest.fail(f"{block.place}: sd {' '.join(arguments)}: {error.format_message()}")


@pages(sd_spans)
def test_each_call_of_sd_in_the_prose_has_options_that_exist(page, parse):
    for arguments in sd_spans(page):
        try:
            parse(arguments)
        except click.NoSuchOption as error:
            pytest.fail(f"{page.name}: `sd {' '.join(arguments)}`: {error.format_message()}")
        except click.UsageError as error:
            # Placeholders stand for values there, and what is required may be left out.
            if "No such command" in error.format_message():
                pytest.fail(f"{page.name}: `sd {' '.join(arguments)}`: {error.format_message()}")


@pages(option_spans)
def test_each_option_in_the_prose_is_one_of_sd(page):
    def known(command: click.Command) -> set[str]:
        names = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
        return names.union(*map(known, getattr(command, "commands", {}).values()))

    assert set(option_spans(page)) - known(group) == set()


def python_blocks(page: Path) -> list[Block]:
    return [block for block in read_blocks(page) if block.language == "python" and not block.run]


@pages(python_blocks)
def test_python_that_is_not_run_imports_what_there_is(page):
    for block in python_blocks(page):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sentence_distill"):
                module = importlib.import_module(node.module)
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{block.place}: {node.module} has no {missing}"
