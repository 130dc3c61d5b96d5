"""Other ways to a real Redis for tests: by TLS, its own or a proxy's, and two servers with sentinels over them."""

import contextlib
import functools
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
import redis

from tests.servers import binary


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Certificates:
    """A CA of the test's own, a server's certificate for 127.0.0.1 and a client's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run("req", "-x509", *self._key("ca"), "-subj", "/CN=test CA", "-days", "2", "-out", self["ca.pem"])
        self._sign("server", "subjectAltName=IP:127.0.0.1")
        self._sign("client", "extendedKeyUsage=clientAuth")

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)

    def _key(self, name: str) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", self[f"{name}.key"]]

    def _sign(self, name: str, extension: str) -> None:
        (self.folder / f"{name}.ext").write_text(extension + "\n")
        self._run("req", *self._key(name), "-subj", f"/CN={name}", "-out", self[f"{name}.csr"])
        ca = ["-CA", self["ca.pem"], "-CAkey", self["ca.key"], "-CAcreateserial", "-days", "2"]
        out = ["-extfile", self[f"{name}.ext"], "-in", self[f"{name}.csr"], "-out", self[f"{name}.pem"]]
        self._run("x509", "-req", *ca, *out)

    @staticmethod
    def _run(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=30)


@functools.cache
def tls_binary() -> tuple[str, str] | None:
    """A server that speaks TLS itself, and the name by which it is to be called; the one that the other tests use may not.

    Debian's redis-tools carries the server under another name, so that no redis-server is on the PATH for it."""
    for name, file in (("redis-server",) * 2, ("valkey-server",) * 2, ("redis-server", "redis-check-rdb")):
        if path := shutil.which(file):
            words = [name, "--port", "0", "--tls-port", str(free_port())]  # ends at once: it is given no certificate
            told = subprocess.run(words, executable=path, capture_output=True, text=True, timeout=10, check=False)
            if "tls-cert-file" in told.stdout:
                return name, path
    return None


def needs_tls_server() -> tuple[str, str]:
    found = tls_binary()
    if found is None:
        message = (
            "no Redis server here speaks TLS: Debian's redis-tools or redis-server, or a valkey-server built with it"
        )
        (pytest.fail if os.environ.get("CLINVK_REQUIRE") else pytest.skip)(message)
        raise AssertionError(message)
    return found


def tls_words(certificates: "Certificates") -> dict[str, str]:
    """What a server is told, of itself and for its own connections to others; it asks clients for a certificate."""
    files = {"tls-cert-file": "server.pem", "tls-key-file": "server.key", "tls-ca-cert-file": "ca.pem"}
    return {name: certificates[file] for name, file in files.items()} | {
        "tls-auth-clients": "yes",
        "tls-replication": "yes",
    }


def tls_client(certificates: "Certificates", port: int, **login: str) -> "redis.Redis":
    return redis.Redis(
        port=port,
        host="127.0.0.1",
        ssl=True,
        ssl_ca_certs=certificates["ca.pem"],
        ssl_certfile=certificates["client.pem"],
        ssl_keyfile=certificates["client.key"],
        **login,
    )


class TlsServer:
    """A Redis that takes TLS alone, and two users alone: the service's, with the rights given, and one for the test.

    Stands where a `RedisServer` stands."""

    PASSWORD = "p@ss/word"

    def __init__(self, certificates: "Certificates", rights: str) -> None:
        name, path = needs_tls_server()
        self.folder = Path(tempfile.mkdtemp(prefix="clinvk-tls-"))
        if (
            "v=7.0"
            in subprocess.run(
                [name, "--version"], executable=path, capture_output=True, text=True, timeout=10, check=False
            ).stdout
        ):
            rights = rights.replace("+client|setinfo", "")  # as docs/redis.md says
        self.port = free_port()
        self._certificates = certificates
        users = self.folder / "users.acl"
        users.write_text(
            f"user default off\nuser clinvk on >{self.PASSWORD} {rights}\nuser admin on >admin ~* &* +@all\n"
        )
        command = [name, "--port", "0", "--tls-port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--save", "", "--aclfile", str(users), "--logfile", "redis.log"]
        for word, value in tls_words(certificates).items():
            command += ["--" + word, value]
        self._process = subprocess.Popen(command, executable=path, stdin=subprocess.DEVNULL)
        Watched.until(self._up)

    def _up(self) -> bool:
        assert self._process.poll() is None, (self.folder / "redis.log").read_text()
        with contextlib.suppress(redis.RedisError, OSError), self.client() as client:
            return bool(client.ping())
        return False

    def url(self, host: str = "127.0.0.1", password: str = "p%40ss%2Fword", **query: str) -> str:
        words = "&".join(f"{name}={value}" for name, value in query.items())
        return f"rediss://clinvk:{password}@{host}:{self.port}/0?{words}"

    def client(self) -> "redis.Redis":
        return tls_client(self._certificates, self.port, username="admin", password="admin")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class TlsFront:
    """Takes TLS on loopback and passes on to a server's unix socket, as a terminating proxy does; asks for a certificate."""

    def __init__(self, to: Path, certificates: Certificates) -> None:
        self._to = str(to)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates["server.pem"], certificates["server.key"])
        self._context.load_verify_locations(certificates["ca.pem"])
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._socket.accept()[0],), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        client = None
        try:
            client = self._context.wrap_socket(raw, server_side=True)
            # TLS 1.3 tells of a refused certificate with the first byte that is read.
            client.settimeout(60)
            first = client.recv(1 << 16)
        except OSError:
            (client or raw).close()
            return
        self.connections += 1
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._to)
        server.sendall(first)
        client.settimeout(None)
        with client, server:
            back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
            back.start()
            self._pump(client, server)
            back.join()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


