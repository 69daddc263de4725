"""Metrics as Spaces of a Hub on loopback, and `evaluate.load` from there.

Run: pytest tests/test_push_metrics.py
"""

from pathlib import Path

import pytest

METRIC = '''"""Share of items whose first score is the higher one."""

import datasets
import evaluate


class Choice(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Sequence(datasets.Value("float64"))})
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description="", features=features)

    def _compute(self, predictions):
        return {"share": sum(good > bad for good, bad in predictions) / len(predictions)}
'''
LOAD = """
import evaluate
print(evaluate.load("someone/choice").compute(predictions=[[-1.0, -2.0], [-2.0, -1.0]]))
"""


@pytest.fixture
def metrics(tmp_path) -> Path:
    """Folder with one metric, and what else lies about in a package."""
    folder = tmp_path / "metrics"
    (folder / "choice" / "__pycache__").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "choice" / "choice.py").write_text(METRIC)
    (folder / "choice" / "README.md").write_text("---\ntitle: Choice\nsdk: gradio\n---\n\nA metric.\n")
    (folder / "choice" / "app.py").write_text("import evaluate\n")
    (folder / "choice" / "requirements.txt").write_text("evaluate\n")
    return folder


def test_a_metric_is_published_once_and_loads(local_hub, metrics, tmp_path):
    for done in ("commit", "nothing changed"):
        code, out, err = local_hub.command(
            "push-metrics", "--user", "someone", "--metrics", metrics, cache=tmp_path / "ours"
        )
        assert code == 0, err
        assert f"someone/choice, branch main: {done}" in out
    space = local_hub.repositories["spaces/someone/choice"]
    assert (space.sdk, len(space.commits)) == ("gradio", 2)
    names = {"choice.py", "README.md", "app.py", "requirements.txt"}
    assert set(local_hub.files("someone/choice", kind="spaces")) == names
    assert local_hub.python(LOAD, cache=tmp_path / "theirs") == "{'share': 0.5}"


def test_what_is_missing_is_named_and_nothing_is_sent(local_hub, metrics, tmp_path):
    (metrics / "choice" / "app.py").unlink()
    for folder, sentence in ((metrics, "The metric choice lacks"), (tmp_path, "holds no metric")):
        code, out, err = local_hub.command(
            "push-metrics", "--user", "someone", "--metrics", folder, cache=tmp_path / "ours"
        )
        assert code == 1
        assert sentence in err
        assert "Traceback" not in out + err
    assert not local_hub.requests
