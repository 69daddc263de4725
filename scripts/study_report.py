"""The study in words: every sentence is made from the numbers of `study.json`.

    python scripts/study_report.py runs/study-small --size small

RUN is what scripts/reproduce.sh made; study.json, study.md and plots are written into it. scripts/write_results.py
--study RUN takes them over into docs/. "Clearly" means that the 95 % interval of a difference excludes zero.
"""

import argparse
import json
import re
from pathlib import Path

from study_plots import NAMES, draw

from babylm_vlm.demo.report import percent, points

PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "results" / "published.json"
THINNED = {"supplement_filtered": "its supplement", "entity_tracking": "entity tracking"}
THINNED |= {"wug_adj_nominalization": "WUG adjectives"}
NO_BETTER = "on the selection half, none has more grammar and keeps 95 % of the gain in grounding"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def is_clear(difference: dict) -> bool:
    low, high = difference["interval"]
    return low > 0 or high < 0


def change(difference: dict) -> str:
    """`falls by 6.9 points [5.0, 8.8]`, or that it does not change clearly."""
    if not is_clear(difference):
        return f"does not change clearly ({points(difference)} points)"
    low, high = sorted(abs(100 * end) for end in difference["interval"])
    verb = "rises" if difference["difference"] > 0 else "falls"
    return f"{verb} by {abs(100 * difference['difference']):.1f} points [{low:.1f}, {high:.1f}]"


def seeds_agreeing(difference: dict) -> str:
    """In how many seeds a clear difference has the sign of the mean; nothing for a single seed."""
    values = difference["by_seed"]
    same = sum(value * difference["difference"] > 0 for value in values)
    return f", in {same} of {len(values)} seeds," if len(values) > 1 and is_clear(difference) else ""


def compared(differences: dict[str, dict]) -> str:
    """What the first of two models is against the second, and the differences in both abilities."""
    both = [differences["grammar"], differences["grounded"]]
    signs = [(d["difference"] > 0) - (d["difference"] < 0) if is_clear(d) else 0 for d in both]
    if not any(signs):
        verdict = "is not clearly better or worse"
    elif min(signs) >= 0:
        verdict = "is better"
    elif max(signs) <= 0:
        verdict = "is worse"
    else:
        verdict = f"has {'more grammar and less' if signs[0] > 0 else 'less grammar and more'} grounding"
    return f"{verdict} (grammar {points(both[0])}, grounding {points(both[1])} points)"


def merge_at(alpha: str, differences: dict[str, dict]) -> str:
    """What a merge at the chosen alpha changes."""
    if alpha == "1":
        return f"no α below 1 is chosen: {NO_BETTER}"
    grammar = f"{change(differences['grammar'])}{seeds_agreeing(differences['grammar'])}"
    return f"at α = {alpha} grammar {grammar} and grounding {change(differences['grounded'])}"


def joined(parts: list[str]) -> str:
    return ", ".join(parts) if parts else "none"


def lost(study: dict) -> str:
    d = study["differences"]
    language, multimodal = (percent(study["table"][name]["grammar"]) for name in ("language", "text_captions"))
    agreeing = seeds_agreeing(d["pictures"]["grammar"]).rstrip(",")
    return (
        f"From the language-only twin ({language}) to the multimodal one ({multimodal}) grammar "
        f"{change(d['pictures']['grammar'])}{agreeing}; over all paradigms of BLiMP, "
        f"those at chance included, it {change(d['pictures']['blimp'])}. With the captions' words alone, without "
        f"pictures, grammar {change(d['caption words']['grammar'])}, and when pictures are added to them it "
        f"{change(d['sight']['grammar'])}."
    )


