"""The figures of README.md and docs/training.md, from JSON files in docs/results/ alone; write_results.py writes them.

A page holds them between `<!-- NAME: scripts/write_results.py -->` and `<!-- /NAME -->`.
"""

import json
import re
from pathlib import Path

from study_report import change, devices, merge_at, table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def merging_figures() -> list[str]:
    """The table of benchmarks/merge.py."""
    cases = read(RESULTS / "merge_benchmark.json")
    rows = []
    for case, result in cases.items():
        runs = result["commands"]
        size, dtype = case.split("-") if "-" in case else (case, "fp32")
        for ours, copy, card in (("merge", "copy", ""), ("merge, card", "copy, hash", ", with card")):
            own, theirs, floor = (runs[name]["seconds"] for name in (ours, "mergekit", copy))
            memory = f"{runs[ours]['peak'] / 1e9:.2f} GB, mergekit {runs['mergekit']['peak'] / 1e9:.1f} GB"
            cells = [f"{theirs:.1f} s: {theirs / own:.1f}x ours", f"{floor:.1f} s: ours is {own / floor:.1f}x"]
            rows.append([f"{size}, {dtype}{card}", f"**{own:.1f} s**", *cells, memory])
    header = ["parameters", "`babylm-vlm merge`", "`mergekit-yaml`", "copy", "peak memory"]
    made = next(iter(cases.values()))
    machine, folder = made["machine"].partition(", load")[0], made["folder"]
    bf16 = cases["1.3B-bf16"]["commands"]
    to_mergekit, to_copy = (
        sorted(a / b for a, b in zip(bf16[one]["all"], bf16[other]["all"], strict=True))
        for one, other in (("mergekit", "merge"), ("merge", "copy"))
    )
    with_card = bf16["merge, card"]["seconds"] / bf16["copy"]["seconds"]
    rounds = min(result["rounds"] for result in cases.values())
    return [
        f"Whole commands, start-up included: `python benchmarks/merge.py` on {machine}, medians of at least "
        f"{rounds} rounds, files in {folder}. The copy reads both parents and writes one. A merge of a multimodal and "
        "a language-only model also writes a model card with the SHA-256 of its parents; it is compared with a copy "
        "that also hashes them, in one thread. (In bf16 the merge with its card takes "
        f"{with_card:.1f} times as long as the plain copy.) The machine is shared: at 1.3B in bf16, from round to "
        f"round, mergekit took {to_mergekit[0]:.1f} to {to_mergekit[-1]:.1f} times as long as the merge without a "
        f"card, and that {to_copy[0]:.1f} to {to_copy[-1]:.1f} times as long as the plain copy.",
        "",
        *table(header, rows),
    ]


def interpolation_figures() -> list[str]:
    """A sentence on benchmarks/interpolation.py."""
    found = read(RESULTS / "interpolation_benchmark.json")
    largest = found["rows"][-2:]
    speeds = " and ".join(f"{100 * row['speed']:.0f} % in {row['dtype']}" for row in largest)
    times = " and ".join(f"{1e3 * row['seconds']:.0f}" for row in largest)
    return [
        f"Setting alpha on a live model of {largest[0]['parameters'] / 1e6:.0f}M weights takes {times} ms: {speeds} "
        "of the speed of one `torch.add` that moves the same bytes (`python benchmarks/interpolation.py`, "
        f"{found['machine']}, medians of {found['rounds']} rounds).",
    ]


def training_figures() -> list[str]:
    """A sentence on benchmarks/training.py."""
    found = read(RESULTS / "training_benchmark.json")
    padding, tower = found["padding"], found["tower"]
    gpu = read(RESULTS / "training_gpu.json")
    ours, plain = (row for row in gpu["rows"] if row["model"] == "100M")
    return [
        f"On a {padding['device']}, packed captions train {padding['packed_is_faster_by']:.1f} times as fast as "
        "padded ones, with lengths like the challenge's, and stored features are "
        f"{tower['stored_is_faster_by']:.0f} times as fast as a DINOv2-base in every step: "
        f"`python benchmarks/training.py`. On an {gpu['device']}, with `torch_compile=true`, 100M words ten times "
        f"would take a model of 100M parameters {ours['hours_for_strict']:.2f} hours, at {100 * ours['mfu']:.0f} % of "
        f"the data sheet's peak and {ours['tokens_per_second'] / plain['tokens_per_second']:.1f} times the tokens a "
        "second of plain `Trainer` defaults: `python benchmarks/training_gpu.py`.",
    ]


