"""One study: what it is told, its preparation, its trials and workers, its confirmation and artifacts.

Read `run` first. `task` has the one description of a study; `study_file` makes it from TOML, `locate` from what a
study left. `rehearsal` takes every step once before hours are spent, `timing` tells from pieces how fast this machine
is at it, of which the `estimate` follows; `resources` says whether it fits. `preparation` makes what is made once,
`points_cache` keeps its largest part, `artifacts` hand it to other machines; `float_layers` finds the layers that int8
is not good enough for, `foretelling` what plans do to the network's results. `runner` is one worker and `workers` are
several; `claims` decides which trial each runs next, `plan_networks` builds its network, `scoring` scores it,
`trial_log` writes it down, `display` shows how far the study is. `resolution` says before what the data can tell,
`confirmation` scores the winner on other data. `stored` is a study as its storage holds it, `frame` its trials as a
table of pandas.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")  # tqdm's, in a notebook without widgets: we need none
    import optuna as optuna
