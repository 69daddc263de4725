"""What travels with a checkpoint. Importing this registers the classes with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from .configuration_babylm_vlm import BabylmVlmConfig
from .modeling_babylm_vlm import BabylmVlmForConditionalGeneration, BabylmVlmModel
from .processing_babylm_vlm import BabylmVlmProcessor

AutoConfig.register("babylm_vlm", BabylmVlmConfig)
AutoModel.register(BabylmVlmConfig, BabylmVlmModel)
AutoModelForCausalLM.register(BabylmVlmConfig, BabylmVlmForConditionalGeneration)
AutoModelForImageTextToText.register(BabylmVlmConfig, BabylmVlmForConditionalGeneration)
AutoProcessor.register(BabylmVlmConfig, BabylmVlmProcessor)

# Ship the code with every saved checkpoint.
BabylmVlmConfig.register_for_auto_class()
BabylmVlmModel.register_for_auto_class("AutoModel")
BabylmVlmForConditionalGeneration.register_for_auto_class("AutoModelForCausalLM")
BabylmVlmProcessor.register_for_auto_class()

__all__ = ["BabylmVlmConfig", "BabylmVlmForConditionalGeneration", "BabylmVlmModel", "BabylmVlmProcessor"]
