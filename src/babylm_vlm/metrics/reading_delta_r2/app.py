"""The metric's page: paste its inputs as JSON, read its scores. Run: python app.py

Not `evaluate.utils.launch_gradio_widget`: it calls `gradio.inputs`, which gradio has had no more since version 4.
"""

import json
from pathlib import Path

import evaluate

metric = evaluate.load(str(Path(__file__).with_name("reading_delta_r2.py")))
EXAMPLE = [
    "[3.1, 8.4, 5.0, 9.2, 2.3, 4.7, 6.6, 7.5]",
    "[212, 271, 225, 268, 219, 248, 230, 261]",
    "[[3], [6], [5], [4], [4], [7], [2], [5]]",
]


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
