"""The derivative of every ONNX operator that a lowering makes, one rule an operator.

`elementwise` has those that compute value by value, `layout` those that move values, `reductions` those that compute
over axes, `windows` those that slide a window. What becomes of a whole network is in `graph.gradients`.
"""

from autonuq.graph.backward import elementwise, layout, reductions, windows
from autonuq.graph.backward.reverse import RULES, NoDerivative, Reverse

__all__ = ["RULES", "NoDerivative", "Reverse", "elementwise", "layout", "reductions", "windows"]
