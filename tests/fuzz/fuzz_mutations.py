"""Seeded mutations of structured values, of bytes and of pickles, with the values that broke readers before."""

import copy
import json
import pickle

import numpy as np


DEEP = json.loads("[" * 150 + "]" * 150)
# Tokens that are put into the bytes of a file as they are
TOKENS = [
    b"[" * 20000,
    b'{"a":' * 5000,
    b"9" * 5000,
    b"NaN",
    b"-Infinity",
    b"1e999",
    b'"\\ud800"',
    b'"\\udc00x"',
    b"\xff\xfe",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\n",
    b'"',
    b"\\",
    b"]",
    b"}",
    b",",
    b"null",
    b"true",
    b"2147483648",
]
OPCODES = [
    b"r\xff\xff\xff\x3f",
    b"\x8e" + b"\xff" * 7 + b"\x3f",
    b"\x95" + b"\xff" * 7 + b"\x3f",
    b"B\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f",
    b"2",
    b"h\xff",
    b"j\xff\xff\xff\x7f",
    b"\x82\x01",
    b"Pabc\n",
    b"Q",
    b"(",
    b"t",
    b"l",
    b"d",
    b"s",
    b"u",
    b"\x90",
    b"\x91",
    b"R",
    b"b",
    b"\x81",
    b"0",
    b"1",
    b".",
    b"\x97",
    b"p99999999999999999999\n",
    b"L" + b"9" * 6000 + b"L\n",
    b"cbuiltins\neval\n",
    b"cnumpy\ndtype\n",
    b"ccollections\nOrderedDict\n",
    b"\x94" * 50,
    b"c_codecs\nencode\n",
    b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b")",
    b"}",
    b"]",
]
NUMBERS = [
    0,
    -1,
    1,
    2,
    7,
    10**6,
    2**31,
    2**63,
    10**30,
    1.5,
    -0.0,
    1e9,
    1e308,
    float("nan"),
    float("inf"),
    0.5,
    True,
    False,
    65535,
]
TEXTS = [
    "",
    " ",
    "abc",
    "\ud800",
    "x" * 300,
    "../../x",
    "/etc/passwd",
    "a\0b",
    "\\",
    "C:\\x",
    "0",
    "<region>",
    "[SEG]" * 3,
    "\n",
    "<p>" + " " * 3000,
    "~~~~",
    "0" * 500,
    "obj9999",
    "\u2028",
    "né",
    ".",
    "..",
    "a/../..",
    "<mask>",
    "{}",
    "7" * 5000,
]
SHAPES = [
    {"size": [24, 32], "counts": "06"},
    {"size": [65535, 65535], "counts": [65535 * 65535]},
    {"size": [24.0, 32], "counts": [768]},
    {"size": ["24", "32"], "counts": [768]},
    {"size": [-24, -32], "counts": [768]},
    {"size": [0, 5], "counts": []},
    {"size": [24, 32], "counts": [True, 767]},
    {"size": [24, 32], "counts": ["768"]},
    {"size": [24, 32], "counts": "oooooo0" * 3},
    {"size": [24, 32], "counts": [2**62, 2**62, 2**62, 2**62, 768]},
    {"size": 7, "counts": None},
    {"counts": "0"},
    [[0, 0, 1e9, 0, 5, 5]],
    [[0, 0, float("nan"), 0, 5, 5]],
    [[True, 0, 5, 0, 5, 5]],
    [["0", "0", "5", "0", "5", "5"]],
    [[0.1, 0.1, 0.9, 0.1, 0.5, 0.9]],
    [[0, 0, 5, 0, 5, 5]],
    [[-3, -3, 40, 0, 40, 30]],
    [[0, 0, 31, 23] * 40],
    [[[0, 0], [5, 0], [5, 5]]],
]
OTHERS = [None, [], {}, [[]], [None], {"a": 1}, ["a"], [1, 2], {"": None}, DEEP]
HOSTILE = [NUMBERS, TEXTS, SHAPES, OTHERS]


