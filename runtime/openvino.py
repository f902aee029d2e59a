"""Intel's provider: a plug-in beside onnxruntime, or part of an onnxruntime of its own.

The plug-in, of the extra `npu-openvino`, takes Intel's processors alone. The package
onnxruntime-openvino takes any x86-64 processor, and brings the same module as
onnxruntime, in files of the same names: an environment has one of the two, so that no
extra can ask for it. Where both are there, the plug-in is used.
"""

import importlib.util
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from promptdial.prompts.errors import MissingExtra
from promptdial.runtime.errors import SessionFailed
from promptdial.runtime.plugins import devices_of
from promptdial.runtime.providers import Accelerator
from promptdial.runtime.session import available_providers, first_line, runtime_version

OPENVINO = "OpenVINOExecutionProvider"
PLUGIN_MODULE = "onnxruntime_ep_openvino"
PLUGIN_PACKAGE = "onnxruntime-ep-openvino"
EXTRA = "npu-openvino"
DEVICES = ("CPU", "GPU", "NPU")
"""Others are refused here: what is built into 1.24.1 opens a device that it does not
know as if it were the CPU."""

_IR_READER = "libopenvino_ir_frontend*"


def is_plugged_in() -> bool:
    """Whether the plug-in's package is there."""
    return importlib.util.find_spec(PLUGIN_MODULE) is not None


def is_installed() -> bool:
    """Whether the provider is there in either form."""
    # A registered plug-in is in this list too.
    return is_plugged_in() or OPENVINO in available_providers()


def _missing() -> MissingExtra:
    return MissingExtra(f"provider {OPENVINO}", EXTRA)


def _version() -> str:
    if is_plugged_in():
        return version(PLUGIN_PACKAGE)
    if not is_installed():
        raise _missing()
    return runtime_version()


def _add(options: Any, device: str) -> None:
    """Put it into the options.

    Raises:
        MissingExtra: It is not installed.
        SessionFailed: It cannot be loaded, or there is no such device here.
    """
    device = device or DEVICES[0]
    # OpenVINO has threads of its own, and takes every core where none is said.
    threads = int(options.intra_op_num_threads) if device == "CPU" else 0
    if is_plugged_in():
        _add_plugin(options, device, threads)
    elif is_installed():
        _add_built_in(options, device, threads)
    else:
        raise _missing()


def _add_built_in(options: Any, device: str, threads: int) -> None:
    settings = {"device_type": device}
    if threads:
        settings["num_of_threads"] = str(threads)
    try:
        options.add_provider(OPENVINO, settings)
    except Exception as error:  # onnxruntime raises bare classes of its own
        raise _no_device(device, first_line(error)) from None


def _add_plugin(options: Any, device: str, threads: int) -> None:
    import onnxruntime_ep_openvino

    hint = (
        "the plug-in takes Intel's processors alone; for others: pip uninstall -y "
        "onnxruntime && pip install onnxruntime-openvino"
    )
    there = devices_of(OPENVINO, onnxruntime_ep_openvino.get_library_path(), hint)
    chosen = [item for item in there if item.ep_metadata.get("ov_device") == device]
    if not chosen:
        raise _no_device(device, "there is none here")
    settings = {}
    if threads:
        load = {device: {"INFERENCE_NUM_THREADS": str(threads)}}
        settings["load_config"] = json.dumps(load)
    options.add_provider_for_devices(chosen[:1], settings)


def _no_device(device: str, problem: str) -> SessionFailed:
    return SessionFailed(
        f"provider {OPENVINO} on {device}: {problem}",
        f"choose another device of {', '.join(DEVICES)}, or install its driver",
    )


def _keeps_contexts(device: str) -> bool:
    """Whether a context can be read again.

    For the CPU, OpenVINO writes its own form of a model (IR), and reads it with a
    library that the plug-in brings and the packages 1.20 to 1.24.1 of the other form do
    not: each such context would be written, refused and compiled again.
    """
    if (device or DEVICES[0]) != "CPU" or is_plugged_in():
        return True
    import onnxruntime as ort

    return any((Path(str(ort.__file__)).parent / "capi").glob(_IR_READER))


ACCELERATOR = Accelerator(
    devices=DEVICES,
    is_installed=is_installed,
    missing=_missing,
    version=_version,
    add=_add,
    keeps_contexts=_keeps_contexts,
)
