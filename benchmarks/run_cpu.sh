#!/usr/bin/env bash
# Measure on this CPU and keep the figures in benchmarks/results: benchmarks/run_cpu.sh
# Run it on a quiet machine: the load before and after is part of each report. First what the tree costs, then lora_linear
# from Python, over the layers of the U-Nets with the ceilings of the machine (C++), and its kernels alone on one core; in
# between, the operators that replace functions of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
make install csrc-build
python=${VENV:-.venv}/bin/python
bench=${CMAKE_BUILD:-build/cmake}/refiners_bench
results=benchmarks/results
rm -f $results/fluxion.* $results/lora_linear_*cpu.* $results/cpu_operators.*

"$python" benchmarks/fluxion/run.py --table $results/fluxion.md --json $results/fluxion.json || true # a budget is missed
test -s $results/fluxion.json
"$python" benchmarks/ops/cpu_operators.py --table $results/cpu_operators.md --json $results/cpu_operators.json
"$python" -m refiners bench --device cpu \
  --table $results/lora_linear_python_cpu.txt --json $results/lora_linear_python_cpu.json
"$bench" lora_linear --device cpu --table $results/lora_linear_cpu.txt --json $results/lora_linear_cpu.json
"$bench" lora_linear_kernel --table $results/lora_linear_kernel_cpu.txt --json $results/lora_linear_kernel_cpu.json
"$python" benchmarks/ops/plot.py $results/lora_linear_python_cpu.json docs/assets/lora_linear_cpu.svg
