"""Runs models of transformers from a checkpoint's files, layer by layer, in bounded memory.

Code of models runs here and in `trial` only: their modules are those of transformers, and their
weights are read by byte range, one layer at a time. In order of use:

    texts.py      files of text -> samples -> token ids, labels, bytes of the text
    weights.py    tensors of a checkpoint by their names in memory, whole or as ranges of rows
    model.py      a checkpoint -> its modules without weights, and weights put in and taken out
    layerwise.py  all batches through one layer after the other; hooks; gradients of one layer
    head.py       logits and losses in slices of the vocabulary

A user of these opens a model (`open_model`), makes a `LayerPass` of its batches of token ids, and
either calls `run`, with hooks of its own on the modules of `model.layers`, or walks over the calls
itself. Docstrings of `LayerPass` have both as examples.
"""
