"""Hostile inputs as bytes: valid ones, broken at random places. Nothing is read here."""

import io
import json
import pickle
import random
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

NUMBERS = [0, 1, -1, 2, 7, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**400, 1.5, 1e308, True, None]
WORDS = [
    *("", "a", "F32", "BF16", "U8", "F8_E4M3", "__metadata__", "../x", "\x1b[2J", "\n", "\0", "ü"),
    *("loop.safetensors", "fifo.safetensors", "zero.safetensors", "model.safetensors", "<s>"),
]
RECIPES = [
    "merge_method: ties\nbase_model: b\nparameters: {density: [0.1, 0.9], normalize: true}\n"
    "models:\n- model: m1\n  parameters: {weight: [{filter: mlp, value: 0.5}, {value: 1}]}\n"
    "- {model: m2, parameters: {weight: 1}}\ndtype: bfloat16\nchat_template: auto\n",
    "merge_method: slerp\nbase_model: a\nparameters: {t: [0, 0.5, 1]}\nslices:\n- sources:\n"
    "  - {model: a, layer_range: [0, 2]}\n  - {model: b, layer_range: [0, 2]}\n",
    "name: x\nmerge_method: linear\nparameters: {weight: 1}\nmodels: &m [{model: a}, {model: b}]\n"
    "---\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [{model: x}, {model: c}]\n",
    "merge_method: della\nbase_model: {model: {path: b}}\nmodules:\n  text:\n"
    "    models: [{model: c, parameters: {weight: 1, density: 0.5, epsilon: 0.1}}]\n",
    "merge_method: task_arithmetic\nbase_model: a\nkey_map: [{from: 'embed', to: 'embed'}]\n"
    "models: [{model: b, parameters: {weight: 0.5}}, {model: c, parameters: {weight: [0, 1]}}]\n"
    "include: [layers.*]\nexclude: ['*.up']\nout_dtype: float16\n",
]
BITS = [
    *("{", "}", "[", "]", ":", ",", "- ", "&a ", "*a", "? ", "<<: ", "---\n", "|\n", "!!int "),
    *("\t", "\n", " ", "'", '"', "#", "%", "@", "`", "~", ".nan", ".inf", "9" * 400, "0x1", "1_0"),
    *("2001-01-01", "\x1b", "\x00", "\u202e", "\ud800", "\ufeff", "!!python/name:os.system "),
]
CODES = b"(.0123NIJKLMQRTU]X}abcdeghjlpqrstu\x80\x81\x85\x86\x87\x88\x89"
TOKENIZERS: dict[str, Any] = {
    "tokenizer.json": {
        "model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]},
        "added_tokens": [{"id": 4, "content": "<|end|>", "special": True, "lstrip": False}],
    },
    "vocab.json": {"<s>": 0, "a": 1, "b": 2},
    "tokenizer.model": b"\n\x08\n\x01a\x15\x00\x00\x00\x00\n\x05\n\x03</s>",
    "tiktoken.model": b"YQ== 0\nYg== 1\n",
    "vocab.txt": b"<s>\na\nb\n",
}
CONFIG: dict[str, Any] = {
    "model_type": "olmo_hybrid",
    "num_hidden_layers": 2,
    "vocab_size": 2,
    "hidden_size": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "tie_word_embeddings": False,
    "full_attention_interval": 2,
    "eos_token_id": [0, 1],
    "torch_dtype": "float32",
    "text_config": {"num_hidden_layers": 2, "sliding_window_pattern": 2, "vocab_size": 2},
    "quantization_config": None,
    "no_split": {"a": [0, 1]},
    "mlp_layer_types": "*-",
}
ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "use_rslora": False,
    "use_dora": False,
    "rank_pattern": {"layers.0.q": 2, "layers.\\d+.up": 2},
    "alpha_pattern": {".*q": 8},
    "fan_in_fan_out": False,
    "bias": "none",
    "target_modules": ["q", "up"],
    "modules_to_save": None,
}
CARD = (
    "---\nlicense: apache-2.0\nlicense_name: x\ntags: [a, &b b, *b]\nbase_model: [a/b]\n---\n# A\n"
)
MANIFEST: dict[str, Any] = {
    "format": 1,
    "key": "0" * 64,
    "recipe": {"text": RECIPES[1], "models": ["a", "b"], "base_model": "a", "method": "slerp"},
    "options": {
        "dtype": None,
        "shard_bytes": 5000000000,
        "seed": 0,
        "dequantize": False,
        "rules": {"missing": "error", "surplus": "error", "include": [], "exclude": ["x"]},
        "block": 131072,
    },
    "inputs": [
        {"model": "a", "bytes": 1, "shards": [{"file": "model.safetensors", "header_sha256": "x"}]},
        {"model": "b", "hub": "o/b", "commit": "c", "adapter": {"hub": "o/l", "commit": "d"}},
    ],
    "outputs": [
        {"file": "model.safetensors", "bytes": 8, "sum128": "0" * 32},
        {"file": "mergekit_config.yml", "bytes": 3},
    ],
    "nonfinite": 0,
    "notes": ["n"],
    "replaces": ["model.safetensors"],
}
RECORD: dict[str, Any] = {
    "job_id": "12.server",
    "backend": "pbs",
    "dialect": "openpbs",
    "out": "/out",
    "log": "/out.job/12.log",
    "name": "soup",
    "host": "login",
    "submitted_s": 1e9,
    "ticket": {"a": "b"},
    "also": ["/other"],
    "cluster": "c",
    "log_bytes": 3,
    "state": "RUNNING",
    "detail": "x",
}
LOCK: dict[str, Any] = {
    "host": "h",
    "boot": "b",
    "space": "s",
    "pid": 1,
    "started": 7,
    "about": "key",
    "nonce": "n",
}
PROFILES = """threads = 8
default_profile = "mine"
setup = ["module load x"]
[slurm]
partition = "gpu"
time = 12:00:00
[profile.mine]
about = "x"
extends = "gadi"
env = ["A=1"]
[profile.mine.pbs]
directive = ["-l storage=a"]
mem = "80gb"
"""
TOML = [
    *(
        "[",
        "]",
        "[[",
        "]]",
        "=",
        ".",
        '"',
        "'",
        "\n",
        "#",
        "{",
        "}",
        ",",
        "true",
        "0x" + "f" * 5000,
    ),
    *("9" * 5000, "a.b.c", "1979-05-27", "'''", '"\\u001b"', "\x1b", "nan", "-inf", "[" * 3000),
]
JOURNAL = ["0 0 1 " + "0" * 32 + " 0", "1 0 2 " + "f" * 32 + " 3"]
KEYS = [*"abcxyz", "e", "_", "_w", "", "x.y", "0"]
TEXTS = ["layers.", "0.", "q", "up", ".weight", "embed_tokens", ".", "99999", "100000", "a" * 300]
REGEX = [
    *("a", "b", ".", r"\.", r"\d", "[ab]", "[^a]", "(", ")", "(?:", "|", "*", "+", "?", "{2}"),
    *("{1,3}", "{0,99999999}", "^", "$", "(?=", "(?i)", r"\1", r"\b", "(a*)*", "(a|aa)+", ".*"),
    *("q_proj", "]"),
]


