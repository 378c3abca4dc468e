#!/usr/bin/env bash
# Makes the model in decodner_hf/default_model out of its first stage: text and sets in, a folder out. Run it in the
# repository's root, where text/ holds JSON lines (.xz) and ner/<set>/<split>.jsonl the labelled sets that sources.json
# names. Every step is seeded. The data take 11 minutes of one CPU core, training 5 minutes of an NVIDIA H200.
#
# The first stage is the model of commit 5debd64: 1 B tokens of pretraining and 2,100 open-type steps of 65,536 nodes, on
# fewer data. To make that one: git worktree add first 5debd64, and run its scripts/default_model/make.sh there.
set -euo pipefail
here=scripts/default_model

mkdir -p first_stage
git archive 5debd64 decodner_hf/default_model | tar x -C first_stage --strip-components 2
# That stage was used in 384 positions; this one has documents of 512 tokens below prompts of 512.
sed -i 's/"max_position_embeddings": 384/"max_position_embeddings": 1024/' first_stage/config.json

# Sentences and passages of the text, and the names that they hold; lines from templates with such names.
python $here/silver_mentions.py --text text/*.jsonl.xz --definitions ner/wiki_deftypes/train.jsonl \
    --output silver.jsonl --max-sentences 220000 --passages silver_passages.jsonl --max-passages 14000 \
    --names names.json
for kind in "newswire 30000 0.5" "queries 11000 0.2" "science 8000 0.5"; do
    read -r name lines apart <<< "$kind"
    python $here/template_lines.py --templates "$here/templates/$name.txt" --names names.json --lines "$lines" \
        --apart "$apart" --output "$name.jsonl"
done

# The sets disagree on what "German" is: a location, a person, or nothing.
python $here/demonyms.py --set ner/docred --rename LOC=nationality MISC=language --output docred.jsonl
python $here/demonyms.py --set ner/btc --rename LOC= ORG= PER= --output btc.jsonl
python $here/demonyms.py --set ner/gum_names --rename person= abstract= --output gum_names.jsonl
python $here/demonyms.py --set ner/multiconer2 --rename HumanSettlement= --output multiconer2.jsonl
python $here/demonyms.py --set ner/wnut17 --rename location= corporation= --output wnut17.jsonl

python $here/type_notes.py --types $here/silver/taxonomy.json --notes $here/types.json \
    --definitions ner/wiki_deftypes/train.jsonl --output notes.json
python $here/four_types.py --notes notes.json --sets silver.jsonl newswire.jsonl --output four_types.json

decodner train --open-types --model first_stage --output default_model --sources $here/sources.json \
    --type-notes notes.json --cross-source-negatives 0.1 --epochs 1 --max-steps 1300 --learning-rate 6e-4 --optimizer muon \
    --weight-decay 0.05 --row-tokens 32768 --rows-per-step 2 --compile --workers 14 --evaluate-epochs 0 \
    --save-dtype bfloat16 --max-shard-size 15MB --licence cc-by-sa-4.0 \
    --decontaminate ner/conll2003 ner/conll2003:valid ner/wikigold ner/crossner_{ai,literature,music,politics,science} \
    ner/mit_movie_eng ner/mit_restaurant ner/wnut17 ner/bc5cdr ner/ncbi_disease ner/stackoverflow

python $here/calibrate_open_types.py --model default_model --sets $here/dev_sets.json --max-positions 384 \
    --labels person organization location nationality date money event product "creative work" language
