#!/usr/bin/env bash
# The second stage of the model in decodner_hf/default_model: goes on from the weights of commit 5debd64 with the files of
# data.sh, on the CPU. Run it in the repository's root behind data.sh; seeded, and --resume goes on.
# With two cores (AVX512-BF16) it takes 50 minutes.
set -euo pipefail
here=scripts/default_model

mkdir -p first_stage
git archive 5debd64 decodner_hf/default_model | tar x -C first_stage --strip-components 2
# What was learnt in 384 positions is used in 384; training itself has room for prompts of 512 tokens.
sed -i 's/"max_position_embeddings": 384/"max_position_embeddings": 1024/' first_stage/config.json

decodner train --open-types --model first_stage --output default_model --sources $here/refine_sources.json \
    --type-notes notes.json --strangers 0.1 --epochs 1 --max-steps 210 --learning-rate 3e-4 --weight-decay 0.05 \
    --row-tokens 2048 --rows-per-step 8 --workers 1 --cpu --dtype bfloat16 --max-span-words 5 --evaluate-epochs 0 \
    --save-dtype bfloat16 --max-shard-size 15MB --licence cc-by-sa-4.0 \
    --keep-apart ner/conll2003 ner/conll2003:valid ner/wikigold ner/crossner_{ai,literature,music,politics,science} \
    ner/mit_movie_eng ner/mit_restaurant ner/wnut17 ner/bc5cdr ner/ncbi_disease ner/stackoverflow

python scripts/calibrate_open_types.py --model default_model --sets $here/dev_sets.json --max-positions 384 \
    --max-span-words 8 \
    --labels person organization location nationality date money event product "creative work" language
