"""What `merge-worker --help` says of the commands that merge nothing."""

from __future__ import annotations

LINES = {
    "average": "weighted average of models, no recipe needed",
    "check": "plan a recipe from headers; nothing is written",
    "compare": "how models differ, layer by layer, and what to merge them with",
    "report": "how far a finished merge is from each of its inputs, layer by layer",
    "extract-lora": "the difference of two models as an adapter",
    "mergekit": "merge by mergekit itself, and look at what it wrote",
    "merge-adapters": "several LoRA adapters into one",
    "methods": "the merge methods and their parameters",
    "verify": "re-read an output and compare it to its manifest",
}
