"""From the options of `sd embed` to what does the work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sentence_distill.pipeline.embed import Engine
    from sentence_distill.pipeline.load import Located


def check_engine(corpora: tuple[str, ...], options: dict[str, Any]) -> None:
    """Refuse options that would be ignored."""
    ray = options["engine"] == "ray"
    if not ray and (options["ray_address"] or options["workers"]):
        raise click.UsageError("--ray-address and --workers go with --engine ray")
    if ray and (options["devices"] or options["device"] != "auto"):
        raise click.UsageError("--engine ray takes the cluster's GPUs, or its CPUs; leave --device and --devices out")
    if options["devices"] and options["device"] != "auto":
        raise click.UsageError("--device and --devices are two ways to say the same; give one of them")
    if options["share"] and "-" in corpora:
        raise click.UsageError("many jobs can't read one standard input; give --slice a corpus in files")
    if options["plan_only"] and options["share"]:
        raise click.UsageError("a plan is of the whole corpus; leave --slice out, or --plan-only")


@contextmanager
def open_engine(located: "Located", options: dict[str, Any], pairs: bool) -> "Iterator[Engine]":
    """What the options ask for to do the work."""
    from sentence_distill.pipeline.engines import DevicesEngine, LocalEngine, TeacherSpec, pick_devices, pick_readers

    spec = TeacherSpec(
        located=located,
        pooling=options["pooling"],
        layers=options["layers"],
        precision=options["precision"],
        pairs=pairs,
    )
    if options["engine"] == "ray":
        from sentence_distill.pipeline.ray_engine import RayEngine

        engine = RayEngine(spec, address=options["ray_address"], workers=options["workers"], readers=options["readers"])
        try:
            yield engine
        finally:
            engine.close()
    elif options["devices"] is not None:
        devices = pick_devices(options["devices"])
        yield DevicesEngine(spec, devices, options["readers"] or pick_readers(devices))
    else:
        teacher = spec.load(options["device"])
        yield LocalEngine(teacher, options["readers"] or pick_readers([str(teacher.device)]))
