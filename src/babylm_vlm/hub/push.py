"""Publish checkpoints on the Hub.

- What travels is a list of names (`TRAVELS`), not a list of exceptions: an optimizer's state, a log or an `.env` that
  happens to lie in the folder stays at home.
- Every revision is one commit, so nobody ever sees half a model. It is made with `create_commit`, because
  `upload_folder` cuts an upload into several commits where Xet storage is on (huggingface_hub 2.4).
- A checkpoint `chck_10M/` becomes the branch `chck_10M`. It begins at the repository's first, empty commit, so it
  holds that checkpoint alone; a tag of the branch's name and the weights' hash stays with these weights.
- Files that did not change are not sent again, and without a change there is no commit: a push that was cut off is
  simply repeated.
- The card is written anew with the repository's name, and absolute paths are cut out of JSON and YAML files, on their
  way; the folder on the disk stays as it is.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from ..files import named_source, sha256, weight_files, weights_sha256, words_seen
from .cards import FACTS_FILE, MARK, eval_results, render_card, result_rows

TRAVELS = (
    *("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*"),
    *("processor_config.json", "preprocessor_config.json"),
    *("configuration_*.py", "modeling_*.py", "processing_*.py"),
    *("README.md", "LICENSE*", "training_state.json", "mergekit_config.yml", "results.json", "paradigms.csv", "*.png"),
)
"""Names of the files of a checkpoint that are published, and of those of its folder `vision_tower/`."""

OF_THE_RUN = ("results.json", "*.png")
"""What a family's folder holds beside its models and is published with the merge."""

TOWER = "vision_tower"
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "features-*.arrow")
"""A model's or a data set's own files."""

OUTDATED = (*WEIGHTS, "results.json", "paradigms.csv", ".eval_results/*")
"""What would be wrong if it stayed in a repository beside newer weights."""

AS_THEY_ARE = ("tokenizer.json", "vocab.json", "*.index.json")
"""JSON files whose strings are tokens or tensors, never paths."""

SECRET = re.compile(r"hf_[A-Za-z0-9]{30,}")


@dataclass(frozen=True)
class Revision:
    """What is to become one commit.

    Attributes:
        branch: it goes to.
        files: path in the repository -> a file on the disk, or the content that is sent in a file's place.
        at_home: what lies in the folder and does not travel.
        tag: that is put on the commit, if any.
    """

    branch: str
    files: dict[str, Path | bytes]
    at_home: list[str]
    tag: str | None = None

    def describe(self, repo_id: str) -> dict:
        """`{repo_id, branch, tag, files: {path: bytes}, at_home}`."""
        sizes = {
            path: len(content) if isinstance(content, bytes) else content.stat().st_size
            for path, content in self.files.items()
        }
        return {
            "repo_id": repo_id,
            "branch": self.branch,
            "tag": self.tag,
            "files": sizes,
            "at_home": self.at_home,
        }


def push(
    folder: Path,
    repo_id: str,
    private: bool = False,
    revision: str = "main",
    create_pr: bool = False,
    results: Path | None = None,
    self_contained: bool = False,
) -> list[dict]:
    """Publish a checkpoint and the checkpoints `chck_*` inside it, or a family of models as a collection.

    What a repository held before stays in its history.

    Args:
        folder, repo_id, revision, results, self_contained: as `read_run`.
        private: make new repositories private ones.
        create_pr: propose the checkpoint as a pull request to a repository that exists; `chck_*` cannot be proposed.

    Returns:
        For each revision `{repo_id, branch, commit, url, changed, tag}`; `changed` is False where the Hub had it all.

    Raises:
        FileNotFoundError, ValueError: as `read_run`.
        OSError: the Hub cannot be reached or refuses; repeat the push to complete it.
    """
    run = read_run(folder, repo_id, revision, results, self_contained)
    if create_pr and (revision != "main" or len(run) > 1 or len(run[repo_id]) > 1):
        raise ValueError("A pull request goes to main and holds one checkpoint: leave --create-pr out, or push one.")
    api = HfApi()
    done = []
    for name, revisions in run.items():
        with said_clearly(name):
            if not create_pr:
                make_repository(api, name, private)
            done += [send(api, name, one, create_pr) for one in revisions]
    if len(run) > 1:
        owner, title = repo_id.split("/")
        with said_clearly(repo_id):
            collection = api.create_collection(title, namespace=owner, private=private, exists_ok=True)
            for name in run:
                api.add_collection_item(collection.slug, name, "model", exists_ok=True)
    return done


