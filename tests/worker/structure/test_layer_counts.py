"""Which layer counts of a config belong to which stack of layers."""

from typing import Any

import pytest

from merge_worker.errors import UsageError
from merge_worker.structure.layer_counts import counts_of, refuse_shared
from merge_worker.structure.layers import counts

COUNT = {"num_hidden_layers": 6}


@pytest.mark.parametrize(
    ("config", "prefix", "expected"),
    [
        ({"layers": 6}, "model.layers.", "layers"),
        ({"text_config": {"layers": 6}, "vision_config": COUNT}, "text.", "text_config.layers"),
        (
            {"text_config": COUNT, "multimodal_config": COUNT},
            "multimodal_model.encoder.layer.",
            "multimodal_config.num_hidden_layers",
        ),
        (
            {"text_config": COUNT, "multimodal_config": COUNT},
            "language_model.layers.",
            "text_config.num_hidden_layers",
        ),
        (
            {**COUNT, "flow_head_config": COUNT},
            "flow_head.layers.",
            "flow_head_config.num_hidden_layers",
        ),
        ({**COUNT, "flow_head_config": COUNT}, "model.layers.", "num_hidden_layers"),
        # The flag `is_encoder_decoder` is left out of configs whose class has it on.
        ({"encoder_layers": 6, "decoder_layers": 6}, "decoder.conformer_layers.", "decoder_layers"),
        ({"encoder_layers": 6, "decoder_layers": 6}, "encoder.conformer_layers.", "encoder_layers"),
        ({"decoder_num_hidden_layers": 6}, "model.decoder.layers.", "decoder_num_hidden_layers"),
    ],
)
def test_the_section_and_the_words_of_the_stack(
    config: dict[str, Any], prefix: str, expected: str
) -> None:
    assert [".".join(count.path) for count in counts_of(config, prefix, 6)] == [expected]


def test_stages_of_a_backbone_are_not_layers() -> None:
    stages = {"block_configs": [[1], [2]], "depths": [1, 1]}
    assert counts({"backbone_config": stages}) == []
    assert [count.value for count in counts({"block_configs": [[1], [2]]})] == [2]


def refusal(config: dict[str, Any], depths: dict[str, int], *alike: str) -> str:
    with pytest.raises(UsageError) as caught:
        refuse_shared(config, "model.layers.", depths, alike)
    return str(caught.value)


def test_a_count_of_two_stacks() -> None:
    depths = {"model.layers.": 6, "model.cross_layers.": 6, "model.bridge.": 3}
    assert refusal(COUNT, depths) == (
        "config.json: num_hidden_layers counts the layers of model.layers.* and of "
        "model.cross_layers.*\n"
        "  take the same layers of each, as 'modules:' of their own"
    )
    refuse_shared(COUNT, "model.layers.", depths, ["model.cross_layers."])


@pytest.mark.parametrize(
    ("config", "other"),
    [
        ({"text_config": COUNT, "qformer_config": COUNT}, "qformer.layer."),
        (COUNT, "vision_tower.layers."),  # whatever the config calls its depth
        (COUNT, "2_Dense/layers."),
    ],
)
def test_stacks_with_counts_of_their_own(config: dict[str, Any], other: str) -> None:
    refuse_shared(config, "model.layers.", {"model.layers.": 6, other: 6}, [])


def test_two_stacks_and_two_counts_that_no_word_connects() -> None:
    config = {"text_config": COUNT, "dit_config": COUNT}
    depths = {"model.layers.": 6, "expert.layers.": 6}
    unclear = (
        "config.json: text_config.num_hidden_layers, dit_config.num_hidden_layers could all be "
        "the layers of model.layers.*"
    )
    assert refusal(config, depths) == refusal(config, depths, "expert.layers.") == unclear


def test_a_tower_that_its_name_does_not_tell() -> None:
    config = {"text_config": {"encoder_layers": 6}, "vision_config": COUNT}
    depths = {"model.encoder.layers.": 6, "model.decoder.layers.": 8}
    with pytest.raises(UsageError, match=r"could all be the layers of model\.encoder\."):
        refuse_shared(config, "model.encoder.layers.", depths, [])
    refuse_shared(config, "model.encoder.layers.", {**depths, "vision_tower.layers.": 6}, [])
