from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrseg._checks import InputError
from mrseg._files import LOCK, atomic_file
from mrseg.data import case_cache
from mrseg.data.case_cache import CHUNK, CaseCache
from mrseg.data.io import write_volume

SHAPE = (40, 35, 9)


def pair(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return rng.random(shape, np.float32), rng.integers(0, 4, shape, np.uint8)


def scan(path, seed=0):
    write_volume(path, pair(seed, (6, 5, 4))[0], np.eye(4))
    return path


class Maker:
    """Makes a case and counts how often."""

    def __init__(self, seed=0, shape=SHAPE):
        self.case, self.calls = pair(seed, shape), 0

    def __call__(self):
        self.calls += 1
        return self.case


def same(kept, case):
    return all(
        one.shape == other.shape and one.dtype == other.dtype and np.array_equal(one, other)
        for one, other in zip(kept, case, strict=True)
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    return CaseCache(folder / "cache").get([scan(folder / "a.nii")], {}, Maker())


def part(size):
    whole = st.integers(0, size - 1)
    return st.one_of(
        whole,
        whole.map(np.int32),
        st.tuples(whole, st.integers(1, size)).map(lambda p: slice(p[0], min(size, p[0] + p[1]))),
        st.tuples(whole, st.integers(1, 3)).map(lambda p: slice(p[0], None, p[1])),
    )


@settings(max_examples=60, deadline=None)
@given(index=st.tuples(*map(part, SHAPE)), count=st.integers(0, 3))
def test_indexing_reads_what_indexing_the_array_gives(kept, index, count):
    for one, other in zip(kept, pair(), strict=True):
        read = one[index[:count]] if count else one[...]
        assert read.dtype == other.dtype
        np.testing.assert_array_equal(read, other[index[:count]] if count else other)


def test_a_cached_array_says_and_sums_what_the_array_does(kept):
    for one, other in zip(kept, pair(), strict=True):
        assert (one.shape, one.dtype, one.ndim, one.size) == (
            other.shape, other.dtype, other.ndim, other.size,
        )  # fmt: skip
        assert np.asarray(one, np.float64).dtype == np.float64
        np.testing.assert_array_equal(one.sum(axis=(0, 1), dtype=np.float64), other.sum((0, 1), np.float64))
    with pytest.raises(ValueError, match="copy=False"):
        kept[0].__array__(copy=False)


def test_chunks_are_small_and_none_is_larger_than_the_volume(kept):
    with h5py.File(kept[0].path, locking=False) as file:
        assert file["image"].chunks == file["labels"].chunks == (32, 32, 9)
    assert 4 * np.prod(CHUNK) <= case_cache._CHUNK_CACHE_BYTES


def test_a_case_is_made_once_and_again_when_a_source_or_a_setting_changes(tmp_path, monkeypatch):
    cache, source, make = CaseCache(tmp_path / "cache"), scan(tmp_path / "a.nii"), Maker()
    for _ in range(2):
        assert same(cache.get([source], {"grid": "native"}, make), make.case)
    CaseCache(tmp_path / "cache").get([source], {"grid": "native"}, make)
    assert make.calls == 1
    cache.get([source], {"grid": "head"}, make)
    assert make.calls == 2
    times = source.stat().st_mtime_ns
    scan(source, seed=1)  # as large as before, and made to look as old
    os.utime(source, ns=(times, times))
    other = Maker(1)
    assert same(cache.get([source], {"grid": "native"}, other), other.case)
    cache.get([source, scan(tmp_path / "b.nii")], {"grid": "native"}, other)
    monkeypatch.setattr(case_cache, "VERSION", case_cache.VERSION + 1)
    cache.get([source], {"grid": "native"}, other)
    assert other.calls == 3


def test_a_scan_with_another_name_and_date_is_the_same_scan(tmp_path):
    cache, make = CaseCache(tmp_path / "cache"), Maker()
    cache.get([scan(tmp_path / "a.nii")], {}, make)
    os.utime(tmp_path / "a.nii", (1, 1))
    cache.get([tmp_path / "a.nii"], {}, make)
    cache.get([(tmp_path / "a.nii").rename(tmp_path / "b.nii")], {}, make)
    assert make.calls == 1


def test_bytes_are_hashed_again_only_when_size_or_times_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(case_cache, "_SETTLED_NS", -(10**12))
    hashed = []
    checksum = case_cache.checksum
    monkeypatch.setattr(case_cache, "checksum", lambda files: hashed.append(files) or checksum(files))
    cache, source = CaseCache(tmp_path / "cache"), scan(tmp_path / "a.nii")
    for _ in range(3):
        cache.get([source], {}, Maker())
    assert len(hashed) == 1
    os.utime(source, (1, 1))
    cache.get([source], {}, Maker())
    assert len(hashed) == 2
    (note,) = (tmp_path / "cache").glob("*.json")
    note.write_text('{"files": ', encoding="utf-8")  # damaged: of no use, and no harm
    cache.get([source], {}, Maker())
    assert len(hashed) == 3


def test_a_file_that_was_just_written_is_not_trusted_to_stay(tmp_path):
    CaseCache(tmp_path / "cache").get([scan(tmp_path / "a.nii")], {}, Maker())
    assert not list((tmp_path / "cache").glob("*.json"))


def test_a_source_that_changes_while_it_is_read_is_refused_and_nothing_is_kept(tmp_path):
    source = scan(tmp_path / "a.nii")

    def make():
        scan(source, seed=1)
        return pair()

    with pytest.raises(InputError, match="stays as it is while it is read.*a.nii"):
        CaseCache(tmp_path / "cache").get([source], {}, make)
    assert not list((tmp_path / "cache").glob("*.h5"))


@pytest.mark.parametrize("place", [0, 30, 300, 511, 512, 2000, -1, "cut", "longer", "empty"])
def test_a_damaged_file_is_told_and_made_again(tmp_path, caplog, place):
    cache, source, make = CaseCache(tmp_path / "cache"), scan(tmp_path / "a.nii"), Maker()
    path = cache.get([source], {}, make)[0].path
    content = bytearray(path.read_bytes())
    if place in ("cut", "longer", "empty"):
        content = {"cut": content[:-100], "longer": content + b"x", "empty": b""}[place]
    else:
        content[place] ^= 1
    path.write_bytes(content)
    with caplog.at_level("WARNING"):
        again = cache.get([source], {}, make)
    assert make.calls == 2 and same(again, make.case)
    assert f"{path} was damaged" in caplog.text
    cache.get([source], {}, make)
    assert make.calls == 2


def test_a_file_of_another_case_under_this_name_is_not_read(tmp_path):
    cache, source = CaseCache(tmp_path / "cache"), scan(tmp_path / "a.nii")
    one = cache.get([source], {"grid": 1}, Maker(1))[0].path
    two = cache.get([source], {"grid": 2}, Maker(2))[0].path
    two.write_bytes(one.read_bytes())
    make = Maker(2)
    assert same(cache.get([source], {"grid": 2}, make), make.case) and make.calls == 1


def test_a_folder_that_cannot_be_one_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="must be writable.*file"):
        CaseCache(tmp_path / "file/cache")


def test_a_case_that_cannot_be_read_is_named(tmp_path):
    cache, source = CaseCache(tmp_path / "cache"), scan(tmp_path / "a.nii")
    path = cache.get([source], {}, Maker())[0].path
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=f"must be readable.*{path.name}"):
        cache.get([source], {}, Maker())


