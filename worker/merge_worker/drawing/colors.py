"""Color maps: perceptually even ones, and a diverging one."""

from __future__ import annotations

STOPS = {
    "viridis": "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
    "cividis": "00224e 123570 3b496c 575d6d 707173 8a8678 a59c74 c3b369 e1cc55 fee838",
    "RdBu": "67001f b2182b d6604d f4a582 fddbc7 f7f7f7 d1e5f0 92c5de 4393c3 2166ac 053061",
}


def color(scale: str, fraction: float) -> str:
    """Return `#rrggbb` at a fraction of a color map, between its stops; `_r` reverses the map."""
    stops = STOPS[scale.removesuffix("_r")].split()
    if scale.endswith("_r"):
        stops.reverse()
    place = min(1.0, max(0.0, fraction)) * (len(stops) - 1)
    low = min(int(place), len(stops) - 2)
    ends = [[int(stop[i : i + 2], 16) for i in (0, 2, 4)] for stop in stops[low : low + 2]]
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{part:02x}" for part in mixed)
