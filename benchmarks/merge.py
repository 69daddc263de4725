"""How fast and how lean is a merge? `babylm-vlm merge` against `mergekit-yaml` and against copying the same bytes.

    python benchmarks/merge.py --tiny            # seconds, to see that all works
    python benchmarks/merge.py                   # 10M parameters, and 1.3B in bf16 and in fp32; minutes, 20 GB
    python benchmarks/merge.py --cases 1.3B-bf16 --rounds 5 --json docs/results/merge_benchmark.json

- All are whole processes, start-up included, interleaved in every round; the table has medians and the largest
  peak memory. Our merge also checks for NaN and waits until the files are on the disk; mergekit does neither, and its
  tokenizer and card steps are off.
- Two language models are merged without a model card, by mergekit and by us. The merge of a multimodal model, with the
  same weights, also gets its card, which names the SHA-256 of its parents ("card").
- The floor reads both checkpoints and writes one, in blocks, with fsync; and once more with the parents' SHA-256, in
  one thread. Compare like with like: the merge with the copy, the merge with its card with the copy that hashes.
- All three merges must be bit for bit what their plan says, and only one must have a card, or the benchmark fails.
- Files lie in memory (/dev/shm) where there is such a place, or the disk would be measured; --folder moves them.
- CPU seconds depend less than seconds on what else the machine does.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from babylm_vlm.merging import read_plan
from babylm_vlm.merging.verify import verify

# case: hidden size, width of the MLP, layers, vocabulary, dtype
CASES = {
    "tiny": (64, 128, 2, 500, torch.float32),
    "10M": (256, 768, 10, 8192, torch.float32),
    "1.3B-bf16": (2048, 5504, 24, 32000, torch.bfloat16),
    "1.3B-fp32": (2048, 5504, 24, 32000, torch.float32),
}
SHARD = 10**9
PLAN = """\
merge_method: linear
base_model: {folder}/{first}
models:
  - {{model: {folder}/{first}, parameters: {{weight: 0.3}}}}
  - {{model: {folder}/second, parameters: {{weight: 0.7}}}}
"""
COPY = """
import hashlib, os, sys
hashed, *sources, target = sys.argv[1:]
with open(target, "wb", buffering=0) as out:
    for place, source in enumerate(sources):
        digest = hashlib.sha256()
        with open(source, "rb", buffering=0) as file:
            while block := file.read(1 << 21):
                if hashed == "yes":
                    digest.update(block)
                if place % 2 == 0:
                    out.write(block)
    os.fsync(out)
"""


# A small process starts the measured one: peak memory would else count what this script had when it forked.
START = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
process.returncode = 0
with open(sys.argv[1], "w") as file:
    print(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, file=file)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def main() -> None:
    """Run the cases and print a table; with `--json` add the numbers to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="only a tiny case, one round")
    parser.add_argument("--cases", default="10M,1.3B-bf16,1.3B-fp32", help=f"with commas, of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"))
    parser.add_argument("--json", type=Path, help="file whose entry of each case is replaced")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that temporary files are removed then, too
    cases = ["tiny"] if options.tiny else options.cases.split(",")
    rounds = 1 if options.tiny else options.rounds
    made = {"machine": machine(), "folder": str(options.folder), "rounds": rounds}
    results = {}
    for case in cases:
        results[case] = made | run_case(case, rounds, options.folder)
        if options.json:
            earlier = json.loads(options.json.read_text()) if options.json.is_file() else {}
            options.json.write_text(json.dumps(earlier | results, indent=2) + "\n", encoding="utf-8")
    print_table(results)


def run_case(case: str, rounds: int, place: Path) -> dict:
    """Medians of seconds and CPU seconds and the largest peak memory, in bytes, of each."""
    check_room(case, place)
    with tempfile.TemporaryDirectory(prefix="merge-benchmark-", dir=place) as name:
        folder = Path(name)
        for seed, model in enumerate(("first", "second")):
            write_checkpoint(folder / model, CASES[case], seed)
        give_eyes(folder / "first", folder / "multimodal")
        plan, card = folder / "plan.yaml", folder / "card.yaml"
        plan.write_text(PLAN.format(folder=folder, first="first"))
        card.write_text(PLAN.format(folder=folder, first="multimodal"))
        plans = {"merge": plan, "merge, card": card, "mergekit": plan}
        commands = make_commands(folder, plan, card)
        measured: dict[str, list[tuple[float, float, int]]] = {name: [] for name in commands}
        for number in range(rounds):
            for name, command in commands.items():
                measured[name].append(run(command, folder))
                if number == 0 and name in plans:
                    check_merge(folder / name, plans[name], card=name == "merge, card")
                remove(folder / name)
        return {"commands": {name: summary(runs) for name, runs in measured.items()}}


def summary(runs: list[tuple[float, float, int]]) -> dict:
    seconds, cpu, peaks = zip(*runs, strict=True)
    return {"seconds": statistics.median(seconds), "cpu": statistics.median(cpu), "peak": max(peaks), "all": seconds}


