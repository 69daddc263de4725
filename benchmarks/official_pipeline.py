"""Runs the official BabyLM evaluation pipeline, unmodified, and ours, each in a process of its own.

The official pipeline is a clone of https://github.com/babylm/evaluation-pipeline-2025; it needs statsmodels, wandb and
nlopt installed in the Python that runs the benchmark.
"""

import gzip
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from babylm_vlm.evaluation.tasks import FOLDERS

OFFICIAL_TASKS = {
    "blimp_supplement": "blimp"
}  # where the pipeline's --task differs from the name in its collated file


PICTURE_SPLITS = {"vqa": "validation", "winoground": "test"}  # their pictures lie in the folder `images`


@dataclass(frozen=True)
class Run:
    """One process: wall-clock and processor seconds, peak memory (GB), what it printed."""

    wall: float
    cpu: float
    memory: float
    output: str


def run(command: list[str], cwd: Path | None = None) -> Run:
    """Run a command on one thread and offline; RuntimeError with the end of its output if it fails."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{text[-2000:]}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6, text)


def copy_data(folder: Path, target: Path, limit: int | None) -> int:
    """Copy a task's files uncompressed, at most `limit` items of each; returns the number of items."""
    target.mkdir(parents=True)
    if (folder / "images").is_dir():
        shutil.copytree(folder / "images", target / "images")
    count = 0
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        head = 1 if ".csv" in file.name else 0
        with (gzip.open if file.name.endswith(".gz") else open)(file, "rt", encoding="utf-8") as lines:
            kept = list(lines if limit is None else itertools.islice(lines, limit + head))
        (target / file.name.removesuffix(".gz")).write_text("".join(kept), encoding="utf-8")
        count += len(kept) - head
    return count


def fp32_copy(model: Path, target: Path) -> Path:
    """The checkpoint in fp32: the official pipeline scores in the dtype of the file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoProcessor

    import babylm_vlm.model  # noqa: F401  registers the multimodal model

    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).save_pretrained(target)
    AutoProcessor.from_pretrained(model).save_pretrained(target)
    return target


def run_official(clone: Path, model: Path, data: Path, output_dir: Path) -> Run:
    """The official pipeline on one task's folder."""
    task = FOLDERS[data.name].name
    options = ["--model_path_or_name", str(model), "--backend", "causal", "--output_dir", str(output_dir)]
    if task == "reading":
        program, data = "evaluation_pipeline.reading.run", data / "reading_data.csv"
    else:
        program = "evaluation_pipeline.sentence_zero_shot.run"
        options += ["--task", OFFICIAL_TASKS.get(task, task), "--save_predictions"]
    if task in PICTURE_SPLITS:
        options += ["--images_path", str(data / "images"), "--image_split", PICTURE_SPLITS[task], "--batch_size", "1"]
    return run([sys.executable, "-m", program, *options, "--data_path", str(data)], cwd=clone)


def run_ours(model: Path, data: Path, output_dir: Path) -> Run:
    """`babylm-vlm evaluate --predictions` on one task's folder."""
    options = ["--data", str(data), "--output-dir", str(output_dir), "--predictions", "--json"]
    return run([sys.executable, "-m", "babylm_vlm.cli", "evaluate", str(model), *options])


def predictions(tree: Path, folder: str) -> dict:
    """The predictions of one task in a tree that either of the two wrote."""
    matching = [file for file in tree.rglob("predictions.json") if file.parent.name == folder]
    if len(matching) != 1:
        raise RuntimeError(f"{tree} holds {len(matching)} predictions of {folder} instead of one.")
    return json.loads(matching[0].read_text())


def official_values(folder: str, output: str) -> dict[str, float]:
    """The scores that the official pipeline printed, with two decimals, under our names."""
    if folder == "reading":
        names = {"EYE TRACKING SCORE": "reading_eye_tracking", "SELF-PACED READING SCORE": "reading_self_paced"}
        return {ours: float(re.search(rf"{name}: (\S+)", output)[1]) for name, ours in names.items()}
    return {folder: float(re.search(r"### AVERAGE [^\n]*\n(\S+)", output)[1])}
