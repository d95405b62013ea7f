"""One vocabulary for all models: what stays plain, what is refused, and what the config says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from support.checkpoint_factory import read_tensors, write_checkpoint
from support.recipes import average, manifest, run
from support.tokenizer_factory import (
    CHAT,
    bpe,
    llama,
    make_models,
    save_model,
    save_tokenizer,
    write_json,
)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_models(tmp_path)
    return tmp_path


def merge(place: Path, text: str, out: str = "out", models: str = "a b", *words: object) -> int:
    listed = "".join(
        f"- {{model: {model}, parameters: {{weight: 1}}}}\n" for model in models.split()
    )
    method = "" if "merge_method" in text else "merge_method: linear\n"
    (place / "r.yml").write_text(f"{method}models:\n{listed}{text}\n", encoding="utf-8")
    options = ("--relative-to", place, "--progress", "off", *words)
    return run("merge", place / "r.yml", place / out, *options)


def config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / name).read_text("utf-8"))
    return value


Capture = pytest.CaptureFixture[str]


def test_other_row_counts_need_a_word(place: Path, capsys: Capture) -> None:
    assert merge(place, "", models="a b") == 3
    text = capsys.readouterr().err
    assert "a has 29 rows of vocabulary, b has 32" in text
    assert "\ntokenizer:\n  source: union" in text
    assert not (place / "out").exists()
    # The two lines as they are printed.
    lines = text[text.index("tokenizer:\n") :]
    assert merge(place, lines, models="a b") == 0
    assert average(place / "mean", [place / "a", place / "b"]) == 3
    assert "merge them by a recipe that says:\ntokenizer:" in capsys.readouterr().err


def test_check_tells_what_becomes_of_the_rows(place: Path, capsys: Capture) -> None:
    assert merge(place, "tokenizer_source: union") == 0
    assert run("check", place / "r.yml", "--relative-to", place) == 0
    assert "\nvocabulary 29 rows become 30, 1 token appended\n" in capsys.readouterr().out


def test_middle_layers_of_a_model_with_other_rows(place: Path) -> None:
    text = (
        "merge_method: passthrough\nslices:\n"
        "- {sources: [{model: a, layer_range: [0, 1]}]}\n"
        "- {sources: [{model: b, layer_range: [0, 1]}]}\n"
        "- {sources: [{model: a, layer_range: [0, 1]}]}\n"
    )
    (place / "r.yml").write_text(text)
    words = ("--relative-to", place, "--progress", "off")
    assert run("merge", place / "r.yml", place / "out", *words) == 0
    assert len(read_tensors(place / "out")[HEAD]) == 29


def test_rows_that_are_not_those_of_the_config(place: Path, capsys: Capture) -> None:
    """Config and tokenizer are the base's, all rows come from another model."""
    text = (
        "merge_method: passthrough\nbase_model: base\nslices:\n"
        "- {sources: [{model: a, layer_range: [0, 1]}]}\n"
    )
    (place / "r.yml").write_text(text)
    words = ("--relative-to", place, "--progress", "off")
    assert run("merge", place / "r.yml", place / "out", *words) == 3
    assert "base has 27 rows of vocabulary, a has 29" in capsys.readouterr().err
    (place / "r.yml").write_text(f"{text}tokenizer: {{source: a}}\n")
    assert run("merge", place / "r.yml", place / "out", *words) == 0
    assert config(place / "out")["vocab_size"] == 29 == len(read_tensors(place / "out")[HEAD])


def test_the_same_tokens_keep_their_padding(place: Path, capsys: Capture) -> None:
    """Tokenizer files are copied byte by byte, whatever the recipe says about the source."""
    save_model(place / "b2", Tokenizer.from_file(str(place / "b" / "tokenizer.json")), spare=3)
    sources = ["tokenizer_source: base", "tokenizer_source: union", "tokenizer: {source: b2}"]
    for number, text in enumerate(["", *sources]):
        assert merge(place, text, out=str(number), models="b b2") == 0
        out = place / str(number)
        assert config(out)["vocab_size"] == 32 == len(read_tensors(out)[HEAD])
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            assert (out / name).read_bytes() == (place / "b" / name).read_bytes()
    assert "tokenizer" not in capsys.readouterr().err
    one, two, mean = (read_tensors(place / name)[HEAD] for name in ("b", "b2", "3"))
    assert torch.equal(mean, ((one.double() + two.double()) / 2).float()), "spare rows as well"


def test_the_same_tokens_with_more_padding(place: Path) -> None:
    tokenizer = Tokenizer.from_file(str(place / "b" / "tokenizer.json"))
    save_model(place / "wide", tokenizer, spare=11)
    assert merge(place, "tokenizer_source: base", models="b wide") == 0
    one, two, mean = (read_tensors(place / name)[EMBEDDING] for name in ("b", "wide", "out"))
    assert torch.equal(mean, ((one.double() + two[:32].double()) / 2).float())
    assert merge(place, "tokenizer_source: base", "other", "wide b") == 0
    mean = read_tensors(place / "other")[EMBEDDING]
    assert len(mean) == 40 and torch.equal(mean[32:], two[32:]), "rows that one alone has"


