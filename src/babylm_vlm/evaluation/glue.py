"""(Super)GLUE by fine-tuning: what does a model know that a few thousand labelled examples can bring out?

- Files in the official layout, `TASK.train.jsonl` and `TASK.valid.jsonl`; texts and their templates as there.
- A classifier on the last hidden state of the last token that is no padding, which in a causal model is the only one
  that has seen the whole text. Multimodal models are fine-tuned on text alone.
- The epoch to keep is chosen on a part of the training data, never on the reported data: on a tenth of the passages
  (second texts), with all of their questions.
- The whole model is trained, or with LoRA (Hu et al. 2022) low-rank additions to its linear layers; the head always.
- Reported are accuracy and, for MRPC and QQP, F1 of label 1, beside what always saying the training data's most
  frequent label gets.

Everything about training is Hugging Face's `Trainer`, with the official pipeline's head, learning rate and schedule.
(There BoolQ and MultiRC get 16 examples per update, no gradient is clipped, and weight decay spares no parameters.)
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from string import Formatter

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ..files import sha256
from .evaluate import add_rows, check_any_done, checkpoint_source, kept_or_made, load_model, measurement, new_results
from .output import check_results_folder, items_file, write_results, write_whole
from .predictions import predictions_tree, write_collated
from .rows import SUFFIXES, json_rows, text_field
from .statistics import label_accuracy, label_f1
from .tasks import WITH_F1, Outcome, Sampling, measure_labels

LONGEST = 512  # tokens of a pair of texts
PART_FOR_STOPPING = 0.1


@dataclass(frozen=True)
class GlueTask:
    """How a row becomes a pair of texts: templates over its fields, and the number of labels."""

    first: str
    second: str
    labels: int = 2


TASKS = {
    "boolq": GlueTask("{question}", "{passage}"),
    "mnli": GlueTask("{premise}", "{hypothesis}", labels=3),
    "mrpc": GlueTask("{sentence1}", "{sentence2}"),
    "multirc": GlueTask("Question: {question} Answer: {answer}", "{paragraph}"),
    "qqp": GlueTask("{question1}", "{question2}"),
    "rte": GlueTask("{sentence1}", "{sentence2}"),
    "wsc": GlueTask('Does "{span2_text}" refer to "{span1_text}" in this passage?', "{text}"),
}


@dataclass(frozen=True)
class Example:
    """Two texts and the label of the pair, from 0."""

    first: str
    second: str
    label: int


@dataclass(frozen=True)
class FineTuning:
    """How to train.

    Attributes:
        seeds: of the head's weights, the order of the data and what is set aside; reported is the mean of all runs.
        lora: train low-rank additions in place of the whole model.
        learning_rate: at its highest.
        epochs: at most; three times as many for WSC, which is small.
        patience: epochs without a better score, after which training ends.
        batch_size: examples per update.
    """

    seeds: tuple[int, ...] = (42,)
    lora: bool = False
    learning_rate: float = 3e-5
    epochs: int = 10
    patience: int = 3
    batch_size: int = 32


class LastTokenClassifier(nn.Module):
    """A model's body, and the official pipeline's head on its last token.

    Args:
        body: any `AutoModel` whose output has a `last_hidden_state`.
        labels: number of labels.
    """

    def __init__(self, body: nn.Module, labels: int):
        super().__init__()
        self.body = body
        size = body.config.get_text_config().hidden_size
        norm = {"eps": 1e-5, "elementwise_affine": False}
        self.head = nn.Sequential(
            nn.LayerNorm(size, **norm),
            nn.Linear(size, size),
            nn.GELU(),
            nn.LayerNorm(size, **norm),
            nn.Dropout(0.1),
            nn.Linear(size, labels),
        )

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """`logits` (B, labels) of texts (B, T), padded anywhere; with `labels` (B,) also the cross-entropy `loss`."""
        states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (B, T, D)
        places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = (attention_mask * places).argmax(dim=1)
        logits = self.head(states[torch.arange(len(last), device=last.device), last].float())
        return {"logits": logits} | ({} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)})


def find_glue(data: Path, names: Sequence[str] | None = None) -> dict[str, tuple[Path, Path]]:
    """Files of training and of reported data of each task in a folder.

    Args:
        data: folder such as `evaluation_data/full_eval/glue_filtered`.
        names: which tasks; by default all whose files are there.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: there is no such task.
    """
    if not Path(data).is_dir():
        raise FileNotFoundError(f"the data folder {data} does not exist.")
    there = {name: files for name in TASKS if (files := _files(Path(data), name))}
    chosen = list(there) if names is None else list(names)
    for name in chosen:
        if name not in TASKS:
            raise ValueError(f"There is no GLUE task {name}; choose among {', '.join(TASKS)}.")
        if name not in there:
            raise FileNotFoundError(f"{data} lacks {name}.train.jsonl or {name}.valid.jsonl (or .jsonl.gz).")
    if not chosen:
        raise FileNotFoundError(f"{data} holds no TASK.train.jsonl and TASK.valid.jsonl of {', '.join(TASKS)}.")
    return {name: there[name] for name in chosen}


def _files(data: Path, name: str) -> tuple[Path, ...]:
    """The two files of a task; nothing if one is missing."""
    found = [[data / f"{name}.{part}{suffix}" for suffix in SUFFIXES] for part in ("train", "valid")]
    there = [[file for file in files if file.is_file()] for files in found]
    return tuple(files[0] for files in there) if all(there) else ()


def read_glue(file: Path, name: str) -> list[Example]:
    """Examples of a file. Errors as `json_rows`, or a field is missing or malformed; with `file:line`."""
    task, examples = TASKS[name], []
    for _, where, row in json_rows(file):
        fields = {key: text_field(row, key, where) for key in _fields(task)}
        label = row.get("label")
        if label not in range(task.labels):
            raise ValueError(f"{where}: the field label must be from 0 to {task.labels - 1}, not {label!r}.")
        examples.append(Example(task.first.format(**fields), task.second.format(**fields), int(label)))
    return examples


def _fields(task: GlueTask) -> list[str]:
    """Names of the fields in a task's templates."""
    return [name for text in (task.first, task.second) for _, name, _, _ in Formatter().parse(text) if name]


