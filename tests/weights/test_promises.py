"""Files that promise more than they hold: refused in one sentence, in little memory, by every reader of weights."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from crc32c import crc32c
from torch import Tensor

from igpt import ImageGPT
from igpt.errors import UsageError
from igpt.model import ImageGPT as Model
from igpt.palette import Palette
from igpt.weights.huggingface import write_huggingface
from igpt.weights.own import load_tensors, save_weights

STEP = "model.ckpt-1000000"
FIXTURE = Path(__file__).parent / "released_format" / "autoregressive"
MEMORY = 2**29  # bytes beyond what Python and its libraries take: hundreds of times what any file here holds

# Opens each folder under a limit of memory; a time limit of processor seconds stands for what would never end.
OPEN_ALL = f"""
import json, resource, sys
from igpt import ImageGPT
from igpt.errors import UsageError
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + {MEMORY}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
said = {{}}
for where in json.load(sys.stdin):
    try:
        said[where] = "opened with shape " + str(ImageGPT.from_pretrained(where).shape)
    except UsageError as error:
        said[where] = str(error)
json.dump(said, sys.stdout)
"""


def ours(folder: Path, model: Model, greys: Palette) -> Path:
    save_weights(folder, model, greys)
    return folder / "model.safetensors"


def huggingface(folder: Path, model: Model, greys: Palette) -> Path:
    write_huggingface(folder, model)
    return folder / "model.safetensors"


def pickled(folder: Path, model: Model, greys: Palette) -> Path:
    write_huggingface(folder, model)
    tensors = {name: t.clone() for name, t in load_tensors(folder / "model.safetensors")[0].items()}
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


MAKES = {"ours": ours, "huggingface": huggingface, "pickled": pickled}
LARGE: dict[str, dict[str, object]] = {
    "the nine gigabytes": {"n_layer": 200, "n_embd": 8192},
    "a negative width": {"n_embd": -128},
    "no heads": {"n_head": 0},
    "two billion positions": {"n_ctx": 2**31, "n_positions": 2**31},
    "one billion positions": {"n_ctx": 2**30, "n_positions": 2**30},
    "a billion blocks": {"n_layer": 10**9},
    "more blocks than memory": {"n_layer": 10**18},
    "a wide block": {"n_embd": 2**24},
    "a number of four thousand digits": {"n_embd": 10**4000},
    "a float": {"n_layer": 2.0},
    "a word": {"n_layer": "2" * 10**6},
    "true": {"n_layer": True},
    "null": {"n_embd": None},
    "a list": {"n_head": [[[2]]]},
}


def promising_pickle(path: Path, tensors: dict[str, Tensor]) -> None:
    """A pickle that fits the configuration to the letter: 161 thousand million numbers, each matrix of one that is repeated."""
    config = json.loads((path.parent / "config.json").read_text())
    (path.parent / "config.json").write_text(json.dumps({**config, "n_layer": 200, "n_embd": 8192}))
    grown = {}
    for name, tensor in tensors.items():
        size = [8192 // 16 * length if length % 16 == 0 else length for length in tensor.shape]
        layers = range(200) if ".1." in name else [0] if ".0." not in name else []
        grown |= {name.replace(".1.", f".{layer}."): torch.zeros(1).expand(size) for layer in layers}
    torch.save(grown, path)


NESTED = {  # each doubled at sixty levels, which would be hashed or printed without end
    "tuples": b"\x80\x02})q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60)) + b"K\x01s.",
    "lists": b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b")R.",
    "growing lists": b"\x80\x02"
    + b"".join(b"]q%c" % i for i in range(61))
    + b"".join(b"h%c(h%ch%ce" % (i + 1, i, i) for i in reversed(range(60)))
    + b")R.",
}


class Bytes:
    """Unpickles as so many bytes."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return bytearray, (10**12,)


