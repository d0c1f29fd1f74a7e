"""ONNX Runtime, set up in one way: on the CPU, with a stated number of threads, the same answer
every time, and nobody told. The only file that imports onnxruntime."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # its builds of 2026 otherwise report to their maker

import numpy as np
import onnxruntime


class Session:
    """A loaded network; calling it with its one input gives all its outputs."""

    def __init__(self, model: bytes, threads: int = 1) -> None:
        """`model`: the content of an ONNX file. Errors: onnxruntime's own, for one that it cannot
        run."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 3  # errors are raised; warnings are of no use to a user
        # Threads that spin while they wait would slow down whoever shares the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    @property
    def metadata(self) -> dict[str, str]:
        """What its file says of itself."""
        return self._session.get_modelmeta().custom_metadata_map

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        return self._session.run(None, {self._input: images})
