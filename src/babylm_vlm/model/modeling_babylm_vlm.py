"""A Llama with eyes.

Path of a picture: frozen vision tower -> hidden state of one layer -> patch tokens mean-pooled to a g x g grid ->
two-layer MLP projector -> in place of the `<image>` tokens -> Llama decoder.

Choices:
- The classes are subclasses of Llama's, so every decoder parameter has the name it has in a plain
  `LlamaForCausalLM`: merging the two needs no name mapping.
- The tower is no submodule. It is loaded at the first picture, is never trained and is not in `state_dict()`.
- `image_features` (already pooled) can stand in for `pixel_values`, so training runs the tower once per picture.
- Pictures whose text has no `<image>` token get one right after BOS. The last T positions of the logits then predict
  what they predict without the picture, which is what evaluation code that slices `logits[:, -T:]` expects.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import snapshot_download
from torch import nn
from transformers import AutoModel, LlamaForCausalLM, LlamaModel
from transformers.activations import ACT2FN

from .configuration_babylm_vlm import BabylmVlmConfig

if TYPE_CHECKING:  # so that tools which copy this file copy that one too
    from .processing_babylm_vlm import BabylmVlmProcessor  # noqa: F401

TOWER_FOLDER = "./vision_tower"


class BabylmVlmProjector(nn.Module):
    """Two-layer MLP from the tower's width to the decoder's (LLaVA-1.5)."""

    def __init__(self, config: BabylmVlmConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_hidden_size, config.hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """(N, g*g, vision_hidden_size) -> (N, g*g, hidden_size)."""
        return self.linear_2(self.act(self.linear_1(image_features)))


class RemembersRepository:
    """A model that may find the vision tower in the repository of its weights, later."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As `PreTrainedModel.from_pretrained`."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        names = ("revision", "token", "cache_dir", "local_files_only")
        model.base_model.hub = {name: kwargs[name] for name in names if name in kwargs}
        return loaded


