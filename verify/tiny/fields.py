"""What a config field means, by its name: the one table of hints there is. No name of a model occurs in it."""

from __future__ import annotations

import re
from enum import Enum, auto
from functools import cache
from typing import Any


class Kind(Enum):
    """The meaning of an integer field, or of a list of them."""

    KEEP = auto()
    """Left as it is: kernel sizes, strides, flags, rates, anything unknown."""
    TOKEN = auto()
    """The id of a token, or a list of them."""
    LAYERS = auto()
    """A number of layers, or one per stage."""
    LAYER_INDEX = auto()
    """A layer's index, or a list of them; the end may be counted back from."""
    LAYER_SUBSET = auto()
    """A list of the layers that are of another kind than the rest: the rest must stay."""
    LAYER_COUNT = auto()
    """A number of layers out of all: at most one fewer than there are."""
    PERIOD = auto()
    """Every so many layers one is of another kind."""
    HEADS = auto()
    HEAD_DIM = auto()
    WIDTH = auto()
    FILTERS = auto()
    """The width of the first stage of a codec, doubled from stage to stage."""
    INNER = auto()
    """The width inside a feed-forward layer: free, unless it equals another width."""
    VOCABULARY = auto()
    POSITIONS = auto()
    FRAMES = auto()
    """A number of frames of audio that an encoder takes, or of positions after its convolutions."""
    EXPERTS = auto()
    TOP_K = auto()
    EXPERT_GROUPS = auto()
    TOP_GROUPS = auto()
    GROUPS = auto()
    """Groups of a convolution or a normalization: divide the width."""
    WINDOW = auto()
    """Tokens that a sliding window or a chunk of attention spans: smaller than the inputs, so that it matters."""
    SPAN = auto()
    """Frames that are masked together in training: fewer than a short input has."""
    IMAGE = auto()
    """The side of an image in pixels, or height and width."""
    GRID = auto()
    """A number of tokens or positions that follows from the image's size."""
    COUNT = auto()
    """Queries, latents, points, samples: fewer do."""