class Watched:
    """A master, its replica and three sentinels; stands where a `RedisServer` stands."""

    SERVICE = "main"
    PASSWORD = "p@ss/word"

    def __init__(self, certificates: Certificates | None = None) -> None:
        """By TLS alone, with certificates."""
        self._certificates = certificates
        self._binary = (binary(), binary()) if certificates is None else needs_tls_server()
        self.folder = Path(tempfile.mkdtemp(prefix="clinvk-sentinel-"))
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.servers = [self._server(), self._server()]
        self._client(self.servers[1]).replicaof("127.0.0.1", self.servers[0])
        self.sentinels = [self._sentinel() for _ in range(3)]
        self.until(lambda: all(self._knows(port) for port in self.sentinels))

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        if self._certificates is None:
            return f"redis+sentinel://:p%40ss%2Fword@{hosts}/{self.SERVICE}/0"
        files = {"ssl_ca_certs": "ca.pem", "ssl_certfile": "client.pem", "ssl_keyfile": "client.key"}
        query = "&".join(f"{name}={self._certificates[file]}" for name, file in files.items())
        return f"rediss+sentinel://:p%40ss%2Fword@{hosts}/{self.SERVICE}/0?{query}"

    def _listens(self, port: int) -> dict[str, str]:
        if self._certificates is None:
            return {"port": str(port)}
        return {"port": "0", "tls-port": str(port), **tls_words(self._certificates)}

    def _server(self) -> int:
        port = free_port()
        folder = self.folder / str(port)
        folder.mkdir()
        words = ["--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "yes"]
        for name, value in self._listens(port).items():
            words += ["--" + name, value]
        words += ["--requirepass", self.PASSWORD, "--masterauth", self.PASSWORD, "--repl-diskless-sync-delay", "0"]
        return self._start(port, words)

    def _sentinel(self) -> int:
        port = free_port()
        config = self.folder / f"sentinel-{port}.conf"
        config.write_text(
            "".join(f"{name} {value}\n" for name, value in self._listens(port).items())
            + f"bind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor {self.SERVICE} 127.0.0.1 {self.servers[0]} 2\n"
            f"sentinel auth-pass {self.SERVICE} {self.PASSWORD}\n"
            f"sentinel down-after-milliseconds {self.SERVICE} 1000\nsentinel failover-timeout {self.SERVICE} 3000\n"
        )
        return self._start(port, [str(config), "--sentinel"])

    def _start(self, port: int, words: list[str]) -> int:
        log = self.folder / f"{port}.log"
        name, path = self._binary
        command = [name, *words, "--logfile", str(log)]
        self.processes[port] = subprocess.Popen(command, executable=path, stdin=subprocess.DEVNULL)
        self.until(lambda: self._up(port))
        return port

    def _up(self, port: int) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    def _knows(self, port: int) -> bool:
        with self._client(port, "") as client:
            found = client.execute_command("SENTINEL", "MASTER", self.SERVICE)
            told = dict(zip(found[::2], found[1::2], strict=True)) if isinstance(found, list) else found
            text = {str(k.decode() if isinstance(k, bytes) else k): v for k, v in told.items()}
            return int(text["num-slaves"]) == 1 and int(text["num-other-sentinels"]) == 2

    def _client(self, port: int, password: str = PASSWORD) -> "redis.Redis":
        if self._certificates is None:
            return redis.Redis(port=port, password=password)
        return tls_client(self._certificates, port, password=password)

    @property
    def master(self) -> int:
        """By their own word, once one alone says so."""
        while True:
            found = []
            for port in self.servers:
                with contextlib.suppress(redis.RedisError), self._client(port) as client:
                    found += [port] * (client.role()[0] in (b"master", "master"))
            if len(found) == 1:
                return found[0]

    def client(self) -> "redis.Redis":
        return self._client(self.master)

    def in_step(self) -> bool:
        with self.client() as client:
            return int(client.execute_command("WAIT", 1, 1000)) == 1

    def kill(self) -> None:
        """The master, at once; the sentinels make the other one that."""
        port = self.master
        self.servers.remove(port)
        self.processes[port].kill()
        self.processes[port].wait()

    @staticmethod
    def until(what, limit_s: float = 20.0) -> None:
        deadline = time.monotonic() + limit_s
        while not what():
            assert time.monotonic() < deadline, what

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
