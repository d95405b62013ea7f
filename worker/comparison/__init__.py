"""How models differ: what `merge-worker compare` and `report` measure, say and draw.

No job carries this package: nothing that merges may import it.
"""
