"""A page and an environment as leasehold would give them, and what the store says to holders in every order."""

import os
import struct

import fenced_store

NEVER = 2**64 - 1


def lease(epoch, fence, boottime=NEVER):
    fd = os.memfd_create("page")
    os.write(fd, b"LEASEPG1" + struct.pack("=7Q", 0, boottime, NEVER, fence, epoch, 1, 1) + bytes(4032))
    os.environ.update(LEASEHOLD_FENCE=str(fence), LEASEHOLD_EPOCH=str(epoch), LEASEHOLD_PAGE_FD=str(fd))
    return fenced_store.Lease()


def write(epoch, fence, boottime=NEVER):
    store = fenced_store.Store("store.db", "thing", lease(epoch, fence, boottime))
    try:
        with store.write() as db:
            db.execute("INSERT INTO things VALUES (?, ?)", (epoch, fence))
    except (fenced_store.Fenced, fenced_store.Late) as why:
        return type(why).__name__
    return "written"


fenced_store.create("store.db", "CREATE TABLE things (epoch INTEGER, fence INTEGER);")
story = [
    ((0, 7), "written"),
    ((0, 7), "written"),
    ((0, 6), "Fenced"),
    ((0, 8), "written"),
    ((0, 7), "Fenced"),
    ((1, 2), "written"),
    ((0, 9), "Fenced"),
    ((1, 1), "Fenced"),
    ((1, 3, 1), "Late"),  # its time is over, so not even its claim stays
    ((1, 2), "written"),
    ((1, 2**62), "written"),
]
for holder, want in story:
    said = write(*holder)
    assert said == want, f"{holder}: {said}, not {want}"
rows = fenced_store.connect("store.db").execute("SELECT epoch, fence FROM things").fetchall()
assert rows == [holder[:2] for holder, want in story if want == "written"], rows
try:
    lease(0, 7, 1).check(0)
    raise SystemExit("a page that is over let somebody write")
except fenced_store.Late:
    pass
