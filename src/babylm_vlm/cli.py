"""The command table. Each command reads its arguments, calls one function of the package and prints what it found."""

import atexit
import contextlib
import gc
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    help="Train a language-only and a multimodal BabyLM, merge their weights, measure both abilities.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

OutputDir = Annotated[Path, typer.Option("--output-dir", help="Folder to write; it must not exist.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier output in that folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Copy tensors that only one model has; list them.")
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code that comes with the model.")]


@app.command()
def demo(
    output_dir: OutputDir = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A one-minute run that only shows that all works.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of training.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Run the whole path on embedded data: train both twins, merge, score, choose alpha, report."""
    from .demo.demo import run_demo

    run_demo(output_dir, quick, seed, overwrite)


@app.command()
def features(
    dataset: Annotated[str, typer.Argument(help="Captions: a folder with metadata.jsonl, or a Hub data set.")],
    vision_tower: Annotated[str, typer.Option("--vision-tower", help="Hub id or folder of the frozen tower.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Folder; an interrupted call goes on there.")],
    revision: Annotated[str | None, typer.Option("--revision", help="The tower's branch, tag or commit.")] = None,
    layer: Annotated[int, typer.Option(help="Which hidden state of the tower is pooled.")] = -2,
    grid: Annotated[int, typer.Option(help="Pooled to grid x grid visual tokens.", min=1)] = 1,
    image_column: Annotated[str, typer.Option(help="Of a Hub data set.")] = "image",
    caption_column: Annotated[str, typer.Option(help="Of the captions.")] = "text",
    batch_size: Annotated[int, typer.Option(help="Pictures at a time.", min=1)] = 64,
    push_to: Annotated[str | None, typer.Option("--push-to", help="Publish them as data set user/name too.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Run a vision tower once over the pictures of a caption set; a recipe's `features` names the result."""
    from .data.features import store_features

    if push_to:
        from .hub.push import check_repo_id, print_pushed
        from .hub.push_features import push_features

        check_repo_id(push_to)
    made = store_features(
        dataset,
        output_dir,
        vision_tower,
        revision=revision,
        layer=layer,
        grid=grid,
        image_column=image_column,
        caption_column=caption_column,
        batch_size=batch_size,
        overwrite=overwrite,
    )
    print(f"{output_dir}: pooled features of {made['pictures']} pictures.")
    if push_to:
        print_pushed(push_features(output_dir, made, dataset, vision_tower, push_to))


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML of recipe fields and TrainingArguments.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, replacing the recipe's.")] = None,
    output_dir: Annotated[Path | None, typer.Option("--output-dir", help="Replaces the recipe's output_dir.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an unfinished run; without one, begin.")
    ] = False,
    push_to: Annotated[
        str | None, typer.Option("--push-checkpoints", help="Publish each checkpoint, when it appears, as user/name.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Train a language-only or a multimodal model from a recipe."""
    import json

    from .training.recipe import parse_overrides, read_recipe
    from .training.train import train as run

    keys = parse_overrides(overrides or []) | ({"output_dir": str(output_dir)} if output_dir else {})
    made = read_recipe(recipe, keys)
    with contextlib.redirect_stdout(sys.stderr):  # the trainer prints its losses
        state = run(made, overwrite, resume, push_to)
    if as_json:
        print(json.dumps(state))
    else:
        print(
            f"{made.output_dir}: {state['words_seen']:,} words seen in {state['steps']} steps, final loss "
            f"{state['final_loss']:.3f}, {state['minutes']} minutes."
        )


@app.command()
def merge(
    plan: Annotated[Path, typer.Argument(help="mergekit YAML, such as merge_configs/linear.yaml.")],
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Folder to write; it must not exist.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what happens to every tensor; write nothing.")
    ] = False,
    allow_missing: AllowMissing = False,
    push_to: Annotated[str | None, typer.Option("--push-to", help="Publish the merge as user/name too.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest weights file, such as 500MB.")] = "5GB",
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Merge checkpoints as a mergekit YAML says."""
    import json

    from .merging import linear, read_plan
    from .merging.steps import describe

    read = read_plan(plan)
    if dry_run:
        steps, _ = linear.preflight(read, allow_missing)
        rows = describe(steps, read)
        print(json.dumps(rows)) if as_json else _print_steps(rows)
        return
    if output_dir is None:
        raise ValueError("Say where the merge is to be written with --output-dir, or pass --dry-run.")
    from .hub.facts import card_of_merge

    if push_to:
        from .hub.push import check_repo_id, print_pushed
        from .hub.push import push as run_push

        check_repo_id(push_to)
    linear.merge(
        read, output_dir, overwrite, allow_missing, max_shard_size, trust_remote_code, finish=card_of_merge(read)
    )
    names = [source.name for source in read.sources]
    if not as_json:
        print(f"{output_dir}: merged from {' and '.join(names)}.")
    pushed = run_push(output_dir, push_to) if push_to else []
    if as_json:
        done = {"output_dir": str(output_dir), "merge_method": read.method, "models": names}
        print(json.dumps(done | ({"pushed": pushed} if push_to else {})))
    elif push_to:
        print_pushed(pushed)


@app.command()
def verify(
    merged: Annotated[Path, typer.Argument(help="Folder of a merge, ours or mergekit's.")],
    plan: Annotated[Path, typer.Argument(help="The mergekit YAML that it should be the result of.")],
    allow_missing: AllowMissing = False,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Check a merge against its plan, bit by bit; exit code 1 if they differ."""
    import json

    from .merging import read_plan
    from .merging.verify import verify as run

    report = run(merged, read_plan(plan), allow_missing, trust_remote_code)
    wrong = [f"{row['name']}: {row['reason']}" for row in report["different"]]
    wrong += [f"{name}: {kind}" for kind in ("missing", "extra") for name in report[kind]]
    if as_json:
        print(json.dumps(report))
    elif wrong:
        print("\n".join(wrong))
        print(f"{merged}: {len(wrong)} tensors are not as {plan} makes them.")
    else:
        print(f"{merged}: all {report['tensors']} tensors are bit for bit as {plan} makes them.")
    if wrong:
        raise typer.Exit(1)


@app.command()
def sweep(
    plan: Annotated[Path, typer.Argument(help="mergekit YAML of a multimodal and a language-only model.")],
    data: Annotated[Path, typer.Option("--data", help="Folder with a subfolder of minimal pairs per task.")],
    tasks: Annotated[str, typer.Option("--tasks", help="Subfolders, with commas: with pictures and without.")],
    output_dir: OutputDir,
    alphas: Annotated[str, typer.Option("--alphas", help="start:stop:step, or a list with commas.")] = "0:1:0.1",
    objective: Annotated[
        str, typer.Option("--objective", help="How α is chosen: keep:F, grammar, grounded or mean.")
    ] = "keep:0.95",
    test_data: Annotated[Path | None, typer.Option("--test-data", help="Folder to report the chosen α on.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Carry out the chosen merge too, in merged/.")] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Score a grid of α in one process, choose one, plot both abilities."""
    import json

    from .merging.plan import read_plan
    from .merging.sweep import parse_alphas, print_sweep
    from .merging.sweep import sweep as run

    grid = parse_alphas(alphas)
    result = run(
        read_plan(plan), data, _names(tasks), output_dir, grid, objective, test_data, save=save, overwrite=overwrite
    )
    if as_json:
        print(json.dumps(result))
    else:
        print_sweep(result, output_dir)


@app.command()
def diagnose(
    a: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    b: Annotated[Path, typer.Argument(help="Another, of the same architecture and tokenizer.")],
    ancestor: Annotated[Path | None, typer.Option("--ancestor", help="What both started from.")] = None,
    text: Annotated[Path | None, typer.Option("--text", help=".txt or .txt.gz with a sentence a line.")] = None,
    output_dir: Annotated[Path | None, typer.Option("--output-dir", help="Folder for the numbers and a plot.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Say whether two models will merge: distances by layer, and the loss along the path between them."""
    import json

    from .merging.diagnose import diagnose as run
    from .merging.diagnose import print_diagnosis

    result = run(a, b, ancestor, text, output_dir, overwrite)
    if as_json:
        print(json.dumps(result))
    else:
        print_diagnosis(result)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or Hub id.")],
    data: Annotated[
        list[Path],
        typer.Option("--data", help="Folder with a subfolder of benchmark files per task; may be repeated."),
    ],
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Folder for results.json and what belongs to it.")],
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Tasks or subfolders, with commas; default: all.")
    ] = None,
    official: Annotated[
        bool, typer.Option("--official", help="Score and count as the official pipeline does.")
    ] = False,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Also write the official predictions; implies --official.")
    ] = False,
    batch_tokens: Annotated[int, typer.Option(help="Most tokens in a batch, padding included.", min=1)] = 4096,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")] = None,
    revisions: Annotated[
        str | None,
        typer.Option("--revisions", help="all checkpoints chck_… of a repository or run folder, or a list of them."),
    ] = None,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Score a model on the BabyLM suite's tasks, or on your own minimal pairs, with or without pictures."""
    import json

    from .evaluation import evaluate_model, find_tasks, load_model, print_results
    from .evaluation.output import check_results_folder

    found = find_tasks(data, _names(tasks) if tasks else None)
    rules = {"official": official, "predictions": predictions, "batch_tokens": batch_tokens, "overwrite": overwrite}
    if revisions:
        from .evaluation.curves import evaluate_revisions, find_revisions, print_curves

        if revision:
            raise ValueError("Pass --revision for one checkpoint or --revisions for several, not both.")
        checkpoints = find_revisions(model, revisions)
        results = evaluate_revisions(
            model, checkpoints, found, output_dir, trust_remote_code=trust_remote_code, **rules
        )
        print(json.dumps(results)) if as_json else print_curves(results)
        _raise_failures(results)
        return
    check_results_folder(output_dir, overwrite)
    loaded, processor = load_model(model, revision, trust_remote_code)
    results = evaluate_model(
        loaded,
        processor,
        found,
        output_dir,
        name=model,
        revision=revision,
        **rules,
    )
    print(json.dumps(results)) if as_json else print_results(results)
    _raise_failures(results)


def _names(listed: str) -> list[str]:
    """Names that are given with commas."""
    return [name.strip() for name in listed.split(",")]


def _raise_failures(results: dict) -> None:
    """Raise ValueError if anything failed, now that the rest is written and printed."""
    if results["failed"]:
        raise ValueError(" ".join(f"{task} failed: {sentence}" for task, sentence in results["failed"].items()))


@app.command()
def finetune(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or Hub id; of a multimodal model, the text side.")],
    data: Annotated[Path, typer.Option("--data", help="Folder of TASK.train.jsonl and TASK.valid.jsonl.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", help="Folder for results.json and what belongs to it.")],
    tasks: Annotated[str | None, typer.Option("--tasks", help="(Super)GLUE tasks, with commas; default: all.")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train low-rank additions, not the whole model.")] = False,
    seed: Annotated[list[int], typer.Option("--seed", help="Of a run; repeat it for the mean over several.")] = [42],  # noqa: B006
    learning_rate: Annotated[float | None, typer.Option(help="Default: 3e-5, with --lora 3e-4.")] = None,
    epochs: Annotated[int, typer.Option(help="At most; WSC, which is small, gets three times as many.", min=1)] = 10,
    predictions: Annotated[bool, typer.Option("--predictions", help="Also write the official predictions.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")] = None,
    trust_remote_code: Trust = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on (Super)GLUE tasks and score it on data it has not seen."""
    import json

    from .evaluation import print_results
    from .evaluation.glue import FineTuning, find_glue, finetune

    found = find_glue(data, _names(tasks) if tasks else None)
    settings = FineTuning(tuple(seed), lora, learning_rate or (3e-4 if lora else 3e-5), epochs)
    with contextlib.redirect_stdout(sys.stderr):  # the trainer prints its scores
        results = finetune(
            model,
            found,
            output_dir,
            settings,
            revision=revision,
            trust_remote_code=trust_remote_code,
            predictions=predictions,
            overwrite=overwrite,
        )
    print(json.dumps(results)) if as_json else print_results(results)
    _raise_failures(results)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="results.json of `evaluate`, or its folder.")],
    b: Annotated[Path, typer.Argument(help="The same of another model on the same data.")],
    as_json: AsJson = False,
) -> None:
    """Compare two models item by item: differences with intervals and tests."""
    import json

    from .evaluation import compare_results, print_comparison

    comparison = compare_results(a, b)
    if as_json:
        print(json.dumps(comparison))
    else:
        print_comparison(comparison)


@app.command()
def caption(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or Hub id of a multimodal or merged model.")],
    images: Annotated[list[Path], typer.Argument(help="Pictures.")],
    prompt: Annotated[str, typer.Option(help="Beginning of the caption.")] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Longest caption, in tokens.")] = 20,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")] = None,
    trust_remote_code: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Caption pictures, greedily."""
    import json

    from .evaluation import load_model
    from .evaluation.caption import caption_pictures

    loaded, processor = load_model(model, revision, trust_remote_code)
    for image, text in zip(images, caption_pictures(loaded, processor, images, prompt, max_new_tokens), strict=True):
        print(json.dumps({"image": str(image), "caption": text}) if as_json else f"{image}: {text}")


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="Checkpoint, with checkpoints chck_* in it, or a folder of models.")],
    repo_id: Annotated[str, typer.Option("--repo-id", help="user/name on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make the new repository a private one.")] = False,
    revision: Annotated[str, typer.Option("--revision", help="Branch of the checkpoint itself.")] = "main",
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose it to a repository that exists.")] = False,
    results: Annotated[
        Path | None, typer.Option("--results", help="results.json of `evaluate`, for the card.")
    ] = None,
    self_contained: Annotated[bool, typer.Option("--self-contained", help="Include a tower of the Hub.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List every file and its size; send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish a checkpoint on the Hub: one commit per revision, none where nothing changed."""
    import json

    from .hub.push import print_pushed, print_run, read_run
    from .hub.push import push as run_push

    if dry_run:
        read = read_run(run, repo_id, revision, results, self_contained)
        rows = [one.describe(name) for name, revisions in read.items() for one in revisions]
        print(json.dumps(rows)) if as_json else print_run(rows)
        return
    done = run_push(run, repo_id, private, revision, create_pr, results, self_contained)
    print(json.dumps(done)) if as_json else print_pushed(done)


@app.command()
def push_metrics(
    user: Annotated[str, typer.Option("--user", help="User or organisation on the Hub.")],
    folder: Annotated[
        Path | None, typer.Option("--metrics", help="Folder with a folder NAME per metric; default: ours.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make new Spaces private ones.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish metrics of the evaluate library, each as a Space: then evaluate.load("user/NAME") has them."""
    import json

    from .hub.push import print_pushed
    from .hub.push_metrics import METRICS
    from .hub.push_metrics import push_metrics as run_push

    done = run_push(user, folder or METRICS, private)
    print(json.dumps(done)) if as_json else print_pushed(done)


def _print_steps(rows: list[dict]) -> None:
    """A table of what happens to every tensor; models are shown as letters, which are explained under it."""
    from rich.table import Table

    names = sorted({name for row in rows for name in row["sources"]})
    letters = {name: chr(ord("A") + place) for place, name in enumerate(names)}
    table = Table("Tensor", "Shape", "Dtype", "Made from", box=None)
    for row in rows:
        models = [letters[name] for name in row["sources"]]
        made = {
            "copy": f"copy of {models[0]}",
            "interpolate": " + ".join(f"{w:g} {m}" for w, m in zip(row["weights"], models, strict=False)),
        }.get(row["operation"], f"{row['operation']} of {', '.join(models)}")
        table.add_row(row["name"], " x ".join(map(str, row["shape"])), row["dtype"], made)
    console = Console()
    console.width = max(console.width, 120)  # a narrow terminal breaks lines, but loses nothing
    console.print(table)
    copies = sum(row["operation"] == "copy" for row in rows)
    print(f"{len(rows)} tensors: {copies} copied, {len(rows) - copies} merged. Nothing was written.")
    print("\n".join(f"{letter} = {name}" for name, letter in letters.items()))


def main() -> None:
    """Run a command; wrong input ends with one sentence and exit code 1."""
    atexit.register(gc.freeze)  # at its end Python would search all of torch for garbage, and small merges are short
    try:
        app()
    except (OSError, ValueError) as error:
        from .files import is_disk_full

        sentence = escape(" ".join(str(error).split()))
        if is_disk_full(error):
            sentence += ". Make room, or let HF_HOME name a larger disk if it is a download that needs it."
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]Error:[/red] {sentence}")
        sys.exit(1)


if __name__ == "__main__":
    main()
