"""How models differ: what `merge-worker compare` and `report` measure, say and draw."""
