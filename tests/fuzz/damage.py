"""Damage to a file, as a recipe of JSON values: the same recipe does the same to any file of its form.

A recipe is a list, the name of a function of `WAYS` and its arguments. Places within a file are shares of its length,
so a recipe stays useful when the file that it damages has changed a little.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Recipe = list[Any]

# JSON texts that stand where another value is expected.
HOSTILE = [
    "null", "true", "-1", "0", "0.5", "1e999", "-1e308", "NaN", "2147483648", "9223372036854775808", "1000000000000",
    '""', '"0"', '"../../etc/passwd"', '"/dev/zero"', '"<script>alert(1)</script>"', '"$\\\\frac$"', '"\\u0000"',
    '"\\ud800"', "[]", "{}", "[[]]", '{"a": 1}', "[-1]", "[null]", json.dumps("x" * 100_000), json.dumps([1] * 100_000),
]  # fmt: skip
# The same for YAML, with what only YAML has.
HOSTILE_YAML = [
    *HOSTILE[:20], "!!python/object/apply:os.system ['touch fuzz-was-here']", "!!python/name:os.system",
    "!!binary AAAA", "!!set {a, b}", "2024-01-31", "9999999999999999999-01-01", "0o17", "1_000", "12:30:45", "yes", "~",
    "<<", "*missing", "&a [*a, *a]", "|2", "{? [a] : b}", "!unknown x", "%", "@", "'", "[" * 3000,
]  # fmt: skip


def damage(path: Path, recipe: Recipe) -> None:
    """Damage a file in place; it may become a folder, a pipe or a link."""
    name, *words = recipe
    if name in PLACES:
        PLACES[name](path)
        return
    content = BYTES[name](path.read_bytes(), *words)
    path.write_bytes(content)


def drawn(draw: random.Random, content: bytes, form: str) -> Recipe:
    """A recipe that suits a file.

    Args:
        draw: where chance comes from.
        content: of the file.
        form: "json", "lines" (of JSON), "yaml", "npy", "safetensors", or another one, for damage of its bytes only.
    """
    if form in STRUCTURED and draw.random() < 0.6:
        return STRUCTURED[form](draw, content)
    share = draw.choice([draw.random(), draw.random() * min(1, 64 / len(content)), 1 - draw.random() / 8])
    share = round(min(share, 0.999999), 6)
    length = draw.choice([1, 2, 8, 64, 512])
    return draw.choice(
        [
            ["flip", share, draw.randrange(8)],
            ["flip", share, draw.randrange(8)],
            ["byte", share, draw.choice([0, 9, 10, 13, 34, 44, 48, 58, 92, 124, 127, 128, 255])],
            ["cut", share],
            ["zeros", share, length],
            ["left out", share, length],
            ["twice", share, length],
            ["noise", share, length, draw.randrange(1 << 30)],
            ["more", draw.choice(["00", "0a", "22", "ff" * 40, "504b0506" + "00" * 18, "1f8b"])],
        ]
    )


def _flip(content: bytes, share: float, bit: int) -> bytes:
    at = int(share * len(content))
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :] if content else content


def _byte(content: bytes, share: float, value: int) -> bytes:
    at = int(share * len(content))
    return content[:at] + bytes([value]) + content[at + 1 :]


def _noise(content: bytes, share: float, length: int, seed: int) -> bytes:
    at = int(share * len(content))
    return content[:at] + random.Random(seed).randbytes(length) + content[at + length :]


def _twice(content: bytes, share: float, length: int) -> bytes:
    at = int(share * len(content))
    return content[: at + length] + content[at:]


def _left_out(content: bytes, share: float, length: int) -> bytes:
    at = int(share * len(content))
    return content[:at] + content[at + length :]


def _zeros(content: bytes, share: float, length: int) -> bytes:
    at = int(share * len(content))
    return content[:at] + bytes(min(length, len(content) - at)) + content[at + length :]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values within a JSON value; of the items of a list, the first five and the last."""
    yield path
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = [*enumerate(value)][:5] + [*enumerate(value)][5:][-1:]
    for key, item in items:
        yield from _places(item, (*path, key))


def _edited(value: Any, path: Sequence[Any], edit: Callable[[Any, Any], None]) -> Any:
    """A copy of a JSON value in which ``edit(parent, key)`` has changed the value at a path that is not the top."""
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    edit(parent, path[-1])
    return value


MARK = "value-to-be-written-here"


def _set(content: bytes, path: Sequence[Any], text: str) -> bytes:
    if not path:
        return text.encode("utf-8", "surrogatepass")
    value = _edited(json.loads(content), path, lambda parent, key: parent.__setitem__(key, MARK))
    return json.dumps(value).replace(f'"{MARK}"', text, 1).encode("utf-8", "surrogatepass")


def _set_yaml(content: bytes, path: Sequence[Any], text: str) -> bytes:
    if not path:
        return text.encode("utf-8", "surrogatepass")
    value = _edited(yaml.safe_load(content), path, lambda parent, key: parent.__setitem__(key, MARK))
    return yaml.safe_dump(value, allow_unicode=True).replace(MARK, text, 1).encode("utf-8", "surrogatepass")


def _drop(content: bytes, path: Sequence[Any]) -> bytes:
    return json.dumps(_edited(json.loads(content), path, lambda parent, key: parent.__delitem__(key))).encode()


