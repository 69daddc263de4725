"""Configuration of a Llama with eyes.

- Every decoder field is `LlamaConfig`'s own, so `hidden_size` and its kin stand at top level and a multimodal
  checkpoint can be read as a plain `LlamaForCausalLM`.
- The frozen vision tower is named, not nested: its own `config.json` describes it.
- `image_processor` repeats the tower's preprocessing, because `config.json` is the one file that every merging tool
  carries along.
"""

from typing import TYPE_CHECKING

from transformers import LlamaConfig

if TYPE_CHECKING:  # never imported at run time; it tells tools that copy this file which other files belong to it
    from .modeling_babylm_vlm import BabylmVlmForConditionalGeneration  # noqa: F401
    from .processing_babylm_vlm import BabylmVlmProcessor  # noqa: F401

AUTO_MAP = {
    "AutoConfig": "configuration_babylm_vlm.BabylmVlmConfig",
    "AutoModel": "modeling_babylm_vlm.BabylmVlmModel",
    "AutoModelForCausalLM": "modeling_babylm_vlm.BabylmVlmForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_babylm_vlm.BabylmVlmForConditionalGeneration",
    "AutoProcessor": "processing_babylm_vlm.BabylmVlmProcessor",
}


class BabylmVlmConfig(LlamaConfig):
    """A `LlamaConfig` plus the fields of the eyes.

    Args:
        vision_tower: Hub id or folder of any ViT-like `AutoModel` backbone. `./vision_tower` means the folder of that
            name beside the weights.
        vision_tower_revision: branch, tag or commit of the tower on the Hub.
        vision_feature_layer: which of the tower's `hidden_states` is pooled; -2 is the paper's choice for DINOv2.
        vision_hidden_size: width of the tower's features.
        vision_grid: patch features are mean-pooled to `vision_grid x vision_grid` visual tokens; 1 is the paper's.
        projector_hidden_act: activation between the projector's two linear layers.
        image_token_id: id of the `<image>` token, which stands for one visual token.
        image_processor: the tower's preprocessing, as in its `preprocessor_config.json`.
        **kwargs: the decoder's fields, as in `LlamaConfig`.
    """

    model_type = "babylm_vlm"

    def __init__(
        self,
        vision_tower: str = "facebook/dinov2-large",
        vision_tower_revision: str | None = None,
        vision_feature_layer: int = -2,
        vision_hidden_size: int = 1024,
        vision_grid: int = 1,
        projector_hidden_act: str = "gelu",
        image_token_id: int | None = None,
        image_processor: dict | None = None,
        **kwargs,
    ):
        self.vision_tower = vision_tower
        self.vision_tower_revision = vision_tower_revision
        self.vision_feature_layer = vision_feature_layer
        self.vision_hidden_size = vision_hidden_size
        self.vision_grid = vision_grid
        self.projector_hidden_act = projector_hidden_act
        self.image_token_id = image_token_id
        self.image_processor = image_processor
        super().__init__(**kwargs)
        self.auto_map = dict(AUTO_MAP)

    @property
    def visual_tokens(self) -> int:
        """Number of visual tokens a picture becomes: `vision_grid` squared."""
        return self.vision_grid**2
