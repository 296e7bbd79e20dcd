"""Finished students: `sd export` to ONNX or a smaller folder, `sd push` to the hub, `sd report` to HTML."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sentence_distill.cli.console import print_table, stopped_by_signals
from sentence_distill.cli.options import SectionedCommand, options_of
from sentence_distill.cli.out_file import check_file
from sentence_distill.data.progress import counted
from sentence_distill.student.config import ExportConfig, ReportConfig

if TYPE_CHECKING:
    from sentence_distill.student.export import Exported
    from sentence_distill.student.reduce import Fidelity

_COLUMNS = {
    "kept": "squared length kept",
    "rank_agreement": "rank agreement",
    "recall_at_10": "recall@10",
    "teacher_rank_agreement": "with the teacher: rank agreement",
    "teacher_recall_at_10": "recall@10",
}
# With fewer sentences, the second decimal of every column is noise.
_FEW_ROWS = 100


@click.command(cls=SectionedCommand)
@options_of(ExportConfig, basic=("student", "format", "out", "dim", "float16", "int8", "overwrite"))
@click.option("--onnx", is_flag=True, hidden=True, expose_value=False)
@stopped_by_signals("stopped; nothing was written")
def export(config: ExportConfig) -> None:
    """Export a student to ONNX, or to a smaller student.

    STUDENT is a folder, minilm-small, or a name on the hub. [default: distilled] The export is one ONNX file and its
    tokenizer, for programs without PyTorch and without this package; a student that sd finetune made becomes a
    classifier. The command reports how closely the export matches the student, and how fast both are.

    --format folder writes a smaller student instead, which is used like any other: --dim makes its vectors narrower,
    --float16 halves its size. This takes neither training nor the teacher.

    \b
      sd export distilled
      sd export distilled --int8 --out small/
      sd export distilled --dim 64,128,256
      sd export distilled --dim 128 --format folder --out distilled-128/
    """
    from sentence_distill.student.export_folder import check_export

    check_export(config)
    from sentence_distill.student.export import export as run

    exported = run(config)
    if exported.fidelity:
        _print_fidelity(exported.fidelity)
    if exported.record:
        _print_onnx(exported)
    elif exported.folder:
        if config.dim:
            click.echo(f"{counted(config.dim[0], 'dimension')} instead of {exported.fidelity[-1].dim}")
        size = sum(file.stat().st_size for file in exported.folder.rglob("*") if file.is_file())
        click.echo(f"{exported.folder}: a student of {size / 1e6:.1f} MB")
        click.echo(f"next: sd eval {shlex.quote(str(exported.folder))}")
    else:
        click.echo(f"next: sd export {shlex.quote(config.student)} --dim {config.dim[-1]}")


def _print_fidelity(found: "Sequence[Fidelity]") -> None:
    from sentence_distill.student.figures import too_few

    shown = {name: title for name, title in _COLUMNS.items() if getattr(found[0], name) is not None}
    rows = found[0].measured_rows
    unseen = counted(rows, "sentence")
    click.echo(f"Compared with the full {found[-1].dim} dimensions, over {unseen} not used to find the reduction:")
    table = [(str(each.dim), *(f"{getattr(each, name):.4f}" for name in shown)) for each in found]
    print_table(("dimensions", *shown.values()), table, names=0)
    if "recall_at_10" not in shown:
        click.echo(f"recall@10: {too_few(rows)}")
    if rows < _FEW_ROWS:
        click.echo(f"warning: {unseen} measured, too few for reliable figures; add text with --corpus", err=True)


def _print_onnx(exported: "Exported") -> None:
    from sentence_distill.student.export import describe, describe_agreement, next_command
    from sentence_distill.student.onnx_student import EXPORT_README, MODEL, TOKENIZER

    record, folder = exported.record, exported.folder
    assert record is not None
    assert folder is not None
    sizes = {name: (folder / name).stat().st_size / 1e6 for name in (MODEL, TOKENIZER)}
    click.echo(describe(record, exported.labels))
    click.echo(f"{'int8' if record.int8 else 'float32'}, vocabulary of {counted(record.vocabulary, 'token')}")
    click.echo(", ".join(f"{name} {megabytes:.2f} MB" for name, megabytes in sizes.items()))
    if record.agreement is None or record.latency_ms is None:
        click.echo(f"not measured: {exported.skipped}")
    else:
        click.echo(describe_agreement(record.agreement))
        timed = "; ".join(f"{name} {taken.p50:.2f} / {taken.p99:.2f}" for name, taken in record.latency_ms.items())
        click.echo(f"one sentence on one thread, p50 / p99 in ms: {timed}")
    click.echo(f"export: {folder}")
    command = next_command(record, str(folder))
    click.echo(f"next: {command}; without this package: the script in {folder / EXPORT_README}")


@click.command()
@click.argument("student", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Create a private repository; fails if there is a public one.")
@click.option(
    "--revision", metavar="BRANCH", default=None, help="Branch to push to, created if missing.  [default: main]"
)
@click.option("--message", default="Upload a student", show_default=True, help="Commit message.")
@click.option(
    "--license",
    "licence",
    metavar="ID",
    default=None,
    help="License for the model card, by the hub's identifier (apache-2.0, mit, cc-by-sa-4.0, ...).",
)
@click.option("--keep-card", is_flag=True, help="Push README.md with your edits instead of generating a new card.")
@click.option("--dry-run", is_flag=True, help="List the files that would be pushed, without using the network.")
def push(
    student: Path,
    repo: str,
    private: bool,
    revision: str | None,
    message: str,
    licence: str | None,
    keep_card: bool,
    dry_run: bool,
) -> None:
    """Push a student to the Hugging Face hub, with a model card.

    Log in with hf auth login, or set HF_TOKEN. Only the files needed to load the student are pushed, with the card and
    distillation.json. The student can then be loaded by its name, here and in sentence-transformers.

    \b
      sd push distilled my-name/my-student --private
      sd push distilled my-name/my-student --license apache-2.0 --dry-run
    """
    if licence and keep_card:
        raise click.UsageError("--license goes into a new card: leave out --keep-card, or write it into README.md")
    from sentence_distill.student.figures import load_distillation
    from sentence_distill.student.files import CARD, require_own_folder
    from sentence_distill.student.push import prepare_upload
    from sentence_distill.student.push import push as send

    require_own_folder(student)
    upload = prepare_upload(student, repo, licence=licence, keep_card=keep_card)
    sizes = upload.sizes()
    for path, size in sizes.items():
        click.echo(f"  {path:40} {_shown(size):>9}")
    total, branch = _shown(sum(sizes.values())), f" ({revision})" if revision else ""
    click.echo(f"{counted(len(sizes), 'file')}, {total}, to {repo}{branch}")
    if not (licence or keep_card or load_distillation(student).get("licence")):
        click.echo(f"note: {CARD} names no license; mind those of the teacher and the corpus, and set --license")
    if dry_run:
        return
    page = send(upload, message=message, private=private, revision=revision)
    name, other = (f"{repo}@{revision}", f', revision="{revision}"') if revision else (repo, "")
    click.echo(f'pushed: {page}\nload it: Student.load("{name}"), or SentenceTransformer("{repo}"{other})')


def _shown(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


@click.command()
@options_of(ReportConfig)
@stopped_by_signals("stopped; nothing was written")
def report(config: ReportConfig) -> None:
    """Write a self-contained HTML report of a student.

    It shows what sd train-student and sd eval recorded in the student's folder. For figures that are missing, it names
    the command that measures them.

    \b
      sd report distilled --out report.html
      sd report distilled --note 'QQP=not the official split'
    """
    from sentence_distill.student.figures import load_distillation
    from sentence_distill.student.files import require_own_folder

    def is_report(path: Path) -> bool:
        return b'<meta name="generator" content="sentence-distill report">' in path.read_bytes()[:1000]

    require_own_folder(config.student)
    load_distillation(config.student)
    check_file(config.out, config.overwrite, own=is_report)

    from sentence_distill.student.report import write_report

    for what, how in write_report(config).items():
        click.echo(f"not measured: {what}: {how}")
    click.echo(f"report: {config.out}")