def read_run(
    folder: Path,
    repo_id: str,
    branch: str = "main",
    results: Path | None = None,
    self_contained: bool = False,
) -> dict[str, list[Revision]]:
    """What a push would send, by repository. Nothing is sent.

    The first revision is the checkpoint itself; those of the checkpoints in `chck_*` follow, by words seen. A folder
    without a configuration whose subfolders are checkpoints (`language/`, `multimodal/`, `merged/`) is a family: each
    has a repository `user/name-SUBFOLDER`, and that of the merge takes the run's results and plots.

    Args:
        folder: of the checkpoint, or of the family.
        repo_id: "user/name".
        branch: for the checkpoint itself; `chck_*` have branches of their own.
        results: `results.json` of `evaluate` for the checkpoint's card; None: the one in the folder, if there is one.
        self_contained: put a vision tower that a configuration names on the Hub into the repository too.

    Raises:
        FileNotFoundError: there is no checkpoint, or it lacks its code, its weights or its vision tower.
        ValueError: the name is none, a file holds a secret, or the results are those of other weights.
    """
    folder = Path(folder)
    check_repo_id(repo_id)
    if results and not Path(results).is_file():
        raise FileNotFoundError(f"There are no results {results}; name the results.json of an evaluation.")
    members = sorted(path.parent for path in folder.glob("*/config.json") if not _is_part(path.parent.name))
    if (folder / "config.json").is_file() or not members:
        run = {repo_id: _read_checkpoint(folder, repo_id, branch, results, {})}
    elif results:
        raise ValueError(f"--results are those of one model, but {folder} holds {len(members)}; push them one by one.")
    else:
        run = _read_family(folder, {member: f"{repo_id}-{member.name}" for member in members}, branch)
    if self_contained:
        for revision in (one for revisions in run.values() for one in revisions):
            _bring_tower(revision)
    return run


def _read_family(folder: Path, names: Mapping[Path, str], branch: str) -> dict[str, list[Revision]]:
    """What a push would send of the members of a family, whose repositories are `names`."""
    published = {weights_sha256(member): name for member, name in names.items()}
    run = {name: _read_checkpoint(member, name, branch, None, published) for member, name in names.items()}
    for member, name in names.items():
        if (member / "mergekit_config.yml").is_file():
            beside = [path for path in sorted(folder.iterdir()) if _travels(path, OF_THE_RUN)]
            run[name][0].files.update({path.name: fit_to_be_seen(path.name, path) for path in beside})
    return run


def _bring_tower(revision: Revision) -> None:
    """Put the tower that `config.json` names on the Hub, if it does, beside the weights."""
    source = revision.files["config.json"]
    config = json.loads(source if isinstance(source, bytes) else source.read_bytes())
    tower = config.get("vision_tower", "./")
    if tower.startswith("./"):
        return
    with named_source(tower, "vision_tower in config.json"):
        wanted = ["config.json", "preprocessor_config.json", *WEIGHTS]
        snapshot = snapshot_download(tower, revision=config.get("vision_tower_revision"), allow_patterns=wanted)
    brought = [path for path in sorted(Path(snapshot).iterdir()) if _travels(path, wanted)]  # not all that is cached
    revision.files.update({f"{TOWER}/{path.name}": path for path in brought})
    config |= {"vision_tower": f"./{TOWER}", "vision_tower_revision": None}
    revision.files["config.json"] = (json.dumps(config, indent=2) + "\n").encode()


