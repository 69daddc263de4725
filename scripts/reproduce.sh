#!/usr/bin/env bash
# The study: does merging give grammar back, and what does it cost? One commented command per stage.
#
#   DATA=data scripts/reproduce.sh --small       sized for an hour on two CPU cores: one seed, 2.6 million parameters
#   DATA=data SIZE=medium scripts/reproduce.sh   the same with 10 million parameters and half as much text again
#   DATA=data scripts/reproduce.sh               SIZE=full: three seeds, 33 million parameters, 10 million words read by
#                                                a twin, repetitions included; for a GPU
#   DATA=data SIZE=tiny scripts/reproduce.sh     minutes; shows that every stage works, its numbers mean nothing
#
# SEEDS (default 0, for full "0 1 2") are the seeds; more may be added to a run that is done.
#
# JOBS (default 2) is how many models are trained, merged or scored at once, with an equal share of the processor's
# cores each: even on two cores two small models are done sooner side by side. For a large GPU take more.
#
# DATA holds babylm_text/{train,dev}.*.txt.gz (a sentence a line), babylm_eval/full_eval (the BabyLM challenge's
# layout), abstract_scenes/ (as scripts/abstract_scenes_to_imagefolder.py reads it), tuxpaint_stamps/, openmoji_128/ and
# mulberry_128/ (as scripts/naming_pictures.py reads them) and devbench_mini/lex-viz_vocab. OUT (default runs/study-SIZE)
# is a folder for everything made here. A run that was cut off goes on with the same command; what was not finished is
# made again.
# Other data, such as the challenge's from the Hub: `texts` and `captions` below take whatever a recipe takes.
set -euo pipefail
SIZE=${SIZE:-full}
case ${1:-} in
    --small) SIZE=small ;;
    "") ;;
    *) sed -n '2,22s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac

# Words are those of the ancestor in all, and of each of the nine texts: at most for the ancestor, then for its twin,
# and beside the captions. Milestones are words of captions.
case $SIZE in
    tiny)
        seeds=0 steps="max_steps=3" scenes=48 tower="--epochs 1 --patch-size 28 --layers 1" limit=4 alphas=0,0.5,1
        shape="vocab_size=1024 hidden_size=32 intermediate_size=64 num_hidden_layers=2 num_attention_heads=2"
        ancestor_words=20_000 text_words=2_000 twin_words=500 replay_words=500 passes=1 milestones="[1_000]" rows=16 ;;
    small)
        seeds=0 steps="" scenes="" tower="--epochs 10 --patch-size 16 --hidden-size 128 --heads 2" limit=50 alphas=0:1:0.1
        shape="vocab_size=4096 hidden_size=192 intermediate_size=512 num_hidden_layers=4 num_attention_heads=4"
        ancestor_words=1_000_000 text_words=150_000 twin_words=39_000 replay_words=14_000 passes=1
        milestones="[40_000, 80_000, 160_000]" rows=16 ;;
    medium)
        seeds=0 steps="" scenes="" tower="--epochs 10 --patch-size 16 --hidden-size 128 --heads 2" limit=50 alphas=0:1:0.1
        shape="vocab_size=8192 hidden_size=320 intermediate_size=896 num_hidden_layers=6 num_attention_heads=5"
        ancestor_words=1_500_000 text_words=250_000 twin_words=39_000 replay_words=14_000 passes=1
        milestones="[40_000, 80_000, 160_000]" rows=16 ;;
    full)
        seeds="0 1 2" steps="" scenes="" tower="--epochs 20 --patch-size 14" limit=300 alphas=0:1:0.1
        shape="vocab_size=8192 hidden_size=512 intermediate_size=1408 num_hidden_layers=9 num_attention_heads=8
            block_size=256"
        ancestor_words=9_000_000 text_words=600_000 twin_words=117_000 replay_words=15_000 passes=3
        milestones="[60_000, 120_000, 240_000, 480_000]" rows=32 ;;
    *) echo "SIZE is '$SIZE'; it must be tiny, small, medium or full." >&2 && exit 2 ;;
esac

