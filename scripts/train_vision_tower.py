"""Train a small vision tower (a DINOv2-shaped transformer) on pictures whose contents are listed.

    python scripts/train_vision_tower.py data/captions --output-dir data/vision_tower [--epochs 30] [--minutes 12]

IMAGEFOLDER is a folder of pictures with a metadata.jsonl whose rows have "file_name" and "facts", a list of strings
that are true of the picture ("cat", "cat@left", "red heart"). The tower learns to say which facts hold: one linear
layer reads them off the mean of the patch tokens of its last hidden state, which is what a vision-language model
with one visual token and `vision_feature_layer=-1` will read. (A `Dinov2Model` has one more layer norm between that
state and `last_hidden_state`; the linear layer is trained without it.) Pictures are shifted by up to `--shift`
pixels at random. A fifteenth of the pictures is kept aside to measure the result.

The tower is saved in fp16 with its image processor and a README of how it was trained: a checkpoint that
`AutoModel` and `AutoImageProcessor` read. The linear layer is thrown away. Nothing else is read: facts seen in
fewer than `--min-count` training pictures are left out.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, pad
from tqdm import tqdm
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

from babylm_vlm.training.recipe import bf16_is_fast

MEAN = STD = [0.5, 0.5, 0.5]


def read_facts(folder: Path) -> dict[str, list[str]]:
    """{file name: facts} of an imagefolder, in order; several rows of one picture have the same facts."""
    metadata = folder / "metadata.jsonl"
    if not metadata.exists():
        raise FileNotFoundError(f"{metadata} is missing: give a folder of pictures with a metadata.jsonl.")
    facts = {}
    for line in metadata.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "facts" not in row:
            raise ValueError(f'{metadata} has a row without "facts": list what is true of every picture.')
        facts[row["file_name"]] = row["facts"]
    return facts


def load_pictures(folder: Path, names: list[str], size: int) -> Tensor:
    """All pictures, squashed to `size` by `size`, as uint8 of shape (N, 3, size, size)."""
    pictures = torch.empty(len(names), 3, size, size, dtype=torch.uint8)
    for i, name in enumerate(tqdm(names, desc="reading pictures", unit="picture")):
        with Image.open(folder / name) as picture:
            picture = picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        pictures[i] = (
            torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1)
        )
    return pictures


def fact_targets(facts: list[list[str]], vocabulary: list[str]) -> Tensor:
    """1 where a fact holds: bool of shape (N, vocabulary)."""
    index = {fact: i for i, fact in enumerate(vocabulary)}
    targets = torch.zeros(len(facts), len(vocabulary), dtype=torch.bool)
    for row, present in enumerate(facts):
        targets[row, [index[fact] for fact in present if fact in index]] = True
    return targets


def pooled(tower: Dinov2Model, pixels: Tensor) -> Tensor:
    """Mean of the patch tokens of the last hidden state (before the final norm): (N, 3, H, W) to (N, hidden)."""
    return tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:].mean(1)


def shifted(pictures: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Every picture moved by its own random offset of at most `shift` pixels, the edge repeated."""
    if shift == 0:
        return pictures
    size = pictures.shape[-1]
    padded = pad(pictures.float(), [shift] * 4, mode="replicate")
    offsets = torch.randint(0, 2 * shift + 1, (len(pictures), 2), generator=generator).tolist()
    return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(padded, offsets, strict=True)])


