"""Name results after their sources, so that no two have one name."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence


def path_parts(path: str) -> tuple[str, ...]:
    """Return the folders and the file of a path or of a part of a URI, without what leads upwards."""
    return tuple(part for part in path.replace(os.sep, '/').split('/') if part not in ('', '.', '..')) or ('input',)


def unique_names(sources: Mapping[str, Sequence[str]], known: Mapping[str, str] | None = None) -> list[str]:
    """Return a name for each source: its folders and stem, with ``/`` between them.

    Where names are the same up to case, suffixes are added, and if that is not enough, a hash of the source. The order
    of the sources does not change the names.

    Args:
        sources: folders and file, as :func:`path_parts` returns them, by what tells the sources apart.
        known: names that sources have already. They keep them, and others do not get them.

    Returns:
        Names in the order of ``sources``.
    """
    others = dict(known or {})
    kept = {source: others.pop(source, None) for source in sources}
    taken = Counter(name.casefold() for name in others.values())
    levels = dict.fromkeys(sources, 0)
    while True:
        names = {source: kept[source] or _name(source, parts, levels[source]) for source, parts in sources.items()}
        count = taken + Counter(name.casefold() for name in names.values())
        again = [source for source, name in names.items() if count[name.casefold()] > 1 and kept[source] is None]
        if not again:
            return list(names.values())
        for source in again:
            levels[source] += 1


def _name(source: str, parts: Sequence[str], level: int) -> str:
    """Return the stem, at level 1 the file, and from level 2 on the file and a hash, below the folders."""
    *folders, file = parts
    name = file if level else os.path.splitext(file)[0]
    if level > 1:
        name += f'-{hashlib.sha256(source.encode(errors="surrogateescape")).hexdigest()[: 6 * level]}'
    return '/'.join((*folders, name))
