"""Intel's provider: part of an onnxruntime of its own, onnxruntime-openvino.

That package and onnxruntime bring the same module, and files of the one lie over those
of the other: an environment has one of them. No extra can say so.
"""

from pathlib import Path
from typing import Any

from promptdial.runtime.errors import MissingProvider, SessionFailed
from promptdial.runtime.providers import Accelerator
from promptdial.runtime.session import available_providers, first_line, runtime_version

OPENVINO = "OpenVINOExecutionProvider"
INSTALL = "pip uninstall -y onnxruntime && pip install onnxruntime-openvino"
DEVICES = ("CPU", "GPU", "NPU")
"""Others are refused here: the provider of 1.24.1 opens a device that it does not know
as if it were the CPU."""

_IR_READER = "libopenvino_ir_frontend*"


def is_installed() -> bool:
    """Whether the installed onnxruntime has the provider."""
    return OPENVINO in available_providers()


def _missing() -> MissingProvider:
    return MissingProvider(OPENVINO, INSTALL)


def _version() -> str:
    if not is_installed():
        raise _missing()
    return runtime_version()


def _add(options: Any, device: str) -> None:
    """Put it into the options.

    Raises:
        MissingProvider: The installed onnxruntime lacks it.
        SessionFailed: There is no such device here.
    """
    if not is_installed():
        raise _missing()
    settings = {"device_type": device or DEVICES[0]}
    threads = int(options.intra_op_num_threads)
    if settings["device_type"] == "CPU" and threads:
        # OpenVINO has threads of its own, and takes every core where none is said.
        settings["num_of_threads"] = str(threads)
    try:
        options.add_provider(OPENVINO, settings)
    except Exception as error:  # onnxruntime raises bare classes of its own
        raise SessionFailed(
            f"provider {OPENVINO} on {settings['device_type']}: {first_line(error)}",
            f"choose another device of {', '.join(DEVICES)}, or install its driver",
        ) from None


def _keeps_contexts(device: str) -> bool:
    """Whether a context can be read again.

    For the CPU, OpenVINO writes its own form of a model (IR), and reads it with a
    library that the packages 1.22 to 1.24.1 do not bring: each such context would be
    written, refused and compiled again.
    """
    if (device or DEVICES[0]) != "CPU":
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
