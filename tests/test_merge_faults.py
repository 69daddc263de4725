"""Faults: a merge is whole or not there, its inputs stay as they were, and one sentence says what is wrong.

Run: pytest tests/test_merge_faults.py
"""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from babylm_vlm.files import sha256
from babylm_vlm.merging import linear_plan_yaml, merge, read_plan
from babylm_vlm.merging.verify import verify

NAMES = [f"model.layers.{layer}.{name}.weight" for layer in range(6) for name in ("a", "b", "c")]
KILLS = 25


def save_pair(folder: Path, width: int = 64) -> Path:
    """Two checkpoints of two shards each, `multimodal/` and `language/`, and their plan; returns the plan's path."""
    for seed, name in enumerate(("multimodal", "language")):
        place = folder / name
        place.mkdir(parents=True)
        generator = torch.Generator().manual_seed(seed)
        weights = {name: torch.randn(width, width, generator=generator) for name in NAMES}
        shards = {f"model-0000{n + 1}-of-00002.safetensors": NAMES[n::2] for n in range(2)}
        for shard, names in shards.items():
            save_file({name: weights[name] for name in names}, place / shard)
        weight_map = {name: shard for shard, names in shards.items() for name in names}
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (place / "config.json").write_text("{}")
    plan = folder / "plan.yaml"
    plan.write_text(linear_plan_yaml(str(folder / "multimodal"), str(folder / "language"), 0.3))
    return plan


