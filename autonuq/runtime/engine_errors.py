"""The one edge where the engine's errors become ours: what it says of its own nodes means nothing to a user of Caffe.

Its exception stays the cause (`__cause__`), so that a traceback still shows everything.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from autonuq.errors import RuntimeFailure

# Where onnxruntime names the node: in an error of a kernel, of shape inference, of the graph
_NODES = re.compile(r"Name:'([^']*)'|Node ?\(([^)]*)\)|[Nn]ode[: ]+'?([^' ,]+)")
_REASONS = (
    (re.compile(r"bad_alloc|failed to allocate|out of memory", re.I), "there is not enough memory for what it makes"),
    (
        re.compile(r"out of (data )?bounds|out of range|must be within", re.I),
        "an index or a label that it reads lies outside of its range",
    ),
)


def engine_failure(error: Exception, what: str, layers: Collection[str]) -> RuntimeFailure:
    """Make the RuntimeFailure that stands for an exception of the engine.

    Parameters
    ----------
    what : str
        What did not work: "cannot compute" or "cannot prepare".
    layers : collection of str
        Names that a node may stand for.
    """
    text = str(error)
    reason = next((reason for pattern, reason in _REASONS if pattern.search(text)), None)
    layer = _layer_of(text, layers)
    thing = "this layer" if layer is not None else "the network"
    because = f": {reason}" if reason else " for inputs of these shapes and values"
    return RuntimeFailure(f"the engine {what} {thing}{because}", layer=layer)


def _layer_of(text: str, layers: Collection[str]) -> str | None:
    """Return the layer of the first node that the text names; nodes are called `<layer>:<number>`."""
    names = (next(filter(None, found.groups()), "").rpartition(":")[0] for found in _NODES.finditer(text))
    return next((name for name in names if name in layers), None)
