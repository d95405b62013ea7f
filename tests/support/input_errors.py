"""Inputs that are missing, damaged, hostile, or do not fit each other."""

import errno
import json
import os

import torch

from support.error_cases import TWO, Mistake, World, both, change, configured, refuses, write

AVERAGE = "merge-worker average out m1 m2"
WEIGHTS = "m2/model.safetensors"
MATRIX = torch.ones(8, 8, dtype=torch.bfloat16)
SPLIT = "model-0000{}-of-00002.safetensors"


def cut_short(world: World) -> None:
    path = world / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def into_shards(world: World, lost: int = 0) -> None:
    """Store m2 as two shards with an index, and remove one shard."""
    from safetensors.torch import load_file, save_file

    weights = load_file(world / WEIGHTS)
    (world / WEIGHTS).unlink()
    places = {}
    for number in (1, 2):
        part = {name: weights[name] for name in sorted(weights)[number - 1 :: 2]}
        places.update(dict.fromkeys(part, SPLIT.format(number)))
        if number != lost:
            save_file(part, world / "m2" / SPLIT.format(number))
    index = world / "m2" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))


def replaced_by(make: str, target: str = "") -> object:
    def prepare(world: World) -> None:
        (world / WEIGHTS).unlink()
        if make == "fifo":
            os.mkfifo(world / WEIGHTS)
        else:
            (world / WEIGHTS).symlink_to(target)

    return prepare


def emptied(name: str) -> object:
    def prepare(world: World) -> None:
        for path in (world / name).iterdir():
            path.unlink()

    return prepare


def adapter(**config: object) -> object:
    """Write an adapter of rank 2 on one matrix of m1."""

    def prepare(world: World) -> None:
        from safetensors.torch import save_file

        inner = str(config.pop("module", "model.layers.0.self_attn.q_proj"))
        name = f"base_model.model.{inner}"
        (world / "lora").mkdir()
        pair = {
            f"{name}.lora_A.weight": torch.ones(2, 8),
            f"{name}.lora_B.weight": torch.ones(8, 2),
        }
        save_file(pair, world / "lora" / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **config}
        (world / "lora" / "adapter_config.json").write_text(json.dumps(settings))

    return prepare


def header(text: bytes, length: int | None = None) -> object:
    size = len(text) if length is None else length
    return write(WEIGHTS, size.to_bytes(8, "little") + text)


OF_PLACES = [
    Mistake("A model that is not there", "merge-worker average out m1 m22", 3),
    Mistake(
        "A model of the hub, without a network",
        "merge-worker average out m1 allenai/OLMo",
        3,
        env={"HF_HUB_OFFLINE": "1"},
    ),
    Mistake("An empty folder", AVERAGE, 3, prepare=emptied("m2")),
    Mistake(
        "Only a GGUF file",
        AVERAGE,
        3,
        made="`m2` holds nothing but `model-q4.gguf`.",
        prepare=both(emptied("m2"), write("m2/model-q4.gguf", b"GGUF")),
    ),
    Mistake(
        "A folder of a training run",
        AVERAGE,
        3,
        made="`m2` holds `checkpoint-500` and `checkpoint-1000`.",
        prepare=both(
            emptied("m2"),
            write("m2/checkpoint-500/model.safetensors", b""),
            write("m2/checkpoint-1000/model.safetensors", b""),
        ),
    ),
    Mistake(
        "A pipeline of diffusers",
        AVERAGE,
        3,
        made="`m2` holds `model_index.json`, `unet` and `vae`.",
        prepare=both(
            emptied("m2"),
            write("m2/model_index.json", "{}"),
            write("m2/unet/diffusion_pytorch_model.safetensors", b""),
            write("m2/vae/diffusion_pytorch_model.safetensors", b""),
        ),
    ),
    Mistake(
        "A distributed checkpoint",
        AVERAGE,
        3,
        made="`m2` holds `.metadata` and `__0_0.distcp`.",
        prepare=both(emptied("m2"), write("m2/.metadata", b""), write("m2/__0_0.distcp", b"")),
    ),
    Mistake(
        "A model with its adapter inside",
        AVERAGE,
        3,
        made="`m2` was saved by PEFT before its adapter was merged.",
        prepare=change(
            "m2",
            model__layers__0__self_attn__q_proj__weight=None,
            model__layers__0__self_attn__q_proj__base_layer__weight=MATRIX,
            model__layers__0__self_attn__q_proj__lora_A__default__weight=MATRIX[:2].clone(),
        ),
    ),
    Mistake("An adapter for a model", "merge-worker average out m1 lora", 3, prepare=adapter()),
    Mistake(
        "A model that may not be read",
        AVERAGE,
        3,
        made="The system denies `m2/model.safetensors`.",
        system=refuses("open", errno.EACCES, path=WEIGHTS),
    ),
]

