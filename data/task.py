"""A task: which columns hold its texts and its label, what classes there are, and how it is scored."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task, of single texts or of pairs.

    `columns` are the one or two columns of texts. `labels` lists the classes in the order of their numbers; without
    any the task is a regression. `metrics` are names that `task_metrics` knows; their mean picks the best model.
    """

    name: str
    columns: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]

    @property
    def regression(self) -> bool:
        """Whether labels are numbers, as the 0 to 5 of STS-B, and not classes."""
        return not self.labels

    @property
    def plain_columns(self) -> tuple[str, ...]:
        """Names of the columns of texts where a table of one's own is read."""
        return self.columns
