"""Evaluation: log-probabilities, minimal pairs, their statistics, and `results.json`."""

from .evaluate import evaluate_model, find_tasks, load_model, print_results, write_results
from .minimal_pairs import MinimalPair, picture_features, read_pairs, score_pairs
from .scoring import sequence_scores, token_scores
from .statistics import Accuracy, Difference, accuracy, difference_interval

__all__ = [
    "Accuracy",
    "Difference",
    "MinimalPair",
    "accuracy",
    "difference_interval",
    "evaluate_model",
    "find_tasks",
    "load_model",
    "picture_features",
    "print_results",
    "read_pairs",
    "score_pairs",
    "sequence_scores",
    "token_scores",
    "write_results",
]
