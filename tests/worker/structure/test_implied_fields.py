"""Config fields that a class computes where they are left out, after layers were picked."""

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from merge_worker.errors import UsageError
from merge_worker.structure.implied_fields import implied_fields, implied_value, other_lists
from merge_worker.structure.layer_config import restacked_config
from merge_worker.structure.layers import Pick
from support.paths import ROOT

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


def restack(
    config: dict[str, Any], layers: list[int], stack: str = "model.layers."
) -> dict[str, Any]:
    """The config after these layers of its only stack were taken."""
    section = config.get("text_config", config)
    depth = section.get("num_hidden_layers") or section["num_layers"]
    return restacked_config([config], stack, {0: depth}, [Pick(0, n) for n in layers])[0]


@pytest.mark.parametrize(
    ("rule", "section", "expected"),
    [
        ({"cycle": ["a", "b"]}, {}, "ababab"),
        ({"head": ["x"], "cycle": ["a", "b"]}, {}, "xbabab"),
        ({"head": ["x"], "cycle": ["a", "b"], "from": "head"}, {}, "xababa"),
        ({"cycle": ["a", "b", "c", "d"], "from": "end"}, {}, "cdabcd"),
        ({"cycle": ["a", "b", "c", "d"], "tail": ["x"]}, {}, "abcdax"),
        ({"head": {"count": {"n": 2}, "fill": "x"}, "cycle": ["a"]}, {}, "xxaaaa"),
        ({"head": {"count": {"n": 2}, "fill": "x"}, "cycle": ["a"]}, {"n": 9}, "xxxxxx"),
        ({"head": {"count": {"n": 2}, "fill": "x"}, "cycle": ["a"]}, {"n": 0}, "aaaaaa"),
        ({"cycle": {"count": {"n": 3}, "fill": "a", "hit": "b", "at": -1}}, {}, "aabaab"),
        ({"cycle": {"count": {"n": 3}, "fill": "a", "hit": "b", "at": 0}}, {"n": 4}, "baaaba"),
        ({"cycle": {"count": {"n": 3}, "fill": "a", "hit": "b", "at": {"o": 1}}}, {}, "abaaba"),
        ({"cycle": {"count": 3, "fill": "a", "hit": "b", "at": {"o": 1}}}, {"o": 3}, "aaaaaa"),
    ],
)
def test_rules(rule: dict[str, Any], section: dict[str, Any], expected: str) -> None:
    assert "".join(implied_value(rule, section, 6)) == expected


def test_lists_of_numbers_and_the_depth() -> None:
    assert implied_value({"cycle": [False, True], "numbers": True}, {}, 5) == [1, 3]
    assert implied_value({"depth": True}, {}, 5) == 5


# The layers of six to eight that are taken, and the fields that the config then has to give.
SHIFTED = [
    ("gemma2", {}, 4, [0, 1, 1, 2, 3], {"layer_types": [SLIDING, FULL, FULL, SLIDING, FULL]}),
    ("gpt_oss", {}, 2, [1], {"layer_types": [FULL]}),
    ("gemma3_text", {}, 8, [4, 5, 6], {"layer_types": [SLIDING, FULL, SLIDING]}),
    ("gemma3_text", {"sliding_window_pattern": 2}, 4, [1, 2], {"layer_types": [FULL, SLIDING]}),
    ("cohere2", {}, 8, [2, 3, 4], {"layer_types": [SLIDING, FULL, SLIDING]}),
    ("cohere2", {"sliding_window_pattern": 3}, 6, [2, 3], {"layer_types": [FULL, SLIDING]}),
    ("modernbert-decoder", {}, 6, [2, 3], {"layer_types": [SLIDING, FULL]}),
    ("smollm3", {}, 8, [3, 4], {"no_rope_layers": [0, 1]}),
    ("smollm3", {"no_rope_layer_interval": 2}, 8, [1, 2], {"no_rope_layers": [0, 1]}),
    (
        "llama4_text",
        {"interleave_moe_layer_step": 2, "no_rope_layers": []},
        8,
        [3, 4, 5],
        {
            "moe_layers": [0, 2],
            "no_rope_layers": [0, 1, 1],
            "layer_types": [FULL, CHUNKED, CHUNKED],
        },
    ),
    ("exaone4", {"sliding_window_pattern": "LLLG"}, 8, [2, 3], {"layer_types": [SLIDING, FULL]}),
    ("qwen3_next", {}, 8, [2, 3], {"layer_types": ["linear_attention", FULL]}),
    ("xlstm", {"num_blocks": 8}, 8, [2, 3], {"num_blocks": 2}),
    (
        "glm_moe_dsa",
        {"first_k_dense_replace": 1},
        4,
        [2, 0],
        {"mlp_layer_types": ["sparse", "dense"]},
    ),
    (
        "bailing_hybrid",
        {"layer_group_size": 2},
        4,
        [1],
        {"layer_types": [FULL]},
    ),
    (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2},
        4,
        [2, 0],
        {"layer_types": [SLIDING, FULL]},
    ),
]