seeds=${SEEDS:-$seeds}
[[ $seeds =~ ^[0-9]+(\ [0-9]+)*$ ]] || { echo "SEEDS is '$seeds'; it must be whole numbers with spaces." >&2; exit 2; }
JOBS=${JOBS:-2}
[[ $JOBS =~ ^[1-9][0-9]?$ ]] || { echo "JOBS is '$JOBS'; it must be a whole number from 1 to 99." >&2; exit 2; }
DATA=${DATA:-data}
OUT=${OUT:-runs/study-$SIZE}
scripts=$(cd "$(dirname "$0")" && pwd)
recipe=$scripts/../src/babylm_vlm/recipes/laptop_language.yaml
named="tuxpaint_stamps openmoji_128 mulberry_128"
for folder in babylm_text babylm_eval/full_eval abstract_scenes $named devbench_mini/lex-viz_vocab; do
    [ -d "$DATA/$folder" ] || { echo "There is no $DATA/$folder: set DATA to the folder that holds it." >&2; exit 1; }
done
mkdir -p "$OUT"

clock() { # the time that the run has taken, over all calls, is part of its results
    echo $(($(cat "$OUT/seconds" 2> /dev/null || echo 0) + SECONDS)) > "$OUT/seconds"
    SECONDS=0
}
end_jobs() { # of what runs side by side, nothing outlives this script
    local running
    running=$(jobs -p)
    [ -n "$running" ] || return 0
    kill $running 2> /dev/null || true
    wait $running 2> /dev/null || true
}
trap 'end_jobs; clock' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

pictures() { # all that has to do with them, and the evaluation data
    # Draw the scenes; captions of the training scenes, minimal pairs of the others. Then single things, named.
    [ -d "$OUT/scenes" ] || python "$scripts/abstract_scenes_to_imagefolder.py" "$DATA/abstract_scenes" \
        ${scenes:+--scenes "$scenes"} --output-dir "$OUT/scenes"
    [ -d "$OUT/pictures" ] || python "$scripts/naming_pictures.py" "$OUT/scenes/captions" $(printf "$DATA/%s " $named) \
        ${scenes:+--limit "$scenes"} --output-dir "$OUT/pictures"

    # Evaluation: one half to choose on, the other to report on.
    [ -d "$OUT/data" ] || python "$scripts/study_data.py" "$DATA/babylm_eval/full_eval" "$DATA/babylm_text" \
        "$OUT/scenes" "$OUT/pictures" "$DATA/devbench_mini" ${limit:+--limit "$limit"} --output-dir "$OUT/data"

    # A small frozen tower that sees: trained from scratch to name what is in these pictures. It looks at each once.
    [ -d "$OUT/tower" ] || python "$scripts/train_vision_tower.py" "$OUT/pictures" --output-dir "$OUT/tower" \
        --image-size 112 --shift 3 $tower
    babylm-vlm features "$OUT/pictures" --vision-tower "$OUT/tower" --layer -1 --output-dir "$OUT/features"
}

texts="[$(ls "$DATA"/babylm_text/train.*.txt.gz | paste -sd, -)]"
captions="model=multimodal captions=$OUT/pictures features=$OUT/features vision_tower=$OUT/tower
    vision_feature_layer=-1 pack_captions=true projector_learning_rate=3e-3"

pids=()
side_by_side() { # NUMBER: from here on, run so many at once
    local cores
    cores=$(getconf _NPROCESSORS_ONLN)
    at_most=$1
    export OMP_NUM_THREADS=$(((cores + at_most - 1) / at_most))
}

