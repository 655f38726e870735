"""`import caffe` and `import amct_caffe` in a script that knows nothing of this package.

AMCT has a function and a module called `auto_nuq`: as an attribute the package's is the function, as a place to import
from it is the module.
"""

from __future__ import annotations

import sys
from types import ModuleType

from autonuq import amct, pycaffe
from autonuq.amct import auto_calibration

_PACKAGE = "amct_caffe"


def install() -> None:
    """Make `import caffe` and `import amct_caffe` give this package's, in this process."""
    pycaffe.install()
    common = ModuleType(f"{_PACKAGE}.common", "What AMCT's front ends share.")
    common.auto_calibration = auto_calibration  # type: ignore[attr-defined]
    package = ModuleType(_PACKAGE, amct.__doc__)
    vars(package).update({name: getattr(amct, name) for name in amct.__all__}, common=common, __path__=[])
    sys.modules |= {
        _PACKAGE: package,
        f"{_PACKAGE}.auto_nuq": sys.modules["autonuq.amct.auto_nuq"],
        f"{_PACKAGE}.common": common,
        f"{_PACKAGE}.common.auto_calibration": auto_calibration,
    }