def phenomena(study: dict) -> str:
    rows = study["phenomena"]

    def listed(key: str, sign: int) -> str:
        chosen = {term: row[key] for term, row in rows.items() if is_clear(row[key])}
        chosen = {term: d for term, d in chosen.items() if d["difference"] * sign > 0}
        ordered = sorted(chosen, key=lambda term: -abs(chosen[term]["difference"]))
        return joined([f"{term} ({points(chosen[term])})" for term in ordered])

    given = f"clearly gives back: {listed('recovered', 1)}; and clearly takes away: {listed('recovered', -1)}"
    if study["chosen"]["text_captions"] == "1":
        given = "changes nothing, as no α below 1 is chosen"
    return (
        f"Of {len(rows)} phenomena with paradigms that the ancestor can do, grammar falls clearly in: "
        f"{listed('lost', -1)}; and rises clearly in: {listed('lost', 1)}. Merging {given}. (Of so many intervals, "
        f"{0.05 * len(rows):.1f} would exclude zero by chance in each comparison.)"
    )


def recovered(study: dict) -> str:
    d, t, alpha = study["differences"], study["table"], study["chosen"]["text_captions"]
    merged, multimodal = t["merged text_captions"], t["text_captions"]
    back, loss = (d[name]["grammar"] for name in ("merged - multimodal", "pictures"))
    shares = []
    if not (is_clear(loss) and loss["difference"] < 0):
        shares.append("there was no clear loss that could come back")
    elif is_clear(back) and back["difference"] > 0:
        shares.append(
            f"{-100 * back['difference'] / loss['difference']:.0f} % of the grammar that was lost comes back"
        )
    else:
        shares.append("no clear part of the grammar that was lost comes back")
    gain = multimodal["grounded"]["accuracy"] - multimodal["grounded"]["chance"]
    if multimodal["grounded"]["interval"][0] > multimodal["grounded"]["chance"]:
        kept = (merged["grounded"]["accuracy"] - merged["grounded"]["chance"]) / gain
        shares.append(f"{100 * kept:.0f} % of the grounding above chance is kept")
    else:
        shares.append("the multimodal twin's grounding was not clearly above chance")
    amount = "" if alpha == "1" else f": {' and '.join(shares)}"
    return (
        f"Against the multimodal twin, {merge_at(alpha, d['merged - multimodal'])}{amount}. Against the language-only "
        f"twin, grammar {change(d['merged - language']['grammar'])}. (Whatever is chosen, "
        f"{merge_at('0.5', d['half - multimodal'])} against the multimodal twin.)"
    )


BY_CHOICE = {
    "ancestor": "those the ancestor can do (used here)",
    "language": "those the language-only twin can do",
    "text_captions": "those the multimodal twin can do",
    "all": "all",
}


def choices(study: dict) -> list[str]:
    """The main differences under other choices of the paradigms by which grammar is measured."""
    alpha, rows = study["chosen"]["text_captions"], []
    for name, row in study["by_choice"].items():
        differences = [points(row[key]) for key in ("pictures", "merged - multimodal", "half - multimodal")]
        rows.append([BY_CHOICE[name], str(row["paradigms"]), *differences])
    header = ["paradigms", "number", "multimodal − language-only", f"merged (α = {alpha}) − multimodal"]
    return table([*header, "merged (α = 0.5) − multimodal"], rows)


def order(study: dict) -> list[str]:
    d, chosen, models = study["differences"], study["chosen"], study["models"]
    lines = [
        f"- Before merging, text after captions {compared(d['captions_text - mixed'])} than the same text mixed with "
        f"them; after merging, the one {compared(d['merged captions_text - merged mixed'])} than the other."
    ]
    for name, words in (("captions_text", "text after captions"), ("mixed", "text mixed with captions")):
        more = models[name]["words_seen"] - models["text_captions"]["words_seen"]
        line = f"- With {more:,} words of text more than captions alone, {words} "
        line += f"{compared(d[f'{name} - text_captions'])} before merging. "
        line += f"In its own merge, {merge_at(chosen[name], d[f'merged {name} - {name}'])}"
        if not chosen[name] == chosen["text_captions"] == "1":
            line += f"; the result {compared(d[f'merged {name} - merged'])} than the merge of captions alone"
        lines.append(f"{line}.")
    return lines


