"""Train a language-only and a multimodal BabyLM, merge their weights, measure both abilities.

Importing this registers the model with the Auto classes: `AutoModelForCausalLM.from_pretrained(folder)` then needs no
`trust_remote_code`.
"""

from .model import BabylmVlmConfig, BabylmVlmForConditionalGeneration, BabylmVlmModel, BabylmVlmProcessor

__all__ = ["BabylmVlmConfig", "BabylmVlmForConditionalGeneration", "BabylmVlmModel", "BabylmVlmProcessor"]
