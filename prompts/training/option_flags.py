"""A flag of the command line for each option of a training run, with a line of help."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from promptdial.prompts.training.config import (
    DEVICES,
    HEAD_INITS,
    HEAD_POOLINGS,
    INITS,
    METHODS,
    PAIRS,
    PRECISIONS,
    TrainConfig,
)

HELP = {
    "method": " | ".join(METHODS),
    "init": f"start of the virtual tokens: {' | '.join(INITS)} | from:BLOB",
    "head_init": f"start of the class vectors: {' | '.join(HEAD_INITS)}",
    "init_text": "the text of --init text",
    "num_virtual_tokens": "length of the prompt (P)",
    "encoder_hidden_size": "width of the network of residual and p-tuning; 0 for the "
    "model's",
    "epochs": "passes over the training rows, at most",
    "batch_size": "rows of one step",
    "learning_rate": "peak rate of the virtual tokens; 0 for the method's own",
    "head_learning_rate": "peak rate of the class vectors",
    "head_scale": "spread of the logits at the start",
    "head_levels": "levels of the model that the class vectors read; 0 for the last "
    "alone",
    "head_pooling": f"how a text's rows become a feature: {' | '.join(HEAD_POOLINGS)}",
    "pairs": f"how the two texts of a pair are read: {' | '.join(PAIRS)}",
    "weight_decay": "of the class vectors",
    "warmup": "share of the steps in which the rates rise",
    "label_smoothing": "share of each target that is spread over all labels",
    "temperature": "of the loss of embedding tasks",
    "max_grad_norm": "gradients are cut to this length",
    "patience": "epochs without a better dev metric before an early stop",
    "limit": "use the first rows of train only; 0 for all",
    "max_tokens": "longest text in training, in tokens; 0 for the model's window",
    "seed": "of the order of rows and of random starts",
    "device": " | ".join(DEVICES),
    "bf16": "run the frozen model in bfloat16 while training",
    "gradient_checkpointing": "compute activations again: less memory, more time",
    "quantised": "train on the graph of this bundle, with its rounding",
    "variant": "which graph of the bundle --quantised names",
    "abstain": "none | coverage:0.95 | accuracy:0.98 | out_of_scope[:LABEL]",
    "out_of_scope_share": "share of requests out of scope; 0 for dev's own",
    "precision": f"of what is stored: {' | '.join(PRECISIONS)} (of embedding rows "
    "alone)",
    "rounded": "share of the steps, the last ones, on numbers as they are stored",
    "version": "the prompt's version",
    "resume": "go on from OUT.checkpoint",
    "budget": "pick the options by a search on dev within 30s, 2m or 1h",
    "max_seconds": "begin no epoch that would end later; 0 for no limit",
    "few_shot": "rows a class, drawn from train; options chosen by folds of them",
    "word_dropout": "share of a text's words left out while training",
}


def add_options(
    parser: argparse.ArgumentParser,
    defaults: TrainConfig,
    *,
    without: Sequence[str] = (),
    words: Mapping[str, str] | None = None,
) -> None:
    """A flag for every option of a training run.

    Args:
        parser: The command's.
        defaults: What the help names as the default; nothing is set where nothing is
            typed, so that a YAML file comes between.
        without: Options that the command has no choice in.
        words: Help that differs from HELP.
    """
    notes = {**HELP, **(words or {})}
    for option in fields(TrainConfig):
        if option.name in without:
            continue
        flag, note = "--" + option.name.replace("_", "-"), notes[option.name]
        default = getattr(defaults, option.name)
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true", default=None, help=note)
        else:
            shown = "none" if default == "" else default
            parser.add_argument(
                flag, metavar="X", default=None, help=f"{note} (default: {shown})"
            )


def typed_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a training run that were typed, by name."""
    names = [option.name for option in fields(TrainConfig)]
    typed = {name: getattr(args, name, None) for name in names}
    return {name: value for name, value in typed.items() if value is not None}