def ancestry(study: dict) -> str:
    alpha, models = study["chosen"]["independent_seed"], study["models"]
    words = models["ancestor"]["words_seen"] + models["language"]["words_seen"]
    verdict = "no α below 1 is chosen" if alpha == "1" else f"α = {alpha} is chosen"
    return (
        "At α = 0.5 the merge of twins with a common ancestor "
        f"{compared(study['differences']['ancestry'])} than that of the same multimodal model with a language-only "
        f"one that had its own random start, on whose dial {verdict}. (That one read "
        f"{models['independent']['words_seen']:,} words of text, the twin with the ancestor's {words:,}.)"
    )


def one_alpha(study: dict) -> str:
    name = study["chosen"]["layers"]
    if name == "multimodal":
        return f"No plan with several α is chosen over the multimodal twin itself: {NO_BETTER}."
    itself = " (that is, the multimodal twin itself)" if study["chosen"]["text_captions"] == "1" else ""
    return (
        f"One global α{itself} {compared(study['differences']['merged - layers'])} than the best of the plans that "
        f"give word embeddings, first and last layer each their own ({name})."
    )


def rivals(study: dict) -> list[str]:
    names = {"mixed": "replay (the mixed twin, unmerged)", "ensemble": "the ensemble of both, at twice the cost"}
    names |= {"merged lora": "the LoRA dial", "slerp": "slerp", "ties": "TIES", "task_arithmetic": "task arithmetic"}
    ours = "multimodal twin, as no α below 1 is chosen," if study["chosen"]["text_captions"] == "1" else "merge"
    lines = []
    for name, words in names.items():
        chosen = study["chosen"][name.removeprefix("merged ")]
        itself = name not in ("mixed", "merged lora") and chosen in ("1", "multimodal")
        if itself and study["chosen"]["text_captions"] == "1":
            lines.append(f"- Against {words}: nothing is chosen over the multimodal twin itself on either side.")
            continue
        setting = "" if name == "mixed" else " (that is, the multimodal twin)" if itself else f" (at {chosen})"
        if name == "merged lora":
            setting = f" (at {chosen}; the LoRA twin's own grounding is {percent(study['table']['lora']['grounded'])})"
        lines.append(f"- Against {words}{setting}, the {ours} {compared(study['differences'][f'merged - {name}'])}.")
    return lines


def along(study: dict) -> str:
    rows = study["milestones"]
    gains = [row for row in rows if row["merged - multimodal"]["grammar"]["interval"][0] > 0]
    found = [
        f"after {row['words']:,} words of captions (α = {row['alpha']}: {compared(row['merged - multimodal'])})"
        for row in gains
    ]
    return f"Of {len(rows)} checkpoints, merging clearly gains grammar at {len(gains)}{': ' if gains else ''}" + (
        "; ".join(found) + "."
    )


def alphas(study: dict) -> list[str]:
    rows = [
        [f"{point['name']}", *(percent(point["test"][ability]) for ability in ("grammar", "blimp", "grounded"))]
        for point in study["curves"]["text_captions"]
    ]
    return table(["α", "grammar", "BLiMP, all", "grounded"], rows)


def systems(study: dict) -> list[str]:
    rows = []
    for name, label in NAMES.items():
        measured = study["table"].get(name)
        if measured:
            setting = study["chosen"].get(name.removeprefix("merged ")) if name not in study["models"] else None
            label += f" ({'α = ' if setting[0] in '01' else ''}{setting})" if setting else ""
            rows.append([label, *(percent(measured[ability]) for ability in ("grammar", "blimp", "grounded"))])
    return table(["model", "grammar", "BLiMP, all", "grounded"], rows)