def test_what_killed_processes_left_is_removed_and_what_is_being_written_stays(tmp_path):
    left = tmp_path / ".x.h5.abc.partial"
    left.mkdir()
    (left / LOCK).write_text("", encoding="utf-8")
    (left / "x.h5").write_text("half", encoding="utf-8")
    with atomic_file(tmp_path / "y.h5") as temporary:
        temporary.write_text("whole", encoding="utf-8")
        CaseCache(tmp_path)
        assert not left.exists() and temporary.exists()


def open_files(folder):
    """How many files below a folder this process holds open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # other threads close theirs
            count += os.readlink(link).startswith(str(folder))
    return count


def test_few_files_are_open_at_once_however_many_threads_read(tmp_path, monkeypatch):
    files = case_cache._Files(3)
    monkeypatch.setattr(case_cache, "_FILES", files)
    cache, source = CaseCache(tmp_path / "cache"), scan(tmp_path / "a.nii")
    cases = [pair(seed) for seed in range(12)]
    kept = [cache.get([source], {"n": n}, lambda c=case: c) for n, case in enumerate(cases)]
    wrong, most = [], []

    def read(seed):
        rng = np.random.default_rng(seed)
        for _ in range(80):
            n, x, y = rng.integers(0, [12, 30, 25])
            index = (slice(x, x + 10), slice(y, y + 10))
            if not all(np.array_equal(a[index], b[index]) for a, b in zip(kept[n], cases[n], strict=True)):
                wrong.append(n)
            with files.lock:
                most.append(open_files(tmp_path))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert max(most) == 3


def test_a_removed_cache_leaves_no_file_open(tmp_path):
    cache = CaseCache(tmp_path / "cache")
    kept = cache.get([scan(tmp_path / "a.nii")], {}, Maker())
    kept[0][0]
    cache.remove()
    assert not (tmp_path / "cache").exists()
    assert open_files(tmp_path) == 0
    with pytest.raises(FileNotFoundError):
        kept[0][0]


def test_a_cached_array_is_pickled_as_its_place(kept):
    text = pickle.dumps(kept)
    assert len(text) < 1000
    assert same(pickle.loads(text), pair())


PROCESSES = """
import os, resource, signal, sys, time
from pathlib import Path
import numpy as np
from mrseg.data import case_cache
from mrseg.data.case_cache import CaseCache