def _is_part(name: str) -> bool:
    """Whether a folder of this name is a part of a model or of a run, and no model of its own."""
    return name == TOWER or name.startswith((".", "chck_", "checkpoint-"))


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError unless this is a name that a repository can have, with its owner's."""
    validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise ValueError(f"The repository {repo_id!r} needs its owner too: user/{repo_id}.")


def check_repository(repo_id: str) -> None:
    """Make the repository if there is none: a wrong name or token is found before long work. Raises as `push`."""
    check_repo_id(repo_id)
    with said_clearly(repo_id):
        make_repository(HfApi(), repo_id, private=False)


def _read_checkpoint(
    folder: Path, repo_id: str, branch: str, results: Path | None, published: Mapping[str, str]
) -> list[Revision]:
    """The checkpoint's revision and those of `chck_*` in it; `published` are repositories by their weights' hash."""
    inside = sorted((path.parent for path in folder.glob("chck_*/config.json")), key=_words)
    main = _read_revision(folder, repo_id, branch, results or folder / "results.json", published)
    return [main, *(_read_revision(path, repo_id, path.name, path / "results.json", published) for path in inside)]


def _words(checkpoint: Path) -> tuple[int, str]:
    """Words seen by a checkpoint such as `chck_10M`, to sort by; of other names 0."""
    return words_seen(checkpoint.name) or 0, checkpoint.name


def _read_revision(folder: Path, repo_id: str, branch: str, results: Path, published: Mapping[str, str]) -> Revision:
    code = _check_complete(folder)
    files: dict[str, Path | bytes] = {path.name: path for path in code} | {
        path.relative_to(folder).as_posix(): path
        for place in (folder, folder / TOWER)
        for path in sorted(place.glob("*"))
        if _travels(path, TRAVELS)
    }
    inside = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    at_home = [path for path in inside if path not in files and not path.startswith("chck_")]
    measured = _read_results(results, folder) if results.is_file() else None
    if measured:
        files["results.json"] = results
        if entries := eval_results(measured):
            files[".eval_results/babylm.yaml"] = yaml.safe_dump(entries, sort_keys=False).encode()
    files["README.md"] = _card(folder, repo_id, branch, measured, published)
    files = {path: fit_to_be_seen(path, source) for path, source in files.items()}
    tag = f"{branch}-{weights_sha256(folder)[:8]}" if branch.startswith("chck_") else None
    return Revision(branch, files, at_home, tag)


def _travels(path: Path, patterns: Sequence[str]) -> bool:
    return path.is_file() and any(fnmatch(path.name, pattern) for pattern in patterns)


