"""Tasks of MTEB, the Massive Text Embedding Benchmark (arXiv:2210.07316), through the package mteb."""

from collections.abc import Sequence
from typing import Any

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.hub import ask_hub, offline_requested


def find_tasks(names: Sequence[str]) -> list[Any]:
    """The tasks of these names, their data not loaded yet.

    Raises:
        UserError: mteb is not installed, or knows no such task.
    """
    try:
        import mteb
    except ImportError:
        raise UserError("--mteb needs the package mteb: pip install 'sentence-distill[mteb]'") from None
    try:
        return [mteb.get_task(name) for name in names]
    except KeyError as error:
        said = str(error.args[0]).removeprefix("KeyError: ")
        raise UserError(f"--mteb: task {said}") from None


def run_task(model: Any, task: Any) -> dict[str, Any]:
    """Evaluate a `SentenceTransformer` on a loaded task; nothing is read from or written to mteb's cache of results.

    Returns:
        "metric", its name; "score", mean over splits and subsets; "scores" of each split, as mteb reports them;
        "revision" of the data.

    Raises:
        UserError: mteb can't evaluate the model on this task.
    """
    import mteb

    try:
        result = mteb.evaluate(model, task, cache=None, show_progress_bar=False, co2_tracker=False).task_results[0]
        found = result.to_dict()
        return {
            "metric": task.metadata.main_score,
            "score": float(result.get_score()),
            "revision": found["dataset_revision"],
            "scores": found["scores"],
        }
    # Each kind of task and model has errors of its own; the other tasks go on without this one.
    except Exception as error:
        raise UserError(f"mteb can't evaluate it ({first_line(error)})") from error


def load_task(task: Any) -> None:
    """Load a task's data; the hub is asked for it first, because a client without network tries for a minute.

    Raises:
        UserError: the data can't be had.
    """
    repo = task.metadata.dataset["path"]
    try:
        if not task.data_loaded and not offline_requested() and "/" in repo:
            from huggingface_hub import HfApi

            ask_hub(lambda: HfApi().dataset_info(repo, timeout=5))
        task.load_data()
    # What is wrong with a data set shows in each loader's own way.
    except Exception as error:
        raise UserError(
            f"MTEB task {task.metadata.name}: its data {repo} can't be had from the hub ({first_line(error)}); "
            "set HF_HUB_OFFLINE=1 where it lies in the cache"
        ) from error
