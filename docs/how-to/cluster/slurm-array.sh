#!/bin/bash
# A sweep in shares: jobs that know nothing of each other, each with a store of its own, and at the end one store.
#
#   FACTS=counterfact.json MODEL=gpt-j DEVICE=cuda sbatch --array=1-16 docs/how-to/cluster/slurm-array.sh
#   SHARES=16 sbatch --dependency=afterok:JOB docs/how-to/cluster/slurm-array.sh merge
#
# The same command with the same settings continues a share that was interrupted.
#SBATCH --job-name=fasttrace
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

stores=${STORES:-stores}
mkdir -p "$stores"

if [ "${1:-}" = merge ]; then
    parts=()
    for n in $(seq 1 "$SHARES"); do parts+=("$stores/$n.duckdb"); done
    exec fasttrace merge "${parts[@]}" --into "${INTO:-study.duckdb}"
fi

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
exec fasttrace trace --facts "${FACTS:-builtin}" --model "${MODEL:-smollm2-135m}" --device "${DEVICE:-cpu}" ${OPTIONS:-} \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --store "$stores/$SLURM_ARRAY_TASK_ID.duckdb"