def _rename(content: bytes, path: Sequence[Any], name: str) -> bytes:
    def edit(parent: Any, key: Any) -> None:
        parent[name] = parent.pop(key)

    return json.dumps(_edited(json.loads(content), path, edit)).encode()


def _draw_json(draw: random.Random, content: bytes) -> Recipe:
    places = list(_places(json.loads(content)))
    path = list(draw.choice(places))
    if path and draw.random() < 0.2:
        return ["drop", path]
    if path and isinstance(path[-1], str) and draw.random() < 0.15:
        return ["rename", path, draw.choice(["", "x", "../x", "<b>", "__proto__"])]
    return draw.choice([["set", path, draw.choice(HOSTILE)]] * 12 + [["deep", 100_000], ["twice json"], ["long", 22]])


def _draw_yaml(draw: random.Random, content: bytes) -> Recipe:
    path = list(draw.choice(list(_places(yaml.safe_load(content)))))
    texts = [["set yaml", path, draw.choice(HOSTILE_YAML)]] * 15
    return draw.choice([*texts, ["laughs", 9], ["deep", 50_000], ["long", 22]])


def _draw_lines(draw: random.Random, content: bytes) -> Recipe:
    lines = content.splitlines()
    number = draw.randrange(len(lines))
    return ["line", number / len(lines), _draw_json(draw, lines[number])]


def _line(content: bytes, share: float, recipe: Recipe) -> bytes:
    lines = content.splitlines()
    number = round(share * len(lines))
    lines[number] = BYTES[recipe[0]](lines[number], *recipe[1:])
    return b"\n".join([*lines, b""])


def _laughs(content: bytes, levels: int) -> bytes:
    lines = ["a0: &a0 ha"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return content + b"\n" + "\n".join(lines).encode() + b"\n"


def _npy(content: bytes, old: str, new: str) -> bytes:
    """Replace a pattern in the header of a .npy file, and make its length right."""
    length = int.from_bytes(content[8:10], "little")
    header = re.sub(old, new, content[10 : 10 + length].decode("latin-1"), count=1).encode("latin-1")
    return content[:8] + len(header).to_bytes(2, "little") + header + content[10 + length :]


def _draw_npy(draw: random.Random, content: bytes) -> Recipe:
    shapes = ["(1000000000000, 5)", "(-1,)", "(0,)", "()", "(2147483648, 2147483648)", "'x'", "(1.5, 2)", "(1,) * 9"]
    kinds = ["'|O'", "'<f8'", "'|S1000000000'", "'|b1'", "'<U1'", "'<i4, <i4'", "__import__('os')", "[('a', '<i4')]"]
    return draw.choice(
        [
            ["npy", r"'shape': \([^)]*\)", f"'shape': {draw.choice(shapes)}"],
            ["npy", r"'descr': '[^']*'", f"'descr': {draw.choice(kinds)}"],
            ["npy", "False", "True"],
            ["npy", "$", draw.choice([" " * 60_000, "\0", "("])],
        ]
    )


def _head(content: bytes, recipe: Recipe) -> bytes:
    """Damage to the header of a safetensors file, whose length is then right; ``served`` means the model within it."""
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    if recipe[0] == "served":
        about = json.loads(header)
        inner = BYTES[recipe[1][0]](about["__metadata__"]["served"].encode(), *recipe[1][1:])
        about["__metadata__"]["served"] = inner.decode("utf-8", "replace")
        header = json.dumps(about).encode("utf-8", "surrogatepass")
    else:
        header = BYTES[recipe[0]](header, *recipe[1:])
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _draw_safetensors(draw: random.Random, content: bytes) -> Recipe:
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    served = json.loads(header).get("__metadata__", {}).get("served")
    if served and draw.random() < 0.7:
        return ["head", ["served", _draw_json(draw, served.encode())]]
    if draw.random() < 0.2:
        return ["noise", 0.0, 8, draw.randrange(1 << 30)]
    return ["head", _draw_json(draw, header)]


BYTES: Mapping[str, Callable[..., bytes]] = {
    "flip": _flip,
    "byte": _byte,
    "noise": _noise,
    "twice": _twice,
    "left out": _left_out,
    "zeros": _zeros,
    "cut": lambda content, share: content[: int(share * len(content))],
    "more": lambda content, more: content + bytes.fromhex(more),
    "is": lambda content, text: text.encode("utf-8", "surrogatepass"),
    "replace": lambda content, old, new: content.replace(old.encode(), new.encode(), 1),
    "set": _set,
    "set yaml": _set_yaml,
    "drop": _drop,
    "rename": _rename,
    "deep": lambda content, levels: b"[" * levels + b"]" * levels,
    "long": lambda content, bits: b'"' + b"x" * (1 << bits) + b'"',
    "twice json": lambda content: content + content,
    "line": _line,
    "laughs": _laughs,
    "npy": _npy,
    "head": _head,
}
STRUCTURED: Mapping[str, Callable[[random.Random, bytes], Recipe]] = {
    "json": _draw_json,
    "lines": _draw_lines,
    "yaml": _draw_yaml,
    "npy": _draw_npy,
    "safetensors": _draw_safetensors,
}


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.unlink()
        path.symlink_to(target.format(name=path.name))

    return make


def _empty_folder(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


PLACES: Mapping[str, Callable[[Path], None]] = {
    "missing": _empty_folder,
    "a folder": _folder,
    "a pipe": _pipe,
    "a device": _link("/dev/zero"),
    "a loop": _link("{name}"),
}
