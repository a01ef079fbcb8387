from __future__ import annotations

import asyncio
import random
import ssl

import pytest

from nbd_client.errors import SourceUnreachable
from nbd_client.source import pool
from nbd_client.source.stack import open_source
from tests.support.programs import program, run
from tests.support.rangeserver import RangeServer

CONTENT = random.Random(8).randbytes(3 << 20)


@pytest.fixture
async def tls(tmp_path):
    """A range server behind TLS, and its certificate's file."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    done = await run(
        program("openssl", "openssl"),
        *(
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ),
        *(
            "-keyout",
            key,
            "-out",
            certificate,
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ),
    )
    assert done.status == 0, done.err
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = RangeServer(CONTENT)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    yield server.url.replace("http://", "https://"), certificate
    listener.close()
    server.drop_connections()
    await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _fresh_context():
    pool.tls_context.cache_clear()
    yield
    pool.tls_context.cache_clear()


@pytest.mark.real
async def test_bytes_come_over_tls_from_an_authority_that_is_named(tls, monkeypatch):
    url, certificate = tls
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    source = await open_source(url)
    for offset, length in ((0, 1), (12_345, 4096), (0, len(CONTENT))):
        assert await source.read(offset, length) == CONTENT[offset : offset + length]
    await source.aclose()


@pytest.mark.real
async def test_a_certificate_of_nobody_known_is_refused(tls):
    url, _ = tls
    with pytest.raises(SourceUnreachable, match="SSL_CERT_FILE"):
        await open_source(url)