at_once() { # COMMAND …: run it beside others
    "$@" &
    pids+=($!)
    while [ ${#pids[@]} -ge "$at_most" ]; do
        sleep 0.5
        forget_done
    done
}

forget_done() { # of what runs side by side; if it failed, stop
    local pid running=()
    for pid in ${pids[@]+"${pids[@]}"}; do
        if kill -0 "$pid" 2> /dev/null; then running+=("$pid"); else wait "$pid"; fi
    done
    pids=(${running[@]+"${running[@]}"})
}

all_done() { # wait for what runs; if one of it failed, stop
    local pid
    for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid"; done
    pids=()
}

every_seed() { # FUNCTION: call it for each of them, with $run and $from, and wait for all
    for seed in $seeds; do
        run=$OUT/seed$seed from="init_from=$OUT/seed$seed/ancestor"
        mkdir -p "$run/plans"
        "$1"
    done
    all_done
}

train() { # NAME key=value …: train $run/NAME, or go on with it
    local name=$1
    shift
    at_once babylm-vlm train "$recipe" $shape seed="$seed" per_device_train_batch_size=16 learning_rate=1e-3 $steps \
        "$@" --output-dir "$run/$name" --resume
}

plan() { # NAME, with the rest of a plan on the standard input: merge text_captions and another model as it says
    { echo "base_model: ${base:-$run/text_captions}"; cat; } > "$run/plans/$1.yaml"
    if [ -d "$run/merged/$1" ]; then return; fi
    at_once babylm-vlm merge "$run/plans/$1.yaml" --output-dir "$run/merged/$1" --trust-remote-code --allow-missing
}

rest() { awk "BEGIN { print 1 - $1 }"; }

long="text_words=$text_words word_budget=$ancestor_words num_train_epochs=10 per_device_train_batch_size=$rows"

ancestor() { # a language model, the common ancestor of what follows
    train ancestor "text=$texts" $long
}

twins() {
    # The language-only twin goes on with text, as many words as the captions have; another one comes from random
    # weights of its own.
    train independent tokenizer="$run/ancestor" seed=$((seed + 100)) "text=$texts" $long
    train language "$from" "text=$texts" text_words="$twin_words"

    # Multimodal twins: captions alone, after the text that the ancestor read; then also with some of the text again,
    # after the captions or mixed with them (which is replay). The words of the captions without the pictures. LoRA.
    train text_captions "$from" $captions num_train_epochs=$passes "checkpoint_words=$milestones"
    train captions_text "$from" $captions num_train_epochs=$passes "text=$texts" text_words="$replay_words" \
        data_order=captions_first
    train mixed "$from" $captions num_train_epochs=$passes "text=$texts" text_words="$replay_words"
    train caption_language "$from" "text=[$OUT/data/captions.txt]" num_train_epochs=$passes
    train lora "$from" $captions num_train_epochs=$passes "lora={r: 16, lora_alpha: 32}"
}

own_merges() {
    # An alpha of its own for the word embeddings, the first layer and the last.
    while read -r name words first last; do
        plan "layers-$name" <<YAML
merge_method: linear
models:
  - model: $run/text_captions
    parameters:
      weight:
        - {filter: multi_modal_projector, value: 1.0}
        - {filter: embed_tokens, value: $words}
        - {value: [$first, $last]}
  - model: $run/language
    parameters:
      weight:
        - {filter: multi_modal_projector, value: 0.0}
        - {filter: embed_tokens, value: $(rest "$words")}
        - {value: [$(rest "$first"), $(rest "$last")]}
YAML
    done <<'END'
rising 0.4 0.4 1.0
falling 1.0 1.0 0.4
words-kept 0.0 1.0 1.0
words-kept-0.7 0.0 0.7 0.7
words-learned 1.0 0.5 0.5
END

    # The ancestor with the projector: to it two of mergekit's methods add what each twin learned.
    plan ancestor-with-eyes <<YAML
merge_method: linear
models:
  - model: $run/text_captions
    parameters: {weight: [{filter: multi_modal_projector, value: 1.0}, {value: 0.0}]}
  - model: $run/ancestor
    parameters: {weight: [{filter: multi_modal_projector, value: 0.0}, {value: 1.0}]}
YAML
}

mergekit_merges() {
    local alpha
    for alpha in 0.5 0.7; do
        plan "slerp-$alpha" <<YAML
merge_method: slerp
models: [{model: $run/text_captions}, {model: $run/language}]
parameters: {t: $(rest $alpha)}
YAML
        base=$run/merged/ancestor-with-eyes plan "ties-$alpha" <<YAML
merge_method: ties
models:
  - {model: $run/text_captions, parameters: {weight: $alpha, density: 0.5}}
  - {model: $run/language, parameters: {weight: $(rest $alpha), density: 0.5}}
YAML
        base=$run/merged/ancestor-with-eyes plan "task_arithmetic-$alpha" <<YAML
merge_method: task_arithmetic
models:
  - {model: $run/text_captions, parameters: {weight: $alpha}}
  - {model: $run/language, parameters: {weight: 1.0}}
YAML
    done
}

score() { # everything, item by item; linear merges at every alpha in memory
    local share
    for share in $(seq "$JOBS"); do
        at_once python "$scripts/study_score.py" "$run" --data "$OUT/data" --alphas $alphas --share "$share/$JOBS"
    done
}

pictures
number=$(wc -w <<< "$seeds")
side_by_side $((number < JOBS ? number : JOBS))
every_seed ancestor
side_by_side "$JOBS"
every_seed twins
every_seed own_merges
every_seed mergekit_merges
every_seed score

# The answers: study.json, study.md and plots. scripts/write_results.py --study puts them into docs/.
clock
python "$scripts/study_report.py" "$OUT" --size $SIZE --seeds $seeds