@pytest.fixture
def plan_file(tmp_path):
    return save_pair(tmp_path)


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def run_in_child(work) -> int:
    """Start a process that does some work and ends; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_at_any_moment_nothing_looks_like_a_merge_that_is_none(tmp_path):
    plan = read_plan(save_pair(tmp_path, width=128))
    inputs = {name: content(tmp_path / name) for name in ("multimodal", "language")}
    output = tmp_path / "out" / "merged"
    os.waitpid(run_in_child(lambda: merge(plan, tmp_path / "first")), 0)
    start = time.perf_counter()
    os.waitpid(run_in_child(lambda: merge(plan, tmp_path / "second")), 0)
    usual = time.perf_counter() - start
    expected = content(tmp_path / "first")
    chance, killed, torn = random.Random(0), 0, 0
    while killed < KILLS:  # one that comes after the merge's end does not count
        pid = run_in_child(lambda: merge(plan, output, overwrite=True))
        time.sleep(chance.uniform(0, usual))
        os.kill(pid, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        torn += any(path.name.endswith(".incomplete") for path in (tmp_path / "out").glob(".*"))
        if output.exists():
            assert content(output) == expected
    assert torn > 0  # some came while files were being written
    merge(plan, output, overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merged"]
    assert content(output) == expected
    assert {name: content(tmp_path / name) for name in inputs} == inputs


def test_an_output_lost_between_two_renames_is_put_back(tmp_path, plan_file):
    plan, output = read_plan(plan_file), tmp_path / "out" / "merged"
    merge(plan, output)
    pid = run_in_child(lambda: None)
    os.waitpid(pid, 0)
    output.rename(output.with_name(f".merged.{pid}.old"))
    output.with_name(f".merged.{pid}.incomplete").mkdir()
    alive = output.with_name(f".merged.{os.getppid()}.incomplete")
    alive.mkdir()
    with pytest.raises(FileExistsError, match="merged exists"):
        merge(plan, output)
    assert sorted(path.name for path in output.parent.iterdir()) == sorted(["merged", alive.name])


def test_what_a_dead_process_of_the_same_id_left_is_removed_and_other_outputs_are_let_alone(tmp_path, plan_file):
    plan, output = read_plan(plan_file), tmp_path / "out" / "merged"
    output.parent.mkdir()
    output.with_name(f".merged.{os.getpid()}.incomplete").mkdir()  # in a container, process 1 before and after
    pid = run_in_child(lambda: None)
    os.waitpid(pid, 0)
    other = output.with_name(f".merged.0.5.{pid}.old")  # of the output merged.0.5
    other.mkdir()
    merge(plan, output)
    assert sorted(path.name for path in output.parent.iterdir()) == sorted(["merged", other.name])


def test_an_output_that_is_a_link_stays_one(tmp_path, plan_file):
    (tmp_path / "disk").mkdir()
    (tmp_path / "merged").symlink_to(tmp_path / "disk" / "merged")
    merge(read_plan(plan_file), tmp_path / "disk" / "merged")
    merge(read_plan(plan_file), tmp_path / "merged", overwrite=True)
    assert (tmp_path / "merged").is_symlink() and (tmp_path / "disk" / "merged" / "config.json").is_file()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["merged"]


# --- disks -----------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_named_before_the_work(small_disk, plan_file):
    with pytest.raises(OSError, match=r"merged needs .* kB, but only .* are free"):
        merge(read_plan(plan_file), small_disk / "merged")
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(small_disk, plan_file, monkeypatch):
    monkeypatch.setattr("babylm_vlm.merging.linear.check_free_space", lambda *_: None)
    with pytest.raises(OSError, match=r"The merged weights cannot be written to .*disk: No space left on device"):
        merge(read_plan(plan_file), small_disk / "merged")
    assert list(small_disk.iterdir()) == []


@pytest.fixture
def read_only_disk(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    return small_disk


def test_a_read_only_output_is_named(read_only_disk, plan_file):
    subprocess.run(["mount", "-o", "remount,ro,size=10m", read_only_disk], check=True)
    with pytest.raises(OSError, match=r"Read-only file system: .*merged"):
        merge(read_plan(plan_file), read_only_disk / "merged")
    assert list(read_only_disk.iterdir()) == []


# --- damaged inputs --------------------------------------------------------------------------------------------------

SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def change_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def truncate(folder: Path) -> None:
    os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 9)


def corrupt_header(folder: Path) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[20] ^= 0xFF
    (folder / SHARD).write_bytes(data)


def lose_shard(folder: Path) -> None:
    (folder / SHARD).unlink()


def point_outside(folder: Path) -> None:
    change_index(folder, lambda weight_map: weight_map.update({NAMES[1]: f"../multimodal/{SHARD}"}))


def misplace(folder: Path) -> None:
    change_index(folder, lambda weight_map: weight_map.update({NAMES[0]: SHARD}))


def leave_out(folder: Path) -> None:
    change_index(folder, lambda weight_map: weight_map.pop(NAMES[0]))


def store_twice(folder: Path) -> None:
    save_file(load_file(folder / SHARD) | {NAMES[0]: torch.ones(2)}, folder / SHARD)


def two_kinds(folder: Path) -> None:
    save_file({NAMES[0]: torch.ones(2)}, folder / "model.safetensors")


def float8(folder: Path) -> None:
    weights = load_file(folder / SHARD)
    save_file(weights | {NAMES[1]: weights[NAMES[1]].to(torch.float8_e4m3fn)}, folder / SHARD)


def poison(value: float, name: str):
    def damage(folder: Path) -> None:
        weights = load_file(folder / SHARD)
        weights[name][3, 5] = value
        save_file(weights, folder / SHARD)

    return damage


DAMAGES = {
    "truncated": (truncate, r"language/model-00002-of-00002\.safetensors is no complete safetensors file"),
    "corrupt header": (corrupt_header, r"model-00002-of-00002\.safetensors is no complete safetensors file"),
    "shard missing": (lose_shard, r"names the weights file model-00002-of-00002\.safetensors, which is not there"),
    "outside": (point_outside, r"names the file '\.\./multimodal/model-00002.*only files of its own folder"),
    "misplaced": (misplace, r"disagree on where the tensor model\.layers\.0\.a\.weight is"),
    "left out": (leave_out, r"disagree on where the tensor model\.layers\.0\.a\.weight is"),
    "twice": (store_twice, r"stores the tensor model\.layers\.0\.a\.weight twice"),
    "two kinds": (two_kinds, r"has both model\.safetensors and model\.safetensors\.index\.json"),
    "float8": (float8, r"holds model\.layers\.0\.b\.weight as F8_E4M3, which is not merged"),
    "nan": (
        poison(float("nan"), NAMES[1]),
        r"language holds NaN or infinity in the tensor model\.layers\.0\.b\.weight",
    ),
    "inf": (
        poison(float("-inf"), NAMES[17]),
        r"language holds NaN or infinity in the tensor model\.layers\.5\.c\.weight",
    ),
    "plan's dtype": (
        poison(1e6, NAMES[1]),
        r"in the tensor model\.layers\.0\.b\.weight, or a number that does not fit into float16, the plan's dtype",
    ),
    "overflow": (poison(3e38, NAMES[17]), r"The merged tensor model\.layers\.5\.c\.weight does not fit into float32"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_inputs_are_named_and_leave_nothing(tmp_path, plan_file, damage):
    work, message = DAMAGES[damage]
    work(tmp_path / "language")
    if damage == "overflow":
        plan_file.write_text(plan_file.read_text().replace("0.7", "2.0").replace("true", "false"))
    if damage == "plan's dtype":
        plan_file.write_text(plan_file.read_text() + "\ndtype: float16\n")
    before = content(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        merge(read_plan(plan_file), tmp_path / "out" / "merged")
    assert "\n" not in str(caught.value)
    assert content(tmp_path) == before and not list(tmp_path.glob("out/*")) and not list(tmp_path.glob("out/.*"))


def test_a_copied_tensor_is_checked_too(tmp_path, plan_file):
    poison(float("nan"), NAMES[1])(tmp_path / "language")
    plan_file.write_text(linear_plan_yaml(str(tmp_path / "multimodal"), str(tmp_path / "language"), 0.0))
    with pytest.raises(ValueError, match=r"language holds NaN or infinity in the tensor model\.layers\.0\.b\.weight"):
        merge(read_plan(plan_file), tmp_path / "merged")
    plan_file.write_text(linear_plan_yaml(str(tmp_path / "multimodal"), str(tmp_path / "language"), 1.0))
    merge(read_plan(plan_file), tmp_path / "merged")  # at alpha = 1 nothing of it is used
    assert verify(tmp_path / "merged", read_plan(plan_file))["different"] == []
