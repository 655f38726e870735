"""What AMCT's package has and autonuq does not do: asking for it says so in one sentence."""

from __future__ import annotations

from typing import NoReturn

from autonuq.errors import RuntimeFailure

REFUSED_MODULES = ("tensor_decompose", "tensor_decomposition")
_RETRAINING = "it quantizes trained networks without training them; train in Caffe and give the float network here"
_DECOMPOSITION = (
    "it keeps a network's layers, and what is decomposed has to be trained again; decompose and train elsewhere, and "
    "give the float network here"
)
_REASONS = {
    "create_quant_retrain_config": _RETRAINING,
    "create_quant_retrain_model": _RETRAINING,
    "save_quant_retrain_model": _RETRAINING,
    "auto_decomposition": _DECOMPOSITION,
    "quantize_preprocess": "it belongs to AMCT for PyTorch, and no page of AMCT for Caffe has it",
    **dict.fromkeys(REFUSED_MODULES, _DECOMPOSITION),
}


def refuse_name(name: str) -> NoReturn:
    """Stand in for a name that a module lacks (PEP 562).

    Raises
    ------
    RuntimeFailure
        AMCT has it, and autonuq does not do it.
    AttributeError
        Neither has it.
    """
    if name in _REASONS:
        raise RuntimeFailure(f"autonuq does not do what AMCT calls {name}: {_REASONS[name]}")
    raise AttributeError(f"amct_caffe has no attribute '{name}'")
