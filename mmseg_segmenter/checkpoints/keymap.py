"""Convert checkpoints between other projects' layouts and mmseg's by declarative rules.

A layout is described by a list of rules, one for each tensor in mmseg's layout, and a list of keys that are dropped
on purpose. Any other key, and any missing key, is an error, so that no tensor is lost silently.
"""

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UserError


def keep(tensors: Sequence[Tensor]) -> Tensor:
    """Return the only source tensor unchanged."""
    return tensors[0]


def keep_back(tensor: Tensor) -> list[Tensor]:
    """Undo :func:`keep`."""
    return [tensor]


@dataclass(frozen=True)
class Rule:
    """How one tensor in mmseg's layout is made from source tensors.

    Args:
        sources: keys of the source tensors; ``{i}`` stands for the number of a block.
        target: key in mmseg's layout, with ``{i}`` likewise.
        join: computes the target tensor from the source tensors.
        split: the inverse of ``join``.
        optional: the tensor may be absent, in all blocks or in none.
    """

    sources: tuple[str, ...]
    target: str
    join: Callable[[Sequence[Tensor]], Tensor] = keep
    split: Callable[[Tensor], list[Tensor]] = keep_back
    optional: bool = False

    def below(self, source: str, target: str) -> 'Rule':
        """Return the rule with a prefix on the source keys and another on the target key."""
        return Rule(tuple(source + s for s in self.sources), target + self.target, self.join, self.split, self.optional)

    def blocks(self, keys: Sequence[str]) -> list[int]:
        """Return the numbers of the blocks to look for: 0 to the largest found in ``keys``."""
        if '{i}' not in self.target:
            return [0]
        start = re.compile(re.escape(self.sources[0].partition('{i}')[0]) + r'(\d+)')
        return list(range(1 + max((int(m[1]) for m in map(start.match, keys) if m), default=0)))

    def numbered(self, i: int) -> tuple[tuple[str, ...], str]:
        """Return the source keys and the target key of block ``i``."""
        return tuple(s.replace('{i}', str(i)) for s in self.sources), self.target.replace('{i}', str(i))


@dataclass
class Conversion:
    """Result of a conversion, with an account of every key.

    Attributes:
        state_dict: tensors under mmseg's keys.
        origin: target key -> source keys.
        dropped: source keys that were dropped on purpose.
        filled: target keys that have no source and hold zeros.
    """

    state_dict: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    filled: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        sources = sum(map(len, self.origin.values()))
        text = f'mapped {sources} tensors to {len(self.origin)}; dropped {listed(self.dropped) or "nothing"}'
        return text + ('; qkv bias absent: written as 0' if self.filled else '')


def convert(state: Mapping[str, Tensor], rules: Sequence[Rule], dropped: Sequence[str] = ()) -> Conversion:
    """Convert a state_dict to mmseg's layout.

    Args:
        state: source key -> tensor.
        rules: description of the source layout; a rule with ``{i}`` is applied to each block found.
        dropped: patterns (``fnmatch``) of source keys that are dropped on purpose.

    Raises:
        UserError: lists the keys that are missing and the keys that no rule knows.
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
    """Convert a state_dict in mmseg's layout back to the layout that the rules describe.

    Args:
        state: target key -> tensor.
        rules: description of the other layout.

    Raises:
        UserError: lists the keys that are missing and the keys that no rule knows.
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
    """Join keys for a message; only the first ``most`` are named."""
    return ', '.join(keys[:most]) + (f', and {len(keys) - most} more' if len(keys) > most else '')


def cat(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate the tensors of queries, keys and values along the first dimension."""
    return torch.cat(list(tensors), dim=0)


def cat_without_keys(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate the biases of queries and values, with 0 for the keys between them."""
    queries, values = tensors
    return torch.cat((queries, torch.zeros_like(queries), values))
