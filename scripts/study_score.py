"""Score every model of a study's run, every merge, and every alpha of its dials, item by item.

    python scripts/study_score.py runs/study/seed0 --data runs/study/data [--alphas 0:1:0.1] [--share 1/4]

The run's folder holds the models that scripts/reproduce.sh trained and, in merged/, what it merged. The scores of NAME
go to scores/NAME/PART/ as `babylm-vlm evaluate` would write them; PART is selection, test or extra, as in --data. A
dial at an alpha is no file: its weights are set in memory, and its NAME is DIAL/ALPHA. What is there already is not
scored again. `--share 2/4` is for four processes side by side: each scores every fourth name.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils.logging import disable_progress_bar

from babylm_vlm.evaluation import evaluate_model, find_tasks, load_model
from babylm_vlm.evaluation.evaluate import read_benchmarks
from babylm_vlm.merging.interpolation import Interpolation
from babylm_vlm.merging.sweep import parse_alphas

LANGUAGE = ("ancestor", "language", "caption_language", "independent")  # models without eyes
DIALS = {  # the multimodal model, where alpha is 1, and the language-only one, where it is 0
    "text_captions": ("text_captions", "language"),
    "captions_text": ("captions_text", "language"),
    "mixed": ("mixed", "language"),
    "independent_seed": ("text_captions", "independent"),
    "lora": ("lora", "ancestor"),
}
MILESTONE_ALPHAS = (0.5, 0.7, 0.9, 1.0)
PARTS = ("selection", "test", "extra")

BATCH_TOKENS = {"cpu": 4096, "cuda": 16384}

Scored = tuple[str, PreTrainedModel, ProcessorMixin | PreTrainedTokenizerBase]


def has_extra(name: str) -> bool:
    """Whether the tests on which nothing is chosen are asked of a model: all but the side roads."""
    return name in (*LANGUAGE, "mixed/1") or name.startswith("text_captions/")


def missing(run: Path, name: str) -> list[str]:
    """The parts that have no scores yet."""
    wanted = PARTS if has_extra(name) else PARTS[:2]
    return [part for part in wanted if not (run / "scores" / name / part / "results.json").is_file()]


def folders(run: Path, ours: Callable[[str], bool]) -> Iterator[Scored]:
    """Models that are folders, those without eyes first: what is prepared for them is another's no use."""
    plans = sorted(plan.stem for plan in run.glob("plans/*.yaml"))
    for name in (
        *LANGUAGE,
        *(f"merged/{plan}" for plan in plans if plan != "ancestor-with-eyes"),
    ):  # a step on the way
        if ours(name):
            yield name, *load_model(run / name)


def dials(run: Path, alphas: list[float], ours: Callable[[str], bool], device: str) -> Iterator[Scored]:
    """Every alpha of every dial, and a few of the main one's milestones."""
    ways = [(dial, run / eyes, run / language, alphas) for dial, (eyes, language) in DIALS.items()]
    for milestone in sorted(run.glob("text_captions/chck_*")):
        ways.append((f"milestones/{milestone.name}", milestone, run / "language", list(MILESTONE_ALPHAS)))
    for dial, eyes, language, steps in ways:
        left = [alpha for alpha in steps if ours(f"{dial}/{alpha:g}")]
        if not left:
            continue
        live = Interpolation.from_pretrained(eyes, language, dtype=torch.float32, device_map=device)
        processor = AutoProcessor.from_pretrained(eyes)
        for alpha in left:
            live.set(alpha)
            yield f"{dial}/{alpha:g}", live.model, processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--alphas", default="0:1:0.1")
    parser.add_argument("--share", default="1/1", help="such as 2/4: the second of four shares")
    options = parser.parse_args()
    disable_progress_bar()
    run, alphas = options.run, parse_alphas(options.alphas)
    share, shares = map(int, options.share.split("/"))
    turns = count(1)

    def ours(name: str) -> bool:  # asked once of each name, in the same order in every process
        return next(turns) % shares == share % shares and bool(missing(run, name))

    device = "cuda" if torch.cuda.is_available() else "cpu"
    fixed = {"progress": False, "batch_tokens": BATCH_TOKENS[device]}
    tasks = {part: find_tasks(options.data / part) for part in PARTS}
    read = {part: read_benchmarks(tasks[part]) for part in PARTS}
    with tqdm(desc=f"scoring {run}", unit="model") as bar:
        for source in (folders(run, ours), dials(run, alphas, ours, device)):
            for name, model, processor in source:
                for part in missing(run, name):
                    place, rules = run / "scores" / name / part, fixed | {"benchmarks": read[part]}
                    results = evaluate_model(model, processor, tasks[part], place, name=name, **rules)
                    if results["failed"]:
                        (place / "results.json").unlink()  # so that the same command scores it again
                        raise SystemExit(f"{name}: {results['failed']}")
                bar.update()


if __name__ == "__main__":
    main()
