"""Damage the content of files in ways that disks, networks and attackers do."""

import random

KINDS = ('cut', 'bit', 'bytes', 'zeros', 'number', 'removed', 'repeated', 'swapped')


def mutate(content: bytes, choose: random.Random) -> tuple[str, bytes]:
    """Return the kind of the damage, one of ``KINDS``, and the damaged content, which differs."""
    while True:
        kind = choose.choice(KINDS)
        start = choose.randrange(len(content))
        if choose.random() < 0.5:  # headers and directories, where damage does most
            start = min(start, len(content) - 1 - start) % 2048
            start = choose.choice((start, len(content) - 1 - start))
        end = min(len(content), start + choose.choice((1, 4, 64, 1024)))
        before, part, after = content[:start], content[start:end], content[end:]
        if kind == 'cut':
            damaged = before
        elif kind == 'bit':
            damaged = before + bytes([part[0] ^ 1 << choose.randrange(8)]) + part[1:] + after
        elif kind == 'bytes':
            damaged = before + choose.randbytes(len(part)) + after
        elif kind == 'zeros':
            damaged = before + bytes(len(part)) + after
        elif kind == 'number':  # a size or an offset that no file has
            value = choose.choice((b'\xff' * 4, b'\x7f' + b'\xff' * 3, b'\xff' * 8, b'\x00\x00\x00\x80'))
            damaged = content[:start] + value + content[start + len(value) :]
        elif kind == 'removed':
            damaged = before + after
        elif kind == 'repeated':
            damaged = before + part * choose.choice((2, 20)) + after
        else:
            other = choose.randrange(len(content))
            damaged = before + content[other : other + len(part)] + after
        if damaged != content:
            return kind, damaged
