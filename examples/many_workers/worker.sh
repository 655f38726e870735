#!/usr/bin/env bash
# One worker of many: number 0 starts the study, or goes on with it where it was stopped; the others wait for it and join.
#
#   ./worker.sh NUMBER STORAGE [OPTIONS OF autonuq]
set -euo pipefail
number=$1 url=$2
shift 2
cd "$(dirname "$0")"
if [ "$number" != 0 ]; then
  exec autonuq work study.toml --storage "$url" --wait 30m "$@"
elif autonuq status study.toml --storage "$url" >/dev/null 2>&1; then
  exec autonuq resume study.toml --storage "$url" "$@"
else
  exec autonuq tune study.toml --storage "$url" "$@"
fi
