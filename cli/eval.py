"""`sd eval`: measure models, and print the figures as tables."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sentence_distill.cli.console import print_table, stopped_by_signals
from sentence_distill.cli.options import SectionedCommand, options_of
from sentence_distill.cli.out_file import check_file, read_object, refuse_other
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import load_sts, set_name
from sentence_distill.data.options import fields_of
from sentence_distill.data.progress import counted
from sentence_distill.student.config import ROWS, EvalConfig, GlueConfig, SpeedConfig

if TYPE_CHECKING:
    from sentence_distill.student.figures import EvalRecord, GlueFigures, HeldOut, SpeedRecord

_RUNS = {"eval": "sd eval alone", "speed": "--speed", "glue": "--glue"}
# The runs that read an option; all runs read the options that are not listed.
_READ_BY = {
    "shards": ("eval", "speed"),
    "sts": ("eval", "speed"),
    "texts": ("eval",),
    "word_order": ("eval",),
    "transfer": ("eval",),
    **{field.name: ("glue",) for field in fields_of(GlueConfig)},
    **{field.name: ("speed",) for field in fields_of(SpeedConfig)},
}
# A text counts as far from the training corpus if its mean cosine to the teacher is lower by more than this.
_FAR = 0.03
# The keys that identify a file of figures as one that the same kind of run wrote.
_FIGURES = {"eval": {"models", "skipped"}, "glue": {"source", "rows"}, "speed": {"contenders", "threads"}}


@click.command("eval", cls=SectionedCommand)
@options_of(EvalConfig, basic=("models", "sts", "texts", "teacher", "glue_dir", "json_file", "overwrite"))
@click.option("--glue", is_flag=True, help="Fine-tune one student and score it on GLUE instead.")
@options_of(GlueConfig, into="glue_config", heading="Options of --glue")
@click.option(
    "--speed", is_flag=True, help="Time each model in its own process, by threads, batch size and length, instead."
)
@options_of(SpeedConfig, into="speed_config", heading="Options of --speed")
def evaluate(config: EvalConfig, glue: bool, glue_config: GlueConfig, speed: bool, speed_config: SpeedConfig) -> None:
    """Measure models: fidelity, STS-B, size and speed.

    MODEL is the folder of a student or of a sentence-transformers model, a name on the hub, minilm-small, minilm or
    mpnet; several models are shown side by side. [default: distilled] With --glue, a student is fine-tuned and scored
    on GLUE; with --speed, the models are timed in detail.

    Measures whose data is not on this machine are listed with the reason.

    \b
      sd eval --sts stsb/dev.tsv
      sd eval --glue --glue-dir glue/ --seeds 3
      sd eval distilled minilm --speed --threads 1
    """
    if glue and speed:
        raise click.UsageError("--glue and --speed are separate runs; give one of them")
    kind = "glue" if glue else "speed" if speed else "eval"
    context = click.get_current_context()
    for option in context.command.params:
        runs = _READ_BY.get(str(option.name), (kind,))
        if kind not in runs and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option.opts[0]} goes with {' or '.join(_RUNS[run] for run in runs)}")
    if len(set(config.models)) < len(config.models):
        raise click.UsageError("a MODEL is given twice")

    from sentence_distill.pipeline.processes import keep_freed_memory
    from sentence_distill.student.figures import eval_file, figures_file, load_distillation, models_of
    from sentence_distill.student.files import TASK, is_student, require_own_folder

    models = models_of(config)
    if glue:
        if len(models) > 1:
            raise UserError(f"--glue fine-tunes one student, not {len(models)} models; run it once for each")
        require_own_folder(models[0])
        load_distillation(Path(models[0]))
    elif not config.json_file and not config.on_data_given and not any(map(is_student, models)):
        from sentence_distill.student.models import find_model

        for model in models:
            find_model(model)
    # Whatever is cheap to check is checked before PyTorch is imported.
    file = eval_file(config) if kind == "eval" else figures_file(config, f"{kind}.json")
    if config.shards:
        from sentence_distill.pipeline.manifest import require_vectors

        require_vectors(config.shards)
    if file:
        check_file(file, config.overwrite, option="--json", own=lambda path: read_object(path).keys() >= _FIGURES[kind])
    if config.sts_file:
        load_sts(config.sts_file)
    keep_freed_memory()
    kept = f"{file} has the figures so far; run the same command again for the rest" if glue else "nothing was written"
    with stopped_by_signals(f"stopped; {kept}"):
        if glue:
            _run_glue(config, glue_config)
        elif speed:
            from sentence_distill.student.speed import measure_speed

            _print_speed(measure_speed(config, speed_config))
        else:
            from sentence_distill.student.evaluate import evaluate as measure

            _print_eval(measure(config), models)
    if file:
        click.echo(f"figures: {file}")
    if kind == "eval" and (students := [model for model in models if is_student(model)]):
        name = shlex.quote(students[0])
        if (Path(students[0]) / TASK).exists():
            click.echo(f"next: sd predict {name} --input FILE --out predictions.jsonl, sd report {name}")
        else:
            encode = f"sd encode --student {name} --input FILE --out vectors.parquet"
            click.echo(f"next: {encode}, sd export {name}, sd report {name}")


def _cells(form: str, values: Sequence[Any]) -> list[str]:
    return ["" if value is None else format(value, form) for value in values]


def _print_eval(record: "EvalRecord", named: Sequence[str]) -> None:
    from sentence_distill.student.figures import HeldOut, too_few
    from sentence_distill.student.models import short_names

    models = list(record.models.values())
    held_out = [model.held_out or HeldOut() for model in models]
    rows = [
        (name, form, [getattr(scores, measure) for scores in held_out])
        for measure, name, form in (
            ("rows", "held-out sentences", ",d"),
            ("cosine", "cosine to the teacher, held out", ".4f"),
            ("mean_vector_cosine", "  of one constant vector", ".4f"),
            ("mse", "MSE, held out", ".3g"),
            ("rank_agreement", "rank agreement, held out", ".4f"),
            ("recall_at_10", "recall of the teacher's 10 neighbors", ".4f"),
            ("recall_at_10_among_100", "  within the model's top 100", ".4f"),
            ("recall_at_10_in_teachers_index", "  in an index of the teacher's vectors", ".4f"),
        )
    ]
    of_corpora = [scores.cosine_of_corpora for scores in held_out]
    for corpus in dict.fromkeys(name for found in of_corpora for name in found):
        rows.append((f"  cosine on {corpus}", ".4f", [found.get(corpus) for found in of_corpora]))
    for name, parts_of in (
        ("  cosine by length: {} tokens", [scores.by_length for scores in held_out]),
        ("  cosine by rarest token: seen {} times", [scores.by_frequency for scores in held_out]),
    ):
        cosines = [{(part.least, part.most): part.cosine for part in parts} for parts in parts_of]
        for least, most in dict.fromkeys(part for found in cosines for part in found):
            end = " and more" if most is None else f"-{most:,}" if most > least else ""
            rows.append((name.format(f"{least:,}{end}"), ".4f", [found.get((least, most)) for found in cosines]))
    for rule in dict.fromkeys(rule for model in models for rule in model.word_order):
        found_orders = [model.word_order.get(rule) for model in models]
        rows.append((f"cosine of a sentence to itself, {rule}", ".3f", [one and one.cosine for one in found_orders]))
        agreements = [one and one.agreement for one in found_orders]
        rows.append(("  its rank correlation with the teacher's", ".3f", agreements))
    tasks = [(name, metric) for model in models for name, scores in model.transfer.items() for metric in scores]
    for task, metric in dict.fromkeys(tasks):
        values = [model.transfer.get(task, {}).get(metric) for model in models]
        rows.append((f"{task}, {metric}, frozen", ".3f", values))
    rows += [
        ("STS-B Spearman", ".4f", [model.sts_spearman for model in models]),
        ("sentences/s", ",.0f", [model.sentences_per_second for model in models]),
        ("parameters", ",d", [model.size and model.size.parameters for model in models]),
        ("size on disk, MB", ".1f", [model.size and model.size.megabytes for model in models]),
    ]
    measured = [row for row in rows if any(value is not None for value in row[2])]
    print_table(("measure", *record.models), [(name, *_cells(form, values)) for name, form, values in measured])
    if timed := [f"{name}: {model.timed_as}" for name, model in record.models.items() if model.timed_as]:
        click.echo(f"timed on the CPU; {', '.join(timed)}")
    # The same sentences are held out for all models.
    for reason in dict.fromkeys(filter(None, (too_few(scores.rows) for scores in held_out))):
        click.echo(f"recall@10: {reason}")
    for what, why in record.skipped.items():
        click.echo(f"not measured: {what}: {why}")
    given = dict(zip(short_names(named), named, strict=True))
    for name, model in record.models.items():
        print_texts(given.get(name, name), model.texts)


def print_texts(name: str, texts: "dict[str, HeldOut]") -> None:
    """Print the agreement of a model with its teacher on each text, and a remedy for texts that are far off.

    `name` is the model as the user gave it.
    """
    from sentence_distill.student.figures import OWN_TEXT

    if not texts:
        return
    lengths = list(dict.fromkeys((part.least, part.most) for found in texts.values() for part in found.by_length))
    heads = [f"{least}+" if most is None else f"{least}-{most}" for least, most in sorted(lengths)]
    rows = []
    for text, found in texts.items():
        cosines = {(part.least, part.most): part.cosine for part in found.by_length}
        values = [found.cosine, found.recall_at_10, *(cosines.get(length) for length in sorted(lengths))]
        rows.append((text, f"{found.rows:,}" if found.rows else "", *_cells(".3f", values)))
    click.echo(f"\n{name}, cosine to the teacher by text and by tokens per sentence")
    print_table(("text", "sentences", "cosine", "recall@10", *heads), rows, least_width=120)
    own = texts[OWN_TEXT].cosine if OWN_TEXT in texts else None
    far = {text: found.cosine for text, found in texts.items() if own and found.cosine and own - found.cosine > _FAR}
    if far:
        corpora = " ".join(f"--corpus {shlex.quote(text)}" for text in far)
        click.echo(
            f"{', '.join(far)}: more than {_FAR} below its own corpus. Add such text to the training corpus, about as "
            "much as there is general text:"
        )
        click.echo(f"  sd embed {corpora} --corpus wiki.txt --out mixed/")
        click.echo(f"  sd train-student --shards mixed/ --init {shlex.quote(name)} --out mixed-student/")


def _print_speed(record: "SpeedRecord") -> None:
    # A line that is wider than the terminal is easier to read than names broken over five lines.
    wide = 150
    if record.environment:
        cores, sentences = counted(record.environment.cores, "core"), counted(record.sentences, "sentence")
        click.echo(f"{record.environment.cpu}, {cores}; {sentences}")
    for threads in record.threads:
        rates = {name: row.threads[threads] for name, row in record.contenders.items() if threads in row.threads}
        batches = list(dict.fromkeys(size for row in rates.values() for size in row.by_batch))
        lengths = list(dict.fromkeys(length for row in rates.values() for length in row.by_length))
        heads = [f"sentences/s, {counted(threads, 'thread')}"]
        heads += [f"{size} per call" for size in batches] + [f"{length} tokens" for length in lengths]
        rows = []
        for name, row in rates.items():
            found = [*map(row.by_batch.get, batches), *map(row.by_length.get, lengths)]
            latency = (row.latency_ms.p50, row.latency_ms.p99) if row.latency_ms else (None, None)
            rows.append((name, *_cells(",.0f", found), *_cells(".2f", latency)))
        print_table([*heads, "p50, ms", "p99, ms"], rows, least_width=wide)
    scored = ["STS-B"] if record.sts_pairs else []
    rows = []
    for name, costs in record.contenders.items():
        cells = [f"{costs.startup_seconds:.1f}", f"{costs.peak_megabytes:,.0f}", f"{costs.parameters:,}"]
        rows.append((name, *cells, f"{costs.megabytes:.1f}", *(f"{costs.sts_spearman:.4f}" for _ in scored)))
    print_table(["cost", "start, s", "memory, MB", "parameters", "on disk, MB", *scored], rows, least_width=wide)
    for what, why in record.skipped.items():
        click.echo(f"not measured: {what}: {why}")


def _run_glue(config: EvalConfig, glue: GlueConfig) -> None:
    from sentence_distill.student.glue import PARTS, ZIP_NAME, evaluate_glue

    if glue.submission:
        refuse_other(glue.submission, {ZIP_NAME, *(f"{name}.tsv" for name in PARTS)}, "sd eval --submission")
    results, submission = evaluate_glue(config, glue)
    _print_glue(results, glue)
    if submission:
        click.echo(f"submission: {submission.path}")
        if submission.missing:
            click.echo(f"  gluebenchmark.com rejects it without {', '.join(submission.missing)}")


def _print_glue(results: "GlueFigures", config: GlueConfig) -> None:
    shown = [row for row in config.chosen_rows if row in results.rows]
    table = []
    for task in config.tasks:
        found = [[each for each in results.rows[row].get(task, []) if each.fraction == 1.0] for row in shown]
        every = [each.scores for runs in found for each in runs]
        scored = [(dev, metric) for scores in every for dev in scores for metric in scores[dev]]
        for dev, metric in dict.fromkeys(scored):
            values = [[100 * each.scores[dev][metric] for each in runs if dev in each.scores] for runs in found]
            table.append((set_name(task, dev), metric, *map(_mean, values)))
    print_table(("GLUE dev", "metric", *(ROWS[row] for row in shown)), table, names=2)
    for what, why in results.skipped.items():
        click.echo(f"skipped: {what}: {why}")


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
