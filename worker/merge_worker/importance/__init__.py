"""Measures which weights of a model matter for some data: `merge-worker importance`, and `regmean`.

layout.py       tensors as classes have them in memory -> tensors as they are on disk
samples.py      a model and its samples, as passes over the layers
scratch.py      hidden states and gradients in files, the unfinished result, what is done
inputs.py       what goes into each matrix: magnitudes, squares, Gram matrices
fisher.py       squared gradients of each sample, layer by layer, backwards
vocabulary.py   the same for the output head and the embedding, in slices of the vocabulary
measure.py      one measurement from beginning to end, and what it takes
"""
