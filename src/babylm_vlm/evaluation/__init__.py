"""Evaluation: log-probabilities, the BabyLM suite's tasks, their statistics, and `results.json`."""

from .choices import Item, picture_features, score_choices, takes_pictures
from .compare import compare_results
from .evaluate import evaluate_model, load_model
from .minimal_pairs import MinimalPair, read_pairs, score_pairs
from .output import print_comparison, print_results, write_results
from .scoring import conditional_scores, sequence_scores, token_scores
from .statistics import Accuracy, Difference, accuracy, difference_interval
from .tasks import find_tasks

__all__ = [
    "Accuracy",
    "Difference",
    "Item",
    "MinimalPair",
    "accuracy",
    "compare_results",
    "conditional_scores",
    "difference_interval",
    "evaluate_model",
    "find_tasks",
    "load_model",
    "picture_features",
    "print_comparison",
    "print_results",
    "read_pairs",
    "score_choices",
    "score_pairs",
    "sequence_scores",
    "takes_pictures",
    "token_scores",
    "write_results",
]
