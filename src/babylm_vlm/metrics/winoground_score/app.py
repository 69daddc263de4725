"""The metric's page: paste its inputs as JSON, read its scores. Run: python app.py

Not `evaluate.utils.launch_gradio_widget`: it calls `gradio.inputs`, which gradio has had no more since version 4.
"""

import json
from pathlib import Path

import evaluate

metric = evaluate.load(str(Path(__file__).with_name("winoground_score.py")))
EXAMPLE = ["[[[-9.5, -11.0], [-12.5, -10.5]], [[-8.0, -7.0], [-8.0, -7.0]]]"]


def compute(*inputs: str) -> dict:
    """Scores of inputs in JSON, in the order of the metric's features."""
    return metric.compute(**{name: json.loads(text) for name, text in zip(metric.features, inputs, strict=True)})


def main() -> None:
    import gradio

    boxes = [gradio.Textbox(label=name, value=text) for name, text in zip(metric.features, EXAMPLE, strict=True)]
    page = gradio.Interface(
        compute,
        boxes,
        gradio.JSON(label="scores"),
        title=metric.name,
        description=f"```\n{metric.description}\n{metric.inputs_description}\n```",
        flagging_mode="never",
    )
    page.launch(show_error=True)


if __name__ == "__main__":
    main()