def value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(6 if depth < 4 else 2)
    if kind < 2:
        return chance.choice(NUMBERS if kind else WORDS)
    if kind < 4:
        return [value(chance, depth + 1) for _ in range(chance.randrange(5))]
    return {chance.choice(WORDS): value(chance, depth + 1) for _ in range(chance.randrange(4))}


def bent(chance: random.Random, whole: Any) -> Any:
    """Return a JSON value with a random part replaced."""
    if isinstance(whole, dict) and whole and chance.random() < 0.9:
        key = chance.choice(list(whole))
        return {**whole, key: bent(chance, whole[key])}
    if isinstance(whole, list) and whole and chance.random() < 0.8:
        place = chance.randrange(len(whole))
        return [*whole[:place], bent(chance, whole[place]), *whole[place + 1 :]]
    return value(chance)


def torn(chance: random.Random, raw: bytes) -> bytes:
    """Replace some bytes and drop others; sometimes nest deeper than any parser allows."""
    if chance.random() < 0.01:
        return b"[" * 50_000 if chance.random() < 0.5 else b'{"a":' * 50_000
    content = bytearray(raw)
    for _ in range(chance.choice([0, 0, 0, 1, 3])):
        place = chance.randrange(len(content) + 1)
        content[place : place + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    return bytes(content)


def header(chance: random.Random) -> bytes:
    """Return the JSON of a safetensors file after a byte that selects a false length."""
    offset, tensors = 0, dict[str, Any]()
    for number in range(chance.randrange(6)):
        shape = [chance.randrange(9) for _ in range(chance.randrange(4))]
        count = 4
        for extent in shape:
            count *= extent
        tensors[f"t{number}"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [offset, offset + count],
        }
        offset += count
    for _ in range(chance.choice([0, 1, 1, 2, 3])):
        tensors = bent(chance, tensors) if tensors else {chance.choice(WORDS): value(chance)}
        tensors = tensors if isinstance(tensors, dict) else {"t": tensors}
    raw = torn(chance, json.dumps(tensors).encode())
    return bytes([255 if chance.random() < 0.9 else chance.randrange(256)]) + raw


def index(chance: random.Random) -> bytes:
    """Return an index to put next to two valid shards, a FIFO, a device and a link to itself."""
    whole: Any = {
        "metadata": {"total_size": 16},
        "weight_map": {"a": "one.safetensors", "b": "two.safetensors"},
    }
    for _ in range(chance.choice([0, 1, 1, 2])):
        whole = bent(chance, whole)
    return torn(chance, json.dumps(whole).encode())


def recipe(chance: random.Random) -> bytes:
    text = chance.choice(RECIPES)
    for _ in range(chance.choice([1, 1, 2, 4])):
        place, width = chance.randrange(len(text) + 1), chance.randrange(8)
        bit = chance.choice(BITS) if chance.random() < 0.8 else repr(value(chance))
        text = text[:place] + bit * chance.choice([1, 1, 1, 30]) + text[place + width :]
    return text.encode(errors="surrogatepass")


def whole_pickle() -> bytes:
    """Return data.pkl as torch.save writes it for two tensors of one storage."""
    words = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    shape = b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89ccollections\nOrderedDict\n)RtR"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n((" + words + b"K\x10tQ" + shape
    pairs = b"".join(b"X\x01\x00\x00\x00" + name + tensor for name in (b"a", b"b"))
    return b"\x80\x02}q\x00(" + pairs + b"u."