def training_table() -> list[str]:
    """The table of benchmarks/training.py."""
    found = read(RESULTS / "training_benchmark.json")
    rows = []
    for name, (label, goal, fast, slow) in COMPARED.items():
        run = found[name]
        speeds = " and ".join(f"{run[f'{side}_words_per_second']:,.0f}" for side in (fast, slow))
        measured = f"**{run[f'{fast}_is_faster_by']:.1f}x** ({speeds} words/s)"
        rows.append([label, goal, measured, f"{run['peak_memory_gb']:.1f} GB"])
    text, padding = found["text"], found["padding"]
    share_of_rate = text["share_of_matmul_rate"]
    padded = {name: found[name]["padded_tokens_for_a_packed_one"] for name in ("padding", "even")}
    missed = ": missed" if share_of_rate < 0.55 else ""
    compiled = ", compiled" if text["compiled"] else ""
    rows.append(
        [
            f"text, {text['parameters'] / 1e6:.1f} million parameters{compiled}, share of the machine's "
            f"matrix multiplication ({text['matmul_gflops_per_second']:,.0f} GFLOP/s)",
            "55 %",
            f"**{100 * share_of_rate:.0f} %** ({text['words_per_second']:,.0f} words/s){missed}",
            f"{text['peak_memory_gb']:.1f} GB",
        ]
    )
    return [
        f"`benchmarks/training.py` on a {text['device']}, torch {text['torch']}, in {text['precision']}; the numbers "
        "are in [`results/training_benchmark.json`](results/training_benchmark.json). The machine is shared, so the "
        f"best of some rounds counts: of {padding['rounds']} with {padding['updates']} updates each, for text of "
        f"{text['rounds']} with {text['updates']}.",
        "",
        *table(["comparison", "goal", "measured", "peak memory"], rows),
        "",
        "Memory is that of the whole process with both sides. What packing saves is the padding: "
        f"{padded['padding']:.1f} tokens for each packed one with captions as long as the challenge's, "
        f"{padded['even']:.1f} with sentences.",
    ]


COMPARED = {
    "padding": (
        "captions as long as the challenge's, packed, beside one a row, padded to the longest of its batch, in plain "
        "transformers",
        *("3x", "packed", "padded"),
    ),
    "even": ("the same with sentences, whose lengths differ less", "", "packed", "padded"),
    "tower": ("stored features, beside a tower of DINOv2-base's shape in every step", "10x", "stored", "tower"),
}


def gpu_table() -> list[str]:
    """The table of benchmarks/training_gpu.py."""
    found = read(RESULTS / "training_gpu.json")
    rows = [
        [
            row["model"],
            "plain `Trainer` defaults" if row["trainer"] == "defaults" else "bf16, `torch_compile=true`",
            str(row["batch"]),
            f"{row['tokens_per_second']:,.0f}",
            f"{100 * row['mfu']:.0f} %",
            f"{row['memory_gb']:.1f} GB",
            f"{row['hours_for_strict']:.2f}",
        ]
        for row in found["rows"]
    ]
    best = max(row["mfu"] for row in found["rows"])
    missed = "" if best >= 0.4 else " The goal of 40 % MFU is missed."
    header = ["parameters", "trainer", "rows in an update", "tokens/s", "MFU", "memory", "hours for 100M words x 10"]
    return [
        f"`benchmarks/training_gpu.py` on one {found['device']}, torch {found['torch']}: rows of 512 tokens, "
        f"{found['updates']} updates after 5 others; MFU is of the data sheet's {found['peak_tflops']:,.0f} TFLOP/s. "
        f"The hours are projected.{missed}",
        "",
        *table(header, rows),
    ]


def study_figures() -> list[str]:
    """What the study found, in two sentences."""
    lines = []
    for path in sorted(RESULTS.glob("study-*.json")):
        study = read(path)
        d, size = study["differences"], f"{study['models']['language']['parameters'] / 1e6:.1f} million parameters"
        seeds = f"{len(study['seeds'])} seed{'s' if len(study['seeds']) > 1 else ''}"
        lines.append(
            f"[Its answers](docs/results.md#the-study-{study['size']}) with {size}, {seeds}, after "
            f"{study['minutes']} minutes on {devices(study)}: from the language-only twin to the "
            f"multimodal one grammar {change(d['pictures']['grammar'])}, BLiMP as a whole "
            f"{change(d['pictures']['blimp'])}; for the merge, "
            f"{merge_at(study['chosen']['text_captions'], d['merged - multimodal'])}; whatever is chosen, "
            f"{merge_at('0.5', d['half - multimodal'])}."
        )
    return "\n\n".join(lines).split("\n")


FIGURES = {
    ROOT / "README.md": {
        "training": training_figures,
        "merging": merging_figures,
        "interpolation": interpolation_figures,
        "study": study_figures,
    },
    DOCS / "training.md": {"speed": training_table, "gpu": gpu_table},
}


def filled(path: Path) -> str:
    """A page with its figures as docs/results/ has them."""
    text = path.read_text(encoding="utf-8")
    for name, figures in FIGURES[path].items():
        begin, end = f"<!-- {name}: scripts/write_results.py -->", f"<!-- /{name} -->"
        between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(between.findall(text)) != 1:
            raise SystemExit(f"{path} needs one line {begin} and one {end}.")
        text = between.sub(lambda _, lines=[begin, *figures(), end]: "\n".join(lines), text)
    return text
