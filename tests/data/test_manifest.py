"""The manifest: read with one set of messages whatever the kind of data, and checksums."""

import json
import os

import numpy as np
import pytest
from fairseq.data import Dictionary

from megalodon_tasks.data import manifest as manifests
from megalodon_tasks.data import verified
from megalodon_tasks.data.corpus import CorpusForm, Document, read_corpus
from megalodon_tasks.data.manifest import MANIFEST, Manifest, is_prepared, sha256_of
from megalodon_tasks.data.sequences import PreparedDataset
from megalodon_tasks.recipes.imagenet.image_tree import ImageTree
from tests.data.prepared import reader_of, write_form, write_random

SPLITS = ("train", "valid", "test")


@pytest.fixture
def folder(tmp_path):
    write_random(tmp_path)
    return tmp_path


def write_corpus(folder):
    folder.mkdir()
    Dictionary().save(str(folder / "dict.txt"))
    form = CorpusForm("books", {}, "counted", {"kind": "bytes"}, 260, extra_files=())
    documents = [Document("a", (np.array([4, 5, 2]),), 1, 2, 2)]
    write_form(folder, form, {split: reader_of(documents) for split in SPLITS})


def test_a_folder_without_data_is_named(tmp_path):
    for opened in (PreparedDataset, ImageTree, read_corpus):
        with pytest.raises(ValueError, match=f"{tmp_path / 'none'} does not exist"):
            opened(tmp_path / "none")
        with pytest.raises(ValueError, match=f"{tmp_path} is empty: manifest.json is missing"):
            opened(tmp_path)
    (tmp_path / "something").touch()
    for opened in (PreparedDataset, ImageTree, read_corpus):
        with pytest.raises(ValueError, match="holds no prepared data: manifest.json is missing"):
            opened(tmp_path)
    assert not is_prepared(tmp_path)


@pytest.mark.parametrize("name", ["dataset.json", "corpus.json", "images.json"])
def test_data_of_an_earlier_version_is_refused(tmp_path, name):
    (tmp_path / name).write_text("{}")
    (tmp_path / "dict.txt").touch()
    for opened in (PreparedDataset, ImageTree, read_corpus):
        with pytest.raises(ValueError, match=f"{name} was written by an earlier version .* again"):
            opened(tmp_path)


def test_data_of_another_kind_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="holds prepared sequences .'listops'. where corpus"):
        read_corpus(folder)
    write_corpus(tmp_path / "books")
    for opened in (PreparedDataset, ImageTree):
        with pytest.raises(ValueError, match="holds prepared corpus .'books'. where"):
            opened(tmp_path / "books")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "tfrecord"}, "has format 'tfrecord', version 2; this program reads"),
        ({"version": 1}, "version 1; this program reads 'megalodon-data', version 2; prepare"),
        ({"classes": None}, r"is damaged \(TypeError"),
        ({"splits": {"train": {"items": 3}}}, r"is damaged \(TypeError"),
        ({"form": {}}, r"is damaged \(KeyError: 'input'\)"),
        ({"files": {"train.labels.bin": {}}}, r"is damaged \(TypeError: files is"),
        ({"surplus": 1}, r"is damaged \(TypeError"),
    ],
)
def test_a_manifest_of_another_form_is_refused(folder, changes, message):
    path = folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        PreparedDataset(folder)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "holds list")])
def test_a_manifest_that_is_no_object_is_refused(folder, text, message):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=f"manifest.json {message}"):
        Manifest.read(folder)


@pytest.mark.parametrize("part", ["labels", "inputs", "inputs.offsets"])
def test_truncated_file_is_found_on_opening(folder, part):
    path = folder / f"valid.{part}.bin"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path} has {size - 1} bytes, expected {size} bytes"):
        PreparedDataset(folder)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path} is missing"):
        PreparedDataset(folder)


def change_byte(path):
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["inputs", "inputs.offsets", "labels"])
def test_a_changed_byte_is_found_on_opening(folder, part):
    path = folder / f"test.{part}.bin"
    PreparedDataset(folder)
    change_byte(path)
    with pytest.raises(ValueError, match=f"{path} is damaged: its sha256"):
        PreparedDataset(folder)


def test_a_large_file_is_compared_once_and_when_it_was_written(
    folder, tmp_path_factory, monkeypatch
):
    cache, read = tmp_path_factory.mktemp("cache"), []
    monkeypatch.setenv(verified.CACHE_VARIABLE, str(cache))
    monkeypatch.setattr(verified, "LARGE_BYTES", 100)
    monkeypatch.setattr(manifests, "sha256_of", lambda path, *more: read.append(path) or sha(path))
    sha, path = sha256_of, folder / "train.inputs.bin"
    for expected in (True, False):
        read.clear()
        Manifest.read(folder)
        assert (path in read) == expected
    os.utime(path)
    Manifest.read(folder)
    assert path in read
    for broken in ("[]", "{", '{"train.inputs.bin": 3}'):
        for record in cache.iterdir():
            record.write_text(broken)
        read.clear()
        Manifest.read(folder)
        assert path in read
    change_byte(path)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{path} is damaged"):
            Manifest.read(folder)


def test_changed_byte_is_found_by_verify(folder):
    manifest, path, counts = Manifest.read(folder), folder / "test.inputs.bin", []
    manifest.verify(counts.append)
    assert sum(counts) == manifest.total_bytes
    change_byte(path)
    with pytest.raises(ValueError, match=f"{path} is damaged: its sha256"):
        manifest.verify()


OUTSIDE = ["../secret.bin", "/etc/hostname", "a/../../secret.bin", "link/secret.bin"]


def renamed(folder, change):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("where", ["files", "splits"])
def test_names_in_a_manifest_stay_in_its_folder(folder, tmp_path_factory, where, name):
    secret = tmp_path_factory.mktemp("elsewhere")
    (secret / "secret.bin").write_bytes(b"12345678")
    (folder / "link").symlink_to(secret)
    entries = {"files": {"bytes": 8, "sha256": "0"}, "splits": {}}
    renamed(folder, lambda m: m[where].update({name: m[where].get("train", entries[where])}))
    with pytest.raises(ValueError, match=f"{MANIFEST} names '{name}', which leads out of {folder}"):
        PreparedDataset(folder)


def test_the_model_of_a_tokenizer_stays_in_the_folder(tmp_path):
    write_corpus(tmp_path / "books")
    renamed(tmp_path / "books", lambda m: m["form"]["tokenizer"].update(model="../../model"))
    with pytest.raises(ValueError, match="names '../../model', which leads out of"):
        read_corpus(tmp_path / "books")


def test_a_column_stays_in_the_folder(folder):
    renamed(folder, lambda m: m["form"]["columns"].update({"../x": m["form"]["columns"]["inputs"]}))
    with pytest.raises(ValueError, match=r"names '../x', which leads out of"):
        PreparedDataset(folder)
