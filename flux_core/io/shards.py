"""Models in several files: `NAME-00001-of-00003.safetensors` (Hugging Face), the same with .gguf (llama.cpp), and the
two files of a folder that nunchaku wrote before it had a single file.

The name of any shard stands for the whole set. Uses names only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

INDEX = ".index.json"  # after the model's name: the file that lists the shard of each tensor
_SHARD = re.compile(
    r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.safetensors|\.sft|\.gguf)", re.I | re.S
)


PAIR = ("transformer_blocks.safetensors", "unquantized_layers.safetensors")  # nunchaku's


@dataclass(frozen=True)
class ShardName:
    """One file of a set of `count`. own_names: of all files, if they have no numbers; `stem` is their folder."""

    stem: str
    number: int
    count: int
    ending: str
    own_names: tuple[str, ...] = ()

    @property
    def set(self) -> tuple[str, int, str]:
        """The same for all files of the set."""
        return self.stem + "".join(self.own_names), self.count, self.ending

    @property
    def names(self) -> list[str]:
        """All files of the set, in order."""
        if self.own_names:
            return [self.stem + name for name in self.own_names]
        return [f"{self.stem}-{number:05}-of-{self.count:05}{self.ending}" for number in range(1, self.count + 1)]

    @property
    def index(self) -> str:
        """The file that lists the shard of each tensor, if it exists."""
        return f"{self.stem}{self.ending}{INDEX}"


def shard_name(name: str) -> ShardName | None:
    """The set to which a file belongs according to its name; folders before it stay in the stem."""
    begin = max(name.rfind("/"), name.rfind("\\")) + 1
    folder, last = name[:begin], name[begin:]
    if last in PAIR:
        return ShardName(folder, PAIR.index(last) + 1, len(PAIR), ".safetensors", PAIR)
    found = _SHARD.fullmatch(name)
    if found is None or not 1 <= int(found["number"]) <= int(found["count"]):
        return None
    return ShardName(found["stem"], int(found["number"]), int(found["count"]), found["ending"])


def first_of_each(names: Iterable[str]) -> list[str]:
    """Names without those of later shards: a set is listed once, by the first of its files that exists. Sorted."""
    listed: list[str] = []
    seen: set[tuple[str, int, str]] = set()
    for name in sorted(names):
        shard = shard_name(name)
        if shard is None or shard.set not in seen:
            listed.append(name)
        if shard is not None:
            seen.add(shard.set)
    return listed
