#!/usr/bin/env bash
# Trains the ancestor of the demo's twins on the embedded text and puts it, in bf16, into the package.
# About half an hour on two cores. Run from the repository's root; the result is committed.
set -euo pipefail

babylm-vlm train src/babylm_vlm/recipes/demo_ancestor.yaml --output-dir runs/ancestor "$@"

python - <<'PY'
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

trained, shipped = Path("runs/ancestor"), Path("src/babylm_vlm/demo/ancestor")
shutil.rmtree(shipped, ignore_errors=True)
LlamaForCausalLM.from_pretrained(trained, dtype=torch.bfloat16).save_pretrained(shipped)
AutoTokenizer.from_pretrained(trained).save_pretrained(shipped)
for name in ("training_state.json", "README.md"):
    shutil.copy(trained / name, shipped / name)
PY
