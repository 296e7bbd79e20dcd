"""Build the documentation's site: `make docs`, or `python docs/build_site.py FOLDER`.

The pages are written to be read in the repository too. What the site has beside them is made here, at each build: every
command's options, the README's limits, and links to files of the repository that the site holds elsewhere.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from check_site import problems

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_EXTERNAL = re.compile(r"^[a-z]+:")
# Behind the language of a fence: for tests/docs, and of no meaning to the site.
_NO_RUN = re.compile(r"^(```\w+) no-run\b", re.MULTILINE)
_LIMITS = re.compile(r"^## Limits$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_MEASURED = "measured"


def site_path(path: Path) -> str | None:
    """Where the site has a file of the repository, from its root; None where it has it not.

    Args:
        path: from the repository's root.
    """
    special = {
        "CHANGELOG.md": "changelog.md",
        "CONTRIBUTING.md": "contributing.md",
        "benchmarks/results": "measured.md",
    }
    if str(path) in special:
        return special[str(path)]
    if path.parent == Path("benchmarks") and path.suffix == ".md":
        return f"log-{path.name}"
    if path.parent == Path("benchmarks/results"):
        return f"{_MEASURED}/{path.name}"
    if path.is_relative_to("docs"):
        return str(path.relative_to("docs"))
    return None


def for_site(text: str, folder: Path) -> str:
    """A page as the site takes it: links lead to where the site has their files; without a place there, they go.

    Args:
        text: Markdown.
        folder: the page's, from the repository's root.
    """

    def relink(match: re.Match[str]) -> str:
        mark, label, target = match.groups()
        if _EXTERNAL.match(target) or target.startswith("#"):
            return match.group()
        path, hash_mark, anchor = target.partition("#")
        place = site_path(Path(os.path.normpath(folder / path)))
        return label if place is None else f"{mark}[{label}]({place}{hash_mark}{anchor})"

    return _NO_RUN.sub(r"\1", _LINK.sub(relink, text))


def limits(readme: str) -> str:
    """The README's section of what was not measured: the site has it behind the results."""
    found = _LIMITS.search(readme)
    if found is None:
        raise ValueError("README.md has no section 'Limits'")
    return for_site(found.group(), Path())


def measured_page(files: list[Path]) -> str:
    """A list of the files that the benchmarks wrote."""
    rows = "\n".join(f"- [{file.name}]({_MEASURED}/{file.name})" for file in files)
    return f"# Files\n\nThe files that the scripts in `benchmarks/` wrote; the logs explain them.\n\n{rows}\n"


def commands_page(group: click.Group) -> str:
    """Every command's usage, description and options, from the commands themselves."""
    head = "# Commands\n\nEvery command and its options, as `sd COMMAND --help` shows them.\n"
    return head + "".join(_command(click.Context(group, info_name="sd"), group, nested=False))


def _command(context: click.Context, command: click.Command, *, nested: bool) -> list[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"\n{'###' if nested else '##'} {context.command_path}\n\n```text\n{usage}\n```\n"]
    # A group's lines have remarks beside the commands, so they are nothing to copy.
    examples = "text" if isinstance(command, click.Group) else "sh"
    parts += [_paragraph(text, examples) for text in re.split(r"\n\s*\n", (command.help or "").expandtabs())]
    records = [option.get_help_record(context) for option in command.params]
    rows = [f"| {_code(names)} | {_cell(text)} |\n" for names, text in filter(None, records)]
    if rows:
        parts += ["\n| option | what it does |\n| --- | --- |\n", *rows]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                inner = click.Context(child, info_name=name, parent=context)
                parts += _command(inner, child, nested=context.parent is not None)
    return parts


def _paragraph(text: str, examples: str) -> str:
    # click prints what follows a backspace as it stands; in these commands that is examples.
    if text.lstrip().startswith("\b"):
        lines = "\n".join(line.strip() for line in text.replace("\b", "").strip().splitlines())
        return f"\n```{examples}\n{lines}\n```\n"
    return f"\n{_plain(' '.join(text.split()))}\n"


def _code(names: str) -> str:
    return f"`{names}`".replace("|", "\\|")


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    return re.sub(r"([\[\]<>*_])", r"\\\1", text)


def stage(folder: Path) -> None:
    """Lay the site's sources into a folder: its configuration and `docs/`."""
    from sentence_distill.cli.main import sd

    shutil.copy(ROOT / "zensical.toml", folder)
    docs = folder / "docs"
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for page in docs.rglob("*.md"):
        page.write_text(for_site(page.read_text(encoding="utf-8"), Path("docs")), encoding="utf-8")
    for log in (ROOT / "benchmarks").glob("*.md"):
        (docs / f"log-{log.name}").write_text(
            for_site(log.read_text(encoding="utf-8"), Path("benchmarks")), encoding="utf-8"
        )
    shutil.copytree(ROOT / "benchmarks/results", docs / _MEASURED)
    names = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
    readme, changelog, contributing = ((ROOT / name).read_text(encoding="utf-8") for name in names)
    results, _, next_step = (docs / "results.md").read_text(encoding="utf-8").rpartition("\nNext:")
    made = {
        "changelog": for_site(changelog, Path()),
        "contributing": for_site(contributing, Path()),
        "results": f"{results}\n{limits(readme)}\nNext:{next_step}",
        "measured": measured_page(sorted((docs / _MEASURED).iterdir())),
        "commands": commands_page(sd),
    }
    for name, text in made.items():
        (docs / f"{name}.md").write_text(text, encoding="utf-8")


def build(site: Path) -> int:
    """Build the site into a folder, which is replaced; the exit code, 1 where there is a warning or a dead link."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage(folder)
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        if code := subprocess.run(command, cwd=folder, check=False).returncode:
            return code
        # The generator itself looks after links between pages, not after pictures and files.
        if found := problems(folder.resolve() / "site"):
            print(*found, sep="\n", file=sys.stderr)
            return 1
        shutil.rmtree(site, ignore_errors=True)
        shutil.copytree(folder / "site", site)
    return 0


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site")))
