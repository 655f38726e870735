"""The engine behind one small interface: feed blobs, get blobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime

from autonuq.errors import RuntimeFailure
from autonuq.graph.lowering import Lowered
from autonuq.graph.model import Array


class Session:
    """An onnxruntime session of a lowered graph on the CPU.

    Parameters
    ----------
    lowered : Lowered
    threads : int
        Threads of one operator; 0 lets onnxruntime take every core.

    Raises
    ------
    RuntimeFailure
        onnxruntime refuses the model.
    """

    def __init__(self, lowered: Lowered, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        names = list(lowered.initializers)
        # Views into a file may be unaligned; the engine must not be given such memory.
        self._arrays = [np.require(lowered.initializers[name], requirements=["C", "A"]) for name in names]
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._arrays]
        if names:
            options.add_external_initializers(names, values)
        try:
            self._session = onnxruntime.InferenceSession(lowered.model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise RuntimeFailure(f"onnxruntime cannot load the network: {_first_line(error)}") from error
        self.inputs = dict(lowered.inputs)
        self.outputs = dict(lowered.outputs)

    def run(self, feeds: Mapping[str, Array], blobs: Sequence[str] | None = None) -> dict[str, Array]:
        """Execute the graph.

        Parameters
        ----------
        feeds : mapping of str to ndarray of float32
            One array per input blob, of the lowered shape.
        blobs : sequence of str, optional
            Outputs that are wanted; all by default.

        Returns
        -------
        dict of str to ndarray of float32

        Raises
        ------
        RuntimeFailure
            onnxruntime failed.
        """
        wanted = list(self.outputs if blobs is None else blobs)
        try:
            values = self._session.run([self.outputs[blob] for blob in wanted], dict(feeds))
        except Exception as error:  # onnxruntime's exceptions have no common base of their own
            raise RuntimeFailure(f"onnxruntime failed: {_first_line(error)}") from error
        return dict(zip(wanted, values, strict=True))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
