"""`sd eval`: measure models."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sentence_distill.cli.console import stopped_by_signals
from sentence_distill.cli.glue import run_glue
from sentence_distill.cli.options import options_of
from sentence_distill.cli.out_file import check_free, holds_keys
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import load_sts
from sentence_distill.data.options import fields_of
from sentence_distill.pipeline.processes import keep_freed_memory
from sentence_distill.student.config import EvalConfig, GlueConfig, SpeedConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from sentence_distill.student.figures import EvalRecord, Range, SpeedRecord

_RUNS = {"eval": "sd eval alone", "speed": "--speed", "glue": "--glue"}
# The runs that read an option; the others read all.
_READ_BY = {
    "shards": ("eval", "speed"),
    "sts": ("eval", "speed"),
    **{field.name: ("glue",) for field in fields_of(GlueConfig)},
    **{field.name: ("speed",) for field in fields_of(SpeedConfig)},
    **dict.fromkeys(("teacher", "glue_dir", "models", "json_file", "overwrite"), tuple(_RUNS)),
}
# The keys by which each run knows its own earlier file of figures.
_FIGURES = {"eval": {"models", "skipped"}, "glue": {"source", "rows"}, "speed": {"contenders", "threads"}}
_KEPT = {
    "eval": "stopped; nothing was written",
    "speed": "stopped; nothing was written",
    "glue": "stopped; the figures so far are in {}, and the same command makes the rest",
}


@click.command("eval")
@options_of(EvalConfig)
@click.option("--glue", is_flag=True, help="Fine-tune one student and score it on GLUE instead.")
@options_of(GlueConfig, into="glue_config")
@click.option("--speed", is_flag=True, help="Time the models in a process each, by threads, batch size and length.")
@options_of(SpeedConfig, into="speed_config")
def evaluate(config: EvalConfig, glue: bool, glue_config: GlueConfig, speed: bool, speed_config: SpeedConfig) -> None:
    """Measure models: fidelity, STS-B, size and speed; with --glue a student's fine-tuned scores, with --speed costs.

    MODEL is the folder of a student or of a sentence-transformers model, a name on the hub, wiki-small, minilm or
    mpnet; several are shown side by side. [default: distilled]

    What can't be measured, because its data is not here, is listed with the reason.
    """
    if glue and speed:
        raise click.UsageError("--glue and --speed are two runs; give one of them")
    kind = "glue" if glue else "speed" if speed else "eval"
    context = click.get_current_context()
    for option in context.command.params:
        runs = _READ_BY.get(str(option.name), (kind,))
        if kind not in runs and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option.opts[0]} goes with {' or '.join(_RUNS[run] for run in runs)}")
    if len(set(config.models)) < len(config.models):
        raise click.UsageError("a MODEL is named twice")

    from sentence_distill.student.figures import figures_file, models_of, sts_file
    from sentence_distill.student.files import TASK, is_student, load_distillation, require_own_folder

    models = models_of(config)
    if glue:
        if len(models) > 1:
            raise UserError(f"--glue fine-tunes one student, not {len(models)} models; run it for each")
        require_own_folder(models[0])
        load_distillation(Path(models[0]))
    elif not config.json_file and not any(map(is_student, models)):
        from sentence_distill.student.models import find_model

        for model in models:
            find_model(model)
    # All that is cheap to miss is missed before PyTorch is imported.
    file = figures_file(config, f"{kind}.json")
    if config.shards:
        from sentence_distill.pipeline.manifest import require_vectors

        require_vectors(config.shards)
    check_free(file, config.overwrite, option="--json", own=lambda path: holds_keys(path, _FIGURES[kind]))
    if sts := sts_file(config):
        load_sts(sts)
    keep_freed_memory()
    with stopped_by_signals(_KEPT[kind].format(file)):
        if glue:
            student = Path(models[0])
            run_glue(glue_config, student, config.glue_dir, file, config.teacher, config.overwrite)
        elif speed:
            from sentence_distill.student.speed import measure_speed

            _print_speed(measure_speed(config, speed_config))
        else:
            from sentence_distill.student.evaluate import evaluate as measure

            _print_eval(measure(config))
    click.echo(f"figures: {file}")
    if kind == "eval" and (students := [model for model in models if is_student(model)]):
        name = shlex.quote(students[0])
        if (Path(students[0]) / TASK).exists():
            click.echo(f"next: sd predict {name} --input FILE --out predictions.jsonl, sd report {name}")
        else:
            encode = f"sd encode --student {name} --input FILE --out vectors.parquet"
            click.echo(f"next: {encode}, sd export {name}, sd report {name}")


def _table(*heads: str) -> "Table":
    from rich.table import Table

    table = Table(*heads, box=None, header_style="bold")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _add(table: "Table", name: str, form: str, values: "Sequence[Any]") -> None:
    """Add a row, unless all its values are missing."""
    if any(value is not None for value in values):
        table.add_row(name, *("" if value is None else format(value, form) for value in values))


def _print_eval(record: "EvalRecord") -> None:
    from rich.console import Console

    from sentence_distill.student.figures import HeldOut
    from sentence_distill.student.metrics import too_few

    models = list(record.models.values())
    held_out = [model.held_out or HeldOut() for model in models]
    table = _table("measure", *record.models)
    for measure, name, form in (
        ("rows", "held-out sentences", ",d"),
        ("cosine", "cosine to the teacher, held out", ".4f"),
        ("mean_vector_cosine", "  the same of one constant vector", ".4f"),
        ("mse", "MSE, held out", ".3g"),
        ("rank_agreement", "rank agreement, held out", ".4f"),
        ("recall_at_10", "recall of the teacher's 10 neighbors", ".4f"),
        ("recall_at_10_among_100", "  the same among the model's first 100", ".4f"),
    ):
        _add(table, name, form, [getattr(scores, measure) for scores in held_out])
    for name, parts_of in (
        ("  cosine by length: {} tokens", [scores.by_length for scores in held_out]),
        ("  cosine by rarest token: seen {} times", [scores.by_frequency for scores in held_out]),
    ):
        cosines = [{_range(part): part.cosine for part in parts} for parts in parts_of]
        for part in dict.fromkeys(part for found in cosines for part in found):
            _add(table, name.format(part), ".4f", [found.get(part) for found in cosines])
    _add(table, "STS-B Spearman", ".4f", [model.sts_spearman for model in models])
    _add(table, "sentences/s", ",.0f", [model.sentences_per_second for model in models])
    _add(table, "parameters", ",d", [model.size and model.size.parameters for model in models])
    _add(table, "size on disk, MB", ".1f", [model.size and model.size.megabytes for model in models])
    Console().print(table)
    if timed := [f"{name}: {model.timed_as}" for name, model in record.models.items() if model.timed_as]:
        click.echo(f"timed on the CPU; {', '.join(timed)}")
    # The same sentences are held out for all models.
    for reason in dict.fromkeys(filter(None, (too_few(scores.rows) for scores in held_out))):
        click.echo(f"recall@10: {reason}")
    for what, why in record.skipped.items():
        click.echo(f"not measured: {what}: {why}")


def _range(part: "Range") -> str:
    if part.most is None:
        return f"{part.least:,} and more"
    return f"{part.least:,}" if part.least == part.most else f"{part.least:,}-{part.most:,}"


def _print_speed(record: "SpeedRecord") -> None:
    from rich.console import Console

    # Lines that are longer than the terminal's are easier to read than names broken over five of them.
    console = Console(width=max(Console().width, 150))
    if record.environment:
        click.echo(f"{record.environment.cpu}, {record.environment.cores} cores; {record.sentences:,} sentences")
    for threads in record.threads:
        rows = {name: row.threads[threads] for name, row in record.contenders.items() if threads in row.threads}
        batches = list(dict.fromkeys(size for row in rows.values() for size in row.by_batch))
        lengths = list(dict.fromkeys(length for row in rows.values() for length in row.by_length))
        table = _table(
            f"sentences/s, {threads} thread{'s' if threads > 1 else ''}",
            *(f"{size} per call" for size in batches),
            *(f"{length} tokens" for length in lengths),
            *("p50, ms", "p99, ms"),
        )
        for name, row in rows.items():
            rates = [*(row.by_batch.get(size) for size in batches), *(row.by_length.get(each) for each in lengths)]
            latency = [f"{row.latency_ms.p50:.2f}", f"{row.latency_ms.p99:.2f}"] if row.latency_ms else ["", ""]
            table.add_row(name, *("" if rate is None else f"{rate:,.0f}" for rate in rates), *latency)
        console.print(table)
    scored = ["STS-B"] if record.sts_pairs else []
    table = _table("cost", "start, s", "memory, MB", "parameters", "on disk, MB", *scored)
    for name, costs in record.contenders.items():
        cells = [f"{costs.startup_seconds:.1f}", f"{costs.peak_megabytes:,.0f}", f"{costs.parameters:,}"]
        table.add_row(name, *cells, f"{costs.megabytes:.1f}", *([f"{costs.sts_spearman:.4f}"] if scored else []))
    console.print(table)
    for what, why in record.skipped.items():
        click.echo(f"not measured: {what}: {why}")
