"""What `peers.py` runs in NNCodec's environment: weights to a bitstream and back.

    python studies/bench/peer_nncodec.py FOLDER

FOLDER holds `weights.npz`, and `setting.json` with a step for each tensor, whether quantization is dependent (a
trellis), and the weight of the rate in its decisions. It gets `stream.bin`, and `decoded.npz`: what NNCodec's own
decoder makes of the stream.

NNCodec's adapters of PyTorch and TensorFlow are imported with the coder and not used for plain arrays: empty modules
take their place, so that the environment needs neither framework.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

DENSITY = 4  # two to this many steps an octave


def without_frameworks() -> None:
    framework = ModuleType("nncodec.framework")
    for name in ("tensorflow_model", "pytorch_model", "use_case_init"):
        setattr(framework, name, ModuleType(name))
    sys.modules["nncodec.framework"] = framework


def main(folder: Path) -> None:
    without_frameworks()
    from nncodec import nnc
    from nncodec.nnc_core.common import get_qp_from_stepsize

    setting = json.loads((folder / "setting.json").read_text())
    with np.load(folder / "weights.npz") as stored:
        weights = {name: np.ascontiguousarray(stored[name]) for name in stored.files}
    steps = {name: np.int32(round(get_qp_from_stepsize(step, DENSITY))) for name, step in setting["steps"].items()}
    stream = nnc.compress(
        weights,
        bitstream_path=None,
        qp=min(steps.values()),
        qp_density=DENSITY,
        qp_per_tensor=steps,
        use_dq=setting["dependent"],
        lambda_scale=setting["rate_weight"],
        row_skipping=True,
        return_bitstream=True,
    )
    (folder / "stream.bin").write_bytes(stream)
    np.savez(folder / "decoded.npz", **nnc.decompress(stream))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
