#!/usr/bin/env bash
# Does a checkpoint mean the same under older transformers releases?
#
#   scripts/check_transformers_versions.sh runs/demo/multimodal
#   scripts/check_transformers_versions.sh --picture cat.png --venv-dir runs/venvs runs/demo/merged 5.0.0 5.8.0
#
# This environment computes logits and greedy text with the package's own classes. Then a fresh environment per release, without
# the package, loads the checkpoint from a Hub on loopback by its remote code and must agree: max |difference of logits| <= 1e-5
# and the same text.
# --venv-dir keeps the environments for the next time; otherwise they are made in a temporary folder and removed.
# PYTHON is the interpreter of this environment (default: .venv/bin/python if there is one, else python3).
# PIP_FLAGS goes to pip, for example PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu".
set -euo pipefail

usage() {
  sed -n '2,/^set /{/^#/{s/^# \{0,1\}//;p}}' "$0"
  exit "$1"
}

repository=$(cd "$(dirname "$0")/.." && pwd)
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ -x $repository/.venv/bin/python ]] && PYTHON=$repository/.venv/bin/python
fi
venv_dir=
picture=

while [[ ${1:-} == -* ]]; do
  case $1 in
    --venv-dir) venv_dir=${2:?--venv-dir needs a folder}; shift 2 ;;
    --picture) picture=${2:?--picture needs a file}; shift 2 ;;
    -h | --help) usage 0 ;;
    *) echo "Unknown option $1; see --help." >&2; exit 2 ;;
  esac
done
[[ $# -ge 1 ]] || usage 2 >&2
checkpoint=$1
shift
versions=("$@")
[[ $# -gt 0 ]] || versions=(5.0.0 5.8.0 5.17.0)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "${venv_dir:=$work}"
outputs() { # INTERPRETER ROLE CHECKPOINT: write the reference, or compare with it
  # The cache is new each time, so that no earlier run can lend a file that the checkpoint lacks.
  HF_HOME=$(mktemp -d -p "$work") "$1" "$repository/scripts/check_transformers_versions.py" \
    --role "$2" --checkpoint "$3" --reference "$work/reference.safetensors" ${picture:+--picture "$picture"}
}

outputs "$PYTHON" reference "$checkpoint"
exec {hub}< <(exec "$PYTHON" "$repository/tests/local_hub.py")
trap 'kill $!; rm -rf "$work"' EXIT
read -r HF_ENDPOINT HF_TOKEN <&"$hub"
export HF_ENDPOINT HF_TOKEN HF_HUB_OFFLINE=0 HF_HUB_DISABLE_XET=1 HF_HUB_DISABLE_PROGRESS_BARS=1
"$PYTHON" -m babylm_vlm.cli push "$checkpoint" --repo-id someone/checked
failed=()
outputs "$PYTHON" check someone/checked || failed+=("this environment")
for version in "${versions[@]}"; do
  venv=$venv_dir/transformers-$version
  [[ -x $venv/bin/python ]] || "$PYTHON" -m venv "$venv"
  # shellcheck disable=SC2086  # PIP_FLAGS is a list of words
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check ${PIP_FLAGS:-} \
    torch==2.13.0 "transformers==$version" pillow safetensors
  outputs "$venv/bin/python" check someone/checked || failed+=("$version")
done
if [[ ${#failed[@]} -gt 0 ]]; then
  echo "FAILED with: ${failed[*]}" >&2
  exit 1
fi
