"""Small tokenizers, and Llamas with rows that identify their token and model."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from support.checkpoint_factory import write_checkpoint
from support.golden_models import bells

HIDDEN = 8
SPECIAL = ["<unk>", "<s>", "</s>"]
LETTERS = list("abcdefghijklmnopqrst")
MERGED = ["ab", "cd", "abcd", "ef"]
CHAT = ["<|im_start|>", "<|im_end|>"]

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def bpe(tokens: Sequence[str], added: Sequence[str] = (), special: Sequence[str] = ()) -> Tokenizer:
    """Return a BPE tokenizer of these tokens in order; longer ones are merged from two."""
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = []
    for token in tokens:
        halves = [(token[:n], token[n:]) for n in range(len(token) - 1, 0, -1)]
        if "<" not in token:
            merges += [pair for pair in halves if all(half in vocabulary for half in pair)][:1]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([token for token in SPECIAL if token in vocabulary])
    for token in (*special, *added):
        # The ids follow the given order.
        kind = AddedToken(token, special=token in special, normalized=token not in special)
        tokenizer.add_tokens([kind])
    return tokenizer


def save_tokenizer(folder: Path, tokenizer: Tokenizer, **settings: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **named, **settings},
    )


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def llama(rows: int, seed: str, hidden: int = HIDDEN) -> dict[str, Tensor]:
    """Return tensors of a Llama of one layer, exact in bfloat16 except for the last bits."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (rows, hidden),
        "lm_head.weight": (rows, hidden),
        "model.norm.weight": (hidden,),
    }
    for name, shape in {
        "input_layernorm": (hidden,),
        "mlp.down_proj": (hidden, 8),
        "mlp.gate_proj": (8, hidden),
        "mlp.up_proj": (8, hidden),
        "post_attention_layernorm": (hidden,),
        "self_attn.k_proj": (hidden // 2, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.v_proj": (hidden // 2, hidden),
    }.items():
        shapes[f"model.layers.0.{name}.weight"] = shape
    return {
        n: (bells(s, f"{seed} {n}") / 2**18 + (1 if "norm" in n else 0)).float()
        for n, s in shapes.items()
    }


def save_model(
    folder: Path, tokenizer: Tokenizer | None, *, spare: int = 0, tied: bool = False, **config: Any
) -> Path:
    """Save a Llama with a row for every token, followed by `spare` rows."""
    rows = (len(tokenizer.get_vocab()) if tokenizer else 0) + spare
    tensors = llama(rows, folder.name.removeprefix("tied-"))
    if tied:
        del tensors["lm_head.weight"]
    settings = {**CONFIG, "vocab_size": rows, "tie_word_embeddings": tied, **config}
    write_checkpoint(folder, tensors, config=settings)
    generation = {"bos_token_id": 1, "eos_token_id": [2], "do_sample": True}
    write_json(folder / "generation_config.json", generation)
    if tokenizer:
        save_tokenizer(folder, tokenizer)
    return folder


def tokenizers() -> dict[str, Tokenizer]:
    """Return `base`; `a` and `b` with chat tokens at other ids; `c` with other regular tokens."""
    base = [*SPECIAL, *LETTERS, *MERGED]
    other = [*SPECIAL, *reversed(LETTERS), "ab", "ba", "ef", "gh"]
    return {
        "base": bpe(base),
        "a": bpe(base, special=CHAT),
        "b": bpe(base, special=[CHAT[1]], added=["<tool>"]),
        "c": bpe(other, added=["<tool>"], special=["<c>"]),
    }


def make_models(folder: Path) -> None:
    """Write models of `tokenizers`, `b` with three spare rows; all also as `tied-…`."""
    for name, tokenizer in tokenizers().items():
        spare = 3 if name == "b" else 0
        save_model(folder / name, tokenizer, spare=spare)
        save_model(folder / f"tied-{name}", tokenizer, spare=spare, tied=True)


ECHO = "{% for message in messages %}{{ message['content'] }};{% endfor %}"
LOUD = "{% for message in messages %}[{{ message['role'] | upper }}]{{ message['content'] }}" + (
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[ASSISTANT]{% endif %}"
)
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]


def make_speakers(folder: Path) -> None:
    """Write the models of `make_models`; `a` has one chat template, `b` and `c` another."""
    make_models(folder)
    for name, template in {"a": ECHO, "b": LOUD, "c": LOUD}.items():
        (folder / name / "chat_template.jinja").write_text(template, encoding="utf-8")


def rendered(folder: Path) -> str:
    """Render TURNS with the tokenizer of a folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


def by_token(folder: Path, tensor: Tensor) -> dict[str, Tensor]:
    """Return rows by the tokens of a folder's tokenizer.json."""
    ids: dict[str, int] = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    return {token: tensor[number] for token, number in sorted(ids.items())}


def tiktoken_lines(tokens: Sequence[bytes]) -> bytes:
    """Return the lines of a tiktoken file."""
    return b"".join(b"%s %d\n" % (base64.b64encode(t), n) for n, t in enumerate(tokens))


def equal(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left, right)
