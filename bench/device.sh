#!/usr/bin/env bash
# Runs everything that needs a GPU, part by part, the most valuable first. A part that fails or runs out of time does
# not stop the others. JSON is written to $OUT as it comes.
#
# If a command may take ten minutes, run these two (540 s each at most; `--budget` adds up the limits):
#
#   bash bench/device.sh unbuilt build tests fuzz compiled
#   bash bench/device.sh tune ops gptj edits table
#
#   unbuilt   a sweep of GPT-J-6B in bfloat16 and every Triton kernel, which need no extension
#   build     the extension for $TORCH_CUDA_ARCH_LIST, 9.0 if that is not set
#   tests     the GPU tests, in several processes
#   fuzz      the GPU's ops on random shapes
#   compiled  torch.compile of every op's definition
#   tune      every tile of every Triton kernel; $OUT/tiles/tiles.json is meant to become kernels/tiles.json
#   ops       every op at GPT-J's sizes, beside its reference and torch's own ops
#   gptj      sweeps of GPT-J-6B in bfloat16, then in float32
#   edits     edits of GPT-J-6B by every method, in bfloat16, then in float32
#   table     a line per case of the JSON in $OUT
#
# If no part is given, all run in this order. Needs Python 3.11 or later, torch with CUDA, triton, transformers,
# pyarrow, pytest and pytest-xdist, but no network. It installs nothing. Without .git, set COMMIT to the commit's name.
# Without a GPU it compiles every kernel for one, prints that nothing is run, and exits 0.
#
# --small: every part at sizes that take moments, also on the CPU (with Triton's interpreter), and without the packages
# that a lent GPU machine lacks (bench/bare).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
all="unbuilt build tests fuzz compiled tune ops gptj edits table"
python=${PYTHON:-python3}
[ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ] && ! command -v nvidia-smi >/dev/null 2>&1 && python=.venv/bin/python

mode=run small="" parts=""
for word in "$@"; do
    case " $all --small --budget " in
        *" $word "*) ;;
        *) echo "unknown part '$word': expected some of $all, --small or --budget"; exit 2 ;;
    esac
    case "$word" in
        --small) small=--small ;;
        --budget) mode=budget ;;
        *) parts+=" $word" ;;
    esac
done
[ -n "$parts" ] || parts=" $all"

# limited SECONDS COMMAND…: run the command and its children for at most SECONDS, or three times as long with --small,
# which is for few, shared cores.
total=0 failed=""
limited() {
    total=$((total + $1))
    [ "$mode" = run ] || return 0
    # pytest prints its summary when it is interrupted. A process that ignores the signal is killed.
    timeout --signal INT --kill-after 10 $((${small:+3 *} $1 - 10)) "${@:2}" || failed+=" $part"
}

# Lays out the package as links, so that nothing needs to be installed: once without the extension and once for it to be
# built into. The machine keeps build/ between commands.
home=$PWD/build/device${small:+-small}
lay_out() {
    for folder in plain built; do
        mkdir -p "$home/$folder/fasttrace"
        find "$home/$folder/fasttrace" -type l -delete
        for entry in src/fasttrace/*; do
            case "$entry" in *.so | */__pycache__) ;; *) ln -s "$PWD/$entry" "$home/$folder/fasttrace/" ;; esac
        done
        ln -sf "$PWD/kernels" "$PWD/analysis" "$home/$folder/fasttrace/"  # the copy of src/ may lack its links
    done
}

ops() { limited "$1" "${env[@]}" "$python" -W ignore bench/device_ops.py $small "${@:2}"; }
gptj() { limited "$1" "${env[@]}" "$python" bench/bench_gptj.py --dtype "$2" $small --out "$3"; }
edits() { limited "$1" "${env[@]}" "$python" bench/bench_gptj_edits.py --dtype "$2" $small --out "$3"; }
gpu_tests() { limited "$1" env OMP_NUM_THREADS=1 "$python" -m pytest -p apart -n "$workers" --timeout 60 -m gpu "${@:2}"; }

