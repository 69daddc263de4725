#!/usr/bin/env bash
# The demo under three seeds, for docs/results.md: every number there comes from the results.json these runs leave.
set -euo pipefail
for seed in 0 1 2; do
    babylm-vlm demo --output-dir "runs/demo-seed$seed" --seed "$seed" "$@"
done