OF_WEIGHTS = [
    Mistake(
        "A copy that was cut off",
        AVERAGE,
        3,
        made="`m2` lacks its last 100 bytes.",
        prepare=cut_short,
    ),
    Mistake("A shard that is missing", AVERAGE, 3, prepare=lambda w: into_shards(w, 2)),
    Mistake(
        "A shard that is missing, without an index",
        AVERAGE,
        3,
        prepare=lambda w: (into_shards(w, 2), (w / "m2/model.safetensors.index.json").unlink()),
    ),
    Mistake(
        "A damaged index",
        AVERAGE,
        3,
        prepare=both(into_shards, write("m2/model.safetensors.index.json", '{"weight_map": ')),
    ),
    Mistake(
        "An index that leads out of the folder",
        AVERAGE,
        3,
        prepare=both(
            into_shards,
            write("m2/model.safetensors.index.json", '{"weight_map": {"a": "../../etc/passwd"}}'),
        ),
    ),
    Mistake(
        "A pointer of Git LFS",
        AVERAGE,
        3,
        prepare=write(
            WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        ),
    ),
    Mistake(
        "A page of HTML",
        AVERAGE,
        3,
        made="The download was an error page.",
        prepare=write(WEIGHTS, "<!DOCTYPE html><title>401</title>"),
    ),
    Mistake(
        "A pickle under the name of safetensors",
        AVERAGE,
        3,
        prepare=write(WEIGHTS, b"\x80\x02}q\x00X\x05\x00\x00\x00model"),
    ),
    Mistake("A header that lies about its length", AVERAGE, 3, prepare=header(b"{}", 1 << 60)),
    Mistake("A header that is not JSON", AVERAGE, 3, prepare=header(b'{"a": ')),
    Mistake(
        "A tensor outside of its file",
        AVERAGE,
        3,
        prepare=header(b'{"a": {"dtype": "BF16", "shape": [8, 8], "data_offsets": [4096, 4224]}}'),
    ),
    Mistake(
        "A name that would command a terminal",
        AVERAGE,
        3,
        prepare=change("m2", **{"\x1b[2Jmodel__norm.weight": MATRIX}),
    ),
    Mistake("A FIFO in place of a file", AVERAGE, 3, prepare=replaced_by("fifo")),
    Mistake(
        "A device in place of a file",
        AVERAGE,
        3,
        made="`m2/model.safetensors` is a link to `/dev/zero`.",
        prepare=replaced_by("link", "/dev/zero"),
    ),
    Mistake("A link to itself", AVERAGE, 3, prepare=replaced_by("link", "model.safetensors")),
    Mistake("A damaged config", AVERAGE, 3, prepare=write("m1/config.json", "{'model_type': 1}")),
    Mistake(
        "A disk that fails",
        AVERAGE,
        3,
        made="Reading `m2` ends with an input/output error.",
        system=refuses("preadv", errno.EIO, path=WEIGHTS),
    ),
    Mistake(
        "A file server that has lost the file",
        AVERAGE,
        3,
        made="`m2` was replaced on the file server: the handle is stale.",
        system=refuses("preadv", errno.ESTALE, path=WEIGHTS),
    ),
]

OF_FAMILIES = [
    Mistake(
        "Another hidden size",
        AVERAGE,
        3,
        prepare=both(
            configured("m2", hidden_size=16),
            change(
                "m2",
                model__norm__weight=torch.ones(16, dtype=torch.bfloat16),
                model__layers__0__mlp__down_proj__weight=torch.ones(16, 8, dtype=torch.bfloat16),
            ),
        ),
    ),
    Mistake(
        "Another depth",
        AVERAGE,
        3,
        made="`m2` has three layers.",
        prepare=both(
            configured("m2", num_hidden_layers=3),
            change(
                "m2",
                **{
                    f"model__layers__2__{name}__weight": MATRIX.clone()
                    for name in ("mlp__down_proj", "self_attn__q_proj", "self_attn__v_proj")
                },
            ),
        ),
    ),
    Mistake(
        "Another architecture",
        AVERAGE,
        3,
        made="`m2` has other names for everything.",
        prepare=change(
            "m2",
            **{
                name.replace(".", "__"): None
                for name in ("model.norm.weight", "model.layers.0.mlp.down_proj.weight")
            },
            backbone__norm_f__weight=torch.ones(8, dtype=torch.bfloat16),
        ),
    ),
    Mistake("A tensor less", AVERAGE, 3, prepare=change("m2", model__norm__weight=None)),
    Mistake("A tensor more", AVERAGE, 3, prepare=change("m2", value_head__weight=MATRIX)),
    Mistake(
        "A tensor of whole numbers",
        AVERAGE,
        3,
        prepare=change("m2", model__norm__weight=torch.ones(8, dtype=torch.int32)),
    ),
    Mistake(
        "Quantized weights",
        AVERAGE,
        3,
        made="`m2` was quantized by GPTQ.",
        prepare=both(
            configured("m2", quantization_config={"quant_method": "gptq", "bits": 4}),
            change("m2", model__layers__0__mlp__down_proj__qweight=torch.ones(1, 8).int()),
        ),
    ),
    Mistake(
        "Other numbers of tokens",
        AVERAGE,
        3,
        made="`m2` has two more rows.",
        prepare=change(
            "m2",
            lm_head__weight=torch.ones(18, 8, dtype=torch.bfloat16),
            model__embed_tokens__weight=torch.ones(18, 8, dtype=torch.bfloat16),
        ),
    ),
    Mistake(
        "An adapter of another kind",
        "merge-worker average out m1 m2+lora",
        3,
        prepare=adapter(peft_type="IA3"),
    ),
    Mistake(
        "An adapter of another model",
        "merge-worker average out m1 m2+lora",
        3,
        prepare=adapter(module="transformer.h.0.attn.c_attn"),
    ),
    Mistake(
        "An adapter of another rank than it says",
        "merge-worker average out m1 m2+lora",
        3,
        prepare=adapter(r=8),
    ),
    Mistake(
        "A base with a typo",
        "merge-worker check recipe.yml",
        3,
        recipe=f"merge_method: ties\nbase_model: bass\n{TWO}",
    ),
]