def hostile(rng: np.random.Generator):
    """One of the values that broke readers before."""
    kind = HOSTILE[rng.integers(len(HOSTILE))]
    return copy.deepcopy(kind[rng.integers(len(kind))])


def places(value, limit: int = 3000) -> list[tuple]:
    """(container, key) of each value inside nested lists and dictionaries."""
    found, waiting = [], [value]
    while waiting and len(found) < limit:
        one = waiting.pop()
        keys = one.keys() if isinstance(one, dict) else range(len(one))
        for key in list(keys):
            found.append((one, key))
            if isinstance(one[key], dict | list):
                waiting.append(one[key])
    return found


def mutate(value, rng: np.random.Generator, draw=hostile):
    """A copy of a nested value in which one to three places were replaced, deleted, doubled, renamed or changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.integers(1, 4)):
        known = places(value)
        if not known:
            return draw(rng)
        container, key = known[rng.integers(len(known))]
        action = rng.integers(8)
        if action == 0:
            del container[key]
        elif action == 1 and isinstance(container, list):
            container.insert(key, container[key])
        elif action == 1 or action == 2:
            new = TEXTS[rng.integers(len(TEXTS))] if rng.random() < 0.5 else draw(rng)
            container[new if isinstance(container, dict) and isinstance(new, str) else key] = container[key]
        elif action == 3:
            container[key] = [container[key]]
        elif action == 4:
            other = known[rng.integers(len(known))]
            if other[1] in other[0] if isinstance(other[0], dict) else other[1] < len(other[0]):
                container[key] = copy.deepcopy(other[0][other[1]])
        elif action == 5:
            container[key] = nudged(container[key], rng)
        else:
            container[key] = draw(rng)
    return value


def nudged(value, rng: np.random.Generator):
    """A value of the same kind that is slightly wrong: another type of number, a cut text."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int | float):
        return [str(value), float(value), value + 1, -value, bool(value), value * 10**9][rng.integers(6)]
    if isinstance(value, str) and value:
        cut = int(rng.integers(len(value)))
        return [value[:cut], value[cut:], value[:cut] + "\ud800", value * 2, value.encode("utf-8", "replace").hex()][
            rng.integers(5)
        ]
    return value if value is None or isinstance(value, str) else list(value) * 2


def mutate_bytes(data: bytes, rng: np.random.Generator, tokens=TOKENS) -> bytes:
    """The same bytes with one to four of them flipped, cut out, doubled or preceded by a token."""
    content = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(content) + 1))
        action = rng.integers(5)
        if action == 0 and content:
            content[min(at, len(content) - 1)] = int(rng.integers(256))
        elif action == 1:
            del content[at:]
        elif action == 2:
            del content[at : at + int(rng.integers(1, 20))]
        elif action == 3:
            content[at:at] = content[at : at + int(rng.integers(1, 60))]
        else:
            content[at:at] = tokens[rng.integers(len(tokens))]
    return bytes(content)


def mutate_json(data: bytes, rng: np.random.Generator) -> bytes:
    """A JSON text with a mutated value, or with mutated bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(data, rng)
    if rng.random() < 0.05:
        return TOKENS[rng.integers(len(TOKENS))] * int(rng.integers(1, 3))
    return json.dumps(mutate(json.loads(data), rng)).encode()


def mutate_json_lines(data: bytes, rng: np.random.Generator) -> bytes:
    """JSON Lines with one mutated line."""
    lines = [line for line in data.splitlines() if line.strip()]
    number = int(rng.integers(len(lines)))
    lines[number] = mutate_json(lines[number], rng)
    return b"\n".join(lines)


def mutate_pickle(data: bytes, rng: np.random.Generator) -> bytes:
    """A pickle of a mutated value in some protocol, or with mutated opcodes."""
    if rng.random() < 0.5:
        return mutate_bytes(data, rng, OPCODES)
    return pickle.dumps(mutate(pickle.loads(data), rng), int(rng.integers(6)))
