"""The store: what is written comes back to the bit or not at all, on a local disk and elsewhere."""

import errno
import json
import math
import os
import pickle
import resource
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from edc_ray.artifacts import Artifact, Damaged, Missing, Receipt, Store, StoreError
from edc_ray.config import ConfigError

KEY = "0123456789ab"
DTYPES = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
)  # fmt: skip


@pytest.fixture(params=["local", "file URI", "mock"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """`mock` is pyarrow's file system in memory: it takes the path of the object stores."""
    if request.param == "mock":
        return Store("mock:///bucket/runs")
    folder = tmp_path / ('a b\'s "r\u00f6\u00f6t" %20 \u2713' if request.param == "local" else "plain")
    return Store(str(folder) if request.param == "local" else folder.as_uri())


@pytest.fixture
def art(store: Store) -> Artifact:
    return store.artifact("recover", KEY)


def commit(art: Artifact, *receipts: Receipt, **more: Any) -> dict[str, Any]:
    return art.commit({"units": {receipt.unit: asdict(receipt) for receipt in receipts}, **more})


def listing(store: Store) -> set[str]:
    """Every file under the root, temporary ones too."""
    found = store._fs.get_file_info(fs.FileSelector(store._base, recursive=True, allow_not_found=True))
    return {info.path.removeprefix(store._base + "/") for info in found if info.is_file}


def poke(store: Store, relpath: str, data: bytes) -> None:
    """Other bytes in a file, behind the store's back."""
    with store._fs.open_output_stream(f"{store._base}/{relpath}", compression=None) as stream:
        stream.write(data)


def peek(store: Store, relpath: str) -> bytes:
    data = store.get(relpath)
    assert data is not None
    return data


def table(rows: int = 40) -> pa.Table:
    logits = [bytes([i % 256]) * 50 for i in range(rows)]
    return pa.table(
        {"step": pa.array(range(rows), pa.int32()), "logits": pa.array(logits, pa.large_binary())}
    )


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """To the bit, NaN too; same names, dtypes and shapes."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and a[k]
        .contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .equal(b[k].contiguous().reshape(-1).view(torch.uint8))
        for k in a
    )


# --- round trips --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3, 4)], ids=str)
def test_round_trip_keeps_every_dtype(art: Artifact, shape: tuple[int, ...], rng: torch.Generator) -> None:
    size = math.prod(shape)
    raw = torch.randint(0, 256, (size * 8,), dtype=torch.uint8, generator=rng)
    tensors = {
        str(d): (raw[:size] > 127 if d is torch.bool else raw[: size * d.itemsize].view(d)) for d in DTYPES
    }
    tensors = {name: tensor.reshape(shape) for name, tensor in tensors.items()}
    meta = {"b": [1, 2.5, None, True], "a": {"\u00e9": "\u2713"}}
    receipt = art.write("g=0_A-9", tensors, meta)
    back, back_meta = art.read("g=0_A-9")
    assert equal(back, tensors) and back_meta == meta
    assert art.receipt("g=0_A-9") == receipt
    assert receipt.file == f"g=0_A-9.{receipt.sha256[:12]}.safetensors" and receipt.meta == meta


def test_many_units_are_read_after_one_look_at_the_folder(
    art: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look for each of them would make fold and commit quadratic in the units."""
    receipts = [art.write(f"g{n}", {"x": torch.tensor(n)}, {"n": n}) for n in range(5)]
    order, looks, units = ["g3", "g0", "g4"], [], Artifact.units
    monkeypatch.setattr(Artifact, "units", lambda self: looks.append(self) or units(self))  # type: ignore[func-returns-value]
    read = [(int(tensors["x"]), meta) for tensors, meta in art.read_each(order)]
    assert read == [(3, {"n": 3}), (0, {"n": 0}), (4, {"n": 4})]
    assert art.receipts(order) == {f"g{n}": receipts[n] for n in (3, 0, 4)}
    assert len(looks) == 2
    with pytest.raises(Missing, match="g7"):
        art.receipts(["g0", "g7"])


def test_round_trip_of_views_and_shared_memory(art: Artifact) -> None:
    whole = torch.arange(24.0).reshape(4, 6).requires_grad_()
    tensors = {
        "whole": whole,
        "again": whole,
        "part": whole[1:3],
        "columns": whole[:, ::2],
        "turned": whole.T,
    }
    art.write("all", tensors, {})
    back, _ = art.read("all")
    assert equal(back, {name: tensor.detach() for name, tensor in tensors.items()})
    back["part"].zero_()
    assert back["whole"].equal(whole), "tensors that are read share no memory"


def test_nothing_is_a_unit_too(art: Artifact) -> None:
    art.write("all", {}, {})
    assert art.read("all") == ({}, {})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
BLOBS = st.tuples(st.sampled_from([d for d in DTYPES if d is not torch.bool]), st.binary(max_size=40))


@settings(max_examples=20)
@given(
    blobs=st.dictionaries(st.text(max_size=8).filter(lambda name: name != "__metadata__"), BLOBS, max_size=4),
    meta=st.dictionaries(st.text(max_size=8), JSON, max_size=3),
    unit=st.from_regex(r"[A-Za-z0-9_=-]{1,12}", fullmatch=True),
)
def test_round_trip_of_anything(
    blobs: dict[str, tuple[torch.dtype, bytes]], meta: dict[str, Any], unit: str
) -> None:
    art = Store("mock:///x").artifact("stage", KEY)
    tensors = {
        name: torch.tensor(list(data[: len(data) // d.itemsize * d.itemsize]), dtype=torch.uint8).view(d)
        for name, (d, data) in blobs.items()
    }
    receipt = art.write(unit, tensors, meta)
    back, back_meta = art.read(unit)
    assert equal(back, tensors) and back_meta == meta == receipt.meta
    assert list(art.units()) == [unit] and art.receipt(unit) == receipt


def test_equal_content_has_one_name(store: Store) -> None:
    first = store.artifact("recover", KEY).write(
        "g0", {"a": torch.ones(2), "b": torch.ones(3)}, {"x": 1, "y": 2}
    )
    again = store.artifact("recover", KEY).write(
        "g0", {"b": torch.ones(3), "a": torch.ones(2)}, {"y": 2, "x": 1}
    )
    assert first == again


def test_some_rows_of_a_table_are_those_rows_and_are_checked(art: Artifact) -> None:
    receipt = art.write_table("t", table(100), {"seed": 3})
    file = art.units()["t"]
    for rows in ([99], [17, 3, 3, 64], list(range(100))):
        assert art.read_rows(file, rows, ["step"])["step"].to_pylist() == rows
    assert art.read_rows(file, [5], ["logits"])["logits"].to_pylist() == [bytes([5]) * 50]
    assert art.table_meta(file) == {"seed": 3}
    raw = bytearray(peek(art.store, f"{art.folder}/{receipt.file}"))
    raw[raw.index(bytes([70]) * 50) + 3] ^= 1
    poke(art.store, f"{art.folder}/{receipt.file}", bytes(raw))
    assert art.read_rows(file, [5], ["logits"]).num_rows == 1, "what is not read is not checked"
    with pytest.raises(Damaged, match="another checksum"):
        art.read_rows(file, [70], ["logits"])
    art.store.drop(f"{art.folder}/{receipt.file}")
    with pytest.raises(Damaged, match="is missing"):
        art.table_meta(file)


def test_table_round_trip(art: Artifact) -> None:
    rows = table().replace_schema_metadata({"other": "stays"})
    receipt = art.write_table("epoch=0017-part-000", rows, {"seed": 3})
    back, meta = art.read_table("epoch=0017-part-000")
    assert back.equals(rows, check_metadata=True) and meta == {"seed": 3}
    assert art.receipt("epoch=0017-part-000") == receipt and receipt.file.endswith(".parquet")
    art.write_table("empty", table(0), {})
    assert art.read_table("empty")[0].equals(table(0), check_metadata=True)
    parquet = pq.ParquetFile(pa.BufferReader(peek(art.store, f"{art.folder}/{receipt.file}")))
    group = parquet.metadata.row_group(0)
    assert group.num_rows == 16 and group.column(1).compression == "UNCOMPRESSED"
    assert not group.column(1).has_dictionary_page and not group.column(1).is_stats_set


def test_pages_have_checksums_of_their_own(art: Artifact) -> None:
    """For who reads some pages of a large file, and so cannot compare the hash of all."""
    data = peek(art.store, f"{art.folder}/{art.write_table('p', table(), {}).file}")
    i = data.index(bytes([7]) * 50)
    broken = pa.BufferReader(data[:i] + b"!" + data[i + 1 :])
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(broken, page_checksum_verification=True)


def test_non_finite_meta_is_refused(art: Artifact) -> None:
    with pytest.raises(ValueError, match="JSON"):
        art.write("g0", {}, {"loss": math.nan})
    assert art.units() == {}


@pytest.mark.parametrize("unit", ["", "a/b", "a.b", "..", "a b", "\u00e9", "a\n"])
def test_unit_names_fit_into_file_names(art: Artifact, unit: str) -> None:
    with pytest.raises(AssertionError):
        art.write(unit, {}, {})
    with pytest.raises(AssertionError):
        art.save_checkpoint(unit, {}, {})
    assert not any(file.startswith(art.folder) for file in listing(art.store))


@pytest.mark.parametrize("relpath", ["/etc/x", "../x", "a/../../x"])
def test_nothing_is_written_outside_the_root(store: Store, relpath: str) -> None:
    for use in (lambda: store.put(relpath, b""), lambda: store.folder(relpath)):
        with pytest.raises(AssertionError):
            use()


# --- listing and commit -------------------------------------------------------------------------------------


def test_an_artifact_exists_only_when_it_is_committed(store: Store, art: Artifact) -> None:
    assert art.manifest() is None and art.units() == {} and art.verify() == []
    receipt = art.write("g0", {"x": torch.zeros(3)}, {"n": 1})
    assert art.manifest() is None and list(art.units()) == ["g0"]
    assert art.units()["g0"].sha == receipt.sha256[:12]
    written = commit(art, receipt, seconds=1.5)
    assert written == art.manifest() and written["schema"] == 1 and written["seconds"] == 1.5
    file = art.units()["g0"]
    assert file == ("g0", f"{art.folder}/{receipt.file}", receipt.sha256, receipt.bytes)
    assert listing(store) == {"store.json", file.path, f"{art.folder}/manifest.json"}
    with pytest.raises(Missing, match="g1"):
        art.read("g1")


def test_listing_ignores_what_is_no_unit(store: Store, art: Artifact) -> None:
    art.write("g0", {}, {})
    art.save_checkpoint("g1", {}, {})
    for name in (".tmp-0123", "g1.safetensors", "g1.0123456789ab.pt", "notes.txt", "g1.0123456789AB.parquet"):
        store.put(f"{art.folder}/{name}", b"x")
    assert list(art.units()) == ["g0"]


def test_commit_needs_the_files(art: Artifact) -> None:
    with pytest.raises(Missing):
        commit(art, Receipt("g0", "g0.0123456789ab.safetensors", "0" * 64, 5, {}))
    assert art.manifest() is None


def test_the_first_manifest_stays_and_can_grow(art: Artifact) -> None:
    mine, theirs = (art.write("page0", {"x": torch.full((2,), v)}, {}) for v in (1.0, 2.0))
    first = commit(art, theirs, host="them")
    assert commit(art, mine, host="me") == first == art.manifest()
    assert art.read("page0")[0]["x"][0] == 2
    grown = commit(art, mine, art.write("page1", {}, {}), host="me")
    assert grown == art.manifest() and list(grown["units"]) == ["page0", "page1"]
    assert grown["units"]["page0"]["sha256"] == theirs.sha256, "a committed unit keeps its bits"
    assert commit(art, mine, host="late") == grown


def test_a_unit_whose_file_is_gone_can_be_committed_anew(store: Store, art: Artifact) -> None:
    old = art.write("g0", {"x": torch.zeros(2)}, {})
    commit(art, old)
    store.drop(f"{art.folder}/{old.file}")
    assert [error.why for error in art.verify()] == ["is missing"]
    with pytest.raises(Missing):
        art.read("g0")
    new = art.write("g0", {"x": torch.ones(2)}, {})
    assert commit(art, new)["units"]["g0"]["sha256"] == new.sha256 and art.verify() == []


def test_of_two_files_the_manifests_counts(art: Artifact) -> None:
    receipts = [art.write("g0", {"x": torch.full((2,), float(v))}, {}) for v in range(6)]
    by_name = sorted(receipts, key=lambda receipt: receipt.file)
    assert art.receipt("g0") == by_name[0]
    commit(art, by_name[3])
    assert art.receipt("g0") == by_name[3] and len(art.units()) == 1
    art.remove("g0")
    assert art.units() == {} and art.manifest() is None


def test_racing_builders(tmp_path: Path) -> None:
    """Each builds with other bits; all end with the same manifest, which is whole, and the same bits."""
    store = Store(str(tmp_path))
    start = threading.Barrier(4)

    def build(me: int) -> tuple[dict[str, Any], float]:
        art = store.artifact("recover", KEY)
        receipts = [art.write(f"g{n}", {"x": torch.full((8,), float(me))}, {"me": me}) for n in range(3)]
        start.wait(timeout=30)
        return commit(art, *receipts, by=me), float(art.read("g1")[0]["x"][0])

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(build, range(4)))
    art = store.artifact("recover", KEY)
    final = art.manifest()
    assert (
        final and art.verify() == [] and len({entry["meta"]["me"] for entry in final["units"].values()}) == 1
    )
    assert not [file for file in listing(store) if ".tmp-" in file]
    assert all(manifest == final and bits == final["by"] for manifest, bits in results)


# --- damage -------------------------------------------------------------------------------------------------


def damages(data: bytes) -> Iterator[bytes]:
    """Empty, truncated, longer; and in every byte a flipped bit."""
    yield from (b"", data[:4], data[:-1], data + b"\0")
    yield from (bytes([*data[:i], data[i] ^ (1 << i % 8), *data[i + 1 :]]) for i in range(len(data)))


def write_tensors(art: Artifact) -> Receipt:
    return art.write("g0", {"x": torch.arange(3)}, {"n": 1})


def write_rows(art: Artifact) -> Receipt:
    return art.write_table("g0", pa.table({"b": [b"xyz"]}), {})


@pytest.mark.parametrize("write", [write_tensors, write_rows])
@pytest.mark.parametrize("committed", [False, True])
def test_a_damaged_unit_is_never_read(
    write: Callable[[Artifact], Receipt], committed: bool, tmp_path: Path
) -> None:
    store = Store("mock:///x")
    art = store.artifact("recover", KEY)
    receipt = write(art)
    if committed:
        commit(art, receipt)
    path = art.units()["g0"].path
    for data in list(damages(peek(store, path)))[:: 1 if write is write_tensors else 7]:
        poke(store, path, data)
        for read in (art.read, art.read_table, art.receipt):
            with pytest.raises(Damaged) as caught:
                read("g0")
        assert caught.value.unit == "g0" and caught.value.path == store.path(path)
        assert len(art.verify()) == committed


def test_a_damaged_unit_is_removed_and_rebuilt(store: Store, art: Artifact) -> None:
    receipts = [art.write(f"g{n}", {"x": torch.full((4,), n)}, {}) for n in range(3)]
    commit(art, *receipts)
    poke(store, f"{art.folder}/{receipts[1].file}", b"")
    (error,) = art.verify()
    assert "0 bytes" in str(error) and error.unit == "g1" and (error.stage, error.key) == ("recover", KEY)
    art.remove(error.unit)
    assert art.manifest() is None and list(art.units()) == ["g0", "g2"]
    assert art.write("g1", {"x": torch.full((4,), 1)}, {}) == receipts[1]
    commit(art, *receipts)
    assert art.verify() == [] and list(art.units()) == ["g0", "g1", "g2"]


def test_a_damaged_manifest_is_never_believed(store: Store, art: Artifact) -> None:
    receipt = art.write("g0", {}, {})
    whole = commit(art, receipt, seconds=3.25, host="x")
    path = f"{art.folder}/manifest.json"
    for data in list(damages(peek(store, path)))[:: 1 if store.root.startswith("mock") else 29]:
        poke(store, path, data)
        try:
            assert art.manifest() == whole
        except Damaged as error:
            assert error.unit == "manifest"
        except ConfigError as error:
            assert "schema" in str(error)
    poke(store, path, b"{")
    with pytest.raises(Damaged):
        commit(art, receipt)
    art.remove("manifest")
    assert list(art.units()) == ["g0"] and commit(art, receipt) == art.manifest()


def test_crash_between_units_and_manifest(art: Artifact) -> None:
    """A new process finds the finished units, and nothing that claims to be whole."""
    receipts = [art.write(f"g{n}", {"x": torch.full((2,), n)}, {"n": n}) for n in range(2)]
    later = Artifact(art.store, "recover", KEY)
    assert later.manifest() is None and [later.receipt(unit) for unit in later.units()] == receipts


# --- checkpoints --------------------------------------------------------------------------------------------


def test_two_checkpoints_are_kept(store: Store, art: Artifact) -> None:
    assert art.load_checkpoint("g0") is None
    for n in range(12):
        art.save_checkpoint("g0", {"x": torch.full((3,), n)}, {"done": n})
        found = art.load_checkpoint("g0")
        assert found and found[1] == {"done": n} and found[0]["x"].eq(n).all()
    art.save_checkpoint("g00", {}, {})
    files = sorted(file for file in listing(store) if "/checkpoints/" in file)
    assert [file.split("/")[-1].split(".")[:2] for file in files] == [
        ["g0", "00000010"], ["g0", "00000011"], ["g00", "00000000"],
    ]  # fmt: skip
    assert art.units() == {}
    art.drop_checkpoints("g0")
    assert art.load_checkpoint("g0") is None and art.load_checkpoint("g00") == ({}, {})


def test_the_newest_whole_checkpoint_counts(
    store: Store, art: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(2):
        art.save_checkpoint("g0", {}, {"done": n})
    old, new = sorted(file for file in listing(store) if "/checkpoints/" in file)
    for data in list(damages(peek(store, new)))[::9]:
        poke(store, new, data)
        assert art.load_checkpoint("g0") == ({}, {"done": 0})
        assert "checkpoint skipped" in caplog.text and store.path(new) in caplog.text
    poke(store, old, b"")
    assert art.load_checkpoint("g0") is None
    art.save_checkpoint("g0", {}, {"done": 2})
    assert art.load_checkpoint("g0") == ({}, {"done": 2})


# --- the store itself ---------------------------------------------------------------------------------------


def test_small_files(store: Store) -> None:
    assert not store.exists("sweeps/a/best.yaml") and store.get("sweeps/a/best.yaml") is None
    for data in (b"one", b"", b"\0\xff\r\n"):
        store.put("sweeps/a/best.yaml", data)
        assert store.get("sweeps/a/best.yaml") == data
    assert store.exists("sweeps/a/best.yaml") and store.exists("sweeps/a") and not store.exists("sweeps/b")
    assert listing(store) == {"store.json", "sweeps/a/best.yaml"}


def test_folder_is_for_other_programs(store: Store) -> None:
    folder = store.folder("sweeps/b")
    assert folder == store.path("sweeps", "b") == store.root + "/sweeps/b"
    assert Path(folder).is_dir() if store.local else folder == "mock:///bucket/runs/sweeps/b"


def test_lines(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    assert store.read_lines("log/reads.jsonl") == []
    lines = [{"n": n, "why": "\u00e9\nline\u2028"} for n in range(3)]
    for line in lines:
        store.append_line("log/reads.jsonl", line)
    assert store.read_lines("log/reads.jsonl") == lines
    poke(store, "log/reads.jsonl", b'{"n": 1}\n{"n": \xff\n\n{"n": 3}\n{"n"')
    assert store.read_lines("log/reads.jsonl") == [{"n": 1}, {"n": 3}] and "torn" in caplog.text


def test_lines_of_many_writers(tmp_path: Path) -> None:
    def append(n: int) -> None:
        Store(str(tmp_path)).append_line("reads.jsonl", {"n": n, "pad": "x" * 500})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, range(60)))
    assert sorted(line["n"] for line in Store(str(tmp_path)).read_lines("reads.jsonl")) == list(range(60))


def test_a_store_of_another_schema_is_refused(store: Store) -> None:
    art = store.artifact("recover", KEY)
    store.check()
    assert listing(store) == set(), "only looking writes nothing"
    art.manifest(), art.units(), art.load_checkpoint("g0"), store.read_lines("x")
    assert listing(store) == set()
    store._fs.create_dir(store._base, recursive=True)
    for stamp in (b'{"schema": 2}', b"", b"[]"):
        poke(store, "store.json", stamp)
        uses: list[Callable[[], Any]] = [
            store.check, art.manifest, art.units, lambda: art.read("g0"), lambda: art.write("g0", {}, {}),
            lambda: store.put("x", b""), lambda: store.append_line("x", {}),
            lambda: store.folder("x"), lambda: store.exists("x"),
        ]  # fmt: skip
        for use in uses:
            with pytest.raises(ConfigError, match=r"runtime\.store.*schema 1.*another store"):
                use()
    assert listing(store) == {"store.json"}
    poke(store, "store.json", b'{"schema": 1}')
    art.write("g0", {}, {})


def test_a_manifest_of_another_schema_is_refused(store: Store, art: Artifact) -> None:
    store.put(f"{art.folder}/manifest.json", json.dumps({"schema": 2, "parts": []}).encode())
    for use in (art.manifest, art.units, art.verify, lambda: commit(art)):
        with pytest.raises(ConfigError, match="schema 1"):
            use()


def test_check_of_unusable_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch(mode=0o777)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "closed").mkdir(mode=0o500)
    for name in ("file", "file/below/it", "dangling", "dangling/x", "closed", "closed/x"):
        if name.startswith("closed") and os.access(tmp_path / "closed", os.W_OK):
            continue  # the superuser may write everywhere
        with pytest.raises(ConfigError, match="is not a folder that one may write to") as caught:
            Store(str(tmp_path / name)).check()
        assert caught.value.path == "runtime.store" and caught.value.value == str(tmp_path / name)
    for root in ("nosuch://x/y", "a b://c"):
        with pytest.raises(ConfigError, match="URI"):
            Store(root)
    monkeypatch.chdir(tmp_path)
    for name in ("new", "new/deep/er", ".", "~"):
        monkeypatch.setenv("HOME", str(tmp_path / "new"))
        Store(name).check()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["closed", "dangling", "file"]
    (tmp_path / "store.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        Store(".").check()


def test_relative_roots_stay_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("runs/")
    monkeypatch.chdir("/")
    store.put("x", b"1")
    assert (tmp_path / "runs" / "x").read_bytes() == b"1" and store.path("x") == str(tmp_path / "runs" / "x")


def test_uris_keep_their_query() -> None:
    uri = "s3://bucket/runs/?region=us-east-1&scheme=http"
    store = Store(uri)
    assert store.path("a", "b") == "s3://bucket/runs/a/b?region=us-east-1&scheme=http"
    assert store.root == uri and store._base == "bucket/runs"
    assert pickle.loads(pickle.dumps(store)).root == uri


@pytest.mark.parametrize("user", ["", "anonymous@"])
def test_google_cloud_goes_through_the_same_interface(user: str) -> None:
    """As far as it can be told without the cloud: the URI is understood, and nothing is asked."""
    store = Store(f"gs://{user}bucket/runs?endpoint_override=localhost:1&scheme=http&retry_limit_seconds=1")
    assert (store._fs.type_name, store._base, store.local) == ("gcs", "bucket/runs", False)
    assert store.path("a").startswith(f"gs://{user}bucket/runs/a?endpoint_override=")
    assert pickle.loads(pickle.dumps(store)).root == store.root
    with pytest.raises(ConfigError, match="Unexpected query parameter"):
        Store("gs://bucket/runs?nonsense=1")


def test_a_store_with_credentials_in_its_uri_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^runtime.store = 's3://\*\*\*@b': must have no credentials"):
        Store("s3://AKIA:hidden@b")


def test_errors_of_the_disk_name_the_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    art = Store(str(tmp_path / "file")).artifact("recover", KEY)
    for use in (lambda: art.write("g0", {}, {}), art.units, art.manifest, lambda: art.store.read_lines("x")):
        with pytest.raises(StoreError, match=str(tmp_path)):
            use()
    with pytest.raises(StoreError) as caught:
        Store(str(tmp_path)).artifact("file", "0" * 12).store.append_line("file/x", {})
    assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of a file stands for the full disk: the write fails half-way, in the same place."""
    store = Store(str(tmp_path))
    art = store.artifact("recover", KEY)
    art.write("g0", {}, {"n": 0})
    art.save_checkpoint("g1", {}, {"n": 1})
    before = listing(store)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(StoreError) as unit:
            art.write("g1", {"x": torch.zeros(10**5)}, {})
        with pytest.raises(StoreError) as checkpoint:
            art.save_checkpoint("g1", {"x": torch.zeros(10**5)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(store) == before and art.load_checkpoint("g1") == ({}, {"n": 1})
    for error in (unit.value, checkpoint.value):
        assert (error.stage, error.unit, error.errno) == ("recover", "g1", errno.EFBIG)
        assert "stage recover, unit g1: File too large" in str(error) and str(tmp_path) in str(error)


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some mounts have none."""

    def link(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", link)
    store = Store(str(tmp_path))
    art = store.artifact("recover", KEY)
    first = commit(art, art.write("g0", {}, {}))
    assert first == commit(art, art.write("g0", {}, {"other": 1})) == art.manifest()
    assert not [file for file in listing(store) if ".tmp-" in file]


@pytest.mark.parametrize(
    "value",
    [
        Missing("recover", KEY, "g0", "/x"),
        Damaged("recover", KEY, "g0", "/x", "has 0 bytes instead of 8"),
        StoreError("recover", "g0", "/x", errno.ENOSPC, "No space left on device"),
        StoreError("", "store", "s3://x", None, "AWS says no"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_readable_and_cross_processes(value: Exception) -> None:
    back = pickle.loads(pickle.dumps(value))
    assert type(back) is type(value) and back.__dict__ == value.__dict__ and back.args == value.args
    assert str(back) == str(value) and "/x" in str(value) and "\n" not in str(value)
    assert getattr(back, "errno", None) == getattr(value, "errno", None)


def test_values_cross_processes(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    receipt = store.artifact("recover", KEY).write("g0", {"x": torch.ones(1)}, {"n": 1})
    assert pickle.loads(pickle.dumps(receipt)) == receipt
    art = pickle.loads(pickle.dumps(store)).artifact("recover", KEY)
    assert art.receipt("g0") == receipt


def test_only_one_process_is_alone(tmp_path: Path) -> None:
    store, name = Store(str(tmp_path)), "sweeps/a/driver.lock"
    with store.alone(name), pytest.raises(BlockingIOError), Store(str(tmp_path)).alone(name):
        pass
    with store.alone(name):  # given back
        pass


@pytest.mark.parametrize("tail", [b"", b'{"op_code": 3, "wor'])
def test_a_torn_last_line_is_cut(tmp_path: Path, tail: bytes) -> None:
    store, whole = Store(str(tmp_path)), b'{"a": 1}\n{"b": 2}\n'
    store.put("sweeps/a/study.journal", whole + tail)
    store.put("sweeps/a/study.journal.lock", b"")
    store.mend_lines("sweeps/a/study.journal")
    assert store.get("sweeps/a/study.journal") == whole
    assert not store.exists("sweeps/a/study.journal.lock")
    store.mend_lines("sweeps/b/study.journal")  # nothing there
