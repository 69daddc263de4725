"""Publish pooled features as a data set, which `datasets.load_dataset` and a recipe's `features` read."""

from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, HfApi

from ..data.features import feature_files, read_file
from .cards import template_path
from .facts import public_name
from .push import Revision, make_repository, said_clearly, send


def push_features(folder: Path, description: dict[str, str], captions: str, tower: str, repo_id: str) -> list[dict]:
    """Publish a folder of features with a card, in one commit; none where nothing changed.

    Args:
        folder, description: what `store_features` left and returned.
        captions, tower: the caption set and the vision tower by the names they were called by.
        repo_id: "user/name" of the data set.

    Returns:
        One row `{repo_id, branch, commit, url, changed, tag}`, as `push`.

    Raises:
        OSError: the Hub cannot be reached or refuses; repeat the command to complete it.
    """
    api = HfApi()
    files = feature_files(folder, int(description["pictures"]))
    with said_clearly(repo_id):
        make_repository(api, repo_id, False, repo_type="dataset")
        licence = None if Path(captions).exists() else (api.dataset_info(captions).card_data or {}).get("license")
        card = features_card(repo_id, description, captions, tower, licence, read_file(files[0]).shape)
        content: dict[str, Path | bytes] = {file.name: file for file in files} | {"README.md": card}
        return [send(api, repo_id, Revision("main", content, []), repo_type="dataset")]


def features_card(
    repo_id: str, description: dict[str, str], captions: str, tower: str, licence: str | None, shape: tuple[int, ...]
) -> bytes:
    """The data set's card; `shape` is that of the features, `licence` that of the pictures if it is known."""
    local = description["vision_tower"].startswith("sha256:")
    card = DatasetCard.from_template(
        DatasetCardData(license=licence, tags=["babylm", "babylm-vlm", "image-features"]),
        template_path=str(template_path("features")),
        title=repo_id.split("/")[1],
        repo_id=repo_id,
        pictures=int(description["pictures"]),
        tokens=shape[1],
        width=shape[2],
        source=public_name(captions),
        tower=public_name(tower),
        revision=None if local else description["vision_tower_revision"],
        sha256=description["vision_tower"].removeprefix("sha256:") if local else None,
        layer=description["vision_feature_layer"],
        grid=description["vision_grid"],
    )
    return (card.content.rstrip() + "\n").encode()
