"""Completion scripts of bash, zsh and fish, written out of the commands' parsers.

The scripts are static: a press of the tab key starts no Python. Where a value is free,
all three offer files. Of a command with parts, such as `repo init`, the part is the
first word behind it that is no option, as the command line itself finds it.
"""

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_TOP_OPTIONS = ("--help", "--version")


@dataclass(frozen=True)
class OptionWords:
    """One option of a command.

    Attributes:
        flags: As typed, such as ("-v", "--verbose").
        help: One line.
        choices: Allowed values; empty where any is.
        takes_value: A value follows.
        is_path: The value is a file or folder.
        repeats: May be given more than once.
    """

    flags: tuple[str, ...]
    help: str
    choices: tuple[str, ...]
    takes_value: bool
    is_path: bool
    repeats: bool


@dataclass(frozen=True)
class CommandWords:
    """What can be typed after a command's name.

    Attributes:
        name: The command.
        summary: One line.
        options: Its options.
        choices: Values of positional arguments that have a fixed set.
        parts: What the first word chooses among; their names are `command part`.
    """

    name: str
    summary: str
    options: tuple[OptionWords, ...]
    choices: tuple[str, ...]
    parts: tuple["CommandWords", ...] = ()

    @property
    def word(self) -> str:
        """What is typed for it: the last word of its name."""
        return self.name.rpartition(" ")[2]


def words_of(
    name: str,
    summary: str,
    parser: argparse.ArgumentParser,
    parts: Sequence[CommandWords] = (),
) -> CommandWords:
    """What a parser takes, and those of the command's parts."""
    options: list[OptionWords] = []
    choices: list[str] = []
    # argparse has no public list of what was added; this one is as old as argparse.
    for action in parser._actions:
        values = tuple(str(value) for value in action.choices or ())
        if not action.option_strings:
            choices += values
            continue
        options.append(
            OptionWords(
                flags=tuple(action.option_strings),
                help=_one_line(action.help or ""),
                choices=values,
                takes_value=action.nargs != 0,
                is_path=action.type is Path,
                repeats=isinstance(
                    action, argparse._AppendAction | argparse._CountAction
                ),
            )
        )
    line = _one_line(summary)
    return CommandWords(name, line, tuple(options), tuple(choices), tuple(parts))


def _flat(commands: Sequence[CommandWords]) -> list[CommandWords]:
    """Commands, each with its parts behind it."""
    return [item for command in commands for item in (command, *command.parts)]


def _with_parts(commands: Sequence[CommandWords]) -> str:
    """Names of the commands that have parts."""
    return " ".join(command.name for command in commands if command.parts)


def bash(commands: Sequence[CommandWords]) -> str:
    """A script for `eval` in ~/.bashrc."""
    names = [command.name for command in commands]
    cases = []
    for command in _flat(commands):
        flags = [flag for option in command.options for flag in option.flags]
        cases += [
            f"    {shlex.quote(command.name)})",
            *_bash_values(command),
            f"      options={_quoted(flags)}; values={_quoted(command.choices)} ;;",
        ]
    return "\n".join(
        [
            "# promptdial: completion for bash",
            "_promptdial() {",
            '  local cur="${COMP_WORDS[COMP_CWORD]}" options="" values=""',
            '  local prev="${COMP_WORDS[COMP_CWORD-1]}"',
            "  # bash cuts --option=value into three words.",
            '  [[ $cur == "=" ]] && cur=""',
            '  [[ $prev == "=" ]] && prev="${COMP_WORDS[COMP_CWORD-2]}"',
            "  COMPREPLY=()",
            "  if [[ $COMP_CWORD -eq 1 ]]; then",
            f"    COMPREPLY=($(compgen -W {_quoted([*names, *_TOP_OPTIONS])}"
            ' -- "$cur"))',
            "    return",
            "  fi",
            '  local key="${COMP_WORDS[1]}" word',
            f'  if [[ " {_with_parts(commands)} " == *" $key "* ]]; then',
            '    for word in "${COMP_WORDS[@]:2:COMP_CWORD-2}"; do',
            '      [[ $word != -* ]] && key="$key $word" && break',
            "    done",
            "  fi",
            '  case "$key" in',
            *cases,
            "  esac",
            "  if [[ $cur == -* ]]; then",
            '    COMPREPLY=($(compgen -W "$options" -- "$cur"))',
            '  elif [[ -n "$values" ]]; then',
            '    COMPREPLY=($(compgen -W "$values" -- "$cur"))',
            "  fi",
            "}",
            "# Where nothing is offered, bash offers files.",
            "complete -o bashdefault -o default -F _promptdial promptdial",
            "",
        ]
    )


def _bash_values(command: CommandWords) -> list[str]:
    """Lines that answer for the value of the option before the cursor."""
    lines: list[str] = []
    free: list[str] = []
    for option in command.options:
        if option.choices:
            reply = f'COMPREPLY=($(compgen -W {_quoted(option.choices)} -- "$cur"))'
            lines.append(f"        {'|'.join(option.flags)}) {reply}; return ;;")
        elif option.takes_value:
            free += option.flags
    if free:
        lines.append(f"        {'|'.join(free)}) return ;;")
    return ['      case "$prev" in', *lines, "      esac"] if lines else []


