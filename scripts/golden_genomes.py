"""Records the recipes that mergekit's search makes of given values: `scripts/golden genomes`."""

import json
import os
import tempfile
from pathlib import Path

import torch
import yaml
from mergekit.evo.genome import ModelGenome, ModelGenomeDefinition

GOLDENS = Path(__file__).resolve().parent.parent / "tests" / "goldens_mergekit"
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
}


def main() -> None:
    cases = yaml.safe_load((GOLDENS / "genomes.yml").read_text(encoding="utf-8"))
    recipes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("m1", "m2", "m3", "base"):
            Path(folder, name).mkdir()
            Path(folder, name, "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        # Models are named by relative paths, so that the recipes do not name this folder.
        os.chdir(folder)
        for case in cases:
            genome = ModelGenome(ModelGenomeDefinition.model_validate(case["genome"]))
            values = case.get("values")
            array = genome.initial_genotype() if values is None else torch.tensor(values)
            recipe = genome.genotype_merge_config(array)
            recipes[case["name"]] = yaml.safe_load(recipe.to_yaml())
        os.chdir(GOLDENS)
    text = json.dumps(recipes, indent=1)
    (GOLDENS / "genomes.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
