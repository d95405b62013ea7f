"""Gates of a model of 1.1 billion parameters, made without holding it in memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.checkpoint_factory import write_checkpoint
from support.specialists import moe_recipe
from support.tiny_mixtures import character_tokenizer

WIDTH, INNER, LAYERS, HEADS, KEYS, WORDS = 2048, 5632, 22, 32, 4, 32000
FLOAT = 4
ALLOWANCE = 300 << 20

CODE = """
import sys, threading, time
from pathlib import Path
from merge_worker.commands.merge import plan_file
from merge_worker.engine.options import RunOptions
from merge_worker.experts.gates import prepare_gates, read_gates
from merge_worker.planning.options import PlanOptions
from merge_worker.registry import OWN

peak = 0

def watch():
    global peak
    while True:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = max([peak, *(int(line.split()[1]) for line in lines if "RssAnon" in line)])
        time.sleep(0.005)

threading.Thread(target=watch, daemon=True).start()
plan = plan_file(Path(sys.argv[1]), PlanOptions(stages_folder=Path(sys.argv[2])), OWN)
prepare_gates(plan, RunOptions(device="cpu"))
print(*read_gates(plan.mixture.gates).shape, peak)
"""
"""Prints the shape of the gates, and the most anonymous memory in KiB."""


def write_llama(folder: Path) -> Path:
    """Write a random model of the size of TinyLlama in bfloat16, in shards of some layers."""
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        # Random bits with a small exponent are made much faster than normal numbers.
        bits = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        return bits.to(torch.bfloat16).sub_(127.5).div_(8192)

    shapes = {
        "self_attn.q_proj": (WIDTH, WIDTH),
        "self_attn.k_proj": (WIDTH // HEADS * KEYS, WIDTH),
        "self_attn.v_proj": (WIDTH // HEADS * KEYS, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (INNER, WIDTH),
        "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
    }
    ones = torch.ones(WIDTH, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": matrix(WORDS, WIDTH), "model.norm.weight": ones}
    tensors["lm_head.weight"] = matrix(WORDS, WIDTH)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = ones.clone()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "vocab_size": WORDS,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    write_checkpoint(folder, tensors, config=config)
    character_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_gates_take_the_memory_of_two_layers(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base")
    experts = {"add": base, "reverse": base, "count": base}
    recipe = moe_recipe(tmp_path / "moe.yml", base, experts, gate_mode="mlp_input")
    words = [sys.executable, "-c", CODE, str(recipe), str(tmp_path / "stages")]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    *shape, peak = map(int, done.stdout.split())
    assert shape == [LAYERS, 3, WIDTH]
    keys = WIDTH // HEADS * KEYS
    layer = 2 * WIDTH * WIDTH + 2 * keys * WIDTH + 3 * INNER * WIDTH
    bound = FLOAT * (WORDS * WIDTH + 2 * layer) + ALLOWANCE
    print(f"peak {peak / 1024:.0f} MiB, bound {bound / 2**20:.0f} MiB")
    assert peak * 1024 < bound