run_part() {
    local env=(env "PYTHONPATH=$paths") interpreted=()
    [ "$device" = cpu ] && interpreted=(TRITON_INTERPRET=1)
    case "$1" in
        unbuilt)
            env=(env "PYTHONPATH=$home/plain:$more_paths")
            gptj 70 bfloat16 "$out/unbuilt/$day-gptj-bfloat16.json"
            env+=("${interpreted[@]}")
            ops 55 --only triton --out "$out/unbuilt/$day-triton.json" ;;
        # --force, because setuptools does not track the headers that a source includes.
        build)
            limited 110 "$python" -W ignore -c 'import setuptools; setuptools.setup()' -q \
                build_ext --force --build-lib "$home/built" --build-temp "$home/objects"
            limited 15 "${env[@]}" "$python" -c \
                "from fasttrace.ops.native import unavailable_reason; exit(unavailable_reason('$device'))" ;;
        tests) gpu_tests 100 tests/ops tests/tracing/test_wavefront.py --ignore tests/ops/test_fuzz.py \
            --junitxml "$out/tests.xml" ;;
        tune)
            # The tiles that are fastest at small sizes must not enter the user's record.
            env+=("${interpreted[@]}" ${small:+"XDG_CACHE_HOME=$out/cache"})
            ops 110 --tune "$out/tiles" ;;
        ops) ops 80 --out "$out/$day-ops.json" ;;
        gptj)
            gptj 60 bfloat16 "$out/$day-gptj-bfloat16.json"
            gptj 70 float32 "$out/$day-gptj-float32.json" ;;
        edits)
            edits 85 bfloat16 "$out/$day-gptj-edits-bfloat16.json"
            edits 115 float32 "$out/$day-gptj-edits-float32.json" ;;
        fuzz) gpu_tests 90 tests/ops/test_fuzz.py --junitxml "$out/fuzz.xml" ;;
        compiled) ops 100 --only torch.compile ${small:+--ops rank_one_} --out "$out/$day-compiled.json" ;;
        table) ops 20 --table "$out" ;;
    esac
}

all_parts() {
    for part in $parts; do
        [ "$mode" = budget ] || echo "== $part ($SECONDS s)"
        before=$total
        run_part "$part"
        [ "$mode" = run ] || echo "$part: at most $((total - before)) s"
    done
}

out=${OUT:-bench/results/device}
[ -n "$small" ] && out=${OUT:-$home/out}
day=$(date +%F) workers=$(($(nproc) < 12 ? $(nproc) : 12)) device=cuda
more_paths="${small:+$PWD/bench/bare:}$PWD/bench${PYTHONPATH:+:$PYTHONPATH}"
paths="$home/built:$more_paths"
if [ "$mode" = budget ]; then
    all_parts
    echo "all: at most $total s"
    exit
fi
lay_out
# Small products gain nothing from threads, which lose much time waiting for each other.
[ -n "$small" ] && export OMP_NUM_THREADS=1
export PYTHONPATH=$paths PYTHONUNBUFFERED=1 TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0}
if [ "$parts" != " table" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
    device=cpu
    if [ -z "$small" ]; then
        echo "There is no GPU here: every kernel is compiled for one, and nothing is run."
        command -v nvcc >/dev/null 2>&1 || echo "nvcc is not installed either, so the CUDA sources are left out."
        if "$python" -c 'import triton' 2>/dev/null; then
            "$python" -W ignore bench/compile_kernels.py || exit 1
        else
            echo "Triton is not installed, so its kernels are left out."
            "$python" csrc/build_ext.py check-cuda || exit 1
        fi
        exit 0
    fi
fi

mkdir -p "$out"
"$python" - "$device" <<'PY'
import sys

import torch

name = torch.cuda.get_device_name() if sys.argv[1] == "cuda" else "no GPU"
print(f"{name}, torch {torch.__version__}, cuda {torch.version.cuda}, python {sys.version.split()[0]}")
PY
bash bench/device.sh --budget $parts | tail -n 1
all_parts
echo "== done ($SECONDS s)${failed:+; failed:$failed}"
[ -z "$failed" ]
