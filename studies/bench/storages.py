"""What a trial costs beside its evaluation, on every storage.

    python studies/bench/storages.py [--sizes 0 100 1000] [--only journal sqlite ...]

54 layers, as many float parameters, trials that were scored before: 0, 100, 1,000. A trial is all that a worker does
beside writing and scoring the network: lock, read what the others did, propose, write the trial with its parameters,
look for an equal plan, store the result, finish. Servers are started for it (Debian's postgresql, redis-server and
mariadb-server; without their programs the row is left out), on loopback.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from autonuq.quant.curve import Curve
from autonuq.records import TARGET_TRIALS, TrialRecord
from autonuq.search.rate_distortion import RateDistortionSampler
from autonuq.search.space import Space
from autonuq.storage.lease import WorkerSession
from autonuq.storage.open import open_storage
from autonuq.study.claims import Claims
from autonuq.study.stored import store_record

LAYERS, MEASURED, EVALUATION_S, SEED = 54, 9, 20.0, 0
ROOT = Path(__file__).parent.parent.parent

spec = importlib.util.spec_from_file_location("servers", ROOT / "tests/servers.py")
servers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(servers)

generator = np.random.default_rng(SEED)
BITS = np.arange(8.0, 0.25, -0.25)
SIZES = generator.lognormal(11, 1.5, LAYERS)
CURVES = {f"res{i}_branch": Curve(f"res{i}_branch", SIZES[i] * BITS, SIZES[i] * 4.0**-BITS) for i in range(LAYERS)}
ORIGINAL = {name: 4 * float(curve.rates_bytes[0]) for name, curve in CURVES.items()}
SPACE = Space(CURVES, {name: size / 4 for name, size in ORIGINAL.items()})
ALLOWED = 0.01 * SIZES.sum()


def scored(plan, number=0):
    size = sum(CURVES[name].rates_bytes[point] for name, point in plan.items())
    drop = sum(CURVES[name].distortions[point] for name, point in plan.items())
    margin = float(np.clip(np.log(drop / ALLOWED), -7, 7))
    ratio = 32 * SIZES.sum() / size
    return TrialRecord(number, "complete", ratio, -drop, margin < 0, margin, points=plan, worker="host:1")


def fill(storage, study, count):
    """Add scored trials near the constraint's edge, each by one write."""
    study_id = storage.get_study_id_from_name(study.study_name)
    for number in range(count):
        points = np.clip(generator.normal(17, 3, LAYERS).round(), 0, len(BITS) - 1).astype(int)
        plan = dict(zip(CURVES, points.tolist(), strict=True))
        record = scored(plan, number)
        own = {key: value for key, value in vars(record).items() if key not in ("number", "state")}
        storage.create_new_trial(
            study_id,
            create_trial(
                state=TrialState.COMPLETE,
                value=record.ratio,
                params=SPACE.parameters(plan),
                distributions=dict(SPACE.distributions),
                user_attrs={"autonuq:trial": own},
                constraints={"satisfied": record.margin},
            ),
        )


def measure(url, size):
    """Return seconds to open the study, per trial, and per proposal."""
    storage = open_storage(url)
    study = storage.create(f"bench-{size}-{time.time_ns()}")
    study.set_user_attr(TARGET_TRIALS, size + MEASURED)
    fill(storage.backend, study, size)
    started = time.perf_counter()
    storage = open_storage(url)
    study = storage.load(study.study_name)
    study.get_trials(deepcopy=False)
    opening = time.perf_counter() - started
    study.sampler = sampler = RateDistortionSampler(CURVES.values(), seed=SEED, original_bytes=ORIGINAL)
    propose, proposing, trials = sampler.propose, [], []

    def timed(own):
        begun = time.perf_counter()
        found = propose(own)
        proposing.append(time.perf_counter() - begun)
        return found

    sampler.propose = timed
    with WorkerSession() as session:
        claims = Claims(storage, study, SPACE, session)
        for _ in range(MEASURED):
            begun = time.perf_counter()
            trial = claims.next()
            plan = SPACE.plan(trial.params)
            claims.scored(plan)
            store_record(trial, scored(plan, trial.number))
            trials.append(time.perf_counter() - begun)
    return opening, median(trials), median(proposing) if proposing else float("nan")


@contextmanager
def postgresql(folder):
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    server = servers.PostgreSQL(programs[-1])
    try:
        yield server.url
    finally:
        server.remove()


def opened(fixture):
    """Use a fixture of the tests as a context."""
    return contextmanager(getattr(fixture, "__wrapped__", None) or fixture._get_wrapped_function())


STORAGES = {
    "journal": lambda folder: nullcontext(f"journal://{folder}/study.journal"),
    "sqlite": lambda folder: nullcontext(f"sqlite:///{folder}/study.db"),
    "postgresql": postgresql,
    "mysql": lambda folder: opened(servers.mysql_url)(folder),
    "redis": lambda folder: opened(servers.redis_url)(folder),
    "grpc (sqlite)": lambda folder: opened(servers.grpc_url)(folder),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 100, 1000])
    parser.add_argument("--only", nargs="+", choices=STORAGES, default=list(STORAGES))
    arguments = parser.parse_args()
    names = ("optuna", "sqlalchemy", "numpy", "psycopg", "pymysql", "redis", "grpcio")
    machine = f"{os.cpu_count()} x {platform.machine()}, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}, Python {platform.python_version()},")
    print(", ".join(f"{name} {version(name)}" for name in names) + f"; seed {SEED}, {LAYERS} layers; ms, medians")
    heads = [f"{size:,} trials (of it proposing)" for size in arguments.sizes]
    last = arguments.sizes[-1]
    heads += [f"opening at {last:,}", f"share of a {EVALUATION_S:.0f} s evaluation"]
    print(f"| storage | {' | '.join(heads)} |")
    print(f"|---|{'---:|' * len(heads)}")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            try:
                context = STORAGES[name](Path(folder))
                with context as url:
                    found = [measure(url, size) for size in arguments.sizes]
            except (OSError, IndexError, pytest.skip.Exception) as error:
                print(f"{name}: left out: {error}", file=sys.stderr)
                continue
        cells = [f"{1e3 * trial:.0f} ({1e3 * proposing:.0f})" for _, trial, proposing in found]
        cells += [f"{1e3 * found[-1][0]:.0f}", f"{found[-1][1] / EVALUATION_S:.1%}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
