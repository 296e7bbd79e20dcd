"""The command `sd`: its subcommands, and the exit code and message for each kind of error."""

import errno
import os
import sys
import traceback

import click

from sentence_distill.cli.console import ConsoleDisplay, drop_standard_output, stopped_by_signals
from sentence_distill.cli.embed import embed, sample, shards
from sentence_distill.cli.encode import encode
from sentence_distill.cli.eval import evaluate
from sentence_distill.cli.export import export, push, report
from sentence_distill.cli.finetune import finetune, predict
from sentence_distill.cli.train_student import train_student
from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import shown_on

_ALIASES = {"train": "train-student"}


class _Commands(click.Group):
    """Commands in the order in which they are used; `sd train` is short for `sd train-student`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple:  # type: ignore[type-arg]
        return super().resolve_command(ctx, [_ALIASES.get(args[0], args[0]), *args[1:]])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Click cuts each description to one line; without a limit, it wraps them.
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands[name].get_short_help_str(limit=1000)) for name in self.commands])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sentence-distill", prog_name="sd")
def sd() -> None:
    """Distill a BERT sentence encoder into a small BiLSTM, in two stages.

    \b
      sd sample                                  write a corpus to start with, wiki.txt
      sd embed --corpus wiki.txt --out shards/   stage one: run the teacher once
      sd train-student --shards shards/          stage two: train the student on the shards
      sd eval                                    measure fidelity, STS-B and speed
      sd encode --input FILE --out FILE          encode your own sentences
    """


# In the order of work, which is the order of `sd --help`.
for command in (
    *(sample, embed, shards, train_student, evaluate),
    *(finetune, predict, encode, export, push, report),
):
    sd.add_command(command)


# Packages whose import name is not the name they are installed by.
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "pyyaml", "google": "protobuf", "PIL": "pillow"}


def main() -> None:
    """Run `sd`; a user's mistake ends it with one line and exit code 1, wrong usage with 2.

    With SD_DEBUG=1 a traceback precedes that line.
    """
    # Without it the tokenizers library warns at each fork; nothing here forks after tokenizing.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        # Commands that keep partial results have a message of their own; this one is for all others.
        with shown_on(ConsoleDisplay()), stopped_by_signals("stopped before the end"):
            sys.exit(_run())
    except UserError as error:
        _end(f"{error}", error.exit_code)
    except ModuleNotFoundError as error:
        # A dependency is missing. `importlib.metadata.version` raises a subclass of this error, too.
        package = (error.name or str(error)).partition(".")[0]
        package = _DISTRIBUTIONS.get(package, package)
        _end(f"the package {package} is not installed here; install it: pip install {package}")
    except BrokenPipeError:
        drop_standard_output()
        sys.exit(1)
    except OSError as error:
        # A missing permission, for example: the message has the reason and the path.
        hint = "; free some space, then run the same command again"
        _end(f"{error}{hint if error.errno == errno.ENOSPC else ''}")


def _end(message: str, code: int = 1) -> None:
    if os.environ.get("SD_DEBUG") == "1":
        traceback.print_exc()
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def _run() -> int:
    """Run `sd` and return its exit code."""
    try:
        # A command returns None, --help an exit code.
        return sd.main(standalone_mode=False) or 0
    except click.Abort:
        # Click turns an interrupt into Abort, which would print "Aborted!" and nothing else.
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
