"""One worker of a made-up study: logs each plan that it scores; started several times at once by the tests.

Arguments: URL, study, log file, pause in seconds, number of the claim at which it kills itself (0: never).
"""

import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from autonuq.quant.curve import Curve
from autonuq.records import TrialRecord
from autonuq.search.rate_distortion import RateDistortionSampler
from autonuq.search.space import Space
from autonuq.storage.lease import Heartbeat, WorkerSession
from autonuq.storage.open import open_storage
from autonuq.study.claims import Claims
from autonuq.study.stored import store_record

LAYERS = 6
BITS = np.arange(8.0, 0.0, -0.5)
CURVES = {f"l{i}": Curve(f"l{i}", 1000 * (i + 1) * BITS, (i + 1) * 4.0**-BITS) for i in range(LAYERS)}
SPACE = Space(CURVES, {name: float(curve.rates_bytes[0]) / 4 for name, curve in CURVES.items()})


def open_claims(url, name, session):
    storage = open_storage(url)
    study = storage.load(name)
    study.sampler = RateDistortionSampler(CURVES.values(), seed=0)
    return Claims(storage, study, SPACE, session)


def scored(trial):
    plan = SPACE.plan(trial.params)
    drop = sum((1 + i % 3) * CURVES[name].distortions[point] for i, (name, point) in enumerate(plan.items()))
    size = sum(CURVES[name].rates_bytes[point] for name, point in plan.items())
    margin = math.log(drop / 0.02)
    return TrialRecord(
        trial.number, "complete", ratio=1e5 / size, metric=-drop, satisfied=margin < 0, margin=margin, points=plan
    )


def main(url, name, log, pause_s, dies_at):
    with WorkerSession() as session:
        claims = open_claims(url, name, session)
        claimed = 0
        while not claims.is_finished():
            trial = claims.next()
            if trial is None:
                time.sleep(0.05)
                continue
            claimed += 1
            with Heartbeat(trial.set_user_attr, session.lease):
                if claimed == dies_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                record = scored(trial)
                known = claims.scored(record.points)
                if known is None:
                    time.sleep(pause_s)
                    with Path(log).open("a") as file:
                        file.write(f"{trial.number} {list(record.points.values())}\n")
                store_record(trial, record)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5]))