def extras(study: dict) -> list[str]:
    columns = {
        "supplement_filtered": "supplement",
        "entity_tracking": "entity tracking",
        "lex-viz_vocab": "DevBench words",
    }
    columns |= {"wug_adj_nominalization": "WUG adjectives, ρ", "reading_eye_tracking": "eye tracking, ΔR² %"}
    columns |= {"reading_self_paced": "self-paced, ΔR² %", "captions": "caption or another's"}
    columns |= {"captions_perplexity": "perplexity per word, captions"}
    columns |= {"text_perplexity": "perplexity per word, text"}
    there = [key for key in columns if all(key in rows for rows in study["extra"].values())]
    lines = []
    units = {"accuracy": (100, 1), "spearman": (1, 2), "r2_gain": (1, 2), "perplexity": (1, 1)}
    for name, rows in study["extra"].items():
        cells = [NAMES[name]]
        for key in there:
            factor, digits = units[rows[key]["metric"]]
            value, low, high = (f"{factor * x:.{digits}f}" for x in (rows[key]["value"], *rows[key]["interval"]))
            cells.append(f"{value} [{low}, {high}]")
        lines.append(cells)
    chance = {key: rows[key]["chance"] for key in there}
    guessing = ["" if value is None else f"{units[rows[key]['metric']][0] * value:g}" for key, value in chance.items()]
    return table(["model", *(columns[key] for key in there)], [*lines, ["chance", *guessing]])


def beside(study: dict, published: dict) -> list[str]:
    """The paper's claims and the organisers' baselines."""
    d, paper, baselines = study["differences"], published["paper"], published["baselines"]
    claims = [
        [paper["claims"]["loss"], f"Grammar {change(d['pictures']['grammar'])}."],
        [
            paper["claims"]["merging"],
            f"For the merge, {merge_at(study['chosen']['text_captions'], d['merged - multimodal'])}.",
        ],
    ]
    keys = ("supplement_filtered", "entity_tracking", "wug_adj_nominalization", "lex-viz_vocab")
    rows = []
    for name in ("language", "text_captions", "merged text_captions"):
        measured = [study["table"][name]["blimp"]["accuracy"], *(study["extra"][name][key]["value"] for key in keys)]
        cells = [f"{x:.2f}" if i == 3 else f"{100 * x:.1f}" for i, x in enumerate(measured)]
        rows.append([f"here: {NAMES[name]}", *cells])
    for name, values in baselines["rows"].items():
        rows.append([name, *("" if value is None else f"{value:g}" for value in values)])
    counts = {"BLiMP": study["table"]["language"]["blimp"]["items"]}
    counts |= {words: study["extra"]["language"][key]["items"] for key, words in THINNED.items()}
    thinned = ", ".join(f"{count:,} items of {name}" for name, count in counts.items())
    models = study["models"]
    ancestor, language, captions = (models[n]["words_seen"] for n in ("ancestor", "language", "text_captions"))
    return [
        *table([f"{paper['name']}, {paper['source']}", "here"], claims),
        "",
        *table(["", *baselines["columns"]], rows),
        "",
        f"What differs: the twins here have {models['language']['parameters'] / 1e6:.1f} million parameters. Their "
        f"ancestor read {ancestor:,} words of text, repetitions included; after it the language-only one read "
        f"{language:,} more, the multimodal one {captions:,} words of captions, nearly all of one kind of drawing, "
        "through a small tower that was trained on these pictures; the paper and the baselines have ten to a "
        "hundred million words and DINOv2. DevBench here is its words only. The scores here are of "
        f"{thinned}. Baselines: {baselines['source']}.",
        "",
    ]


def devices(study: dict) -> str:
    """What the models were trained on; how many threads of a processor each had differs from stage to stage."""
    hardware = {re.sub(r", \d+ threads?\b", "", model["hardware"]) for model in study["models"].values()}
    return " and ".join(sorted(hardware))


