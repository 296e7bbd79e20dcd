from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import pytest
from click.testing import CliRunner

from sentence_distill.cli.options import config_option, options_of
from sentence_distill.data.errors import UserError
from sentence_distill.data.options import check, command_line, option, parse_seconds


@dataclass(frozen=True, kw_only=True)
class Inner:
    words: int = option(3, "Reject shorter sentences.", least=1)
    split: bool = option(True, "Split lines into sentences.", flags=("--split/--no-split",))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Job:
    inputs: tuple[str, ...] = option(
        (), "File to read; may be repeated.", argument=True, repeated=True, flags=("--corpus",), metavar="[CORPUS]..."
    )
    rules: Inner = Inner()
    rate: float = option(4e-3, "Learning rate.", above=0)
    keep_text: bool = option(True, "Keep token ids only.", flags=("--no-text",))
    scores: bool | None = option(None, "Labels are scores, or classes.", flags=("--regression/--classes",))
    fast: bool = option(False, "Hurry.")
    dtype: Literal["float16", "float32"] | None = option(None, "Type on disk.", shown="float16, for logits float32")
    layers: tuple[int, ...] = option((-1,), "Layers to pool.", metavar="N[,N…]")
    max_time: float | None = option(None, "Stop after this time.", parse=parse_seconds)
    out: Path = option(Path("out"), "Folder to write.", flags=("--out", "-o"))

    def __post_init__(self) -> None:
        check(self)


@click.command()
@config_option
@options_of(Job)
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def job(config: Job, overwrite: bool) -> None:
    """Do it."""
    click.echo(repr((config, overwrite)))


def run(*arguments):
    result = CliRunner().invoke(job, [*map(str, arguments)], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output.strip()


def test_a_config_s_defaults_are_those_of_its_command():
    assert run() == repr((Job(), False))


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        (["a.txt", "--corpus", "b.txt"], Job(inputs=("a.txt", "b.txt"))),
        (["--words", 1, "--no-split"], Job(rules=Inner(words=1, split=False))),
        (["--no-text", "--fast", "--classes"], Job(keep_text=False, fast=True, scores=False)),
        (["--rate", "1e-3", "--layers", "3,6", "--dtype", "float32"], Job(rate=1e-3, layers=(3, 6), dtype="float32")),
        (["--max-time", "30m", "-o", "there"], Job(max_time=1800.0, out=Path("there"))),
    ],
)
def test_options_become_the_config_and_the_config_the_command(arguments, config):
    assert run(*arguments) == repr((config, False))
    written = command_line("job", config).split()[2:]
    assert run(*written) == repr((config, False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--words", "0"], "--words': '0' must be at least 1"),
        (["--rate", "nan"], "must be a finite number"),
        (["--rate", "0"], "must be above 0"),
        (["--dtype", "int8"], "must be float16 or float32"),
        (["--layers", "x"], "'x' is not a list of whole numbers such as 1,8"),
        (["--max-time", "soon"], "'soon' is not a time such as 90s, 30m or 2h"),
        (["--words", "few"], "'few' is not a whole number"),
    ],
)
def test_a_wrong_value_is_wrong_usage(arguments, message):
    with pytest.raises(click.BadParameter) as error:
        run(*arguments)
    assert message in error.value.format_message()


def test_python_is_told_the_option_as_well():
    with pytest.raises(UserError, match=r"^--words must be at least 1, not 0$"):
        Inner(words=0)
    with pytest.raises(UserError, match=r"^--dtype must be float16 or float32, not 'int8'$"):
        Job(dtype="int8")


def test_options_come_from_a_file_too(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("words: 5\nlayers: [1, 2]\nmax-time: 2h\nsplit: false\n")
    config = Job(rules=Inner(words=7, split=False), layers=(1, 2), max_time=7200.0)
    assert run("--config", file, "--words", 7) == repr((config, False))


def test_the_help_says_type_and_default(capsys):
    with pytest.raises(SystemExit):
        job.main(["--help"], standalone_mode=True)
    text = " ".join(capsys.readouterr().out.split())
    for shown in (
        "--words N Reject shorter sentences. [default: 3]",
        "--split / --no-split Split lines into sentences. [default: split]",
        "--dtype [float16|float32] Type on disk. [default: float16, for logits float32]",
        "--layers N[,N…] Layers to pool. [default: -1]",
        "--no-text Keep token ids only.",
        "-o, --out PATH Folder to write. [default: out]",
    ):
        assert shown in text
