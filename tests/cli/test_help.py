"""Help texts: what `sd --help` and `sd COMMAND --help` show."""

import re

import click
import pytest
from click.testing import CliRunner

from sentence_distill.cli.main import sd as group
from sentence_distill.data.progress import counted

ORDER = ["sample", "embed", "shards", "train-student", "eval"]
ORDER += ["finetune", "predict", "encode", "export", "push", "report"]


def help_of(*command, width=80):
    result = CliRunner().invoke(group, [*command, "--help"], prog_name="sd", terminal_width=width)
    assert result.exit_code == 0, result.output
    return result.output


def sections(text):
    """Return the option names under each heading of a help text."""
    found, names = {}, None
    for line in text.splitlines():
        if re.fullmatch(r"\S.*:", line):
            names = found.setdefault(line.removesuffix(":"), [])
        elif names is not None and (match := re.match(r"  (?:-\w, )?(--[\w-]+)", line)):
            names.append(match[1])
    return found


def test_commands_are_listed_in_the_order_of_work_and_described_whole():
    text = help_of()
    listed = text.partition("Commands:\n")[2]
    assert re.findall(r"^  (\S+)", listed, re.MULTILINE) == ORDER
    words = " ".join(listed.split())
    assert "..." not in words
    for name in ORDER:
        first, _, _ = group.commands[name].help.partition("\n\n")
        assert f"{name} {' '.join(first.split())}" in words


def test_train_is_short_for_train_student():
    assert help_of("train") == help_of("train-student")


def test_a_mistyped_command_is_met_with_a_suggestion():
    result = CliRunner().invoke(group, ["trian-student"])
    assert result.exit_code == 2
    assert "Did you mean 'train-student'?" in result.output


@pytest.mark.parametrize("name", ORDER)
def test_every_option_has_a_help_that_is_a_sentence(name):
    command = group.commands[name]
    commands = list(command.commands.values()) if isinstance(command, click.Group) else [command]
    for option in (each for command in commands for each in command.params if isinstance(each, click.Option)):
        if option.hidden:
            continue
        text = re.sub(r"\s*\[default: [^\]]*\]$", "", option.help or "")
        assert text[:1].isupper() or text[:1].isdigit(), (name, option.opts, text)
        assert text.endswith("."), (name, option.opts, text)
        assert not re.match(r"(Of|What|Whether|That|Which|How)\b", text), (name, option.opts, text)


@pytest.mark.parametrize(
    ("name", "basic", "advanced"),
    [
        ("embed", {"--corpus", "--out", "--teacher"}, {"--pooling", "--shard-rows", "--engine"}),
        ("train-student", {"--config", "--shards", "--size", "--overwrite"}, {"--hidden", "--temperature", "--clip"}),
        ("eval", {"--student", "--sts", "--glue", "--speed"}, {"--transfer"}),
        ("finetune", {"--train", "--teacher", "--max-time"}, {"--learning-rate", "--synthetic", "--logits"}),
        ("encode", {"--input", "--out", "--overwrite"}, {"--backend", "--threads"}),
        ("export", {"--out", "--dim", "--int8"}, {"--sentences"}),
    ],
)
def test_basic_options_come_first_and_the_others_under_headings_of_their_own(name, basic, advanced):
    found = sections(help_of(name))
    assert list(found)[:2] == ["Options", "Advanced options"]
    assert basic <= {*found["Options"]}
    assert advanced <= {*found["Advanced options"]}
    assert not {*found["Options"]} & {*found["Advanced options"]}


def test_options_of_a_run_of_eval_have_a_heading_of_their_own():
    found = sections(help_of("eval"))
    assert list(found) == ["Options", "Advanced options", "Options of --glue", "Options of --speed"]
    assert {"--tasks", "--seeds", "--epochs"} <= {*found["Options of --glue"]}
    assert found["Options of --speed"] == ["--sentences", "--threads", "--rounds", "--batch-sizes"]


@pytest.mark.parametrize(("number", "text"), [(0, "0 shards"), (1, "1 shard"), (2, "2 shards"), (1500, "1,500 shards")])
def test_a_count_agrees_with_its_noun(number, text):
    assert counted(number, "shard") == text
    assert counted(1, "class", "classes") == "1 class"
    assert counted(3, "class", "classes") == "3 classes"