class BabylmVlmModel(RemembersRepository, LlamaModel):
    """The bare body: decoder and projector, without the language-modelling head."""

    config_class = BabylmVlmConfig

    def __init__(self, config: BabylmVlmConfig):
        super().__init__(config)
        self.multi_modal_projector = BabylmVlmProjector(config)
        self.hub = {}  # revision, token and cache of the repository that the weights are from
        self._tower = []  # a list, so that the frozen tower is no submodule
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        **kwargs,
    ):
        """See `BabylmVlmForConditionalGeneration.forward`."""
        if sees_pictures(pixel_values, image_features, past_key_values):
            given = input_ids
            input_ids, attention_mask, _ = self.insert_image_tokens(input_ids, attention_mask)
            position_ids = position_ids if input_ids.shape == given.shape else None
            inputs_embeds = self.embed_with_pictures(input_ids, pixel_values, image_features)
        return super().forward(
            input_ids=input_ids if inputs_embeds is None else None,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )

    def embed_with_pictures(
        self,
        input_ids: torch.LongTensor,
        pixel_values: torch.FloatTensor | None,
        image_features: torch.FloatTensor | None,
    ) -> torch.FloatTensor:
        """Token embeddings (B, T, hidden_size) with the projected pictures in place of the `<image>` tokens.

        Raises:
            ValueError: the number of `<image>` tokens differs from the number of visual tokens.
        """
        embeddings = self.embed_tokens(input_ids)
        if image_features is None:
            image_features = self.pooled_features(pixel_values)
        expected = (self.config.visual_tokens, self.config.vision_hidden_size)
        if image_features.dim() != 3 or tuple(image_features.shape[1:]) != expected:
            raise ValueError(
                f"image_features must have the shape (pictures, {expected[0]}, {expected[1]}), "
                f"but they have {tuple(image_features.shape)}."
            )
        visual = self.multi_modal_projector(image_features.to(embeddings)).to(embeddings.dtype)
        mask = input_ids == self.config.image_token_id
        if int(mask.sum()) != visual.shape[0] * visual.shape[1]:
            raise ValueError(
                f"The text has {int(mask.sum())} <image> tokens, but {visual.shape[0]} pictures need "
                f"{visual.shape[0] * visual.shape[1]} ({visual.shape[1]} each)."
            )
        return embeddings.masked_scatter(mask.unsqueeze(-1), visual)

    def insert_image_tokens(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        labels: torch.LongTensor | None = None,
    ) -> tuple[torch.LongTensor, torch.Tensor | None, torch.LongTensor | None]:
        """Give every row one picture's `<image>` tokens, right after BOS, if no row has any yet.

        Returns:
            `(input_ids, attention_mask, labels)`, each (B, T) or (B, T + g*g); labels of `<image>` tokens are -100.
        """
        image_token = self.config.image_token_id
        if (input_ids == image_token).any():
            if labels is not None:
                labels = labels.masked_fill(labels == image_token, -100)
            return input_ids, attention_mask, labels
        attended = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        first = attended.long().argmax(dim=1)  # of each row: its first token that is not padding
        has_bos = input_ids.gather(1, first.unsqueeze(1)).squeeze(1) == self.config.bos_token_id
        places = (first + has_bos.long()).tolist()

        def widen(rows: torch.Tensor, value: int) -> torch.Tensor:
            new = rows.new_full((self.config.visual_tokens,), value)
            return torch.stack([torch.cat([row[:p], new, row[p:]]) for row, p in zip(rows, places, strict=True)])

        return (
            widen(input_ids, image_token),
            None if attention_mask is None else widen(attention_mask, 1),
            None if labels is None else widen(labels, -100),
        )

    @torch.no_grad()
    def pooled_features(self, pixel_values: torch.FloatTensor) -> torch.FloatTensor:
        """Pictures (N, 3, H, W) -> pooled features (N, g*g, vision_hidden_size), by the frozen tower."""
        tower = self.vision_tower()
        pixel_values = torch.as_tensor(pixel_values).to(device=self.device, dtype=self.dtype)
        outputs = tower(pixel_values, output_hidden_states=True)
        patches = outputs.hidden_states[self.config.vision_feature_layer]
        height, width = (side // tower.config.patch_size for side in pixel_values.shape[-2:])
        patches = patches[:, -height * width :]  # CLS and register tokens come first
        picture = patches.transpose(1, 2).unflatten(2, (height, width))
        return nn.functional.adaptive_avg_pool2d(picture, self.config.vision_grid).flatten(2).transpose(1, 2)

    def vision_tower(self) -> nn.Module:
        """The frozen tower, loaded at the first call, on the model's device and in its dtype.

        Raises:
            FileNotFoundError: the tower should lie beside the weights on this disk, but does not.
        """
        if not self._tower:
            self._tower.append(self._load_tower().eval().requires_grad_(False))
        return self._tower[0].to(device=self.device, dtype=self.dtype)

    def _load_tower(self) -> nn.Module:
        name, checkpoint = self.config.vision_tower, self.config.name_or_path
        local = self.local_tower()
        if local is not None:
            return AutoModel.from_pretrained(local, use_safetensors=True)
        if not name.startswith("./"):
            return AutoModel.from_pretrained(name, revision=self.config.vision_tower_revision, use_safetensors=True)
        downloaded = self.downloaded_tower()
        if downloaded is None:
            raise FileNotFoundError(
                f"The vision tower {Path(checkpoint, name)} is missing: copy the folder vision_tower/ of the "
                "multimodal model beside these weights (mergekit does not copy it), or pass image_features."
            )
        return AutoModel.from_pretrained(downloaded, use_safetensors=True)

    def local_tower(self) -> Path | None:
        """Folder of the tower, if it is on this disk."""
        name = self.config.vision_tower
        folder = Path(self.config.name_or_path, name) if name.startswith("./") else Path(name)
        return folder if folder.is_dir() else None

    def downloaded_tower(self) -> Path | None:
        """Folder of the tower in the Hub's cache, if it lies beside these weights in a repository of the Hub."""
        name, repository = self.config.vision_tower, self.config.name_or_path
        if not name.startswith("./") or not repository or Path(repository).is_dir():
            return None
        snapshot = snapshot_download(repository, allow_patterns=f"{name[2:]}/*", **self.hub)
        tower = Path(snapshot, name)
        return tower if tower.is_dir() else None


class BabylmVlmForConditionalGeneration(RemembersRepository, LlamaForCausalLM):
    """Decoder, projector and language-modelling head. Text alone needs no picture."""

    config_class = BabylmVlmConfig

    def __init__(self, config: BabylmVlmConfig):
        super().__init__(config)
        self.model = BabylmVlmModel(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        pixel_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        **kwargs,
    ):
        """As `LlamaForCausalLM.forward`, with pictures.

        Args:
            input_ids: (B, T). Each picture takes the place of g*g `<image>` tokens, in reading order; if there are
                none, every row is given one picture right after BOS and the output is g*g positions longer.
            labels: (B, T); -100 is ignored, and so are `<image>` tokens.
            pixel_values: pictures (N, 3, H, W), as the processor makes them; or
            image_features: pooled features (N, g*g, vision_hidden_size), as `pooled_features` makes them.
        """
        if sees_pictures(pixel_values, image_features, past_key_values):
            given = input_ids
            input_ids, attention_mask, labels = self.model.insert_image_tokens(input_ids, attention_mask, labels)
            position_ids = position_ids if input_ids.shape == given.shape else None
            inputs_embeds = self.model.embed_with_pictures(input_ids, pixel_values, image_features)
        return super().forward(
            input_ids=input_ids if inputs_embeds is None else None,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def generate(self, inputs: torch.LongTensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs):
        """As `GenerationMixin.generate`, for pictures too and for padding on either side.

        Pictures without `<image>` tokens get them before the first step; right padding is moved to the left, where
        new tokens can follow the text, so the returned rows are left-padded.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is not None and sees_pictures(kwargs.get("pixel_values"), kwargs.get("image_features"), None):
            input_ids, attention_mask, _ = self.model.insert_image_tokens(input_ids, attention_mask)
        if input_ids is not None and attention_mask is not None:
            padding_first = attention_mask.long().argsort(dim=1, stable=True)
            input_ids, attention_mask = input_ids.gather(1, padding_first), attention_mask.gather(1, padding_first)
        return super().generate(input_ids, attention_mask=attention_mask, **kwargs)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """As `GenerationMixin`'s, for beams and samples: a row's pictures stay together when the row is repeated."""
        pictures = {}
        for name in ("pixel_values", "image_features"):
            if model_kwargs.get(name) is not None:
                counts = (input_ids == self.config.image_token_id).sum(dim=1) // self.config.visual_tokens
                rows = model_kwargs.pop(name).split(counts.tolist())
                pictures[name] = torch.cat([row for row in rows for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, model_kwargs | pictures

    def pooled_features(self, pixel_values: torch.FloatTensor) -> torch.FloatTensor:
        """Pictures (N, 3, H, W) -> pooled features (N, g*g, vision_hidden_size), by the frozen tower."""
        return self.model.pooled_features(pixel_values)

    def save_pretrained(self, save_directory, **kwargs):
        """As `PreTrainedModel.save_pretrained`. A tower beside the weights is copied, any other is named."""
        tower, name = self.model.local_tower() or self.model.downloaded_tower(), self.config.vision_tower
        if tower is not None:
            target = Path(save_directory) / TOWER_FOLDER
            if target.resolve() != tower.resolve():
                shutil.copytree(tower, target, dirs_exist_ok=True)
            self.config.vision_tower = TOWER_FOLDER
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.config.vision_tower = name


def sees_pictures(pixel_values, image_features, past_key_values) -> bool:
    """Whether this step reads pictures: they are given, and no earlier step has put them into the cache."""
    if pixel_values is None and image_features is None:
        return False
    return past_key_values is None or past_key_values.get_seq_length() == 0
