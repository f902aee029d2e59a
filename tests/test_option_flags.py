"""Flags of training: every option has a line of help, and commands name their own."""

import argparse
from dataclasses import fields

from promptdial.prompts.training.config import NOT_IN_PACKS, PACK_DEFAULTS, TrainConfig
from promptdial.prompts.training.option_flags import HELP, add_options, typed_options


def test_every_option_has_its_line_of_help() -> None:
    assert list(HELP) == [option.name for option in fields(TrainConfig)]
    parser = argparse.ArgumentParser()
    add_options(parser, TrainConfig())
    for action in parser._actions[1:]:
        assert action.help
        told = action.help.split(" (default")[0]
        assert told != action.dest.replace("_", " ")
    assert "0 for the method's own (default: 0.0)" in " ".join(
        parser.format_help().split()
    )


def test_a_command_has_its_own_defaults_words_and_options() -> None:
    parser = argparse.ArgumentParser()
    words = {"method": "prompt | prefix"}
    add_options(parser, PACK_DEFAULTS, without=NOT_IN_PACKS, words=words)
    text = " ".join(parser.format_help().split())
    assert "--method X prompt | prefix (default: prefix)" in text
    assert "(P) (default: 5)" in text
    assert "--budget" not in text
    assert "--quantised X train on the graph of this bundle, with its rounding" in text


def test_only_what_was_typed_is_given() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, TrainConfig(), without=("budget",))
    args = parser.parse_args(["--epochs", "0", "--bf16"])
    assert typed_options(args) == {"epochs": "0", "bf16": True}
    assert typed_options(parser.parse_args([])) == {}
