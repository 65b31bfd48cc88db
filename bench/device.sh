#!/usr/bin/env bash
# Everything a GPU is for, in one command and under ten minutes: build, GPU tests, benchmarks, a short table.
#
#   bash bench/device.sh [build] [tests] [sweep]      (all three without arguments; JSON goes to $OUT)
#
# Wants Python 3.12, torch with CUDA, triton, transformers, pyarrow, pytest; needs no network. Where there is no
# GPU it compiles the CUDA sources, says so and exits 0.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && ! command -v nvidia-smi >/dev/null 2>&1 && python=.venv/bin/python
out=${OUT:-bench/results/device}
parts=${*:-build tests sweep}
failed=0

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "There is no GPU here: the CUDA sources are compiled and nothing is run."
    if command -v nvcc >/dev/null 2>&1; then "$python" csrc/build_ext.py check-cuda; else echo "nvcc is not here either."; fi
    exit 0
fi

mkdir -p "$out"
"$python" - <<'EOF'
import torch
print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuda", torch.version.cuda)
EOF
for part in $parts; do
    echo "== $part"
    case "$part" in
        build) "$python" -m pip install --quiet --no-build-isolation --no-deps --no-index -e . || failed=1 ;;
        tests) "$python" -m pytest tests/ops -m gpu --junitxml "$out/tests.xml" || failed=1 ;;
        sweep) "$python" bench/bench_sweep.py --device cuda --random --out "$out/$(date +%F).json" || failed=1 ;;
        *) echo "unknown part '$part': build, tests and sweep were wanted"; exit 2 ;;
    esac
done
exit "$failed"