def test_the_same_size_of_other_tokens_is_told(place: Path, capsys: Capture) -> None:
    tokens = [*("<unk>", "<s>", "</s>"), *"abcdefghijklmnopqrst", "ab", "cd", "abcd", "ef"]
    save_model(place / "turned", bpe(tokens, special=CHAT[::-1]))
    assert merge(place, "", models="a turned") == 0
    text = capsys.readouterr().err
    assert (
        "turned: its tokenizer is not that of a: '<|im_start|>' is 27 there and 28 here, " in text
    )
    assert "and so for 1 more" in text and "tokenizer_source: union" in text
    assert merge(place, "", out="same", models="a a/../a") == 2  # one model twice
    capsys.readouterr()
    assert merge(place, "tokenizer_source: base", out="good", models="a turned") == 0
    assert "its tokenizer is not" not in capsys.readouterr().err
    rows = read_tensors(place / "good")[EMBEDDING]
    a, turned = (read_tensors(place / name)[EMBEDDING] for name in ("a", "turned"))
    assert torch.equal(rows[27], ((a[27].double() + turned[28].double()) / 2).float())


def test_ids_follow_a_tokenizer_from_elsewhere(place: Path) -> None:
    """The config is the base's; its ids are those that the tokenizer now has."""
    changes = {"image_token_id": 3, "bad_words_ids": [[4], [5, 6]], "pad_token_id": None}
    folder = save_model(place / "own", bpe(["<unk>", "<s>", "</s>", *"abcdefgh"]), **changes)
    generation = {"eos_token_id": [2, 3], "suppress_tokens": [4, 10], "top_k": 2}
    write_json(folder / "generation_config.json", generation)
    order = ["<unk>", "a", "b", *CHAT, "<s>", "</s>", "c"]
    donor = place / "donor"
    save_tokenizer(donor, bpe(order), eos_token="<|im_end|>")
    write_json(donor / "config.json", {"bos_token_id": 5, "eos_token_id": 4})
    save_model(place / "own2", bpe(["<unk>", "<s>", "</s>", *"abcdefgh"]))
    assert merge(place, "base_model: own\ntokenizer: {source: donor}", models="own own2") == 0
    ids = config(place / "out")
    assert (ids["bos_token_id"], ids["eos_token_id"], ids["vocab_size"]) == (5, 4, 8)
    assert ids["image_token_id"] == 1, "the id of 'a'"
    assert ids["bad_words_ids"] == [[2], [7]], "'d' is no more"
    written = config(place / "out", "generation_config.json")
    assert written == {"eos_token_id": 4, "suppress_tokens": [2], "top_k": 2}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (place / "out" / name).read_bytes() == (donor / name).read_bytes()
    assert manifest(place / "out")["vocabulary"]["rows"] == [11, 8]


def test_a_donor_that_takes_part_gives_all_its_files(place: Path) -> None:
    write_json(place / "c" / "special_tokens_map.json", {"eos_token": "</s>"})
    write_json(place / "a" / "added_tokens.json", {"<|im_start|>": 27, "<|im_end|>": 28})
    assert merge(place, "tokenizer: {source: c}", models="a c") == 0
    assert not (place / "out" / "added_tokens.json").exists(), "this was of the other tokenizer"
    assert (place / "out" / "special_tokens_map.json").is_file()
    assert config(place / "out")["vocab_size"] == 29


def test_sizes_in_parts_of_a_config(place: Path) -> None:
    for name, text in {
        "flat": {"vocab_size": 29, "text_config": {"vocab_size": 29}},
        "inner": {"text_config": {"vocab_size": 29}, "vision_config": {"vocab_size": 29}},
        "default": {"text_config": {"hidden_size": 8}},
        "none": {"hidden_size": 8},
    }.items():
        write_json(place / "a" / "config.json", {"tie_word_embeddings": False, **text})
        assert merge(place, "tokenizer_source: union", out=name) == 0
        settings = config(place / name)
        size = settings.get("text_config", settings)["vocab_size"]
        assert size == 30 == settings.get("vocab_size", size)
        assert settings.get("vision_config", {"vocab_size": 29}) == {"vocab_size": 29}


