"""STS-B, or any table of sentence pairs with a similarity score."""

from pathlib import Path

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import TASKS, Examples, examples_from_tsv


def load_sts(path: Path) -> Examples:
    """Read a TSV with the columns sentence1, sentence2 and score, such as STS-B's dev.tsv.

    Raises:
        UserError: the file is not there, lacks a column, or holds no two scores that differ: nothing correlates with
            those.
    """
    if not path.is_file():
        raise UserError(f"--sts {path} is not there; it should be a TSV with sentence1, sentence2 and score")
    examples = examples_from_tsv(TASKS["STS-B"], path)
    if len(set(examples.labels)) < 2:
        raise UserError(
            f"--sts {path} holds {len(examples.labels):,} pair(s), and no two scores that differ; name pairs of which "
            "some are closer than others"
        )
    return examples
