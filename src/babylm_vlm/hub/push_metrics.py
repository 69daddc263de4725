"""Publish the metrics of `babylm_vlm.metrics` as Spaces, from which `evaluate.load("user/NAME")` takes them."""

from pathlib import Path

from huggingface_hub import HfApi

from .push import Revision, check_repo_id, make_repository, said_clearly, send

METRICS = Path(__file__).resolve().parents[1] / "metrics"


def push_metrics(user: str, folder: Path = METRICS, private: bool = False) -> list[dict]:
    """Publish every metric of a folder, one commit each, none where nothing changed.

    Args:
        user: user or organisation on the Hub.
        folder: holds a folder NAME for every metric, with NAME.py, README.md, app.py and requirements.txt.
        private: make new Spaces private ones.

    Returns:
        For each metric `{repo_id, branch, commit, url, changed, tag}`, as `push`.

    Raises:
        FileNotFoundError: the folder holds no metric, or one lacks a file.
        OSError: the Hub cannot be reached or refuses.
    """
    spaces = read_metrics(user, folder)
    api = HfApi()
    done = []
    for repo_id, revision in spaces.items():
        with said_clearly(repo_id):
            make_repository(api, repo_id, private, repo_type="space", space_sdk="gradio")
            done.append(send(api, repo_id, revision, repo_type="space"))
    return done


def read_metrics(user: str, folder: Path) -> dict[str, Revision]:
    """What each Space is to hold, by its name; errors as `push_metrics`."""
    names = sorted(path.stem for path in Path(folder).glob("*/*.py") if path.stem == path.parent.name)
    if not names:
        raise FileNotFoundError(f"{folder} holds no metric: a folder NAME with NAME.py in it.")
    spaces = {}
    for name in names:
        files = {file: Path(folder, name, file) for file in (f"{name}.py", "README.md", "app.py", "requirements.txt")}
        for path in files.values():
            if not path.is_file():
                raise FileNotFoundError(f"The metric {name} lacks {path}, which its Space needs.")
        check_repo_id(f"{user}/{name}")
        spaces[f"{user}/{name}"] = Revision("main", files, [])
    return spaces
