"""The study's data, and its report from made-up scores in which the truth is known: fast, and without a model."""

import gzip
import json
import shutil
import sys
import zipfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from pair_files import write_lines
from PIL import Image

from babylm_vlm.data.captions import read_captions
from babylm_vlm.evaluation.output import items_file, write_items
from babylm_vlm.evaluation.tasks import Outcome

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
PARADIGMS = {"agreement_1": "subject_verb_agreement", "island_1": "island_effects", "hopeless": "quantifiers"}
KINDS = ("animals", "verbs")
ITEMS = 200
ALPHAS = ("0", "0.5", "1")
DATA = {"data_sha256": {"all.jsonl": "0"}}


def dial(name: str, *levels: tuple[float, float]) -> dict[str, tuple[float, float]]:
    return {f"{name}/{alpha}": level for alpha, level in zip(ALPHAS[-len(levels) :], levels, strict=True)}


LEVELS = {  # accuracy in grammar (on the paradigms that can be done) and in grounding
    **dict.fromkeys(("language", "independent"), (0.9, 0.5)),
    "caption_language": (0.88, 0.5),
    **dial("text_captions", (0.9, 0.5), (0.85, 0.79), (0.7, 0.8)),
    **dial("captions_text", (0.9, 0.5), (0.85, 0.6), (0.85, 0.6)),
    **dial("mixed", (0.9, 0.5), (0.87, 0.7), (0.85, 0.8)),
    **dial("independent_seed", (0.9, 0.5), (0.5, 0.5), (0.7, 0.8)),
    **dial("lora", (0.9, 0.5), (0.8, 0.6), (0.8, 0.7)),
    **dial("milestones/chck_1000", (0.9, 0.5), (0.9, 0.5)),
    **dict.fromkeys(("merged/layers-rising", "merged/slerp-0.5"), (0.85, 0.79)),
    **dict.fromkeys(("merged/ties-0.5", "merged/task_arithmetic-0.5"), (0.6, 0.6)),
}


def choices(uids, levels, seed: int) -> list[Outcome]:
    """Items of each paradigm, the first share of which is right; the right option is ahead by one nat."""
    found = []
    for uid, level in zip(uids, levels, strict=True):
        right = round(level * ITEMS)
        for i in range(ITEMS):
            margin = 1.0 if (i * 37 + 11 * seed) % ITEMS < right else -1.0
            found.append(Outcome(uid, f"{uid}:{i}", (-10.0, -10.0 - margin), {}))
    return found


