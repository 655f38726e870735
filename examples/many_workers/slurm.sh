#!/usr/bin/env bash
#SBATCH --job-name=autonuq
#SBATCH --array=0-7
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
#SBATCH --output=autonuq-%A_%a.log
# Eight workers of one study, from a folder that all nodes see:
#
#   sbatch slurm.sh postgresql://user@host/database
#
# A worker whose time is over gives its trial back; submitted again, the study goes on.
exec "${SLURM_SUBMIT_DIR:-.}/worker.sh" "$SLURM_ARRAY_TASK_ID" "$1"