def _check_complete(folder: Path) -> list[Path]:
    """Raise unless a stranger could load the folder: configuration, weights, code and tower are there.

    Returns:
        The files of code that the configuration names.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json, so it is not a checkpoint; push the folder of one.")
    weight_files(folder)
    config = read_whole(folder / "config.json")
    named = {name for name in config.get("auto_map", {}).values() if isinstance(name, str)}
    named = {name for name in named if "--" not in name}  # "user/name--module.Class" is another repository's code
    code = sorted({folder / f"{name.split('.')[0]}.py" for name in named})
    for path in code:
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} lacks {path.name}, which its config.json names; load it with babylm-vlm and save it again."
            )
    tower = config.get("vision_tower", "")
    if tower.startswith((".", "/")) and (tower != f"./{TOWER}" or not (folder / TOWER / "config.json").is_file()):
        raise FileNotFoundError(
            f"{folder} names the vision tower {tower}, which is not beside the weights; copy it to {folder / TOWER} "
            f"and write ./{TOWER} in config.json."
        )
    return code


def read_whole(path: Path) -> Any:
    """A JSON or YAML file. Raises ValueError, which names it, where it is damaged."""
    return parse(path.read_text(encoding="utf-8", errors="replace"), path)


def parse(text: str, path: Path) -> Any:
    """JSON, or YAML, that `path` holds or will hold. Raises ValueError, which names it, where it is damaged."""
    try:
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}; write it again.") from error


def _read_results(path: Path, folder: Path) -> dict | None:
    """The results of `evaluate`, if they are of these weights; None for a file of another kind."""
    results = read_whole(path)
    if "tasks" not in results or "model" not in results:
        return None
    hashes = results["model"].get("weights_sha256", {})
    if hashes and not {sha256(file) for file in weight_files(folder)} <= set(hashes.values()):
        raise ValueError(f"{path} holds the results of other weights than those of {folder}; evaluate it again.")
    return results


def _card(folder: Path, repo_id: str, branch: str, results: dict | None, published: Mapping[str, str]) -> bytes | Path:
    """The card from the facts beside it, with the repositories' names; one written by hand stays as it is."""
    readme, facts_file = folder / "README.md", folder / FACTS_FILE
    if readme.is_file() and MARK not in readme.read_text(encoding="utf-8"):
        return readme
    config = read_whole(folder / "config.json")
    template, facts = "multimodal" if "vision_tower" in config else "language", {"title": repo_id.split("/")[1]}
    if facts_file.is_file():
        template, facts = (read_whole(facts_file)[key] for key in ("template", "facts"))
    facts |= {"repo_id": repo_id, "revision": None if branch == "main" else branch}
    facts |= {"results": result_rows(results)} if results else {}
    for parent in facts.get("parents", []):
        if name := published.get(parent["sha256"]):
            facts["merge_yaml"] = facts["merge_yaml"].replace(json.dumps(parent["name"]), json.dumps(name))
            facts[parent["role"]] = parent["name"] = name
    return (render_card(folder, template, facts).content.rstrip() + "\n").encode()


def fit_to_be_seen(path: str, source: Path | bytes) -> Path | bytes:
    """A text file, or its content, without the absolute paths of this disk.

    Raises:
        ValueError: it holds a token of the Hub, or is damaged.
    """
    if path.endswith((".safetensors", ".png")):
        return source
    content = source if isinstance(source, bytes) else source.read_bytes()
    text = content.decode("utf-8", errors="replace")
    if SECRET.search(text):
        raise ValueError(f"{path} holds what looks like a token of the Hub; take it out before you publish the file.")
    where = source if isinstance(source, Path) else Path(path)
    if where.suffix not in (".json", ".yml") or any(fnmatch(where.name, pattern) for pattern in AS_THEY_ARE):
        return source
    for string in sorted(_absolute_paths(parse(text, where)), key=len, reverse=True):
        text = text.replace(json.dumps(string)[1:-1], Path(string).name).replace(string, Path(string).name)
    if len(Path.home().parts) > 1:
        text = text.replace(str(Path.home()), "~")  # inside longer strings
    return source if text.encode() == content else text.encode()


def _absolute_paths(value: Any) -> set[str]:
    """Strings in a nested value that are absolute paths, of two names or more."""
    if isinstance(value, dict):
        return set().union(*map(_absolute_paths, value.values()))
    if isinstance(value, list):
        return set().union(*map(_absolute_paths, value))
    return {value} if isinstance(value, str) and Path(value).is_absolute() and len(Path(value).parts) > 2 else set()


def make_repository(api: HfApi, repo_id: str, private: bool, **kind: str) -> None:
    """Create a repository where there is none; `kind` is `create_repo`'s `repo_type` and `space_sdk`.

    Raises:
        ValueError: it is to be private, but exists and is public.
    """
    api.create_repo(repo_id, private=private, exist_ok=True, **kind)
    if private and not api.repo_info(repo_id, repo_type=kind.get("repo_type")).private:
        raise ValueError(f"{repo_id} exists and is public; choose another name, or leave --private out.")


