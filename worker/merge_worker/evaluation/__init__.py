"""Evaluations of models: perplexity on held-out text.

perplexity.py        models and a file of text -> the loss of every window
statistics.py        totals, and differences with paired standard errors; no torch
perplexity_table.py  a table, or JSON
perplexity_plot.py   a picture or page
"""