@pytest.mark.parametrize(("kind", "given", "depth", "layers", "expected"), SHIFTED)
def test_written_out_where_layers_change_their_kind(
    kind: str, given: dict[str, Any], depth: int, layers: list[int], expected: dict[str, Any]
) -> None:
    config = {"model_type": kind, "num_hidden_layers": depth, **given}
    result = restack(config, layers)
    assert result == {**config, "num_hidden_layers": len(layers), **expected}


@pytest.mark.parametrize(
    ("kind", "given", "layers"),
    [
        ("gemma2", {}, [0, 1, 0, 1, 2, 3]),
        ("gemma3_text", {"layer_types": None}, [0, 1, 2]),
        ("llama4_text", {"no_rope_layers": []}, [0, 1, 2, 3, 0, 1, 2, 3, 4]),
        ("qwen2", {"use_sliding_window": False, "max_window_layers": 28}, [3, 2, 1]),
        ("unknown", {}, [3, 2, 1]),
        (["gemma2"], {}, [3, 2, 1]),
    ],
)
def test_left_out_where_the_class_computes_the_same(
    kind: Any, given: dict[str, Any], layers: list[int]
) -> None:
    config = {"model_type": kind, "num_hidden_layers": 6, **given}
    assert restack(config, layers) == {**config, "num_hidden_layers": len(layers)}


def test_a_section_of_its_own() -> None:
    text = {"num_hidden_layers": 4, "rope_scaling": {"factor": 8}}
    vision = {"model_type": "gemma2", "num_hidden_layers": 2}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": vision}
    result = restack(config, [1, 3], "model.language_model.layers.")
    assert result == {**config, "text_config": {**text, "num_hidden_layers": 2}}
    text["model_type"] = "gemma2"
    result = restack(config, [1, 3], "model.language_model.layers.")
    changed = {**text, "num_hidden_layers": 2, "layer_types": [FULL, FULL]}
    assert result == {**config, "text_config": changed}


def test_a_list_that_the_class_reads_another_from() -> None:
    config = {"model_type": "llama4_text", "num_hidden_layers": 4, "no_rope_layers": [0, 1, 1, 1]}
    result = restack(config, [3, 0])
    assert result == {**config, "num_hidden_layers": 2, "no_rope_layers": [1, 0]}


def test_models_of_which_one_gives_the_list() -> None:
    first = {"model_type": "gemma2", "num_hidden_layers": 4}
    other = {**first, "layer_types": [FULL, SLIDING, FULL, SLIDING]}
    picks = [Pick(0, 0), Pick(1, 0), Pick(1, 2)]
    result, _ = restacked_config([first, other], "model.layers.", {0: 4, 1: 4}, picks)
    assert result == {**first, "num_hidden_layers": 3, "layer_types": [SLIDING, FULL, FULL]}


