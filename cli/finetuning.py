"""Options of fine-tuning, which sd finetune and sd eval --glue have in common."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from sentence_distill.cli.legacy_options import numbers

if TYPE_CHECKING:
    from sentence_distill.student.finetune import FinetuneConfig


def finetuning_options(*, epochs: str, max_steps: str, learning_rate: str) -> tuple[Callable[..., Any], ...]:
    """Decorators of the options, with what their help says of each default."""
    return (
        click.option(
            "--epochs",
            default=None,
            type=click.IntRange(1),
            help="Fine-tuning: most passes over the examples; the best step on dev counts.  "
            f"[default: {epochs}, but at least 200 steps]",
        ),
        click.option(
            "--finetune-steps",
            "max_steps",
            default=None,
            type=click.IntRange(1),
            help=f"Fine-tuning: most steps, but at least one epoch.  [default: {max_steps}]",
        ),
        click.option(
            "--learning-rate",
            "learning_rates",
            default=None,
            callback=numbers,
            metavar="X[,X…]",
            help="Fine-tuning: peak; of several the one that is best on dev with the first seed serves all seeds.  "
            f"[default: {learning_rate}]",
        ),
        click.option(
            "--encoder-rate",
            default=None,
            type=click.FloatRange(0, min_open=True),
            help="Fine-tuning: learning rate of the encoder as a multiple of the head's.  [default: 1]",
        ),
    )


def finetune_config(options: dict[str, Any], default: "FinetuneConfig") -> "FinetuneConfig":
    """`default` with those of the options that were given."""
    from dataclasses import replace

    names = ("epochs", "max_steps", "learning_rates", "encoder_rate")
    given = {name: options[name] for name in names if options[name] is not None}
    config = replace(default, **given)
    # Who says how many epochs wants no more of them.
    return replace(config, least_steps=0) if "epochs" in given else config
