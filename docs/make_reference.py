"""Writes docs/reference.md from the signatures and docstrings of the public names.

python docs/make_reference.py            write it
python docs/make_reference.py --check    exit 1 where it is out of date
"""

import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).parent / "reference.md"
MODULES = (
    "promptdial.runtime",
    "promptdial.prompts",
    "promptdial.prompts.store",
    "promptdial.export",
)
_WIDTH = 88
_SECTIONS = ("Args", "Returns", "Raises", "Attributes")
_HEAD = """\
# Reference

The public names of promptdial, written by `python docs/make_reference.py` from their
docstrings. Shapes: B batch, T text tokens, P virtual tokens, H hidden size, L layers,
K key/value heads, D head size, V vocabulary, C classes. All errors derive from
`promptdial.prompts.errors.PromptdialError` and carry `code`, `message` and `hint`.
"""


def page() -> str:
    """The whole page."""
    parts = [_HEAD]
    for name in MODULES:
        module = importlib.import_module(name)
        parts += [f"## {name}\n", f"{_first_paragraph(module)}\n"]
        for public in module.__all__:
            parts += _entry(public, getattr(module, public))
    return "\n".join(parts)


def _entry(name: str, value: object) -> Iterator[str]:
    yield f"### {name}\n"
    if inspect.isclass(value):
        yield from _class(value)
    elif callable(value):
        yield f"{_code(name, value)}\n"
        yield f"{_text(value)}\n"


def _class(cls: type) -> Iterator[str]:
    if not getattr(cls, "_is_protocol", False):
        yield f"{_code(cls.__name__, cls)}\n"
    yield f"{_text(cls)}\n"
    init = cls.__dict__.get("__init__")
    if init is not None and init.__doc__:
        yield f"{_text(init)}\n"
    for name, member in _members(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            yield f"#### {cls.__name__}.{name}\n"
            yield f"{_text(member)}\n"
        elif inspect.isfunction(member):
            yield f"#### {cls.__name__}.{name}\n"
            yield f"{_code(name, member)}\n"
            yield f"{_text(member)}\n"


def _members(cls: type) -> dict[str, object]:
    """What a class has of its own, and what it has from a base that is not public."""
    found = dict(vars(cls))
    if not issubclass(cls, BaseException):
        for base in cls.__mro__[1:]:
            if base.__module__.startswith("promptdial."):
                found |= {k: v for k, v in vars(base).items() if k not in found}
    return found


def _code(name: str, value: object) -> str:
    """The signature as a block of code, an argument a line where it is long."""
    assert callable(value)
    signature = inspect.signature(value)
    shown = [
        item.replace(annotation=_annotation(item.annotation))
        for item in signature.parameters.values()
        if item.name != "self"
    ]
    found = inspect.Signature(shown)
    result = _annotation(signature.return_annotation)
    arrow = ""
    if not inspect.isclass(value) and result is not inspect.Signature.empty:
        arrow = f" -> {result!r}"
    line = f"{name}{found}{arrow}"
    if len(line) > _WIDTH:
        line = f"{name}(\n{_a_line_each(shown)}){arrow}"
    return f"```python\n{line}\n```"


def _a_line_each(parameters: Sequence[inspect.Parameter]) -> str:
    lines, star = [], False
    for item in parameters:
        if item.kind is item.KEYWORD_ONLY and not star:
            star = True
            lines.append("    *,\n")
        lines.append(f"    {item},\n")
    return "".join(lines)


class _Name:
    """An annotation that shows as it is written in the source."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _annotation(found: object) -> object:
    """An annotation without the names of modules."""
    if found is inspect.Parameter.empty:
        return found
    text = found if isinstance(found, str) else inspect.formatannotation(found)
    text = re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)
    # numpy shows an array of any shape with its whole definition.
    text = re.sub(
        r"ndarray\[tuple\[Any, \.\.\.\], dtype\[(\w+)\]\]", r"NDArray[\1]", text
    )
    return _Name(text)


def _text(value: object) -> str:
    """A docstring; its sections become lists."""
    lines = (inspect.getdoc(value) or "").splitlines()
    found: list[str] = []
    section = ""
    for line in lines:
        if line.rstrip(":") in _SECTIONS and line.endswith(":"):
            section = line.rstrip(":")
            found += [f"{section}:", ""]
        elif section and re.match(r" {4}\S.*?: ", line) and section != "Returns":
            name, _, rest = line.strip().partition(": ")
            found.append(f"- `{name}`: {rest}")
        elif section and line.strip():
            indent = "" if section == "Returns" else "  "
            found.append(f"{indent}{line.strip()}")
        else:
            section = section if line.strip() else ""
            found.append(line)
    return "\n".join(found).strip()


def _first_paragraph(module: ModuleType) -> str:
    return (inspect.getdoc(module) or "").split("\n\n")[0]


def main() -> int:
    """Write the page, or check it."""
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, "utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text("utf-8") == text:
        return 0
    print("docs/reference.md is out of date: python docs/make_reference.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
