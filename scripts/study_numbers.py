"""The numbers of a study, from the scores of its items: what `study.json` holds.

Two abilities are measured. Grammar is BLiMP, the macro average over the paradigms of which the ancestor gets at least
60 % right on the selection half: it is no closer to the one twin than to the other. Grounding is the grounded pairs,
the macro average over their kinds. Whatever is chosen (these paradigms, every alpha, the best of several merges) is
chosen on the selection half, over all seeds together; every number that is reported is of the test half.

Intervals of accuracies are 95 % bootstrap intervals over items; items that share a pair are drawn together, and with
them the same items under all seeds. Where there are S > 1 seeds, half the width of Student's interval of their mean,
t · sd / √S with S − 1 degrees of freedom, is added in quadrature: so few seeds cannot be resampled.
"""

import json
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from scipy import stats
from study_score import DIALS, LANGUAGE, MILESTONE_ALPHAS

from babylm_vlm.evaluation import accuracy, difference_interval
from babylm_vlm.evaluation.output import items_file, read_items
from babylm_vlm.evaluation.rows import json_rows
from babylm_vlm.evaluation.statistics import interval
from babylm_vlm.evaluation.tasks import Outcome, Sampling, task_of
from babylm_vlm.files import words_seen
from babylm_vlm.merging.sweep import choose_alpha, rule_of
from babylm_vlm.metrics.minimal_pair_accuracy.minimal_pair_accuracy import (
    item_credit,
    paradigm_means,
    paradigm_members,
)

ABLE = 0.6  # accuracy of the ancestor from which it can do a paradigm
KEEP = 0.95
TASKS = {"grammar": "blimp_filtered", "blimp": "blimp_filtered", "grounded": "grounded"}
EXTRA = ("supplement_filtered", "entity_tracking", "wug_adj_nominalization", "reading", "lex-viz_vocab")
EXTRA += ("captions", "text")
METHODS = ("layers", "slerp", "ties", "task_arithmetic")
ENSEMBLE_ALPHAS = [number / 10 for number in range(11)]

System = Callable[[str, str], np.ndarray]  # (part, task) to scores (items of all seeds, options)


