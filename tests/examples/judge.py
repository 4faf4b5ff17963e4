"""What the judge of the demonstration says to records of which it is known what is wrong with them."""

import pathlib
import sys
import tempfile

sys.path.append(sys.argv[1])
from judge import MS, Judge


def judge(*runs, woken=()):
    """Each run is node, name, fence, and stretches of milliseconds in which it said something every five."""
    lines = []
    for node, name, fence, *stretches in runs:
        for first, last in stretches:
            lines += [(at, f"{node} {name} 0 {fence} {at * MS} there\n") for at in range(first, last + 1, 5)]
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "record"
        path.write_text("".join(line for _, line in sorted(lines)))
        found = Judge(path)
        return found, found.faults(set(woken))


one_after_the_other = [("n1", "a", 4, (0, 1000)), ("n2", "b", 7, (1005, 2000)), ("n2", "c", 7, (2100, 3000))]
seen, faults = judge(*one_after_the_other)
assert faults == [], faults
assert seen.gap_ns(0, 3000 * MS) == 100 * MS
assert seen.gap_ns(1500 * MS, 4000 * MS) == 1000 * MS
assert seen.holder().name == "c"

_, faults = judge(("n1", "a", 4, (0, 1000)), ("n2", "b", 7, (990, 2000)))
assert faults == ["n1 and n2 ran at once for 10 ms (fences 4 and 7)"], faults
_, faults = judge(("n1", "a", 7, (0, 1000)), ("n2", "b", 4, (1005, 2000)))
assert faults == ["the fence fell: 7 on n1, then 4 on n2"], faults
_, faults = judge(("n1", "a", 4, (0, 1000)), ("n2", "b", 4, (1005, 2000)))
assert len(faults) == 1, faults
# Whoever sleeps is not beside the next one until it wakes, and is then, unless that was meant.
asleep = [("n1", "a", 4, (0, 1000), (8000, 8010)), ("n2", "b", 7, (6000, 9000))]
_, faults = judge(*asleep)
assert faults == ["n1 and n2 ran at once for 10 ms (fences 4 and 7)"], faults
_, faults = judge(*asleep, woken=["a"])
assert faults == [], faults
