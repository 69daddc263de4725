"""Take a picture of a model card as a browser shows it, such as docs/card.png.

    python scripts/render_card.py runs/demo docs/card.png --repo-id your-name/demo-babylm

The card is the one that `babylm-vlm push` would publish under that name. Chromium must be installed.
"""

import argparse
import html
import subprocess
import tempfile
from pathlib import Path

from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from babylm_vlm.hub.push import read_run

STYLE = """
body { font: 16px/1.5 "DejaVu Sans", sans-serif; max-width: 900px; margin: 30px auto; color: #1f2937; }
h1, h2 { border-bottom: 1px solid #e5e7eb; padding-bottom: 4px; }
table { border-collapse: collapse; margin: 12px 0; } th, td { border: 1px solid #d1d5db; padding: 4px 10px; }
td { overflow-wrap: anywhere; } td:first-child { overflow-wrap: normal; }
pre { background: #f3f4f6; padding: 12px; overflow-wrap: anywhere; white-space: pre-wrap; font-size: 13px; }
code { font-family: "DejaVu Sans Mono", monospace; font-size: 13px; }
.tag { display: inline-block; border: 1px solid #d1d5db; border-radius: 10px; padding: 0 9px; margin: 2px; }
"""


def page(card: ModelCard) -> str:
    """The card as HTML: its metadata as the Hub's tags, its text below."""
    metadata = card.data.to_dict()
    tags = [metadata["pipeline_tag"], metadata["library_name"], *metadata["tags"], *metadata.get("language", [])]
    tags += [f"base model: {parent}" for parent in metadata.get("base_model", [])]
    shown = "".join(f'<span class="tag">{html.escape(tag)}</span>' for tag in tags)
    text = MarkdownIt("commonmark").enable("table").render(card.text)
    return f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>{shown}{text}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="checkpoint, or a family of models, of which the merge is taken")
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--repo-id", required=True, help="the name under which it would be published")
    parser.add_argument("--height", type=int, default=2960, help="of the picture, in pixels")
    arguments = parser.parse_args()
    run = read_run(arguments.run, arguments.repo_id)
    readme = next(run[name][0] for name in (f"{arguments.repo_id}-merged", arguments.repo_id) if name in run)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "card.html")
        file.write_text(page(ModelCard(readme.files["README.md"].decode())), encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size=1000,{arguments.height}"]
        target = f"--screenshot={arguments.picture.absolute()}"
        subprocess.run(["chromium", *flags, target, file.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    main()
