"""Declarative maps from foreign checkpoint layouts to mmseg's, and back.

A format is a list of rules, one for each tensor of ours, and a list of keys
that are dropped on purpose. Whatever is left over, or missing, is an error:
nothing gets lost on the way.
"""

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UserError


def keep(tensors: Sequence[Tensor]) -> Tensor:
    """The one source tensor as it is."""
    return tensors[0]


def keep_back(tensor: Tensor) -> list[Tensor]:
    """Inverse of :func:`keep`."""
    return [tensor]


@dataclass(frozen=True)
class Rule:
    """How one tensor of ours is made.

    Args:
        sources: keys it is made of; ``{i}`` stands for the number of a block.
        target: its key, likewise.
        join: from the source tensors to ours.
        split: the inverse of ``join``.
        optional: the tensor may be absent (in all blocks or in none).
    """

    sources: tuple[str, ...]
    target: str
    join: Callable[[Sequence[Tensor]], Tensor] = keep
    split: Callable[[Tensor], list[Tensor]] = keep_back
    optional: bool = False

    def below(self, source: str, target: str) -> 'Rule':
        """The same rule with a prefix on either side."""
        return Rule(tuple(source + s for s in self.sources), target + self.target, self.join, self.split, self.optional)

    def blocks(self, keys: Sequence[str]) -> list[int]:
        """Numbers of the blocks that ``keys`` have for this rule: 0 to the largest."""
        if '{i}' not in self.target:
            return [0]
        start = re.compile(re.escape(self.sources[0].partition('{i}')[0]) + r'(\d+)')
        return list(range(1 + max((int(m[1]) for m in map(start.match, keys) if m), default=0)))

    def numbered(self, i: int) -> tuple[tuple[str, ...], str]:
        """Source keys and target key of block ``i``."""
        return tuple(s.replace('{i}', str(i)) for s in self.sources), self.target.replace('{i}', str(i))


@dataclass
class Conversion:
    """Result of a conversion and the account of it.

    Attributes:
        state_dict: tensors under mmseg's keys.
        origin: for each of them the source keys.
        dropped: source keys left out on purpose.
    """

    state_dict: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def convert(state: Mapping[str, Tensor], rules: Sequence[Rule], dropped: Sequence[str] = ()) -> Conversion:
    """Apply the rules to a foreign state.

    Args:
        state: source key -> tensor.
        rules: the format; a rule with ``{i}`` is applied to each block found.
        dropped: patterns (``fnmatch``) of keys that are left out on purpose.

    Raises:
        ValueError: lists the keys that are missing and those no rule knows.
    """
    result = Conversion()
    missing: list[str] = []
    known: set[str] = set()
    for rule in rules:
        numbered = [rule.numbered(i) for i in rule.blocks(list(state))]
        if rule.optional and not any(key in state for sources, _ in numbered for key in sources):
            continue
        for sources, target in numbered:
            known.update(sources)
            absent = [key for key in sources if key not in state]
            missing += absent
            if not absent:
                result.state_dict[target] = rule.join([state[key] for key in sources]).contiguous()
                result.origin[target] = sources
    rest = state.keys() - known
    result.dropped = sorted(key for key in rest if any(fnmatch.fnmatchcase(key, pattern) for pattern in dropped))
    unknown = sorted(rest - set(result.dropped))
    complaints = [f'{what}: {listed(keys)}' for what, keys in (('missing', missing), ('not known', unknown)) if keys]
    if complaints:
        raise UserError(f'keys {"; ".join(complaints)}')
    return result


def invert(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Apply the rules backwards: our tensors under the foreign keys.

    Raises:
        ValueError: lists the keys that are missing and those no rule knows.
    """
    splits = {}
    backwards = []
    for rule in rules:
        backwards.append(Rule((rule.target,), rule.sources[0], optional=rule.optional))
        for i in backwards[-1].blocks(list(state)):
            sources, target = rule.numbered(i)
            splits[target] = (sources, rule.split)
    out: dict[str, Tensor] = {}
    for (target,) in convert(state, backwards).origin.values():
        sources, split = splits[target]
        out.update(zip(sources, (t.contiguous() for t in split(state[target])), strict=True))
    return out


def listed(keys: Sequence[str], most: int = 12) -> str:
    """Keys for a message, not more than a screen of them."""
    return ', '.join(keys[:most]) + (f', and {len(keys) - most} more' if len(keys) > most else '')


def cat(tensors: Sequence[Tensor]) -> Tensor:
    """Pack q, k and v below each other."""
    return torch.cat(list(tensors), dim=0)
