"""Model cards: what is known is written, what is unknown leaves no trace.

Run: python -m pytest tests/test_cards.py
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from babylm_vlm.hub import cards
from babylm_vlm.hub.cards import write_card

SHA256 = "0123456789abcdef" * 4
RESULTS = [
    {
        "task": "BLiMP",
        "split": "report",
        "accuracy": 0.7712,
        "interval": (0.76, 0.7834),
        "chance": 0.5,
        "items": 13400,
    },
    {
        "task": "Grounded pairs",
        "split": "report",
        "accuracy": 0.5,
        "interval": [0.48, 0.52],
        "chance": 0.5,
        "items": 2006,
    },
]
FACTS = {
    "title": "A tiny model",
    "repo_id": "someone/tiny",
    "license": "apache-2.0",
    "languages": ["en"],
    "parameters": 5_300_000,
    "architecture": {"layers": 4, "hidden_size": 256, "visual tokens": 1},
    "data": [
        {"name": "childes", "words": 1_234_567, "sentences": 200_000, "licence": "CC BY 4.0"},
        {"name": "scenes", "pictures": 1002, "captions": 60_012},
    ],
    "words_seen": 2_000_000,
    "epochs": 1.5,
    "training": {"learning_rate": 1e-3, "seed": 20261},
    "hardware": "2 CPU cores",
    "minutes": 12.5,
    "final_loss": 3.25,
    "versions": {"torch": "2.13.0"},
    "results": RESULTS,
    "limitations": ["It knows few words.", "It was trained once."],
}
MERGE = {
    "alpha": 0.7,
    "alpha_choice": "Chosen on the selection split.",
    "multimodal": "someone/multimodal",
    "language": "someone/language",
    "ancestor": "someone/ancestor",
    "parents": [{"role": "multimodal", "name": "someone/multimodal", "sha256": SHA256}],
    "merge_yaml": "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 0.7}\n",
}


def write(folder: Path, template: str, **facts) -> ModelCard:
    """Write a card and read it back as the Hub does."""
    folder.mkdir(exist_ok=True)
    write_card(folder, template, facts)
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize(
    ("template", "pipeline_tag", "tags"),
    [
        ("language", "text-generation", {"babylm", "babylm-vlm"}),
        ("multimodal", "image-text-to-text", {"babylm", "babylm-vlm", "vision-language"}),
        ("merged", "image-text-to-text", {"babylm", "babylm-vlm", "vision-language", "model-merging", "mergekit"}),
    ],
)
def test_metadata_survives_the_file(tmp_path, template, pipeline_tag, tags):
    metadata = write(tmp_path / "model", template, **FACTS).data.to_dict()
    assert metadata["language"] == ["en"]
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == pipeline_tag
    assert set(metadata["tags"]) == tags
    assert "base_model" not in metadata


def test_model_index_holds_every_result(tmp_path):
    card = write(tmp_path / "model", "multimodal", **FACTS)
    (index,) = card.data.to_dict()["model-index"]
    assert index["name"] == "A tiny model"
    assert [result["dataset"] for result in index["results"]] == [
        {"name": "BLiMP", "type": "blimp", "split": "report"},
        {"name": "Grounded pairs", "type": "grounded-pairs", "split": "report"},
    ]
    assert [result["metrics"] for result in index["results"]] == [
        [{"type": "accuracy", "value": 0.7712, "name": "Accuracy"}],
        [{"type": "accuracy", "value": 0.5, "name": "Accuracy"}],
    ]
    assert len(card.data.eval_results) == 2


def test_tables_show_what_happened(tmp_path):
    text = write(tmp_path / "model", "language", **FACTS).text
    assert "# A tiny model\n" in text
    assert "with 5,300,000 parameters" in text
    assert "| Data | Words | Sentences | Pictures | Captions | Licence |" in text
    assert "| childes | 1,234,567 | 200,000 |  |  | CC BY 4.0 |" in text
    assert "| scenes |  |  | 1,002 | 60,012 |  |" in text
    assert "| BLiMP | report | 77.1 | 76.0 to 78.3 | 50.0 | 13,400 |" in text
    assert "| words seen | 2,000,000 |\n| epochs | 1.5 |\n| learning rate | 0.001 |\n| seed | 20261 |" in text
    assert "| final training loss | 3.25 |\n| minutes | 12.5 |\n| hardware | 2 CPU cores |\n| torch | 2.13.0 |" in text
    assert "\n- It knows few words.\n- It was trained once.\n" in text


def test_merged_card_says_how_it_was_merged(tmp_path):
    card = write(tmp_path / "model", "merged", **FACTS, **MERGE)
    assert "**alpha = 0.7**, where 1 is multimodal and 0 is language-only" in card.text
    assert "Chosen on the selection split." in card.text
    assert f"| multimodal | someone/multimodal | {SHA256} |" in card.text
    (merge_yaml,) = re.findall(r"```yaml\n(.*?)```", card.text, flags=re.DOTALL)
    assert yaml.safe_load(merge_yaml) == yaml.safe_load(MERGE["merge_yaml"])
    metadata = card.data.to_dict()
    assert metadata["base_model"] == ["someone/multimodal", "someone/language"]
    assert metadata["base_model_relation"] == "merge"


def test_zero_is_a_fact(tmp_path):
    assert "**alpha = 0**" in write(tmp_path / "model", "merged", alpha=0).text


def test_local_parents_stay_out_of_the_metadata(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/multimodal").mkdir(parents=True)
    parents = {"multimodal": "runs/multimodal", "language": "someone/language"}
    card = write(tmp_path / "runs" / "merged", "merged", **parents)
    assert "Multimodal parent: `runs/multimodal`" in card.text
    assert "base_model" not in card.data.to_dict()
    assert "base_model_relation" not in card.data.to_dict()

    card = write(tmp_path / "runs" / "language", "language", base_model="../ancestor")
    assert "It continues from the weights of `../ancestor`." in card.text
    assert "base_model" not in card.data.to_dict()


@pytest.mark.parametrize("template", list(cards.TEMPLATES))
@pytest.mark.parametrize("left_out", sorted(cards.FACTS))
def test_a_missing_fact_leaves_no_trace(tmp_path, template, left_out):
    known = {name: value for name, value in (FACTS | MERGE).items() if name != left_out}
    assert_no_traces(write(tmp_path / "model", template, **known))
    unknown = {left_out: None}
    assert (
        write(tmp_path / "model", template, **known, **unknown).content
        == write(tmp_path / "model", template, **known).content
    )


@pytest.mark.parametrize("template", list(cards.TEMPLATES))
def test_a_card_without_facts_is_whole(tmp_path, template):
    card = write(
        tmp_path / "model", template, data=[], results=[], training={}, license="", parents=[{}], limitations=None
    )
    assert_no_traces(card)
    assert card.text.strip().startswith(cards.MARK + f"\n\n# {template.capitalize()} model\n")
    headings = re.findall(r"^## (.+)$", card.text, flags=re.MULTILINE)
    assert headings == (["Merge"] if template == "merged" else []) + ["Use", "Citation"]


def assert_no_traces(card: ModelCard) -> None:
    """No heading without content, no value that is not one, no gap where a paragraph was."""
    outside_code = re.sub(r"```.*?```", "CODE", card.text, flags=re.DOTALL)
    assert not re.search(r"\b(None|nan|null|Undefined)\b", card.content)
    assert "{{" not in card.content and "{%" not in card.content
    assert "\n\n\n" not in outside_code
    assert not re.search(r"^#+ [^\n]+\n+(#|\Z)", outside_code, flags=re.MULTILINE)


def test_special_characters_stay_as_they_are(tmp_path):
    title = 'Kočka: "a | b" # {{ 7 * 7 }} \\ ---'
    card = write(
        tmp_path / "model",
        "merged",
        title=title,
        data=[{"name": "speech | books\nand more", "words": 1}],
        limitations=["It says:\n\n# nothing"],
        results=[{"task": "Kočka: č", "accuracy": 1.0}],
        parents=[{"role": "a|b", "name": "{% if %}"}],
    )
    assert f"\n# {title}\n" in card.text
    assert card.data.to_dict()["model-index"][0]["name"] == title
    assert "| speech \\| books and more | 1 |" in card.text
    assert "\n- It says: # nothing\n" in card.text
    assert "| a\\|b | {% if %} |" in card.text


def test_the_code_of_a_language_card_runs(tmp_path, language_checkpoint):
    said = run_code(shutil.copytree(language_checkpoint, tmp_path / "model"), "language")
    assert said.startswith("the cat")


@pytest.mark.parametrize("template", ["multimodal", "merged"])
def test_the_code_of_a_multimodal_card_runs(tmp_path, multimodal_checkpoint, template):
    said = run_code(shutil.copytree(multimodal_checkpoint, tmp_path / "model"), template)
    assert said.startswith("a")
    assert "<image>" not in said


def run_code(folder: Path, template: str) -> str:
    """What the card's own code prints, run inside the folder, without the package, beside a picture."""
    write_card(folder, template, {})
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    Image.new("RGB", (40, 30), "red").save(folder / "picture.png")
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_code_names_the_repository(tmp_path):
    assert '\npath = "someone/tiny"\n' in write(tmp_path / "model", "merged", repo_id="someone/tiny").text


