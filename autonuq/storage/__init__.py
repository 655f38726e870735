"""Optuna storages by URL, and what many workers need of them: locks, retries, leases."""
