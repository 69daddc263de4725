"""Two evaluations, item by item: which differences are more than chance?"""

import json
from pathlib import Path

from .evaluate import SCHEMA_VERSION
from .output import RESULTS_FILE, items_file, read_items
from .tasks import COMPARE, Sampling


def compare_results(a: Path, b: Path) -> dict:
    """Value under A minus value under B for every number that two evaluations share, paired over items.

    Args:
        a, b: `results.json` of two evaluations, or the folders that hold them; the scores of items are beside it.

    Returns:
        `{"a", "b", "tasks": {name: {"metric", "a", "b", "difference", "interval", "p_value", "items"}},
        "not_compared": [sentence, …]}`.

    Raises:
        FileNotFoundError, ValueError: there are no such results, they share no task, or follow different rules.
    """
    files = [Path(path, RESULTS_FILE) if Path(path).is_dir() else Path(path) for path in (a, b)]
    results = [_read(file) for file in files]
    if results[0]["official"] != results[1]["official"]:
        raise ValueError(
            f"One of {files[0]} and {files[1]} follows the official rule, the other does not; evaluate again."
        )
    sampling = Sampling(results[0]["official"], **results[0]["bootstrap"])
    hashes = [result["data_sha256"] for result in results]
    shared = [task for task in hashes[0] if task in hashes[1]]
    notes = [f"{task} is in one of the two only." for task in sorted(set(hashes[0]) ^ set(hashes[1]))]
    rows = {}
    for task in shared:
        if hashes[0][task] != hashes[1][task]:
            notes.append(f"{task} was measured on different data.")
            continue
        if any(task in result["failed"] for result in results):
            notes.append(f"{task} failed in one of the two.")
            continue
        (measured, outcomes_a), (other, outcomes_b) = (read_items(items_file(file.parent, task)) for file in files)
        digests = {one.get("pictures_sha256") for one in (measured, other)} - {None}
        if len(digests) > 1:
            notes.append(f"{task} was measured with different pictures.")
            continue
        found = COMPARE[measured["task"]](task, outcomes_a, outcomes_b, sampling)
        for key, difference in found.items():
            value_a, value_b = (result["tasks"][key] for result in results)
            values = {"metric": value_a["metric"], "a": value_a["value"], "b": value_b["value"]}
            rows[key] = {**values, **difference.to_dict()}
    if not rows:
        raise ValueError(" ".join([f"{files[0]} and {files[1]} share no task that can be compared.", *notes]))
    return {**{side: str(path) for side, path in zip("ab", (a, b), strict=True)}, "tasks": rows, "not_compared": notes}


def _read(file: Path) -> dict:
    if not file.is_file():
        raise FileNotFoundError(f"There are no results {file}; name a results.json, or the folder of one.")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}).") from error
    if (
        not isinstance(results, dict)
        or results.get("schema_version") != SCHEMA_VERSION
        or "data_sha256" not in results
    ):
        raise ValueError(
            f"{file} holds no results of `babylm-vlm evaluate`, or those of another version; evaluate again."
        )
    return results