def set_aside(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Examples to train on, and about a tenth to choose the epoch on; no second text is in both.

    Raises:
        ValueError: all examples share their second text.
    """
    texts = list(dict.fromkeys(example.second for example in examples))
    if len(texts) < 2:
        raise ValueError("the training data needs two or more different second texts, to set some of them aside.")
    order = np.random.default_rng(seed).permutation(len(texts))
    aside = {texts[i] for i in order[: max(1, round(PART_FOR_STOPPING * len(texts)))]}
    return (
        [example for example in examples if example.second not in aside],
        [example for example in examples if example.second in aside],
    )


def finetune(
    model: str,
    tasks: dict[str, tuple[Path, Path]],
    output_dir: Path,
    settings: FineTuning = FineTuning(),
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    predictions: bool = False,
    resamples: int = 2000,
    overwrite: bool = False,
    progress: bool = True,
) -> dict:
    """Fine-tune a model on every task, and write `results.json` and what stands beside it (output.py).

    A task that fails is named in the results and loses nothing of the others. Labels are kept as soon as a task is
    done, and taken up again when the same model, data, settings and versions come back.

    Args:
        model: checkpoint folder or Hub id.
        tasks: as `find_glue` gives them.
        output_dir: folder to write.
        settings: how to train.
        revision: of the model on the Hub.
        trust_remote_code: run the code that comes with models of other architectures.
        predictions: also write the official predictions tree (of the first seed) and its part of the collated file.
        resamples: of the bootstrap behind the intervals, over items; items with the same second text are one cluster.
        overwrite: replace earlier results.
        progress: show bars.

    Returns:
        what `results.json` holds.

    Raises:
        FileExistsError: there are results already.
        FileNotFoundError: there is no such model.
        ValueError: every task failed; the reasons.
    """
    check_results_folder(output_dir, overwrite)
    body, _ = load_model(model, revision, trust_remote_code, AutoModel)
    sampling = Sampling(resamples=resamples)
    results = new_results(body, model, revision, sampling)
    results["fine_tuning"] = {**asdict(settings), "seeds": list(settings.seeds)}
    source = checkpoint_source(Path(model), results["model"]["commit"])
    load = partial(load_model, model, revision, trust_remote_code, AutoModel)
    collated = {}
    for name, files in tasks.items():
        try:
            results["data_sha256"][name] = {file.name: sha256(file) for file in files}
            measured = measurement(results, name, "glue", source) | {"fine_tuning": results["fine_tuning"]}
            make = partial(_outcomes, load, name, files, settings, progress)
            outcomes = kept_or_made(items_file(output_dir, name), measured, make)
            rows = measure_labels(name, outcomes, sampling)
        except (OSError, ValueError) as error:
            results["failed"][name] = str(error)
            continue
        add_rows(results, rows, pictures=0, pictures_used=False)
        made = [{"id": f"{name}_{i}", "pred": int(outcome.scores[0])} for i, outcome in enumerate(outcomes)]
        collated[name] = {"predictions": made}
    check_any_done(results["tasks"], results["failed"])
    if predictions:
        tree = predictions_tree(Path(output_dir, "predictions"), model, revision)
        for name, made in collated.items():
            write_whole(tree / "finetune" / name / "predictions.json", json.dumps({name: made}).encode())
        results["predictions"] = write_collated(Path(output_dir, "predictions"), model, {"glue": collated})
    write_results(results, output_dir, overwrite)
    return results


def _outcomes(
    load: Callable[[], tuple], name: str, files: Sequence[Path], settings: FineTuning, progress: bool
) -> list[Outcome]:
    """What `measure_labels` takes: the labels of the reported examples under each seed.

    Args:
        load: gives the body and its processor, fresh for every seed.
        files: of training and of reported data.
    """
    training, reported = (read_glue(file, name) for file in files)
    predicted = [_predicted(*load(), name, training, reported, settings, seed, progress) for seed in settings.seeds]
    ((majority, _),) = Counter(example.label for example in training).most_common(1)
    return [
        Outcome(name, example.second, tuple(map(float, labels)), {"label": example.label, "majority": majority})
        for example, labels in zip(reported, np.transpose(predicted), strict=True)
    ]


def _predicted(
    body: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    name: str,
    training: Sequence[Example],
    reported: Sequence[Example],
    settings: FineTuning,
    seed: int,
    progress: bool,
) -> np.ndarray:
    """Labels (n,) of the reported examples, as a classifier has them that was trained under a seed."""
    tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
    tokenizer.padding_side, tokenizer.pad_token = "right", tokenizer.pad_token or tokenizer.eos_token
    set_seed(seed)
    if settings.lora:
        body = get_peft_model(body, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear"))
    metric = "f1" if name in WITH_F1 else "accuracy"
    train, aside = (_tokenized(tokenizer, body, part) for part in set_aside(training, seed))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            LastTokenClassifier(body, TASKS[name].labels),
            _arguments(folder, name, metric, settings, seed, progress),
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=train,
            eval_dataset=aside,
            compute_metrics=_metrics,
            callbacks=[EarlyStoppingCallback(settings.patience)],
        )
        trainer.train()
        logits = trainer.predict(_tokenized(tokenizer, body, reported)).predictions
    if not np.isfinite(logits).all():
        raise ValueError(f"training on {name} diverged (seed {seed}); pass a lower --learning-rate.")
    return logits.argmax(axis=1)


def _tokenized(tokenizer: PreTrainedTokenizerBase, body: nn.Module, examples: Sequence[Example]) -> Dataset:
    """Pairs as the tokenizer joins them, the longer text cut to what the model takes, and their labels."""
    longest = min(LONGEST, getattr(body.config.get_text_config(), "max_position_embeddings", LONGEST))
    texts = ([example.first for example in examples], [example.second for example in examples])
    encoded = tokenizer(*texts, truncation=True, max_length=longest)
    names = ("input_ids", "attention_mask")
    labels = [example.label for example in examples]
    return Dataset.from_dict({**{name: encoded[name] for name in names}, "labels": labels})


def _arguments(
    folder: str, name: str, metric: str, settings: FineTuning, seed: int, progress: bool
) -> TrainingArguments:
    """The official pipeline's optimiser and schedule; the best epoch on the part set aside is kept."""
    return TrainingArguments(
        folder,
        seed=seed,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs * (3 if name == "wsc" else 1),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        weight_decay=0.01,
        warmup_steps=0.06,  # of all steps
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_strategy="no",
        report_to="none",
        disable_tqdm=not progress,
    )


def _metrics(found: EvalPrediction) -> dict[str, float]:
    """Accuracy and F1 of logits (n, labels)."""
    predicted, once = found.predictions.argmax(axis=1), np.ones((1, len(found.label_ids)), dtype=int)
    scores = {"accuracy": label_accuracy, "f1": label_f1}
    return {name: float(score(predicted, found.label_ids, once)[0]) for name, score in scores.items()}
