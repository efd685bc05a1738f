#!/bin/sh
# Everything that is to be known of caswit on one CUDA GPU, in one call of under ten minutes.
#
#   benchmarks/gpu.sh DIR            writes DIR/gpu.json and DIR/gpu.md, rewritten after each measurement
#   benchmarks/gpu.sh DIR --small    the same on a CPU with a narrow network, to try it; its numbers say nothing
#
# Needs pip install '.[train,gpu,bench]'. PYTHON names another python3 than the first one.
set -eu
cd "$(dirname "$0")/.."
out=${1:?give a folder for the results}
shift
export PYTHONPATH="$PWD/src:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
# What has been measured is there when the time is over.
exec timeout 590 "${PYTHON:-python3}" benchmarks/gpu.py --out "$out" "$@"
