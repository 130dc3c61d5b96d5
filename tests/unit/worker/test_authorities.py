"""The host's certificate authorities, looked up one by one where they are the same as the bundle's."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.redis_ways import Certificates
from worker.warm import authorities


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> bytes:
    return Path(Certificates(tmp_path_factory.mktemp("ca"))["ca.pem"]).read_bytes()


@pytest.fixture
def host(tmp_path, authority) -> tuple[str, str]:
    """A bundle and a folder of hashed names, as Debian keeps them."""
    folder = tmp_path / "certs"
    folder.mkdir()
    (folder / "test.pem").write_bytes(authority)
    (folder / "all.crt").write_bytes(authority)
    subprocess.run(["openssl", "rehash", str(folder)], check=True, capture_output=True, timeout=30)
    return str(folder / "all.crt"), str(folder)


def test_the_same_authorities_are_looked_up_by_name(host):
    found = authorities.one_by_one({"PATH": "/bin"}, *host)
    assert found == {"SSL_CERT_FILE": os.devnull, "SSL_CERT_DIR": host[1]}


def test_a_bundle_that_knows_one_more_is_read_whole(host, tmp_path_factory):
    assert authorities.one_by_one({}, *host)
    other = Path(Certificates(tmp_path_factory.mktemp("other"))["ca.pem"]).read_bytes()
    bundle = Path(host[0])
    bundle.write_bytes(bundle.read_bytes() + other)
    before = bundle.stat().st_mtime_ns
    os.utime(bundle, ns=(before, before + 1_000_000))
    assert authorities.one_by_one({}, *host) == {}


def test_a_folder_without_hashed_names_is_of_no_use(tmp_path, authority):
    (tmp_path / "all.crt").write_bytes(authority)
    assert authorities.one_by_one({}, str(tmp_path / "all.crt"), str(tmp_path)) == {}


@pytest.mark.parametrize("named", [{"SSL_CERT_FILE": "/own.pem"}, {"SSL_CERT_DIR": "/own"}])
def test_authorities_that_the_operator_has_named_stay(host, named):
    assert authorities.one_by_one(named, *host) == {}


def test_the_bundle_named_by_its_own_path_is_the_bundle(host, tmp_path):
    link = tmp_path / "link.pem"
    link.symlink_to(host[0])
    assert authorities.one_by_one({"SSL_CERT_FILE": str(link)}, *host)


@pytest.mark.parametrize("content", [b"", b"no certificates", b"\xff\x00"])
def test_an_empty_bundle_is_left_to_the_cli(host, content):
    Path(host[0]).write_bytes(content)
    os.utime(host[0], ns=(1, 1))
    assert authorities.one_by_one({}, *host) == {}


def test_a_host_without_any_has_none(tmp_path):
    missing = (str(tmp_path / "none.crt"), str(tmp_path))
    assert authorities.seen(*missing) is None
    assert authorities.one_by_one({}, *missing) == {}
