"""Keys of a recipe that trains a tiny language model in a second."""

TINY_RUN = {
    "model": "language",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "block_size": 16,
    "per_device_train_batch_size": 2,
    "disable_tqdm": True,
}
