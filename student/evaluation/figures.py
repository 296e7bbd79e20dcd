"""eval.json: figures of a student, or of several models, to which each run adds what it measured.

A file about one student lists each measure with its models ("student" and "teacher"); a file about several models lists
each model with its measures, and says which of them is the student in whose folder it lies.
"""

from typing import Any

from sentence_distill.student.evaluation.models import free_name

# Measures that a file about one student lists by model.
_BY_MODEL = ("weights", "sentences_per_second", "timed_as", "sts_spearman")
_SIZES = {"student": "size", "teacher": "teacher_size"}


def merge(
    old: dict[str, Any],
    new: dict[str, dict[str, Any]],
    *,
    skipped: dict[str, str],
    roles: dict[str, str],
    alone: bool,
    reference: dict[str, Any] | None,
    trusted: bool,
) -> dict[str, Any]:
    """Add the figures of a run to those of a file.

    What was measured before stays, unless it was measured again or its model has other weights now. Figures over other
    held-out sentences than this run's don't stay beside them.

    Args:
        old: content of the file; empty if there is none.
        new: figures by model and measure.
        skipped: what this run could not measure, with the reason.
        roles: which model is the "student" in whose folder the file lies, and which its "teacher".
        alone: whether this run is of one student, called "student".
        reference: the sentences of the run's held-out figures; None if it has none.
        trusted: whether figures that name no weights are of the student that is measured now: the file lies in its
            folder, which loses it when another is trained there.

    Returns:
        The new content.
    """
    before = _by_model(old)
    names: dict[str, str | None] = {}
    # Of two copies of one model the student of the file is the one that it knows.
    for name in sorted(new, key=lambda name: name != roles.get("student")):
        free = {known: figures for known, figures in before.items() if known not in names.values()}
        names[name] = _same_model(name, new[name], free, trusted)
    several = not alone or ("models" in old and names.get("student") is not None)
    if alone and names["student"] is None:
        # Another student's.
        before, names = {}, dict.fromkeys(names)
    if alone and several:
        # The file's names stay.
        final = {name: known or free_name(name, before) for name, known in names.items()}
        roles = {role: old[role] for role in ("student", "teacher") if role in old}
        models = before
    else:
        final = {name: name for name in new}
        again = {known: name for name, known in names.items() if known}
        models = {
            again.get(name, name): figures for name, figures in before.items() if name in again or name not in new
        }
    if reference is None:
        reference = old.get("reference")
    elif reference != old.get("reference"):
        models = {name: {**figures, "held_out": None} for name, figures in models.items()}
    for name, figures in new.items():
        models[final[name]] = {**models.get(final[name], {}), **figures}
    models = {
        name: {measure: value for measure, value in figures.items() if value is not None}
        for name, figures in models.items()
    }
    skipped = {final.get(what, what): why for what, why in {**old.get("skipped", {}), **skipped}.items()}
    left = {what: why for what, why in skipped.items() if not _is_measured(what, models)}
    tail = {**({"reference": reference} if reference else {}), "skipped": left}
    # In the order of the run, what stays from before behind it.
    ordered = {name: models[name] for name in (*final.values(), *models) if name in models}
    return {**roles, "models": ordered, **tail} if several else {**_of_one(ordered), **tail}


def is_nothing(models: dict[str, dict[str, Any]]) -> bool:
    """Whether a run measured nothing but sizes."""
    return all(figures.keys() <= {"size", "weights"} for figures in models.values())


def _same_model(name: str, figures: dict[str, Any], before: dict[str, dict[str, Any]], trusted: bool) -> str | None:
    """The name that a model has in the file; None if it is not there."""
    for known, earlier in before.items():
        if figures["weights"] and earlier.get("weights") == figures["weights"]:
            return known
    return name if trusted and name in before and "weights" not in before[name] else None


def _is_measured(what: str, models: dict[str, dict[str, Any]]) -> bool:
    """Whether the figures that were skipped in one run are there from another."""

    def known(measure: str) -> bool:
        return any(measure in figures for figures in models.values())

    if what == "STS-B":
        return known("sts_spearman")
    if what == "speed":
        return known("sentences_per_second")
    if what == "held-out fidelity and speed":
        return known("sentences_per_second") and known("held_out")
    if what.startswith("held-out fidelity of "):
        return "held_out" in models.get(what.removeprefix("held-out fidelity of "), {})
    return what in models


def _by_model(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of a file by model and measure."""
    if "models" in figures:
        return {name: dict(model) for name, model in figures["models"].items()}
    models: dict[str, dict[str, Any]] = {}
    for name, size in _SIZES.items():
        if size in figures:
            models.setdefault(name, {})["size"] = figures[size]
    if "held_out" in figures:
        models.setdefault("student", {})["held_out"] = figures["held_out"]
    for measure in _BY_MODEL:
        for name, value in figures.get(measure, {}).items():
            models.setdefault(name, {})[measure] = value
    return models


def _of_one(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of a student and its teacher, by measure."""
    figures: dict[str, Any] = {size: models[name]["size"] for name, size in _SIZES.items() if name in models}
    if "held_out" in models["student"]:
        figures["held_out"] = models["student"]["held_out"]
    for measure in _BY_MODEL:
        if values := {name: model[measure] for name, model in models.items() if measure in model}:
            figures[measure] = values
    return figures
