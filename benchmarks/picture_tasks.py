"""Write VQA and Winoground files in the official layout from the demo's test pictures.

    python benchmarks/picture_tasks.py runs/demo/data/test evaluation_data/pictures

The real ones need pictures that are handed out on request. These have the same fields and the pictures beside them as
parquet, which the official pipeline reads with `--images_path`; so `official_parity.py` can compare the two on them.
An example of Winoground is a mirrored pair; a question of VQA has a picture's caption as its answer and those of other
pictures of the same kind as distractors.
"""

import argparse
import json
from itertools import groupby
from pathlib import Path

from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature

from babylm_vlm.evaluation import MinimalPair, read_pairs

DISTRACTORS = 7
QUESTION = "what do you see?"


def write_task(folder: Path, rows: list[dict], pictures: list[dict], split: str) -> None:
    """One file of items and one of pictures (columns of file names), as `datasets` finds it under a split's name."""
    folder.mkdir(parents=True)
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds = {key: ImageFeature() if "image" in key else Value("int64") for key in pictures[0]}
    encoded = [{k: {"bytes": v.read_bytes()} if isinstance(v, Path) else v for k, v in p.items()} for p in pictures]
    (folder / "images").mkdir()
    Dataset.from_list(encoded, features=Features(kinds)).to_parquet(folder / "images" / f"{split}.parquet")


def winoground(examples: list[list[MinimalPair]]) -> tuple[list[dict], list[dict]]:
    """Rows and pictures; an example's two rows have each other's captions."""
    rows, pictures = [], []
    for number, example in enumerate(examples):
        pictures.append({f"image_{side}": Path(pair.image) for side, pair in enumerate(example)})
        for side, pair in enumerate(example):
            tags = {"collapsed_tag": "Object", "tag": pair.uid, "secondary_tag": ""}
            place = {"image_idx": number, "image_key": f"image_{side}"}
            rows.append({"caption_0": pair.good, "caption_1": pair.bad} | place | tags)
    return rows, pictures


def vqa(pairs: list[MinimalPair]) -> tuple[list[dict], list[dict]]:
    """Rows and pictures; the distractors are the next other captions of the same kind."""
    rows, pictures = [], []
    for number, pair in enumerate(pairs):
        others = [other.good for other in pairs[number:] + pairs[:number] if other.uid == pair.uid]
        others = [caption for caption in dict.fromkeys(others) if caption != pair.good][:DISTRACTORS]
        rows.append({"question": QUESTION, "target_ans": pair.good, "distractors": others})
        rows[-1]["idx_in_hf_dataset"] = number
        pictures.append({"image": Path(pair.image)})
    return rows, pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a split of the demo's data, such as runs/demo/data/test")
    parser.add_argument("output", type=Path, help="a new folder")
    options = parser.parse_args()
    pairs = read_pairs(options.data / "grounded")
    examples = [list(rows) for _, rows in groupby(pairs, key=lambda pair: pair.pair)]
    write_task(options.output / "winoground_filtered", *winoground(examples), split="test")
    write_task(options.output / "vqa_filtered", *vqa(pairs), split="validation")


if __name__ == "__main__":
    main()
