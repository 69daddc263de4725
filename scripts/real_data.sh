#!/usr/bin/env bash
# The whole path on real data, one commented command per stage; about two hours on two cores.
#
#   scripts/real_data.sh ABSTRACT_SCENES BABYLM_TEXT BLIMP_FAST OUT
#
# ABSTRACT_SCENES  folder with scenes.jsonl.gz, captions.tsv.gz, sprites/ and eval/ (Abstract Scenes and CoDraw)
# BABYLM_TEXT      folder with train.*.txt.gz, a sentence a line
# BLIMP_FAST       the BabyLM challenge's fast_eval/blimp_fast
# OUT              a new folder for everything made here
set -euo pipefail
scenes=$1 text=$2 blimp=$3 out=$4
recipes=$(dirname "$0")/../src/babylm_vlm/recipes
texts="[$(ls "$text"/train.*.txt.gz | paste -sd, -)]"

# Pictures: draw the scenes; captions of the training scenes, minimal pairs of the others.
python "$(dirname "$0")/abstract_scenes_to_imagefolder.py" "$scenes" --output-dir "$out/data"

# A small frozen tower, trained to name what is in the training scenes (no download is needed).
python "$(dirname "$0")/train_vision_tower.py" "$out/data/captions" --output-dir "$out/tower" \
    --image-size 112 --patch-size 14 --shift 3 --epochs 20 --minutes 15

# The common ancestor: a language model after one pass over the text.
babylm-vlm train "$recipes/laptop_language.yaml" "text=$texts" --output-dir "$out/ancestor"

# Twin one goes on with text, twin two with captioned pictures.
babylm-vlm train "$recipes/laptop_language.yaml" "text=$texts" init_from="$out/ancestor" max_steps=200 \
    learning_rate=5e-4 --output-dir "$out/language"
babylm-vlm train "$recipes/laptop_multimodal.yaml" init_from="$out/ancestor" captions="$out/data/captions" \
    vision_tower="$out/tower" vision_feature_layer=-1 --output-dir "$out/multimodal"

# Merge at a few alpha, and score everything on both abilities.
for alpha in 0.3 0.5 0.7; do
    python -c "from babylm_vlm.merging import linear_plan_yaml as y; print(y('$out/multimodal', '$out/language', $alpha))" \
        > "$out/merge-$alpha.yaml"
    babylm-vlm merge "$out/merge-$alpha.yaml" --output-dir "$out/merged-$alpha"
done
for model in language merged-0.3 merged-0.5 merged-0.7 multimodal; do
    babylm-vlm evaluate "$out/$model" --data "$out/data/test" --tasks grounded --output-dir "$out/scores/$model/grounded"
    babylm-vlm evaluate "$out/$model" --data "$blimp" --output-dir "$out/scores/$model/blimp"
done
