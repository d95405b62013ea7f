"""A FUSE file system that fails on request: one folder, mounted at another.

`python fuse_disk.py FOLDER MOUNT FAULTS [BYTES]` serves until it is unmounted or killed, which is
how a mount vanishes. A line of the file FAULTS is `CALL WHAT AFTER TIMES`: of the calls of that
name (`read`, `write`, `fsync`, …) this many go well, then as many fail with WHAT, the name of an
error, or are `short`, or wait `0.1` seconds, and FAULTS.met is made. Calls that wait are served at
once; FAULTS.most has the largest number of them. Requests are of at most BYTES (1 MiB). No library
is needed.
"""

import ctypes
import errno
import os
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

CALLS = {
    1: "lookup", 3: "getattr", 4: "setattr", 5: "readlink", 6: "symlink", 9: "mkdir",
    10: "unlink", 11: "rmdir", 12: "rename", 13: "link", 14: "open", 15: "read", 16: "write",
    17: "statfs", 18: "release", 20: "fsync", 25: "flush", 26: "init", 27: "opendir",
    28: "readdir", 29: "release", 30: "flush", 35: "create", 45: "rename2",
}  # fmt: skip
UNANSWERED = (2, 36, 42)  # forget, interrupt, batch_forget
HEAD, OUT = struct.Struct("=IIQQ16x"), struct.Struct("=IiQ")
MOST = 1 << 20
DIRECT = 1
"""Of an open file: calls come as they are made, past the page cache."""


class Faults:
    """Faults read again for each call, so that a test can change them."""

    def __init__(self, path: Path) -> None:
        self.path, self.text, self.seen = path, "", dict[str, int]()
        self.waiting = self.most = 0
        self.lock = threading.Lock()

    def of(self, call: str) -> str:
        text = self.path.read_text() if self.path.exists() else ""
        if text != self.text:
            self.text, self.seen = text, {}
        for line in text.splitlines():
            name, fault, after, times = line.split()
            if name == call:
                number = self.seen[line] = self.seen.get(line, 0) + 1
                if int(after) < number <= int(after) + int(times):
                    self.path.with_suffix(".met").touch()
                    return fault
        return ""

    def after(self, seconds: float, serve: Callable[..., object], *call: object) -> None:
        """Serve a call after some seconds, and count how many wait."""

        def run() -> None:
            time.sleep(seconds)
            with self.lock:
                self.waiting -= 1
            serve(*call)

        with self.lock:
            self.waiting += 1
            if self.waiting > self.most:
                self.most = self.waiting
                self.path.with_suffix(".most").write_text(str(self.most))
        threading.Thread(target=run).start()


