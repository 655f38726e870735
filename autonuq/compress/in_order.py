"""A plan's network, built in order: each layer against what the quantized layers before it really give it.

The original and the quantized network run side by side over the calibration's inputs, from one layer with weights to
the next. There the inputs of both are compared (`quant.paired`), the layer is rounded to its point's grid again, and
its bias takes up the mean of what it lacks; then both go on. So what a layer spoils the next ones make up for. Layers
with groups keep their codes. What depends on a layer that runs in Python keeps its codes and biases, and what was
quantized there is not waited for.

At the end the networks' heads are compared: how far they diverge is known without a label.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autonuq.compress.candidate import Candidate, Made
from autonuq.compress.divergence import Divergence, divergence
from autonuq.graph.heads import find_heads
from autonuq.graph.hosted import HOST_LAYERS
from autonuq.graph.lowering import lower
from autonuq.graph.model import FED_LAYERS, Array, Graph, Layer
from autonuq.quant.feedback import assign, build_feedback, factor_outputs, targets_of
from autonuq.quant.paired import InputPairing, PairedInputs
from autonuq.runtime.moments import input_patches, is_observable
from autonuq.runtime.program import source_layer
from autonuq.runtime.session import Session
