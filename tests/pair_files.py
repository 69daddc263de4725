"""What the evaluation tests share: minimal pairs, files of them, and one sentence scored without any batching."""

import gzip
import json

import torch

from babylm_vlm.evaluation import MinimalPair

SENTENCES = [
    "the cat sat",
    "who did the girl see under the very blue table that the boys were running to",
    "a",
    "the dog sees a red ball",
    "Zażółć gęślą jaźń",
    "the cat sat",
]


def naive_score(model, ids, scored_from, **pictures):
    """One sentence, no batch, no padding: Σ log p of the tokens from position `scored_from` on."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), **pictures).logits[0].double()
    log_probabilities = logits.log_softmax(-1)
    return sum(log_probabilities[t - 1, ids[t]].item() for t in range(scored_from, len(ids)))


def text_pair(number=0, uid="agreement", pair=None):
    return MinimalPair("the girls were", "the girls was", uid, None, pair or f"alone-{number}")


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return path


def row(good="the girls were", bad="the girls was", **fields):
    return {"sentence_good": good, "sentence_bad": bad, **fields}
