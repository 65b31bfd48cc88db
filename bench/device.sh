#!/usr/bin/env bash
# Everything a GPU is for, in one command and under nine minutes: build, GPU tests, benchmarks, a short table.
#
#   bash bench/device.sh [build] [tests] [tune] [ops] [gptj] [table]     (all without arguments; JSON goes to $OUT)
#
# Wants Python 3.12, torch with CUDA, triton, transformers, pyarrow, pytest; needs no network. Where there is no
# GPU it compiles every kernel for one, says so and exits 0. $OUT/tiles/tiles.json is to become kernels/tiles.json.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && ! command -v nvidia-smi >/dev/null 2>&1 && python=.venv/bin/python
out=${OUT:-bench/results/device}
parts=${*:-build tests tune ops gptj table}
failed=0
for part in $parts; do
    case "$part" in
        build | tests | tune | ops | gptj | table) ;;
        *) echo "unknown part '$part': build, tests, tune, ops, gptj and table were wanted"; exit 2 ;;
    esac
done

if [ "$parts" = table ]; then
    exec "$python" bench/device_ops.py --table "$out"
fi
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    echo "There is no GPU here: every kernel is compiled for one, and nothing is run."
    command -v nvcc >/dev/null 2>&1 || echo "nvcc is not here either, so the CUDA sources are left out."
    if "$python" -c 'import triton' 2>/dev/null; then
        "$python" -W ignore bench/compile_kernels.py || exit 1
    else
        echo "Triton is not here, so its kernels are left out."
        "$python" csrc/build_ext.py check-cuda || exit 1
    fi
    exit 0
fi

mkdir -p "$out"
"$python" - <<'PY'
import torch
print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuda", torch.version.cuda)
PY
# A part that hangs must not take the time of those after it.
for part in $parts; do
    echo "== $part ($SECONDS s)"
    case "$part" in
        build) timeout 110 "$python" -m pip install --quiet --no-build-isolation --no-deps --no-index -e . || failed=1 ;;
        tests) timeout 110 "$python" -m pytest -q tests/ops tests/tracing/test_wavefront.py -m gpu --junitxml "$out/tests.xml" || failed=1 ;;
        tune) timeout 80 "$python" bench/device_ops.py --tune "$out/tiles" || failed=1 ;;
        ops) timeout 110 "$python" bench/device_ops.py --out "$out/$(date +%F)-ops.json" || failed=1 ;;
        gptj) timeout 120 "$python" bench/bench_gptj.py --device cuda --out "$out/$(date +%F)-gptj.json" || failed=1 ;;
        table) "$python" bench/device_ops.py --table "$out" || failed=1 ;;
    esac
done
echo "== done ($SECONDS s)"
exit "$failed"
