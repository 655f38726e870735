#!/usr/bin/env bash
# Tune by the workers of a Dask cluster; without the address of a scheduler, by one that is started here for the time.
#
#   ./dask.sh [tcp://SCHEDULER:8786] [OPTIONS OF autonuq tune]
#
# Its workers need autonuq and the evaluator's data; evaluator, network and curves are sent to them.
set -euo pipefail
cd "$(dirname "$0")"
if [[ ${1:-} == tcp://* ]]; then
  address=$1
  shift
else
  address=tcp://127.0.0.1:${DASK_PORT:-8786}
  trap 'kill $(jobs -p)' EXIT
  dask scheduler --host 127.0.0.1 --port "${address##*:}" --no-dashboard &
  dask worker "$address" --host 127.0.0.1 --nworkers 2 --nthreads 1 --no-dashboard &
fi
autonuq tune study.toml --backend dask --scheduler "$address" "$@"