def normalised(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1.0


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up over the first twentieth, then a cosine down to a fiftieth of `peak`."""
    if progress < 0.05:
        return peak * progress / 0.05
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - 0.05) / 0.95))))


def train(tower: Dinov2Model, head: nn.Linear, pictures: Tensor, targets: Tensor, options: argparse.Namespace) -> int:
    """Binary cross-entropy on the facts until the epochs or the minutes are used up; returns the updates made.

    The linear layer learns ten times as fast as the tower.
    """
    generator = torch.Generator().manual_seed(options.seed)
    decayed = [p for p in tower.parameters() if p.ndim > 1]
    plain = [p for p in tower.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": 0.05, "peak": options.learning_rate},
        {"params": plain, "weight_decay": 0.0, "peak": options.learning_rate},
        {"params": list(head.parameters()), "weight_decay": 0.0, "peak": 10 * options.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    updates, total = 0, options.epochs * (len(pictures) // options.batch_size)
    start = time.monotonic()
    tower.train()
    with tqdm(total=total, desc="training the tower", unit="update") as bar:
        while updates < total:
            order = torch.randperm(len(pictures), generator=generator)
            for batch in order[: len(order) // options.batch_size * options.batch_size].split(options.batch_size):
                progress = max(updates / total, (time.monotonic() - start) / (60 * options.minutes))
                if progress >= 1:
                    return updates
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(progress, group["peak"])
                pixels = normalised(shifted(pictures[batch].to(tower.device), options.shift, generator))
                with torch.autocast(tower.device.type, torch.bfloat16, enabled=bf16_is_fast()):
                    features = pooled(tower, pixels)
                logits = head(features.float())
                true = targets[batch].to(tower.device).float()
                loss = binary_cross_entropy_with_logits(logits, true, reduction="none").sum(1).mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
                optimizer.step()
                updates += 1
                bar.update()
                if updates % 20 == 0:
                    bar.set_postfix(loss=f"{loss.item():.2f}")
    return updates


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Area under the precision-recall curve of one fact: scores (N,), truth (N,) bool."""
    truth = truth[scores.argsort(descending=True)].double()
    precision = truth.cumsum(0) / torch.arange(1, len(truth) + 1)
    return float((precision * truth).sum() / truth.sum())


@torch.no_grad()
def measure(tower: Dinov2Model, head: nn.Linear, pictures: Tensor, targets: Tensor) -> dict[str, float]:
    """Mean average precision over the facts that occur; precision and recall of saying "true" above one half."""
    tower.eval()
    logits = torch.cat([head(pooled(tower, normalised(batch).to(tower.device))).cpu() for batch in pictures.split(64)])
    occurring = targets.any(0).nonzero().flatten().tolist()
    said, true = logits > 0, targets
    return {
        "mean_average_precision": sum(average_precision(logits[:, i], true[:, i]) for i in occurring) / len(occurring),
        "precision": float((said & true).sum() / said.sum().clamp(min=1)),
        "recall": float((said & true).sum() / true.sum()),
    }


README = """# A small vision tower

A `Dinov2Model` with {parameters:,} parameters ({layers} layers, hidden size {hidden}, {size}x{size} pixels, patches of
{patch}). It was **trained from scratch and supervised**: one linear layer on the mean of the patch tokens of its last
hidden state told which of {facts} facts ({examples}, ...) hold in a picture.
It is no self-supervised DINOv2 and knows nothing but pictures of this kind.

- pictures: {pictures:,} training scenes; the held-out scenes of the demo or benchmark were not among them
- training: {updates:,} updates of {batch} pictures ({epochs:.0f} passes), AdamW at {learning_rate:g}, shifts of up
  to {shift} pixels, seed {seed}, {minutes:.0f} minutes on a {device}
- on {held_out} training-scene pictures kept aside: mean average precision {mean_average_precision:.3f}, precision
  {precision:.3f} and recall {recall:.3f} at probability 0.5

Read it as `AutoModel.from_pretrained(folder)` with `output_hidden_states=True`, `hidden_states[-1][:, 1:]`.
Made by `scripts/train_vision_tower.py`.
"""


def save(tower: Dinov2Model, folder: Path, readme: str, overwrite: bool) -> None:
    """Tower (fp16), image processor and README, written beside `folder` and moved into place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    size = tower.config.image_size
    processor = BitImageProcessorPil(
        do_resize=True,
        size={"height": size, "width": size},
        resample=Image.Resampling.BICUBIC,
        do_center_crop=False,
        do_rescale=True,
        do_normalize=True,
        image_mean=MEAN,
        image_std=STD,
        do_convert_rgb=True,
    )
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    tower.half().save_pretrained(temporary)
    processor.save_pretrained(temporary)
    (temporary / "README.md").write_text(readme, encoding="utf-8")
    temporary.chmod(0o755)
    (temporary / "model.safetensors").chmod(0o644)
    if folder.exists() and overwrite:
        shutil.rmtree(folder)
    temporary.rename(folder)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("imagefolder", type=Path)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--patch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time, if it comes first")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--shift", type=int, default=2, help="largest random shift in pixels")
    parser.add_argument("--min-count", type=int, default=5, help="pictures a fact needs to be learned")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    if options.output_dir.exists() and not options.overwrite:
        parser.error(f"{options.output_dir} is already there: give another folder or --overwrite.")
    return options


def new_tower(options: argparse.Namespace) -> Dinov2Model:
    """A tower with random weights."""
    config = Dinov2Config(
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        mlp_ratio=4,
        image_size=options.image_size,
        patch_size=options.patch_size,
        initializer_range=options.hidden_size**-0.5,
    )
    tower = Dinov2Model(config)
    tower.set_attn_implementation("eager")  # on a CPU the backward pass of the fused attention is several times slower
    return tower


def frequent_facts(facts: list[list[str]], min_count: int) -> list[str]:
    """Facts that hold in at least so many pictures, in alphabetical order."""
    counts = Counter(fact for present in facts for fact in present)
    return sorted(fact for fact, count in counts.items() if count >= min_count)


def main() -> None:
    options = read_options()
    torch.manual_seed(options.seed)
    facts = read_facts(options.imagefolder)
    names = sorted(facts)
    names = [names[i] for i in torch.randperm(len(names)).tolist()]
    held_out = max(1, len(names) // 15)
    vocabulary = frequent_facts([facts[name] for name in names[held_out:]], options.min_count)
    pictures = load_pictures(options.imagefolder, names, options.image_size)
    targets = fact_targets([facts[name] for name in names], vocabulary)

    tower, head = new_tower(options), nn.Linear(options.hidden_size, len(vocabulary))
    with torch.no_grad():  # begin with how often each fact holds
        head.bias.copy_(targets[held_out:].float().mean(0).logit())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tower, head = tower.to(device), head.to(device)
    start = time.monotonic()
    updates = train(tower, head, pictures[held_out:], targets[held_out:], options)
    numbers = measure(tower, head, pictures[:held_out], targets[:held_out])
    readme = README.format(
        parameters=tower.num_parameters(),
        layers=options.layers,
        hidden=options.hidden_size,
        size=options.image_size,
        patch=options.patch_size,
        facts=len(vocabulary),
        examples=", ".join(f'"{fact}"' for fact in vocabulary[:3]),
        pictures=len(names) - held_out,
        held_out=held_out,
        updates=updates,
        batch=options.batch_size,
        epochs=updates * options.batch_size / (len(names) - held_out),
        learning_rate=options.learning_rate,
        shift=options.shift,
        seed=options.seed,
        minutes=(time.monotonic() - start) / 60,
        device="GPU" if device == "cuda" else "CPU",
        **numbers,
    )
    save(tower, options.output_dir, readme, options.overwrite)
    print(json.dumps({"updates": updates, "facts": len(vocabulary), **numbers}, indent=2))


if __name__ == "__main__":
    main()
