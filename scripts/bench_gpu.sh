#!/usr/bin/env bash
# scripts/bench_gpu.sh   Output tokens a second of LLaDA-8B's shape on the first CUDA card.
# Random weights, the setting of arXiv 2606.07571: a shared prefix of 700 tokens, questions of 100, 256 tokens in 128
# steps, blocks of 32. Rows: requests at a time. Columns: without any reuse (off; for 1 only, it is slow), with the dual
# cache inside a request, and with the prefix too (table). The last column is the share of the time of `table` that the
# card was at work, as nvidia-smi sees it.
# Environment: BICACHED (program; build/release/bicached), BENCH_DIR (for the 16 GB model; kept), AT_A_TIME, WEIGHTS.
set -euo pipefail
cd "$(dirname "$0")/.."
program=${BICACHED:-build/release/bicached}
folder=${BENCH_DIR:-/tmp/bicached-bench}
python=$(command -v .venv/bin/python || command -v python3)

mkdir -p "$folder"
if [ ! -f "$folder/llada-8b/config.json" ]; then "$python" scripts/make_random_model.py "$folder/llada-8b"; fi
"$python" scripts/make_prefix_workload.py --prefix-tokens 700 --questions 256 >"$folder/questions.jsonl"

# measure WEIGHTS AT_A_TIME POLICIES INTRA_CACHE QUESTIONS WARMUP: " tokens a second |" of each policy
measure() {
  nvidia-smi --id=0 --query-gpu=utilization.gpu --format=csv,noheader,nounits --loop-ms=200 >"$folder/busy.txt" &
  local sampler=$!
  "$program" eval "$folder/llada-8b" --device cuda --dtype bfloat16 --weights "$1" --data "$folder/questions.jsonl" \
    --policies "$3" --intra-cache "$4" --depth-table configs/depth/llada-8b-instruct.json --algorithm low_confidence \
    --steps 128 --gen-length 256 --block-length 32 --refresh-interval 16 --refresh-commits 1000000 --min-uses 1 \
    --cache-bytes 4000000000 --no-eos-early-stop --concurrency "$2" --max-running "$2" --limit "$5" \
    --warmup "$6" --json "$folder/run.json" >/dev/null 2>"$folder/log.txt" ||
    { kill "$sampler"; cat "$folder/log.txt" >&2; exit 1; }
  kill "$sampler"
  "$python" -c 'import json, sys
for run in json.load(open(sys.argv[1]))["runs"]: print(" %.1f |" % run["output_tokens_per_s"], end="")' \
    "$folder/run.json"
}

# The middle one of the samples of the last policy: those before the program ended and gave its memory back.
busy() {
  "$python" -c 'import json, statistics, sys
count = int(json.load(open(sys.argv[1]))["runs"][-1]["wall_s"] / 0.2)
samples = [int(line) for line in open(sys.argv[2]) if line.strip()][-count:]
print(" %d %% |" % statistics.median(samples))' "$folder/run.json" "$folder/busy.txt"
}

nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1
echo "| weights | at a time | off | dual | table | busy |"
echo "| --- | ---: | ---: | ---: | ---: | ---: |"
for weights in ${WEIGHTS:-bfloat16 fp8}; do
  for at in ${AT_A_TIME:-1 16 32 64}; do
    off=" |"
    if [ "$at" = 1 ]; then off=$(measure "$weights" 1 off none 2 1); fi
    rest=$(measure "$weights" "$at" off,table dual $((2 * at < 4 ? 4 : 2 * at < 64 ? 2 * at : 64)) $((at < 2 ? 2 : at)))
    echo "| $weights | $at |$off$rest$(busy)"
  done
done
