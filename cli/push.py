"""`sd push`: a student to the hub."""

from pathlib import Path

import click


@click.command()
@click.argument("student", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="A new repository is seen by its owner only; refused where it is public.")
@click.option("--revision", metavar="BRANCH", default=None, help="Branch to push to, made if missing.  [default: main]")
@click.option("--message", default="Upload a student", show_default=True, help="Of the commit.")
@click.option(
    "--license",
    "licence",
    metavar="ID",
    default=None,
    help="Under which you publish it, as the hub names it (apache-2.0, mit, cc-by-sa-4.0, ...); goes into the card.",
)
@click.option(
    "--keep-card", is_flag=True, help="Send README.md with your edits, and don't make one of all figures in the folder."
)
@click.option("--dry-run", is_flag=True, help="List what would be sent, and ask no network.")
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
    """Send the student in a folder to the model hub, with a model card.

    The token is that of hf auth login, or HF_TOKEN. Only what loading needs is sent, with the card and
    distillation.json. The student then loads by its name, here and in sentence-transformers.

    \b
      sd push distilled my-name/my-student --private
      sd push distilled my-name/my-student --license apache-2.0 --dry-run
    """
    if licence and keep_card:
        raise click.UsageError("--license goes into a new card: leave out --keep-card, or write it into README.md")
    from sentence_distill.student.files import CARD, load_distillation, require_own_folder
    from sentence_distill.student.push import prepare_upload
    from sentence_distill.student.push import push as send

    require_own_folder(student)
    upload = prepare_upload(student, repo, licence=licence, keep_card=keep_card)
    sizes = upload.sizes()
    for path, size in sizes.items():
        click.echo(f"  {path:40} {_shown(size):>9}")
    click.echo(f"{len(sizes)} files, {_shown(sum(sizes.values()))}, to {repo}{f' ({revision})' if revision else ''}")
    if not (licence or keep_card or load_distillation(student).get("licence")):
        click.echo(f"note: {CARD} states no licence; those of the teacher and the corpus apply, see --license")
    if dry_run:
        return
    page = send(upload, message=message, private=private, revision=revision)
    name, other = (f"{repo}@{revision}", f', revision="{revision}"') if revision else (repo, "")
    click.echo(f'pushed: {page}\nload it: Student.load("{name}"), or SentenceTransformer("{repo}"{other})')


def _shown(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
