"""What a layer costs alone: how far the network's outputs move when it is the only one that is quantized.

The outputs are compared on inputs of the calibration, so that no label and no evaluator is needed, and the noise of a
metric, in which one layer's harm drowns, plays no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from autonuq.compress.candidate import Candidate
from autonuq.graph.files import ModelPair, write_model
from autonuq.graph.heads import find_heads
from autonuq.graph.model import Array, Graph
from autonuq.runtime.net import Net


class OutputErrors:
    """Measures the layers of one network, one after the other.

    Parameters
    ----------
    candidate : Candidate
        Calibrated; each layer is measured as its plan has it.
    passes : sequence of mapping of str to ndarray of float32
        Input blobs, by name.
    folder : Path
        Where networks are written to be run; they stay there.

    Notes
    -----
    **Cost**: a forward pass of `passes` for the float network and for each layer, and the float network's outputs in
    memory.
    """

    def __init__(self, candidate: Candidate, passes: Sequence[Mapping[str, Array]], folder: Path) -> None:
        self._candidate, self._passes = candidate, passes
        self._pair = ModelPair(folder / "model.prototxt", folder / "weights.caffemodel")
        self._blobs = telling_blobs(candidate.model.graph)
        self._original = list(self._outputs(candidate.model.graph))

    def measure(self, layer: str) -> float:
        """Return the share of error in the outputs with only this layer quantized, from 0 to 1."""
        others = self._candidate.model.factors.keys() - {layer}
        found = list(self._outputs(self._candidate.leaving_float(others).fake_quant_graph()))
        shares = [
            error_share([one[blob] for one in self._original], [one[blob] for one in found]) for blob in self._blobs
        ]
        return sum(shares) / len(shares)

    def _outputs(self, graph: Graph) -> Iterator[dict[str, Array]]:
        write_model(graph, self._pair.model, self._pair.weights)
        net = Net(self._pair.model, self._pair.weights)
        for inputs in self._passes:
            for blob, values in inputs.items():
                net.blobs[blob].reshape(*values.shape)
                net.blobs[blob].data[...] = values
            net.forward()
            yield {blob: net.blobs[blob].data.copy() for blob in self._blobs}


def telling_blobs(graph: Graph) -> tuple[str, ...]:
    """Return the outputs, or in place of a decision or a saturated share the blobs that it is made from."""
    return tuple(dict.fromkeys(head.blob for head in find_heads(graph)))


def error_share(original: Sequence[Array], changed: Sequence[Array]) -> float:
    """Return e / (e + s), e being the energy of the difference and s that of the original; 1 where it is not finite.

    Examples
    --------
    >>> error_share([np.ones(4)], [np.ones(4)]), error_share([np.ones(4)], [np.zeros(4)])
    (0.0, 0.5)
    """
    if any(a.shape != b.shape for a, b in zip(original, changed, strict=True)):
        return 1.0
    with np.errstate(all="ignore"):
        error = sum(float(np.sum((b.astype(np.float64) - a) ** 2)) for a, b in zip(original, changed, strict=True))
        energy = sum(float(np.sum(a.astype(np.float64) ** 2)) for a in original)
    if error == 0:
        return 0.0
    share = error / (error + energy)
    return share if np.isfinite(share) else 1.0
