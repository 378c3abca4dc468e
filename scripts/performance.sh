#!/usr/bin/env bash
# Runs every measurement of docs/performance.md on one GPU, about four minutes, and keeps the logs in the directory
# given (default: performance). Then `python scripts/plot_performance.py DIRECTORY` draws the plots and prints the tables.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=${1:-performance}
mkdir -p "$logs"
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

measure() { # name of the log, then the command
  local name=$1
  shift
  printf '\n== %s (%s s)\n$ python %s\n' "$name" "$SECONDS" "$*"
  timeout 90 python3 "$@" 2>>"$logs/errors.log" | tee "$logs/$name.log" | grep -v '^{'
}

measure ladder_llama-1b scripts/bench_ladder.py --device cuda --preset llama-1b --max-batches 1
measure ladder_llama-8b scripts/bench_ladder.py --device cuda --preset llama-8b --max-batches 1 --repeats 6
measure corpus_llama-1b scripts/bench_corpus.py --device cuda --preset llama-1b --compile --long-documents 24
measure corpus_qwen-0.5b scripts/bench_corpus.py --device cuda --preset qwen-0.5b --compile --long-documents 24 --token-budget 32768
measure attention scripts/bench_attention.py --nodes 3865 --prefix 512 8192
measure attention_grid scripts/bench_attention.py --methods kernel flash flex_dynamic
echo "done ($SECONDS s)"
