"""A fake mergekit-yaml: the result is a copy of the first model.

$FAKE_MERGEKIT: `lose` a tensor, `fail`, or `sleep`.
"""

import os
import shutil
import sys
import time
from pathlib import Path


def main() -> None:
    import yaml
    from safetensors.torch import load_file, save_file

    recipe, out = sys.argv[1:3]
    order = os.environ.get("FAKE_MERGEKIT", "")
    model = Path(yaml.safe_load(Path(recipe).read_text())["models"][0]["model"])
    if order == "fail":
        sys.exit("RuntimeError: mergekit's own words")
    tensors = load_file(model / "model.safetensors")
    if order == "lose":
        del tensors["norm"]
    save_file(tensors, Path(out) / "model.safetensors", {"format": "pt"})
    shutil.copy(model / "config.json", out)
    (Path(out) / "argv").write_text(" ".join(sys.argv[3:]))
    if order == "sleep":
        Path("asleep").touch()
        time.sleep(600)


if __name__ == "__main__":
    main()