def replaced_pickle(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """Another pickle in the same archive."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, entry in entries.items():
            archive.writestr(name, content if name.endswith("data.pkl") else entry)


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def block(entries: list[tuple[bytes, bytes]], shared: int = 0) -> bytes:
    """A block of a LevelDB table with right checksums; ``shared`` bytes of each key are those of the one before."""
    body = b""
    for number, (key, value) in enumerate(entries):
        kept = shared if number else 0
        body += varint(kept) + varint(len(key)) + varint(len(value)) + key + value
    body += struct.pack("<II", 0, 1) + b"\0"
    crc = crc32c(body)
    return body + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def index_of(blocks: list[bytes], *, times: int = 1) -> bytes:
    """An index of such blocks, each named so many times."""
    content, handles = b"", []
    for one in blocks:
        handles += [varint(len(content)) + varint(len(one) - 5)] * times
        content += one
    outer = block([(b"x", handle) for handle in handles])
    footer = varint(0) + varint(0) + varint(len(content)) + varint(len(outer) - 5)
    return content + outer + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def entry(*shape: int) -> bytes:
    """A variable of float32 in the first shard."""
    dims = b"".join(b"\x12" + varint(len(d)) + d for d in (b"\x08" + varint(n) for n in shape))
    size = 4
    for n in shape:
        size *= n
    return b"\x08\x01" + b"\x12" + varint(len(dims)) + dims + (b"\x28" + varint(size) if size < 2**63 else b"")


HEADER = (b"", b"\x08\x01")


def variables(n_embd: int, last: int) -> list[tuple[bytes, bytes]]:
    """Names that tell a model's shape, of so many blocks."""
    named = {
        "model/wte": entry(8, n_embd),
        "model/wpe": entry(9, n_embd),
        "model/sos": entry(n_embd),
        "model/h0/attn/q_proj": entry(1, n_embd, n_embd),
        f"model/h{last}/ln_1/g": entry(n_embd),
    }
    return [HEADER, *((name.encode(), value) for name, value in sorted(named.items()))]


INDICES = {
    "wide": index_of([block(variables(2**20, 0))]),
    "deep": index_of([block(variables(16, 999_999))]),
    "deeper": index_of([block(variables(16, 10**30))]),
    "overflowing": index_of([block(variables(2**31, 0))]),
    "long names": index_of([block([HEADER, (b"a" * 100_000, b""), *[(b"b", b"")] * 20_000], shared=99_999)]),
    "one block many times": index_of([block([HEADER, *((b"%06d" % n, b"") for n in range(9_000))])], times=9_000),
    "many shards": index_of([block([(b"", b"\x08" + varint(10**15)), *variables(16, 0)[1:]])]),
}


def test_no_file_takes_more_memory_than_it_holds(model: Model, greys: Palette, tmp_path: Path) -> None:
    good, bad = [], {}
    for make, write in MAKES.items():
        good.append(tmp_path / make)
        write(tmp_path / make, model, greys)
        for label, change in LARGE.items():
            folder = tmp_path / f"{make}, {label}"
            shutil.copytree(tmp_path / make, folder)
            config = json.loads((folder / "config.json").read_text())
            change = {name: value for name, value in change.items() if name in config} if len(change) > 1 else change
            (folder / "config.json").write_text(json.dumps({**config, **change}))
            bad[folder] = r"config.json de|config.json does not de"
        for label, content in {
            "deep": b"[" * 100_000,
            "twice": b'{"n_layer": 2, "n_layer": 2}',
            "no text": b"\xff\xfe\xff",
            "huge": None,
        }.items():
            folder = tmp_path / f"{make}, {label} config"
            shutil.copytree(tmp_path / make, folder)
            if content is not None:
                (folder / "config.json").write_bytes(content)
            else:
                os.truncate(folder / "config.json", 500 * 2**20)
            bad[folder] = "config.json does not describe an Image GPT"
    for label in ("promising", "bytes", "compressed"):
        shutil.copytree(tmp_path / "pickled", tmp_path / label)
        bad[tmp_path / label] = "config.json describes a model of 200 blocks" if label == "promising" else "is damaged"
    tensors = torch.load(tmp_path / "pickled" / "pytorch_model.bin")
    promising_pickle(tmp_path / "promising" / "pytorch_model.bin", tensors)
    replaced_pickle(tmp_path / "bytes" / "pytorch_model.bin", pickle.dumps({"a": Bytes()}, 2))
    for label, content in NESTED.items():
        shutil.copytree(tmp_path / "pickled", tmp_path / label)
        bad[tmp_path / label] = "is damaged"
        replaced_pickle(tmp_path / label / "pytorch_model.bin", content)
    replaced_pickle(tmp_path / "compressed" / "pytorch_model.bin", b"N" * 10**9, zipfile.ZIP_DEFLATED)
    for label, content in INDICES.items():
        (tmp_path / label).mkdir()
        (tmp_path / label / f"{STEP}.index").write_bytes(content)
        (tmp_path / label / f"{STEP}.data-00000-of-00001").write_bytes(bytes(10_000))
        bad[tmp_path / label / STEP] = "is damaged|is not a checkpoint|describes a model|lacks"

    def in_little_time() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (300, 300))

    places = [str(path) for path in (*good, *bad)]
    done = subprocess.run(
        [sys.executable, "-c", OPEN_ALL], input=json.dumps(places), capture_output=True, text=True, preexec_fn=in_little_time
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert all(said[str(path)].startswith("opened") for path in good), said
    for path, message in bad.items():
        sentence = said[str(path)]
        assert str(path) in sentence and any(part in sentence for part in message.split("|")), (path.name, sentence[:300])
        assert "\n" not in sentence and len(sentence) < 1000


@pytest.mark.parametrize("write", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: copy it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 306\n",
            "is a pointer of git-lfs, .* `git lfs pull`",
        ),
        (b"<!DOCTYPE html>\n<html><title>404</title>", "is a text that begins with '<!DOCTYPE html>.*: download it again"),
        (b"Entry not found", "is a text that begins with 'Entry not found'.*: download it again"),
        (b"PK\x03\x04" + bytes(100), "is a zip archive, .*: unpack it|is cut short, or no zip archive"),
        (b"\x1f\x8b" + bytes(100), "is damaged .*: copy it again"),
        (None, "is damaged .*: copy it again"),
    ],
    ids=["empty", "lfs", "page", "text", "zip", "gzip", "cut"],
)
def test_another_file_under_the_name_of_weights_is_called_what_it_is(
    write: Callable[..., Path], content: bytes | None, message: str, model: Model, greys: Palette, tmp_path: Path
) -> None:
    path = write(tmp_path / "w", model, greys)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UsageError, match=message) as caught:
        ImageGPT.from_pretrained(tmp_path / "w")
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("write", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("name", ["config.json", "weights"])
def test_a_folder_or_a_pipe_in_place_of_a_file_is_one_sentence(
    write: Callable[..., Path], name: str, model: Model, greys: Palette, tmp_path: Path
) -> None:
    path = write(tmp_path / "w", model, greys)
    path = path if name == "weights" else path.with_name(name)
    for make, reason in ((Path.mkdir, "it is a folder"), (os.mkfifo, "it is no regular file")):
        path.rmdir() if path.is_dir() else path.unlink()
        make(path)
        with pytest.raises(UsageError, match=rf"cannot be read \({reason}\)"):
            ImageGPT.from_pretrained(tmp_path / "w")


def test_a_pointer_of_git_lfs_in_place_of_a_released_file_is_called_one(tmp_path: Path) -> None:
    shutil.copytree(FIXTURE, tmp_path / "c")
    for name in (f"{STEP}.data-00001-of-00004", f"{STEP}.index"):
        (tmp_path / "c" / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 306\n")
        with pytest.raises(UsageError, match=f"{name} is a pointer of git-lfs"):
            ImageGPT.from_pretrained(tmp_path / "c" / STEP)


@pytest.mark.parametrize(
    "bias", [torch.tensor(0.0), torch.zeros(47), torch.zeros(48, dtype=torch.int64), torch.full((48,), torch.nan), torch.ones(47)],
    ids=["scalar", "short", "integers", "nan", "ones"],
)  # fmt: skip
def test_a_bias_of_another_kind_is_refused(bias: Tensor, model: Model, greys: Palette, tmp_path: Path) -> None:
    path = pickled(tmp_path / "w", model, greys)
    tensors = torch.load(path)
    tensors["transformer.h.0.attn.c_attn.bias"] = bias
    torch.save(tensors, path)
    with pytest.raises(UsageError, match=r"h\.0\.attn\.c_attn\.bias"):
        ImageGPT.from_pretrained(tmp_path / "w")


def test_what_is_not_read_is_said_in_its_own_words(model: Model, greys: Palette, tmp_path: Path) -> None:
    from igpt.weights.onnx import write_onnx

    write_onnx(tmp_path / "onnx", model, greys)
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "file").write_text("weights")
    for name, message in {
        "onnx": "holds ONNX, which is written but not read",
        "gpt2": "describes a model of another kind .'gpt2'.",
        "file": "is a file: give the folder",
    }.items():
        with pytest.raises(UsageError, match=message):
            ImageGPT.from_pretrained(tmp_path / name)
