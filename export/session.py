"""Sessions that calibration and parity run graphs in: CPU, quiet, and sharing cores."""

from pathlib import Path

import onnxruntime

from promptdial.runtime.processor import INT8_FEATURES
from promptdial.runtime.session import wants_exact


def cpu_session(graph: Path | bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU.

    Args:
        graph: A file, or a serialised model.
        threads: For one operator; 0 for as many as there are cores.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    if wants_exact(INT8_FEATURES):
        # As the device's session does there: sums in 16 bits would overflow.
        options.add_session_config_entry("session.x64quantprecision", "1")
    # PyTorch runs in turn with the session: idle threads must not hold its cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        graph, options, providers=["CPUExecutionProvider"]
    )
