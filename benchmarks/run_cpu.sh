#!/usr/bin/env bash
# Measure lora_linear on this CPU and keep the figures: benchmarks/run_cpu.sh [PYTHON]
# Run it on a quiet machine, after `make install`: the load before and after is part of the report. Three runs: from Python,
# then over the layers of the U-Nets with the ceilings of the machine (C++), then the kernels alone on one core.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${1:-python3}")
PATH=$(dirname "$python"):$PATH # its cmake and ninja, where it has them
build=${BUILD:-build/cmake}
results=benchmarks/results
mkdir -p $results

cmake -S . -B "$build" -DPYTHON_EXECUTABLE="$python" -DREFINERS_TORCH=ON
cmake --build "$build" --target refiners_bench
"$python" -m refiners bench --device cpu \
  --table "$results/lora_linear_python_cpu.txt" --json "$results/lora_linear_python_cpu.json"
"$build/refiners_bench" lora_linear --device cpu \
  --table "$results/lora_linear_cpu.txt" --json "$results/lora_linear_cpu.json"
"$build/refiners_bench" lora_linear_kernel \
  --table "$results/lora_linear_kernel_cpu.txt" --json "$results/lora_linear_kernel_cpu.json"
