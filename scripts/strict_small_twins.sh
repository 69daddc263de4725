#!/usr/bin/env bash
# Both twins of the recipe strict_small, shrunk to a few million words and a CPU: a command for each.
#
#   scripts/strict_small_twins.sh BABYLM_TEXT CAPTIONS TOWER OUT [key=value …]
#
# BABYLM_TEXT  folder with train.*.txt.gz, a sentence a line (about 4.5 million words)
# CAPTIONS     folder of pictures with metadata.jsonl, such as scripts/abstract_scenes_to_imagefolder.py makes
# TOWER        frozen vision tower: a Hub id, or a folder such as scripts/train_vision_tower.py makes
# OUT          folder; killed at any time, the same line goes on where it stopped
# key=value    for both twins, such as max_steps=3 for a first look
set -euo pipefail
text=$1 captions=$2 tower=$3 out=$4
shift 4
recipe=$(dirname "$0")/../src/babylm_vlm/recipes/strict_small.yaml
texts="[$(ls "$text"/train.*.txt.gz | paste -sd, -)]"
shape="hidden_size=256 intermediate_size=640 num_hidden_layers=4 num_attention_heads=4 vocab_size=8192"

# Text alone, twice: chck_1M … chck_9M.
babylm-vlm train "$recipe" "text=$texts" $shape word_budget=9_000_000 warmup_steps=50 save_steps=50 "$@" \
    --output-dir "$out/language" --resume

# The tower sees every picture once.
babylm-vlm features "$captions" --vision-tower "$tower" --layer -1 --output-dir "$out/features"

# From the same ancestor, as many words of captions as of text: chck_1M … chck_5M.
ancestor="$out/language/chck_1M"
if [ ! -d "$ancestor" ]; then ancestor="$out/language"; fi # a first look ends before it
babylm-vlm train "$recipe" model=multimodal "init_from=$ancestor" "text=$texts" text_words=50_000 \
    "captions=$captions" "features=$out/features" "vision_tower=$tower" vision_feature_layer=-1 \
    word_budget=5_000_000 warmup_steps=50 save_steps=50 "$@" --output-dir "$out/multimodal" --resume
