"""The scripts that start training on one node, and under SLURM, each with two processes.

Run: pytest tests/test_launchers.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny_run import TINY_RUN

SCRIPTS = Path(__file__).parent.parent / "scripts"
RECIPE = {**TINY_RUN, "checkpoint_words": [100], "save_strategy": "steps", "save_steps": 5}
SRUN = """#!/usr/bin/env bash
# A task on each of two nodes, which are both this machine.
"$@" &
"$@" &
wait -n && wait -n
"""


@pytest.fixture
def launch(tmp_path):
    """Start a launcher on a small recipe, with more arguments; returns the process."""
    (tmp_path / "text.txt").write_text("".join(f"the red {thing} is big\n" for thing in "abcdefghijklmnop" * 4))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "output_dir": "run"}))
    place = tmp_path / "bin"
    place.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\nprintf 'localhost\\nlocalhost\\n'\n")):
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{place}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"PROCESSES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}

    def launch(script: str, *more: str) -> subprocess.Popen:
        files = [tmp_path / "recipe.yaml", f"text={tmp_path / 'text.txt'}", "--output-dir", tmp_path / "run"]
        command = [SCRIPTS / script, *files, *more]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=environment, cwd=tmp_path, start_new_session=True, **streams)

    return launch


def test_two_processes_on_one_node(launch, tmp_path):
    process = launch("launch_one_node.sh", "max_steps=6")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    state = json.loads((tmp_path / "run" / "training_state.json").read_text())
    assert state["finished"] and state["steps"] == 6 and state["tokens_seen"] == 6 * 2 * 2 * 16
    assert (tmp_path / "run" / "chck_100" / "model.safetensors").is_file()


def test_sigterm_on_two_slurm_nodes_leaves_a_resume_point(launch, tmp_path):
    process = launch("launch_slurm.sh", "max_steps=100000", "ddp_backend=gloo")
    until = time.monotonic() + 100
    while not list((tmp_path / "run").glob("checkpoint-*")) and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "Stopped by SIGTERM after step" in printed, printed
    state = json.loads((tmp_path / "run" / "training_state.json").read_text())
    assert not state["finished"] and (tmp_path / "run" / f"checkpoint-{state['steps']}").is_dir()
