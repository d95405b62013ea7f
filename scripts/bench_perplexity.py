"""Perplexity of a model layer by layer, against transformers with the model in memory.

    python scripts/bench_perplexity.py [--folder DIR] [--tokens 4096] [--shape 1b|8b-sparse]

Makes a Llama with random bfloat16 weights (1.1 B parameters: 22 layers, width 2048) if the folder
has none, measures both in processes of their own, and prints losses, tokens a second and the peak
of resident memory. `8b-sparse` is a file of zeros with holes in the shape of an 8 B Llama, for the
bound on memory alone.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "8b-sparse": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
LETTERS = "abcdefghijklmnopqrstuvwxyz ."


def make(folder: Path, shape: str) -> None:
    """Write the model and a tokenizer of letters, one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    sizes = SHAPES[shape]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
        "max_position_embeddings": 4096,
        **sizes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    offset = 0
    for name, dims in tensors(sizes).items():
        size = 2 * dims[0] * (dims[1] if len(dims) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        if shape == "1b":
            write_random(file, header)
        file.truncate(8 + len(raw) + offset)
    vocabulary = {"<unk>": 0, **{letter: n for n, letter in enumerate(LETTERS, 1)}}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>").save_pretrained(folder)


def tensors(sizes: dict[str, int]) -> dict[str, list[int]]:
    wide, middle, heads = (
        sizes["hidden_size"], sizes["intermediate_size"], sizes["num_attention_heads"],
    )  # fmt: skip
    narrow = wide // heads * sizes["num_key_value_heads"]
    layer = {
        "input_layernorm": [wide],
        "post_attention_layernorm": [wide],
        "self_attn.q_proj": [wide, wide],
        "self_attn.k_proj": [narrow, wide],
        "self_attn.v_proj": [narrow, wide],
        "self_attn.o_proj": [wide, wide],
        "mlp.gate_proj": [middle, wide],
        "mlp.up_proj": [middle, wide],
        "mlp.down_proj": [wide, middle],
    }
    found = {"model.embed_tokens.weight": [sizes["vocab_size"], wide]}
    for number in range(sizes["num_hidden_layers"]):
        found |= {f"model.layers.{number}.{name}.weight": dims for name, dims in layer.items()}
    return {**found, "model.norm.weight": [wide], "lm_head.weight": [sizes["vocab_size"], wide]}


def write_random(file: Any, header: dict[str, Any]) -> None:
    import torch

    generator = torch.Generator().manual_seed(1)
    for entry in header.values():
        values = torch.randn(entry["shape"], generator=generator)
        values = values * 0.03 if values.dim() > 1 else 1 + values * 0.1
        file.write(values.to(torch.bfloat16).view(torch.uint8).numpy().tobytes())


def text(path: Path, tokens: int) -> Path:
    draws = random.Random(3)
    path.write_text("".join(draws.choices(LETTERS[:-1], k=tokens)))
    return path


def peak_bytes(process: int) -> dict[str, int]:
    """Return the resident memory of a process now, in all and what is its own."""
    lines = Path(f"/proc/{process}/status").read_text()
    found = {key: int(value) * 1024 for key, value in re.findall(r"(\w+):\s+(\d+) kB", lines)}
    return {"resident": found.get("VmHWM", 0), "anonymous": found.get("RssAnon", 0)}


def watched(words: list[str]) -> tuple[str, float, dict[str, int]]:
    """Run a command; return its output, its seconds, and the peaks of its memory."""
    began, peaks = time.perf_counter(), {"resident": 0, "anonymous": 0}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            try:
                now = peak_bytes(process.pid)
                peaks = {key: max(value, now[key]) for key, value in peaks.items()}
            except (OSError, ProcessLookupError):
                break
            time.sleep(0.05)
        printed = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(process.returncode)
    return printed, time.perf_counter() - began, peaks


WHOLE = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, data, length = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(int(sys.argv[4]))
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(open(data).read())["input_ids"]])
began, cpu, total, count = time.perf_counter(), time.process_time(), 0.0, 0
with torch.no_grad():
    for first in range(0, ids.shape[1], length):
        part = ids[:, first : first + length]
        loss = model(input_ids=part, labels=part, use_cache=False).loss
        total, count = total + loss.item() * (part.shape[1] - 1), count + part.shape[1] - 1
spent = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
print(json.dumps({"nats": total / count, **spent}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-perplexity"))
    parser.add_argument("--shape", choices=tuple(SHAPES), default="1b")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", default=None)
    arguments = parser.parse_args()
    folder = arguments.folder / arguments.shape
    if not folder.exists():
        make(folder, arguments.shape)
    data = text(arguments.folder / "text.txt", arguments.tokens)
    options = ["--data", str(data), "--length", str(arguments.length), "--json"]
    options += ["--threads", str(arguments.threads), "--device", "cpu"]
    options += ["--memory", arguments.memory] if arguments.memory else []
    command = [sys.executable, "-m", "merge_worker", "perplexity", str(folder), *options]
    printed, wall, peaks = watched(command)
    ours = json.loads(printed)["models"][0]
    report("layer by layer", ours, arguments.tokens, wall, peaks)
    if arguments.shape != "1b":
        return
    words = [str(folder), str(data), str(arguments.length), str(arguments.threads)]
    printed, wall, peaks = watched([sys.executable, "-c", WHOLE, *words])
    whole = json.loads(printed)
    report("in memory", whole, arguments.tokens, wall, peaks)
    print(f"difference of the loss: {abs(whole['nats'] - ours['nats']):.2e} nats")
    for key, words in (("seconds", "tokens a second"), ("cpu_seconds", "tokens a CPU second")):
        print(f"{words}: {whole[key] / ours[key]:.2f} x that of the model in memory")


def report(name: str, run: dict[str, Any], tokens: int, wall: float, peaks: dict[str, int]) -> None:
    gib = {key: value / (1 << 30) for key, value in peaks.items()}
    print(
        f"{name:15} {run['nats']:.7f} nats  {tokens / run['seconds']:.1f} tokens/s, "
        f"{tokens / run['cpu_seconds']:.1f} a CPU second; {wall:.1f} s with start and loading; "
        f"at most {gib['resident']:.2f} GiB resident, {gib['anonymous']:.2f} GiB its own",
        flush=True,
    )


if __name__ == "__main__":
    main()
