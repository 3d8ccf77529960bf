#!/usr/bin/env bash
# Measure lora_linear on this CPU and keep the figures: benchmarks/run_cpu.sh [PYTHON]
# Run it on a quiet machine: the load before and after is part of the report. Three runs: the operator over the layers of the
# U-Nets with the ceilings of the machine (C++), its kernels alone on one core, and the same operator from Python.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
build=${BUILD:-build/cmake}
results=benchmarks/results

cmake -S . -B "$build" -DPYTHON_EXECUTABLE="$(command -v "$python")" -DREFINERS_TORCH=ON
cmake --build "$build" --target refiners_bench
"$build/refiners_bench" lora_linear --device cpu \
  --table "$results/lora_linear_cpu.txt" --json "$results/lora_linear_cpu.json"
"$build/refiners_bench" lora_linear_kernel \
  --table "$results/lora_linear_kernel_cpu.txt" --json "$results/lora_linear_kernel_cpu.json"
"$python" -m refiners bench --device cpu \
  --table "$results/lora_linear_python_cpu.txt" --json "$results/lora_linear_python_cpu.json"
