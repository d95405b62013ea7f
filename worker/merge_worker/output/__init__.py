"""The output folder: shards, journal, locks, commit, manifest."""
