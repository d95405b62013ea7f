"""One small tokenizer in every file format that transformers reads."""

import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from support.tokenizer_factory import tiktoken_lines, write_json

LINES = (
    "the quick brown fox jumps over the lazy dog",
    "hello world, this is a test of tokens and of text",
    "pack my box with five dozen liquor jugs",
    "sphinx of black quartz judge my vow",
)
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


@cache
def sentencepiece(kind: str, size: int) -> bytes:
    import sentencepiece as library

    written = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 5),
        model_writer=written,
        vocab_size=size,
        model_type=kind,
        byte_fallback=kind == "bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return written.getvalue()


@cache
def trained(kind: str) -> str:
    """Train tokenizer.json of a byte-level BPE, a unigram or a WordPiece tokenizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special = ["<unk>", "<s>", "</s>"]
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer: Any = trainers.BpeTrainer(
            vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=80, special_tokens=special, show_progress=False
        )
    tokenizer.train_from_iterator(LINES * 5, trainer)
    return str(tokenizer.to_str(pretty=True))


def full(kind: str) -> Callable[[Path, Sequence[str]], None]:
    def make(folder: Path, added: Sequence[str]) -> None:
        from tokenizers import AddedToken, Tokenizer

        tokenizer = Tokenizer.from_str(trained(kind))
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in added])
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
        write_json(folder / "tokenizer_config.json", settings)

    return make


def declared(folder: Path, first: int, added: Sequence[str], **settings: Any) -> None:
    """Return settings with added tokens from the id `first` on."""
    listed = {str(first + n): {"content": t, **FLAGS, "special": True} for n, t in enumerate(added)}
    more = {"added_tokens_decoder": listed} if added else {}
    write_json(folder / "tokenizer_config.json", {**settings, **more})


def llama(folder: Path, added: Sequence[str]) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece("bpe", 340))
    words = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    declared(folder, 340, added, tokenizer_class="LlamaTokenizer", **words)


def t5(folder: Path, added: Sequence[str]) -> None:
    (folder / "spiece.model").write_bytes(sentencepiece("unigram", 50))
    declared(folder, 61, added, tokenizer_class="T5Tokenizer", extra_ids=10)


def gpt2(folder: Path, added: Sequence[str]) -> None:
    model = json.loads(trained("bpe"))["model"]
    vocabulary = {("<|endoftext|>" if t == "</s>" else t): n for t, n in model["vocab"].items()}
    write_json(folder / "vocab.json", vocabulary)
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    end = {"content": "<|endoftext|>", **FLAGS, "special": True}
    listed = {str(len(vocabulary) + n): {**end, "content": t} for n, t in enumerate(added)}
    decoder = {str(vocabulary["<|endoftext|>"]): end, **listed}
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": decoder},
    )


def bert(folder: Path, added: Sequence[str]) -> None:
    words = [*("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), *sorted(set(" ".join(LINES)) - {" "})]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + ["the", "of"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    declared(folder, len(words), added, tokenizer_class="BertTokenizer")


def tiktoken(folder: Path, added: Sequence[str]) -> None:
    tokens = [bytes([n]) for n in range(256)] + [b"th", b"the", b" the", b"he"]
    (folder / "tokenizer.model").write_bytes(tiktoken_lines(tokens))
    declared(folder, len(tokens), added, tokenizer_class="PreTrainedTokenizerFast")


KINDS: dict[str, Callable[[Path, Sequence[str]], None]] = {
    "byte-level BPE": full("bpe"),
    "unigram": full("unigram"),
    "WordPiece": full("wordpiece"),
    "sentencepiece": llama,
    "sentencepiece of T5": t5,
    "vocab and merges": gpt2,
    "vocab.txt": bert,
    "tiktoken": tiktoken,
}
MODEL_TYPES = {"sentencepiece of T5": "t5", "vocab and merges": "gpt2", "vocab.txt": "bert"}


def make(kind: str, folder: Path, added: Sequence[str] = ()) -> Path:
    """Write a tokenizer of a kind with the special tokens `added` after the others."""
    folder.mkdir(parents=True, exist_ok=True)
    KINDS[kind](folder, added)
    write_json(folder / "config.json", {"model_type": MODEL_TYPES.get(kind, "llama")})
    return folder
