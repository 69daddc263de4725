"""Pooled vision features: the frozen tower sees each picture once.

Stored features are a folder of Arrow files of `PICTURES_A_FILE` pictures each, with the columns `picture` (its name)
and `features`; `datasets.load_dataset` reads them too, here or on the Hub. Every file appears whole and says in its
metadata what made it, so that an interrupted run goes on with the files that are missing, and a model with another
tower, layer or grid refuses them. They are read through a memory map: a picture costs memory when it is used.
"""

import hashlib
import json
import math
import os
import shutil
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from datasets import Features as Columns
from datasets import List, Value
from huggingface_hub import snapshot_download
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17: at the top only with torchvision

from ..files import named_source, sha256
from ..model import BabylmVlmConfig, BabylmVlmModel
from .captions import CaptionedPictures, open_picture, read_captions
from .organisers import ArrayFeatures
from .pictures import HubPicture

PICTURES_A_FILE = 1024
READERS = min(8, os.cpu_count() or 1)
"""Threads that read pictures: opening and scaling them takes longer than a GPU takes to look at them."""

READ_TOGETHER = 8
"""Pictures that a thread reads at once."""
DESCRIPTION = b"babylm_vlm"  # key in a file's metadata
NO_DECODER = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


class StoredFeatures:
    """Pooled features on disk, read as an fp32 tensor (pictures, g*g, vision_hidden_size) would be.

    Args:
        source: folder of `store_features`, or a data set on the Hub that was made of one: user/name[@revision].
        expected: what they must be, from `describe_features`.

    Raises:
        FileNotFoundError: there are no features, or not all.
        ValueError: they are of other pictures, or of another tower, layer or grid.
    """

    def __init__(self, source: str | Path, expected: dict[str, str]):
        folder = local_features(str(source))
        files = feature_files(folder, int(expected["pictures"]))
        check_description(folder, expected)
        missing = [file for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is missing: make it with the command `babylm-vlm features`.")
        self.files = [read_file(file) for file in files]
        self.shape = torch.Size([int(expected["pictures"]), *self.files[0].shape[1:]])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> torch.Tensor:
        """Features of a picture (g*g, vision_hidden_size)."""
        return torch.tensor(self.files[index // PICTURES_A_FILE][index % PICTURES_A_FILE])


Features = torch.Tensor | StoredFeatures | ArrayFeatures


def picture_features(
    model: BabylmVlmModel,
    image_processor,
    pictures: Sequence[Path | HubPicture | Image.Image],
    batch_size: int = 64,
) -> torch.Tensor:
    """Pooled features (pictures, g*g, vision_hidden_size) in the model's dtype on the CPU, with a progress bar.

    Raises:
        FileNotFoundError, ValueError: a picture is missing or cannot be read.
    """
    size = min(READ_TOGETHER, batch_size)
    features = []
    bar = tqdm(total=len(pictures), desc="pooled features", unit="picture", leave=False)
    with bar, closing(_prepared(pictures, image_processor, size, 2 * batch_size // size)) as prepared:
        while batch := list(islice(prepared, batch_size // size)):
            pixels = torch.cat(batch)
            features.append(model.pooled_features(pixels).cpu())
            bar.update(len(pixels))
    return torch.cat(features)


def _prepared(
    pictures: Sequence[Path | HubPicture | Image.Image], image_processor, size: int, most: int
) -> Generator[torch.Tensor, None, None]:
    """Pixels (size, 3, H, W), part by part; `most` parts are read and scaled while the tower looks at those before."""

    def prepare(start: int) -> torch.Tensor:
        part = [open_picture(pictures[place]) for place in range(start, min(start + size, len(pictures)))]
        return image_processor(part, return_tensors="pt")["pixel_values"]

    pool, ahead = ThreadPoolExecutor(READERS), deque()
    try:
        for start in range(0, len(pictures), size):
            ahead.append(pool.submit(prepare, start))
            if len(ahead) >= most:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def store_features(
    captions: str,
    output: Path,
    vision_tower: str,
    *,
    revision: str | None = None,
    layer: int = -2,
    grid: int = 1,
    image_column: str = "image",
    caption_column: str = "text",
    batch_size: int = 64,
    overwrite: bool = False,
) -> dict[str, str]:
    """Run a frozen tower once over the pictures of a caption set, in bf16 on a GPU, and store the features in fp32.

    What an earlier, interrupted call has stored is kept. Under `accelerate launch` the files are shared out.

    Returns:
        The description that the files carry.

    Raises:
        FileExistsError: the folder holds something else, and `overwrite` is off.
        FileNotFoundError, ValueError: the tower or a picture is not there or cannot be read.
    """
    state = PartialState()
    found = read_captions(captions, image_column, caption_column)
    if found.features is not None:
        raise ValueError(f"{captions} holds features, and no pictures that a tower could see: train with it as it is.")
    model, image_processor = load_eyes(vision_tower, revision, layer, grid)
    model.to(state.device, torch.bfloat16 if state.device.type == "cuda" else torch.float32)
    description = describe_features(model, found)
    if state.is_main_process:
        if overwrite and any(output.glob("features-*.arrow")):
            shutil.rmtree(output)
        if output.exists() and any(output.iterdir()):
            check_description(output, description)
        output.mkdir(parents=True, exist_ok=True)
    state.wait_for_everyone()
    files = feature_files(output, len(found.pictures))
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    state.wait_for_everyone()
    with state.split_between_processes(missing) as mine:
        for number in tqdm(mine, desc="pooled features", unit="file", disable=not state.is_main_process):
            first = number * PICTURES_A_FILE
            pictures = found.pictures[first : first + PICTURES_A_FILE]
            draft = files[number].with_suffix(f".{os.getpid()}.part")
            features = picture_features(model, image_processor, pictures, batch_size)
            names = found.names[first : first + PICTURES_A_FILE]
            write_file(draft, names, features.float().numpy(), description)
            os.replace(draft, files[number])
    state.wait_for_everyone()
    return description


def local_features(source: str) -> Path:
    """The folder of stored features; of a data set on the Hub (user/name[@revision]) that of its download.

    Raises:
        FileNotFoundError: there is no such folder here, and the Hub does not give such a data set.
    """
    if Path(source).exists() or source.startswith((".", "/")):
        return Path(source)
    repo_id, _, revision = source.partition("@")
    with named_source(source, "'features', or make them with `babylm-vlm features`", "folder or data set"):
        return Path(
            snapshot_download(repo_id, repo_type="dataset", revision=revision or None, allow_patterns="*.arrow")
        )


def write_file(path: Path, names: Sequence[str], features: np.ndarray, description: dict[str, str]) -> None:
    """Write an Arrow file of the pictures' names and features (pictures, g*g, vision_hidden_size)."""
    _, tokens, width = features.shape
    columns = Columns({"picture": Value("string"), "features": List(List(Value("float32"), width), tokens)})
    schema = columns.arrow_schema  # with the metadata that `datasets` reads
    schema = schema.with_metadata(schema.metadata | {DESCRIPTION: json.dumps(description).encode()})
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), width)
    table = pa.table([pa.array(names), pa.FixedSizeListArray.from_arrays(vectors, tokens)], schema)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        stream.write_table(table)


def read_file(path: Path) -> np.ndarray:
    """Features (pictures, g*g, vision_hidden_size) of an Arrow file, through a memory map."""
    with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
        features = stream.read_all().column("features").combine_chunks()
    tokens, width = features.type.list_size, features.type.value_type.list_size
    return features.flatten().flatten().to_numpy().reshape(-1, tokens, width)


def load_eyes(
    vision_tower: str, revision: str | None, layer: int, grid: int
) -> tuple[BabylmVlmModel, AutoImageProcessor]:
    """A model of which only the eyes are of use, and the tower's image processor."""
    tower = {"pretrained_model_name_or_path": vision_tower, "revision": revision}
    with named_source(vision_tower, "--vision-tower"):
        width = AutoConfig.from_pretrained(**tower).hidden_size
        image_processor = AutoImageProcessor.from_pretrained(**tower)
    eyes = {"vision_tower": vision_tower, "vision_tower_revision": revision, "vision_hidden_size": width}
    config = BabylmVlmConfig(**eyes, vision_feature_layer=layer, vision_grid=grid, **NO_DECODER)
    return BabylmVlmModel(config).eval(), image_processor


def describe_features(model: BabylmVlmModel, found: CaptionedPictures) -> dict[str, str]:
    """What features are: their tower (of a local one the weights' hash), revision, layer, grid and pictures."""
    config, folder = model.config, model.local_tower() or model.downloaded_tower()
    weights = [] if folder is None else [sha256(file) for file in sorted(folder.glob("*.safetensors"))]
    return {
        "vision_tower": config.vision_tower if folder is None else f"sha256:{'+'.join(weights)}",
        "vision_tower_revision": config.vision_tower_revision or "main",
        "vision_feature_layer": str(config.vision_feature_layer),
        "vision_grid": str(config.vision_grid),
        "pictures": str(len(found.pictures)),
        "pictures_sha256": hashlib.sha256(json.dumps(found.names).encode()).hexdigest(),
    }


def feature_files(folder: Path, pictures: int) -> list[Path]:
    """The files that hold the features of so many pictures, in order."""
    count = math.ceil(pictures / PICTURES_A_FILE)
    return [folder / f"features-{number:05}.arrow" for number in range(count)]


def check_description(folder: Path, expected: dict[str, str]) -> None:
    """Raise unless every file of features in a folder is what it should be.

    Raises:
        FileNotFoundError: the folder has no features.
        ValueError: a file is damaged, or of another tower, layer, grid or caption set.
    """
    files = sorted(folder.glob("features-*.arrow"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no features: make them with the command `babylm-vlm features`.")
    for file in files:
        try:
            with pa.ipc.open_stream(pa.memory_map(str(file))) as stream:
                description = json.loads((stream.schema.metadata or {}).get(DESCRIPTION, "{}"))
                stream.read_all()  # of a memory map: it only finds out whether the file is whole
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} is damaged ({error}): remove it and make it again.") from error
        for key, value in expected.items():
            if description.get(key) != value:
                raise ValueError(
                    f"The features in {folder} are of {key} {description.get(key)}, but {value} is needed: make them "
                    "again with the command `babylm-vlm features`, in a new folder or with --overwrite."
                )
