#!/usr/bin/env bash
# scripts/bench_gpu.sh   Output tokens a second of LLaDA-8B's shape on the first CUDA card.
# Random weights, the setting of arXiv 2606.07571: a shared prefix of 700 tokens, questions of 100, 256 tokens in 128
# steps, blocks of 32. Rows: requests at a time. Columns: without any reuse (off; for 1 and 16 only, it is slow), with
# the dual cache inside a request, and with the prefix too (table).
# Environment: BICACHED (program; build/release/bicached), BENCH_DIR (for the 16 GB model; kept), AT_A_TIME, WEIGHTS.
set -euo pipefail
cd "$(dirname "$0")/.."
program=${BICACHED:-build/release/bicached}
folder=${BENCH_DIR:-/tmp/bicached-bench}
python=$(command -v .venv/bin/python || command -v python3)

mkdir -p "$folder"
if [ ! -f "$folder/llada-8b/config.json" ]; then "$python" scripts/make_random_model.py "$folder/llada-8b"; fi
"$python" scripts/make_prefix_workload.py --prefix-tokens 700 --questions 256 >"$folder/questions.jsonl"

# measure WEIGHTS AT_A_TIME POLICY INTRA_CACHE: tokens a second
measure() {
  local questions=$((2 * $2 < 4 ? 4 : 2 * $2)) warmup=$(($2 < 2 ? 2 : $2))
  if [ "$4" = none ]; then questions=$(($2 < 2 ? 2 : $2)) warmup=1; fi
  "$program" eval "$folder/llada-8b" --device cuda --dtype bfloat16 --weights "$1" --data "$folder/questions.jsonl" \
    --policies "$3" --intra-cache "$4" --depth-table configs/depth/llada-8b-instruct.json --algorithm low_confidence \
    --steps 128 --gen-length 256 --block-length 32 --refresh-interval 16 --refresh-commits 1000000 --min-uses 1 \
    --cache-bytes 4000000000 --no-eos-early-stop --concurrency "$2" --max-running "$2" --limit "$questions" \
    --warmup "$warmup" --json "$folder/run.json" >/dev/null 2>"$folder/log.txt" || { cat "$folder/log.txt" >&2; exit 1; }
  "$python" -c 'import json,sys; print("%.1f" % json.load(open(sys.argv[1]))["runs"][0]["output_tokens_per_s"])' "$folder/run.json"
}

nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1
echo "| weights | at a time | off | dual | table |"
echo "| --- | ---: | ---: | ---: | ---: |"
for weights in ${WEIGHTS:-bfloat16 fp8}; do
  for at in ${AT_A_TIME:-1 16 32 64}; do
    off=""
    if [ "$at" -le 16 ]; then off=$(measure "$weights" "$at" off none); fi
    dual=$(measure "$weights" "$at" off dual)
    table=$(measure "$weights" "$at" table dual)
    echo "| $weights | $at | $off | $dual | $table |"
  done
done
