"""The group of commands, and how errors end the process."""

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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="sentence-distill", prog_name="sd")
def sd() -> None:
    """Distil a BERT sentence encoder into a small BiLSTM, in two stages.

    \b
      sd embed --corpus wiki.txt --out shards/   the teacher runs once
      sd train-student --shards shards/          the student learns from the shards
      sd eval                                    fidelity, STS-B and speed
      sd eval --glue                             fine-tunes and scores the student on GLUE
      sd report                                  a page of HTML with all that is known of the student
      sd encode --input FILE --out FILE          vectors of a file's sentences
    """


for command in (embed, train_student, evaluate, encode, report, export, push, finetune, predict, shards, sample):
    sd.add_command(command)


# Packages that are imported under another name than they are installed by.
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "pyyaml", "google": "protobuf", "PIL": "pillow"}


def main() -> None:
    """Run `sd`; a user's mistake ends it with one line and exit code 1, wrong usage with 2.

    With SD_DEBUG=1 the traceback comes before that line.
    """
    # Rust's tokenizers warn at each fork otherwise; nothing here forks after they were used.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        # Commands that keep something say so; this is for all others, and for the time before they begin.
        with shown_on(ConsoleDisplay()), stopped_by_signals("stopped before the end"):
            sys.exit(_run())
    except UserError as error:
        _end(f"{error}", error.exit_code)
    except ModuleNotFoundError as error:
        # Installed without what it needs; a package whose version is asked for is missed by an error of this kind too.
        package = (error.name or str(error)).partition(".")[0]
        package = _DISTRIBUTIONS.get(package, package)
        _end(f"the package {package} is not installed here; install it: pip install {package}")
    except BrokenPipeError:
        drop_standard_output()
        sys.exit(1)
    except OSError as error:
        # A missing permission, say: the reason and the place are the message.
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
        # A function's own result is None, and that of --help a code.
        return sd.main(standalone_mode=False) or 0
    except click.Abort:
        # What click makes of an interrupt, to print no more than "Aborted!".
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
