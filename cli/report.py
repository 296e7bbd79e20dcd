"""`sd report`: an HTML report of a student."""

from pathlib import Path

import click

from sentence_distill.cli.console import stopped_by_signals
from sentence_distill.cli.options import options_of
from sentence_distill.cli.out_file import check_free, check_parent
from sentence_distill.student.config import ReportConfig


@click.command()
@options_of(ReportConfig)
@stopped_by_signals("stopped; nothing was written")
def report(config: ReportConfig) -> None:
    """Write a self-contained HTML report of a student, from what training and sd eval left in its folder.

    The page fetches nothing. What was not measured yet is named in it with the command that measures it.

    \b
      sd report distilled --out report.html
      sd report distilled --note 'QQP=another split than the official one'
    """
    from sentence_distill.student.files import load_distillation, require_own_folder

    require_own_folder(config.student)
    load_distillation(config.student)
    check_parent(config.out)
    check_free(config.out, config.overwrite, own=_is_report)

    from sentence_distill.student.report import write_report

    for section, reason in write_report(config).items():
        if reason:
            click.echo(f"{section}: {reason}")
    click.echo(f"report: {config.out}")


def _is_report(path: Path) -> bool:
    return b'<meta name="generator" content="sentence-distill report">' in path.read_bytes()[:1000]
