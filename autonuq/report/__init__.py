"""What a study found, for people: figures, files and one page.

Everything here reads a `StudyRecord` (see `autonuq.records`) and nothing else: no search logic, no storage,
no arithmetic on weights.

- `FIGURES` maps a kind to the function that draws it. `data` (and `optimization`, what Optuna says) decides every
  number before plotly sees it; `trial_figures` and `layer_figures` only draw.
- `write_figure` writes one figure as HTML, JSON, PNG or SVG.
- `dashboard` shows a study in optuna-dashboard; it alone reads the storage, too.
- `write_report` writes the whole study as one HTML page that opens without a network.
"""

from typing import TYPE_CHECKING

from autonuq.lazy import lazy_names

_OWNERS = {
    "FIGURES": "autonuq.report.kinds",
    "write_figure": "autonuq.report.files",
    "write_report": "autonuq.report.page",
}
__all__ = sorted(_OWNERS)

if TYPE_CHECKING:  # for type checkers and editors
    from autonuq.report.files import write_figure as write_figure
    from autonuq.report.kinds import FIGURES as FIGURES
    from autonuq.report.page import write_report as write_report
else:
    __getattr__, __dir__ = lazy_names(__name__, _OWNERS)
