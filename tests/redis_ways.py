"""Other ways to a real Redis for tests: by TLS with client certificates, and two servers with sentinels over them."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

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

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="clinvk-sentinel-"))
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.servers = [self._server(), self._server()]
        self._client(self.servers[1]).replicaof("127.0.0.1", self.servers[0])
        self.sentinels = [self._sentinel() for _ in range(3)]
        self.until(lambda: all(self._knows(port) for port in self.sentinels))

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"redis+sentinel://:p%40ss%2Fword@{hosts}/{self.SERVICE}/0"

    def _server(self) -> int:
        port = free_port()
        folder = self.folder / str(port)
        folder.mkdir()
        words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "yes"]
        words += ["--requirepass", self.PASSWORD, "--masterauth", self.PASSWORD, "--repl-diskless-sync-delay", "0"]
        return self._start(port, words)

    def _sentinel(self) -> int:
        port = free_port()
        config = self.folder / f"sentinel-{port}.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor {self.SERVICE} 127.0.0.1 {self.servers[0]} 2\n"
            f"sentinel auth-pass {self.SERVICE} {self.PASSWORD}\n"
            f"sentinel down-after-milliseconds {self.SERVICE} 1000\nsentinel failover-timeout {self.SERVICE} 3000\n"
        )
        return self._start(port, [str(config), "--sentinel"])

    def _start(self, port: int, words: list[str]) -> int:
        log = self.folder / f"{port}.log"
        command = [binary(), *words, "--logfile", str(log)]
        self.processes[port] = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.until(lambda: self._up(port))
        return port

    def _up(self, port: int) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    def _knows(self, port: int) -> bool:
        with redis.Redis(port=port) as client:
            found = client.execute_command("SENTINEL", "MASTER", self.SERVICE)
            told = dict(zip(found[::2], found[1::2], strict=True)) if isinstance(found, list) else found
            text = {str(k.decode() if isinstance(k, bytes) else k): v for k, v in told.items()}
            return int(text["num-slaves"]) == 1 and int(text["num-other-sentinels"]) == 2

    def _client(self, port: int) -> "redis.Redis":
        return redis.Redis(port=port, password=self.PASSWORD)

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
