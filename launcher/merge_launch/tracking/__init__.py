"""Submitted jobs: records, states, logs, reasons."""
