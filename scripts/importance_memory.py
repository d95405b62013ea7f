"""Peak memory of `merge-worker importance` on a random llama of 1.1 billion parameters.

importance_memory.py FOLDER [--samples 64] [--length 256] [--kind fisher] [--layers 22]

Prints the peak of the process and the bound: the embedding and two layers in float32, and 500 MB.
The model (2.2 GB in bfloat16) is made in FOLDER once, without loading it whole.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WIDTH, INNER, VOCABULARY, HEADS, GROUPS = 2048, 5632, 32000, 32, 4
MEASURE = (
    "import sys\n"
    "from merge_worker.cli import main\n"
    "code = main(sys.argv[1:])\n"
    "lines = [line.split() for line in open('/proc/self/status')]\n"
    "print('PEAK', code, *(words[1] for words in lines if words[0] == 'VmHWM:'))\n"
)


def make(folder: Path, layers: int) -> None:
    folder.mkdir(parents=True)
    noise = torch.Generator().manual_seed(0)
    narrow = WIDTH * GROUPS // HEADS
    shapes = {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (narrow, WIDTH),
        "self_attn.v_proj": (narrow, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (INNER, WIDTH),
        "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
    }
    places: dict[str, str] = {}

    def save(file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / file, {"format": "pt"})
        places.update(dict.fromkeys(tensors, file))

    def random_matrix(shape: tuple[int, int]) -> torch.Tensor:
        return (torch.randn(shape, generator=noise) * 0.02).bfloat16()

    for layer in range(layers):
        begin = f"model.layers.{layer}."
        tensors = {f"{begin}{n}.weight": random_matrix(shape) for n, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{begin}{norm}.weight"] = torch.ones(WIDTH).bfloat16()
        save(f"layer-{layer:02d}.safetensors", tensors)
    ends = {n: random_matrix((VOCABULARY, WIDTH)) for n in ("model.embed_tokens", "lm_head")}
    ends["model.norm"] = torch.ones(WIDTH).bfloat16()
    save("ends.safetensors", {f"{name}.weight": tensor for name, tensor in ends.items()})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    words = {f"w{number}": number for number in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0").save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--kind", default="fisher")
    parser.add_argument("--layers", type=int, default=22)
    given = parser.parse_args()
    model = given.folder / f"llama-{given.layers}"
    if not model.exists():
        make(model, given.layers)
    chance = random.Random(0)
    texts = (
        " ".join(f"w{chance.randrange(VOCABULARY)}" for _ in range(given.length))
        for _ in range(given.samples)
    )
    data = given.folder / "texts.txt"
    data.write_text("\n\n".join(texts))
    out = given.folder / "out.safetensors"
    words = ["importance", model, out, "--data", data, "--kind", given.kind, "--overwrite"]
    words += ["--samples", given.samples, "--length", given.length, "--device", "cpu"]
    began = time.monotonic()
    command = [sys.executable, "-c", MEASURE, *map(str, words), "--progress", "off"]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stderr.strip())
    code, peak = done.stdout.rpartition("PEAK")[2].split()
    narrow = WIDTH * GROUPS // HEADS
    layer = 2 * WIDTH * WIDTH + 2 * narrow * WIDTH + 3 * INNER * WIDTH + 2 * WIDTH
    bound = 4 * (VOCABULARY * WIDTH + 2 * layer) + 500 * 10**6
    print(
        f"{given.samples} samples of {given.length} tokens: exit code {code}, peak "
        f"{int(peak) * 1024 / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB, "
        f"{time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
