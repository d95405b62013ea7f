"""Facts that tensor names and configs show about a model, for any architecture."""
