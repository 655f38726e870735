"""What `peers.py` runs in coremltools' environment: weights that have so many values a tensor.

    python studies/bench/peer_coremltools.py FOLDER

FOLDER holds `weights.npz`, and `setting.json` with the number of levels; it gets `decoded.npz`. The exact
one-dimensional k-means that coremltools bundles sees float16 weights, as when its palettizer takes a float16 model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from coremltools._deps import kmeans1d


def palettized(weights: np.ndarray, levels: int) -> np.ndarray:
    values, indices, counts = np.unique(weights.astype(np.float16), return_inverse=True, return_counts=True)
    found = kmeans1d.cluster(values, min(levels, values.size), weights=counts)
    palette = np.array(found.centroids, np.float16)
    return palette[np.array(found.clusters)][indices.reshape(weights.shape)].astype(np.float32)


def main(folder: Path) -> None:
    levels = json.loads((folder / "setting.json").read_text())["levels"]
    with np.load(folder / "weights.npz") as stored:
        np.savez(folder / "decoded.npz", **{name: palettized(stored[name], levels) for name in stored.files})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
