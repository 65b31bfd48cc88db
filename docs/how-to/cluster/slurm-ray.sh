#!/bin/bash
# A study by workers on all nodes of one job: a Ray cluster that lives as long as the job.
#
#   sbatch --nodes=4 --gpus-per-node=8 docs/how-to/cluster/slurm-ray.sh study gpt-j --out out/gpt-j
#   sbatch --nodes=4 --gpus-per-node=8 docs/how-to/cluster/slurm-ray.sh trace --facts counterfact.json --store study.duckdb
#
# The words after the script are a fasttrace command; --workers auto is added. Submitted again, it continues.
#SBATCH --job-name=fasttrace
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

# One secret for this job, which only its owner can read. All nodes need it: the folder is on a shared disk.
umask 077
token=$(mktemp "${SECRETS:-$HOME}/fasttrace-ray-XXXXXX")
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -f "$token"' EXIT

# This script runs on the job's first node.
address=$(hostname -I | cut -d" " -f1)
port=${RAY_PORT:-6379}
own=${RAY_OPTIONS:-}
each=(srun --nodes=1 --ntasks=1 --overlap --cpus-per-task="$SLURM_CPUS_ON_NODE")

"${each[@]}" --nodelist="$SLURMD_NODENAME" \
    ray start --head --block --node-ip-address="$address" --port="$port" --include-dashboard=false $own &
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    [ "$node" = "$SLURMD_NODENAME" ] && continue
    "${each[@]}" --nodelist="$node" ray start --block --address="$address:$port" $own &
done

# A worker can only be placed on a node that has joined.
export RAY_ADDRESS=$address:$port
python - "$SLURM_JOB_NUM_NODES" <<'PYTHON'
import sys, time
import ray

deadline = time.monotonic() + 300
while True:
    try:
        ray.init(log_to_driver=False)
        there = sum(node["Alive"] for node in ray.nodes())
        ray.shutdown()
    except (ConnectionError, RuntimeError):
        there = 0
    if there >= int(sys.argv[1]):
        sys.exit()
    if time.monotonic() > deadline:
        sys.exit(f"expected {sys.argv[1]} nodes within 300 s, got {there}")
    time.sleep(2)
PYTHON

fasttrace "$@" --workers auto