def test_a_model_without_a_tokenizer_has_that_of_the_base(place: Path, capsys: Capture) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place / "a" / name).unlink()
    assert merge(place, "base_model: base\ntokenizer_source: base", models="base a") == 0
    assert (
        "a: has no tokenizer; its tokens are taken to be those of base" in capsys.readouterr().err
    )
    rows, base, a = (read_tensors(place / name)[HEAD] for name in ("out", "base", "a"))
    assert torch.equal(rows, ((base.double() + a[:27].double()) / 2).float())
    assert merge(place, "tokenizer_source: union", out="other", models="a base") == 3
    assert "a: has no tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("tokenizer: {tokens: {x: {source: nobody}}}", 2, "nobody takes no part in this merge"),
        ("tokenizer: {tokens: {x: {source: b}}}", 2, "tokens.x: b has no token 'x'"),
        ("tokenizer: {tokens: {<tool>: {source: a, force: true}}}", 2, "a has no token '<tool>'"),
        (
            "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token_id: 29}}}}",
            2,
            "a has 29 rows",
        ),
        ("tokenizer: {tokens: {x: {force: true}}}", 2, "'force' without a 'source'"),
        ("tokenizer: {tokens: {x: {source: {kind: one}}}}", 2, "{kind: zero}, or {kind: model_to"),
        (
            "tokenizer: {pad_to_multiple_of: 1.5}",
            2,
            "expected a number of rows up to 65536, got 1.5",
        ),
        ("tokenizer: {pad_to_multiple_of: 65537}", 2, "rows up to 65536, got 65537"),
        ("tokenizer_source: model:a", 2, "write the model alone: a"),
        ("tokenizer: [union]", 2, "'tokenizer' is a mapping of names to values"),
        ("tokenizer_source: ./nowhere", 3, "./nowhere: no such folder"),
    ],
)
def test_what_is_wrong_is_told(
    text: str, code: int, words: str, place: Path, capsys: Capture
) -> None:
    assert merge(place, text) == code
    assert words in capsys.readouterr().err
    assert not (place / "out").exists()


def test_a_misspelt_key_is_told(place: Path, capsys: Capture) -> None:
    assert merge(place, "tokenizer: {source: union, token: {}}") == 0
    assert "r.yml:5: tokenizer.token: nothing reads this key" in capsys.readouterr().err


def test_tokens_without_rows_leave_the_base(place: Path) -> None:
    """The tokenizer has more tokens than the embedding rows."""
    tokenizer = bpe(["<unk>", "<s>", "</s>", *"abcd", "ab"], special=CHAT)
    save_tokenizer(place / "cut", tokenizer)
    for name in ("cut", "cut2"):
        tensors = llama(7, name)
        write_checkpoint(place / f"{name}-model", tensors, config={"vocab_size": 7})
        save_tokenizer(place / f"{name}-model", tokenizer)
    assert merge(place, "tokenizer_source: base", models="cut-model cut2-model") == 0
    merged = Tokenizer.from_file(str(place / "out" / "tokenizer.json"))
    assert sorted(merged.get_vocab()) == sorted(["<unk>", "<s>", "</s>", *"abcd"])
    assert merged.encode("ab").tokens == ["a", "b"]
    assert len(read_tensors(place / "out")[HEAD]) == 7


def test_bfloat16_means_are_rounded_once(place: Path) -> None:
    folders = []
    for name, special in {"x": [CHAT[1]], "y": CHAT, "z": []}.items():
        tokenizer = bpe(["<unk>", "<s>", "</s>", *"abcd"], special=special)
        tensors = {n: t.bfloat16() for n, t in llama(7 + len(special), name).items()}
        folder = place / f"half-{name}"
        write_checkpoint(folder, tensors, config={"vocab_size": 7 + len(special)})
        save_tokenizer(folder, tokenizer)
        folders.append(folder.name)
    assert merge(place, "tokenizer_source: union", models=" ".join(folders)) == 0
    rows = read_tensors(place / "out")[EMBEDDING]
    x, y = (read_tensors(place / f"half-{name}")[EMBEDDING].double() for name in "xy")
    # z lacks it, and so gets the mean of the other two, which leaves their mean what it was.
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows[7], ((x[7] + y[8]) / 2).bfloat16())
    assert torch.equal(rows[8], y[7].bfloat16())


def test_documents_pass_their_tokenizer_on(place: Path) -> None:
    (place / "r.yml").write_text(
        "name: first\nmerge_method: linear\nparameters: {weight: 1}\n"
        "models: [{model: a}, {model: b}]\ntokenizer_source: union\n"
        "---\n"
        "merge_method: linear\nparameters: {weight: 1}\n"
        "models: [{model: first}, {model: c}]\ntokenizer: {source: union}\n"
    )
    words = ("--relative-to", place, "--progress", "off")
    assert run("merge", place / "r.yml", place / "out", *words) == 0
    ids = Tokenizer.from_file(str(place / "out" / "tokenizer.json")).get_vocab()
    rows = read_tensors(place / "out")[HEAD]
    assert len(rows) == len(ids) == 33 == config(place / "out")["vocab_size"]
    a, b, c = (read_tensors(place / name)[HEAD].double() for name in "abc")
    assert torch.equal(rows[ids["a"]], ((a[3] + b[3]) / 4 + c[22] / 2).float())
    assert torch.equal(rows[ids["<c>"]], c[27].float())


def test_a_document_passes_on_a_tokenizer_from_elsewhere(place: Path) -> None:
    (place / "r.yml").write_text(
        "name: first\nmerge_method: linear\nparameters: {weight: 1}\n"
        "models: [{model: base}, {model: a}]\ntokenizer: {source: c}\n"
        "---\n"
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: first}, {model: c}]\n"
    )
    words = ("--relative-to", place, "--progress", "off")
    assert run("merge", place / "r.yml", place / "out", *words) == 0
    out = place / "out"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (place / "c" / name).read_bytes()
    assert len(read_tensors(out)[HEAD]) == 29 == config(out)["vocab_size"]
