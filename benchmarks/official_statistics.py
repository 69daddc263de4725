"""Are the numbers made of scores those of the official pipeline: DevBench, ages of acquisition, GLUE?

    git clone https://github.com/babylm/evaluation-pipeline-2025 pipeline
    pip install pandas nlopt wandb scikit-learn
    python benchmarks/official_statistics.py pipeline CHECKPOINT [--glue evaluation_data/full_eval/glue_filtered]

Calls the pipeline's own functions and ours on the same invented scores (and the surprisals of children's words on the
same checkpoint, the texts of GLUE on the same files) and prints the largest difference. Exit code 1 if one is larger
than it may be. Not compared: DevBench's scores, for which the pipeline supports two architectures only, and
fine-tuning itself, which here keeps the epoch that is best on data set aside.
"""

import argparse
import csv
import gzip
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
import torch

from babylm_vlm.evaluation import aoa, devbench, glue, load_model
from babylm_vlm.evaluation.choices import Item
from babylm_vlm.evaluation.statistics import label_accuracy, label_f1

SEED = 0
SEEN = [10**6 * words for words in (*range(1, 10), *range(10, 101, 10))]
Row = tuple[str, float, float]  # what is compared, largest difference, how large it may be


def compare_devbench() -> Iterator[Row]:
    """KL to people at the best β, which the pipeline finds to about 1e-4, and Spearman's ρ of similarities."""
    from evaluation_pipeline.devbench.comparison.stats_helper import get_opt_kl, rsa
    from sklearn.metrics.pairwise import cosine_similarity

    generator = np.random.default_rng(SEED)
    people, names = generator.dirichlet(np.ones(4), size=60), [f"image{k}" for k in range(1, 5)]
    once, trial = np.ones((1, 60), dtype=int), {"trial": np.arange(60) + 1}
    gaps = []
    for noise in (0.1, 1, 10):
        scores = np.log(people) + noise * generator.normal(size=people.shape)
        tables = [pandas.DataFrame(values, columns=names).assign(**trial) for values in (people, scores)]
        gaps.append(abs(get_opt_kl(*tables)["objective"] - devbench.divergence(scores, people, once)[0]))
    yield "devbench: KL", max(gaps), 2e-3
    states, similarities = generator.normal(size=(60, 16)), generator.random((60, 60))
    theirs = rsa(similarities, cosine_similarity(states))
    yield "devbench: RSA", abs(theirs - devbench.similarity(states, similarities, once)[0]), 1e-9


def compare_ages(scratch: Path) -> Iterator[Row]:
    """Pearson's r of invented learning curves, some of which never cross the threshold, and both ages of each word."""
    from evaluation_pipeline.utils import AoAEvaluator

    generator = np.random.default_rng(SEED)
    words = [f"word{i}" for i in range(80)]
    with (scratch / "cdi_human.csv").open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["word", *aoa.MONTHS])
        for word, age in zip(words, generator.uniform(12, 34, 80), strict=True):
            known = 1 / (1 + np.exp(-0.4 * (np.arange(16, 31) - age))) + generator.normal(0, 0.03, 15)
            writer.writerow([word, *(value if generator.random() > 0.05 else "NA" for value in known)])
    fall = 1 / (1 + np.exp(-5 * (np.log10(SEEN)[:, None] - generator.uniform(5.5, 8.5, 80))))
    surprisals = aoa.CHANCE_SURPRISAL - 14 * fall + generator.normal(0, 0.3, fall.shape)
    rows = [
        {"step": f"chck_{seen // 10**6}M", "target_word": word, "surprisal": value}
        for seen, values in zip(SEEN, surprisals.tolist(), strict=True)
        for word, value in zip(words, values, strict=True)
    ]
    theirs = AoAEvaluator(scratch / "cdi_human.csv").compute_curve_fitness({"results": rows})
    ours = aoa.acquisition(words, surprisals, SEEN, aoa.read_children(scratch / "cdi_human.csv"), resamples=1)
    yield "aoa: words that have both ages", len(set(theirs["valid_words"]) ^ set(ours["ages"])), 0
    ages = np.array(list(ours["ages"].values())).T - [theirs["model_aoas"], theirs["child_aoas"]]
    yield "aoa: ages", float(np.abs(ages).max()), 1e-6
    yield "aoa: Pearson's r", abs(theirs["curve_fitness"] - ours["value"]), 1e-6


def compare_surprisals(checkpoint: str) -> Iterator[Row]:
    """Surprisals of words in contexts, also in an empty one."""
    from evaluation_pipeline.AoA_word.evaluation_functions import StepSurprisalExtractor

    texts = [(context, word) for context in ("", "the red ", " I saw a", "Do you want") for word in ("ball", "puppy")]
    model, tokenizer = load_model(checkpoint)
    official = StepSurprisalExtractor(None, checkpoint, "causal", model.device)
    ours = aoa.surprisals(model, tokenizer, [Item(word, word, ((text, word),)) for text, word in texts], official=True)
    theirs = [official.compute_surprisal(model, tokenizer, tokenizer, *text, use_bos_only=False) for text in texts]
    yield "aoa: surprisals", float(np.abs(np.concatenate(ours) - theirs).max()), 1e-4


def compare_glue(folder: Path | None, scratch: Path) -> Iterator[Row]:
    """Accuracy and F1 of invented predictions, and the texts and labels made of the files, if there are any."""
    from evaluation_pipeline.finetune.dataset import Dataset
    from evaluation_pipeline.finetune.trainer import Trainer

    generator = torch.Generator().manual_seed(SEED)
    logits = torch.randn(500, 2, generator=generator)
    labels = torch.randint(2, (500,), generator=generator)
    theirs = Trainer.calculate_metrics(logits, labels, ["accuracy", "f1"])
    given = (logits.argmax(dim=1).numpy(), labels.numpy(), np.ones((1, 500), dtype=int))
    for name, statistic in (("accuracy", label_accuracy), ("f1", label_f1)):
        yield f"glue: {name}", abs(theirs[name] - statistic(*given)[0]), 1e-9
    for name, files in glue.find_glue(folder).items() if folder else ():
        examples, copy = glue.read_glue(files[1], name), scratch / f"{name}.valid.jsonl"
        copy.write_bytes(gzip.decompress(files[1].read_bytes()) if files[1].suffix == ".gz" else files[1].read_bytes())
        official = list(Dataset(copy, name))
        same = [((one.first, one.second), one.label) == row for one, row in zip(examples, official, strict=True)]
        yield f"glue: texts of {name}", same.count(False), 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", type=Path, help="clone of the official pipeline")
    parser.add_argument("model", help="folder of a language-only checkpoint")
    parser.add_argument("--glue", type=Path, help="folder of TASK.train.jsonl and TASK.valid.jsonl (or .gz)")
    options = parser.parse_args()
    sys.path.insert(0, str(options.pipeline.resolve()))
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        comparisons = (
            compare_devbench(),
            compare_ages(Path(scratch)),
            compare_surprisals(options.model),
            compare_glue(options.glue, Path(scratch)),
        )
        for comparison in comparisons:
            for name, gap, allowed in comparison:
                failed |= not gap <= allowed
                print(f"{name:34}{gap:10.1e}   (at most {allowed:.0e})", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