class Disk:
    """A method for each FUSE call; returns the reply, or raises OSError."""

    def __init__(self, root: str, most: int = MOST) -> None:
        self.names: dict[int, str] = {1: root}
        self.most = most

    def path(self, node: int, name: bytes = b"") -> str:
        text = os.fsdecode(name.split(b"\0")[0])
        return f"{self.names[node]}/{text}" if text else self.names[node]

    def attributes(self, status: os.stat_result) -> bytes:
        times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
        return struct.pack(
            "=6Q10I", status.st_ino, status.st_size, status.st_blocks,
            *(t // 10**9 for t in times), *(t % 10**9 for t in times), status.st_mode,
            status.st_nlink, status.st_uid, status.st_gid, 0, 4096, 0,
        )  # fmt: skip

    def entry(self, path: str) -> bytes:
        status = os.lstat(path)
        node = status.st_ino + 1
        self.names[node] = path
        return struct.pack("=4Q8x", node, 0, 0, 0) + self.attributes(status)

    def init(self, node: int, data: bytes) -> bytes:
        flags = 1 << 5 | 1 << 22  # large writes, and as many pages as they need
        pages = self.most >> 12
        return struct.pack("=4I2H2I2H32x", 7, 31, MOST, flags, 16, 12, self.most, 1, pages, 0)

    def lookup(self, node: int, data: bytes) -> bytes:
        return self.entry(self.path(node, data))

    def getattr(self, node: int, data: bytes) -> bytes:
        flags, fh = struct.unpack("=I4xQ", data)
        status = os.fstat(fh) if flags & 1 else os.lstat(self.names[node])
        return bytes(16) + self.attributes(status)

    def setattr(self, node: int, data: bytes) -> bytes:
        valid, fh, size, _, _, mtime = struct.unpack_from("=I4x5Q", data)
        nanoseconds, mode = struct.unpack_from("=4xI4xI", data, 56)
        path = self.names[node]
        if valid & 8:
            os.truncate(fh if valid & 64 else path, size)
        if valid & 1:
            os.chmod(path, stat.S_IMODE(mode))
        if valid & 32:
            moment = time.time_ns() if valid & 256 else mtime * 10**9 + nanoseconds
            os.utime(path, ns=(moment, moment))
        return bytes(16) + self.attributes(os.fstat(fh) if valid & 64 else os.lstat(path))

    def readlink(self, node: int, data: bytes) -> bytes:
        return os.fsencode(os.readlink(self.names[node]))

    def symlink(self, node: int, data: bytes) -> bytes:
        name, target, _ = data.split(b"\0")
        os.symlink(target, os.fsencode(self.path(node, name)))
        return self.entry(self.path(node, name))

    def mkdir(self, node: int, data: bytes) -> bytes:
        os.mkdir(self.path(node, data[8:]), struct.unpack_from("=I", data)[0])
        return self.entry(self.path(node, data[8:]))

    def unlink(self, node: int, data: bytes) -> bytes:
        os.unlink(self.path(node, data))
        return b""

    def rmdir(self, node: int, data: bytes) -> bytes:
        os.rmdir(self.path(node, data))
        return b""

    def rename(self, node: int, data: bytes, skip: int = 8) -> bytes:
        old, new, _ = data[skip:].split(b"\0")
        before = self.path(node, old)
        after = self.path(struct.unpack_from("=Q", data)[0], new)
        os.rename(before, after)
        for number, path in self.names.items():
            if path == before or path.startswith(f"{before}/"):
                self.names[number] = after + path[len(before) :]
        return b""

    def rename2(self, node: int, data: bytes) -> bytes:
        return self.rename(node, data, 16)

    def link(self, node: int, data: bytes) -> bytes:
        os.link(self.names[struct.unpack_from("=Q", data)[0]], self.path(node, data[8:]))
        return self.entry(self.path(node, data[8:]))

    def open(self, node: int, data: bytes) -> bytes:
        flags = struct.unpack_from("=I", data)[0] & ~(os.O_DIRECT | os.O_NOFOLLOW | os.O_APPEND)
        return struct.pack("=QI4x", os.open(self.names[node], flags), DIRECT)

    def create(self, node: int, data: bytes) -> bytes:
        flags, mode = struct.unpack_from("=2I", data)
        flags &= ~(os.O_DIRECT | os.O_NOFOLLOW | os.O_APPEND)
        path = self.path(node, data[16:])
        fh = os.open(path, flags | os.O_CREAT, mode)
        return self.entry(path) + struct.pack("=QI4x", fh, DIRECT)

    def read(self, node: int, data: bytes) -> bytes:
        fh, offset, size = struct.unpack_from("=QQI", data)
        return os.pread(fh, size, offset)

    def write(self, node: int, data: bytes) -> bytes:
        fh, offset, size = struct.unpack_from("=QQI", data)
        return struct.pack("=I4x", os.pwrite(fh, data[40 : 40 + size], offset))

    def statfs(self, node: int, data: bytes) -> bytes:
        s = os.statvfs(self.names[1])
        sizes = (s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree)
        return struct.pack("=5Q3I28x", *sizes, s.f_bsize, s.f_namemax, s.f_frsize)

    def fsync(self, node: int, data: bytes) -> bytes:
        os.fsync(struct.unpack_from("=Q", data)[0])
        return b""

    def release(self, node: int, data: bytes) -> bytes:
        fh = struct.unpack_from("=Q", data)[0]
        if fh:
            os.close(fh)
        return b""

    def flush(self, node: int, data: bytes) -> bytes:
        return b""

    def opendir(self, node: int, data: bytes) -> bytes:
        return bytes(16)

    def readdir(self, node: int, data: bytes) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", data)
        entries = b""
        for number, name in enumerate(sorted(os.listdir(self.names[node])), 1):
            raw = os.fsencode(name)
            one = struct.pack("=QQII", number, number, len(raw), 0) + raw
            one += bytes(-len(one) % 8)
            if number > offset and len(entries) + len(one) <= size:
                entries += one
        return entries


def serve(
    device: int, unique: int, disk: Disk, fault: str, code: int, node: int, data: bytes
) -> bool:
    """Answer a call; return whether the mount is still there."""
    error, reply = answer(disk, fault, code, node, data)
    try:
        os.writev(device, [OUT.pack(OUT.size + len(reply), error, unique), reply])
    except OSError as failure:
        return failure.errno == errno.ENOENT  # who asked is gone
    return True


def answer(disk: Disk, fault: str, code: int, node: int, data: bytes) -> tuple[int, bytes]:
    """Return the reply of a call, or a negative error number."""
    call = CALLS.get(code)
    if call is None:
        return -errno.ENOSYS, b""
    if fault.startswith("E"):
        return -getattr(errno, fault), b""
    try:
        if fault == "short" and call == "write":
            fh, offset, size = struct.unpack_from("=QQI", data)
            data = struct.pack("=QQI", fh, offset, (size + 1) // 2) + data[20:]
        reply: bytes = getattr(disk, call)(node, data)
    except OSError as error:
        return -(error.errno or errno.EIO), b""
    return 0, reply[: (len(reply) + 1) // 2] if fault == "short" and call == "read" else reply


def main(root: str, place: str, faults: Path, most: int) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
    options += f",max_read={most}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"trouble", os.fsencode(place), b"fuse", 0, options.encode()):
        sys.exit(os.strerror(ctypes.get_errno()))
    print("mounted", flush=True)
    disk, plan = Disk(root, most), Faults(faults)
    while True:
        try:
            asked = os.read(device, MOST + 8192)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                continue
            return  # unmounted
        _, code, unique, node = HEAD.unpack_from(asked)
        if code in UNANSWERED:
            continue
        fault = plan.of(CALLS.get(code, ""))
        call = (device, unique, disk, fault, code, node, asked[HEAD.size :])
        if fault and fault != "short" and not fault.startswith("E"):  # others are served meanwhile
            plan.after(float(fault), serve, *call)
        elif not serve(*call):
            return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int((*sys.argv, MOST)[4]))
