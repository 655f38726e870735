"""`import caffe` and `import amct_caffe` in a script that knows nothing of this package.

AMCT has a function and a module called `auto_nuq`: as an attribute the package's is the function, as a place to import
from it is the module. What AMCT has and autonuq does not do is there, too, and says so when it is asked for.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from autonuq import amct, pycaffe
from autonuq.amct import arguments_handler, auto_calibration, data_handler
from autonuq.amct.out_of_scope import REFUSED_MODULES, refuse_name

_PACKAGE = "amct_caffe"


def install() -> None:
    """Make `import caffe` and `import amct_caffe` give this package's, in this process."""
    pycaffe.install()
    install_amct_caffe()


def install_amct_caffe() -> None:
    """Make `import amct_caffe` give this package's, in this process; `import caffe` finds whatever is there."""
    offered = {name: getattr(amct, name) for name in amct.__all__}
    handlers = {"arguments_handler": arguments_handler, "data_handler": data_handler}
    command_line = _module("common.cmd_line_utils", "What evaluators of the command line use.", handlers)
    shared = {"auto_calibration": auto_calibration, "cmd_line_utils": command_line}
    common = _module("common", "What AMCT's front ends share.", shared)
    modules = {
        "": _module("", str(amct.__doc__), {**offered, "common": common, "__getattr__": refuse_name}),
        "auto_nuq": sys.modules["autonuq.amct.auto_nuq"],
        "common": common,
        **{f"common.{name}": module for name, module in shared.items()},
        **{f"common.cmd_line_utils.{name}": module for name, module in handlers.items()},
        **{name: _module(name, "Not here.", {"__getattr__": refuse_name}) for name in REFUSED_MODULES},
    }
    sys.modules |= {f"{_PACKAGE}.{name}".rstrip("."): module for name, module in modules.items()}


def _module(name: str, summary: str, names: dict[str, Any]) -> ModuleType:
    module = ModuleType(f"{_PACKAGE}.{name}".rstrip("."), summary)
    vars(module).update(names, __path__=[])
    return module
