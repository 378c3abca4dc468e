#!/usr/bin/env bash
# Makes the model in decodner_hf/default_model: text and sets in, a folder out. Run it in the repository's root, where
# text/ holds JSON lines (.xz) and ner/<set>/<split>.jsonl the labelled sets that sources.json names, on two GPUs.
# Every step is seeded; pretraining and training go on where they stopped (the same command; --resume).
# On two NVIDIA H200 pretraining takes 7 minutes; the data take 11 minutes of one CPU core.
set -euo pipefail
here=scripts/default_model
several="accelerate launch --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --multi_gpu"

$several scripts/pretrain.py --text text/*.jsonl.xz --output backbone --tokens 1_000_000_000 \
    --batch-tokens 196_608 --micro-rows 96 --learning-rate 3e-3

# Sentences and passages of the text, and the names that they hold; lines from templates with such names.
python scripts/silver_mentions.py --text text/*.jsonl.xz --definitions ner/wiki_deftypes/train.jsonl \
    --output silver.jsonl --max-sentences 220000 --passages silver_passages.jsonl --max-passages 14000 \
    --names names.json
for kind in "newswire 30000 0.5" "queries 11000 0.2" "science 8000 0.5"; do
    read -r name lines apart <<< "$kind"
    python scripts/template_lines.py --templates "scripts/templates/$name.txt" --names names.json --lines "$lines" \
        --apart "$apart" --output "$name.jsonl"
done

# The sets disagree on what "German" is: a location, a person, or nothing.
python $here/demonyms.py --set ner/docred --rename LOC=nationality MISC=language --output docred.jsonl
python $here/demonyms.py --set ner/btc --rename LOC= ORG= PER= --output btc.jsonl
python $here/demonyms.py --set ner/gum_names --rename person= abstract= --output gum_names.jsonl
python $here/demonyms.py --set ner/multiconer2 --rename HumanSettlement= --output multiconer2.jsonl
python $here/demonyms.py --set ner/wnut17 --rename location= corporation= --output wnut17.jsonl

python scripts/type_notes.py --types scripts/silver_types.json --notes $here/types.json \
    --definitions ner/wiki_deftypes/train.jsonl --output notes.json
python $here/four_types.py --notes notes.json --sets silver.jsonl newswire.jsonl --output four_types.json

$several -m decodner_hf.cli train --open-types --model backbone --output default_model --sources $here/sources.json \
    --type-notes notes.json --strangers 0.1 --epochs 3 --max-steps 5000 --learning-rate 1e-3 --optimizer muon \
    --weight-decay 0.05 --row-tokens 32768 --compile --workers 14 --evaluate-epochs 0 \
    --save-dtype bfloat16 --max-shard-size 15MB --licence cc-by-sa-4.0 \
    --keep-apart ner/conll2003 ner/conll2003:valid ner/wikigold ner/crossner_{ai,literature,music,politics,science} \
    ner/mit_movie_eng ner/mit_restaurant ner/wnut17 ner/bc5cdr ner/ncbi_disease ner/stackoverflow

python scripts/calibrate_open_types.py --model default_model --sets $here/dev_sets.json --max-positions 384 \
    --labels person organization location nationality date money event product "creative work" language