def test_a_decoder_as_deep_as_its_encoder() -> None:
    config = {"model_type": "t5", "is_encoder_decoder": True, "num_layers": 4}
    encoder = restack(config, [0, 1], "encoder.block.")
    assert encoder == {**config, "num_layers": 2, "num_decoder_layers": 4}
    decoder = restack(config, [0, 1], "decoder.block.")
    assert decoder == {**config, "num_decoder_layers": 2}


def test_a_rule_that_is_not_known() -> None:
    config = {"model_type": "neomme", "num_hidden_layers": 6}
    with pytest.raises(UsageError) as caught:
        restack(config, [0, 1])
    assert str(caught.value) == (
        "config.json: residual_multiplier not given; model_type neomme computes it from the number "
        "of layers\n"
        "  write it into config.json, as transformers does when it saves the model"
    )
    given = {**config, "residual_multiplier": 0.25}
    taken = restack(given, [0, 1])
    assert taken == {**given, "num_hidden_layers": 2, "layer_types": [SLIDING, SLIDING]}


def test_a_class_that_decides_on_the_last_layer() -> None:
    config = {
        "model_type": "gemma4_text",
        "num_hidden_layers": 6,
        "layer_types": [SLIDING, FULL] * 3,
    }
    taken = restack(config, [0, 2, 3])
    assert taken == {**config, "num_hidden_layers": 3, "layer_types": [SLIDING, SLIDING, FULL]}
    with pytest.raises(UsageError) as caught:
        restack(config, [0, 1, 2])
    assert str(caught.value) == (
        "config.json: layer_types cannot follow the layers taken: "
        "model_type gemma4_text always makes the last layer full_attention"
    )


def test_damaged_configs_imply_nothing() -> None:
    assert implied_fields({}, "gemma2", 1 << 60) == {}
    assert implied_fields({"sliding_window_pattern": [2]}, "gemma3_text", 4) == {}
    assert implied_fields({"sliding_window_pattern": 0}, "gemma3_text", 4) == {}


def test_lists_of_other_things() -> None:
    assert {"conv_dim", "conv_stride"} <= other_lists()
    config = {"num_hidden_layers": 9, "conv_dim": [512] * 9, "strange": list(range(9))}
    assert restack(config, [8]) == {**config, "num_hidden_layers": 1, "strange": [8]}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program that derives the table from the installed transformers."""
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield importlib.import_module("layer_fields")


@pytest.mark.slow
def test_the_table_is_of_the_installed_transformers(script: ModuleType) -> None:
    """Fails where a new release brings classes: run scripts/layer_fields.py and read the diff."""
    written = script.TABLE.read_text(encoding="utf-8")
    comments = "".join(line for line in written.splitlines(keepends=True) if line.startswith("#"))
    assert written == comments + script.text(script.table())


@pytest.mark.slow
def test_classes_read_the_layers_taken(script: ModuleType) -> None:
    """Every class finds the kinds of the layers taken, from as little config as it needs."""
    layers = [0, 1, 2, 3, 4, 2, 3, 4, 5, 7, 8, 9, 10, 11, 11]
    faults, followed = [], 0
    for kind, cls in script.config_classes().items():
        for count in script.COUNTS:
            config = {"model_type": kind, count: 12}
            before = script.fields(cls, {count: 12})
            deeper = script.fields(cls, {count: 13})
            lists = {key for key in before if before[key] != deeper.get(key)}
            lists = {k for k in lists if isinstance(before[k], list) and len(before[k]) == 12}
            if not lists or any(script.COMPUTED.fullmatch(key) for key in lists):
                continue
            try:
                picks = [Pick(0, layer) for layer in layers]
                result, _ = restacked_config([config], "model.layers.", {0: 12}, picks)
            except UsageError:
                continue
            after = script.fields(cls, result)
            for key in lists - {"kv_source_layers"}:
                followed += 1
                every = before[key] == list(range(12))  # the numbers of all layers
                expected = list(range(15)) if every else [before[key][layer] for layer in layers]
                if after.get(key) != expected:
                    faults.append(f"{kind} {key} {after.get(key)} {result}")
    assert followed > 50
    assert faults == []