def test_a_handwritten_readme_is_kept(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("my own words", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"README\.md was not generated"):
        write_card(tmp_path, "language", {})
    assert readme.read_text(encoding="utf-8") == "my own words"
    write_card(tmp_path, "language", {}, overwrite=True)
    write_card(tmp_path, "language", {"title": "again"})
    assert "# again" in readme.read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", cards.FACTS_FILE}


@pytest.mark.parametrize(
    ("template", "facts", "message"),
    [
        ("poster", {}, "no model card template 'poster'; choose one of language, multimodal, merged"),
        ("language", {"licence": "mit"}, "Unknown model card facts licence; known are"),
        ("merged", {"alpha": 70}, "The alpha is 70, but must be a fraction"),
        ("language", {"results": [{"task": "BLiMP", "accuracy": 77.1}]}, "The accuracy of BLiMP is 77.1"),
        ("language", {"results": [{"task": "BLiMP", "accuracy": float("nan")}]}, "The accuracy of BLiMP is nan"),
        ("language", {"results": [{"task": "BLiMP", "interval": [0.1, 80]}]}, "The interval of BLiMP is 80"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(tmp_path, template, facts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        write_card(tmp_path, template, facts)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        write_card(tmp_path / "nowhere", "language", {})


def test_the_card_cites_what_the_repository_cites():
    citation = yaml.safe_load((Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["preferred-citation"]
    assert f"title     = {{{paper['title']}}}" in cards.CITATION
    assert paper["url"] in cards.CITATION
    assert paper["identifiers"][0]["value"] in cards.CITATION
    for author in paper["authors"]:
        assert author["given-names"] in cards.CITATION