def extra_outcomes() -> dict[str, list[Outcome]]:
    pair, numbers = (-9.0, -10.0), np.random.default_rng(0)
    reading = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound", "self_paced_reading_time")
    reading += ("Subtlex_log10", "length", "context_length", "prev_length")
    return {
        "supplement_filtered": [Outcome("hypernym", str(i), pair, {}) for i in range(4)],
        "entity_tracking": [Outcome("regular_0_ops", str(i), (*pair, -11.0), {}) for i in range(4)],
        "wug_adj_nominalization": [Outcome("wug_adj", str(i), (-9.0, -8.0 - i), {"ratio": i / 4}) for i in range(4)],
        "reading": [
            Outcome("reading", str(i), tuple(numbers.random(2)), {name: numbers.random() for name in reading})
            for i in range(40)
        ],
        "lex-viz_vocab": [Outcome("lex-viz_visual", str(i), (*pair, *pair), {}) for i in range(4)],
        "captions": [Outcome("captions", str(i // 2), (-4.0, -8.0), {}) for i in range(4)],
        "text": [Outcome("dev.childes", str(i), (-6.0, -8.0), {}) for i in range(4)],
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run with two seeds."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "seconds").write_text("3000\n")
    rows = [{"UID": uid, "linguistics_term": term} for uid, term in PARADIGMS.items()]
    write_lines(folder / "data" / "test" / "blimp_filtered" / "all.jsonl", rows)
    write_lines(folder / "data" / "extra" / "captions" / "captions.jsonl", [{"sentence_good": "a b c d"}] * 4)
    (folder / "data" / "captions.txt").write_text("a b c d\ne f\n")
    write_lines(folder / "data" / "extra" / "text" / "dev.childes.jsonl", [{"sentence_good": "a b"}] * 4)
    for seed, (name, (grammar, grounding)) in product(range(2), ({"ancestor": (0.9, 0.5)} | LEVELS).items()):
        if name == "ancestor" and seed == 1:  # the only model whose seeds differ
            grammar = 0.7
        scores = folder / f"seed{seed}" / "scores" / name
        for part in ("selection", "test"):
            pairs = choices(PARADIGMS, (grammar, grammar, 0.4), seed)
            write_items(items_file(scores / part, "blimp_filtered"), DATA, pairs)
            write_items(items_file(scores / part, "grounded"), DATA, choices(KINDS, (grounding, grounding), seed))
        if name in ("language", "caption_language", "mixed/1") or name.startswith("text_captions/"):
            for task, outcomes in extra_outcomes().items():
                write_items(items_file(scores / "extra", task), DATA, outcomes)
    names = ("ancestor", "language", "caption_language", "independent", "text_captions", "captions_text")
    for seed, name in product(range(2), (*names, "mixed", "lora")):
        state = {"parameters": 10, "words_seen": 2000, "tokens_seen": 3000, "minutes": 1.0, "hardware": "a CPU"}
        place = folder / f"seed{seed}" / name
        place.mkdir(parents=True)
        (place / "training_state.json").write_text(json.dumps(state | {"versions": {"torch": "2"}}))
    return folder


@pytest.fixture(scope="module")
def report(run) -> tuple[dict, str]:
    """Numbers and words of the report."""
    import study_numbers
    import study_plots
    import study_report

    study = study_numbers.collect(run, "small", [0, 1])
    study_plots.draw(study, run)
    published = json.loads(study_report.PUBLISHED.read_text(encoding="utf-8"))
    return study, "\n".join(study_report.section(json.loads(json.dumps(study)), published))


def test_choices_are_made_on_the_selection_half(report):
    study, _ = report
    assert study["able"] == ["agreement_1", "island_1"]  # the language-only twin is at 40 % on the third
    assert study["chosen"]["text_captions"] == "0.5"
    assert study["chosen"]["independent_seed"] == "1"  # no other keeps the grounding
    assert study["chosen"]["layers"] == "rising"
    assert study["chosen"]["ties"] == "multimodal"


def test_differences_are_those_that_were_made_up(report):
    study, _ = report
    pictures = study["differences"]["pictures"]
    assert pictures["grammar"]["difference"] == pytest.approx(-0.2)
    assert pictures["grammar"]["by_seed"] == pytest.approx([-0.2, -0.2])
    assert pictures["grammar"]["items"] == 2 * ITEMS  # those of one seed
    assert pictures["grammar"]["interval"][1] < 0 < study["differences"]["ancestry"]["grammar"]["interval"][0]
    language = study["extra"]["language"]
    assert language["wug_adj_nominalization"]["items"] == 4  # those of one seed
    assert language["captions_perplexity"]["value"] == pytest.approx(np.e)  # four nats for four words
    assert language["text_perplexity"]["value"] == pytest.approx(np.e**3)


def test_seeds_that_differ_widen_an_interval(report):
    """The ancestor is at 90 % in one seed and at 70 % in the other: two seeds say next to nothing of a third."""
    table = report[0]["table"]
    assert table["ancestor"]["grammar"]["accuracy"] == pytest.approx(0.8)
    low, high = table["ancestor"]["grammar"]["interval"]
    assert 0.8 - low >= 12.7 * 0.1 and high - 0.8 >= 12.7 * 0.1  # t with one degree of freedom, sd / √2
    low, high = table["language"]["grammar"]["interval"]  # seeds that agree: items alone, 1.96 √(p (1 − p) / n)
    assert 0.86 < low < 0.89 and 0.91 < high < 0.94


def test_scores_of_other_data_are_refused(run, tmp_path):
    import study_numbers

    shutil.copytree(run, tmp_path / "run")
    place = items_file(tmp_path / "run" / "seed1" / "scores" / "language" / "test", "grounded")
    write_items(place, {"data_sha256": {"all.jsonl": "1"}}, choices(KINDS, (0.5, 0.5), 1))
    study = study_numbers.Study(tmp_path / "run", [0, 1])
    with pytest.raises(ValueError, match="other data"):
        study.measure(study.system("language"), "test", "grounded")


def test_the_ensemble_weighs_the_scores_of_both_models(report):
    """Every margin is one nat, so the multimodal model decides above one half; below it the language-only one does."""
    study, _ = report
    curve = {point["name"]: point["test"] for point in study["curves"]["ensemble"]}
    assert curve["0.9"] == curve["1"] == study["table"]["text_captions"]
    assert curve["0"] == curve["0.1"] == study["table"]["language"]


def test_sentences_say_what_the_numbers_say(report):
    _, text = report
    assert "grammar falls by 20.0 points" in text and "in 2 of 2 seeds; over" in text
    assert "75 % of the grammar that was lost comes back and 97 % of the grounding above chance is kept" in text
    assert "the merge of twins with a common ancestor is better (grammar +35.0" in text
    assert "on whose dial no α below 1 is chosen" in text
    assert "One global α is not clearly better or worse (grammar +0.0" in text
    assert "Against slerp (at 0.5), the merge is not clearly better or worse" in text
    assert "Against TIES (that is, the multimodal twin), the merge has more grammar and less grounding" in text
    assert "Against replay (the mixed twin, unmerged), the merge is worse (grammar +0.0" in text
    assert "In its own merge, no α below 1 is chosen" in text  # captions_text: the merge wins nothing
    assert "Of 2 checkpoints, merging clearly gains grammar at 1: after 2,000 words of captions (α = 0.5" in text
    assert "subject verb agreement (-20.0" in text and "quantifiers" not in text


def test_a_choice_of_the_multimodal_twin_on_both_sides_is_no_comparison(report):
    import study_report

    study = json.loads(json.dumps(report[0]))
    study["chosen"] |= {"text_captions": "1", "ensemble": "1", "captions_text": "1"}
    rivals = "\n".join(study_report.rivals(study))
    assert "Against the ensemble of both, at twice the cost: nothing is chosen over the multimodal twin" in rivals
    assert "Against TIES: nothing is chosen" in rivals and "Against slerp (at 0.5), the multimodal twin, as" in rivals
    assert study_report.order(study)[1].endswith(f"no α below 1 is chosen: {study_report.NO_BETTER}.")
    assert "comes back" not in study_report.recovered(study) and "changes nothing" in study_report.phenomena(study)


def test_the_main_differences_are_shown_under_other_choices_of_paradigms(report):
    study, text = report
    assert study["by_choice"]["ancestor"]["pictures"] == study["differences"]["pictures"]["grammar"]
    assert study["by_choice"]["all"]["pictures"] == study["differences"]["pictures"]["blimp"]
    assert study["by_choice"]["all"]["paradigms"] == 3 and "| all | 3 | -13.3 [" in text


def test_no_share_comes_back_that_is_not_clearly_more_than_none(report):
    import study_report

    study = json.loads(json.dumps(report[0]))
    study["differences"]["merged - multimodal"]["grammar"]["interval"] = [-0.01, 0.31]
    assert "no clear part of the grammar that was lost comes back and 97 %" in study_report.recovered(study)


def test_every_plot_of_the_report_is_there(report, run):
    _, text = report
    plots = [name.partition(")")[0] for name in text.split("](study-small-")[1:]]
    assert len(plots) == 4 and all((run / f"study-small-{name}").is_file() for name in plots)


def test_both_halves_share_no_item_and_lose_none(tmp_path, monkeypatch):
    import study_data

    places = [tmp_path / name for name in ("full_eval", "text", "scenes", "pictures", "devbench")]
    full_eval, text, scenes, pictures, devbench = places
    sentences = [{"sentence_good": f"good {i}", "sentence_bad": f"bad {i}"} for i in range(9)]
    write_lines(full_eval / "blimp_filtered" / "island.jsonl", sentences)
    for task in study_data.EXTRA:
        write_lines(full_eval / task / "some.jsonl", sentences)
    rows = [row | {"image": f"{i}.jpg", "pair": i // 2} for i, row in enumerate(sentences[:8])]
    write_lines(scenes / "test" / "grounded" / "animals.jsonl", rows)
    write_lines(scenes / "test" / "captions" / "captions.jsonl", [{**rows[0], "image": "../grounded/0.jpg"}])
    write_lines(pictures / "metadata.jsonl", [{"text": "the cat sits"}, {"text": "the dog runs"}])
    write_lines(full_eval / "reading" / "reading_data.csv", ["item,word"])
    write_lines(devbench / "lex-viz_vocab" / "manifest.csv", ["text1,image1"])
    text.mkdir()
    said = [f"the {thing} is here now" for thing in "abcdefghi"]
    (text / "dev.talk.txt.gz").write_bytes(gzip.compress("\n".join([*said, "oh", "no no no no"]).encode()))
    output = tmp_path / "runs" / "data"
    monkeypatch.setattr(sys, "argv", ["study_data.py", *map(str, places), "--output-dir", str(output)])
    study_data.main()

    def read(path: str) -> list[dict]:
        return [json.loads(line) for line in (output / path).read_text().splitlines()]

    halves = [read(f"{half}/blimp_filtered/island.jsonl") for half in ("selection", "test")]
    assert [row["sentence_good"] for row in halves[0]] == ["good 0", "good 2", "good 4", "good 6", "good 8"]
    assert sorted(row["sentence_good"] for half in halves for row in half) == [f"good {i}" for i in range(9)]
    pairs = [[row["pair"] for row in read(f"{half}/grounded/animals.jsonl")] for half in ("selection", "test")]
    assert pairs == [[0, 0, 2, 2], [1, 1, 3, 3]]
    picture = output / "extra" / "captions" / read("extra/captions/captions.jsonl")[0]["image"]
    assert picture.resolve() == scenes / "test" / "grounded" / "0.jpg"
    rows = read("extra/text/dev.talk.jsonl")
    assert [row["sentence_good"] for row in rows] == said  # what is short or has one order only is left out
    assert all(sorted(r["sentence_bad"].split()) == sorted(r["sentence_good"].split()) for r in rows)
    assert all(row["sentence_bad"] != row["sentence_good"] for row in rows)
    assert (output / "captions.txt").read_text() == "the cat sits\nthe dog runs\n"


def test_a_thinned_file_is_evenly_spaced():
    import study_data

    assert study_data.thinned(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert study_data.thinned(list(range(10)), None) == study_data.thinned(list(range(10)), 20) == list(range(10))


def test_captions_of_held_out_scenes_mirror_each_other():
    from abstract_scenes_to_imagefolder import caption_pairs

    captions = {"1": ["mike runs"], "2": ["jenny sits", "the sun"], "3": ["a cat"], "4": ["a cat"], "5": ["alone"]}
    first, second = caption_pairs(captions, ["1", "2", "3", "4", "5"])  # 3 and 4 say the same; 5 has no other
    assert (first["sentence_good"], first["sentence_bad"]) == ("mike runs", "jenny sits")
    assert (second["sentence_good"], second["sentence_bad"], second["pair"]) == (
        "jenny sits",
        "mike runs",
        first["pair"],
    )


def test_named_pictures_follow_the_scenes(tmp_path, monkeypatch):
    import naming_pictures

    scenes, stamps, symbols = (tmp_path / name for name in ("scenes", "stamps", "symbols"))
    write_lines(scenes / "metadata.jsonl", [{"file_name": "1.jpg", "text": "mike runs", "facts": ["hb0"]}])
    Image.new("RGB", (8, 8)).save(scenes / "1.jpg")
    tables = {
        stamps / "captions.tsv": "image\tcategory\tcaption\n1.jpg\tanimals\tA frog (Rana). It is green.\n"
        "2.jpg\tsymbols\tThe letter A.\n",
        symbols / "labels.tsv": "image\tlabel\tgrammar\tcategory\n1.jpg\tfrog pond 2b\tNoun\tAnimals\n"
        "2.jpg\thop , to\tVerb\tVerb\n",
    }
    for table, rows in tables.items():
        table.parent.mkdir()
        table.write_text(rows)
        with zipfile.ZipFile(table.parent / "images_128.zip", "w") as archive:
            for name in ("1.jpg", "2.jpg"):
                archive.write(scenes / "1.jpg", name)
    output = tmp_path / "pictures"
    arguments = [*map(str, (scenes, stamps, symbols)), "--output-dir", str(output), "--size", "16"]
    monkeypatch.setattr(sys, "argv", ["naming_pictures.py", *arguments])
    naming_pictures.main()
    rows = [json.loads(line) for line in (output / "metadata.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["mike runs", "a frog", "frog pond"]
    assert rows[1]["facts"] == ["frog", "in animals"]
    assert [read_captions(str(output)).names[i] for i in range(3)] == ["1.jpg", "stamps-1.jpg", "symbols-1.jpg"]
    assert Image.open(output / "stamps-1.jpg").size == (16, 16)
