#!/usr/bin/env bash
# Tune the LeNet of ../fashion_lenet with several workers that know of each other through one PostgreSQL only.
#
#   ./run.sh postgresql://user:password@host/database [WORKERS] [TRIALS]
#
# On several machines: run the first command on one of them, then the second on each, with the same URL.
set -euo pipefail
url=$1 workers=${2:-4} trials=${3:-40}
cd "$(dirname "$0")"

# The first worker makes the study, calibrates and builds the curves; --jobs starts the others of this machine.
autonuq tune study.toml --storage "$url" --trials "$trials" --jobs "$workers" &
first=$!

# One more worker, as any other machine would start it: it waits until the study is there.
autonuq work study.toml --storage "$url" --wait 10m

wait "$first"
autonuq plot study.toml timeline --storage "$url" -o out/timeline.html
