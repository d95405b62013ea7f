"""Links in a model folder: which of them are followed to a file that is copied or read as text.

A folder that was downloaded may hold a link to any file of the user, whose content would go into
the result, and from there to the Hub.
"""

from __future__ import annotations

from pathlib import Path


def leads_out(folder: Path, name: str) -> bool:
    """Return whether a file of a model folder is a link, or below one, out of what is the model's.

    This is the folder itself, the blobs of the Hub's cache for a snapshot, and for a folder of
    links to another model the files of the same names beside its weights.
    """
    home, target = folder.resolve(), (folder / name).resolve()
    if target.is_relative_to(home):
        return False
    caches = (place.parent / "blobs" for place in home.parents if place.name == "snapshots")
    if any(target.is_relative_to(blobs) for blobs in caches):
        return False
    weights = (path for path in folder.glob("*.safetensors") if path.is_symlink())
    return all(target != path.resolve().parent / name for path in weights)
