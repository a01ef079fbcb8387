import ctypes
import zlib

import pytest

from gateway.gzran import libz


@pytest.fixture(autouse=True)
def _forget():
    libz.load.cache_clear()
    yield
    libz.load.cache_clear()


def test_the_systems_library_is_loaded_once():
    assert libz.load() is libz.load()
    assert libz.load().zlibVersion().startswith(b"1.")


def test_the_structure_is_the_one_that_libz_was_built_with():
    stream = libz.ZStream()
    code = libz.load().inflateInit2_(
        ctypes.byref(stream), 31, libz.load().zlibVersion(), ctypes.sizeof(stream)
    )
    assert code == libz.Z_OK
    assert libz.load().inflateEnd(ctypes.byref(stream)) == libz.Z_OK


def test_the_library_of_pythons_own_module_serves_when_the_systems_is_missing(monkeypatch):
    # Where zlib is built into the interpreter there is no such file: a stand-in has the same symbols.
    module = getattr(zlib, "__file__", "the zlib module's library")
    monkeypatch.setattr(zlib, "__file__", module, raising=False)
    real = ctypes.CDLL
    asked = []

    def one_missing(name):
        asked.append(name)
        if name == "libz.so.1":
            raise OSError(name)
        return real(name if name.startswith("/") else "libz.so.1")

    monkeypatch.setattr(ctypes, "CDLL", one_missing)
    assert libz.load().zlibVersion().startswith(b"1.")
    assert asked == ["libz.so.1", module]


def test_without_any_library_the_package_to_install_is_named(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(ImportError, match="zlib1g"):
        libz.load()
