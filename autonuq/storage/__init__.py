"""Optuna storages by URL, and what many workers need of them: locks, retries, leases.

`open` makes a `Storage` of a URL, with the help of `sql` for databases and `journal_file` for files. `exclusion` keeps
the workers of a study apart, `retries` outlasts a lost connection, `lease` tells which workers are alive.
"""
