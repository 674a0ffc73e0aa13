"""
A walk through the opcodes of a pickle before it is unpickled: nothing is built, so its cost is known.

The unpickler trusts its input: an opcode of nine bytes may ask for four gigabytes of memo, a length may exceed the
file, and keys whose hashes are equal make a dictionary quadratic. The walk keeps the kind of each value on the stack
and in the memo, which suffices to find the keys; the names of functions are checked by the unpickler itself.
"""

import pickle
import pickletools
from typing import NamedTuple


MAX_INTEGER_BYTES = 16  # 128 bits
MAX_KEY_BYTES = 8  # hashes of larger numbers can be chosen to be equal
MAX_NUMBER_TEXT = 60  # characters of a number that is written as text
MAX_NAME = 1000  # characters of the names of a module and a function
KEY, OTHER, MARK = 1, 0, 2
BAD_KEY = "it has a key that is neither text nor a number of at most 64 bits"
# Hashable, with hashes that a file cannot choose
KEY_KINDS = {
    pickletools.pyint, pickletools.pylong, pickletools.pyinteger_or_bool, pickletools.pybool, pickletools.pyfloat,
    pickletools.pybytes_or_str, pickletools.pybytes, pickletools.pyunicode, pickletools.pynone, pickletools.pystring,
}  # fmt: skip
LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


class _Effect(NamedTuple):
    """What an opcode reads behind it and does to the stack."""

    group: str  # the branch of `check_opcodes` that handles it
    name: str
    size: int  # bytes of its argument, or of the length in front of it
    kind: int  # of the value that it leaves
    below: int  # values that it takes, without those above a mark
    pushes: tuple[int, ...]


def _effect(opcode: pickletools.OpcodeInfo) -> _Effect:
    name, size = opcode.name, 0 if opcode.arg is None else opcode.arg.n
    before, after = opcode.stack_before, opcode.stack_after
    below = before.index(pickletools.markobject) if pickletools.markobject in before else len(before)
    pushes = tuple(MARK if kind is pickletools.markobject else KEY if kind in KEY_KINDS else OTHER for kind in after)
    group = "line" if size == pickletools.UP_TO_NEWLINE else "other"
    if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE") or name in ("GET", "BINGET", "LONG_BINGET"):
        group = "put" if "PUT" in name or name == "MEMOIZE" else "get"
    elif pickletools.markobject in before:
        group = "line" if name == "INST" else "marked"
    elif name in ("LONG1", "LONG4", "FRAME", "STOP", "DUP"):
        group = name.rstrip("14")
    elif size in LENGTHS:
        group = "counted"
    elif size >= 0 and not before and len(pushes) == 1:
        group = "fixed"
    return _Effect(group, name, LENGTHS.get(size, size), pushes[0] if pushes else OTHER, below, pushes)


EFFECTS = {ord(opcode.code): _effect(opcode) for opcode in pickletools.opcodes}
EFFECTS_BY_BYTE = [EFFECTS.get(code) for code in range(256)]
KEY_STEPS = {"SETITEMS": 2, "DICT": 2, "ADDITEMS": 1, "FROZENSET": 1}


def check_opcodes(data, position: int = 0) -> int:
    """
    Refuses a pickle that would take memory or time out of proportion to its size. Returns the position behind it.

    Args:
        data (`bytes` or `mmap.mmap`): The file.
        position (`int`): Where the pickle begins.

    Raises:
        EOFError, ValueError, IndexError, TypeError: for a damaged file.
        pickle.UnpicklingError: for one that is built to do harm.
    """
    stack, memo, count, end, number = [], {}, 0, len(data), int.from_bytes
    while position < end:
        # A file has millions of opcodes: the frequent ones come first, and an unknown one is a TypeError
        group, name, size, kind, below, pushes = EFFECTS_BY_BYTE[data[position]]
        position += 1
        count += 1
        if group == "fixed":
            position += size
            stack.append(kind)
        elif group == "put" or group == "get":
            argument, position = _index(data, position, size, len(memo))
            if group == "get":
                stack.append(memo.get(argument, OTHER))
            elif 0 <= argument <= count:
                memo[argument] = stack[-1]
            else:
                raise pickle.UnpicklingError(f"it stores value number {argument} as one of its first {count}")
        elif group == "counted":
            position += size + number(data[position : position + size], "little")
            stack.append(kind)
        elif group == "marked":
            mark = len(stack) - 1
            while stack[mark] != MARK:  # an IndexError without one
                mark -= 1
            if OTHER in stack[mark + 1 :: KEY_STEPS[name]] if name in KEY_STEPS else False:
                raise pickle.UnpicklingError(BAD_KEY)
            del stack[max(mark - below, 0) :]
            stack.extend(pushes)
        elif group == "STOP":
            return position
        else:
            position = _rare(data, position, EFFECTS_BY_BYTE[data[position - 1]], stack)
        if position > end:
            raise EOFError(f"{name} ends at byte {position} of a file of {end} bytes")
    raise EOFError("the file ends without STOP")


def _index(data, position: int, size: int, next_index: int) -> tuple[int, int]:
    """The index of a value in the memo, and the position behind it."""
    if size > 0:
        return int.from_bytes(data[position : position + size], "little"), position + size
    if size == 0:  # MEMOIZE
        return next_index, position
    behind = _behind_line(data, position)
    if behind - position > MAX_NUMBER_TEXT:
        raise ValueError("an index in the memo is too long")
    return int(data[position:behind]), behind


def _behind_line(data, position: int) -> int:
    found = data.find(b"\n", position)
    if found < 0:
        raise EOFError(f"the line at byte {position} does not end")
    return found + 1


def _rare(data, position: int, effect: _Effect, stack: list[int]) -> int:
    """The effect of an opcode that no other branch handles; returns the position behind it."""
    group, name, size, _, below, pushes = effect
    if group == "line":
        behind = _behind_line(data, position)
        if name in ("INT", "LONG", "FLOAT") and behind - position > MAX_NUMBER_TEXT:
            raise pickle.UnpicklingError(f"it contains a number of {behind - position - 1} characters")
        # 64 bits have up to 19 digits and a sign
        pushes = (OTHER,) if name in ("INT", "LONG") and behind - position > 21 else pushes
        if name in ("GLOBAL", "INST"):
            behind = _behind_line(data, behind)
            if behind - position > MAX_NAME:  # torch searches its message about it in quadratic time
                raise pickle.UnpicklingError(f"it contains a name of {behind - position} characters")
        if name == "INST":
            while stack.pop() != MARK:
                pass
    elif group == "LONG":
        length = int.from_bytes(data[position : position + size], "little")
        if length > MAX_INTEGER_BYTES:
            raise pickle.UnpicklingError(f"it contains a number of {length} bytes")
        behind, pushes = position + size + length, (KEY if length <= MAX_KEY_BYTES else OTHER,)
    elif group == "FRAME":  # only announces opcodes, which follow as usual
        behind, length = position + size, int.from_bytes(data[position : position + size], "little")
        if behind + length > len(data):
            raise EOFError(f"a frame of {length} bytes in a file of {len(data)} bytes")
    else:
        behind = position + size
        pushes = (stack[-1],) * 2 if group == "DUP" else pushes
        if name == "SETITEM" and stack[-2] == OTHER:
            raise pickle.UnpicklingError(BAD_KEY)
        if below > len(stack):
            raise IndexError(f"{name} takes {below} values of {len(stack)}")
        del stack[len(stack) - below :]
    stack.extend(pushes)
    return behind
