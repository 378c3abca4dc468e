#!/usr/bin/env bash
# Makes the model in decodner_hf/default_model: text and sets in, a folder out. Run it in the repository's root, where
# text/ holds JSON lines (.xz) and ner/<set>/<split>.jsonl the labelled sets that sources.json names, on two GPUs.
# Every step is seeded; pretraining and training go on where they stopped (the same command; --resume).
# On two NVIDIA H200 pretraining takes 7 minutes.
set -euo pipefail
here=scripts/default_model
several="accelerate launch --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --multi_gpu"

$several scripts/pretrain.py --text text/*.jsonl.xz --output backbone --tokens 1_000_000_000 \
    --batch-tokens 196_608 --micro-rows 96 --learning-rate 3e-3

bash $here/data.sh

$several -m decodner_hf.cli train --open-types --model backbone --output default_model --sources $here/sources.json \
    --type-notes notes.json --strangers 0.1 --epochs 3 --max-steps 5000 --learning-rate 1e-3 --optimizer muon \
    --weight-decay 0.05 --row-tokens 32768 --compile --workers 14 --evaluate-epochs 0 \
    --save-dtype bfloat16 --max-shard-size 15MB --licence cc-by-sa-4.0 \
    --keep-apart ner/conll2003 ner/conll2003:valid ner/wikigold ner/crossner_{ai,literature,music,politics,science} \
    ner/mit_movie_eng ner/mit_restaurant ner/wnut17 ner/bc5cdr ner/ncbi_disease ner/stackoverflow

python scripts/calibrate_open_types.py --model default_model --sets $here/dev_sets.json --max-positions 384 \
    --labels person organization location nationality date money event product "creative work" language
