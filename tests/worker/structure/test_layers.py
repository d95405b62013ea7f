"""Layers told from the names of tensors."""

import pytest

from merge_worker.structure.layers import depth_fraction, depths, fraction, is_input, layer_of


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        (
            "model.layers.3.mlp.experts.7.w1.weight",
            ("model.layers.", 3, ".mlp.experts.7.w1.weight"),
        ),
        ("h.11.attn.weight", ("h.", 11, ".attn.weight")),
        (
            "encoder.block.2.layer.0.SelfAttention.q.weight",
            ("encoder.block.", 2, ".layer.0.SelfAttention.q.weight"),
        ),
        ("mtp.layers.0.norm.weight", ("mtp.layers.", 0, ".norm.weight")),
        ("0.weight", ("", 0, ".weight")),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
        ("conv1d.weight", None),
        ("blocks.5", None),
        ("layers.99999.w", ("layers.", 99999, ".w")),
        ("layers.100000.w", None),
        (f"layers.{'9' * 900}.w", None),
    ],
)
def test_layer_of(name: str, layer: tuple[str, int, str] | None) -> None:
    assert layer_of(name) == layer


def test_depths() -> None:
    names = ["a.layers.0.x", "a.layers.4.x", "b.blocks.1.layers.9.x", "norm"]
    assert depths(names) == {"a.layers.": 5, "b.blocks.": 2}


def test_positions_on_a_gradient() -> None:
    stacks = {"l.": 5, "one.": 1}
    assert [depth_fraction(f"l.{n}.w", stacks) for n in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert depth_fraction("one.0.w", stacks) == 1
    assert depth_fraction("lm_head.weight", stacks) == 0
    assert fraction(7, 5) == 1


BEFORE = """
model.embed_tokens.weight transformer.wte.weight transformer.wpe.weight model.tok_embeddings.weight
backbone.embeddings.weight gpt_neox.embed_in.weight transformer.word_embeddings.weight
transformer.word_embeddings_layernorm.bias bert.embeddings.LayerNorm.weight shared.weight
model.decoder.embed_positions.weight model.decoder.project_in.weight model.rotary_emb.inv_freq
visual.blocks.3.attn.weight vision_tower.vision_model.post_layernorm.weight
multi_modal_projector.linear_1.weight model.visual.merger.mlp.0.weight
"""
AFTER = """
model.norm.weight lm_head.weight transformer.ln_f.bias output.weight embed_out.weight
model.embedding_norm.weight model.decoder.project_out.weight transformer.output_layer.weight
cls.predictions.decoder.weight vocab_projector.weight backbone.norm_f.weight score.weight
mtp.layers.0.norm.weight model.final_layernorm.weight
"""


@pytest.mark.parametrize("name", BEFORE.split())
def test_what_stands_before_the_layers(name: str) -> None:
    assert is_input(name)


@pytest.mark.parametrize("name", AFTER.split())
def test_what_stands_after_the_layers(name: str) -> None:
    assert not is_input(name)
