"""One side of check_transformers_versions.sh: compute a checkpoint's reference outputs, or compare with them.

- `--role reference` uses the installed package's classes, `--role check` the checkpoint's remote code.
- It runs in environments that hold nothing but torch, transformers, pillow and safetensors.
- The outputs are logits of fixed sentences, without and with a picture, and the greedy continuations, in one file.
"""

import argparse
import sys
from pathlib import Path

import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

# Of different lengths, so that the batch is padded.
SENTENCES = ["a cat", "the dog is next to a tree", "the keys to the old cabinet are on the table"]
TOLERANCE = 1e-5


def main() -> int:
    """Exit status: 0 when the outputs agree (or were written), 1 when they differ or the checkpoint does not load."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--role", choices=["reference", "check"], required=True)
    parser.add_argument("--checkpoint", required=True, help="folder or Hub id")
    parser.add_argument("--reference", type=Path, required=True, help="safetensors file, written or read")
    parser.add_argument("--picture", type=Path, help="default: a synthetic one")
    arguments = parser.parse_args()
    if arguments.role == "reference":
        if not Path(arguments.checkpoint).is_dir():
            print(f"There is no checkpoint folder {arguments.checkpoint}.", file=sys.stderr)
            return 1
        import babylm_vlm.model  # noqa: F401  (registers its classes, which then come before remote code)

    picture = Image.open(arguments.picture).convert("RGB") if arguments.picture else synthetic_picture()
    logits, texts = outputs(arguments.checkpoint, picture)
    if arguments.role == "reference":
        save_file(logits, arguments.reference, metadata=texts)
        print(f"{'transformers':14}{'outputs':10}{'max |d logit|':>15}  {'text':8}result")
        return 0
    return compare(logits, texts, arguments.reference)


def synthetic_picture() -> Image.Image:
    """A 96 x 64 picture of two colour ramps and a square: the same bytes everywhere."""
    picture = Image.new("RGB", (96, 64))
    picture.putdata([(x * 255 // 95, y * 255 // 63, 128) for y in range(64) for x in range(96)])
    picture.paste((250, 30, 40), (20, 10, 50, 40))
    return picture


@torch.inference_mode()
def outputs(checkpoint: str, picture: Image.Image) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Logits (real tokens of all sentences, vocabulary) and greedy continuations, by "text" and "picture"."""
    torch.set_num_threads(1)
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True, dtype=torch.float32).eval()
    sees = model.config.model_type == "babylm_vlm"
    loader = AutoProcessor if sees else AutoTokenizer
    processor = loader.from_pretrained(checkpoint, trust_remote_code=True)
    form = {"padding": True, "padding_side": "left", "return_tensors": "pt"}  # new tokens follow the text directly
    batches = {"text": processor(text=SENTENCES, **form)}
    if sees:
        batches["picture"] = processor(text=SENTENCES, images=[picture] * len(SENTENCES), **form)
    logits, texts = {}, {}
    for name, batch in batches.items():
        logits[name] = model(**batch).logits[batch["attention_mask"].bool()].contiguous()
        generated = model.generate(**batch, max_new_tokens=12, do_sample=False)
        texts[name] = "\n".join(processor.batch_decode(generated, skip_special_tokens=True))
    return logits, texts


def compare(logits: dict[str, torch.Tensor], texts: dict[str, str], reference: Path) -> int:
    """Print one row per kind of output; 1 when any of them differs."""
    failed = False
    with safe_open(reference, framework="pt") as expected:
        for name in expected.keys():  # noqa: SIM118  (not a dict: it cannot be iterated)
            wanted = expected.get_tensor(name)
            same_shape = name in logits and logits[name].shape == wanted.shape
            difference = (logits[name] - wanted).abs().max().item() if same_shape else float("inf")
            same_text = texts.get(name) == expected.metadata()[name]
            agrees = difference <= TOLERANCE and same_text
            failed |= not agrees
            row = f"{transformers.__version__:14}{name:10}{difference:15.1e}  {'same' if same_text else 'differs':8}"
            print(row + ("ok" if agrees else "FAILED"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
