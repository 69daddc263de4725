"""Train a language-only and a multimodal BabyLM, merge their weights, measure both abilities.

The four classes of the model are imported when they are first asked for, so that commands which need no model start
quickly. Importing `babylm_vlm.model`, or touching one of them, registers the model with the Auto classes:
`AutoModelForCausalLM.from_pretrained(folder)` then needs no `trust_remote_code`.
"""

__all__ = ["BabylmVlmConfig", "BabylmVlmForConditionalGeneration", "BabylmVlmModel", "BabylmVlmProcessor"]


def __getattr__(name: str) -> type:
    """One of the classes of `babylm_vlm.model` (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import model

    return getattr(model, name)
