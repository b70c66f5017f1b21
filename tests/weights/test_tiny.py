"""The built-in model: made once, in the cache, whoever asks first."""

import shutil
import threading

import pytest
import torch

from longlive_optimized.weights import tiny
from longlive_optimized.weights.load import check, load_generator
from longlive_optimized.weights.locate import locate


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny._temporary.cache_clear()
    yield tmp_path / "cache"
    tiny._temporary.cache_clear()


def test_made_once_and_read_like_any_other(cache, pristine, monkeypatch):
    files = locate("tiny")
    assert files.generator.is_relative_to(cache / "longlive_optimized")
    check(files)
    assert files.generator.read_bytes() == locate(pristine).generator.read_bytes()
    monkeypatch.setattr(tiny, "make_checkpoint", None)  # a second making would fail
    assert locate("tiny") == files
    assert load_generator(files, "cpu", torch.bfloat16).config.num_layers == 2


def test_home_is_used_without_xdg(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tiny.tiny_folder().parent == tmp_path / ".cache" / "longlive_optimized"


def test_several_at_once(cache):
    """As processes would: each makes its own, one wins, all see a whole one."""
    start, found = threading.Barrier(3), []

    def work():
        start.wait()
        found.append(tiny.tiny_folder())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1
    assert list(found[0].parent.iterdir()) == [found[0]]
    check(locate("tiny"))


@pytest.mark.parametrize("kind", ["file", "relative"])
def test_no_cache_to_write_to(cache, tmp_path, monkeypatch, caplog, kind):
    if kind == "file":
        cache.write_text("in the way")
    else:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", "here")
    first = tiny.tiny_folder()
    assert tiny.tiny_folder() == first and first.is_dir()
    assert len(caplog.records) == 1 and "temporary folder" in caplog.text
    assert sorted(tmp_path.iterdir()) == ([cache] if kind == "file" else [])
    check(locate("tiny"))


def test_another_recipe_has_another_folder(cache, tmp_path, monkeypatch):
    version = tiny._version()
    for name in tiny._RECIPE:
        shutil.copy(tiny.Path(tiny.__file__).with_name(name), tmp_path)
    monkeypatch.setattr(tiny, "__file__", str(tmp_path / "tiny.py"))
    tiny._version.cache_clear()
    assert tiny._version() == version
    (tmp_path / "corpus.txt").write_text("other words")
    tiny._version.cache_clear()
    assert tiny._version() != version
    tiny._version.cache_clear()
