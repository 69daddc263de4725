"""Merging models that lie on a Hub on loopback, with us and with mergekit, and publishing the merge.

Run: pytest tests/test_hub_merge.py
"""

import re
import shutil
import subprocess
import sys

import yaml
from huggingface_hub import ModelCard
from pair_files import write_lines

from babylm_vlm.files import sha256
from babylm_vlm.merging import linear_plan_yaml

MULTIMODAL, LANGUAGE, MERGED = "someone/multimodal", "someone/language", "someone/merged"
MERGEKIT = "from mergekit.scripts.run_yaml import main; main()"


def test_models_on_the_hub_merge_alike_and_the_merge_is_published(
    local_hub, multimodal_checkpoint, language_checkpoint, tmp_path
):
    run = shutil.copytree(multimodal_checkpoint, tmp_path / "run")
    shutil.copytree(multimodal_checkpoint, run / "chck_2M")
    cache = tmp_path / "cache"
    for folder, name in ((run, MULTIMODAL), (language_checkpoint, LANGUAGE)):
        code, _, err = local_hub.command("push", folder, "--repo-id", name, cache=cache)
        assert code == 0, err
    plan = tmp_path / "plan.yaml"
    plan.write_text(linear_plan_yaml(f"{MULTIMODAL}@chck_2M", LANGUAGE, 0.3))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"

    local_hub.fail("GET", "model.safetensors", after=1000)  # a download that breaks off is taken up again
    code, out, err = local_hub.command("merge", plan, "--output-dir", ours, "--push-to", MERGED, cache=cache)
    assert code == 0, err
    assert local_hub.faults[0].times == 0
    assert f"{MERGED}, branch main: commit" in out
    arguments = [str(plan), str(theirs), "--trust-remote-code", "--quiet", "--no-write-model-card"]
    done = subprocess.run(
        [sys.executable, "-c", MERGEKIT, *arguments],
        env=local_hub.environment(tmp_path / "mergekit's"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for folder in (ours, theirs):
        code, out, err = local_hub.command("verify", folder, plan, cache=cache, HF_HUB_OFFLINE="1")
        assert code == 0, out + err
        assert "bit for bit" in out

    files = local_hub.files(MERGED)
    assert files["model.safetensors"] == (ours / "model.safetensors").read_bytes()
    assert "vision_tower/model.safetensors" in files
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == [MULTIMODAL, LANGUAGE]
    assert card.data.base_model_relation == "merge"
    commit = local_hub.repositories[f"models/{MULTIMODAL}"].branches["chck_2M"]
    digest = sha256(multimodal_checkpoint / "model.safetensors")
    assert f"| multimodal | {MULTIMODAL}@chck_2M | {commit} | {digest} |" in card.text
    (written,) = re.findall(r"```yaml\n(.*?)```", card.text, flags=re.DOTALL)
    assert yaml.safe_load(written) == yaml.safe_load(plan.read_text())
    assert f'path = "{MERGED}"' in card.text


def test_what_the_hub_does_not_have_is_named(local_hub, language_checkpoint, tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(linear_plan_yaml("someone/nothing", str(language_checkpoint), 0.3))
    code, out, err = local_hub.command("merge", plan, "--output-dir", tmp_path / "out", cache=tmp_path / "cache")
    assert code == 1
    assert "someone/nothing, which is neither a checkpoint folder" in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_in_a_download_is_named_and_the_download_goes_on_later(
    local_hub, language_checkpoint, small_disk, tmp_path
):
    assert local_hub.command("push", language_checkpoint, "--repo-id", LANGUAGE, cache=tmp_path / "ours")[0] == 0
    plan = tmp_path / "plan.yaml"
    plan.write_text(linear_plan_yaml(LANGUAGE, LANGUAGE, 0.3))
    merge = ["merge", plan, "--output-dir", tmp_path / "out"]
    row = {"sentence_good": "the cat sat", "sentence_bad": "sat the cat", "UID": "order"}
    write_lines(tmp_path / "data" / "grammar" / "pairs.jsonl", [row] * 4)
    evaluate = ["evaluate", LANGUAGE, "--data", tmp_path / "data", "--output-dir", tmp_path / "scores"]
    (small_disk / "much").write_bytes(bytes(120_000))
    for command in (evaluate, merge):
        code, out, err = local_hub.command(*command, cache=small_disk / "cache")
        assert code == 1
        assert "No space left on device. Make room, or let HF_HOME name a larger disk" in err
        assert "Traceback" not in out + err
    assert not (tmp_path / "out").exists() and not (tmp_path / "scores").exists()
    (small_disk / "much").unlink()
    code, _, err = local_hub.command(*evaluate, cache=small_disk / "cache")
    assert code == 0, err