folder, source = Path(sys.argv[1]), Path(sys.argv[2])
rng = np.random.default_rng(0)
case = rng.random((40, 35, 9), np.float32), rng.integers(0, 4, (40, 35, 9), np.uint8)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    # A file whose process is killed after so many bytes.
    def __init__(self, path, mode, after):
        self.file, self.left = open(path, mode), after
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.file.close()
    def write(self, content):
        content = memoryview(content)
        self.file.write(content[: self.left])
        self.file.flush()
        self.left -= len(content)
        if self.left <= 0:
            kill()


def forked(run):
    child = os.fork()
    if not child:
        try:
            run()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def build(make=lambda: case):
    return CaseCache(folder).get([source], {}, make)


def dying(after):
    def opened(path, mode="r"):
        return Dying(path, mode, after) if "w" in mode else open(path, mode)
    case_cache.open = opened
    build()


def at_rename(before):
    rename = os.replace
    def replace(old, new):
        case = str(new).endswith(".h5")  # not the note about its source
        if not (case and before):
            rename(old, new)
        if case:
            kill()
    os.replace = replace
    build()


def ends(code=0):
    os._exit(code)
"""


def in_processes(tmp_path, text):
    source = scan(tmp_path / "a.nii")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PROCESSES + text, str(tmp_path / "cache"), str(source)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_kill_at_any_moment_leaves_no_half_written_case(tmp_path):
    text = """
stages = {"make": lambda: build(kill)}
stages |= {str(after): lambda after=after: dying(after) for after in (1, 511, 512, 513, 20000, 60000)}
for name, run in stages.items():
    assert os.WIFSIGNALED(forked(run)), name
    print(len(list(folder.glob("*.h5"))))
assert os.WIFSIGNALED(forked(lambda: at_rename(True)))
print(len(list(folder.glob("*.h5"))))
assert os.WIFSIGNALED(forked(lambda: at_rename(False)))
print(len(list(folder.glob("*.h5"))))
kept = build(kill)  # whole, though its writer was killed: nothing is made
assert all(np.array_equal(one, other) for one, other in zip(kept, case))
"""
    assert in_processes(tmp_path, text) == ["0"] * 8 + ["1"]
    make = Maker()
    assert same(CaseCache(tmp_path / "cache").get([tmp_path / "a.nii"], {}, make), make.case)
    assert make.calls == 0


@pytest.mark.slow
def test_a_kill_at_a_random_moment_leaves_no_half_written_case(tmp_path):
    text = """
import random
random.seed(1)
big = rng.random((128, 128, 96), np.float32), rng.integers(0, 4, (128, 128, 96), np.uint8)
for turn in range(100):
    child = os.fork()
    if not child:
        number = 0
        while True:
            CaseCache(folder).get([source], {"turn": turn, "number": number}, lambda: big)
            number += 1
    time.sleep(random.uniform(0, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(*("partial" for _ in folder.glob(".*.partial")))
    for path in folder.glob("*.h5"):
        assert case_cache._intact(path, path.stem), path
        path.unlink()
        print(turn)
CaseCache(folder)
assert not list(folder.glob(".*.partial"))
"""
    out = in_processes(tmp_path, text)
    killed_while_writing = out.count("partial")
    assert killed_while_writing > 5 and len(out) - killed_while_writing > 30


def test_processes_that_build_one_case_at_the_same_time_all_have_it(tmp_path):
    text = """
gate = time.time() + 0.3
children = []
for number in range(4):
    child = os.fork()
    if not child:
        time.sleep(max(0, gate - time.time()))
        kept = build(lambda: (time.sleep(0.05), case)[1])
        good = all(np.array_equal(one, other) for one, other in zip(kept, case))
        os._exit(0 if good else 1)
    children.append(child)
print(*(os.waitpid(child, 0)[1] for child in children))
print(len(list(folder.glob("*.h5"))), len(list(folder.glob(".*.partial"))))
"""
    assert in_processes(tmp_path, text) == ["0"] * 4 + ["1", "0"]


def test_a_forked_process_reads_with_files_of_its_own(tmp_path):
    text = """
import threading
kept = build()
stop = threading.Event()
def read():
    while not stop.is_set():
        kept[0][1:9, 2:9]
threads = [threading.Thread(target=read) for _ in range(2)]
[thread.start() for thread in threads]
def child():
    good = all(np.array_equal(one, other) for one, other in zip(kept, case))
    os._exit(0 if good else 1)
print(*(forked(child) for _ in range(5)))
stop.set()
[thread.join() for thread in threads]
assert np.array_equal(kept[0], case[0])
"""
    assert in_processes(tmp_path, text) == ["0"] * 5


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    text = """
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    build()
except OSError as reason:
    print(str(reason).replace(" ", "_"))
print(len(list(folder.glob("*.h5"))), len(list(folder.glob(".*.partial"))))
"""
    message, *left = in_processes(tmp_path, text)
    assert "must_fit_on_the_disk" in message and "Choose_a_folder" in message
    assert left == ["0", "0"]