def zsh(commands: Sequence[CommandWords]) -> str:
    """A script for `eval` in ~/.zshrc after compinit, or for a folder of $fpath."""
    names = [shlex.quote(f"{item.name}:{item.summary}") for item in commands]
    cases = []
    for command in _flat(commands):
        specs = [spec for option in command.options for spec in _zsh_option(option)]
        rest = f"({' '.join(command.choices)})" if command.choices else "_files"
        specs.append(shlex.quote(f"*:argument:{rest}"))
        lines = [f"      {spec}" for spec in specs]
        name = shlex.quote(command.name)
        cases += [f"    {name}) _arguments \\", " \\\n".join(lines), "      ;;"]
    return "\n".join(
        [
            "#compdef promptdial",
            "_promptdial() {",
            "  if (( CURRENT == 2 )); then",
            "    local -a commands",
            f"    commands=({' '.join(names)})",
            "    _describe command commands",
            f"    compadd -- {' '.join(_TOP_OPTIONS)}",
            "    return",
            "  fi",
            "  shift words",
            "  (( CURRENT-- ))",
            "  local key=$words[1]",
            f'  if [[ " {_with_parts(commands)} " == *" $key "* ]]; then',
            "    local -i at",
            "    for (( at = 2; at < CURRENT; at++ )); do",
            "      [[ $words[at] == -* ]] && continue",
            '      key="$key $words[at]"',
            "      words[at]=()",
            "      (( CURRENT-- ))",
            "      break",
            "    done",
            "  fi",
            "  case $key in",
            *cases,
            "  esac",
            "}",
            "# From $fpath this file is the function's body; else it is sourced.",
            'if [[ "$funcstack[1]" == "_promptdial" ]]; then',
            '  _promptdial "$@"',
            "else",
            "  compdef _promptdial promptdial",
            "fi",
            "",
        ]
    )


def _zsh_option(option: OptionWords) -> list[str]:
    text = option.help
    for sign in "\\[]:":
        text = text.replace(sign, f"\\{sign}")
    value = ""
    if option.takes_value:
        value = f":value:({' '.join(option.choices)})" if option.choices else ":value:"
        value += "_files" if option.is_path else ""
    star = "*" if option.repeats else ""
    return [shlex.quote(f"{star}{flag}[{text}]{value}") for flag in option.flags]


def fish(commands: Sequence[CommandWords]) -> str:
    """A script for ~/.config/fish/completions/promptdial.fish."""
    start = "complete -c promptdial"
    first = f"{start} -n __fish_use_subcommand -f"
    lines = ["# promptdial: completion for fish"]
    for command in commands:
        lines.append(
            f"{first} -a {command.name} -d {_fish_quoted(command.summary)}",
        )
    lines += [f"{first} -l {flag.removeprefix('--')}" for flag in _TOP_OPTIONS]
    for command in commands:
        seen = f"__fish_seen_subcommand_from {command.name}"
        parts = " ".join(part.word for part in command.parts)
        no_part = f"; and not __fish_seen_subcommand_from {parts}" if parts else ""
        lines += _fish_words(f"{start} -n '{seen}{no_part}'", command)
        for part in command.parts:
            both = f"{seen}; and __fish_seen_subcommand_from {part.word}"
            lines += _fish_words(f"{start} -n '{both}'", part)
    return "\n".join([*lines, ""])


def _fish_words(when: str, command: CommandWords) -> list[str]:
    """Lines for the choices and options of a command, or of a part."""
    lines = []
    if command.parts:
        for part in command.parts:
            summary = _fish_quoted(part.summary)
            lines.append(f"{when} -f -a {part.word} -d {summary}")
    elif command.choices:
        lines.append(f"{when} -f -a {_fish_quoted(' '.join(command.choices))}")
    for option in command.options:
        names = " ".join(_fish_flag(flag) for flag in option.flags)
        value = ""
        if option.choices:
            value = f" -x -a {_fish_quoted(' '.join(option.choices))}"
        elif option.takes_value:
            value = " -r -F" if option.is_path else " -r"
        lines.append(f"{when} {names} -d {_fish_quoted(option.help)}{value}")
    return lines


def _fish_flag(flag: str) -> str:
    if flag.startswith("--"):
        return f"-l {flag.removeprefix('--')}"
    return f"-s {flag.removeprefix('-')}"


def _fish_quoted(text: str) -> str:
    """Quoted as fish reads it: a backslash escapes inside single quotes too."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _quoted(words: Sequence[str]) -> str:
    return shlex.quote(" ".join(words))


def _one_line(text: str) -> str:
    return " ".join(text.replace("%%", "%").split())


WRITERS: dict[str, Callable[[Sequence[CommandWords]], str]] = {
    "bash": bash,
    "fish": fish,
    "zsh": zsh,
}
"""Shell to what writes its script."""
