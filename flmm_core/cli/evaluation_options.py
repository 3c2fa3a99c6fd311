"""The options that `flmm eval` and `flmm benchmark` share."""

from __future__ import annotations

from typing import get_args

import click

from flmm_core.config import ProtocolName
from flmm_core.evaluation.benchmark_folder import MethodName

METHODS = click.Choice(get_args(MethodName))
METHOD_HELP = "How masks are predicted: by the head, or by a method without training."
PROTOCOLS = click.Choice(get_args(ProtocolName))
PROTOCOL_HELP = (
    "Captions: one per sentence (standard), or one per image with the first sentence of each"
    " object (flmm-paper)."
)

data_option = click.option(
    "--data",
    multiple=True,
    default=["shapes@test"],
    help="Evaluate on NAME[:PATH][@SPLIT]; repeatable.",
)
method_data_option = click.option(
    "--method-data",
    multiple=True,
    help="Fit methods without training on a few samples of this labeled data; repeatable."
    "  [default: the head's training data]",
)
abstain_option = click.option(
    "--abstain",
    is_flag=True,
    help='Answer "not there" below the probability that was chosen in training.',
)
batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    help="Samples per batch.",
)
limit_option = click.option(
    "--limit", type=click.IntRange(min=1), help="Maximum number of samples per data source."
)
