"""Config fields that speak of single layers, after layers were picked."""

from typing import Any

import pytest

from merge_worker.errors import UsageError
from merge_worker.structure.layer_config import restacked_config
from merge_worker.structure.layers import Pick, counts, extra_layers


def restack(
    config: dict[str, Any], layers: list[int], stack: str = "model.layers.", **options: Any
) -> tuple[dict[str, Any], list[str]]:
    """The config of one model, of whose stack these layers are taken."""
    depth = options.pop("depth", config.get("num_hidden_layers"))
    picks = [Pick(0, layer) for layer in layers]
    return restacked_config([config], stack, {0: depth}, picks)


def changes(config: dict[str, Any], layers: list[int], **options: Any) -> dict[str, Any]:
    """The fields that changed, but for the number of layers, which must have."""
    config = {"num_hidden_layers": 6, **config}
    restacked, _ = restack(config, layers, **options)
    assert restacked.pop("num_hidden_layers") == len(layers)
    return {key: value for key, value in restacked.items() if value != config.get(key)}


STAGES = ["stem", *(f"stage{number}" for number in range(1, 7))]
TURNED = [0, 1, 2, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("config", "layers", "expected"),
    [
        ({"layer_types": list("abcdef")}, TURNED, {"layer_types": list("abcbcdef")}),
        ({"layers_block_type": list("abcdef")}, [5, 0], {"layers_block_type": ["f", "a"]}),
        ({"block_configs": [{"n": n} for n in range(6)]}, [4], {"block_configs": [{"n": 4}]}),
        ({"depths": [1, 2, 3, 4, 5, 6]}, [5, 0], {"depths": [6, 1]}),
        ({"hybrid_override_pattern": "M*M-ME"}, [1, 2, 3], {"hybrid_override_pattern": "*M-"}),
        ({"attn_layer_indices": [1, 4]}, TURNED, {"attn_layer_indices": [1, 3, 6]}),
        ({"full_attn_idxs": [2, 5]}, [2, 2, 5], {"full_attn_idxs": [0, 1, 2]}),
        ({"cross_attention_layers": [3]}, [0, 1], {"cross_attention_layers": []}),
        ({"mlp_only_layers": [0, 1]}, [1, 2], {"mlp_only_layers": [0]}),
        # All layers: as long as the model is deep, and still a list of numbers.
        ({"moe_layers": [0, 1, 2, 3, 4, 5]}, [3, 4], {"moe_layers": [0, 1]}),
        ({"first_k_dense_replace": 2}, [0, 1, 1, 3], {"first_k_dense_replace": 3}),
        ({"first_k_dense_replace": 2}, [3, 4], {"first_k_dense_replace": 0}),
        ({"num_dense_layers": 1}, [0, 4, 5], {}),
        ({"attn_layer_period": 3, "attn_layer_offset": 2}, [0, 1, 2, 3, 4, 5], {}),
        (
            {"attn_layer_period": 3, "attn_layer_offset": 2},
            [1, 2, 3, 4, 5],
            {"attn_layer_offset": 1},
        ),
        (
            {"attn_layer_period": 3, "attn_layer_offset": 2},
            [1, 2, 4, 5],
            {"attn_layer_period": 2, "attn_layer_offset": 1},
        ),
        (
            {"expert_layer_period": 6, "expert_layer_offset": 5},
            [0, 1],
            {"expert_layer_period": 3, "expert_layer_offset": 2},
        ),
        ({"full_attention_interval": 3}, [0, 1, 2, 0, 1, 2], {}),
        (
            {"full_attention_interval": 3},
            [1, 2, 3],
            {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
        ),
        (
            {"sliding_window_pattern": 2},
            [1, 2],
            {"layer_types": ["full_attention", "sliding_attention"]},
        ),
        (
            {"decoder_sparse_step": 2, "mlp_only_layers": [5]},
            [0, 1, 3, 5],
            {"decoder_sparse_step": 1, "mlp_only_layers": [0, 3]},
        ),
        ({"interleave_moe_layer_step": 2}, [1, 2], {"moe_layers": [0]}),
        ({"no_rope_layer_interval": 2}, [1, 2], {"no_rope_layers": [0, 1]}),
        ({"moe_layer_freq": 2}, [2, 3, 4], {}),
        ({"block_types": ["r", "r", "a"]}, [2, 3, 4], {"block_types": ["a", "r", "r"]}),
        (
            {"attention_types": [[["g", "l"], 3]]},
            [1, 2],
            {"attention_types": [[["l", "g"], 1]]},
        ),
        ({"max_window_layers": 6, "use_sliding_window": False}, [0, 1], {"max_window_layers": 2}),
        ({"max_window_layers": 2, "use_sliding_window": True}, [1, 4], {"max_window_layers": 1}),
        (
            {"moe_layer_start_index": 1, "moe_layer_end_index": -1},
            [0, 0, 3],
            {"moe_layer_start_index": 2, "moe_layer_end_index": 2},
        ),
        # A list that says the same makes a period harmless.
        (
            {"full_attention_interval": 3, "layer_types": list("llflLF")},
            [1, 2, 3],
            {"layer_types": list("lfl")},
        ),
        (
            {"first_k_dense_replace": 1, "mlp_layer_types": ["d", *"ssSss"]},
            [3, 0],
            {"mlp_layer_types": ["S", "d"]},
        ),
        # A table by number, as transformers pads it.
        (
            {"per_layer_config": {"1": {"head_dim": 16}, "5": {"head_dim": 32}}},
            TURNED,
            {
                "per_layer_config": {
                    "1": {"head_dim": 16},
                    "3": {"head_dim": 16},
                    "7": {"head_dim": 32},
                }
            },
        ),
        (
            {"per_layer_config": {"1": {}}},
            [*range(6), *range(6)],
            {"per_layer_config": {"1": {}, "7": {}}},
        ),
        (
            {"per_layer_config": {"0": {}, "5": {}}},
            [*range(6), *range(6)],
            {"per_layer_config": {"00": {}, "05": {}, "06": {}, "11": {}}},
        ),
        ({"moe_layers_enum": "2,3,5"}, TURNED, {"moe_layers_enum": "2,4,5,7"}),
        ({"sliding_window_layers": [0, 2, 4]}, [2, 3, 4], {"sliding_window_layers": [0, 2]}),
        ({"sliding_window_layers": [True] * 5 + [False]}, [5], {"sliding_window_layers": [False]}),
        ({"sliding_window_pattern": "LLG"}, [0, 1, 2, 0, 1, 2], {}),
        (
            {"sliding_window_pattern": "LLG"},
            [1, 2],
            {"layer_types": ["sliding_attention", "full_attention"]},
        ),
        (
            {"kv_source_layers": [0, 0, 2, 2, 2, 5]},
            [0, 1, 0, 1, 5],
            {"kv_source_layers": [0, 0, 2, 2, 4]},
        ),
        ({"scale_depth": 1.5}, [*range(6)] * 4, {"scale_depth": 3.0}),
        ({"scale_depth": 1.5, "mup_denominator": 32}, [0], {}),
        ({"scale_attn_by_inverse_layer_idx": True}, [0, 1, 2], {}),
        ({"scale_attn_by_inverse_layer_idx": False}, [2], {}),
        ({"dense_attention_every_n_layers": 2}, [2, 3, 4], {}),
        # Outputs of a backbone, by numbers and by names; the last layer stays the last.
        (
            {
                "stage_names": STAGES,
                "out_features": ["stem", "stage3", "stage6"],
                "out_indices": [0, 3, -1],
            },
            [0, 2, 4],
            {
                "stage_names": STAGES[:4],
                "out_features": ["stem", "stage2", "stage3"],
                "out_indices": [0, 2, 3],
            },
        ),
        ({"stage_names": STAGES[:3], "out_features": ["stage2"], "out_indices": [2]}, [0], {}),
        # Periods longer than the models are deep, and sections with layers of their own.
        ({"expert_log_step": 1000, "vision": {"num_layers": 6, "moe_layers": [1]}}, [1], {}),
        # Not of layers, though as long.
        ({"eos_token_id": [1, 2, 3, 4, 5, 6], "mlp_multipliers": [1] * 6}, [0], {}),
    ],
)
def test_fields_follow(config: dict[str, Any], layers: list[int], expected: dict[str, Any]) -> None:
    assert changes(config, layers) == expected


@pytest.mark.parametrize(
    ("config", "layers", "why"),
    [
        ({"first_k_dense_replace": 1}, [3, 0], "it counts layers at the start, which now are 1"),
        ({"attn_layer_period": 3}, [0, 0, 1, 2, 3], "no period has the layers 0-1, 4"),
        ({"moe_layer_freq": 2}, [1, 2], "layers moved to another place in its period of 2"),
        (
            {"cross_layer_interval": 2},
            [0, 1, 2, 3],
            "tensors outside the layers hold a part for each layer",
        ),
        (
            {"dense_attention_every_n_layers": 2},
            [1],
            "layers moved to another place in its period of 2",
        ),
        ({"mamba_step": 2}, [3, 3], "layers moved to another place in its period of 2"),
        ({"cross_attention_frequency": 2}, [1], "layers moved to another place in its period of 2"),
        (
            {"stagger_local_blocks": True},
            [1],
            "every other layer staggers its blocks, and layers moved by one",
        ),
        (
            {"scale_attn_by_inverse_layer_idx": True},
            [1],
            "layers compute with their own numbers, which changed",
        ),
        ({"model_type": "diffllama"}, [1], "layers compute with their own numbers, which changed"),
        ({"model_type": "minimax"}, [0], "layers compute with the number of layers, which changed"),
        (
            {"kv_source_layers": [0, 0, 2, 2, 2, 2]},
            [1],
            "layer 1 uses layer 0, not taken before it",
        ),
        (
            {"hidden_size_per_layer_input": 8},
            [0, 1],
            "tensors outside the layers hold a part for each layer",
        ),
        (
            {"use_mid_position_embeddings": True},
            [0, 1],
            "tensors outside the layers hold a part for each layer",
        ),
        (
            {"out_indices": [2, 6], "stage_names": STAGES},
            [0, 2],
            "it names the output of layer 1, which is not taken",
        ),
        ({"num_kv_shared_layers": 2}, [0, 1], "layers share weights or states with other layers"),
        ({"num_mem_blocks": 2}, [0], "layers share weights or states with other layers"),
        ({"moe_layer_start_index": 3}, [3, 0, 4], "it is one run of layers, which now are 0, 2"),
        ({"full_attention_interval": [{}]}, [1], "[{}] is not a value that models have there"),
        ({"attn_layer_period": 1 << 60}, [0, 0, 1], "no period has the layers 0-1"),
        (
            {"attention_types": [[[], 1 << 60]]},
            [1],
            "[[[], 1152921504606846976]] is not a value that models have there",
        ),
    ],
)
def test_fields_that_cannot_follow(config: dict[str, Any], layers: list[int], why: str) -> None:
    name = next(iter(config))
    with pytest.raises(UsageError) as caught:
        changes(config, layers)
    assert str(caught.value) == f"config.json: {name} cannot follow the layers taken: {why}"


def test_all_faults_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        changes({"num_mem_blocks": 1, "moe_layer_freq": 2}, [1])
    assert len(str(caught.value).splitlines()) == 2


def test_every_layer_is_described_by_the_model_it_is_from() -> None:
    first = {"num_hidden_layers": 2, "layer_types": ["a", "b"]}
    other = {"num_hidden_layers": 3, "layer_types": ["c", "d", "e"], "attn_layer_indices": [2]}
    picks = [Pick(1, 2), Pick(0, 0), Pick(1, 1)]
    restacked, _ = restacked_config([first, other], "layers.", {0: 2, 1: 3}, picks)
    assert restacked == {"num_hidden_layers": 3, "layer_types": ["e", "a", "d"]}
    with pytest.raises(UsageError, match="describe their layers in different ways"):
        restacked_config([first, {"num_hidden_layers": 3}], "layers.", {0: 2, 1: 3}, picks)


def test_numbers_counted_from_one() -> None:
    lists = {"kda_layers": [1, 2, 3, 5], "full_attn_layers": [4, 6]}
    changed = changes({"linear_attn_config": lists}, [3, 4, 5])["linear_attn_config"]
    assert changed == {"kda_layers": [2], "full_attn_layers": [1, 3]}


def test_the_section_of_the_stack() -> None:
    config = {
        "text_config": {"num_hidden_layers": 4, "layer_types": list("abcd")},
        "vision_config": {"depth": 4, "fullatt_block_indexes": [3]},
    }
    text, _ = restack(config, [3, 0], "model.language_model.layers.", depth=4)
    assert text["text_config"] == {"num_hidden_layers": 2, "layer_types": ["d", "a"]}
    assert text["vision_config"] == config["vision_config"]
    vision, _ = restack(config, [3, 0], "model.visual.blocks.", depth=4)
    assert vision["vision_config"] == {"depth": 2, "fullatt_block_indexes": [0]}
    assert vision["text_config"] == config["text_config"]


def test_encoder_and_decoder() -> None:
    t5 = {"is_encoder_decoder": True, "num_layers": 3, "num_decoder_layers": 3}
    assert restack(t5, [0], "encoder.block.", depth=3)[0] == {**t5, "num_layers": 1}
    assert restack(t5, [0], "decoder.block.", depth=3)[0] == {**t5, "num_decoder_layers": 1}
    bart = {"is_encoder_decoder": True, "encoder_layers": 3, "decoder_layers": 3}
    bart |= {"num_hidden_layers": 3}
    changed = {**bart, "encoder_layers": 2, "num_hidden_layers": 2}
    assert restack(bart, [0, 1], "model.encoder.layers.", depth=3)[0] == changed


def test_sparse_layers_by_their_number() -> None:
    config = {"is_encoder_decoder": True, "num_layers": 6, "num_decoder_layers": 6}
    config |= {"num_sparse_encoder_layers": 3, "encoder_sparse_step": 2, "decoder_sparse_step": 3}
    changed = {**config, "num_layers": 8, "num_sparse_encoder_layers": 4}
    assert restack(config, [0, 1, *range(6)], "encoder.block.", depth=6)[0] == changed
    for layers, fault in ([1, 2], "num_sparse_encoder_layers"), ([0], "no number of sparse layers"):
        with pytest.raises(UsageError, match=fault):
            restack(config, layers, "encoder.block.", depth=6)
    with pytest.raises(UsageError) as caught:
        restack(config, [1], "decoder.block.", depth=6)
    assert str(caught.value) == (
        "config.json: decoder_sparse_step cannot follow the layers taken: "
        "layers moved to another place in its period of 3"
    )


def test_an_encoder_and_a_decoder_in_sections_of_their_own() -> None:
    part = {"num_hidden_layers": 3, "layer_types": ["a", "b", "c"]}
    config = {"is_encoder_decoder": True, "encoder": part, "decoder": part}
    changed = {"num_hidden_layers": 1, "layer_types": ["c"]}
    for name in ("encoder", "decoder"):
        assert restack(config, [2], f"model.{name}.layers.", depth=3)[0] == {
            **config,
            name: changed,
        }


def test_a_config_that_does_not_know_its_layers() -> None:
    with pytest.raises(UsageError) as caught:
        restack({"num_hidden_layers": 7}, [0, 1], depth=4)
    assert str(caught.value) == (
        "the config has no field with its 4 layers (model.layers.*); "
        "fields with layer counts: num_hidden_layers 7"
    )
    assert restack({}, [0], depth=4) == ({}, [])


def test_a_list_counts_where_no_number_does() -> None:
    config = {"layers_block_type": ["mamba", "attention", "moe"]}
    assert [(c.value, c.listed) for c in counts(config)] == [(3, True)]
    assert restack(config, [2, 0], depth=3)[0] == {"layers_block_type": ["moe", "mamba"]}


def test_untouched_where_all_layers_are_taken_in_order() -> None:
    config = {"num_hidden_layers": 3, "num_mem_blocks": 1, "strange_layer_period": 3}
    assert restack(config, [0, 1, 2]) == (config, [])


def test_fields_that_nothing_is_known_of_are_told() -> None:
    config = {"num_hidden_layers": 3, "strange_layer_period": 3}
    assert restack(config, [0])[1] == ["config.json: strange_layer_period is kept as it is"]


def test_prediction_heads() -> None:
    assert extra_layers({"num_nextn_predict_layers": 1}) == 1
    assert extra_layers({"text_config": {"num_nextn_predict_layers": 2}}) == 2
    assert extra_layers({"num_nextn_predict_layers": None}) == 0


def misplaced(parts: list[str], layers: list[int], config: dict[str, Any]) -> None:
    """Take layers whose tensors are these letters."""
    config = {"num_hidden_layers": len(parts), **config}
    names = {number: frozenset(f".{part}" for part in each) for number, each in enumerate(parts)}
    picks = [Pick(0, layer) for layer in layers]
    restacked_config([config], "h.", {0: len(parts)}, picks, {0: names})


TO_THE_LAST = ["w", "w", "w", "wb"]
FROM_THE_FIRST = ["wr", "w", "w", "w"]
KINDS = {"layer_types": ["s", "f", "f", "f"]}


@pytest.mark.parametrize(
    ("parts", "layers", "place"),
    [
        (TO_THE_LAST, [0, 1, 2, 3, 1, 2, 3], "layer 3 cannot be an inner layer"),
        (TO_THE_LAST, [0, 1, 2], "layer 2 cannot be the last layer"),
        (TO_THE_LAST, [0, 3, 3], "layer 3 cannot be an inner layer"),
        (FROM_THE_FIRST, [1, 2, 3], "layer 1 cannot be the first layer"),
        (FROM_THE_FIRST, [0, 1, 0, 1], "layer 0 cannot be an inner layer"),
    ],
)
def test_ends_with_tensors_of_their_own(parts: list[str], layers: list[int], place: str) -> None:
    """The sizes of stages, as Swin has them, do not explain other tensors."""
    own = "b" if parts is TO_THE_LAST else "r"
    for config in ({}, {"depths": [2, 2, 2, 4], "num_heads": [3, 6, 12, 24]}):
        with pytest.raises(UsageError) as caught:
            misplaced(parts, layers, config)
        assert str(caught.value) == (
            f"h.*: {place}, which differs in {own}\n"
            "  leave the first and the last layer in their places"
        )


@pytest.mark.parametrize(
    ("parts", "layers", "config"),
    [
        (TO_THE_LAST, [0, 1, 2, 1, 2, 3], {}),
        (FROM_THE_FIRST, [0, 1, 2, 1, 2, 3], {}),
        (["w"] * 4, [3, 2, 1, 0], {}),
        # What the config says of a layer explains its tensors.
        (FROM_THE_FIRST, [1, 2, 0, 3], KINDS),
        (FROM_THE_FIRST, [1, 2, 3], {"first_k_dense_replace": 1}),
        (FROM_THE_FIRST[:2], [0, 1, 1, 1], {}),
    ],
)
def test_layers_whose_tensors_fit_into_their_places(
    parts: list[str], layers: list[int], config: dict[str, Any]
) -> None:
    misplaced(parts, layers, config)


def test_lists_of_other_things_than_these_layers() -> None:
    assert changes({"target_layer_ids": [1, 3, 5], "encode_proj_layers": [2]}, [2, 3]) == {}
    assert changes({"target_layer_ids": [0, 1, 2, 3, 4, 5]}, [2, 3]) == {}


def test_windows_and_numbers_beyond_the_last_layer() -> None:
    windows = {"attention_window": [8, 16, 8, 16, 8, 16]}
    assert changes(windows, [1, 2]) == {"attention_window": [16, 8]}
    assert changes({"global_attn_indexes": [2, 7, 11]}, [2, *range(6)]) == {
        "global_attn_indexes": [0, 3]
    }