def send(api: HfApi, repo_id: str, revision: Revision, create_pr: bool = False, repo_type: str = "model") -> dict:
    """Make the commit, if anything changed, and the tag; returns the row of `push`."""
    branch = revision.branch
    if branch != "main":
        first = api.list_repo_commits(repo_id, repo_type=repo_type)[-1].commit_id
        api.create_branch(repo_id, branch=branch, revision=first, exist_ok=True, repo_type=repo_type)
    before = api.repo_info(repo_id, revision=branch, repo_type=repo_type)
    there = [file.rfilename for file in before.siblings]
    outdated = [path for path in there if path not in revision.files and any(fnmatch(path, one) for one in OUTDATED)]
    where = "" if branch == "main" else f", {branch}"
    commit = api.create_commit(
        repo_id,
        [
            *(CommitOperationDelete(path) for path in outdated),
            *(CommitOperationAdd(path, content) for path, content in revision.files.items()),
        ],
        commit_message=f"{repo_id.split('/')[1]}{where}, pushed with babylm-vlm",
        revision=branch,
        create_pr=create_pr,
        repo_type=repo_type,
    )
    if revision.tag:
        api.create_tag(repo_id, tag=revision.tag, revision=commit.oid, exist_ok=True, repo_type=repo_type)
    return {
        "repo_id": repo_id,
        "branch": branch,
        "commit": commit.oid,
        "url": commit.pr_url or commit.commit_url,
        "changed": commit.oid != before.sha,
        "tag": revision.tag,
    }


@contextmanager
def said_clearly(repo_id: str) -> Iterator[None]:
    """Around calls of the Hub's API: what went wrong, and what to do, in one sentence.

    Raises:
        PermissionError: the Hub does not know the token, or the token may not do this.
        ConnectionError: the connection broke, or the Hub is overloaded.
        OSError: any other refusal, in the Hub's words.
    """
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConnectionError("The Hub is not asked, because HF_HUB_OFFLINE is set; unset it.") from error
    except (HTTPError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, HTTPError):
            raise
        cause = error.__cause__ if isinstance(error, RuntimeError) else error  # uploads of large files wrap it
        raise _sentence(repo_id, cause) from error


def _sentence(repo_id: str, error: HTTPError) -> OSError:
    if not isinstance(error, HfHubHTTPError):
        return ConnectionError(f"The connection to the Hub broke ({type(error).__name__}); repeat the command.")
    status = error.response.status_code
    owner = repo_id.split("/")[0]
    if status == 401:
        return PermissionError(
            f"The Hub does not accept your token, or has no {repo_id} (401); use `hf auth login` or set HF_TOKEN."
        )
    if status == 403:
        return PermissionError(f"Your token may not write to {repo_id} (403); use one with write access to {owner}.")
    if status == 404:
        return FileNotFoundError(f"The Hub has no repository {repo_id}, or does not show it to you (404).")
    if status == 429 or status >= 500:
        return ConnectionError(f"The Hub is busy or out of order ({status}); repeat the command in a while.")
    return OSError(f"The Hub refuses {repo_id} ({status}): {error.server_message or error}")


def print_run(rows: Sequence[dict]) -> None:
    """Print what a push would send: every file and its size, and what stays at home."""
    for row in rows:
        files = row["files"]
        print(f"{row['repo_id']}, branch {row['branch']}: {len(files)} files, {sum(files.values()):,} bytes")
        for path, size in sorted(files.items()):
            print(f"{size:>16,}  {path}")
        if row["at_home"]:
            print(f"  Does not travel: {', '.join(row['at_home'])}")
    print("Nothing was sent.")


def print_pushed(rows: Sequence[dict]) -> None:
    """Print what a push did to every branch."""
    for row in rows:
        done = f"commit {row['commit'][:8]}" if row["changed"] else "nothing changed"
        print(f"{row['repo_id']}, branch {row['branch']}: {done}. {row['url']}")
