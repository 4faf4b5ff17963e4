"""Who ran when, by the lines that workers wrote; it asks neither leasehold nor etcd."""

from dataclasses import dataclass, field
from pathlib import Path

MS = 1_000_000
ASLEEP_NS = 500 * MS  # whoever is silent for longer was stopped meanwhile


@dataclass
class Run:
    """One generation of a worker."""

    node: str
    name: str
    fence: tuple[int, int]
    stretches: list[list[int]] = field(default_factory=list)  # first and last word, between which it was awake
    refused: tuple[int, str] | None = None

    @property
    def first(self) -> int:
        return self.stretches[0][0]

    @property
    def last(self) -> int:
        return self.stretches[-1][1]


class Judge:
    """Reads one file of lines "NODE RUN EPOCH FENCE BOOTTIME WORD"."""

    def __init__(self, path: Path):
        path.touch()
        self.file = path.open()
        self.rest = ""
        self.by_name: dict[str, Run] = {}
        self.words: list[int] = []

    def look(self) -> list[Run]:
        """All runs so far, by their beginning."""
        lines = (self.rest + self.file.read()).split("\n")
        self.rest = lines.pop()
        for line in lines:
            self.hear(line)
        return sorted(self.by_name.values(), key=lambda run: run.first)

    def hear(self, line: str) -> None:
        node, name, epoch, fence, at, word = line.split(" ", 5)
        at = int(at)
        run = self.by_name.setdefault(name, Run(node, name, (int(epoch), int(fence))))
        if word != "there":
            run.refused = (at, word)
        self.words.append(at)
        if run.stretches and at - run.last < ASLEEP_NS:
            run.stretches[-1][1] = at
        else:
            run.stretches.append([at, at])

    def holder(self) -> Run | None:
        """Who began last."""
        runs = self.look()
        return runs[-1] if runs else None

    def gap_ns(self, since: int, until: int) -> int:
        """The longest time in between for which nobody said anything."""
        self.look()
        words = [since, *sorted(at for at in self.words if since <= at <= until), until]
        return max(later - earlier for earlier, later in zip(words, words[1:]))

    def together_ns(self, one: Run, other: Run) -> int | None:
        """How long both were awake; None if they never were."""
        both = [min(a[1], b[1]) - max(a[0], b[0]) for a in one.stretches for b in other.stretches]
        return max((ns for ns in both if ns >= 0), default=None)

    def faults(self, woken: set[str]) -> list[str]:
        """Every two at once, but for those who were woken beside the next one on purpose; and every fence that fell."""
        runs = self.look()
        found = []
        for n, one in enumerate(runs):
            for other in runs[n + 1 :]:
                both = None if one.name in woken else self.together_ns(one, other)
                if both is not None:
                    found.append(f"{one.node} and {other.node} ran at once for {both / MS:.0f} ms (fences {one.fence[1]} and {other.fence[1]})")
                if other.fence < one.fence or (other.fence == one.fence and other.node != one.node):
                    found.append(f"the fence fell: {one.fence[1]} on {one.node}, then {other.fence[1]} on {other.node}")
        return found
