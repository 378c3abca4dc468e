#!/usr/bin/env bash
# Runs every measurement of docs/performance.md on one GPU, about eight minutes, and keeps the logs in the directory
# given (default: performance). Then `python scripts/benchmarks/plot_performance.py DIRECTORY` draws the plots and prints the tables.
set -uo pipefail
cd "$(dirname "$0")/../.."
logs=${1:-performance}
mkdir -p "$logs"
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

measure() { # name of the log, then the command
  local name=$1
  shift
  printf '\n== %s (%s s)\n$ python %s\n' "$name" "$SECONDS" "$*"
  timeout 120 python3 "$@" 2>>"$logs/errors.log" | tee "$logs/$name.log" | grep -v '^{'
}

ladder=(scripts/benchmarks/bench_ladder.py --device cuda --max-batches 1)
corpus=(scripts/benchmarks/bench_corpus.py --device cuda --compile --long-documents 24)
attention=(scripts/benchmarks/bench_attention.py)
measure ladder_llama-1b "${ladder[@]}" --preset llama-1b
measure corpus_llama-1b "${corpus[@]}" --preset llama-1b
measure corpus_qwen-0.5b "${corpus[@]}" --preset qwen-0.5b
measure ladder_llama-8b "${ladder[@]}" --preset llama-8b --repeats 6
measure growth_llama-1b scripts/benchmarks/bench_growth.py --device cuda --compile --widths 8 32 --sentences 1726 --long-documents 12 --preset llama-1b
measure growth_smollm2-135m scripts/benchmarks/bench_growth.py --device cuda --compile --widths 8 32 --sentences 1726 --long-documents 12 --preset smollm2-135m
measure attention_documents "${attention[@]}" --nodes 3865 8192 --prefix 512 8192 --methods kernel flash flex flex_dynamic
measure attention_grid "${attention[@]}" --methods kernel flash
# over more, FlexAttention compiled for all sizes at once fails (illegal memory access, torch 2.11)
measure attention_grid_flex "${attention[@]}" --nodes 256 2048 8192 --prefix 0 512 2048 8192 --methods flex_dynamic
echo "done ($SECONDS s)"
