from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from official import COLOURS, refusal

from igpt.data import store
from igpt.data.store import HEADER, LABELS, VERSION, Header, TokenStore, read_tokens, shard_path, write_header
from igpt.errors import UsageError
from igpt.files import write_array
from igpt.palette import Palette

IMAGES = 19
TOKENS = np.random.default_rng(0).integers(0, 512, (IMAGES, 16)).astype(np.uint16)
HEAD = Header(
    version=VERSION, dataset="cifar10", split="test", resolution=4, filter="bicubic", crops=0, seed=0,
    palette_sha256=COLOURS.digest, images=IMAGES, held_out_sha256="",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of three shards: 8, 8 and 3 images."""
    monkeypatch.setattr(store, "SHARD", 8)
    for place in range(3):
        write_array(shard_path(tmp_path, place), TOKENS[8 * place : 8 * place + 8])
    write_array(tmp_path / LABELS, np.arange(IMAGES))
    write_header(tmp_path / HEADER, HEAD)
    return tmp_path


def every(folder: Path) -> NDArray[np.uint16]:
    return TokenStore(folder)[np.arange(IMAGES)]


def test_tokens_come_back_in_any_order_and_any_number(folder: Path) -> None:
    found = TokenStore(folder)
    assert len(found) == IMAGES and found.positions == 16 and found.labels.tolist() == list(range(IMAGES))
    indices = np.array([18, 0, 7, 8, 7, 15, 16])
    np.testing.assert_array_equal(found[indices], TOKENS[indices])
    assert found[indices].dtype == np.uint16 and found[indices].flags.writeable
    assert found[np.array([], np.int64)].shape == (0, 16)
    np.testing.assert_array_equal(every(folder), TOKENS)


@pytest.mark.parametrize("indices", [[-1], [19], [0, 19], [-1, 3]])
def test_an_index_outside_is_an_index_error(folder: Path, indices: list[int]) -> None:
    with pytest.raises(IndexError, match="are not all in a store of 19"):
        TokenStore(folder)[np.array(indices)]


def test_opening_reads_no_shard(folder: Path) -> None:
    for place in range(3):
        shard_path(folder, place).write_bytes(b"not to be looked at")
    found = TokenStore(folder)
    assert len(found) == IMAGES
    refusal(found.__getitem__, np.array([0]))


def test_a_store_of_another_palette_or_size_is_refused(folder: Path, greys: Palette) -> None:
    found = TokenStore(folder)
    found.check_for(COLOURS, positions=16)
    assert "another palette" in refusal(found.check_for, greys, positions=16)
    assert "holds images of 4 x 4, the model takes 8 x 8" in refusal(found.check_for, COLOURS, positions=64)


def test_a_token_that_the_palette_lacks_is_refused_where_it_is_read(folder: Path) -> None:
    write_array(shard_path(folder, 1), np.where(TOKENS[8:16] % 16 == 3, 16, TOKENS[8:16] % 16).astype(np.uint16))
    for place in (0, 2):
        write_array(shard_path(folder, place), TOKENS[8 * place : 8 * place + 8] % 16)
    found = TokenStore(folder)
    found.check_for(COLOURS, positions=16)
    assert len(found[np.arange(8)]) == 8
    assert "has the token 16, its palette only 16 colours: move the folder away" in refusal(found.__getitem__, np.arange(7, 10))


def test_an_unfinished_store_and_no_store_are_told(tmp_path: Path, folder: Path) -> None:
    (folder / HEADER).unlink()
    for place in (folder, tmp_path / "none", shard_path(folder, 0)):
        assert "`igpt data tokenize` makes and continues one" in refusal(TokenStore, place)


@pytest.mark.parametrize("place", range(3))
def test_a_missing_shard_is_named(folder: Path, place: int) -> None:
    shard_path(folder, place).unlink()
    assert refusal(TokenStore, folder).startswith(f"{shard_path(folder, place)} is missing: move {folder} away")


def test_other_labels_are_refused(folder: Path) -> None:
    path = folder / "labels.npy"
    whole = path.read_bytes()
    for content in (b"", b"words", whole[:-8], whole[:50], b"PK\x03\x04" + whole):
        path.write_bytes(content)
        assert refusal(lambda: TokenStore(folder).labels).endswith(f": move {folder} away and tokenise again")
    for labels in (np.arange(IMAGES - 1), np.arange(IMAGES).astype(float), np.zeros((IMAGES, 1), np.int64)):
        np.save(path, labels)
        assert refusal(lambda: TokenStore(folder).labels).startswith(str(path))
    path.unlink()
    assert refusal(lambda: TokenStore(folder).labels).startswith(str(path))


@pytest.mark.parametrize(
    "tokens",
    [
        TOKENS[:7],
        TOKENS[:9],
        TOKENS[:8, :15],
        TOKENS[:8].astype(np.int64),
        TOKENS[:8].astype(">u2"),
        TOKENS[:8, :, None],
        TOKENS[:8].astype(np.int16),
    ],
    ids=["fewer", "more", "narrower", "wider numbers", "other byte order", "another axis", "signed"],
)
def test_a_shard_of_another_shape_is_refused(folder: Path, tokens: NDArray[np.generic]) -> None:
    np.save(shard_path(folder, 0), tokens)
    assert refusal(every, folder).startswith(f"{shard_path(folder, 0)} holds ")


@pytest.mark.parametrize("size", [0, 5, 9, 40, 127, 128, 200, 383])
def test_a_shard_cut_short_is_refused(folder: Path, size: int) -> None:
    path = shard_path(folder, 1)
    assert path.stat().st_size == 384
    path.write_bytes(path.read_bytes()[:size])
    text = refusal(every, folder)
    assert text.startswith(f"{path} is ") and text.endswith(f": move {folder} away and tokenise again")


def test_a_shorter_head_does_not_shift_the_tokens(folder: Path) -> None:
    path = shard_path(folder, 1)
    content = bytearray(path.read_bytes())
    content[8] -= 32  # the length of the head, which ends in spaces
    path.write_bytes(content)
    assert refusal(every, folder).startswith(f"{path} is damaged")


def test_a_pickle_in_the_place_of_a_shard_is_not_opened(folder: Path) -> None:
    np.save(shard_path(folder, 0), np.array([print], dtype=object), allow_pickle=True)
    assert "is damaged" in refusal(every, folder)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 127), byte=st.integers(0, 255))
def test_a_changed_byte_of_a_shards_head_is_the_shard_or_a_sentence(folder: Path, place: int, byte: int) -> None:
    path = shard_path(folder, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
    try:
        np.testing.assert_array_equal(every(folder), TOKENS)
    except UsageError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    finally:
        path.write_bytes(whole)


HEADERS = {
    "empty": b"",
    "words": b"words",
    "bytes": b"\xff\xfe\x00",
    "a list": b"[]",
    "a number": b"1",
    "deep": b"[" * 100_000,
    "nothing": b"{}",
    "another version": json.dumps({**HEAD.model_dump(), "version": VERSION + 1}).encode(),
    "one field more": json.dumps({**HEAD.model_dump(), "more": 1}).encode(),
    "words for a number": json.dumps({**HEAD.model_dump(), "images": "19"}).encode(),
    "validation": json.dumps({**HEAD.model_dump(), "split": "validation"}).encode(),
    "fewer images than none": json.dumps({**HEAD.model_dump(), "images": -1}).encode(),
    "no pixels": json.dumps({**HEAD.model_dump(), "resolution": 0}).encode(),
    "cut": (json.dumps(HEAD.model_dump()).encode())[:-9],
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS.keys())
def test_a_damaged_header_is_refused(folder: Path, content: bytes) -> None:
    (folder / HEADER).write_bytes(content)
    assert str(folder) in refusal(TokenStore, folder)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_byte_of_a_header_is_a_store_or_a_sentence(folder: Path, data: st.DataObject) -> None:
    whole = json.dumps(HEAD.model_dump(), indent=1).encode()
    place, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    (folder / HEADER).write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
    try:
        TokenStore(folder)
    except UsageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("array", "message"),
    [(np.zeros((2, 2)), "float64"), (np.zeros(3, np.int64), "(3,)"), (np.array([["a"]]), "<U1")],
)
def test_what_is_not_tokens_is_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", array)
    text = refusal(read_tokens, tmp_path / "tokens.npy")
    assert "tokens are integers" in text and message in text


def test_damaged_and_missing_token_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npy"
    assert refusal(read_tokens, path) == f"{path} is missing: get it again"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "not an array of tokens" in refusal(read_tokens, path)
    path.write_bytes(b"\x93NUMPY")
    assert "not an array of tokens" in refusal(read_tokens, path)
    np.save(path, TOKENS)
    np.testing.assert_array_equal(read_tokens(path), TOKENS)
    whole = path.read_bytes()
    for content in (whole + b"1", whole[:-1]):
        path.write_bytes(content)
        assert "not an array of tokens" in refusal(read_tokens, path)
