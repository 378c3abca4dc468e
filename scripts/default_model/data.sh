#!/usr/bin/env bash
# Makes the training files of the default model beside text/ and ner/, which make.sh describes; all but the labelled sets
# themselves. 11 minutes of one CPU core.
set -euo pipefail
here=scripts/default_model

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