# The first pattern that matches counts. Each is searched for in the name.
_HINTS: tuple[tuple[str, Kind], ...] = (
    (r"token_(id|index|ids)$|^(bos|eos|pad|unk|mask|sep|cls)_(index|id)$", Kind.TOKEN),
    (r"kernel|stride|padding|dilation|_rate$|_rates$|factor|_ratios?$|frequency_embedding|chunk_size_feed|tokenizer_chunk_size|^spec_size", Kind.KEEP),
    (r"^mask_(time|feature)_length$", Kind.SPAN),
    (r"mel_bins|n_mels|sampling|hop_length|n_fft|num_frames|tubelet|patch_size|temporal", Kind.KEEP),
    (r"type_vocab|num_labels|conv_layers$|feat_extract_layers|merge_size|pretraining_tp|_bits$|_scales?$", Kind.KEEP),
    (r"first_k_dense|max_window_layers|kv_shared_layers|num_dense_layers|nextn|mtp|num_hash_layers", Kind.LAYER_COUNT),
    (r"fullatt_block|full_attn_idxs|global_att(n|ention)_(index|block)|window_block|mlp_only_layers|no_rope_layers", Kind.LAYER_SUBSET),
    (r"hybrid_layer|moe_layers$|cross_attention_layers|_layer_ids$", Kind.LAYER_SUBSET),
    (r"source_layers$", Kind.LAYER_SUBSET),
    (r"(indexes|indices|idxs)$|feature_layers?$|extract_layers$|hook_ids|insert_layer|layer_ids?$|_index$", Kind.LAYER_INDEX),
    (r"period|offset$|every_n|_pattern$|_step$|_interval$|attention_frequency|_freq$", Kind.PERIOD),
    (r"index_topk", Kind.WINDOW),
    (r"experts_per_tok|topk$|top_k(_experts)?$|moe_k$|selected_experts|experts_top_k", Kind.TOP_K),
    (r"^topk_groups?$", Kind.TOP_GROUPS),
    (r"^n_groups?$|^num_expert_groups?$", Kind.EXPERT_GROUPS),
    (r"experts?_intermediate_size$", Kind.INNER),
    (r"shared_experts|expert_capacity", Kind.KEEP),
    (r"(^|_)experts$|num_experts", Kind.EXPERTS),
    (r"head_dim|^d_kv$|^d_head$|dim_head$|_d_head$|head_size$|kv_channels|dim_per_head|^rotary_dim$|rope_dim", Kind.HEAD_DIM),
    (r"heads?$|heads_per|num_attention_heads|num_heads|kv_heads", Kind.HEADS),
    (r"(^|_)depths?$|n?_?layers?$|num_blocks$|_blocks$|num_block_repeats|num_encoder_blocks|layers_per", Kind.LAYERS),
    (r"vocab_size|byte_group_vocab$|codebook_size|num_embeddings$|num_codevectors|n_vocab|num_buckets$|label_vocab", Kind.VOCABULARY),
    (r"max_source_positions|max_length_frames|audio_length|audio_context|max_mel", Kind.FRAMES),
    (r"max_.*position|n_positions|^max_seq|max_target|max_sequence|max_text_len|max_length$|^seq_len", Kind.POSITIONS),
    (r"sliding_window|attention_window|attention_chunk|chunk_size$|index_topk|window_attn", Kind.WINDOW),
    (r"image_size|img_size|image_height|image_width|^input_size$|train_size|crop_size|image_resolution", Kind.IMAGE),
    (r"image_seq_len|image_tokens?$|tokens_per_image|image_token_len|num_patches|^num_image_text|soft_tokens", Kind.GRID),
    (r"query_num$|num_(queries|query_tokens?|latents|.*_queries|.*denoising|.*samples|negatives|proposals)|_latents$|^n_latents", Kind.COUNT),
    (r"groups$|num_group|n_groups", Kind.GROUPS),
    (r"^(n|num)_filters$", Kind.FILTERS),
    (r"intermediate|ffn|mlp_dim|^d_?ff|d_inner|n_inner|feedforward|mlp_hidden", Kind.INNER),
    (r"size$|sizes$|dims?$|dimension$|^d_model$|embd$|width|channels?$|rank$|filters?$|units$|features?$|_size_per|planes$|size_global$|dim_per_stage|channel_list$|pos_feats$|d_ssm$", Kind.WIDTH),
)  # fmt: skip
# Kernels, strides and paddings of convolutions over squares, columns and rows, each of three lengths; all keep the map's size.
_STRIPES = {name: [1, 1, 0] for name in ("reduce_channel", "return_channel")} | {
    f"{name}_{ratio}ratio": [kernel, 1, [each // 2 for each in kernel]]
    for ratio, long in (("long", 7), ("mid", 5), ("short", 3))
    for name, kernel in (
        ("vertical_long_to_small_conv", [long, 1]),
        ("horizontal_small_to_long_conv", [1, long]),
        ("symmetric_conv_long", [long, long]),
    )
}
# What stands in for None, or for an empty list, where a field has no default of use. A model that doesn't need the field isn't bothered by it.
MISSING: dict[str, Any] = {
    "vocab_size": 256,
    "prediction_length": 4,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "top_k_experts": 2,
    "expert_intermediate_size": 32,
    "num_experts": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "attn_layer_indices": [1],
    # The codes of images, written in letters, are tokens too.
    "vocabulary_map": {"<image>": 255}
    | {f"IMGIMG{''.join('ABCDEFGHIJ'[int(digit)] for digit in str(code))}Z": code - 1 for code in range(17, 256)},
    "sliding_window": 8,
    "num_key_value_heads": 2,
    "default_language": "en_XX",
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "clip_qkv": 8.0,
    "class_thresholds": [0.5] * 32,
    "class_order": list(range(32)),
    "projector_scale_factors": [1.0],
    "deepstack_layer_map": [[0, 0], [1, 1]],
    "downsample_rate": "1/2",
    "kernel_list": [3, 2, 2],
    "scale_factor_list": [1, 2, 4, 8],
    "intraclass_block_config": _STRIPES,
}
UNDECLARED: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "projection_bias": False,
    "projection_hidden_size": 32,
    "rope_theta": 10000.0,
    "initializer_range": 0.02,
    "dropout_rate": 0.0,
    "shared_expert_intermediate_size": 32,
}
"""What is set where model code reads a field that its config's class doesn't declare: checkpoints bring it along."""
PER_LAYER = re.compile(r"layer_types|layers_block_type|indexer_types|per_layer|layer_rope|layers_types|_layer_type")
"""Lists with an entry per layer: cut together."""


@cache
def kind(name: str) -> Kind:
    """The meaning of a field with this name."""
    return next((found for pattern, found in _HINTS if re.search(pattern, name)), Kind.KEEP)
