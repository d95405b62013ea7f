"""Recipes published by users, run unchanged except for paths."""

import re
from pathlib import Path

import pytest

from support.checkpoint_factory import load, read_tensors, save_fine_tunes
from support.recipes import run

LINEAR = """
models:
  - model: psmathur/orca_mini_v3_13b
    parameters:
      weight: 1.0
  - model: WizardLM/WizardLM-13B-V1.2
    parameters:
      weight: 0.3
  - model: garage-bAInd/Platypus2-13B
    parameters:
      weight: 0.5
merge_method: linear
dtype: float16
"""

SLERP = """
slices:
  - sources:
      - model: psmathur/orca_mini_v3_13b
        layer_range: [0, 4]
      - model: garage-bAInd/Platypus2-13B
        layer_range: [0, 4]
# or, the equivalent models: syntax:
# models:
#   - model: psmathur/orca_mini_v3_13b
#   - model: garage-bAInd/Platypus2-13B
merge_method: slerp
base_model: psmathur/orca_mini_v3_13b
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: float16
"""

NUSLERP = """
models:
  - model: psmathur/orca_mini_v3_13b
    parameters:
      weight: 0.6
  - model: garage-bAInd/Platypus2-13B
    parameters:
      weight: 0.4
base_model: WizardLM/WizardLM-13B-V1.2
merge_method: nuslerp
parameters:
  nuslerp_flatten: false
  nuslerp_row_wise: true
dtype: bfloat16
"""

MODEL_STOCK = """
models:
  - model: psmathur/orca_mini_v3_13b
  - model: garage-bAInd/Platypus2-13B
base_model: WizardLM/WizardLM-13B-V1.2
merge_method: model_stock
dtype: bfloat16
"""

TIES = """
models:
  - model: psmathur/orca_mini_v3_13b
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: garage-bAInd/Platypus2-13B
    parameters:
      density: 0.5
      weight: [0, 0.3, 0.7, 1] # weight gradient
  - model: WizardLM/WizardMath-13B-V1.0
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: TheBloke/Llama-2-13B-fp16
parameters:
  normalize: true
  int8_mask: true
dtype: float16
"""

DARE_TIES = """
models:
  - model: mistralai/Mistral-7B-v0.1
    # No parameters necessary for base model
  - model: samir-fama/SamirGPT-v1
    parameters:
      density: 0.53
      weight: 0.4
  - model: abacusai/Slerp-CM-mist-dpo
    parameters:
      density: 0.53
      weight: 0.3
  - model: EmbeddedLLM/Mistral-7B-Merge-14-v0.2
    parameters:
      density: 0.53
      weight: 0.3
merge_method: dare_ties
base_model: mistralai/Mistral-7B-v0.1
parameters:
  int8_mask: true
dtype: bfloat16
"""

STACKING = """
slices:
  - sources:
    - model: cognitivecomputations/dolphin-2.7b
      layer_range: [0, 3]
  - sources:
    - model: cognitivecomputations/dolphin-2.7b
      layer_range: [1, 3]
  - sources:
    - model: psmathur/orca_mini_v3_13b
      layer_range: [2, 4]
merge_method: passthrough
dtype: bfloat16
"""

TASK_ARITHMETIC = """
base_model: TheBloke/Llama-2-13B-fp16
models:
  - model: psmathur/orca_mini_v3_13b
    parameters:
      weight: 0.6
  - model: garage-bAInd/Platypus2-13B
    parameters:
      weight: 0.4
merge_method: task_arithmetic
parameters:
  lambda: 0.7
dtype: bfloat16
"""

# Recipes with the number of layers of the result.
RECIPES = {
    "linear": (LINEAR, 4),
    "slerp": (SLERP, 4),
    "nuslerp": (NUSLERP, 4),
    "model_stock": (MODEL_STOCK, 4),
    "ties": (TIES, 4),
    "dare_ties": (DARE_TIES, 4),
    "stacking": (STACKING, 7),
    "task_arithmetic": (TASK_ARITHMETIC, 4),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return save_fine_tunes(tmp_path_factory.mktemp("models"), "llama", 4, num_hidden_layers=4)


@pytest.mark.parametrize("name", RECIPES)
def test_published_recipe(
    name: str, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, depth = RECIPES[name]
    # A comment may name models that the recipe uses as well.
    words = dict.fromkeys(re.findall(r"model: (\S+)", text))
    for word, path in zip(words, models, strict=False):
        text = text.replace(word, str(path))
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    assert run("merge", recipe, out, "--strict", "--progress", "off", "--threads", 1) == 0
    assert "warning" not in capsys.readouterr().err
    assert (out / "mergekit_config.yml").is_file()
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in read_tensors(out).values()}
    assert dtypes == set(re.findall("dtype: (.*)", text))
    model, info = load(out)
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    assert model.config.num_hidden_layers == depth