class Study:
    """Scores of a run of scripts/reproduce.sh. Items of several seeds follow each other, seed by seed."""

    def __init__(self, folder: Path, seeds: Sequence[int]):
        self.folder = folder
        self.seeds = [folder / f"seed{seed}" for seed in seeds]
        self.able: set[str] = set()
        self.items: dict[tuple[str, str], list[Outcome]] = {}
        self.data: dict[tuple[str, str], dict] = {}
        self.scores = cache(self._scores)

    def outcomes(self, name: str, part: str, task: str) -> list[list[Outcome]]:
        """Of every seed.

        Raises:
            ValueError: they are of other data than those of other models or seeds.
        """
        found = []
        for seed in self.seeds:
            path = items_file(seed / "scores" / name / part, task)
            measured, outcomes = read_items(path)
            if measured["data_sha256"] != self.data.setdefault((part, task), measured["data_sha256"]):
                raise ValueError(f"{path} is of other data than the same task elsewhere in {self.folder}.")
            found.append(outcomes)
        return found

    def _scores(self, name: str, part: str, task: str) -> np.ndarray:
        found = [outcome for outcomes in self.outcomes(name, part, task) for outcome in outcomes]
        self.items.setdefault((part, task), [Outcome(o.uid, o.pair, (), {}) for o in found])
        return np.array([outcome.scores for outcome in found])

    def system(self, name: str) -> System:
        return lambda part, task: self.scores(name, part, task)

    def ensemble(self, multimodal: str, language: str, alpha: float) -> System:
        """Both models are run, and their log-probabilities weighed: a merge of outputs, at twice the cost."""
        return lambda part, task: (
            alpha * self.scores(multimodal, part, task) + (1 - alpha) * self.scores(language, part, task)
        )

    def chosen_items(self, part: str, ability: str, uids: Sequence[str] | None = None) -> np.ndarray:
        """Which items of its task an ability is measured on; only those of some paradigms, if these are named."""
        wanted = self.able if ability == "grammar" and uids is None else uids
        items = self.items[part, TASKS[ability]]
        return np.array([i for i, item in enumerate(items) if wanted is None or item.uid in wanted])

    def measure(self, system: System, part: str, ability: str, uids: Sequence[str] | None = None) -> dict:
        scores = system(part, TASKS[ability])
        inside = self.chosen_items(part, ability, uids)
        items = [self.items[part, TASKS[ability]][i] for i in inside]
        found = accuracy(scores[inside], items)
        low, high = self.over_seeds(
            found.accuracy, found.interval, self.by_seed(item_credit(scores[inside])[0], items)
        )
        measured = {"accuracy": found.accuracy, "interval": (low, high), "chance": found.chance}
        return rounded(measured | {"items": len(inside) // len(self.seeds)})

    def difference(self, a: System, b: System, ability: str, uids: Sequence[str] | None = None) -> dict:
        """Accuracy of A minus that of B on the test half, paired over items; also seed by seed.

        The p-value is of the items, so there is none where several seeds are to be judged.
        """
        scores = [system("test", TASKS[ability]) for system in (a, b)]
        inside = self.chosen_items("test", ability, uids)
        items = [self.items["test", TASKS[ability]][i] for i in inside]
        found = difference_interval(*(s[inside] for s in scores), items).to_dict()
        ours, theirs = (self.by_seed(item_credit(s[inside])[0], items) for s in scores)
        by_seed = ours - theirs
        found |= {"interval": self.over_seeds(found["difference"], found["interval"], by_seed)}
        if len(self.seeds) > 1:
            del found["p_value"]
        return rounded(found | {"items": len(inside) // len(self.seeds), "by_seed": by_seed.tolist()})

    def by_seed(self, values: np.ndarray, items: Sequence[Outcome]) -> np.ndarray:
        """Macro average (seeds,) of what the items of all seeds, (n,), are worth."""
        alone = len(items) // len(self.seeds)
        members = paradigm_members([item.uid for item in items[:alone]])
        return np.array([paradigm_means(part, members).mean() for part in values.reshape(-1, alone)])

    def over_seeds(self, value: float, over_items: Sequence[float], by_seed: np.ndarray) -> tuple[float, float]:
        """An interval over items and seeds; the top of this file says how."""
        count = len(by_seed)
        spread = 0.0
        if count > 1:
            spread = float(stats.t.ppf(0.975, count - 1) * by_seed.std(ddof=1) / count**0.5)
        low, high = over_items
        return value - math.hypot(value - low, spread), value + math.hypot(high - value, spread)

    def differences(self, a: System, b: System) -> dict[str, dict]:
        return {ability: self.difference(a, b, ability) for ability in TASKS}

    def point(self, system: System) -> dict:
        """Both abilities on both halves."""
        return {
            "selection": {ability: self.measure(system, "selection", ability) for ability in ("grammar", "grounded")},
            "test": {ability: self.measure(system, "test", ability) for ability in TASKS},
        }

    def choose(self, candidates: dict[str, System]) -> tuple[str, list[dict]]:
        """The best of some merges on the selection half, and all points; the last is the multimodal model."""
        points = [{"name": name} | self.point(system) for name, system in candidates.items()]
        best = choose_alpha([{"alpha": i} | point["selection"] for i, point in enumerate(points)], f"keep:{KEEP}")
        return points[best]["name"], points

    def able_by(self, name: str) -> set[str]:
        """The paradigms of BLiMP of which a model gets enough right on the selection half."""
        scores = self.scores(name, "selection", "blimp_filtered")
        found = accuracy(scores, self.items["selection", "blimp_filtered"]).paradigms
        able = {uid for uid, row in found.items() if row.accuracy >= ABLE}
        return able or set(found)  # there are none in a run that shows only that all works


def rounded(value):
    """Numbers with five decimals, p-values with as many digits."""
    if isinstance(value, dict):
        return {key: float(f"{v:.2g}") if key == "p_value" else rounded(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return round(value, 5) if isinstance(value, float) else value


def collect(folder: Path, size: str, seeds: Sequence[int]) -> dict:
    """All numbers of a finished run.

    Args:
        folder: what scripts/reproduce.sh made.
        size: the name of the run's size.
        seeds: those of its seeds that count.
    """
    study = Study(folder, seeds)
    study.able = study.able_by("ancestor")
    curves, chosen, systems = {}, {}, {name: study.system(name) for name in LANGUAGE}
    for dial, (eyes, _) in DIALS.items():
        alphas = sorted(float(path.name) for path in (study.seeds[0] / "scores" / dial).iterdir())
        candidates = {f"{alpha:g}": study.system(f"{dial}/{alpha:g}") for alpha in alphas}
        chosen[dial], curves[dial] = study.choose(candidates)
        systems[f"merged {dial}"] = candidates[chosen[dial]]
        systems[eyes] = study.system(f"{eyes}/1")
    candidates = {f"{alpha:g}": study.ensemble("text_captions/1", "language", alpha) for alpha in ENSEMBLE_ALPHAS}
    chosen["ensemble"], curves["ensemble"] = study.choose(candidates)
    systems["ensemble"] = candidates[chosen["ensemble"]]
    for method in METHODS:
        names = sorted(path.name for path in (study.seeds[0] / "scores" / "merged").glob(f"{method}-*"))
        candidates = {name.removeprefix(f"{method}-"): study.system(f"merged/{name}") for name in names}
        candidates["multimodal"] = systems["text_captions"]
        chosen[method], curves[method] = study.choose(candidates)
        systems[method] = candidates[chosen[method]]
    merged = systems["merged text_captions"]
    halves = [study.system(f"{dial}/0.5") for dial in ("text_captions", "independent_seed")]
    return {
        "schema_version": 1,
        "size": size,
        "minutes": round(int((folder / "seconds").read_text()) / 60),
        "seeds": list(seeds),
        "rule": rule_of(f"keep:{KEEP}"),
        "able": sorted(study.able),
        "models": training(study),
        "chosen": chosen,
        "curves": curves,
        "table": {name: study.point(system)["test"] for name, system in systems.items()},
        "differences": {
            "pictures": study.differences(systems["text_captions"], systems["language"]),
            "caption words": study.differences(systems["caption_language"], systems["language"]),
            "sight": study.differences(systems["text_captions"], systems["caption_language"]),
            "merged - multimodal": study.differences(merged, systems["text_captions"]),
            "merged - language": study.differences(merged, systems["language"]),
            "half - multimodal": study.differences(halves[0], systems["text_captions"]),
            "ancestry": study.differences(*halves),
            **{f"{o} - text_captions": study.differences(systems[o], systems["text_captions"]) for o in ORDERS},
            **{f"merged {o} - {o}": study.differences(systems[f"merged {o}"], systems[o]) for o in (*ORDERS, "lora")},
            **{f"merged {o} - merged": study.differences(systems[f"merged {o}"], merged) for o in ORDERS},
            "captions_text - mixed": study.differences(systems["captions_text"], systems["mixed"]),
            "merged captions_text - merged mixed": study.differences(*(systems[f"merged {o}"] for o in ORDERS)),
            **{f"merged - {name}": study.differences(merged, systems[name]) for name in RIVALS},
        },
        "by_choice": by_choice(study, systems, halves[0]),
        "phenomena": by_phenomenon(study, systems),
        "kinds": by_kind(study, systems),
        "milestones": milestones(study),
        "captions_seen": captions_seen(study),
        "extra": extra(study, chosen["text_captions"]),
    }


ORDERS = ("captions_text", "mixed")
RIVALS = ("mixed", "ensemble", "merged lora", *METHODS)


def training(study: Study) -> dict[str, dict]:
    """What the models are and what training them took; minutes and tokens a second are means over seeds."""
    found = {}
    for name in (*LANGUAGE, "text_captions", "captions_text", "mixed", "lora"):
        states = [json.loads((seed / name / "training_state.json").read_text()) for seed in study.seeds]
        minutes = float(np.mean([state["minutes"] for state in states]))
        facts = {key: states[0][key] for key in ("parameters", "words_seen", "tokens_seen", "hardware", "versions")}
        found[name] = rounded(facts | {"minutes": minutes})
    return found


def by_choice(study: Study, systems: dict[str, System], half: System) -> dict[str, dict]:
    """How far the main differences depend on whose paradigms are taken: a model has an advantage on its own."""
    multimodal, merged = systems["text_captions"], systems["merged text_captions"]
    paradigms = {name: study.able_by(name) for name in ("ancestor", "language", "text_captions/1")}
    paradigms["all"] = {item.uid for item in study.items["test", "blimp_filtered"]}
    return {
        name.removesuffix("/1"): {
            "paradigms": len(uids),
            "pictures": study.difference(multimodal, systems["language"], "blimp", sorted(uids)),
            "merged - multimodal": study.difference(merged, multimodal, "blimp", sorted(uids)),
            "half - multimodal": study.difference(half, multimodal, "blimp", sorted(uids)),
        }
        for name, uids in paradigms.items()
    }


def by_phenomenon(study: Study, systems: dict[str, System]) -> dict[str, dict]:
    """The loss of grammar and what merging gives back, by BLiMP's phenomena, in paradigms that the twin can do."""
    terms: dict[str, set[str]] = {}
    for _, _, row in json_rows(study.folder / "data" / "test" / "blimp_filtered"):
        if row["UID"] in study.able:
            terms.setdefault(row["linguistics_term"].replace("_", " "), set()).add(row["UID"])
    names = ("language", "text_captions", "merged text_captions")
    language, multimodal, merged = (systems[name] for name in names)
    return {
        term: {
            "paradigms": len(uids),
            **{name: study.measure(systems[name], "test", "blimp", uids) for name in names},
            "lost": study.difference(multimodal, language, "blimp", uids),
            "recovered": study.difference(merged, multimodal, "blimp", uids),
        }
        for term, uids in sorted(terms.items())
    }


def by_kind(study: Study, systems: dict[str, System]) -> dict[str, dict]:
    """The grounded pairs, kind by kind."""
    names = ("text_captions", "merged text_captions", "mixed", "captions_text")
    return {
        uid: {name: study.measure(systems[name], "test", "grounded", [uid]) for name in names}
        for uid in sorted({item.uid for item in study.items["test", "grounded"]})
    }


def milestones(study: Study) -> list[dict]:
    """Merging along training: at each checkpoint, what the alpha chosen for it wins and costs."""
    words_of = {}
    for place in (study.seeds[0] / "scores" / "milestones").iterdir():
        words_of[f"milestones/{place.name}"] = words_seen(place.name)
    words_of["text_captions"] = training(study)["text_captions"]["words_seen"]
    rows = []
    for name, words in sorted(words_of.items(), key=lambda item: item[1]):
        there = [alpha for alpha in MILESTONE_ALPHAS if (study.seeds[0] / "scores" / name / f"{alpha:g}").is_dir()]
        candidates = {f"{alpha:g}": study.system(f"{name}/{alpha:g}") for alpha in there}
        alpha, points = study.choose(candidates)
        test = {point["name"]: point["test"] for point in points}
        differences = study.differences(candidates[alpha], candidates["1"])
        row = {"words": words, "alpha": alpha, "multimodal": test["1"], "merged": test[alpha]}
        rows.append(row | {"merged - multimodal": differences})
    return rows


def captions_seen(study: Study) -> float:
    """The share of the held-out captions that are, word for word, among the captions trained on."""
    trained_on = set((study.folder / "data" / "captions.txt").read_text(encoding="utf-8").splitlines())
    rows = [row for _, _, row in json_rows(study.folder / "data" / "extra" / "captions")]
    return rounded(sum(row["sentence_good"] in trained_on for row in rows) / len(rows))


def extra(study: Study, alpha: str) -> dict[str, dict]:
    """Tests on which nothing is chosen, of a few models. Numbers other than accuracies are means over seeds."""
    names = {"language": "language", "caption_language": "caption_language", "text_captions": "text_captions/1"}
    names |= {"merged text_captions": f"text_captions/{alpha}", "mixed": "mixed/1"}
    return {label: rounded(extra_of(study, name)) for label, name in names.items()}


def extra_of(study: Study, name: str) -> dict[str, dict]:
    rows = {}
    for task in EXTRA:
        kind, by_seed = task_of(study.folder / "data" / "extra" / task), study.outcomes(name, "extra", task)
        pooled = [outcome for outcomes in by_seed for outcome in outcomes]
        measured = kind.measure(task, pooled, Sampling())
        for key, row in measured.items():
            if row["metric"] != "accuracy":  # a statistic of all items: one for each seed
                alone = [kind.measure(task, outcomes, Sampling())[key] for outcomes in by_seed]
                row["value"] = float(np.mean([other["value"] for other in alone]))
                row["interval"] = np.mean([other["interval"] for other in alone], axis=0).tolist()
            rows[key] = {k: row[k] for k in ("metric", "value", "interval", "chance")}
            rows[key]["items"] = row["items"] // len(study.seeds)
    return rows | {f"{task}_perplexity": perplexity(study, name, task) for task in ("captions", "text")}


def perplexity(study: Study, name: str, task: str) -> dict:
    """Of held-out sentences, per word: exp(−Σ log p / Σ words); the first option of an item is the right sentence."""
    folder = study.folder / "data" / "extra" / task
    words = np.tile([len(row["sentence_good"].split()) for _, _, row in json_rows(folder)], len(study.seeds))
    surprisals = -study.scores(name, "extra", task)[:, 0]
    pairs = [item.pair for item in study.items["extra", task]]
    _, cluster = np.unique(pairs, return_inverse=True)
    sums, lengths = (np.bincount(cluster, weights=values) for values in (surprisals, words))
    drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=2000)
    value, resampled = sums.sum() / lengths.sum(), (drawn @ sums) / (drawn @ lengths)
    low, high = interval(np.exp(resampled))
    found = {"metric": "perplexity", "value": float(np.exp(value)), "interval": [low, high], "chance": None}
    return found | {"items": len(pairs) // len(study.seeds)}