def pickled(chance: random.Random) -> bytes:
    content = bytearray(whole_pickle())
    if chance.random() < 0.2:
        content = bytearray(pickle.dumps(value(chance), protocol=chance.randrange(6)))
    for _ in range(chance.choice([0, 1, 1, 2, 4])):
        place = chance.randrange(len(content) + 1)
        codes = bytes(chance.choice(CODES) for _ in range(chance.randrange(4)))
        content[place : place + chance.randrange(3)] = codes * chance.choice([1, 1, 1, 40])
    return bytes(content)


def archived(pickle_bytes: bytes) -> bytes:
    """Return a whole torch.save file around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("m/data.pkl", pickle_bytes)
        archive.writestr("m/data/0", bytes(64))
    return file.getvalue()


def archive(chance: random.Random) -> bytes:
    raw = bytearray(archived(whole_pickle()))
    for _ in range(chance.choice([1, 1, 2, 3])):
        place = chance.randrange(len(raw))
        raw[place : place + chance.randrange(4)] = chance.randbytes(chance.randrange(5))
    return bytes(raw)


def vocabulary(chance: random.Random) -> bytes:
    """Return a tokenizer file after a byte that selects which one it is."""
    number = chance.randrange(len(TOKENIZERS))
    whole = list(TOKENIZERS.values())[number]
    if not isinstance(whole, bytes):
        for _ in range(chance.choice([0, 1, 1, 2])):
            whole = bent(chance, whole)
        whole = json.dumps(whole).encode()
    return bytes([number]) + torn(chance, whole)


def settings(whole: Any) -> Callable[[random.Random], bytes]:
    """Return a maker of the JSON of these settings, damaged at random."""

    def make(chance: random.Random) -> bytes:
        value = whole
        for _ in range(chance.choice([0, 1, 1, 2])):
            value = bent(chance, value)
        return torn(chance, json.dumps(value).encode())

    return make


def card(chance: random.Random) -> bytes:
    text = CARD
    for _ in range(chance.choice([0, 1, 1, 2])):
        place = chance.randrange(len(text) + 1)
        bit = chance.choice(BITS) * chance.choice([1, 1, 1, 30, 3000])
        text = text[:place] + bit + text[place + chance.randrange(8) :]
    return text.encode(errors="surrogatepass")


def journal(chance: random.Random) -> bytes:
    """Return lines of a journal, most of them with the check that belongs to the damaged text."""
    lines = []
    for _ in range(chance.randrange(1, 4)):
        fields = chance.choice(JOURNAL).split()
        for _ in range(chance.randrange(3)):
            odd = [*map(repr, NUMBERS[:9]), *WORDS, "9" * 5000, "0x1", "\u0663"]
            fields[chance.randrange(5)] = chance.choice(odd)
        text = torn(chance, " ".join(fields).encode(errors="surrogatepass"))
        check = str(zlib.crc32(text)) if chance.random() < 0.8 else chance.choice(["", "9" * 5000])
        lines.append(text + b" " + check.encode())
    return b"\n".join(lines)


def profiles(chance: random.Random) -> bytes:
    text = PROFILES
    for _ in range(chance.choice([0, 1, 1, 2, 4])):
        place, bit = chance.randrange(len(text) + 1), chance.choice([*TOML, *WORDS])
        text = text[:place] + bit + text[place + chance.randrange(8) :]
    return text.encode(errors="surrogatepass")


def template(chance: random.Random) -> str:
    parts = [
        f"{{{chance.choice(KEYS)}}}" if chance.random() < 0.5 else chance.choice(TEXTS)
        for _ in range(chance.randrange(1, 12))
    ]
    return "".join(parts)


def key_map(chance: random.Random) -> bytes:
    """Return a recipe with rules of random templates."""
    rules: Any = [{"from": template(chance), "to": template(chance)} for _ in range(2)]
    if chance.random() < 0.6:  # with the same wildcards on both sides
        words = [f"{{{word}}}" for word in chance.sample("abcdfghi", chance.randrange(1, 9))]
        joint = chance.choice([".", "x.", "", "s.0."])
        rules = [{"from": ".".join(words), "to": [joint.join(words), "x".join(words)][:1]}]
    if chance.random() < 0.3:
        rules = bent(chance, rules)
    whole = {"merge_method": "linear", "parameters": {"weight": 1}, "key_map": rules}
    return json.dumps({**whole, "models": [{"model": "a"}, {"model": "b"}]}).encode()


def pattern(chance: random.Random) -> bytes:
    return "".join(chance.choice(REGEX) for _ in range(chance.randrange(1, 15))).encode()


MAKERS: dict[str, Callable[[random.Random], bytes]] = {
    "headers": header,
    "indexes": index,
    "recipes": recipe,
    "plans": recipe,
    "pickles": pickled,
    "archives": archive,
    "vocabularies": vocabulary,
    "configs": settings(CONFIG),
    "adapters": settings(ADAPTER),
    "cards": card,
    "manifests": settings(MANIFEST),
    "records": settings(RECORD),
    "locks": settings(LOCK),
    "profiles": profiles,
    "journals": journal,
    "key_maps": key_map,
    "patterns": pattern,
}
