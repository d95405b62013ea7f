"""The interface for Python programs, which `merge_worker` itself offers by name.

Nothing here prints, ends the process, handles signals or reads variables of the environment that
the caller did not ask for. Torch is imported when tensors are computed, and not before.
"""
