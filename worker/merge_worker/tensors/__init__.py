"""Where the elements of a tensor come from: files, views, gathered rows, LoRA updates."""