def setting(study: dict) -> list[str]:
    """What was trained and measured."""
    models, seeds = study["models"], study["seeds"]
    items = {ability: study["table"]["language"][ability]["items"] for ability in ("grammar", "blimp", "grounded")}
    first = next(iter(models.values()))
    minutes = sum(row["minutes"] for row in models.values())
    versions = ", ".join(f"{package} {number}" for package, number in first["versions"].items())
    over_seeds = ", widened by how much the seeds differ (Student's t)" if len(seeds) > 1 else ""
    return [
        f"`scripts/reproduce.sh`, SIZE={study['size']}: {models['language']['parameters'] / 1e6:.1f} million "
        f"parameters, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}, on {devices(study)}, with {versions}; "
        f"{study['minutes']} minutes in all; training a seed's {len(models)} models takes {minutes:.0f} minutes if "
        "they are added up, by the clock, whatever else the machine did. All models but the independent one start "
        "from the ancestor, and so have read its words too:",
        "",
        *table(
            ["model", "words read", "minutes", "tokens a second"],
            [
                [
                    NAMES.get(n, n.replace("_", " ")),
                    *(f"{m['words_seen']:,}", f"{m['minutes']:.1f}"),
                    f"{m['tokens_seen'] / (60 * max(m['minutes'], 0.01)):,.0f}",
                ]
                for n, m in models.items()
            ],
        ),
        "",
        f"Grammar is the macro average over the {len(study['able'])} BLiMP paradigms of which the ancestor "
        f"gets 60 % right on the selection half ({items['grammar']:,} test items, of {items['blimp']:,} in all); "
        f"grounding is that over the kinds of {items['grounded']:,} choices between captions of drawings "
        "(Nikolaus and Fourtassi 2021), mirrored, so that text alone is at exactly 50 %. All choices were made on the "
        f"selection half; every number here is of the test half. How α is chosen: {study['rule']} Accuracy in % "
        f"with 95 % bootstrap intervals over items{over_seeds}. *Clearly*: the interval of the paired difference "
        "excludes zero.",
        "",
    ]


def section(study: dict, published: dict, title: str = "## The study") -> list[str]:
    """The section of docs/results.md."""
    prefix = f"study-{study['size']}"
    tiny = ["**A tiny run shows that every stage works. Its numbers mean nothing.**", ""]

    def answer(question: str, *text: str, plot: str | None = None) -> list[str]:
        return [f"### {question}", "", *text, "", *([f"![{question}]({prefix}-{plot}.png)", ""] if plot else [])]

    return [
        title,
        "",
        *(tiny if study["size"] == "tiny" else []),
        *setting(study),
        *answer("How much grammar is lost by training on pictures?", lost(study), plot="alpha"),
        *answer("Which phenomena?", phenomena(study), plot="phenomena"),
        *answer("How much does merging recover, at what cost to grounding?", recovered(study)),
        *alphas(study),
        "",
        "How far this depends on the paradigms: a model has an advantage on those chosen by what it can do itself, so "
        "that the twins are judged on their ancestor's. (For small and medium this rule replaced the choice by the "
        "language-only twin after results under it had been seen; both are here.) Differences in points:",
        "",
        *choices(study),
        "",
        *answer("Does the order of the data matter?", *order(study), plot="trade"),
        *answer("Does a common ancestor?", ancestry(study)),
        *answer("Is one global α enough?", one_alpha(study)),
        *answer("Does it beat replay, the ensemble, and other ways to merge?", *rivals(study)),
        *answer("When along training does it pay?", along(study), plot="milestones"),
        "### All models",
        "",
        *systems(study),
        "",
        "Grounded pairs by kind:",
        "",
        *kinds(study),
        "",
        "Tests on which nothing was chosen, and which are not cut in halves. Intervals are over items alone; those "
        f"of correlations and ΔR² are means over seeds. {100 * study['captions_seen']:.0f} % of the held-out captions "
        "are word for word among those trained on; their pictures are not:",
        "",
        *extras(study),
        "",
        "### Beside the paper and the organisers' baselines",
        "",
        *beside(study, published),
    ]


def kinds(study: dict) -> list[str]:
    names = list(next(iter(study["kinds"].values())))
    rows = [
        [uid.replace("_", " "), str(row[names[0]]["items"]), *(percent(row[name]) for name in names)]
        for uid, row in study["kinds"].items()
    ]
    return table(["kind", "choices", *(NAMES[name] for name in names)], rows)


def main() -> None:
    from study_numbers import collect

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--size", required=True, help="tiny, small, medium or full, as the run was")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    study = collect(options.run, options.size, options.seeds)
    (options.run / "study.json").write_text(json.dumps(study, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    lines = section(study, json.loads(PUBLISHED.read_text(encoding="utf-8")), "# The study")
    (options.run / "study.md").write_text("\n".join(lines), encoding="utf-8")
    draw(study, options.run)
    print(f"{options.run / 'study.md'}: the answers.")


if __name__ == "__main__":
    main()
