"""Evaluation data of the study: a selection half and a test half, and the captions as plain text.

    python scripts/study_data.py FULL_EVAL TEXT SCENES PICTURES DEVBENCH --output-dir runs/study/data [--limit 60]

FULL_EVAL is the BabyLM challenge's folder of that name, TEXT one with dev.*.txt.gz, SCENES what
scripts/abstract_scenes_to_imagefolder.py wrote, PICTURES the captioned pictures to train on, and DEVBENCH a folder
with lex-viz_vocab. What is written:

  selection/{blimp_filtered, grounded}    even items: alpha, and the paradigms that a model can do, are chosen on these
  test/{blimp_filtered, grounded}         odd items: the choices are reported on these
  extra/TASK                              tests on which nothing is chosen, whole
  extra/text                              sentences of the text's dev files, each against its words in another order
  captions.txt                            the training captions, one a line, without their pictures

Both rows of a mirrored pair are in the same half. A picture may be in both halves, under other sentences. `--limit`
thins BLiMP, its supplement, entity tracking and WUG to so many items of a file, evenly spaced; all else stays whole.
"""

import argparse
import gzip
import json
import os
import random
import shutil
from pathlib import Path

from babylm_vlm.evaluation.rows import json_rows
from babylm_vlm.files import check_new_folder, new_folder

MARKER = "captions.txt"
EXTRA = ("supplement_filtered", "entity_tracking", "wug_adj_nominalization")
SENTENCES = 60  # of each dev file
LENGTHS = range(4, 31)  # their words


def thinned(rows: list, limit: int | None) -> list:
    """At most `limit` rows, evenly spaced."""
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]


def files_of(folder: Path) -> dict[str, list[dict]]:
    """Rows of each file in a folder, by file name without `.gz`."""
    files: dict[str, list[dict]] = {}
    for file, _, row in json_rows(folder):
        files.setdefault(file.name.removesuffix(".gz"), []).append(row)
    return files


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def with_picture(row: dict, pictures: Path, folder: Path) -> dict:
    """A row whose picture, a name inside `pictures`, is named relative to the final `folder`."""
    return row | {"image": os.path.relpath(pictures / row["image"], folder)}


def halves(full_eval: Path, grounded: Path, output: Path, final: Path, limit: int | None) -> None:
    """BLiMP and the grounded pairs, item by item and pair by pair in turn into both halves."""
    for number, half in enumerate(("selection", "test")):
        for name, rows in files_of(full_eval / "blimp_filtered").items():
            write_rows(output / half / "blimp_filtered" / name, thinned(rows, limit)[number::2])
        place = final / half / "grounded"
        for name, rows in files_of(grounded).items():
            mirrored = [rows[i : i + 2] for i in range(0, len(rows), 2)]
            chosen = [row for pair in mirrored[number::2] for row in pair]
            write_rows(output / half / "grounded" / name, [with_picture(row, grounded, place) for row in chosen])


def extra(full_eval: Path, heldout: Path, devbench: Path, output: Path, final: Path, limit: int | None) -> None:
    """Tests that are not cut in halves."""
    for task in EXTRA:
        for name, rows in files_of(full_eval / task).items():
            write_rows(output / "extra" / task / name, thinned(rows, limit))
    for name, rows in files_of(heldout).items():
        place = final / "extra" / "captions"
        write_rows(output / "extra" / "captions" / name, [with_picture(row, heldout, place) for row in rows])
    shutil.copytree(full_eval / "reading", output / "extra" / "reading")
    shutil.copytree(devbench / "lex-viz_vocab", output / "extra" / "lex-viz_vocab")


def text_pairs(text: Path) -> dict[str, list[dict]]:
    """Sentences of each dev file, evenly spaced, against their words in a random other order.

    Raises:
        FileNotFoundError: there is no dev file.
    """
    draw, pairs = random.Random(0), {}
    for file in sorted(text.glob("dev.*.txt.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            sentences = [line.strip() for line in lines if len(line.split()) in LENGTHS]
        name, rows = file.name.removesuffix(".txt.gz"), []
        for sentence in thinned([s for s in sentences if len(set(s.split())) > 1], SENTENCES):
            words = sentence.split()
            while (other := " ".join(draw.sample(words, len(words)))) == " ".join(words):
                pass
            rows.append({"sentence_good": sentence, "sentence_bad": other, "UID": name})
        pairs[f"{name}.jsonl"] = rows
    if not pairs:
        raise FileNotFoundError(f"There is no dev.*.txt.gz in {text}.")
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("full_eval", "text", "scenes", "pictures", "devbench"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="items of a file, both halves together; default: all")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    final = options.output_dir
    check_new_folder(final, options.overwrite, MARKER)
    with new_folder(final, options.overwrite, MARKER) as output:
        halves(options.full_eval, options.scenes / "test" / "grounded", output, final, options.limit)
        extra(options.full_eval, options.scenes / "test" / "captions", options.devbench, output, final, options.limit)
        for name, rows in text_pairs(options.text).items():
            write_rows(output / "extra" / "text" / name, rows)
        captions = [row["text"] for _, _, row in json_rows(options.pictures / "metadata.jsonl")]
        (output / MARKER).write_text("\n".join(captions) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
