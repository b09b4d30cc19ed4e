"""Configuration of a semi-causal model for transformers."""

from typing import Any

from transformers import PretrainedConfig

_SMALLEST: dict[str, Any] = {
    "decoder": {
        "vocabulary": 8,
        "width": 8,
        "num_layers": 1,
        "heads": 1,
        "feed_forward": 8,
        "max_tokens": 2,
        "norm": "deepnorm",
        "tied_head": True,
    },
    "encoders": {},
}
"""transformers makes a configuration without arguments, to see what another one changes."""


class SemicausalConfig(PretrainedConfig):
    """Shape of a causal decoder and of the encoders whose vectors fill some of its slots.

    Args:
        shape: of `decoder` and `encoders`, with the keys of a run's `model`.
        trained: what the checkpoint says of the training that it came from; for the way back.
        kwargs: what every configuration of transformers knows.
    """

    model_type = "semicausal"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  # transformers' own type

    def __init__(
        self,
        shape: dict[str, Any] | None = None,
        trained: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.shape: dict[str, Any] = _SMALLEST if shape is None else shape
        self.trained = trained
        decoder = self.shape["decoder"]
        # What tools ask of any model; the shape decides.
        known: dict[str, Any] = {
            "vocab_size": decoder["vocabulary"],
            "hidden_size": decoder["width"],
            "num_hidden_layers": decoder["num_layers"],
            "num_attention_heads": decoder["heads"],
            "num_key_value_heads": decoder.get("kv_heads") or decoder["heads"],
            "head_dim": decoder.get("head_width") or decoder["width"] // decoder["heads"],
            "intermediate_size": decoder["feed_forward"],
            "max_position_embeddings": decoder["max_tokens"],
            "tie_word_embeddings": decoder["tied_head"],
            "initializer_range": 0.02,
            "use_cache": True,
        }
        super().__init__(**(known | kwargs | {"tie_word_embeddings": decoder["tied_head"]}))
        for name, value in known.items():
            setattr(self, name, value if name != "use_cache" else kwargs.get(name, value))
