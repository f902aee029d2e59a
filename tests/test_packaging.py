"""The package list, the device side's imports, and the error table."""

import subprocess
import sys
import tomllib
from pathlib import Path

from promptdial.prompts import errors

ROOT = Path(__file__).parents[1]
HEAVY = ["torch", "transformers", "optimum", "onnx", "peft", "llguidance"]


def test_package_list_equals_the_disk() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(config["tool"]["setuptools"]["packages"])
    on_disk = {
        "promptdial." + ".".join(init.parent.relative_to(ROOT).parts)
        for top in ("export", "prompts", "runtime")
        for init in (ROOT / top).rglob("__init__.py")
    }
    assert listed == on_disk


def test_device_side_imports_without_the_heavy_packages() -> None:
    block = "; ".join(f"sys.modules[{name!r}] = None" for name in HEAVY)
    code = f"import sys; {block}; import promptdial.runtime.engine, promptdial.prompts"
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd="/")


def test_every_error_has_an_exit_code() -> None:
    import promptdial.export.errors
    import promptdial.runtime.errors  # noqa: F401

    pending = [errors.PromptdialError]
    while pending:
        cls = pending.pop()
        assert cls.code in errors.EXIT_CODES, cls
        pending.extend(cls.__subclasses__())
