"""Samples, tokens, windows and batches of text."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from merge_worker.errors import InputError
from merge_worker.inference.texts import (
    IGNORED,
    Encoded,
    Sample,
    batches,
    cut,
    cut_at,
    encode,
    read_samples,
    read_tokenizer,
)
from merge_worker.tokenizer.files import SideFiles
from support.language_models import write_tokenizer

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}.{{ m.content }}</s>{% endfor %}"
PROMPTING = TEMPLATE + "{% if add_generation_prompt %}<s>assistant.{% endif %}"


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    return path


def tokenizer(folder: Path, **options: Any) -> Any:
    return AutoTokenizer.from_pretrained(write_tokenizer(folder, **options))


def test_blank_lines_part_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\ntwo\r\n\r\n \n\nthree\n".encode())
    found = read_samples(path)
    assert [(s.text, s.where) for s in found] == [
        ("one\ntwo", f"{path}:1"),
        ("three", f"{path}:6"),
    ]


def test_lines_of_json_are_samples(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "ab"}]
    path = write(
        tmp_path / "a.jsonl",
        {"text": "the"},
        {"messages": messages},
        {"prompt": "ab", "completion": "cd"},
        {"conversations": [{"from": "human", "value": "ab"}]},
    )
    one, two, three, four = read_samples(path)
    assert (one.text, one.prompt, two.text) == ("the", "", tuple(messages))
    assert (three.prompt, three.text) == ("ab", "cd")
    assert four.text == tuple(messages)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "no text in it"),
        (b"\n \n", "no text in it"),
        (b"{", r":1: not JSON"),
        (b"[1]\n", r":1: not a JSON object"),
        (b'{"text": "a"}\n{"body": 1}\n', r":2: has none of 'text', 'messages'"),
        (b'{"text": 3}\n', r":1: 'text' is not a text"),
        (b'{"messages": "hi"}\n', r":1: 'messages' is not a list of messages"),
        (b'{"messages": [{"content": "hi"}]}\n', r":1: 'messages' is not a list"),
        (b'{"prompt": "a", "completion": [{"role": "x"}]}\n', r":1: .* are not both"),
        (b"ok\n\xff\n", "line 2 is not UTF-8"),
    ],
)
def test_faults_of_files_name_the_line(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=fault):
        read_samples(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="No such file"):
        read_samples(tmp_path / "none.txt")


def test_tokens_know_where_they_begin(tmp_path: Path) -> None:
    found = encode(Sample("", "the äab"), tokenizer(tmp_path))
    # <s> the ␣ <unk> ab
    assert found.starts == (0, 0, 3, 4, 5)
    assert found.counted == (True,) * 5
    assert [found.nbytes(n, n + 1) for n in range(5)] == [0, 3, 1, 2, 2]


def test_halves_of_characters_are_replaced(tmp_path: Path) -> None:
    assert encode(Sample("", "a\ud800b"), tokenizer(tmp_path)).text == "a\ufffdb"


def test_the_loss_counts_for_the_completion_only(tmp_path: Path) -> None:
    plain = encode(Sample("", "cd", "ab "), tokenizer(tmp_path))
    assert plain.text == "ab cd"
    assert plain.counted == (False, False, False, True, True)
    (window,) = cut(0, plain, 10)
    assert [label for label in window.labels if label != IGNORED] == list(plain.ids[3:])
    assert window.nbytes == 2
    asked = ({"role": "user", "content": "ab"},)
    reply = ({"role": "assistant", "content": "the"},)
    chat = encode(Sample("", reply, asked), tokenizer(tmp_path / "b", template=PROMPTING))
    assert chat.text == "<s>user.ab</s><s>assistant.the</s>"
    assert chat.ids.count(1) == 2  # the template's own only
    begin = chat.text.index("the</s>")
    assert chat.counted == tuple(start >= begin for start in chat.starts)


def test_conversations_need_a_template(tmp_path: Path) -> None:
    sample = Sample("a.jsonl:3", ({"role": "user", "content": "ab"},))
    with pytest.raises(InputError, match=r"a\.jsonl:3: a conversation, but .* no chat template"):
        encode(sample, tokenizer(tmp_path / "a"))
    bad = tokenizer(tmp_path / "b", template="{{ raise_exception('roles alternate') }}")
    with pytest.raises(InputError, match=r"a\.jsonl:3: the chat template refuses it: roles"):
        encode(sample, bad)


def test_a_missing_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer beside the weights"):
        read_tokenizer(SideFiles(tmp_path), "m")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot read its tokenizer"):
        read_tokenizer(SideFiles(tmp_path), "m")


def encoded(count: int) -> Encoded:
    text = "x" * count
    return Encoded(text, tuple(range(count)), (True,) * count, tuple(range(count)))


def test_windows_by_hand() -> None:
    first, second, third = cut(0, encoded(10), 4, 3)
    assert [first.ids, second.ids, third.ids] == [(0, 1, 2, 3), (3, 4, 5, 6), (6, 7, 8, 9)]
    assert first.labels == (IGNORED, 1, 2, 3)
    assert second.labels == (IGNORED, 4, 5, 6)
    apart = cut(0, encoded(10), 4)
    assert [w.counted for w in apart] == [3, 3, 1]
    overlapping = cut(0, encoded(8), 4, 2)
    assert [w.labels for w in overlapping][1] == (IGNORED, IGNORED, 4, 5)
    assert cut(0, encoded(1), 4) == []


@given(st.integers(0, 60), st.integers(2, 20), st.integers(1, 20))
def test_windows_count_every_token_at_most_once(size: int, length: int, stride: int) -> None:
    stride = min(stride, length)
    windows = cut(0, encoded(size), length, stride)
    counted = [label for window in windows for label in window.labels if label != IGNORED]
    assert counted == sorted(set(counted))
    if stride < length:
        assert counted == list(range(1, size))
    assert sum(window.nbytes for window in windows) == len(counted)
    assert all(1 < len(window.ids) <= length for window in windows)


def test_windows_of_another_tokenizer_hold_the_same_text(tmp_path: Path) -> None:
    sample = Sample("", "the ab the th ab cab the")
    one = encode(sample, tokenizer(tmp_path / "a"))
    letters = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", " "]
    other = encode(sample, tokenizer(tmp_path / "b", words=letters, bos=True))
    assert len(other.ids) > len(one.ids)
    windows = cut(0, one, 6, 3)
    same = [cut_at(0, other, window) for window in windows]
    assert [w.nbytes for w in same] == [w.nbytes for w in windows]
    assert sum(w.nbytes for w in same) == len(sample.text)


def test_batches_hold_windows_of_one_length() -> None:
    windows = [*cut(0, encoded(10), 4), *cut(1, encoded(9), 4)]
    made = batches(windows, 8)
    assert [batch.windows for batch in made] == [(0, 1), (3, 4), (2,)]
    assert made[0].ids.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert made[0].labels[1].tolist() == [IGNORED, 5, 6, 7]