def make_commands(folder: Path, plan: Path, card: Path) -> dict[str, list[str]]:
    python = sys.executable
    merge = [python, "-m", "babylm_vlm.cli", "merge"]
    parents = [sorted((folder / model).glob("*.safetensors")) for model in ("first", "second")]
    in_turn = [str(file) for pair in zip(*parents, strict=True) for file in pair]
    fast = ["--lazy-unpickle", "--async-write", "--write-threads", "2", "--quiet"]
    off = ["--no-copy-tokenizer", "--no-write-model-card"]
    return {
        "merge": [*merge, str(plan), "--output-dir", str(folder / "merge")],
        "merge, card": [*merge, str(card), "--output-dir", str(folder / "merge, card")],
        "mergekit": [python, "-m", "mergekit.scripts.run_yaml", str(plan), str(folder / "mergekit"), *fast, *off],
        "copy": [python, "-c", COPY, "no", *in_turn, str(folder / "copy")],
        "copy, hash": [python, "-c", COPY, "yes", *in_turn, str(folder / "copy, hash")],
    }


def run(command: list[str], folder: Path) -> tuple[float, float, int]:
    """Seconds, CPU seconds and peak memory in bytes of a process."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"HF_HUB_OFFLINE": "1"}
    launcher = [sys.executable, "-S", "-c", START, str(folder / "usage"), *command]
    done = subprocess.run(launcher, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}")
    seconds, cpu, peak = (folder / "usage").read_text().split()
    return float(seconds), float(cpu), int(peak)


def check_merge(merged: Path, plan: Path, card: bool) -> None:
    """Stop unless a merge is bit for bit what its plan makes, with a model card or without."""
    report = verify(merged, read_plan(plan))
    if report["different"] or report["missing"] or report["extra"]:
        sys.exit(f"The merges differ: {report}")
    if (merged / "README.md").exists() != card:
        sys.exit(f"{merged.name} has {'no' if card else 'a'} model card.")


def write_checkpoint(folder: Path, case: tuple[int, int, int, int, torch.dtype], seed: int) -> None:
    """A Llama with random weights (slices of one random vector) in shards."""
    hidden, middle, layers, vocabulary, dtype = case
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    shapes["lm_head.weight"] = (vocabulary, hidden)
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"{name}.mlp.{part}_proj.weight": (middle, hidden) for part in ("gate", "up")}
        shapes[f"{name}.mlp.down_proj.weight"] = (hidden, middle)
        shapes |= {f"{name}.{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(max(map(size, shapes.values())) + 4096, generator=generator) * 0.02).to(dtype)
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = SHARD
    for place, (name, shape) in enumerate(shapes.items()):
        need = size(shape) * dtype.itemsize
        if need > room and shards[-1]:
            shards.append({})
            room = SHARD
        shards[-1][name] = values[place : place + size(shape)].reshape(shape).clone()
        room -= need
    files = [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": str(dtype).removeprefix("torch.")},
        **{"hidden_size": hidden, "intermediate_size": middle, "num_hidden_layers": layers},
        **{"num_attention_heads": hidden // 64, "vocab_size": vocabulary, "tie_word_embeddings": False},
    }
    (folder / "config.json").write_text(json.dumps(config))


def give_eyes(language: Path, multimodal: Path) -> None:
    """The same weights under a configuration of ours, so that their merge gets its card, hashes and all."""
    multimodal.mkdir()
    for file in language.iterdir():
        (multimodal / file.name).symlink_to(file)
    config = json.loads((language / "config.json").read_text())
    (multimodal / "config.json").unlink()
    (multimodal / "config.json").write_text(json.dumps(config | {"vision_tower": "none", "vision_grid": 1}))


def size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def check_room(case: str, place: Path) -> None:
    """Stop unless two checkpoints and a merge fit, with as much memory left as a merge takes."""
    hidden, middle, layers, vocabulary, dtype = CASES[case]
    one = (2 * vocabulary * hidden + layers * (4 * hidden**2 + 3 * hidden * middle)) * dtype.itemsize
    free = shutil.disk_usage(place).free
    if place.is_relative_to("/dev/shm"):
        free = min(free, psutil.virtual_memory().available - one)
    if free < 3.1 * one:
        sys.exit(f"{case} needs {3.1 * one / 1e9:.1f} GB in {place}, but there are {free / 1e9:.1f}; see --folder.")


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} x {model}, {platform.system()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"


def print_table(results: dict[str, dict]) -> None:
    columns = ("Case", "", "Seconds", "of merge", "of merge, card", "CPU seconds", "Peak memory")
    made = next(iter(results.values()))
    table = Table(*columns, title=made["machine"], box=None)
    for case, result in results.items():
        ours = [result["commands"][name]["seconds"] for name in ("merge", "merge, card")]
        for name, row in result["commands"].items():
            ratios = [f"{row['seconds'] / seconds:.2f}x" for seconds in ours]
            table.add_row(
                case, name, f"{row['seconds']:.2f}", *ratios, f"{row['cpu']:.2f}", f"{row['peak'] / 1e6:.0f} MB"
            )
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)
    print(f"Medians of {made['rounds']} rounds; files in {made['folder']}; the merges agree bit for bit.")


if __name__ == "__main__":
    main()
