"""Quality against speed in a report, from speed.json."""

from typing import Any

from sentence_distill.student.report.charts import EMPTY, Cell, Chart, Column, Rows, Series, Table, draw, number

# Calls that hand over one sentence, as a service does, and many, as a batch job does.
_ONE, _MANY = "1", "128"


def speed_table(speed: dict[str, Any]) -> Table:
    """All contenders, best quality first, numbered as in the charts."""
    threads = most_threads(speed)
    rows = []
    for place, (name, contender) in enumerate(_in_order(speed), start=1):
        measured = contender["threads"].get(threads, {})
        rates, latency = measured.get("by_batch", {}), measured.get("latency_ms", {})
        rows.append(
            [
                Cell(f"{place}. {name}"),
                _number(contender.get("sts_spearman"), ".3f"),
                _number(rates.get(_ONE)),
                _number(rates.get(_MANY)),
                _number(latency.get("p50"), ",.2f"),
                _number(latency.get("p99"), ",.2f"),
                _number(contender.get("startup_seconds"), ",.1f"),
                _number(contender.get("peak_megabytes")),
                _number(contender.get("megabytes"), ",.1f"),
                _number(contender["parameters"] / 1e6 if contender.get("parameters") else None, ",.1f"),
            ]
        )
    heads = [
        Column("model", numeric=False),
        Column("STS-B", "Spearman"),
        Column("one a call", "sentences/s"),
        Column(f"{_MANY} a call", "sentences/s"),
        Column("latency", "median, ms"),
        Column("latency", "p99, ms"),
        Column("start", "s"),
        Column("memory", "peak, MB"),
        Column("on disk", "MB"),
        Column("weights", "M"),
    ]
    return Table(f"Contenders, with {threads} thread{'s' if threads != '1' else ''}", heads, [Rows("", rows)])


def rates_table(speed: dict[str, Any]) -> Table:
    """Sentences a second of all contenders by threads, by sentences a call, and by tokens of a sentence."""
    settings = [
        (f"{place}. {name}", threads, contender["threads"].get(str(threads), {}))
        for place, (name, contender) in enumerate(_in_order(speed), start=1)
        for threads in speed["threads"]
    ]
    columns = [
        (part, size)
        for part in ("by_batch", "by_length")
        for size in sorted({int(size) for _, _, rates in settings for size in rates.get(part, {})})
    ]
    units = {"by_batch": "a call", "by_length": "tokens"}
    rows = [
        [Cell(name), number(threads, "d"), *(_number(rates.get(part, {}).get(str(size))) for part, size in columns)]
        for name, threads, rates in settings
    ]
    heads = [Column("model", numeric=False), Column("threads")]
    heads += [Column(f"{size}", units[part]) for part, size in columns]
    return Table("Sentences a second", heads, [Rows("", rows)])


def speed_charts(speed: dict[str, Any]) -> list[Chart]:
    """STS-B against speed and size, a point a contender; none where no pairs were given."""
    threads, contenders = most_threads(speed), _in_order(speed)
    models = list(dict.fromkeys(contender["model"] for _, contender in contenders))
    charts = []
    for identifier, title, x in (
        (_ONE, "One sentence a call", "sentences a second, logarithmic"),
        (_MANY, f"{_MANY} sentences a call", "sentences a second, logarithmic"),
        ("size", "Size", "MB on disk, logarithmic"),
    ):
        places: dict[tuple[float, float], list[str]] = {}
        colours: dict[tuple[float, float], int] = {}
        for place, (_, contender) in enumerate(contenders, start=1):
            rates = contender["threads"].get(threads, {}).get("by_batch", {})
            value = contender.get("megabytes") if identifier == "size" else rates.get(identifier)
            if value and contender.get("sts_spearman") is not None:
                point = (value, contender["sts_spearman"])
                places.setdefault(point, []).append(str(place))
                colours[point] = models.index(contender["model"])
        # Runners of one model can share a point; so do their numbers.
        points = [
            Series(f"no. {' and '.join(numbers)}", [point], colours[point], line=False, labels=[", ".join(numbers)])
            for point, numbers in places.items()
        ]
        if points:
            charts.append(draw(f"speed-{identifier}", title, points, x=x, y="STS-B, Spearman", log_x=True))
    return charts


def most_threads(speed: dict[str, Any]) -> str:
    """The setting with the most threads."""
    return str(max(speed["threads"]))


def _in_order(speed: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Contenders by falling quality; their order in the file where none is known."""
    return sorted(speed["contenders"].items(), key=lambda item: -(item[1].get("sts_spearman") or 0.0))


def _number(value: float | None, form: str = ",.0f") -> Cell:
    return EMPTY if value is None else number(value, form)
