"""The public names: what is exported, and that the reference page tells of each."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "make_reference.py"
PAGE = ROOT / "docs" / "reference.md"
MODULES = ("promptdial.export", "promptdial.prompts", "promptdial.runtime")


def check() -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True
    )


def test_the_page_is_up_to_date() -> None:
    run = check()
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_public_name_and_method_is_on_the_page() -> None:
    """Read off the page, not off the script that writes it."""
    text = PAGE.read_text("utf-8")
    headings = set(re.findall(r"^#{3,4} (\S+)$", text, re.MULTILINE))
    for name in MODULES:
        module = importlib.import_module(name)
        assert f"## {name}\n" in text
        assert set(module.__all__) <= headings
    from promptdial.runtime import Engine

    methods = {f"Engine.{name}" for name in vars(Engine) if not name.startswith("_")}
    assert methods <= headings


def test_every_entry_says_something() -> None:
    blocks = re.split(r"^#{2,4} .*$", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    for block in blocks:
        prose = re.sub(r"```.*?```", "", block, flags=re.DOTALL).strip()
        assert len(prose) > 10, block


def public(module: ModuleType) -> set[str]:
    """Names without an underscore that a package itself defines or takes in."""
    places = module.__dict__.get("_PLACES", {})
    names = {*vars(module), *places}
    return {
        name
        for name in names
        if not name.startswith("_")
        and getattr(getattr(module, name), "__module__", "").startswith("promptdial.")
    }


@pytest.mark.parametrize("name", MODULES)
def test_all_is_what_can_be_imported(name: str) -> None:
    module = importlib.import_module(name)
    assert sorted(module.__all__) == module.__all__
    assert len(set(module.__all__)) == len(module.__all__)
    for item in module.__all__:
        assert getattr(module, item).__doc__, item
    helpers = {"needs_export_extra"} if name == "promptdial.export" else set()
    assert public(module) - helpers == set(module.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Motor'"):
        importlib.import_module("promptdial.runtime").Motor  # noqa: B018
