"""Qualcomm's provider: a plug-in beside onnxruntime, of the extra `npu-qnn`."""

import importlib.util
from typing import Any

from promptdial.prompts.errors import MissingExtra
from promptdial.runtime.plugins import devices_of
from promptdial.runtime.providers import Accelerator

QNN = "QNNExecutionProvider"
QNN_MODULE = "onnxruntime_qnn"
QNN_EXTRA = "npu-qnn"


def is_installed() -> bool:
    """Whether the provider's package is there."""
    return importlib.util.find_spec(QNN_MODULE) is not None


def _missing() -> MissingExtra:
    return MissingExtra(f"provider {QNN}", QNN_EXTRA)


def _version() -> str:
    return str(_package().__version__)


def _add(options: Any, device: str) -> None:
    """Put it into the options; it chooses its device itself.

    Raises:
        MissingExtra: It is not installed.
        SessionFailed: Its library cannot be loaded, or sees no device.
    """
    del device
    package = _package()
    library = package.get_library_path()
    devices = devices_of(QNN, library, "check that onnxruntime-qnn fits onnxruntime")
    settings = {
        "backend_path": package.get_qnn_htp_path(),
        # Else the cuts of inputs and outputs into levels would be left to the CPU.
        "offload_graph_io_quantization": "0",
    }
    options.add_provider_for_devices(devices, settings)


def _keeps_contexts(device: str) -> bool:
    del device
    return True


def _package() -> Any:
    if not is_installed():
        raise _missing()
    import onnxruntime_qnn

    return onnxruntime_qnn


ACCELERATOR = Accelerator(
    devices=(),
    is_installed=is_installed,
    missing=_missing,
    version=_version,
    add=_add,
    keeps_contexts=_keeps_contexts,
)
