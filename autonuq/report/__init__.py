"""What a study found, for people: figures, files and one page.

Everything here reads a `StudyRecord` (see `autonuq.records`) and nothing else: no search logic, no storage,
no arithmetic on weights.

- `FIGURES` maps a kind to the function that draws it. `data` (and `optimization`, what Optuna says) decides every
  number before plotly sees it; `trial_figures` and `layer_figures` only draw.
- `write_figure` writes one figure as HTML, JSON, PNG or SVG.
- `dashboard` shows a study in optuna-dashboard; it alone reads the storage, too.
- `write_report` writes the whole study as one HTML page that opens without a network.
"""

from autonuq.report.files import write_figure
from autonuq.report.kinds import FIGURES
from autonuq.report.page import write_report

__all__ = ["FIGURES", "write_figure", "write_report"]
